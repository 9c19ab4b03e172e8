//! Who owns a shard, and who holds its old data.

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{Bucket, NodeId, ShardId, Term};

/// The owners of one shard.
///
/// Invariants: `term` is at least 1; `isr` is sorted, without repetition, and contains `primary`; `filling` is sorted
/// and shares no node with `isr`; `moving_to` is not the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Counts the shard's primaries.
    pub term: Term,
    /// The node that takes spans and decides.
    pub primary: NodeId,
    /// The in-sync set: an ack needs each of them.
    pub isr: Vec<NodeId>,
    /// Replicas that append new records while they back-fill older ones.
    pub filling: Vec<NodeId>,
    /// The target of a planned move under way.
    pub moving_to: Option<NodeId>,
}

impl ShardRecord {
    /// Every node that the record names, with repetitions.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let one = [self.primary].into_iter().chain(self.moving_to);
        one.chain(self.isr.iter().copied())
            .chain(self.filling.iter().copied())
    }
}

/// A change of one shard: takes place only while the record is still `expected`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardChange {
    /// The shard.
    pub shard: ShardId,
    /// The record that the proposer has seen.
    pub expected: ShardRecord,
    /// The record to put in its place.
    pub record: ShardRecord,
}

/// What a copy of old data belongs to, within its bucket.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct HolderKey {
    /// The shard.
    pub shard: ShardId,
    /// The term in which the data was written.
    pub term: Term,
}

/// A change of the nodes that hold the data of one (shard, bucket, term).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderChange {
    /// The time bucket.
    pub bucket: Bucket,
    /// The shard and term.
    pub key: HolderKey,
    /// The holders that the proposer has seen; empty when there was no record.
    pub expected: Vec<NodeId>,
    /// The holders from now on, sorted; empty forgets the record.
    pub holders: Vec<NodeId>,
}
