//! Which nodes should hold which shard. Pure: the same nodes give the same plan, in whatever order they are listed.
//!
//! A plan is advice to whoever proposes changes of the shard map. What counts is what Raft holds: programs of other
//! versions may plan otherwise, and agree all the same. So a plan may change from version to version; the golden test
//! is there because each change moves data.

mod ring;

#[cfg(test)]
mod placement_test;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;

use spandrel_model::ids::{NodeId, ShardId};
use spandrel_raft::ClusterState;
use spandrel_raft::state::NodeState;

use crate::limits::{COPIES_SLACK_PERCENT, PRIMARIES_SLACK_PERCENT};
use ring::Ring;

/// A node that may hold shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementNode {
    /// Which node.
    pub id: NodeId,
    /// Its share of the shards, against those of the others.
    pub weight: NonZeroU8,
    /// Where it stands; nodes without a zone (empty) count as one zone together.
    pub zone: String,
}

/// The nodes of one shard, the primary first; distinct.
pub type Replicas = Vec<NodeId>;

/// The most that a node takes, and what it has taken.
#[derive(Debug, Clone, Copy)]
struct Load {
    weight: u64,
    most_primaries: u64,
    most_copies: u64,
    primaries: u64,
    copies: u64,
}

impl Load {
    fn is_full(&self) -> bool {
        self.copies >= self.most_copies
    }

    /// Copies for its weight, comparable between nodes.
    fn copies_per_weight(&self) -> u64 {
        // Weights are below 256, copies below 2^16.
        self.copies * (1 << 16) / self.weight
    }
}

/// Copies that a record needs before it counts: two where two are wanted and there are two nodes (DESIGN.md section 4).
#[must_use]
pub fn least_copies(state: &ClusterState) -> usize {
    usize::from(state.replication).min(state.nodes.len()).min(2)
}

/// Whether the shards can do without `nodes`: as many others as a record needs copies are up.
#[must_use]
pub fn can_do_without(state: &ClusterState, nodes: &[NodeId]) -> bool {
    let others = up(state).filter(|node| !nodes.contains(node));
    others.count() >= least_copies(state)
}

fn up(state: &ClusterState) -> impl Iterator<Item = NodeId> {
    let nodes = state.nodes.iter();
    let up = nodes.filter(|(_, node)| node.state == NodeState::Up);
    up.map(|(id, _)| *id)
}

/// The nodes that shards are placed on: those that are up, and while there are fewer of these than a record needs copies,
/// those too whose disk is nearly full.
#[must_use]
pub fn candidates(state: &ClusterState) -> Vec<NodeId> {
    let has_enough = can_do_without(state, &[]);
    let takes = |node: &NodeState| match node {
        NodeState::Up => true,
        NodeState::Full => !has_enough,
        NodeState::Draining | NodeState::Down => false,
    };
    let nodes = state.nodes.iter();
    let nodes = nodes.filter(|(_, node)| takes(&node.state));
    nodes.map(|(id, _)| *id).collect()
}

/// Whether a node that a shard does not name will be its replica again: it was away for a moment. The plan is made when
/// somebody asks.
#[derive(Debug)]
pub(crate) struct Return<'a> {
    state: &'a ClusterState,
    node: NodeId,
    plans: OnceCell<[Vec<Replicas>; 2]>,
}

impl<'a> Return<'a> {
    pub(crate) fn new(state: &'a ClusterState, node: NodeId) -> Self {
        Self {
            state,
            node,
            plans: OnceCell::new(),
        }
    }

    /// Of a node that is down nobody can say: it stays ready. Of one that is up the plan says, that of those who wait for
    /// others too.
    pub(crate) fn is_expected(&self, shard: ShardId) -> bool {
        match self.state.nodes.get(&self.node).map(|node| node.state) {
            Some(NodeState::Down) => true,
            Some(NodeState::Up) => {
                let plans = self.plans.get_or_init(|| {
                    let down = self.state.nodes.iter();
                    let down = down.filter(|(_, node)| node.state == NodeState::Down);
                    let candidates = candidates(self.state).into_iter();
                    let all = candidates.chain(down.map(|(id, _)| *id));
                    [planned(self.state), plan_on(self.state, all)]
                });
                plans.iter().any(|plan| {
                    let replicas = plan.get(usize::from(shard.0));
                    replicas.is_some_and(|replicas| replicas.contains(&self.node))
                })
            }
            _ => false,
        }
    }
}

/// Where the shards of a cluster should be.
#[must_use]
pub fn planned(state: &ClusterState) -> Vec<Replicas> {
    plan_on(state, candidates(state))
}

/// Where they should be, by shard, when some nodes were down for a moment only: a shard that has copies enough waits for
/// them.
pub(crate) fn planned_while_away(state: &ClusterState, away: &BTreeSet<NodeId>) -> Vec<Replicas> {
    let plan = planned(state);
    if away.is_empty() {
        return plan;
    }
    let patient = plan_on(
        state,
        candidates(state).into_iter().chain(away.iter().copied()),
    );
    let is_up = |node: &&NodeId| {
        let node = state.nodes.get(node);
        node.is_some_and(|node| node.state == NodeState::Up)
    };
    let shards = state.shard_map.iter().zip(plan).zip(patient);
    shards
        .map(|((record, plan), patient)| {
            let has_enough = record.isr.iter().filter(is_up).count() >= least_copies(state);
            if has_enough { patient } else { plan }
        })
        .collect()
}

fn plan_on(state: &ClusterState, nodes: impl IntoIterator<Item = NodeId>) -> Vec<Replicas> {
    let nodes = nodes.into_iter();
    let nodes: Vec<PlacementNode> = nodes
        .map(|id| PlacementNode {
            id,
            weight: NonZeroU8::MIN,
            zone: state
                .nodes
                .get(&id)
                .map_or_else(String::new, |node| node.zone.clone()),
        })
        .collect();
    plan(&nodes, state.shards, state.replication, state.routing_key)
}

/// Places `shards` shards with `replication` copies each, or as many as there are nodes. `seed` is the cluster's
/// routing key.
///
/// No node is the primary of more than 110 % of its share (rounded up). Copies of a shard stand in different zones as
/// far as there are zones, even where that loads the nodes of a small zone; otherwise no node holds more than 105 % of
/// its share of copies, unless every other one holds the shard already. Without nodes there is no plan: the result is
/// empty.
#[must_use]
pub fn plan(nodes: &[PlacementNode], shards: u16, replication: u8, seed: u64) -> Vec<Replicas> {
    // By id, each once.
    let nodes: BTreeMap<NodeId, &PlacementNode> =
        nodes.iter().map(|node| (node.id, node)).collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    let copies = usize::from(replication.max(1)).min(nodes.len());
    let mut loads = loads(&nodes, shards, copies);
    let ring = Ring::new(&nodes, seed);
    let shards = (0..shards).map(ShardId);
    // Primaries of all shards first: the copies that follow even out what these have left uneven.
    let mut plan: Vec<(ShardId, Replicas)> = shards
        .map(|shard| (shard, vec![choose_primary(&ring, shard, &mut loads)]))
        .collect();
    for _ in 1..copies {
        for (shard, replicas) in &mut plan {
            let candidates = ring.candidates(*shard);
            replicas.extend(choose_copy(candidates, replicas, &nodes, &mut loads));
        }
    }
    plan.into_iter().map(|(_, replicas)| replicas).collect()
}

fn loads(
    nodes: &BTreeMap<NodeId, &PlacementNode>,
    shards: u16,
    copies: usize,
) -> BTreeMap<NodeId, Load> {
    let weight = |node: &PlacementNode| u64::from(node.weight.get());
    let total: u64 = nodes.values().map(|node| weight(node)).sum();
    let share = |weight: u64, of: u64, slack_percent: u64| {
        (of * weight * (100 + slack_percent)).div_ceil(100 * total)
    };
    let (shards, copies) = (u64::from(shards), copies as u64);
    let load = |weight| Load {
        weight,
        most_primaries: share(weight, shards, PRIMARIES_SLACK_PERCENT),
        most_copies: share(weight, shards * copies, COPIES_SLACK_PERCENT),
        primaries: 0,
        copies: 0,
    };
    let loads = nodes.iter().map(|(id, node)| (*id, load(weight(node))));
    loads.collect()
}

/// The first candidate that has room. One always has: together they have room for more than all shards.
fn choose_primary(ring: &Ring, shard: ShardId, loads: &mut BTreeMap<NodeId, Load>) -> NodeId {
    let has_room = |id: &NodeId| {
        let load = loads.get(id);
        load.is_some_and(|load| load.primaries < load.most_primaries)
    };
    let chosen = ring.candidates(shard).find(has_room);
    let chosen = chosen.or_else(|| ring.candidates(shard).next());
    let chosen = chosen.unwrap_or_default();
    if let Some(load) = loads.get_mut(&chosen) {
        load.primaries += 1;
        load.copies += 1;
    }
    chosen
}

/// One more node for a shard: first a zone that it does not stand in, then room, then the order of the candidates.
fn choose_copy(
    candidates: impl Iterator<Item = NodeId>,
    replicas: &[NodeId],
    nodes: &BTreeMap<NodeId, &PlacementNode>,
    loads: &mut BTreeMap<NodeId, Load>,
) -> Option<NodeId> {
    let zone = |id: &NodeId| nodes.get(id).map(|node| node.zone.as_str());
    let taken: BTreeSet<&str> = replicas.iter().filter_map(zone).collect();
    let mut best = None;
    for (order, id) in candidates.enumerate() {
        let (Some(zone), Some(load)) = (zone(&id), loads.get(&id)) else {
            continue;
        };
        if replicas.contains(&id) {
            continue;
        }
        // Among full ones the emptiest; among those with room the ring decides, so that joins move little.
        let crowding = if load.is_full() {
            load.copies_per_weight()
        } else {
            0
        };
        let rank = (taken.contains(zone), load.is_full(), crowding, order, id);
        best = Some(best.map_or(rank, |other| rank.min(other)));
        if !rank.0 && !rank.1 {
            // None that comes later is better.
            break;
        }
    }
    let (.., chosen) = best?;
    if let Some(load) = loads.get_mut(&chosen) {
        load.copies += 1;
    }
    Some(chosen)
}
