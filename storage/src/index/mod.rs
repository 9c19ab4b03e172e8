//! The search index over the summaries of the blocks: per bucket some tantivy segments, each one file, and a manifest
//! that says which of them stand and how far they know the block.
//!
//! The index is derived: whatever is wrong with it, it is dropped and built again from the block. It answers
//! conditions on service, operation and status of one span exactly, since a document holds the combinations that
//! occurred; conditions on attributes it mostly narrows down. No threads, no clock.

mod blob;
mod build;
mod cache;
mod error;
mod limits;
mod manifest;
mod names;
mod query;
mod schema;
mod search;
mod segment;
mod store;
mod terms;
mod write;

#[cfg(test)]
mod damage_test;
#[cfg(test)]
mod index_test;

pub use error::IndexError;
pub use limits::{DEFAULT_OPEN_SEGMENTS, MAX_HITS, MAX_INDEX_NAMES, MAX_SEGMENT_DOCUMENTS};
pub use search::{IndexAnswer, IndexHit, IndexQuery};
pub use store::{DroppedIndex, IndexOptions, IndexStore};
