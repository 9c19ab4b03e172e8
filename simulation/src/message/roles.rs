//! What processes are to each shard, as the map says (production: `writer/roles.rs`).

use std::collections::BTreeSet;

use spandrel_actors::assembler::Effects;
use spandrel_actors::placement::least_copies;
use spandrel_actors::replication::{FollowerShard, PrimaryShard};
use spandrel_model::ids::{Lsn, Term};
use spandrel_raft::ClusterState;
use spandrel_raft::state::{NodeState, ShardRecord};

use super::node::{Node, Role, Waiting};
use super::process::{page, set_mark};
use super::world::World;

impl World {
    /// Takes over the map that has come.
    pub(crate) fn adopt(&mut self, node: usize) {
        let state = self.map_of(node);
        let least = least_copies(&state);
        for (shard, record) in state.shard_map.iter().enumerate() {
            self.adopt_shard(node, shard, record, &state, least);
        }
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let mut wanted = BTreeSet::new();
        for side in &process.sides {
            if let Role::Primary(primary) = &side.role {
                wanted.extend(primary.copies.iter().map(|copy| copy.node));
            }
        }
        process.feeders.retain(|to, _| wanted.contains(to));
        for to in wanted {
            process.feeders.entry(to).or_default();
        }
        for shard in 0..state.shard_map.len() {
            self.advance(node, shard);
            self.undefer(node, shard);
        }
        self.attach_copies(node);
    }

    fn adopt_shard(
        &mut self,
        node: usize,
        shard: usize,
        record: &ShardRecord,
        state: &ClusterState,
        least: usize,
    ) {
        let Node {
            id, disk, process, ..
        } = &mut self.nodes[node];
        let (me, Some(process)) = (*id, process.as_mut()) else {
            return;
        };
        let side = &mut process.sides[shard];
        let alone = state.nodes.len() < 2;
        let led = matches!(&side.role, Role::Primary(led) if led.term == record.term);
        let leads = record.primary == me && (led || alone || record.term > side.found);
        let is_named = record.nodes().any(|node| node == me);
        let let_go = &mut disk[shard].let_go;
        if record.isr.contains(&me) && record.term > *let_go {
            *let_go = Term(0);
        }
        let follows = is_named && record.primary != me;
        match &mut side.role {
            Role::Primary(primary) if leads && primary.term == record.term => {
                primary.adopt(me, record, least);
            }
            Role::Follower(follower) if follows => follower.adopt(record.term, record.primary),
            _ if leads => self.lead(node, shard, record, least),
            _ if follows => self.follow(node, shard, record),
            Role::None if is_named || side.emptied => {}
            _ if is_named => self.leave(node, shard, record.term),
            _ => self.stand_by(node, shard, record, state),
        }
    }

    fn follow(&mut self, node: usize, shard: usize, record: &ShardRecord) {
        let Some((side, log)) = self.nodes[node].shard(shard) else {
            return;
        };
        let last = log.last_valid();
        let follower = match std::mem::replace(&mut side.role, Role::None) {
            Role::Primary(mut led) => {
                let mut follower = FollowerShard::new(record.term, record.primary, led.last);
                let given_up = led.give_up().into_iter();
                follower.give_up(given_up.map(|(lsn, work)| (lsn, work.content)));
                follower
            }
            _ => {
                let mut follower = FollowerShard::new(record.term, record.primary, last);
                if side.emptied {
                    follower.doubt();
                }
                follower
            }
        };
        side.emptied = false;
        side.role = Role::Follower(follower);
        side.state.stop_deciding();
        side.effects.verdicts.clear();
        self.refuse_deferred(node, shard);
    }

    /// The shard is elsewhere: what is here stays where it will come back.
    fn stand_by(&mut self, node: usize, shard: usize, record: &ShardRecord, state: &ClusterState) {
        let id = self.nodes[node].id;
        let is_expected = match state.nodes.get(&id).map(|node| node.state) {
            Some(NodeState::Down) => true,
            Some(NodeState::Up) => self.planned(state)[shard].contains(&id),
            _ => false,
        };
        if is_expected && self.nodes[node].disk[shard].let_go == Term(0) {
            let process = self.nodes[node].process.as_mut();
            match process.map(|process| &mut process.sides[shard].role) {
                Some(Role::Follower(follower)) => follower.adopt(record.term, record.primary),
                _ => self.follow(node, shard, record),
            }
            let process = self.nodes[node].process.as_ref();
            if process.is_some_and(
                |process| matches!(&process.sides[shard].role, Role::Follower(it) if it.is_whole()),
            ) {
                return;
            }
        }
        self.leave(node, shard, record.term);
    }

    /// The shard is elsewhere: the assembler lets go of it.
    fn leave(&mut self, node: usize, shard: usize, term: Term) {
        let Some((side, log)) = self.nodes[node].shard(shard) else {
            return;
        };
        log.let_go = term;
        side.role = Role::None;
        side.emptied = true;
        side.state.stop_deciding();
        side.effects = Effects::default();
        side.state.let_go(Lsn(u64::MAX), log.last());
        side.state.page_kept();
        page(side, log);
        set_mark(side, log);
        self.refuse_deferred(node, shard);
    }

    fn lead(&mut self, node: usize, shard: usize, record: &ShardRecord, least: usize) {
        let Node {
            id, disk, process, ..
        } = &mut self.nodes[node];
        let (me, Some(process)) = (*id, process.as_mut()) else {
            return;
        };
        let side = &mut process.sides[shard];
        side.held.clear();
        let mut commits = Vec::new();
        let (local, last) = match std::mem::replace(&mut side.role, Role::None) {
            Role::Primary(mut primary) => {
                primary.next_term(me, record, least);
                side.role = Role::Primary(primary);
                return;
            }
            Role::Follower(follower) => {
                let place = (follower.durable_up_to(), follower.last);
                commits.extend(follower.into_pending());
                place
            }
            Role::None => {
                let last = disk[shard].last_valid();
                (last, last)
            }
        };
        side.reign += 1;
        // The assembler gets them before it hears that it decides.
        for (lsn, content) in commits {
            self.apply(node, shard, lsn, &content);
        }
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let side = &mut process.sides[shard];
        let primary = PrimaryShard::new(me, record, (local, last), least);
        side.decides = primary.has_landed();
        side.role = Role::Primary(Box::new(primary));
        let term = record.term;
        self.tell(|| format!("node {} leads shard {shard} in term {}", me.0, term.0));
        self.perform(node, shard);
    }

    pub(crate) fn refuse_deferred(&mut self, node: usize, shard: usize) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let side = &mut process.sides[shard];
        side.held.clear();
        side.reign += 1;
        side.deferred.clear();
        process.keeping.remove(&shard);
        // Verdicts of a term that is over.
        let is_over = |waiting: &Waiting| waiting.shard == shard && waiting.reign.is_some();
        process.waiting.retain(|waiting| !is_over(waiting));
    }
}
