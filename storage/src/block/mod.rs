//! Block files: the pages, resources, locators and summaries of one time bucket, in one redb file each.
//!
//! Kept traces are committed as pages with their summaries in one durable transaction; they are found by id through
//! a filter and the locator, and searched on the columns of the pages. Retention removes whole files.
//! docs/formats/block.md describes the tables.

mod batches;
mod commit;
mod error;
mod export;
mod file;
mod filter;
mod inventory;
pub mod limits;
mod matching;
mod open_files;
mod read;
mod scan;
mod schema;
mod seal;
mod store;
mod stored_page;
mod summaries;

#[cfg(test)]
mod block_life_test;
#[cfg(test)]
mod block_test;
#[cfg(test)]
mod export_test;
#[cfg(test)]
mod failed_sync_test;
#[cfg(test)]
mod inventory_test;
#[cfg(test)]
mod misdirected_test;

pub use commit::BlockWrite;
pub use error::BlockError;
pub use export::{BlockExport, PagePlace, Wanted};
pub use inventory::{Inventory, Slice, Tally};
pub use read::{AttributeScope, FragmentLocation};
pub use scan::{BlockScan, FoundFragment, ScanRequest, ScannedPage};
pub use store::{BlockInfo, BlockOptions, BlockStore};
