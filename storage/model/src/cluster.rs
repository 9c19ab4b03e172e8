//! The cluster, as its members see it, for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, ShardId, UnixNanos};

/// What a node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeUse {
    /// It serves and takes new shards.
    Up,
    /// It serves, hands its shards over and takes none.
    Draining,
    /// It is silent.
    Down,
    /// Little of its disk is left: it serves, hands its shards over and takes none.
    Full,
}

impl fmt::Display for NodeUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Full => "full",
        })
    }
}

/// A node's part in the group that agrees on the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRole {
    /// It proposes.
    Leader,
    /// It votes.
    Voter,
    /// It follows.
    Learner,
    /// It is not in the group yet.
    None,
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::None => "none",
        })
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// What it may be used for.
    pub state: NodeUse,
    /// Its part in the group of the settings.
    pub role: NodeRole,
    /// Where it stands; may be empty.
    pub zone: String,
    /// Where other nodes reach it.
    pub link_address: String,
    /// Where clients reach it by HTTP.
    pub http_address: String,
    /// Where clients send OTLP by gRPC.
    pub grpc_address: String,
    /// The version of its program; `None` when it did not say.
    pub version: Option<String>,
    /// How often its data directory was opened.
    pub boot: u64,
    /// For how long the node that was asked has not heard of it, in milliseconds; `None` when it is that node, or was
    /// never reached.
    pub silent_ms: Option<u64>,
    /// Shards that it leads.
    pub primary_shards: u32,
    /// Shards of which it has a full copy, those that it leads included.
    pub in_sync_shards: u32,
    /// Shards of which its copy is being filled.
    pub filling_shards: u32,
    /// Pieces of older data (of one shard, term and hour) that have too few copies without it.
    pub needed_copies: u32,
}

/// A shard that has not as many full copies as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLack {
    /// The shard.
    pub shard: ShardId,
    /// Full copies on nodes that are not down. None: the shard waits for one of its nodes and takes no spans.
    pub copies: u32,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Its name.
    pub cluster: String,
    /// The node that was asked.
    pub asked: NodeId,
    /// Who leads the settings, if the node that was asked knows.
    pub leader: Option<NodeId>,
    /// Raft index of the last change of nodes or shards.
    pub epoch: u64,
    /// Shards.
    pub shards: u16,
    /// Copies of each shard that are wanted.
    pub replication: u8,
    /// Copies that there can be: no more than nodes.
    pub effective_replication: u32,
    /// By id.
    pub nodes: Vec<NodeView>,
    /// Shards with fewer full copies than there can be, by number.
    pub lacking: Vec<ShardLack>,
    /// Pieces of older data (of one shard, term and hour) that have fewer copies than there can be.
    pub lacking_copies: u32,
}

/// A join token that was just created: nobody can show it again.
#[derive(Clone, PartialEq, Eq)]
pub struct NewJoinToken {
    /// The token.
    pub token: String,
    /// It lets nodes in until then.
    pub expires: UnixNanos,
}

impl fmt::Debug for NewJoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewJoinToken")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
