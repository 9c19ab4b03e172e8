//! The domain of Spandrel: ids, spans as the wire brings them, summaries, policies, verdicts, and the ports that
//! join `api` to `actors`.
//!
//! May depend on: hashing, byte and parsing libraries. Must never: do I/O, read a clock, draw randomness, be async
//! (the ports are traits; others implement them), or know a storage or network library.

pub mod batch;
pub mod cluster;
pub mod credit;
pub mod error;
pub mod ids;
pub mod interest;
pub mod limits;
pub mod otlp;
pub mod policy;
pub mod ports;
pub mod routing;
pub mod search;
pub mod shard_set;
pub mod summary;
pub mod verdict;
