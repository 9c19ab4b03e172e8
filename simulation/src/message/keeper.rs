//! What a node wants changed about the shards that it leads, one step after the other (production:
//! `replication/keeper.rs` and `proposals.rs`).

use std::collections::BTreeMap;

use spandrel_actors::placement::candidates;
use spandrel_actors::replication::{Copy, CopyPhase, ShardProgress, Wish, wishes};
use spandrel_model::ids::{NodeId, ShardId};
use spandrel_raft::ClusterState;
use spandrel_raft::state::ShardChange;

use super::node::{Hold, Keeping, Role};
use super::world::{Event, MS, Proposal, World, shard_id};

/// Virtual milliseconds for which a shard is held before a change is given up.
const HOLD_MS: u64 = 150;

impl World {
    /// A look at the shards that are led here.
    pub(crate) fn keep(&mut self, node: usize) {
        self.go_on_keeping(node);
        let state = self.map_of(node);
        let plan = self.planned(&state);
        let Some(process) = self.nodes[node].process.as_ref() else {
            return;
        };
        if state.nodes.len() < 2 {
            return;
        }
        let mut progress: BTreeMap<ShardId, ShardProgress> = BTreeMap::new();
        for (shard, side) in process.sides.iter().enumerate() {
            let Role::Primary(led) = &side.role else {
                continue;
            };
            let nodes = |wanted: &dyn Fn(&Copy) -> bool| {
                let copies = led.copies.iter().filter(|copy| wanted(copy));
                copies.map(|copy| copy.node).collect()
            };
            let one = ShardProgress {
                shard: shard_id(shard),
                term: led.term,
                full: nodes(&|copy| copy.full),
                unfit: nodes(&|copy| copy.unfit),
                level: nodes(&|copy| copy.phase == CopyPhase::Live),
                recalls: 0,
            };
            progress.insert(one.shard, one);
        }
        let is_in_doubt = process.keeping.values().any(|one| one.in_doubt);
        let me = self.nodes[node].id;
        for wish in wishes(&state, me, &progress, &plan) {
            let shard = usize::from(wish.shard.0);
            let process = self.nodes[node].process.as_ref();
            let is_kept = process.is_some_and(|process| process.keeping.contains_key(&shard));
            let waits = wish.holds && is_in_doubt;
            if !is_kept && !waits {
                self.begin_keeping(node, shard, wish);
            }
        }
    }

    /// Where the shards should be.
    pub(crate) fn planned(&self, state: &ClusterState) -> Vec<Vec<NodeId>> {
        let candidates = candidates(state);
        let shards = 0..state.shard_map.len();
        let plan = shards.map(|shard| {
            let mut order = candidates.clone();
            if !order.is_empty() {
                let turn = (shard + self.turn) % order.len();
                order.rotate_left(turn);
            }
            order.truncate(usize::from(state.replication));
            order
        });
        plan.collect()
    }

    fn begin_keeping(&mut self, node: usize, shard: usize, wish: Wish) {
        let until = self.now + HOLD_MS * MS;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if wish.holds {
            process.sides[shard].held.insert(Hold::Keeper);
        }
        let keeping = Keeping {
            wish,
            proposed: None,
            in_doubt: false,
            until,
        };
        process.keeping.insert(shard, keeping);
        self.go_on_keeping(node);
    }

    fn go_on_keeping(&mut self, node: usize) {
        let shards: Vec<usize> = match self.nodes[node].process.as_ref() {
            Some(process) => process.keeping.keys().copied().collect(),
            None => return,
        };
        for shard in shards {
            self.go_on_with(node, shard);
        }
    }

    fn go_on_with(&mut self, node: usize, shard: usize) {
        let now = self.now;
        let is_cut = self.nodes[node].settings_cut_until > now;
        let newest = self.newest().shard_map[shard].term;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let Some(keeping) = process.keeping.get_mut(&shard) else {
            return;
        };
        if keeping.in_doubt {
            // A read that the majority confirms tells whether it took place. The writer may hear later.
            if !is_cut {
                let changed = newest != keeping.wish.expected.term;
                return self.end_keeping(node, shard, changed);
            }
            return;
        }
        match keeping.proposed {
            Some(_) if now > keeping.until => keeping.in_doubt = true,
            Some(_) => {}
            None if keeping.wish.holds => {
                let led = match &process.sides[shard].role {
                    Role::Primary(led) if led.term == keeping.wish.expected.term => Some(led),
                    _ => None,
                };
                let joining = keeping.wish.joining();
                let are_full = led.is_some_and(|led| joining.iter().all(|node| led.is_full(*node)));
                if are_full && led.is_some_and(|led| led.is_drained()) {
                    self.propose(node, shard);
                } else if !are_full || now > keeping.until {
                    self.end_keeping(node, shard, false);
                }
            }
            None => self.propose(node, shard),
        }
    }

    fn propose(&mut self, node: usize, shard: usize) {
        let one = &mut self.nodes[node];
        let (life, now) = (one.life, self.now);
        let is_lost = one.lost_proposals_until > now || one.settings_cut_until > now;
        let Some(process) = one.process.as_mut() else {
            return;
        };
        let Some(keeping) = process.keeping.get_mut(&shard) else {
            return;
        };
        self.next_proposal += 1;
        let number = self.next_proposal;
        keeping.proposed = Some(number);
        keeping.until = now + HOLD_MS * MS;
        let change = ShardChange {
            shard: keeping.wish.shard,
            expected: keeping.wish.expected.clone(),
            record: keeping.wish.record.clone(),
        };
        let is_cut = one.settings_cut_until > now;
        if is_lost && (is_cut || self.dice.chance(300)) {
            return;
        }
        self.proposals
            .insert(number, Proposal { node, life, change });
        let (least, most) = match is_lost {
            true => (MS, 600 * MS),
            false => (400, 6 * MS),
        };
        self.soon(least, most, Event::Proposal(number));
    }

    /// The outcome of a proposal is known.
    pub(crate) fn proposed(&mut self, node: usize, number: u64, took: bool) {
        let one = &self.nodes[node];
        if one.lost_proposals_until > self.now || one.settings_cut_until > self.now {
            return;
        }
        let Some(process) = one.process.as_ref() else {
            return;
        };
        let mut kept = process.keeping.iter();
        let shard = kept.find(|(_, keeping)| keeping.proposed == Some(number));
        if let Some(shard) = shard.map(|(shard, _)| *shard) {
            self.end_keeping(node, shard, took);
        }
    }

    /// The hold ends, unless the term has: then the writer has another one soon.
    fn end_keeping(&mut self, node: usize, shard: usize, changed: bool) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let Some(keeping) = process.keeping.remove(&shard) else {
            return;
        };
        let term_ends = keeping.wish.record.term != keeping.wish.expected.term;
        if keeping.wish.holds && !(changed && term_ends) {
            process.sides[shard].held.remove(&Hold::Keeper);
            self.undefer(node, shard);
        }
    }
}
