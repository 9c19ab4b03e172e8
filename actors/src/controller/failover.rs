//! Which in-sync copy takes over a shard whose primary is down.

use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_raft::state::{NodeState, ShardChange, ShardRecord};
use spandrel_raft::{ClusterState, Command};

use crate::limits::MAX_SHARD_CHANGES;
use crate::placement::planned;

/// The commands that give the shards of primaries that are down to others. A shard without an in-sync copy that is not
/// down waits for one: see [`waiting_shards`].
pub fn failovers(state: &ClusterState) -> impl Iterator<Item = Command> + use<> {
    let orphans: Vec<(ShardId, &ShardRecord)> = shards(state)
        .filter(|(_, record)| is_down(state, record.primary))
        .filter(|(_, record)| record.isr.iter().any(|node| !is_down(state, *node)))
        .collect();
    // The plan is asked for only when something is to be done: it costs a millisecond.
    let preferred = if orphans.is_empty() {
        Vec::new()
    } else {
        planned(state)
    };
    let change = |(shard, old): (ShardId, &ShardRecord)| {
        let order = preferred.get(usize::from(shard.0));
        let order = order.map_or(&[][..], Vec::as_slice);
        Some(ShardChange {
            shard,
            expected: old.clone(),
            record: successor(state, old, order)?,
        })
    };
    let changes: Vec<ShardChange> = orphans.into_iter().filter_map(change).collect();
    let batches: Vec<Command> = changes
        .chunks(MAX_SHARD_CHANGES)
        .map(|batch| Command::SetShards {
            changes: batch.to_vec(),
        })
        .collect();
    batches.into_iter()
}

/// Shards of which every in-sync copy is down: nobody else holds all that was acknowledged, so they wait.
#[must_use]
pub fn waiting_shards(state: &ClusterState) -> Vec<ShardId> {
    let waits = |record: &ShardRecord| record.isr.iter().all(|node| is_down(state, *node));
    let waiting = shards(state).filter(|(_, record)| waits(record));
    waiting.map(|(shard, _)| shard).collect()
}

fn shards(state: &ClusterState) -> impl Iterator<Item = (ShardId, &ShardRecord)> {
    (0..).map(ShardId).zip(&state.shard_map)
}

fn is_down(state: &ClusterState, node: NodeId) -> bool {
    state
        .nodes
        .get(&node)
        .is_none_or(|record| record.state == NodeState::Down)
}

/// The record after the failover: an in-sync copy leads, one that is up before one that is about to hand it over, then in the
/// order of the plan. `None` when there is none, or the terms are used up.
fn successor(state: &ClusterState, old: &ShardRecord, order: &[NodeId]) -> Option<ShardRecord> {
    let alive = |node: &NodeId| !is_down(state, *node);
    let rank = |node: &NodeId| {
        let record = state.nodes.get(node);
        let leaving = record.is_none_or(|record| record.state != NodeState::Up);
        let position = order.iter().position(|planned| planned == node);
        (leaving, position.unwrap_or(usize::MAX), *node)
    };
    let isr: Vec<NodeId> = old.isr.iter().copied().filter(alive).collect();
    let primary = isr.iter().copied().min_by_key(rank)?;
    let filling = old.filling.iter().copied().filter(alive);
    Some(ShardRecord {
        term: Term(old.term.0.checked_add(1)?),
        primary,
        filling: filling.collect(),
        moving_to: old
            .moving_to
            .filter(|target| alive(target) && *target != primary),
        isr,
    })
}
