//! What nodes hold of the same data is compared, and what one of them lacks it gets from another.
//!
//! Each node counts the blocks of closed buckets, reading and verifying every page, and asks the other nodes that should
//! hold the same for their counts. Where they differ it looks for the traces, and pulls what it lacks; the other side does
//! the same. A page that cannot be read is taken out once another node has shown that it has all that was on it.
//! docs/decisions/0019-what-nodes-hold-is-compared.md.

mod comparer;
mod comparison;
mod ledger;
mod server;
mod sharers;

pub(crate) use comparer::{Comparer, ComparerArguments, ComparerMessage};
pub(crate) use comparison::ask_to_look;
pub(crate) use ledger::Ledger;
pub(crate) use server::{InventoryServer, look};
