//! The actor around a shard's assembler: it performs what the pure state asks for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus};
use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::ids::{Lsn, ShardId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::{Verdict, VerdictRecord};
use tokio::sync::oneshot;

use crate::assembler::{
    Depth, Earlier, Effects, KeptTrace, LiveNames, PagingBacklog, PagingScope, Recall, ShardState,
    Step,
};
use crate::assembler_message::{AssemblerMessage, Reign, ShardRole};
use crate::journal_decided::JournalDecided;
use crate::limits::{
    LEFT_MS, MAX_RECALLS, MEASURED_OF_MESSAGES, RECALL_PAUSE_MS, RECALL_TRIES, RECORD_VERDICTS,
    UNREADABLE_PAUSE_MS,
};
use crate::meters::Stage;
use crate::query::Coordinator;
use crate::replication::{Again, recall};
use crate::settings::Epoch;
use crate::shared::Shared;
use crate::writer::{ReplicaRecord, ShardCommit, WriterMessage};

/// The actor.
pub(crate) struct Assembler;

/// What the actor starts with.
pub(crate) struct AssemblerArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: ShardId,
    /// The state after replay.
    pub(crate) state: ShardState,
    /// Effects of the replay that are still to be performed.
    pub(crate) effects: Effects,
    /// Pays for the state's memory.
    pub(crate) credit: Credit,
}

/// Invariant: `credit` covers the memory of `state`, but for a moment within a message.
pub(crate) struct AssemblerState {
    shared: Arc<Shared>,
    shard: ShardId,
    state: ShardState,
    credit: Credit,
    writer: Option<ActorRef<WriterMessage>>,
    role: ShardRole,
    reign: Reign,
    effects: Effects,
    /// Since when the shard is elsewhere.
    left_at: Option<UnixNanos>,
    /// Wait until no trace is left.
    leaving: Vec<oneshot::Sender<()>>,
    cluster: Option<Arc<Coordinator>>,
    /// Traces of which spans are elsewhere; each has an entry here.
    recalls: VecDeque<(Recall, u32)>,
    /// The first of them is being brought here.
    recalling: bool,
    /// Counts messages.
    handled: u64,
}

fn step<'a>(
    shared: &'a Shared,
    epoch: &'a Epoch,
    decided: &'a JournalDecided<'a>,
    role: ShardRole,
) -> Step<'a> {
    Step {
        decides: role == ShardRole::Primary,
        epoch,
        decided,
        limiters: &shared.limiters,
        pressure: shared.pressure(),
        now: shared.env.now(),
    }
}

fn not_brought_here(shard: ShardId, wanted: &Recall) {
    tracing::warn!(
        shard = shard.0,
        tenant = %wanted.tenant,
        trace = %wanted.trace_id,
        "earlier spans of a trace could not be brought here: they stay on the nodes that hold them"
    );
}

impl Actor for Assembler {
    type Msg = AssemblerMessage;
    type State = AssemblerState;
    type Arguments = AssemblerArguments;

    async fn pre_start(
        &self,
        _: ActorRef<AssemblerMessage>,
        arguments: AssemblerArguments,
    ) -> Result<AssemblerState, ActorProcessingErr> {
        Ok(AssemblerState {
            shared: arguments.shared,
            shard: arguments.shard,
            state: arguments.state,
            credit: arguments.credit,
            writer: None,
            // The writer says, as soon as it is there; what the replay decided waits until then.
            role: ShardRole::Follower,
            reign: Reign::default(),
            effects: arguments.effects,
            left_at: None,
            leaving: Vec::new(),
            cluster: None,
            recalls: VecDeque::new(),
            recalling: false,
            handled: u64::from(arguments.shard.0),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<AssemblerMessage>,
        message: AssemblerMessage,
        state: &mut AssemblerState,
    ) -> Result<(), ActorProcessingErr> {
        let shared = Arc::clone(&state.shared);
        state.handled = state.handled.wrapping_add(1);
        let measured = state.handled.is_multiple_of(MEASURED_OF_MESSAGES);
        let step = || {
            state.handle(message);
            state.perform(&myself);
            state.settle();
        };
        // Most messages are small: to read the clock twice for each takes a tenth of what they do.
        if measured {
            shared.measured_for(Stage::Assemble, MEASURED_OF_MESSAGES, step);
        } else {
            step();
        }
        Ok(())
    }
}

impl AssemblerState {
    fn handle(&mut self, message: AssemblerMessage) {
        let shared = Arc::clone(&self.shared);
        let decided = JournalDecided(&shared);
        let epoch = shared.epoch();
        let step = step(&shared, &epoch, &decided, self.role);
        match message {
            AssemblerMessage::Writer(writer) => self.writer = Some(writer),
            AssemblerMessage::Cluster(cluster) => self.cluster = Some(cluster),
            AssemblerMessage::Recalled(failed) => {
                self.recalling = false;
                self.recall_later(failed);
            }
            AssemblerMessage::Committed(commits) => {
                commits
                    .into_iter()
                    .for_each(|commit| self.committed(commit, &step));
            }
            AssemblerMessage::Counted(lsn) => self.state.count(lsn),
            AssemblerMessage::Confirmed(tenant, trace_id, found) => {
                let node = self.shared.node.0;
                tracing::trace!(node, trace = %trace_id, ?found, "earlier");
                self.state
                    .confirm(&tenant, trace_id, found, &step, &mut self.effects);
            }
            AssemblerMessage::Tick => self.tick(&step),
            AssemblerMessage::Role(role, reign) => {
                self.reign = reign;
                self.become_role(role);
            }
            AssemblerMessage::StartAnew(counted, reply) => {
                self.state.count(counted);
                self.leaving.push(reply);
                self.let_go(self.state.counted());
            }
            AssemblerMessage::Settled(bucket, term, reply) => {
                // A follower may not have been told yet that the last records of a term count.
                let counted = self.state.counted().min(self.state.applied());
                let last = self.shared.journal.last_valid(self.shard);
                let knows =
                    self.role == ShardRole::None || counted.term() > term || counted >= last;
                let _ = reply.send(knows && !self.state.waits_for_page(bucket, term));
            }
            AssemblerMessage::WaitsForPage(bucket, reply) => {
                let _ = reply.send(self.state.waits_for_page(bucket, Term(u64::MAX)));
            }
            AssemblerMessage::Held(reply) => {
                let _ = reply.send(self.state.held());
            }
            AssemblerMessage::View(tenant, trace_id, depth, reply) => {
                let view = self.state.view(&tenant, trace_id, depth);
                let _ = reply.send((view, self.in_effect(depth)));
            }
            AssemblerMessage::Search(search, reply) => {
                let interests = epoch.rules().interests();
                let mut hits = self.state.search(&search, &|key| interests.is_indexed(key));
                hits.in_effect = self.in_effect(search.depth);
                let _ = reply.send(hits);
            }
            AssemblerMessage::Names(tenant, range, depth, reply) => {
                let mut names = LiveNames::default();
                self.state.names(&tenant, range, depth, &mut names);
                let _ = reply.send(names);
            }
            AssemblerMessage::KeptBacklog(bytes, scope, reply) => {
                let _ = reply.send(self.state.kept_backlog(bytes, self.pages(scope)));
            }
            AssemblerMessage::CollectKept(until, scope, reply) => {
                let name = |record: &VerdictRecord| shared.policy_name(record);
                let taken = self.state.collect_kept(until, self.pages(scope), &name);
                if let Err(taken) = reply.send(taken) {
                    self.give_back(taken.iter());
                }
            }
            AssemblerMessage::CollectShipped(tenant, traces, reply) => {
                let name = |record: &VerdictRecord| shared.policy_name(record);
                let taken = self.state.collect_shipped(&tenant, &traces, &name);
                if let Err(Ok(taken)) = reply.send(taken) {
                    self.give_back(taken.iter().flatten());
                }
            }
            AssemblerMessage::Paged(traces) => {
                self.state.paged(&traces);
                self.say_gone();
            }
            AssemblerMessage::PagingFailed(traces) => self.state.paging_failed(&traces),
            AssemblerMessage::Promote(tenant, trace_id, earlier, reply) => {
                let promotion = match earlier {
                    None => self
                        .state
                        .promote(&tenant, trace_id, &step, &mut self.effects),
                    Some(earlier) => self
                        .state
                        .promote_dropped(earlier, &step, &mut self.effects),
                };
                let _ = reply.send(promotion);
            }
            AssemblerMessage::Relieve(bytes) => {
                self.state.relieve(bytes, &step, &mut self.effects);
            }
        }
        if cfg!(debug_assertions) {
            self.state.check();
        }
    }

    /// The shard's traces of which this node builds pages: those of a shard that it follows come from the primary.
    fn pages(&self, scope: PagingScope) -> PagingScope {
        let followed = scope.followed || self.role != ShardRole::Follower;
        PagingScope { followed, ..scope }
    }

    /// Nobody waits for these any more.
    fn give_back<'t>(&mut self, taken: impl Iterator<Item = &'t KeptTrace>) {
        let keys: Vec<_> = taken.map(KeptTrace::paged).collect();
        self.state.paging_failed(&keys);
    }

    fn become_role(&mut self, role: ShardRole) {
        if role != ShardRole::Primary {
            self.state.stop_deciding();
            self.effects.verdicts.clear();
        }
        if role == ShardRole::Primary && self.role != role {
            let recalls = self.state.begin_deciding(self.shared.env.now());
            self.effects.recall.extend(recalls);
        }
        self.left_at = None;
        if role == ShardRole::None {
            self.left_at = Some(self.shared.env.now());
            self.let_go(Lsn(u64::MAX));
        }
        self.role = role;
    }

    /// Up to which record verdicts in the journal are in effect. A node that is not in sync with the shard may hold some
    /// that never counted: another one decided in a later term.
    fn in_effect(&self, depth: Depth) -> Lsn {
        match depth {
            Depth::Live => self.state.applied(),
            Depth::Stored => {
                let counted = self.shared.checkpoints.counted(self.shard);
                counted.min(self.state.applied())
            }
        }
    }

    /// Lets go of what is not kept by a record up to this one. Of what stays, that which surely counts goes to a block.
    fn let_go(&mut self, kept_up_to: Lsn) {
        self.effects = Effects::default();
        let last = self.shared.journal.last_lsn(self.shard);
        self.state.let_go(kept_up_to, last);
        self.state.page_kept();
        self.show_backlog();
        self.say_gone();
    }

    fn say_gone(&mut self) {
        if self.state.traces() == 0 && !self.leaving.is_empty() {
            self.shared.checkpoints.raise(self.shard, self.low_mark());
            for reply in self.leaving.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    /// Of a shard that is elsewhere, a keep that a replay found is written to a block after a while: had it not counted,
    /// this node would have been told by then, if it were to hold the shard again.
    fn page_what_was_left(&mut self, now: UnixNanos) {
        let long = |left_at: UnixNanos| now.since(left_at) >= LEFT_MS * UnixNanos::PER_MILLI;
        if self.left_at.is_some_and(long) {
            self.state.count(Lsn(u64::MAX));
            self.state.page_kept();
        }
    }

    fn committed(&mut self, commit: ShardCommit, step: &Step<'_>) {
        let lsn = commit.lsn;
        self.state.count(lsn);
        match commit.record {
            ReplicaRecord::Spans {
                batch,
                epoch,
                rows,
                start,
                end,
                again,
                credit,
                request,
            } => {
                let rows = rows.get(start..end).unwrap_or_default();
                let scanned = Step {
                    epoch: &epoch,
                    ..*step
                };
                self.apply(again, lsn, &batch, rows, &scanned);
                drop(request);
                self.credit.join(credit);
            }
            ReplicaRecord::Verdicts { records, again } => {
                self.decided(again, lsn, &records, step);
                // Each verdict is counted once in the cluster, by whoever decided it.
                if self.role == ShardRole::Primary && !again {
                    crate::meters::decided(&records, step.now);
                }
            }
        }
    }

    fn apply(&mut self, again: bool, lsn: Lsn, batch: &SpanBatch, rows: &[u32], step: &Step<'_>) {
        let node = self.shared.node.0;
        if tracing::enabled!(tracing::Level::TRACE) {
            let spans = rows.iter().filter_map(|row| batch.spans.get(*row as usize));
            for span in spans {
                tracing::trace!(node, trace = %span.trace_id, again, lsn = lsn.0, "a span counts");
            }
        }
        let (state, effects) = (&mut self.state, &mut self.effects);
        let applied = if again {
            state.apply_again(lsn, batch, rows, step, effects)
        } else {
            state.apply(lsn, batch, rows, step, effects)
        };
        if self.role == ShardRole::Primary && !again {
            crate::meters::applied(&applied, self.shard);
        }
    }

    fn decided(&mut self, again: bool, lsn: Lsn, records: &[VerdictRecord], step: &Step<'_>) {
        for record in records {
            let (node, trace, verdict) = (self.shared.node.0, &record.trace_id, record.verdict);
            let (trigger, references) = (record.trigger, &record.references);
            tracing::trace!(node, %trace, again, lsn = lsn.0, ?verdict, ?trigger, ?references, "a verdict counts");
        }
        let (state, effects) = (&mut self.state, &mut self.effects);
        if again {
            state.verdicts_again(lsn, records, step, effects);
        } else {
            state.verdicts_committed(lsn, records, step, effects);
        }
    }

    fn tick(&mut self, step: &Step<'_>) {
        self.state.tick(step, &mut self.effects);
        self.page_what_was_left(step.now);
        self.shared.checkpoints.raise(self.shard, self.low_mark());
        self.show_backlog();
    }

    fn show_backlog(&self) {
        let gauges = &self.shared.gauges;
        let shard = usize::from(self.shard.0);
        let (unpaged, _, _) = self.state.unpaged();
        let (own, shipped) = self.state.backlog();
        gauges.open_traces[shard].store(self.state.open_traces() as u64, Ordering::Relaxed);
        gauges.unpaged_traces[shard].store(unpaged as u64, Ordering::Relaxed);
        let (led, followed) = match self.role {
            ShardRole::Follower => (own, shipped),
            ShardRole::Primary | ShardRole::None => (own.and(shipped), PagingBacklog::default()),
        };
        for (waiting, backlog) in [(&gauges.led, led), (&gauges.followed, followed)] {
            let oldest = match backlog.oldest {
                None => u64::MAX,
                // The pager is not to wait for more: somebody waits for it.
                Some(_) if !self.leaving.is_empty() => 0,
                Some(at) => at.0,
            };
            waiting.set(self.shard, backlog.bytes, backlog.records, oldest);
        }
    }

    /// Replay starts behind the low-water mark.
    fn low_mark(&self) -> Lsn {
        Lsn(self.state.low_water().0.saturating_sub(1))
    }

    /// Performs the effects: verdicts to the writer, questions to the journal.
    fn perform(&mut self, myself: &ActorRef<AssemblerMessage>) {
        let Some(writer) = self.writer.clone() else {
            return;
        };
        if self.role == ShardRole::Primary && !self.effects.verdicts.is_empty() {
            let mut verdicts = std::mem::take(&mut self.effects.verdicts);
            let checkpoints = &self.shared.checkpoints;
            // A drop that is kept after all needs records again that a trim may take any moment.
            let needs_again = |record: &VerdictRecord| {
                let first = record.references.first();
                record.verdict == Verdict::Keep
                    && first.is_some_and(|first| *first <= checkpoints.mark(self.shard))
            };
            if verdicts.iter().any(needs_again) {
                checkpoints.lower(self.shard, self.low_mark());
            }
            while !verdicts.is_empty() {
                let later = verdicts.split_off(verdicts.len().min(RECORD_VERDICTS));
                let record = std::mem::replace(&mut verdicts, later);
                // The node is stopping when the writer is gone: replay decides again.
                let _ = writer.cast(WriterMessage::Verdicts(self.shard, self.reign, record));
            }
        }
        self.recall(&writer, myself);
        for (tenant, trace_id) in self.effects.confirm.drain(..) {
            let (shared, shard, myself) = (Arc::clone(&self.shared), self.shard, myself.clone());
            self.shared.spawn_job("assembler", async move {
                let found = earlier(&shared, &myself, shard, &tenant, trace_id).await;
                let _ = myself.cast(AssemblerMessage::Confirmed(tenant, trace_id, found));
            });
        }
    }

    /// Brings spans here that are elsewhere, of one trace after the other.
    fn recall(&mut self, writer: &ActorRef<WriterMessage>, myself: &ActorRef<AssemblerMessage>) {
        for wanted in self.effects.recall.drain(..) {
            // A trace whose late spans keep coming is brought here once.
            let is_known = self.recalls.iter().any(|(known, _)| *known == wanted);
            if is_known {
                continue;
            }
            if self.recalls.len() < MAX_RECALLS {
                self.recalls.push_back((wanted, RECALL_TRIES));
            } else {
                not_brought_here(self.shard, &wanted);
            }
        }
        if self.role != ShardRole::Primary {
            self.recalls.clear();
        }
        let under_way = self.recalls.len() + usize::from(self.recalling);
        self.shared.gauges.recalls[usize::from(self.shard.0)]
            .store(under_way as u64, Ordering::Relaxed);
        let Some(cluster) = self.cluster.clone().filter(|_| !self.recalling) else {
            return;
        };
        let Some((wanted, tries)) = self.recalls.pop_front() else {
            return;
        };
        self.recalling = true;
        let again = Again {
            shared: Arc::clone(&self.shared),
            writer: writer.clone(),
            assembler: myself.clone(),
            shard: self.shard,
        };
        let myself = myself.clone();
        self.shared.spawn_job("recall", async move {
            let is_here = recall(&again, &cluster, &wanted, tries <= 1).await;
            if !is_here {
                // Whoever is down may be back by then; the others of the queue wait for it too.
                tokio::time::sleep(Duration::from_millis(RECALL_PAUSE_MS)).await;
            }
            let failed = (!is_here).then_some((wanted, tries.saturating_sub(1)));
            let _ = myself.cast(AssemblerMessage::Recalled(failed));
        });
    }

    /// What could not be brought here goes to the back of the queue, some times.
    fn recall_later(&mut self, failed: Option<(Recall, u32)>) {
        match failed {
            Some((wanted, 0)) => not_brought_here(self.shard, &wanted),
            Some(again) => self.recalls.push_back(again),
            None => {}
        }
    }

    /// Makes the credit equal to the memory in use. What the charge of a batch did not foresee is taken if there is
    /// any, and seen by the pressure otherwise.
    fn settle(&mut self) {
        let used = self.state.memory_bytes();
        self.credit.shrink_to(used);
        let lacking = used.saturating_sub(self.credit.bytes());
        if lacking > 0 && !self.credit.try_grow(lacking) {
            crate::meters::uncovered(lacking);
        }
        let (gauges, shard) = (&self.shared.gauges, usize::from(self.shard.0));
        gauges.entry_credit[shard].store(self.credit.bytes(), Ordering::Relaxed);
        gauges.entry_bytes[shard].store(used, Ordering::Relaxed);
    }
}

/// What was decided of a trace before. While the disk cannot be read, the trace waits: decided anew, it might be dropped
/// after it was kept. What is damaged is gone.
async fn earlier(
    shared: &Arc<Shared>,
    assembler: &ActorRef<AssemblerMessage>,
    shard: ShardId,
    tenant: &TenantId,
    trace_id: TraceId,
) -> Option<Earlier> {
    let mut was_told = false;
    while assembler.get_status() < ActorStatus::Stopping {
        let (stores, owner) = (Arc::clone(shared), tenant.clone());
        let read = move || stores.earlier(shard, &owner, trace_id);
        match shared.env.block(read).await {
            Ok(found) => return found,
            Err(error) if error.is_damage => {
                tracing::error!(%error, trace = %trace_id, "a verdict is damaged, its trace is decided anew");
                return None;
            }
            Err(error) if !was_told => {
                was_told = true;
                tracing::error!(%error, trace = %trace_id, "a verdict is not readable, its trace waits");
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(UNREADABLE_PAUSE_MS)).await;
    }
    None
}
