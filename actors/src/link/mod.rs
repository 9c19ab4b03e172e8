//! The links between nodes, as the rest of a node sees them: a call to a node, an incoming call to answer, and who can
//! be reached. What carries them is behind [`Link`].
//!
//! Every call has a deadline, every message a bound ([`MAX_LINK_MESSAGE_BYTES`]). Calls to one node in one class reach
//! its [`PeerHandler`] in the order in which they were made; nothing is delivered twice by the link, but a call without
//! an answer may have been delivered.

#[cfg(test)]
mod codec_oracle;
#[cfg(test)]
mod codec_test;
mod core;
mod dialler;
mod directory;
#[cfg(test)]
mod directory_test;
mod driver;
mod envelope;
mod gateway;
mod hello;
mod hub;
#[cfg(test)]
mod hub_test;
mod keeper;
mod lifeline;
mod outbox;
mod reasons;
mod session;
mod streams;
mod switchboard;
mod tasks;
mod tcp;
#[cfg(test)]
mod tcp_test;
#[cfg(test)]
pub(crate) mod testing;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spandrel_model::ids::NodeId;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

pub use directory::LinkIdentity;
pub use hello::{NEWEST_VERSION, OLDEST_VERSION};
pub use hub::{Hub, HubError, HubOptions};
pub use streams::{Incoming, LinkStream, Streams};
pub use tcp::TcpStreams;
pub use tls::{LinkPem, LinkTls, LinkTlsError, PeerCertificate};

/// Largest request and largest answer in bytes: one message must not hold a session for long, and a frame of the
/// transport over 16 MiB would end it.
pub const MAX_LINK_MESSAGE_BYTES: usize = 1 << 20;

/// Which of the two sessions with a node carries a call, so that a heartbeat never waits behind data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkClass {
    /// Small and urgent: consensus, membership, heartbeats, questions.
    Control,
    /// Spans, frames, pieces of snapshots, answers of many bytes.
    Bulk,
}

/// What a call is for; the bytes behind it are the service's own. On the wire: numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PeerService {
    /// Requests of the settings' group (`spandrel_raft`).
    Raft = 1,
    /// Spans for a shard's primary, frames for its followers.
    Shards = 2,
    /// Questions of a query's coordinator.
    Query = 3,
    /// Joining, leaving, what one node asks of another about itself.
    Membership = 4,
    /// Older data for a node that is to hold it.
    Copies = 5,
    /// Pages that a primary has built, for its followers.
    Pages = 6,
    /// What a node holds, for one that compares it with its own.
    Inventory = 7,
}

impl PeerService {
    /// Every service.
    pub const ALL: [Self; 7] = [
        Self::Raft,
        Self::Shards,
        Self::Query,
        Self::Membership,
        Self::Copies,
        Self::Pages,
        Self::Inventory,
    ];

    /// The version of the links that has it first.
    #[must_use]
    pub fn since(self) -> u16 {
        match self {
            Self::Raft | Self::Shards | Self::Query | Self::Membership => 1,
            Self::Copies | Self::Pages | Self::Inventory => 2,
        }
    }

    /// From the number on the wire.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|one| *one as u8 == number)
    }
}

/// A call that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The node has certainly not received the call.
    #[error("node {} cannot be reached: {reason}", to.0)]
    Unreachable {
        /// The node; 0 when only an address is known.
        to: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// The node may have received the call and acted on it.
    #[error("node {} did not answer: {reason}", to.0)]
    NoAnswer {
        /// The node; 0 when only an address is known.
        to: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// The node answered that it does not take this call: of another cluster, of a version that it does not speak, not
    /// understood.
    #[error("node {} refused: {reason}", to.0)]
    Refused {
        /// The node; 0 when only an address is known.
        to: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// The message is over [`MAX_LINK_MESSAGE_BYTES`]; it was not sent.
    #[error("{bytes} bytes are over the limit of {MAX_LINK_MESSAGE_BYTES} for one message")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// Whether a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reachability {
    /// Both sessions are up and the last pings were answered.
    pub connected: bool,
    /// When the node last answered anything; of a node that never did, when it was first dialled.
    pub last_heard: Instant,
    /// The process of the node, as it said when it connected: grows with each start. 0 before that.
    pub boot: u64,
}

/// The nodes that this one knows of, itself left out.
pub type Peers = Arc<BTreeMap<NodeId, Reachability>>;

/// Calls other nodes.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Sends a request to a node and waits for its answer, at most until the deadline. Dropping the future gives the
    /// answer up.
    ///
    /// # Errors
    /// [`LinkError`]; `Unreachable` only when the node has certainly not received the request.
    async fn call(
        &self,
        to: NodeId,
        service: PeerService,
        class: LinkClass,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError>;

    /// The same with a node of which only the link address (`host:port`) is known: for those who join.
    ///
    /// # Errors
    /// As [`Link::call`].
    async fn call_address(
        &self,
        address: &str,
        service: PeerService,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError>;

    /// Who can be reached, after each change.
    fn peers(&self) -> watch::Receiver<Peers>;

    /// The nodes to be connected with, and their link addresses: others are let go.
    fn set_peers(&self, peers: BTreeMap<NodeId, String>);

    /// Keeps apart from all other nodes for this reason, which they are told: all sessions end, and none begins. `None`: no
    /// more.
    fn set_apart(&self, reason: Option<String>);

    /// Ends all sessions, lets go of the handler, and listens no more; calls after that are `Unreachable`.
    async fn close(&self) {}
}

/// Who makes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A node of this cluster.
    Node(NodeId),
    /// A node that has no id yet: it may ask to join and nothing else.
    Joining,
}

/// A call to answer. Dropping it answers that the node is stopping.
#[derive(Debug)]
pub struct IncomingCall {
    /// Who asks.
    pub from: Caller,
    /// What for.
    pub service: PeerService,
    /// The session that it came by.
    pub class: LinkClass,
    /// The service's bytes.
    pub request: Bytes,
    /// Takes the answer, or why the call is not taken.
    pub reply: oneshot::Sender<Result<Bytes, String>>,
}

/// Takes the calls of other nodes.
pub trait PeerHandler: Send + Sync + 'static {
    /// Takes a call and returns at once: what takes time is queued or spawned, and answers later. Calls of one node and
    /// class come in order.
    fn deliver(&self, call: IncomingCall);
}
