//! Copies of older data: what has too few holders, because a node is lost or leaves, or because there was only one at
//! first, is pulled by the nodes that are to hold it, in the background.
//!
//! Who copies what from whom is a pure function of the replicated settings ([`plan`]); every node follows its own part
//! of it. A node is named as a holder when its disk has everything. docs/decisions/0016-copies-are-pulled.md.

mod actor;
mod fetch;
mod plan;
mod server;

pub(crate) use actor::{Copier, CopierArguments, CopierMessage};
pub(crate) use fetch::{Fetched, Fetching, store_part};
pub(crate) use plan::{held_alone, lacking, needed_of};
pub(crate) use server::CopyServer;
