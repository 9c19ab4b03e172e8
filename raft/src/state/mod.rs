//! The replicated state of a cluster: who is in, what is configured, who holds what. Never spans.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{Bucket, NodeId, ShardId, TenantId, UnixNanos};
use spandrel_model::routing::ShardRouter;

use crate::limits::{MAX_HOLDERS, MAX_INDEXED_KEYS, MAX_JOIN_TOKENS, MAX_NODES};

mod apply;
#[cfg(test)]
mod apply_test;
mod command;
mod conflict;
#[cfg(test)]
mod holders_test;
#[cfg(test)]
mod lives_test;
mod node;
mod recover;
mod settings;
mod shard;
mod token;
mod versions;

pub use command::{Applied, ClusterSeed, Command};
pub use conflict::Conflict;
pub use node::{NodeAddresses, NodeLife, NodeRecord, NodeRegistration, NodeState};
pub use recover::Losses;
pub use settings::{AttributeSettings, PolicyDocument, SpanLimits, TenantSettings};
pub use shard::{HolderChange, HolderKey, ShardChange, ShardRecord};
pub use token::{JoinToken, TokenHash};

/// The holders of one bucket's data, by shard and term.
pub type BucketHolders = BTreeMap<HolderKey, Vec<NodeId>>;

/// Everything that the nodes of a cluster agree on.
///
/// Invariants (see [`ClusterState::check`]): before `SeedCluster` the cluster id is 0 and nothing else is set; versions,
/// terms, incarnations and `next_node` never go back; the shard map is empty or has `shards` records; every node that
/// a shard record names is in `nodes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Random, drawn when the cluster was founded; 0 before that. Also the cluster's name.
    pub cluster_id: u64,
    /// The secret key of the hash that routes traces to shards. Fixed.
    pub routing_key: u64,
    /// Number of shards, a power of two. Fixed.
    pub shards: u16,
    /// Copies of each shard that are wanted; fewer while there are fewer nodes.
    pub replication: u8,
    /// How long kept traces stay, in seconds.
    pub retention_seconds: u64,
    /// Sampling policies.
    pub policy: PolicyDocument,
    /// Attribute policy and index allowlist.
    pub attributes: AttributeSettings,
    /// Limits of spans and traces.
    pub limits: SpanLimits,
    /// Known tenants with what they may use.
    pub tenants: BTreeMap<TenantId, TenantSettings>,
    /// The nodes that belong to the cluster.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// The next node id to give; ids are never reused.
    pub next_node: u64,
    /// The owners of each shard, by shard number; empty until `StartShards`.
    pub shard_map: Vec<ShardRecord>,
    /// Who holds the data of which (shard, bucket, term). Shared, since it is by far the largest part and every reader
    /// holds a state.
    pub holders: BTreeMap<Bucket, Arc<BucketHolders>>,
    /// Raft index of the last change of the shard map or of a node: the epoch that shard messages carry.
    pub epoch: u64,
    /// Raft index of the last command that is in this state.
    pub applied_index: u64,
    /// Tokens that let nodes join, and until when.
    pub join_tokens: BTreeMap<TokenHash, UnixNanos>,
    /// The last life of each node that has told one: whoever continues it must know it.
    pub lives: BTreeMap<NodeId, u64>,
    /// Nodes that went down while they were draining: they go on with it when they are back.
    pub leaving: BTreeSet<NodeId>,
}

impl ClusterState {
    /// True once the cluster was founded.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        self.cluster_id != 0
    }

    /// Routes traces to shards; `None` before the cluster was founded.
    #[must_use]
    pub fn router(&self) -> Option<ShardRouter> {
        ShardRouter::new(self.routing_key, self.shards)
    }

    /// The owners of a shard; `None` before the shards were started or when there is no such shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRecord> {
        self.shard_map.get(usize::from(shard.0))
    }

    /// Records of holders, over all buckets.
    #[must_use]
    pub fn holder_count(&self) -> usize {
        self.holders.values().map(|bucket| bucket.len()).sum()
    }

    /// Applies the command at a Raft index: what [`ClusterState::apply`] does, and the index and epoch with it.
    ///
    /// # Errors
    /// As [`ClusterState::apply`]; the index is then counted all the same.
    pub fn apply_at(&mut self, index: u64, command: &Command) -> Result<Applied, Conflict> {
        let outcome = self.apply(command);
        if outcome.is_ok() && command.changes_placement() {
            self.epoch = index;
        }
        self.applied_index = index;
        if cfg!(debug_assertions) {
            self.check();
        }
        outcome
    }

    /// Asserts the invariants. A broken one is a defect of ours: no command can cause it.
    pub fn check(&self) {
        if !self.is_seeded() {
            assert!(
                self.nodes.is_empty() && self.shard_map.is_empty(),
                "settings before the cluster was founded"
            );
            return;
        }
        assert!(self.router().is_some(), "shard count {}", self.shards);
        assert!(self.policy.version > 0 && self.attributes.version > 0);
        assert!(self.attributes.indexed_keys.len() <= MAX_INDEXED_KEYS);
        assert!(self.join_tokens.len() <= MAX_JOIN_TOKENS);
        assert!(self.nodes.len() <= MAX_NODES && self.holder_count() <= MAX_HOLDERS);
        assert!(self.nodes.keys().all(|node| node.0 < self.next_node));
        assert!(self.lives.keys().all(|node| self.nodes.contains_key(node)));
        for node in &self.leaving {
            let record = self.nodes.get(node);
            assert!(record.is_some_and(|record| record.state == NodeState::Down));
        }
        assert!(
            self.shard_map.is_empty() || self.shard_map.len() == usize::from(self.shards),
            "{} shard records for {} shards",
            self.shard_map.len(),
            self.shards
        );
        for record in &self.shard_map {
            assert!(record.term.0 > 0 && record.isr.contains(&record.primary));
            assert!(record.nodes().all(|node| self.nodes.contains_key(&node)));
        }
    }
}
