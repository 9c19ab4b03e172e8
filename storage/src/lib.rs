//! Spandrel's disk: the journal of what was acknowledged, the columnar pages and block files of what was kept, and
//! the search index over them.
//!
//! May depend on: `model`; owns redb, tantivy and zstd, no type of which leaves the crate (redb's `StorageBackend`
//! excepted: it is the seam of the disk). Must never: know an actor or a socket, read a clock, start a thread. Every
//! call blocks and says so; the caller chooses the thread.

pub mod block;
mod byte_cache;
mod compression;
pub mod disk;
pub mod guard;
pub mod index;
pub mod journal;
pub mod limits;
pub mod page;
