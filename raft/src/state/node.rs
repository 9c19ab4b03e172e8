//! A node of the cluster, as all others see it.

use std::fmt;

use serde::{Deserialize, Serialize};
use spandrel_model::ids::NodeId;

/// What a node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Serves and takes new shards.
    Up,
    /// Serves, hands its shards over and takes none.
    Draining,
    /// Silent: it has left the in-sync sets; its old data is still counted on.
    Down,
    /// Little of its disk is left: it serves, hands its shards over and takes none; its old data is still counted on.
    Full,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Full => "full",
        })
    }
}

/// The addresses of a node, `host:port` each; empty when the node does not offer the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// Other nodes dial this one.
    pub link: String,
    /// HTTP of clients.
    pub http: String,
    /// gRPC of clients.
    pub grpc: String,
}

/// A node of the cluster.
///
/// Invariants: `incarnation` counts the registrations and never goes back; `boot` never goes back for one `disk_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// Zone, for people and for placement; may be empty.
    pub zone: String,
    /// Counts the node's registrations, given by the cluster: fences messages of an earlier life.
    pub incarnation: u64,
    /// The random id of its data directory.
    pub disk_id: u64,
    /// How often its data directory was opened, as the node last said.
    pub boot: u64,
    /// What it may be used for.
    pub state: NodeState,
}

/// Which life of a data directory this is: each start draws one, so that two that start from one image differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLife {
    /// Random, of this start.
    pub life: u64,
    /// The lives that the cluster may know of the directory: the last one that it has confirmed, and those since. At
    /// most [`MAX_EARLIER_LIVES`](crate::limits::MAX_EARLIER_LIVES).
    pub earlier: Vec<u64>,
}

impl NodeLife {
    /// True when this life is that one, or comes after it.
    #[must_use]
    pub fn continues(&self, known: u64) -> bool {
        self.life == known || self.earlier.contains(&known)
    }
}

/// What a node says of itself when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRegistration {
    /// Its id.
    pub node: NodeId,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// Its zone; may be empty.
    pub zone: String,
    /// The random id of its data directory.
    pub disk_id: u64,
    /// How often the data directory was opened, this start included.
    pub boot: u64,
}
