//! What can go wrong with the group, for its callers.

use std::path::PathBuf;

use spandrel_model::ids::NodeId;

use crate::state::Conflict;
use crate::store::StoreError;

/// Why the group could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file cannot be read or written, or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory belongs to another cluster or another node.
    #[error("`{}` belongs to {what} {found:016x}, not to {expected:016x}", path.display())]
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// What differs: `cluster` or `node`.
        what: &'static str,
        /// What was expected.
        expected: u64,
        /// What the file says.
        found: u64,
    },
    /// The directory was used before, and its log is gone: with it the votes this node gave.
    #[error("`{}` is missing, but `{}` says that there was one: restore it, or remove the node and join as a new one", log.display(), identity.display())]
    LogMissing {
        /// The log's file.
        log: PathBuf,
        /// The file that says so.
        identity: PathBuf,
    },
    /// The settings of the new cluster are refused.
    #[error("the new cluster's settings are refused: {0}")]
    Seed(Conflict),
    /// The group stopped while it opened.
    #[error("the settings in `{}` could not be opened: {reason}", path.display())]
    Group {
        /// The log's file.
        path: PathBuf,
        /// Why, for people.
        reason: String,
    },
}

/// Why a proposal did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The state refused the command: it has changed nothing.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The command is too large: it has changed nothing.
    #[error("the command has {bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// No leader could be reached in time: the command has changed nothing and may be proposed again.
    #[error("the cluster's settings have no leader now: {reason}")]
    Unavailable {
        /// Why, for people.
        reason: String,
    },
    /// Only the leader does this, and this node does not lead.
    #[error("this node does not lead the settings")]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The command may have taken place, or may yet. A linearizable read shows it; commands are compare-and-set, so
    /// that proposing it again cannot do it twice.
    #[error("the outcome is not known: {reason}")]
    OutcomeUnknown {
        /// Why, for people.
        reason: String,
    },
    /// The group has stopped on this node.
    #[error("the settings have stopped on this node: {reason}")]
    Stopped {
        /// Why, for people.
        reason: String,
    },
}

/// A request of a peer that was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request of a peer refused: {reason}")]
pub struct RequestError {
    /// Why, for people.
    pub reason: String,
}
