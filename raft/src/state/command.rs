//! The changes of the replicated state. Each is compare-and-set on what it changes.

use std::fmt;

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{Bucket, NodeId, TenantId, UnixNanos};
use spandrel_model::otlp::AttributeRule;

use super::node::{NodeAddresses, NodeLife, NodeRegistration, NodeState};
use super::settings::{SpanLimits, TenantSettings};
use super::shard::{HolderChange, ShardChange, ShardRecord};
use super::token::JoinToken;

/// What a new cluster starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSeed {
    /// Random, not 0.
    pub cluster_id: u64,
    /// Random and secret: the key of the hash that routes traces to shards.
    pub routing_key: u64,
    /// Number of shards: a power of two, 1 to 4096.
    pub shards: u16,
    /// Copies of each shard, 1 to 7.
    pub replication: u8,
    /// How long kept traces stay, in seconds.
    pub retention_seconds: u64,
    /// The first policy document; the caller has checked it.
    pub policy_yaml: String,
}

/// A change of the replicated state. Persisted: variants are only ever appended, never reordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Founds the cluster; refused once it is founded.
    SeedCluster(ClusterSeed),
    /// Puts a policy document in force. The caller has checked the text.
    ApplyPolicy {
        /// The version in force, as the proposer has seen it.
        expected_version: u32,
        /// The YAML text.
        yaml: String,
    },
    /// Changes the retention.
    SetRetention {
        /// The retention as the proposer has seen it, in seconds.
        expected_seconds: u64,
        /// The retention from now on, in seconds.
        seconds: u64,
    },
    /// Changes the number of copies.
    SetReplication {
        /// As the proposer has seen it.
        expected: u8,
        /// From now on, 1 to 7.
        replication: u8,
    },
    /// Changes the attribute policy and the index allowlist.
    SetAttributes {
        /// The version in force, as the proposer has seen it.
        expected_version: u32,
        /// The rules, in order.
        rules: Vec<AttributeRule>,
        /// Keys of the index.
        indexed_keys: Vec<String>,
    },
    /// Changes the limits of spans and traces.
    SetLimits {
        /// The version in force, as the proposer has seen it.
        expected_version: u32,
        /// The limits; their version is ignored.
        limits: SpanLimits,
    },
    /// Makes a tenant known; a known one is left as it is.
    CreateTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// Changes what a tenant may use.
    SetTenant {
        /// The tenant.
        tenant: TenantId,
        /// The version in force, as the proposer has seen it.
        expected_version: u32,
        /// What it may use; the version is ignored.
        settings: TenantSettings,
    },
    /// Gives a node id to a new data directory, down until it registers; a known directory gets its own id again.
    AdmitNode {
        /// The random id of the data directory.
        disk_id: u64,
        /// Where the node is reached.
        addresses: NodeAddresses,
        /// Its zone; may be empty.
        zone: String,
    },
    /// A node of the version before lives were told has started. Compared: its disk id, that its boot counter has not
    /// gone back, and that no life of it is known.
    RegisterNode(NodeRegistration),
    /// Changes what a node may be used for.
    SetNodeState {
        /// The node.
        node: NodeId,
        /// Its incarnation, as the proposer has seen it.
        expected_incarnation: u64,
        /// Its state, as the proposer has seen it.
        expected: NodeState,
        /// Its state from now on.
        state: NodeState,
    },
    /// Takes a node out of the cluster; refused while a shard record names it.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Its incarnation, as the proposer has seen it.
        expected_incarnation: u64,
    },
    /// Gives every shard its first owners; refused once there are some.
    StartShards {
        /// One record per shard, term 1.
        records: Vec<ShardRecord>,
    },
    /// Changes owners of shards: all of them or none.
    SetShards {
        /// The changes, at most one per shard.
        changes: Vec<ShardChange>,
    },
    /// Changes who holds old data: all of it or none.
    SetHolders {
        /// The changes.
        changes: Vec<HolderChange>,
    },
    /// Forgets who holds the data of expired buckets.
    ForgetBuckets {
        /// Buckets before this one.
        before: Bucket,
    },
    /// Makes a join token known, and forgets those that have expired by `now`.
    AddJoinToken {
        /// The token's hash and its end.
        token: JoinToken,
        /// The proposer's clock.
        now: UnixNanos,
    },
    /// A node has started. Compared: its disk id, that its boot counter has not gone back, and that its directory knows
    /// the last life of it that the cluster knows.
    RegisterLife {
        /// What it says of itself.
        registration: NodeRegistration,
        /// Which life of its directory it is.
        life: NodeLife,
    },
    /// A node that runs begins another life, so that an image of its directory from before is known for one. Compared:
    /// that its directory knows the last life of it that the cluster knows.
    RenewLife {
        /// Which one.
        node: NodeId,
        /// Its next life.
        life: NodeLife,
    },
}

impl Command {
    /// True when an owner of a shard or the use of a node changes, and so the epoch.
    #[must_use]
    pub fn changes_placement(&self) -> bool {
        matches!(
            self,
            Self::SeedCluster(_)
                | Self::AdmitNode { .. }
                | Self::RegisterNode(_)
                | Self::RegisterLife { .. }
                | Self::SetNodeState { .. }
                | Self::RemoveNode { .. }
                | Self::StartShards { .. }
                | Self::SetShards { .. }
        )
    }

    /// Its size as it is proposed, to be held against [`MAX_COMMAND_BYTES`](crate::limits::MAX_COMMAND_BYTES).
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        crate::codec::seal(crate::codec::Kind::Entry, self).map_or(usize::MAX, |bytes| bytes.len())
    }

    /// The command's name, for logs and errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::SeedCluster(_) => "seed cluster",
            Self::ApplyPolicy { .. } => "apply policy",
            Self::SetRetention { .. } => "set retention",
            Self::SetReplication { .. } => "set replication",
            Self::SetAttributes { .. } => "set attributes",
            Self::SetLimits { .. } => "set limits",
            Self::CreateTenant { .. } => "create tenant",
            Self::SetTenant { .. } => "set tenant",
            Self::AdmitNode { .. } => "admit node",
            Self::RegisterNode(_) | Self::RegisterLife { .. } => "register node",
            Self::SetNodeState { .. } => "set node state",
            Self::RemoveNode { .. } => "remove node",
            Self::StartShards { .. } => "start shards",
            Self::SetShards { .. } => "set shards",
            Self::SetHolders { .. } => "set holders",
            Self::ForgetBuckets { .. } => "forget buckets",
            Self::AddJoinToken { .. } => "add join token",
            Self::RenewLife { .. } => "renew life",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a command has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Done; there is nothing more to say.
    Done,
    /// It was so already.
    Unchanged,
    /// The version that is in force now.
    Version(u32),
    /// The id of the node that was admitted.
    Node(NodeId),
    /// The incarnation of the node that registered.
    Incarnation(u64),
}
