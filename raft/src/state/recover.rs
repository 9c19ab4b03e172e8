//! What the survivors of a cluster go on with when the majority that kept its settings is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spandrel_model::ids::{Bucket, NodeId, ShardId, Term};

use super::{BucketHolders, ClusterState, Conflict, NodeState, ShardRecord};

/// What is given up when a cluster is recovered without some of its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Shards of which no survivor is in sync: what was undecided, or not in a block yet, is lost.
    pub shards: Vec<ShardId>,
    /// Pieces of older data (bucket, shard, term) that only lost nodes held.
    pub pieces: usize,
}

impl ClusterState {
    /// The state of a new cluster of the nodes that are left, of which none has registered yet. Each shard begins a new
    /// term, so that nothing that was sent before counts: with its primary if that one is left, with an in-sync copy
    /// otherwise, and where none is left with what comes nearest: one that was filling, or one that held it last.
    ///
    /// # Errors
    /// A [`Conflict`] naming a lost node that is not in the cluster, or saying that nobody would be left.
    pub fn without(
        &self,
        cluster_id: u64,
        lost: &BTreeSet<NodeId>,
    ) -> Result<(Self, Losses), Conflict> {
        if let Some(unknown) = lost.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(Conflict::UnknownNode { node: *unknown });
        }
        let mut state = self.clone();
        state.cluster_id = cluster_id;
        state.nodes.retain(|node, _| !lost.contains(node));
        if state.nodes.is_empty() {
            return Err(Conflict::invalid("lost nodes", "no node would be left"));
        }
        state.lives.retain(|node, _| !lost.contains(node));
        state.leaving.retain(|node| !lost.contains(node));
        for (node, record) in &mut state.nodes {
            if record.state == NodeState::Draining {
                state.leaving.insert(*node);
            }
            record.state = NodeState::Down;
        }
        let mut losses = Losses::default();
        let left: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        let mut heirs = left.iter().copied().cycle();
        for (shard, record) in (0..).map(ShardId).zip(&mut state.shard_map) {
            let mut heir = || newest_holder(&self.holders, shard, &left).or_else(|| heirs.next());
            if !restrict(record, lost, &mut heir) {
                losses.shards.push(shard);
            }
        }
        for bucket in state.holders.values_mut() {
            for holders in Arc::make_mut(bucket).values_mut() {
                // What nobody holds any more stays on record: answers over that time go on saying that it is missing.
                if holders.iter().all(|node| lost.contains(node)) {
                    losses.pieces += 1;
                } else {
                    holders.retain(|node| !lost.contains(node));
                }
            }
        }
        Ok((state, losses))
    }
}

/// The next term of a shard among those that are left. False when none of them has all that was acknowledged.
fn restrict(
    record: &mut ShardRecord,
    lost: &BTreeSet<NodeId>,
    heir: &mut dyn FnMut() -> Option<NodeId>,
) -> bool {
    let is_left = |node: &NodeId| !lost.contains(node);
    record.term = Term(record.term.0.saturating_add(1));
    record.isr.retain(is_left);
    // Whoever was filling or to be moved to begins anew: it may count on a copy that is gone.
    let filling = std::mem::take(&mut record.filling)
        .into_iter()
        .find(is_left);
    let target = record.moving_to.take().filter(is_left);
    if let Some(first) = record.isr.first() {
        if !record.isr.contains(&record.primary) {
            record.primary = *first;
        }
        return true;
    }
    // One that was filling has the newest records at least. There always is an heir: some node is left.
    if let Some(primary) = filling.or(target).or_else(heir) {
        record.primary = primary;
        record.isr = vec![primary];
    }
    false
}

/// One of those that are left which holds the newest data of a shard: its journal has the most of it.
fn newest_holder(
    holders: &BTreeMap<Bucket, Arc<BucketHolders>>,
    shard: ShardId,
    left: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let left = |holders: &[NodeId]| holders.iter().find(|node| left.contains(node)).copied();
    let records = holders.iter().flat_map(|(bucket, records)| {
        let of_shard = records.iter().filter(|(key, _)| key.shard == shard);
        of_shard.map(|(key, holders)| ((key.term, *bucket), holders))
    });
    let of_left = records.filter_map(|(age, holders)| Some((age, left(holders)?)));
    of_left.max_by_key(|(age, _)| *age).map(|(_, node)| node)
}
