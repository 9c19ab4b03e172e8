//! What clients of Spandrel speak: OTLP by gRPC and HTTP, the native HTTP and gRPC API, Tempo's trace fetch; and a
//! client of our own.
//!
//! May depend on: the model (it calls the ports `Ingest`, `Query`, `Admin`). Must never: import storage, raft, actors
//! or their libraries, or buffer what a client sends before credit admitted it.

pub mod client;
mod convert;
pub mod dto;
pub mod limits;
mod otlp;
mod proto;
mod rpc_status;
pub mod time;
