//! The pager: turns kept traces into pages of block files. It walks the journal's frames, each once a job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{ShardId, UnixNanos};
use tokio::sync::oneshot;

pub(crate) use self::commit::{SpansFrom, commit_pages};
use self::write::{Buffers, write_pages};
use crate::assembler::{KeptTrace, PagedTrace};
use crate::assembler_actor::AssemblerMessage;
use crate::limits::{PAGE_MAX_AGE_MS, PAGE_MAX_RECORDS, PAGING_SHARE_256};
use crate::meters::Stage;
use crate::shared::{Gauges, Shared};

mod commit;
mod gather;
mod write;

/// Milliseconds between two looks at what waits.
const PAGER_TICK_MS: u64 = 250;

pub(crate) enum PagerMessage {
    Tick,
    /// Page everything that is kept, then answer.
    Flush(oneshot::Sender<Result<(), String>>),
}

impl ractor::Message for PagerMessage {}

/// The actor.
pub(crate) struct Pager;

pub(crate) struct PagerArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<ActorRef<AssemblerMessage>>,
    /// Half of the recovery window: no kept trace may wait longer for its page.
    pub(crate) max_age_ms: u64,
}

pub(crate) struct PagerState {
    shared: Arc<Shared>,
    shards: Vec<ActorRef<AssemblerMessage>>,
    max_age_ms: u64,
    buffers: Buffers,
}

impl Actor for Pager {
    type Msg = PagerMessage;
    type State = PagerState;
    type Arguments = PagerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<PagerMessage>,
        arguments: PagerArguments,
    ) -> Result<PagerState, ActorProcessingErr> {
        myself.send_after(Duration::from_millis(PAGER_TICK_MS), || PagerMessage::Tick);
        Ok(PagerState {
            shared: arguments.shared,
            shards: arguments.shards,
            max_age_ms: arguments.max_age_ms,
            buffers: Buffers::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PagerMessage>,
        message: PagerMessage,
        state: &mut PagerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PagerMessage::Tick => {
                if state.is_due() {
                    // Under pressure traces that still wait for spans are written too: the rest comes as a fragment.
                    let all = state.shared.pressure() >= 2;
                    if let Err(error) = state.run_while_full(all).await {
                        tracing::error!(
                            error,
                            "pages not written, their traces wait in the journal"
                        );
                    }
                }
                myself.send_after(Duration::from_millis(PAGER_TICK_MS), || PagerMessage::Tick);
            }
            PagerMessage::Flush(reply) => {
                let _ = reply.send(state.run_while_full(true).await);
            }
        }
        Ok(())
    }
}

impl PagerState {
    /// Span bytes that one job may hold.
    fn budget(&self) -> u64 {
        self.shared.pool.capacity() * PAGING_SHARE_256 / 256
    }

    fn is_due(&self) -> bool {
        let gauges = &self.shared.gauges;
        let full = Gauges::total(&gauges.pageable_bytes) >= self.budget();
        let records = gauges.pageable_records.iter();
        let records = records.map(|records| records.load(Ordering::Relaxed)).max();
        let behind = records.is_some_and(|records| records >= PAGE_MAX_RECORDS);
        let waited = self.shared.env.now().since(gauges.oldest());
        let max_age = self.max_age_ms.min(PAGE_MAX_AGE_MS) * UnixNanos::PER_MILLI;
        let pressed = self.shared.pressure() >= 1 && Gauges::total(&gauges.unpaged_traces) > 0;
        full || behind || waited >= max_age || pressed
    }

    /// Runs jobs until one takes all that waits: a pause after each job would bound what a node can keep.
    async fn run_while_full(&mut self, all: bool) -> Result<(), String> {
        while self.run(self.budget(), all).await? {}
        Ok(())
    }

    /// Writes pages of what is ready (`all`: of everything kept), about `budget` bytes of spans; true when more waits.
    async fn run(&mut self, budget: u64, all: bool) -> Result<bool, String> {
        let Some((until, more)) = self.cut(budget, all).await else {
            return Ok(false);
        };
        let mut kept: Vec<(ShardId, KeptTrace)> = Vec::new();
        for (shard, taken) in self
            .ask(|reply| AssemblerMessage::CollectKept(until, all, reply))
            .await
        {
            kept.extend(taken.into_iter().map(|trace| (shard, trace)));
        }
        if kept.is_empty() {
            return Ok(false);
        }
        let mut keys: BTreeMap<ShardId, Vec<PagedTrace>> = BTreeMap::new();
        for (shard, trace) in &kept {
            keys.entry(*shard).or_default().push(trace.paged());
        }
        let shared = Arc::clone(&self.shared);
        let mut buffers = std::mem::take(&mut self.buffers);
        let job = move || {
            let result = write_pages(&shared, &mut buffers, kept);
            (result, buffers)
        };
        let (result, buffers) = self.shared.block(Stage::Page, job).await;
        self.buffers = buffers;
        for (shard, keys) in keys {
            let message = match &result {
                Ok(()) => AssemblerMessage::Paged(keys),
                Err(_) => AssemblerMessage::PagingFailed(keys),
            };
            let _ = self.shards[usize::from(shard.0)].cast(message);
        }
        result.map(|()| more)
    }

    /// The moment up to which the traces that wait have about `budget` bytes of spans. All shards cut at one moment,
    /// so that a job reads a run of frames of which the next job needs next to nothing. The flag: more waits behind it.
    async fn cut(&self, budget: u64, all: bool) -> Option<(UnixNanos, bool)> {
        // Shards are about equally busy; one that lists less than it has ends the job early.
        let share = 4 * budget / self.shards.len().max(1) as u64;
        let mut waiting: Vec<(UnixNanos, u64)> = Vec::new();
        let (mut until, mut unlisted) = (UnixNanos(u64::MAX), false);
        for (_, (backlog, more)) in self
            .ask(|reply| AssemblerMessage::KeptBacklog(share, all, reply))
            .await
        {
            if let (Some((last, _)), true) = (backlog.last(), more) {
                until = until.min(*last);
                unlisted = true;
            }
            waiting.extend(backlog);
        }
        waiting.sort_unstable();
        let mut bytes = 0;
        let mut within = waiting.iter().take_while(|(_, of_one)| {
            let take = bytes < budget;
            bytes += of_one;
            take
        });
        let first = within.next()?.0;
        let last = within.last().map_or(first, |(at, _)| *at);
        let until = last.min(until);
        let more = unlisted || waiting.last().is_some_and(|(at, _)| *at > until);
        Some((until, more))
    }

    /// Asks every shard; those that are stopping do not answer.
    async fn ask<T>(
        &self,
        message: impl Fn(oneshot::Sender<T>) -> AssemblerMessage,
    ) -> Vec<(ShardId, T)> {
        let mut asked = Vec::with_capacity(self.shards.len());
        for (number, shard) in (0u16..).zip(&self.shards) {
            let (reply, answer) = oneshot::channel();
            if shard.cast(message(reply)).is_ok() {
                asked.push((ShardId(number), answer));
            }
        }
        let mut answers = Vec::with_capacity(asked.len());
        for (shard, answer) in asked {
            answers.extend(answer.await.ok().map(|answer| (shard, answer)));
        }
        answers
    }
}
