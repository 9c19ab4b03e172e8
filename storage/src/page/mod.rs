//! The columnar page: kept traces of one tenant, encoded once, rebuilt byte for byte.
//!
//! A page holds fragments of traces, its rows sorted by (shard, trace id, fragment). Each field of a span and each
//! attribute key has a column of its own; columns are compressed in small groups, so that a reader fetches only
//! those that it needs. docs/formats/page.md describes the bytes.
//!
//! What a span cannot say in columns (unknown fields, a key given twice, long forms of varints) keeps its bytes as
//! they came: a rebuilt span equals its original always, and so has the hash that duplicates are known by.

mod builder;
mod cardinality;
mod compare;
mod context;
mod dissect;
mod encoder;
mod error;
mod evaluate;
mod field;
mod keys;
mod layout;
pub mod limits;
mod names;
mod reader;
mod rebuild;
mod shapes;
mod values;
pub(crate) mod wire;

#[cfg(test)]
mod page_test;
#[cfg(test)]
pub(crate) mod testing;

pub use builder::{EncodedPage, FragmentHead, PageBuilder, PageSpan, PlacedFragment};
pub use cardinality::Cardinality;
pub use context::{ContextHash, StoredContext, read_context};
pub use error::{CorruptPage, PageError, PageFull};
pub use evaluate::{ContextMatch, PageCondition};
pub use field::ValueKind;
pub use reader::{AttributeColumnView, PageBytes, PagePart, PageReader, Unpacked};
pub use rebuild::RebuiltSpan;
