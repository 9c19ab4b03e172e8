//! The pager: turns kept traces into pages of block files. It walks the journal's frames, each once a job. Pages of the
//! shards that the node leads go to their followers too, which build those themselves that do not come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{NodeId, ShardId, UnixNanos};
use spandrel_raft::ClusterState;
use tokio::sync::{oneshot, watch};

pub(crate) use self::commit::{SpansFrom, commit_pages};
pub(crate) use self::receive::PageIntake;
pub(crate) use self::shipper::{Shipper, ShipperArguments, ShipperMessage};
use self::write::{Buffers, write_pages};
use crate::assembler::{KeptTrace, PagedTrace, PagingScope};
use crate::assembler_message::AssemblerMessage;
use crate::buggify::Site;
use crate::limits::{PAGE_MAX_AGE_MS, PAGE_MAX_RECORDS, PAGING_SHARE_256, SHIPMENT_WAIT_MS};
use crate::meters::Stage;
use crate::shared::{Gauges, Shared};

mod commit;
mod gather;
mod receive;
mod shipment;
#[cfg(test)]
mod shipment_oracle;
mod shipper;
mod write;

/// Budgets of spans of which a follower waits for pages: only their entries are in memory, a twentieth of the spans.
const FOLLOWED_BUDGETS: u64 = 8;
/// As [`PAGE_MAX_RECORDS`], of a shard whose primary is to ship the pages.
const FOLLOWED_RECORDS: u64 = 4 * PAGE_MAX_RECORDS;
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
    /// Takes what followers are to get.
    pub(crate) shipper: ActorRef<ShipperMessage>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
}

pub(crate) struct PagerState {
    shared: Arc<Shared>,
    shards: Vec<ActorRef<AssemblerMessage>>,
    max_age_ms: u64,
    cluster: watch::Receiver<Arc<ClusterState>>,
    shipper: ActorRef<ShipperMessage>,
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
            cluster: arguments.cluster,
            shipper: arguments.shipper,
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
                if let Err(error) = state.run_due().await {
                    tracing::error!(error, "pages not written, their traces wait in the journal");
                }
                myself.send_after(Duration::from_millis(PAGER_TICK_MS), || PagerMessage::Tick);
            }
            PagerMessage::Flush(reply) => {
                let everything = PagingScope {
                    all: true,
                    followed: true,
                };
                let _ = reply.send(state.run_while_full(everything).await);
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

    /// Writes what is due. Pages of shards that are followed come from their primaries, which find them due at about the
    /// time at which this node would: it builds them itself when they do not come.
    async fn run_due(&mut self) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let (gauges, pressure) = (&shared.gauges, shared.pressure());
        let (led, followed) = (&gauges.led, &gauges.followed);
        let waited = |since| shared.env.now().since(since) / UnixNanos::PER_MILLI;
        let max_age = self.max_age_ms.min(PAGE_MAX_AGE_MS);
        let is_pressed = pressure >= 1 && Gauges::total(&gauges.unpaged_traces) > 0;
        let scope = PagingScope {
            // Under pressure traces that still wait for spans are written too: the rest comes as a fragment.
            all: pressure >= 2,
            // Of followers under pressure this node leads what they wait for.
            followed: is_pressed && shared.own_pressure() >= 1,
        };
        let is_due = led.bytes() >= self.budget()
            || led.most_records() >= PAGE_MAX_RECORDS
            || waited(led.oldest()) >= max_age
            || shared.env.buggify.strikes(Site::PagedNow);
        if is_due || is_pressed {
            self.run_while_full(scope).await?;
        }
        let is_overdue = followed.bytes() >= FOLLOWED_BUDGETS * self.budget()
            || followed.most_records() >= FOLLOWED_RECORDS
            || waited(followed.oldest()) >= max_age + SHIPMENT_WAIT_MS;
        if is_overdue && !scope.followed {
            // The oldest alone: the others may be on their way.
            let scope = PagingScope {
                followed: true,
                ..scope
            };
            let (bytes, records) = (followed.bytes(), followed.most_records());
            tracing::debug!(bytes, records, "pages of primaries have not come");
            self.run(self.budget(), scope).await?;
        }
        Ok(())
    }

    /// Who follows the shards that this node leads, by shard.
    fn followers(&self) -> Vec<Arc<[NodeId]>> {
        let (state, me) = (self.cluster.borrow(), self.shared.node);
        let followers = state.shard_map.iter().map(|record| {
            let others = record.isr.iter().copied().filter(|node| *node != me);
            match record.primary == me {
                true => others.collect(),
                false => Arc::default(),
            }
        });
        followers.collect()
    }

    /// Runs jobs until one takes all that waits: a pause after each job would bound what a node can keep.
    async fn run_while_full(&mut self, scope: PagingScope) -> Result<(), String> {
        while self.run(self.budget(), scope).await? {}
        Ok(())
    }

    /// Writes pages of what is ready, about `budget` bytes of spans; true when more waits.
    async fn run(&mut self, budget: u64, scope: PagingScope) -> Result<bool, String> {
        let Some((until, more)) = self.cut(budget, scope).await else {
            return Ok(false);
        };
        let mut kept: Vec<(ShardId, KeptTrace)> = Vec::new();
        for (shard, taken) in self
            .ask(|reply| AssemblerMessage::CollectKept(until, scope, reply))
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
        let followers = self.followers();
        let job = move || {
            let result = write_pages(&shared, &mut buffers, kept, &followers);
            (result, buffers)
        };
        let (result, buffers) = self.shared.block(Stage::Page, job).await;
        self.buffers = buffers;
        for (shard, keys) in keys {
            let message = match &result {
                Ok(_) => AssemblerMessage::Paged(keys),
                Err(_) => AssemblerMessage::PagingFailed(keys),
            };
            let _ = self.shards[usize::from(shard.0)].cast(message);
        }
        let _ = self.shipper.cast(ShipperMessage::Ship(result?));
        Ok(more)
    }

    /// The moment up to which the traces that wait have about `budget` bytes of spans. All shards cut at one moment,
    /// so that a job reads a run of frames of which the next job needs next to nothing. The flag: more waits behind it.
    async fn cut(&self, budget: u64, scope: PagingScope) -> Option<(UnixNanos, bool)> {
        // Shards are about equally busy; one that lists less than it has ends the job early.
        let share = 4 * budget / self.shards.len().max(1) as u64;
        let mut waiting: Vec<(UnixNanos, u64)> = Vec::new();
        let (mut until, mut unlisted) = (UnixNanos(u64::MAX), false);
        for (_, (backlog, more)) in self
            .ask(|reply| AssemblerMessage::KeptBacklog(share, scope, reply))
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
