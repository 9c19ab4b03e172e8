//! Who is asked for what: from the shard map, the holders of older data and what is known of the nodes, without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use spandrel_model::ids::{Bucket, NodeId, ShardId, Term, UnixNanos};
use spandrel_model::limits::MAX_TIME_AHEAD_NANOS;
use spandrel_model::search::MissingPart;
use spandrel_model::shard_set::ShardSet;
use spandrel_raft::ClusterState;
use spandrel_raft::state::{HolderKey, NodeState};

use super::part::NodePart;

/// What has to be covered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand<'a> {
    pub(super) state: &'a ClusterState,
    /// The node that asks.
    pub(super) me: NodeId,
    pub(super) bucket_nanos: u64,
    /// Only this shard; `None`: all.
    pub(super) shard: Option<ShardId>,
    /// The starts of the traces asked for.
    pub(super) from: UnixNanos,
    /// Exclusive.
    pub(super) to: UnixNanos,
    /// Not one holder of each piece of data but all that can be reached: of a dropped trace only those hold anything that
    /// were in sync then, and who has copied the kept data since does not.
    pub(super) every_holder: bool,
}

/// What is known of the nodes while a query runs.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// What they have answered.
    pub(super) answered: BTreeMap<NodeId, NodePart>,
    /// No session with them: asked when nobody else can answer.
    pub(super) silent: BTreeSet<NodeId>,
    /// Asked, and no answer for a while.
    pub(super) late: BTreeSet<NodeId>,
    /// They have answered, but for what they cannot read.
    pub(super) damaged: BTreeMap<NodeId, MissingPart>,
    /// Asked in vain, and why.
    pub(super) failed: BTreeMap<NodeId, String>,
}

/// What is asked of each node, and what nobody can answer.
///
/// Invariant: every piece of data that the demand concerns is covered by one of its holders in `asks`, or all of its
/// holders have failed and it is in `missing`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ScatterPlan {
    pub(super) asks: BTreeMap<NodeId, NodePart>,
    /// By the node that should have answered.
    pub(super) missing: BTreeMap<NodeId, Missing>,
}

/// What is missing of one node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Shards whose live traces are missing.
    pub(super) live: ShardSet,
    /// Shards of which data of these buckets is missing.
    pub(super) stored: BTreeMap<Bucket, ShardSet>,
}

/// How gladly a node is asked; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It has answered already.
    Answered,
    Good,
    /// It cannot read some of what it holds: better another one, and better than none.
    Damaged,
    /// Down, or no session with it: last, not never.
    Silent,
    /// It was asked and does not answer: better another one.
    Late,
}

/// Old data of one shard that one of these nodes has to be asked for.
type Open = BTreeSet<(ShardId, Vec<NodeId>)>;

impl ScatterPlan {
    pub(super) fn new(demand: &Demand<'_>, standing: &Standing) -> Self {
        let planner = Planner { demand, standing };
        let mut plan = Self::default();
        planner.live(&mut plan);
        let open = planner.stored(&mut plan);
        planner.cover(open, &mut plan);
        if demand.every_holder {
            planner.add_every_holder(&mut plan);
        }
        plan
    }

    fn has(&self, node: NodeId, shard: ShardId) -> bool {
        let part = self.asks.get(&node);
        part.is_some_and(|part| part.stored.contains(shard))
    }

    fn ask_stored(&mut self, node: NodeId, shard: ShardId) {
        self.asks.entry(node).or_default().stored.insert(shard);
    }
}

/// The first bucket that may hold traces of the range. Whatever comes behind may hold some too: spans arrive late, and
/// at most [`MAX_TIME_AHEAD_NANOS`] early by the primary's clock, which names the bucket.
pub(super) fn first_bucket(from: UnixNanos, bucket_nanos: u64) -> Bucket {
    Bucket::containing(from.minus(MAX_TIME_AHEAD_NANOS), bucket_nanos)
}

struct Planner<'a> {
    demand: &'a Demand<'a>,
    standing: &'a Standing,
}

impl Planner<'_> {
    /// What a node has answered for good, as far as a shard is concerned.
    fn answered(&self, node: NodeId, shard: ShardId) -> Option<&NodePart> {
        let answered = self.standing.answered.get(&node);
        answered.filter(|_| !self.is_damaged(node, shard))
    }

    fn is_damaged(&self, node: NodeId, shard: ShardId) -> bool {
        let damage = self.standing.damaged.get(&node);
        damage.is_some_and(|part| part.shards.is_empty() || part.shards.contains(&shard))
    }

    /// How gladly it is asked for a shard; `None`: it is not asked again.
    fn rank(&self, node: NodeId, shard: ShardId) -> Option<Rank> {
        if self.standing.failed.contains_key(&node) {
            return None;
        }
        let record = self.demand.state.nodes.get(&node);
        let is_down = record.is_none_or(|record| record.state == NodeState::Down);
        let is_silent = is_down || self.standing.silent.contains(&node);
        Some(match () {
            () if self.standing.late.contains(&node) => Rank::Late,
            () if self.is_damaged(node, shard) => Rank::Damaged,
            () if is_silent && node != self.demand.me => Rank::Silent,
            () => Rank::Good,
        })
    }

    /// Live data, and what was written in the current term: the primary, else another in-sync copy.
    fn live(&self, plan: &mut ScatterPlan) {
        for (number, record) in (0u16..).zip(&self.demand.state.shard_map) {
            let shard = ShardId(number);
            if self.demand.shard.is_some_and(|wanted| wanted != shard) {
                continue;
            }
            let has_answered = |node: &NodeId| {
                self.answered(*node, shard)
                    .is_some_and(|part| part.live.contains(shard))
            };
            let order = |node: &NodeId| {
                let rank = if has_answered(node) {
                    Rank::Answered
                } else {
                    self.rank(*node, shard)?
                };
                let distance = (*node != record.primary, *node != self.demand.me);
                Some((rank, distance, *node))
            };
            match record.isr.iter().filter_map(order).min() {
                Some((_, _, node)) => plan.asks.entry(node).or_default().add_live(shard),
                None => {
                    let missing = plan.missing.entry(record.primary).or_default();
                    missing.live.insert(shard);
                }
            }
        }
    }

    /// Notes the old data that nobody can answer, and returns that which no node that is asked anyway holds.
    fn stored(&self, plan: &mut ScatterPlan) -> Open {
        let first = first_bucket(self.demand.from, self.demand.bucket_nanos);
        let asked = self.asked_gladly(plan);
        let mut open = Open::new();
        for (bucket, records) in self.demand.state.holders.range(first..) {
            for (key, holders) in records.range(self.keys()) {
                // Nearly all of them, where nodes are well: nothing more is looked up for each.
                let asked = asked.get(usize::from(key.shard.0)).copied().flatten();
                if asked.is_some_and(|node| holders.contains(&node)) {
                    continue;
                }
                match self.best(key.shard, holders) {
                    None => {
                        let blamed = holders.first().copied().unwrap_or_default();
                        let missing = plan.missing.entry(blamed).or_default();
                        missing.stored.entry(*bucket).or_default().insert(key.shard);
                    }
                    Some((Rank::Answered, nodes)) => {
                        let node = nodes.first().copied().unwrap_or_default();
                        plan.ask_stored(node, key.shard);
                    }
                    Some((_, nodes)) if nodes.iter().any(|node| plan.has(*node, key.shard)) => {}
                    Some((_, nodes)) => {
                        open.insert((key.shard, nodes));
                    }
                }
            }
        }
        open
    }

    /// Beside those that have to answer. One that does not answer is no loss, as long as another does.
    fn add_every_holder(&self, plan: &mut ScatterPlan) {
        let first = first_bucket(self.demand.from, self.demand.bucket_nanos);
        for (_, records) in self.demand.state.holders.range(first..) {
            for (key, holders) in records.range(self.keys()) {
                let can_answer = |node: &&NodeId| {
                    let rank = self.rank(**node, key.shard);
                    rank.is_some_and(|rank| rank != Rank::Late)
                };
                for node in holders.iter().filter(can_answer) {
                    plan.ask_stored(*node, key.shard);
                }
            }
        }
    }

    /// The keys of a bucket that the demand concerns.
    fn keys(&self) -> (Bound<HolderKey>, Bound<HolderKey>) {
        let key = |shard, term| HolderKey { shard, term };
        self.demand
            .shard
            .map_or((Bound::Unbounded, Bound::Unbounded), |shard| {
                (
                    Bound::Included(key(shard, Term(0))),
                    Bound::Included(key(shard, Term(u64::MAX))),
                )
            })
    }

    /// For each shard the node that is asked for its live traces, where nobody is asked more gladly.
    fn asked_gladly(&self, plan: &ScatterPlan) -> Vec<Option<NodeId>> {
        let mut asked = vec![None; self.demand.state.shard_map.len()];
        for (node, part) in &plan.asks {
            let has_answered = |shard| {
                self.answered(*node, shard)
                    .is_some_and(|part| part.live.contains(shard))
            };
            let is_good = |shard| self.rank(*node, shard) == Some(Rank::Good);
            for shard in part.live.iter() {
                if let Some(place) = asked.get_mut(usize::from(shard.0)) {
                    *place = (is_good(shard) || has_answered(shard)).then_some(*node);
                }
            }
        }
        asked
    }

    /// The holders that are asked most gladly.
    fn best(&self, shard: ShardId, holders: &[NodeId]) -> Option<(Rank, Vec<NodeId>)> {
        let rank = |node: NodeId| {
            if self
                .answered(node, shard)
                .is_some_and(|part| part.stored.contains(shard))
            {
                return Some(Rank::Answered);
            }
            self.rank(node, shard)
        };
        let best = holders.iter().filter_map(|node| rank(*node)).min()?;
        let nodes = holders.iter().copied();
        Some((
            best,
            nodes.filter(|node| rank(*node) == Some(best)).collect(),
        ))
    }

    /// Covers the old data with few nodes: with this one, then with those that are asked anyway, then greedily.
    fn cover(&self, mut open: Open, plan: &mut ScatterPlan) {
        let me = self.demand.me;
        open.retain(|(shard, nodes)| {
            let is_mine = nodes.contains(&me);
            if is_mine {
                plan.ask_stored(me, *shard);
            }
            !is_mine
        });
        open.retain(|(shard, nodes)| {
            let covered = nodes.iter().any(|node| plan.has(*node, *shard));
            let asked = nodes.iter().find(|node| plan.asks.contains_key(node));
            if let (false, Some(node)) = (covered, asked.copied()) {
                plan.ask_stored(node, *shard);
            }
            !covered && asked.is_none()
        });
        while let Some(node) = most_useful(&open) {
            open.retain(|(shard, nodes)| {
                let covers = nodes.contains(&node);
                if covers {
                    plan.ask_stored(node, *shard);
                }
                !covers
            });
        }
    }
}

/// The node that holds most of what is open; of equals the one with the lowest id.
fn most_useful(open: &Open) -> Option<NodeId> {
    let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in open.iter().flat_map(|(_, nodes)| nodes) {
        *counts.entry(*node).or_default() += 1;
    }
    let best = counts
        .into_iter()
        .max_by_key(|(node, count)| (*count, std::cmp::Reverse(*node)));
    best.map(|(node, _)| node)
}
