//! The actors of a node: ingest, writer, one assembler per shard, pager, indexer, housekeeper, queries.
//!
//! May depend on: the model, storage and raft; owns ractor and consistent_hash. It implements the ports of the model. Must never: speak
//! HTTP or gRPC to clients, read a clock or a disk other than through [`Env`], or queue bytes without credit.

// Unit tests share the support of the tests in `tests/`, which names the crate from outside.
#[cfg(test)]
extern crate self as spandrel_actors;

mod admin;
mod arena;
pub mod assembler;
mod assembler_actor;
mod assembler_message;
mod buggify;
mod checkpoints;
pub mod controller;
mod credit_account;
mod disk_hang;
mod disk_room;
mod env;
mod facts;
mod found;
mod housekeeping;
mod identity;
mod indexer;
mod ingest;
mod inventory;
mod journal_decided;
pub mod limits;
pub mod link;
pub mod membership;
mod meters;
mod node;
mod opening;
mod pager;
pub mod placement;
mod query;
mod recent;
mod recovery;
mod repair;
mod replay;
pub mod replication;
mod route;
pub mod settings;
mod shared;
mod start_phase;
mod starting;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod test_support;
mod ticker;
#[allow(dead_code)] // messages of services that nothing calls yet
mod wire;
mod writer;

pub use buggify::{Buggify, Site};
pub use credit_account::CreditAccount;
pub use env::{BlockingMode, Clock, Env};
pub use node::{Node, NodeOptions, StartError};
pub use recovery::Recovery;
pub use start_phase::StartPhase;
