//! The copies of the shards that this node leads: frames for them, bringing them level, and what the keeper asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::ActorRef;
use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_storage::journal::{EncodedFrame, LsnRange};
use tokio::time::Instant;

use super::{CommitNotice, HeldFor, KeeperWaits, Role, WriterMessage, WriterState};
use crate::buggify::Site;
use crate::limits::{REPLICATION_QUIET_TICK_MS, REPLICATION_TICK_MS, STALL_LOG_MS};
use crate::meters::replicas_joined;
use crate::replication::{
    Again, Attachment, CopyPhase, Feed, FeederMessage, Level, ShardProgress, attach, refill,
};

impl WriterState {
    /// Sends a frame to a follower, and with it how far the shards that it follows have come.
    pub(super) fn feed(&mut self, node: NodeId, frame: &EncodedFrame) {
        let feed = Feed {
            frame: Some((frame.bytes().clone(), frame.ranges().to_vec())),
            committed: self.notices(node),
        };
        if let Some(feeder) = self.feeders.get(&node) {
            let _ = feeder.cast(FeederMessage::Send(feed));
        }
    }

    /// How far shards have come since the follower was last told.
    fn notices(&mut self, node: NodeId) -> Vec<CommitNotice> {
        let mut notices = Vec::new();
        for (shard, role) in (0u16..).map(ShardId).zip(&mut self.roles) {
            let Role::Primary(primary) = role else {
                continue;
            };
            let (term, lsn) = (primary.term, primary.commit);
            let Some(copy) = primary.copy_mut(node) else {
                continue;
            };
            if copy.phase == CopyPhase::Live && copy.told < lsn {
                copy.told = lsn;
                notices.push(CommitNotice { shard, term, lsn });
            }
        }
        notices
    }

    /// A follower has the records of a frame, or has refused them.
    pub(super) fn fed(&mut self, node: NodeId, ranges: &[LsnRange], refused: bool) {
        let mut lost = false;
        for range in ranges {
            let Some(primary) = self.led(range.shard) else {
                continue;
            };
            let live = |copy: &mut crate::replication::Copy| copy.phase == CopyPhase::Live;
            if refused {
                // One that is being brought level is told of frames that it refused before.
                if primary.copy_mut(node).is_some_and(live) {
                    primary.detach(node);
                    lost = true;
                }
            } else {
                primary.acked(node, range.last);
            }
        }
        self.looks_soon |= lost;
        self.advance(ranges.iter().map(|range| range.shard).collect());
    }

    /// Begins to bring those followers level that are not.
    pub(super) fn attach_copies(&mut self, myself: &ActorRef<WriterMessage>) {
        let mut attachments: BTreeMap<NodeId, Vec<Attachment>> = BTreeMap::new();
        for (shard, role) in (0u16..).map(ShardId).zip(&mut self.roles) {
            let Role::Primary(primary) = role else {
                continue;
            };
            let term = primary.term;
            let held = self.held.get(&shard);
            let may_be_let_in = held.is_some_and(|held| held.contains(&HeldFor::Keeper));
            while let Some(due) = primary.attach(may_be_let_in) {
                attachments.entry(due.node).or_default().push(Attachment {
                    shard,
                    term,
                    may_be_filled: due.may_be_filled,
                    attempt: due.attempt,
                    settled: due.settled,
                    last: due.last,
                    committed: due.committed,
                    resume: None,
                });
            }
        }
        for (node, shards) in attachments {
            self.start_attachment(myself, node, shards);
        }
    }

    fn start_attachment(
        &self,
        myself: &ActorRef<WriterMessage>,
        node: NodeId,
        shards: Vec<Attachment>,
    ) {
        let (shared, link, writer) = (
            Arc::clone(&self.shared),
            Arc::clone(&self.link),
            myself.clone(),
        );
        let epoch = self.map.epoch;
        self.shared.spawn_job("attachment", async move {
            attach(&shared, link.as_ref(), node, epoch, shards, &writer).await;
        });
    }

    /// A follower was brought up to a record. When more have come meanwhile, the shard is held until it has them too.
    pub(super) fn attached(
        &mut self,
        myself: &ActorRef<WriterMessage>,
        node: NodeId,
        attachment: Attachment,
        outcome: Result<Level, bool>,
    ) {
        let (shard, term, held) = (attachment.shard, attachment.term, HeldFor::Copy(node));
        let led = self.led(shard).filter(|primary| primary.term == term);
        let Some(primary) = led.filter(|led| led.is_attaching(node, attachment.attempt)) else {
            // It has left meanwhile, or begun anew.
            return self.release(shard, held);
        };
        match outcome {
            Err(unfit) => {
                primary.detach(node);
                if let Some(copy) = primary.copy_mut(node) {
                    copy.unfit |= unfit;
                }
                self.release(shard, held);
            }
            Ok(level) if primary.attached(node, level.from, level.to, level.went_on) => {
                self.release(shard, held);
                self.advance(vec![shard]);
                self.attach_next(myself, shard);
                if attachment.may_be_filled && level.went_on {
                    replicas_joined("went_on", 1);
                }
            }
            Ok(level) => {
                let attachment = Attachment {
                    last: primary.last,
                    committed: primary.commit,
                    resume: Some(level),
                    ..attachment
                };
                self.hold(shard, held);
                self.start_attachment(myself, node, vec![attachment]);
            }
        }
    }

    /// What the shard held when replicas joined is sent again, once all of it has come to its assembler.
    fn attach_next(&mut self, myself: &ActorRef<WriterMessage>, shard: ShardId) {
        let Some(primary) = self.led(shard) else {
            return;
        };
        let (term, joined) = (primary.term, primary.ask_again());
        let assembler = self.shards.get(usize::from(shard.0)).cloned();
        let (Some(assembler), false) = (assembler, joined.is_empty()) else {
            return;
        };
        let again = Again {
            shared: Arc::clone(&self.shared),
            writer: myself.clone(),
            assembler,
            shard,
        };
        self.shared.spawn_job("refill", async move {
            let (writer, mut done) = (again.writer.clone(), refill(&again).await);
            if again.shared.env.buggify.strikes(Site::FillFails) {
                done = Err("the simulation lets it fail".to_owned());
            }
            if let Err(reason) = &done {
                tracing::warn!(shard = shard.0, reason, "a joining replica was not filled");
            }
            let _ = writer.cast(WriterMessage::SentAgain(shard, term, joined, done.is_ok()));
        });
    }

    pub(super) fn sent_again(
        &mut self,
        shard: ShardId,
        term: Term,
        joined: &[(NodeId, u64)],
        done: bool,
    ) {
        if let Some(primary) = self.led(shard).filter(|primary| primary.term == term) {
            primary.sent_again(joined, done);
            if done {
                replicas_joined("filled", joined.len() as u64);
            }
        }
    }

    pub(super) fn hold_for_keeper(&mut self, shard: ShardId, term: Term, waits: KeeperWaits) {
        if self.led(shard).is_none_or(|primary| primary.term != term) {
            let _ = waits.1.send(false);
            return;
        }
        self.hold(shard, HeldFor::Keeper);
        self.drained.insert(shard, waits);
        self.answer_keeper(shard);
    }

    pub(super) fn release_by_keeper(&mut self, shard: ShardId, term: Term) {
        if self.led(shard).is_some_and(|primary| primary.term == term) {
            self.drained.remove(&shard);
            self.release(shard, HeldFor::Keeper);
        }
    }

    /// Tells the keeper when nothing of a shard that it holds is on its way. A replica that was full by then may have been
    /// lost since, and is not waited for any more.
    pub(super) fn answer_keeper(&mut self, shard: ShardId) {
        let Some((joining, _)) = self.drained.get(&shard) else {
            return;
        };
        let Some(Role::Primary(primary)) = self.roles.get(usize::from(shard.0)) else {
            return;
        };
        let are_full = joining.iter().all(|node| primary.is_full(*node));
        if (primary.is_drained() || !are_full)
            && let Some((_, reply)) = self.drained.remove(&shard)
        {
            let _ = reply.send(are_full);
        }
    }

    /// Where the shards stand that are led here.
    pub(super) fn progress(&self) -> Vec<ShardProgress> {
        let shards = (0u16..).map(ShardId).zip(&self.roles);
        let led = shards.filter_map(|(shard, role)| match role {
            Role::Primary(primary) => Some((shard, primary)),
            _ => None,
        });
        led.map(|(shard, primary)| {
            let copies = primary.copies.iter();
            let nodes = |wanted: &dyn Fn(&crate::replication::Copy) -> bool| {
                let wanted = copies.clone().filter(|copy| wanted(copy));
                wanted.map(|copy| copy.node).collect()
            };
            ShardProgress {
                shard,
                term: primary.term,
                full: nodes(&|copy| copy.full),
                unfit: nodes(&|copy| copy.unfit),
                level: nodes(&|copy| copy.phase == CopyPhase::Live),
                recalls: self.shared.gauges.recalls[usize::from(shard.0)].load(Ordering::Relaxed),
            }
        })
        .collect()
    }

    /// Looks after what waits for somebody else: followers that were not told how far shards have come, those that
    /// refused, and joining ones.
    pub(super) fn tick(&mut self, myself: &ActorRef<WriterMessage>) {
        self.tick_due = None;
        self.looks_soon = false;
        self.look_for_stalls();
        let nodes: Vec<NodeId> = self.feeders.keys().copied().collect();
        for node in nodes {
            if self.shared.env.buggify.strikes(Site::NoticeLate) {
                continue;
            }
            let committed = self.notices(node);
            if let (Some(feeder), false) = (self.feeders.get(&node), committed.is_empty()) {
                let feed = Feed {
                    frame: None,
                    committed,
                };
                let _ = feeder.cast(FeederMessage::Send(feed));
            }
        }
        self.attach_copies(myself);
        let shards: Vec<ShardId> = (0u16..).map(ShardId).take(self.roles.len()).collect();
        for shard in shards {
            self.attach_next(myself, shard);
        }
        self.start_ticking(myself);
    }

    /// Says which shards wait for a copy: nothing of them has come to count for some time.
    fn look_for_stalls(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.looked) < Duration::from_millis(STALL_LOG_MS) {
            return;
        }
        self.looked = now;
        for (shard, role) in (0u16..).map(ShardId).zip(&mut self.roles) {
            let Role::Primary(primary) = role else {
                continue;
            };
            if !primary.has_stalled() {
                continue;
            }
            let waits = primary.copies.iter().map(|copy| {
                let (node, phase) = (copy.node.0, copy.phase);
                format!("node {node} {phase:?} at {}", copy.acked.0)
            });
            let waits: Vec<String> = waits.collect();
            let held = self.held.get(&shard);
            tracing::warn!(
                shard = shard.0,
                term = primary.term.0,
                last = primary.last.0,
                local = primary.local.0,
                counts = primary.commit.0,
                copies = ?waits,
                ?held,
                "records wait for a copy"
            );
        }
    }

    /// Ticks while there are followers: soon when one is to be told something or is not level, else now and then.
    pub(super) fn start_ticking(&mut self, myself: &ActorRef<WriterMessage>) {
        if self.feeders.is_empty() {
            return;
        }
        let soon = self.looks_soon || self.lacks_copies();
        let pause = if soon {
            REPLICATION_TICK_MS
        } else {
            REPLICATION_QUIET_TICK_MS
        };
        let pause = Duration::from_millis(pause);
        let due = Instant::now() + pause;
        if let Some((at, timer)) = &self.tick_due {
            if *at <= due {
                return;
            }
            timer.abort();
        }
        self.ticks += 1;
        let tick = self.ticks;
        let timer = myself.send_after(pause, move || WriterMessage::Tick(tick));
        self.tick_due = Some((due, timer.abort_handle()));
    }

    /// Whether some copy of a shard that is led here is not level.
    fn lacks_copies(&self) -> bool {
        self.roles.iter().any(|role| match role {
            Role::Primary(primary) => {
                let mut copies = primary.copies.iter();
                copies.any(|copy| copy.phase != CopyPhase::Live)
            }
            _ => false,
        })
    }
}
