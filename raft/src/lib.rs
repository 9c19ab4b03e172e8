//! The replicated settings and membership of a Spandrel cluster, in one openraft group: who is in, what is
//! configured, who holds what.
//!
//! May depend on: `model`, and the disk seam of `storage`; owns openraft and bincode, no type of which leaves the
//! crate. Must never: carry spans, open a socket (nodes talk through [`RaftTransport`], which others implement), or
//! start a task of its own.

pub mod limits;
pub mod state;

mod codec;
mod store;
mod types;

pub use store::StoreError;
