//! The shards that this node follows: frames of their primaries, and beginnings.

use std::sync::Arc;

use ractor::ActorRef;
use spandrel_model::ids::Term;
use spandrel_model::ids::{Lsn, NodeId, ShardId};
use tokio::sync::oneshot;

use super::{Landing, ReplicaFrame, ReplicaRecord, Replication, Role, WriterMessage, WriterState};
use crate::assembler_message::{AssemblerMessage, ShardRole};
use crate::buggify::Site;
use crate::replication::{BeginShard, Begun, FollowerShard, Offer};
use crate::shared::Shared;

impl WriterState {
    /// Takes frames of a primary elsewhere: each whole or not at all.
    pub(super) fn replicate(&mut self, replication: Replication) {
        let mut refused = Vec::new();
        for frame in replication.frames {
            match self.offer(replication.from, replication.catch_up, &frame) {
                Err(mut reasons) => refused.append(&mut reasons),
                Ok(false) => {}
                Ok(true) => {
                    for range in frame.encoded.ranges() {
                        if let Some(follower) = self.followed(range.shard) {
                            follower.take(range.last);
                        }
                    }
                    self.frames.push(frame.encoded.clone());
                    self.built.push(Landing::Replica(frame));
                }
            }
        }
        let mut touched = Vec::new();
        for notice in replication.committed {
            if let Some(follower) = self.followed(notice.shard) {
                follower.committed(replication.from, notice.term, notice.lsn);
                touched.push(notice.shard);
            }
        }
        self.advance(touched);
        // Also for frames that were here already: they may still be on their way to the disk.
        self.built
            .push(Landing::Replied(replication.reply, refused));
    }

    /// Whether a frame has records that are new here; the shards and reasons for which it is not taken.
    fn offer(
        &mut self,
        from: NodeId,
        catch_up: Option<(Term, u64)>,
        frame: &ReplicaFrame,
    ) -> Result<bool, Vec<(ShardId, Term, String)>> {
        let (mut new, mut refused) = (false, Vec::new());
        let refuses = self.shared.env.buggify.strikes(Site::FrameRefused);
        for range in frame.encoded.ranges() {
            let offer = match self.followed(range.shard) {
                _ if refuses => Offer::Refused("the simulation lets it be refused"),
                Some(follower) => follower.offer(from, catch_up, range.first, range.last),
                None => Offer::Refused("this node does not follow the shard"),
            };
            match offer {
                Offer::Next => new = true,
                Offer::Known => {}
                Offer::Refused(reason) => {
                    refused.push((range.shard, range.first.term(), reason.to_owned()));
                }
            }
        }
        if refused.is_empty() {
            Ok(new)
        } else {
            Err(refused)
        }
    }

    fn followed(&mut self, shard: ShardId) -> Option<&mut FollowerShard<ReplicaRecord>> {
        match self.roles.get_mut(usize::from(shard.0))? {
            Role::Follower(follower) => Some(follower),
            _ => None,
        }
    }

    /// A frame of another primary is durable here.
    pub(super) fn landed(&mut self, frame: ReplicaFrame, touched: &mut Vec<ShardId>) {
        for (head, record) in frame.records {
            match self.roles.get_mut(usize::from(head.shard.0)) {
                Some(Role::Follower(follower)) => {
                    follower.durable(head.lsn, record);
                    touched.push(head.shard);
                }
                // It has become the primary meanwhile: what it had taken by then counts.
                Some(Role::Primary(primary)) if head.lsn.term() < primary.term => {
                    let was_landed = primary.has_landed();
                    primary.durable_here(head.lsn);
                    let decides = !was_landed && primary.has_landed();
                    touched.push(head.shard);
                    let commit = record.into_commit(head.lsn);
                    self.tell(head.shard, vec![commit]);
                    if decides {
                        self.tell_role(head.shard, ShardRole::Primary);
                    }
                }
                _ => {}
            }
        }
    }

    /// Announces the beginnings whose maps are here. The primary may have its map sooner: refused, it would come again
    /// after a while, in which the shard acknowledges nothing.
    pub(super) fn announce_known(&mut self) {
        let epoch = self.map.epoch;
        let known = self.early.extract_if(.., |(wanted, _)| *wanted <= epoch);
        let known: Vec<_> = known.map(|(_, beginning)| beginning).collect();
        for (from, shards, reply) in known {
            self.announce(from, shards, reply);
        }
    }

    /// A beginning has come: from now on nothing is taken for its shards until they have begun.
    fn announce(
        &mut self,
        from: NodeId,
        shards: Vec<BeginShard>,
        reply: oneshot::Sender<Vec<Begun>>,
    ) {
        for begin in &shards {
            if let Some(follower) = self.followed(begin.shard) {
                follower.begin(from, begin.term, begin.attempt);
            }
        }
        self.built.push(Landing::Begin(from, shards, reply));
    }

    /// A beginning has come to its turn: everything that was taken before is durable. What it asks of the disk and of
    /// the assembler is done beside the writer, which takes nothing for these shards meanwhile.
    pub(super) fn prepare(
        &mut self,
        myself: &ActorRef<WriterMessage>,
        from: NodeId,
        shards: Vec<BeginShard>,
        reply: oneshot::Sender<Vec<Begun>>,
    ) {
        let (mut work, me) = (Vec::new(), self.shared.node);
        let shared = Arc::clone(&self.shared);
        for begin in &shards {
            let Some(follower) = self.followed(begin.shard) else {
                continue;
            };
            let Some(keep) = begin.keep else {
                continue;
            };
            if !follower.is_of(from, begin.term, begin.attempt) || lacks(&shared, begin).is_some() {
                continue;
            }
            // Behind it nothing of the shard is on its way: numbers that are given later, here as well, are not meant.
            let last = shared.journal.last_lsn(begin.shard);
            tracing::debug!(
                node = me.0,
                shard = begin.shard.0,
                term = begin.term.0,
                keep = keep.0,
                last = last.0,
                fill = begin.fill,
                "begins with a primary"
            );
            if begin.fill || follower.can_go_on(keep) {
                // This node may come to lead the shard before the beginning is done.
                follower.cut(keep);
                if begin.fill {
                    let from = keep.max(begin.settled);
                    shared.checkpoints.begin_anew(begin.shard, from, begin.term);
                }
                let counted = begin.fill.then(|| keep.min(begin.settled));
                let settled = counted.map(|counted| follower.settle(counted));
                let commits = settled.unwrap_or_default().into_iter();
                let commits = commits.map(|(lsn, record)| record.into_commit(lsn));
                self.tell(begin.shard, commits.collect());
                work.push((begin.shard, keep, last, counted));
            }
        }
        let (shared, writer) = (Arc::clone(&self.shared), myself.clone());
        let assemblers = self.shards.clone();
        self.shared.spawn_job("beginning", async move {
            let mut emptied = Vec::new();
            for (shard, _, _, counted) in &work {
                let assembler = assemblers.get(usize::from(shard.0));
                if let (Some(assembler), Some(counted)) = (assembler, *counted) {
                    let (reply, is_empty) = oneshot::channel();
                    let _ = assembler.cast(AssemblerMessage::StartAnew(counted, reply));
                    emptied.push(is_empty);
                }
            }
            for is_empty in emptied {
                let _ = is_empty.await;
            }
            let stores = Arc::clone(&shared);
            let prepared = shared.env.block(move || {
                for (shard, keep, last, _) in &work {
                    // What is known to count stays readable though the primary lacks it, which joined later: it is not
                    // the shard's holder of the terms before.
                    let counted = stores.checkpoints.counted(*shard).min(*last);
                    stores
                        .journal
                        .void_after(*shard, counted.max(*keep), *last)?;
                }
                // A restart must not read what was emptied.
                stores.checkpoints.write(&stores.journal)
            });
            match prepared.await {
                Ok(()) => {
                    let _ = writer.cast(WriterMessage::Prepared(from, shards, reply));
                }
                // It is not noted by another try either: the node would never follow again.
                Err(error) => {
                    (shared.env.halt)(&format!("the beginning of a copy cannot be noted: {error}"));
                }
            }
        });
    }

    /// Begins with a primary, shard by shard.
    pub(super) fn begin(
        &mut self,
        from: NodeId,
        shards: &[BeginShard],
        reply: oneshot::Sender<Vec<Begun>>,
    ) {
        let shared = Arc::clone(&self.shared);
        let begun = shards.iter().map(|begin| {
            let refused = |reason: &str, unfit| Begun {
                shard: begin.shard,
                outcome: Err((reason.to_owned(), unfit)),
                whole: false,
            };
            let Some(follower) = self.followed(begin.shard) else {
                return refused("this node does not follow the shard", false);
            };
            if !follower.is_of(from, begin.term, begin.attempt) {
                return refused(
                    "the shard map says otherwise here, or it has begun anew",
                    false,
                );
            }
            if let Some(lower) = lacks(&shared, begin) {
                return Begun {
                    shard: begin.shard,
                    outcome: Ok(lower),
                    whole: false,
                };
            }
            match begin.keep {
                None => {}
                Some(keep) if begin.fill => follower.fill(keep.max(begin.settled)),
                Some(keep) if follower.can_go_on(keep) => follower.go_on(keep),
                Some(_) => return refused("records count here that do not there", true),
            }
            Begun {
                shard: begin.shard,
                outcome: Ok(follower.last),
                whole: shared.checkpoints.is_whole(begin.shard),
            }
        });
        let _ = reply.send(begun.collect());
    }
}

/// Where this node does not hold the record that it is told to keep, the last one before that it holds.
fn lacks(shared: &Shared, begin: &BeginShard) -> Option<Lsn> {
    let keep = begin.keep.filter(|keep| *keep > Lsn(0))?;
    // An unreadable journal, or a trimmed one, has no say: what is trimmed was applied.
    let floor = shared.journal.floor(begin.shard, keep).ok().flatten()?;
    (floor < keep).then_some(floor)
}
