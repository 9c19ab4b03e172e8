//! What clients of Spandrel speak: OTLP by gRPC and HTTP, the native HTTP and gRPC API, Tempo's trace fetch; and a
//! client of our own.
//!
//! May depend on: the model (it calls the ports `Ingest`, `Query`, `Admin`). Must never: import storage, raft, actors
//! or their libraries, or buffer what a client sends before credit admitted it.

pub mod client;
mod connection;
mod convert;
mod cursor;
pub mod dto;
mod error;
pub mod limits;
mod native;
mod otlp;
mod parameters;
mod pieces;
mod proto;
mod query_service;
mod question;
#[cfg(test)]
mod question_oracle;
mod rpc_status;
mod serve;
mod starting;
mod telemetry;
mod tempo;
mod tenant;
pub mod time;

pub use serve::{Listeners, Ports, ServeError, serve};
pub use starting::serve_until_started;
