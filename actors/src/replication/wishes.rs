//! What a node wants changed about the shards that it leads. Pure: the keeper proposes it, one step at a time.

use std::collections::{BTreeMap, BTreeSet};

use spandrel_model::ids::{NodeId, ShardId};
use spandrel_raft::ClusterState;
use spandrel_raft::state::{NodeState, ShardRecord};

use super::keeper::ShardProgress;
use crate::limits::{MAX_FILLS, MAX_HANDOVERS};
use crate::placement::Replicas;

/// A change that a primary wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) shard: ShardId,
    pub(crate) expected: ShardRecord,
    pub(crate) record: ShardRecord,
    /// The change is of a kind that nothing may be on its way during: the shard is held and drained first.
    pub(crate) holds: bool,
}

/// The changes that node `me` wants now, at most one for each shard. `progress` is of the shards that it leads in a
/// term of its own process, `plan` says where shards should be, by shard.
pub(crate) fn wishes(
    state: &ClusterState,
    me: NodeId,
    progress: &BTreeMap<ShardId, ShardProgress>,
    plan: &[Replicas],
) -> Vec<Wish> {
    let shards = (0u16..).map(ShardId).zip(&state.shard_map);
    let mine = shards.filter(|(_, record)| record.primary == me);
    let fills = mine.clone().map(|(_, record)| record.filling.len()).sum();
    let mut budget = Budget {
        fills: MAX_FILLS.saturating_sub(fills),
        handovers: MAX_HANDOVERS,
    };
    let wishes = mine.filter_map(|(shard, record)| {
        let wanted = plan.get(usize::from(shard.0))?;
        let known = progress
            .get(&shard)
            .filter(|known| known.term == record.term);
        let one = One {
            state,
            me,
            record,
            wanted,
        };
        match known {
            None => one.begin_anew(shard),
            Some(known) => one.wish(known, &mut budget),
        }
    });
    wishes.collect()
}

/// How much more may be under way at once.
struct Budget {
    fills: usize,
    handovers: usize,
}

struct One<'a> {
    state: &'a ClusterState,
    me: NodeId,
    record: &'a ShardRecord,
    /// The replicas of the plan, the primary first.
    wanted: &'a [NodeId],
}

impl One<'_> {
    fn is(&self, node: NodeId, states: &[NodeState]) -> bool {
        let known = self.state.nodes.get(&node);
        known.is_some_and(|node| states.contains(&node.state))
    }

    fn make(&self, shard: ShardId, record: ShardRecord, holds: bool) -> Wish {
        Wish {
            shard,
            expected: self.record.clone(),
            record,
            holds,
        }
    }

    /// This process found the shard under its lead: it takes a new term, since it does not know which numbers the
    /// process before gave to followers, those included that have left since. Alone in its cluster, it knows.
    fn begin_anew(&self, shard: ShardId) -> Option<Wish> {
        let alone = self.state.nodes.len() < 2;
        (!alone).then(|| {
            let record = ShardRecord {
                term: self.record.term.next(),
                ..self.record.clone()
            };
            self.make(shard, record, false)
        })
    }

    /// The most urgent change.
    fn wish(&self, known: &ShardProgress, budget: &mut Budget) -> Option<Wish> {
        let shard = known.shard;
        self.shrink(shard)
            .or_else(|| self.fill_again(shard, known))
            .or_else(|| self.let_in(shard, known))
            .or_else(|| self.add(shard, budget))
            .or_else(|| self.hand_over(shard, known, budget))
            .or_else(|| self.drop_one(shard, known))
    }

    /// Nodes that are down are not waited for.
    fn shrink(&self, shard: ShardId) -> Option<Wish> {
        let stays = |node: &NodeId| {
            *node == self.me || self.is(*node, &[NodeState::Up, NodeState::Draining])
        };
        let mut record = self.record.clone();
        record.isr.retain(stays);
        record.filling.retain(stays);
        (record != *self.record).then(|| self.make(shard, record, false))
    }

    /// A follower that holds what does not count starts anew.
    fn fill_again(&self, shard: ShardId, known: &ShardProgress) -> Option<Wish> {
        let unfit = |node: &NodeId| known.unfit.contains(node);
        let mut record = self.record.clone();
        let (out, stay): (Vec<NodeId>, Vec<NodeId>) =
            record.isr.iter().partition(|node| unfit(node));
        if out.is_empty() {
            return None;
        }
        record.isr = stay;
        record.filling.extend(out);
        record.filling.sort_unstable();
        record.filling.dedup();
        Some(self.make(shard, record, false))
    }

    /// Replicas that have everything become members of the in-sync set, in a new term: so the members of a term hold
    /// all that was written in it.
    fn let_in(&self, shard: ShardId, known: &ShardProgress) -> Option<Wish> {
        let full = |node: &NodeId| known.full.contains(node) && known.level.contains(node);
        let mut record = self.record.clone();
        let (full, rest): (Vec<NodeId>, Vec<NodeId>) =
            record.filling.iter().partition(|node| full(node));
        if full.is_empty() {
            return None;
        }
        record.filling = rest;
        record.isr.extend(full);
        record.isr.sort_unstable();
        record.term = record.term.next();
        Some(self.make(shard, record, true))
    }

    /// Replicas that the plan names and that the shard does not have, or, while it has too few of those, any other.
    fn add(&self, shard: ShardId, budget: &mut Budget) -> Option<Wish> {
        let has =
            |node: &NodeId| self.record.isr.contains(node) || self.record.filling.contains(node);
        let mut missing = self.wanted.iter().copied();
        let new = missing.find(|node| !has(node) && self.is(*node, &[NodeState::Up]))?;
        budget.fills = budget.fills.checked_sub(1)?;
        let mut record = self.record.clone();
        record.filling.push(new);
        record.filling.sort_unstable();
        Some(self.make(shard, record, false))
    }

    /// The plan has another primary, which is in sync and level.
    fn hand_over(
        &self,
        shard: ShardId,
        known: &ShardProgress,
        budget: &mut Budget,
    ) -> Option<Wish> {
        let to = *self.wanted.first()?;
        let ready = to != self.me
            && self.record.isr.contains(&to)
            && self.record.filling.is_empty()
            && known.level.contains(&to)
            && self.is(to, &[NodeState::Up]);
        if !ready {
            return None;
        }
        budget.handovers = budget.handovers.checked_sub(1)?;
        let record = ShardRecord {
            term: self.record.term.next(),
            primary: to,
            ..self.record.clone()
        };
        Some(self.make(shard, record, true))
    }

    /// One replica more than the plan wants leaves, once all that it wants are in sync.
    fn drop_one(&self, shard: ShardId, known: &ShardProgress) -> Option<Wish> {
        let wanted: BTreeSet<NodeId> = self.wanted.iter().copied().collect();
        let in_sync = |node: &NodeId| {
            self.record.isr.contains(node) && (*node == self.me || known.level.contains(node))
        };
        if !wanted.iter().all(in_sync) {
            return None;
        }
        let extra = |node: &&NodeId| !wanted.contains(node) && **node != self.me;
        let extra = *self.record.isr.iter().find(extra)?;
        let mut record = self.record.clone();
        record.isr.retain(|node| *node != extra);
        Some(self.make(shard, record, false))
    }
}
