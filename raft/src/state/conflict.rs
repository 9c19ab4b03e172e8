//! Why a command has changed nothing.

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{NodeId, ShardId, TenantId};

use super::node::NodeState;
use super::shard::ShardRecord;

/// Why a command has changed nothing: the answer of the state itself, the same on every node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Conflict {
    /// The cluster is founded already.
    #[error("cluster {cluster_id:016x} is founded already")]
    AlreadySeeded {
        /// Its id.
        cluster_id: u64,
    },
    /// There is no cluster yet.
    #[error("the cluster is not founded yet")]
    NotSeeded,
    /// Someone else changed it first.
    #[error("{field} is {actual} now, not {expected}: read it again and decide anew")]
    Changed {
        /// What was compared.
        field: String,
        /// What the proposer had seen.
        expected: u64,
        /// What is in force.
        actual: u64,
    },
    /// A value outside its range.
    #[error("{field} must be {limit}, got {actual}")]
    OutOfRange {
        /// The field.
        field: String,
        /// Its range, with the unit.
        limit: String,
        /// What was given.
        actual: u64,
    },
    /// A value that is wrong in itself.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: String,
        /// Why.
        reason: String,
    },
    /// No such tenant.
    #[error("tenant `{tenant}` is not known")]
    UnknownTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// The cluster is full.
    #[error("there are {limit} {what} already, the most there can be")]
    TooMany {
        /// What there are.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// No such node, or one that was removed.
    #[error("node {} is not in the cluster", node.0)]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// The node's data directory is not the one the cluster knows, or an older copy of it.
    #[error("node {} was wiped: its disk is {disk_id:016x} at boot {boot}, the cluster knows {known_disk_id:016x} at boot {known_boot}", node.0)]
    WipedNode {
        /// The node.
        node: NodeId,
        /// The directory it has.
        disk_id: u64,
        /// That directory's boot counter.
        boot: u64,
        /// The directory that the cluster knows.
        known_disk_id: u64,
        /// The highest boot counter that the cluster has seen.
        known_boot: u64,
    },
    /// The node's state is another one.
    #[error("node {} is {actual} now, not {expected}", node.0)]
    NodeStateChanged {
        /// The node.
        node: NodeId,
        /// What the proposer had seen.
        expected: NodeState,
        /// What it is.
        actual: NodeState,
    },
    /// A shard record names the node.
    #[error("node {} still owns a copy of shard {}", node.0, shard.0)]
    NodeInUse {
        /// The node.
        node: NodeId,
        /// The first such shard.
        shard: ShardId,
    },
    /// The shard's owners are others.
    #[error("shard {} has changed: it is in term {} now", shard.0, actual.term.0)]
    ShardChanged {
        /// The shard.
        shard: ShardId,
        /// Its owners.
        actual: Box<ShardRecord>,
    },
    /// The shard's new owners would break a rule.
    #[error("shard {}: {reason}", shard.0)]
    BadShard {
        /// The shard.
        shard: ShardId,
        /// The rule.
        reason: String,
    },
    /// The holders are others.
    #[error("holders of shard {} in term {term} of bucket {bucket} have changed", shard.0)]
    HoldersChanged {
        /// The shard.
        shard: ShardId,
        /// The term.
        term: u64,
        /// The bucket.
        bucket: u32,
        /// The holders in force.
        actual: Vec<NodeId>,
    },
    /// The node's data directory is an image from before a life that the cluster knows.
    #[error("node {} runs from an image of its directory: the cluster knows its life {known_life:016x}, which that directory has not had", node.0)]
    ImageOfNode {
        /// The node.
        node: NodeId,
        /// The last life that registered.
        known_life: u64,
    },
}

impl Conflict {
    pub(crate) fn invalid(field: &str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.to_owned(),
            reason: reason.into(),
        }
    }
}
