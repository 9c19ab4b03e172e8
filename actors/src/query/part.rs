//! What one node is asked for.

use spandrel_model::ids::ShardId;
use spandrel_model::shard_set::ShardSet;

use crate::assembler::Depth;

/// The shards that one node answers for.
///
/// Invariant: `live` is part of `stored`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodePart {
    /// Live traces count too. Only of an in-sync copy: those of a node that has left the set are stale.
    pub(crate) live: ShardSet,
    /// What blocks and journal hold counts, and the kept traces that are on their way to a block.
    pub(crate) stored: ShardSet,
}

impl NodePart {
    /// Everything.
    pub(crate) fn all(shards: u16) -> Self {
        Self {
            live: ShardSet::all(shards),
            stored: ShardSet::all(shards),
        }
    }

    pub(crate) fn add_live(&mut self, shard: ShardId) {
        self.live.insert(shard);
        self.stored.insert(shard);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.live.extend(&other.live);
        self.stored.extend(&other.stored);
    }

    /// What is left of it when `other` was asked for. A shard of which live traces are still to be asked is asked
    /// whole, so that a trace cannot be missed on its way from memory to a block.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let live = self.live.without(&other.live);
        let mut stored = self.stored.without(&other.stored);
        stored.extend(&live);
        Self { live, stored }
    }

    /// Which of a shard's traces in memory count.
    pub(crate) fn depth(&self, shard: ShardId) -> Depth {
        if self.live.contains(shard) {
            Depth::Live
        } else {
            Depth::Stored
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }
}
