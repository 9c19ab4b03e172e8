//! The node's copy of the Raft log in one redb file, and the state machine beside it.
//!
//! The state itself lives in memory: at start it is the stored snapshot and the committed entries after it. So a
//! command costs two durable commits of some hundred bytes (the entry, and that it is committed), whatever the size
//! of the state.
//!
//! Commits block the calling task for an fsync. That is on purpose: settings change a few times a minute, the tasks
//! that wait are openraft's own, and the order of writes is then the order of calls, in the simulation as in
//! production.

mod database;
mod identity;
mod log;
mod machine;
#[cfg(test)]
mod suite_test;

pub(crate) use database::Database;
pub use database::StoreError;
pub(crate) use identity::Identity;
pub(crate) use log::LogStore;
pub(crate) use machine::StateMachine;
