//! What this node is to each shard, as the shard map says, and what follows when that changes.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_raft::ClusterState;
use spandrel_raft::state::ShardRecord;

use super::{HeldFor, Pause, Role, Waiting, Work, WriterMessage, WriterState};
use crate::assembler_message::{AssemblerMessage, ShardRole};
use crate::placement::{Return, least_copies};
use crate::replication::{Feeder, FeederArguments, FollowerShard, PrimaryShard};

impl WriterState {
    /// Takes the map over.
    pub(super) async fn adopt(
        &mut self,
        myself: &ActorRef<WriterMessage>,
        map: Arc<ClusterState>,
    ) -> Result<(), ActorProcessingErr> {
        self.map = Arc::clone(&map);
        let least = least_copies(&map);
        let back = Return::new(&map, self.shared.node);
        let mut changed = Vec::new();
        for (shard, record) in (0u16..).map(ShardId).zip(&map.shard_map) {
            self.adopt_shard(shard, record, least, &back);
            changed.push(shard);
        }
        self.announce_known();
        self.adopt_feeders(myself).await?;
        self.start_ticking(myself);
        // With fewer copies to wait for, or more to let in, records may count or be numbered that waited.
        self.advance(changed);
        self.undefer();
        self.attach_copies(myself);
        Ok(())
    }

    fn adopt_shard(
        &mut self,
        shard: ShardId,
        record: &ShardRecord,
        least: usize,
        back: &Return<'_>,
    ) {
        let (me, at) = (self.shared.node, usize::from(shard.0));
        // Nobody else can have got a number from an earlier process of this node. A copy that has left may have, and may
        // come back with records of which that process had not made its own durable.
        let alone = self.map.nodes.len() < 2;
        let found = self.found.get(at).copied().unwrap_or_default();
        let led = matches!(self.roles.get(at), Some(Role::Primary(led)) if led.term == record.term);
        // What an earlier process of this node led, it led with numbers that this one does not know; alone it does.
        let leads = record.primary == me && (led || alone || record.term > found);
        let is_named = record.nodes().any(|node| node == me);
        if record.isr.contains(&me) {
            self.shared.checkpoints.in_sync(shard, record.term);
        }
        let follows = is_named && record.primary != me;
        let Some(role) = self.roles.get_mut(at) else {
            return;
        };
        match role {
            Role::Primary(primary) if leads && primary.term == record.term => {
                primary.adopt(me, record, least);
            }
            Role::Follower(follower) if follows => follower.adopt(record.term, record.primary),
            _ if leads => self.lead(shard, record, least),
            _ if follows => self.follow(shard, record),
            // It has left before, or leads by the right of the process before this one.
            Role::None if is_named || self.emptied[at] => {}
            _ if is_named => self.leave(shard, record.term),
            // At the start too: what the journal holds of the shard.
            _ => self.stand_by(shard, record, back),
        }
    }

    /// The shard is elsewhere. Where it will come back, because this node was only away, what it holds stays, so that it
    /// can go on; else it is let go.
    fn stand_by(&mut self, shard: ShardId, record: &ShardRecord, back: &Return<'_>) {
        let at = usize::from(shard.0);
        if back.is_expected(shard) && self.shared.checkpoints.is_whole(shard) {
            match &mut self.roles[at] {
                Role::Follower(follower) => follower.adopt(record.term, record.primary),
                _ => self.follow(shard, record),
            }
            if matches!(&self.roles[at], Role::Follower(follower) if follower.is_whole()) {
                return;
            }
        }
        self.leave(shard, record.term);
    }

    fn lead(&mut self, shard: ShardId, record: &ShardRecord, least: usize) {
        let at = usize::from(shard.0);
        let (me, journal) = (self.shared.node, &self.shared.journal);
        let (local, last) = match std::mem::replace(&mut self.roles[at], Role::None) {
            Role::Primary(mut primary) => {
                // Mostly nothing is on its way: the shard was held and drained. A proposal that was given up for lost may
                // come late.
                primary.next_term(me, record, least);
                self.roles[at] = Role::Primary(primary);
                self.let_number(shard);
                self.pauses.begin(shard, Pause::NewTerm);
                return;
            }
            Role::Follower(follower) => {
                let (local, last) = (follower.durable_up_to(), follower.last);
                let pending = follower.into_pending().into_iter();
                let commits = pending.map(|(lsn, record)| record.into_commit(lsn));
                self.tell(shard, commits.collect());
                (local, last)
            }
            Role::None => {
                let last = journal.last_valid(shard);
                (last, last)
            }
        };
        self.reigns[at] = self.reigns[at].next();
        let primary = PrimaryShard::new(me, record, (local, last), least);
        tracing::debug!(
            node = me.0,
            shard = shard.0,
            term = record.term.0,
            last = last.0,
            "leads a shard"
        );
        let has_landed = primary.has_landed();
        self.roles[at] = Role::Primary(Box::new(primary));
        self.let_number(shard);
        self.pauses.begin(shard, Pause::NewTerm);
        // Until the last verdict that is on its way to the disk is known, its trace could be decided again.
        let role = match has_landed {
            true => ShardRole::Primary,
            false => ShardRole::Follower,
        };
        self.tell_role(shard, role);
    }

    fn follow(&mut self, shard: ShardId, record: &ShardRecord) {
        let at = usize::from(shard.0);
        let (term, primary) = (record.term, record.primary);
        let follower = match std::mem::replace(&mut self.roles[at], Role::None) {
            Role::Primary(mut led) => {
                let mut follower = FollowerShard::new(term, primary, led.last);
                // Whether these count is for the new primary to say. Nobody waits for an answer any more: who does, is
                // told that the outcome is not known.
                let given_up = led.give_up().into_iter();
                follower.give_up(given_up.map(|(lsn, work)| (lsn, work.into_record().0)));
                follower
            }
            _ => {
                let last = self.shared.journal.last_valid(shard);
                let mut follower = FollowerShard::new(term, primary, last);
                if self.emptied[at] {
                    follower.doubt();
                }
                follower
            }
        };
        self.emptied[at] = false;
        tracing::debug!(
            node = self.shared.node.0,
            shard = shard.0,
            term = term.0,
            last = follower.last.0,
            "follows a shard"
        );
        self.roles[at] = Role::Follower(follower);
        self.refuse_deferred(shard);
        self.tell_role(shard, ShardRole::Follower);
    }

    /// The shard is elsewhere: what it holds here in memory is let go.
    fn leave(&mut self, shard: ShardId, term: Term) {
        tracing::debug!(node = self.shared.node.0, shard = shard.0, "leaves a shard");
        self.shared.checkpoints.let_go(shard, term);
        let left = std::mem::replace(&mut self.roles[usize::from(shard.0)], Role::None);
        if let Role::Primary(mut primary) = left {
            drop(primary.give_up());
        }
        self.refuse_deferred(shard);
        self.emptied[usize::from(shard.0)] = true;
        self.tell_role(shard, ShardRole::None);
    }

    pub(super) fn tell_role(&self, shard: ShardId, role: ShardRole) {
        if let Some(assembler) = self.shards.get(usize::from(shard.0)) {
            let reign = self.reigns.get(usize::from(shard.0));
            let reign = reign.copied().unwrap_or_default();
            let _ = assembler.cast(AssemblerMessage::Role(role, reign));
        }
    }

    fn refuse_deferred(&mut self, shard: ShardId) {
        self.let_number(shard);
        self.pauses.forget(shard);
        // Verdicts of a term that is over: should this node lead again, others may have decided meanwhile.
        self.waiting.retain(|waiting| {
            let over = matches!(waiting, Waiting::Verdicts(of, ..) if *of == shard);
            self.waiting_bytes -= if over { waiting.raw_bytes() } else { 0 };
            !over
        });
        if let Some(reign) = self.reigns.get_mut(usize::from(shard.0)) {
            *reign = reign.next();
        }
        for waiting in self.deferred.remove(&shard).into_iter().flatten() {
            if let Waiting::Spans(part) = waiting {
                part.ticket.refuse(shard);
            }
        }
        if let Some((_, keeper)) = self.drained.remove(&shard) {
            let _ = keeper.send(false);
        }
    }

    /// A feeder for each follower of a shard that is led here, and no others.
    async fn adopt_feeders(
        &mut self,
        myself: &ActorRef<WriterMessage>,
    ) -> Result<(), ActorProcessingErr> {
        let mut wanted: Vec<NodeId> = Vec::new();
        for role in &self.roles {
            if let Role::Primary(primary) = role {
                wanted.extend(primary.copies.iter().map(|copy| copy.node));
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        self.feeders.retain(|node, feeder| {
            let stays = wanted.binary_search(node).is_ok();
            if !stays {
                feeder.stop(None);
            }
            stays
        });
        for node in wanted {
            if self.feeders.contains_key(&node) {
                continue;
            }
            let arguments = FeederArguments {
                shared: Arc::clone(&self.shared),
                link: Arc::clone(&self.link),
                node,
                writer: myself.clone(),
            };
            let spawned = Actor::spawn_linked(None, Feeder, arguments, myself.get_cell()).await?;
            self.feeders.insert(node, spawned.0);
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, shard: ShardId, reason: HeldFor) {
        self.pauses.begin(shard, Pause::Held);
        let reasons = self.held.entry(shard).or_default();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    /// A reason is gone; what waited for numbers gets them when it was the last one.
    pub(super) fn release(&mut self, shard: ShardId, reason: HeldFor) {
        if let Some(reasons) = self.held.get_mut(&shard) {
            reasons.retain(|other| *other != reason);
            if reasons.is_empty() {
                self.let_number(shard);
            }
        }
        self.undefer();
    }

    /// Nothing holds the shard any more.
    fn let_number(&mut self, shard: ShardId) {
        self.held.remove(&shard);
        self.pauses.end(shard, Pause::Held);
    }

    /// Puts what waited for shards that are not held any more back at the head of the queue.
    fn undefer(&mut self) {
        let free: Vec<ShardId> = self
            .deferred
            .keys()
            .filter(|shard| !self.held.contains_key(shard))
            .copied()
            .collect();
        for shard in free {
            for waiting in self.deferred.remove(&shard).into_iter().flatten().rev() {
                self.waiting_bytes += waiting.raw_bytes();
                self.waiting.push_front(waiting);
            }
        }
    }

    /// A shard that this node leads.
    pub(super) fn led(&mut self, shard: ShardId) -> Option<&mut PrimaryShard<Work>> {
        match self.roles.get_mut(usize::from(shard.0))? {
            Role::Primary(primary) => Some(primary),
            _ => None,
        }
    }
}
