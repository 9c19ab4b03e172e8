//! How the group's nodes reach each other. The crate `actors` implements it over the links between nodes.

use std::time::Duration;

use async_trait::async_trait;
use spandrel_model::ids::NodeId;

/// What a request is about, so that a transport can choose a link and account for it. The bytes say it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RaftCall {
    /// Entries of the log, or a heartbeat.
    Append,
    /// A candidate asks for a vote.
    Vote,
    /// A node asks whether it would get votes.
    PreVote,
    /// A piece of a snapshot: up to half a message, for the bulk link.
    Snapshot,
    /// A command for the leader.
    Propose,
    /// Asks the leader how far a linearizable read must have applied.
    ReadIndex,
}

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The peer cannot have received the request.
    #[error("node {} cannot be reached: {reason}", to.0)]
    Unreachable {
        /// The peer.
        to: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// The peer may have received the request and acted on it.
    #[error("node {} did not answer: {reason}", to.0)]
    NoAnswer {
        /// The peer.
        to: NodeId,
        /// Why, for people.
        reason: String,
    },
}

/// Carries requests of the group to other nodes, where [`Settings::answer`](crate::Settings::answer) answers them.
///
/// Requests and answers are opaque and at most [`MAX_MESSAGE_BYTES`](crate::limits::MAX_MESSAGE_BYTES) long. The peer
/// must be authenticated: the group trusts its members.
#[async_trait]
pub trait RaftTransport: Send + Sync + 'static {
    /// Sends a request and returns the answer. Dropping the future gives the request up.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`] only when the peer has certainly not received the request; everything else,
    /// the deadline included, is [`TransportError::NoAnswer`].
    async fn call(
        &self,
        to: NodeId,
        call: RaftCall,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, TransportError>;
}

/// The transport of a group of one: there is nobody to reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

#[async_trait]
impl RaftTransport for NoPeers {
    async fn call(
        &self,
        to: NodeId,
        _call: RaftCall,
        _request: Vec<u8>,
        _deadline: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        Err(TransportError::Unreachable {
            to,
            reason: "this node has no links to others".to_owned(),
        })
    }
}
