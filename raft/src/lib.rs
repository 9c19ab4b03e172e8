//! The replicated settings and membership of a Spandrel cluster, in one openraft group: who is in, what is
//! configured, who holds what.
//!
//! May depend on: `model`, and the disk seam of `storage`; owns openraft and bincode, no type of which leaves the
//! crate. Must never: carry spans, open a socket (nodes talk through [`RaftTransport`], which others implement), or
//! start a task of its own.

pub mod limits;
pub mod state;

mod codec;
#[cfg(test)]
mod codec_oracle;
mod error;
mod inbox;
mod members;
mod message;
mod open;
mod peers;
mod recover;
#[cfg(test)]
mod recover_test;
mod settings;
#[cfg(test)]
mod settings_test;
mod store;
mod transport;
mod types;
mod voters;

pub use error::{OpenError, ProposeError, RequestError};
pub use members::Members;
pub use open::{DirectoryIdentity, RaftOptions, Start};
pub use recover::{LogEnd, RecoverError, RecoveredCluster, Survey, follow, recover, survey};
pub use settings::{Response, Settings};
pub use state::{Applied, ClusterSeed, ClusterState, Command, Conflict, Losses};
pub use store::StoreError;
pub use transport::{NoPeers, RaftCall, RaftTransport, TransportError};
pub use voters::choose_voters;
