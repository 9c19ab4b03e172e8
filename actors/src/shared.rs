//! What all actors of a node share: storage, settings in force, memory.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures_util::FutureExt;
use spandrel_model::credit::CreditPool;
use spandrel_model::error::ErrorClass;
use spandrel_model::ids::{NodeId, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::policy::Limiters;
use spandrel_model::routing::ShardRouter;
use spandrel_model::verdict::{NO_POLICY, PROMOTED_POLICY, Verdict, VerdictRecord};
use spandrel_storage::block::{BlockError, BlockStore};
use spandrel_storage::index::IndexStore;
use spandrel_storage::journal::Journal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assembler::Earlier;
use crate::buggify::Site;
use crate::checkpoints::Checkpoints;
use crate::disk_hang::DiskHang;
use crate::disk_room::Watermarks;
use crate::env::Env;
use crate::meters::{Stage, StageCounters};
use crate::recent::RecentSummaries;
use crate::replication::{DecidedLately, FollowerPressure};
use crate::settings::Epoch;

/// Gauges that actors write and the status page and the metrics read.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) open_traces: Vec<AtomicU64>,
    pub(crate) unpaged_traces: Vec<AtomicU64>,
    /// Kept traces that a page may be built of, of shards that are led here or were left.
    pub(crate) led: Waiting,
    /// And of those that are followed, whose primary ships the pages.
    pub(crate) followed: Waiting,
    /// Credit that each shard holds for its entries, in bytes, and what they take.
    pub(crate) entry_credit: Vec<AtomicU64>,
    pub(crate) entry_bytes: Vec<AtomicU64>,
    /// Traces of which earlier spans are being brought here.
    pub(crate) recalls: Vec<AtomicU64>,
}

/// Kept traces that wait for a page, by shard.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Bytes of their spans.
    bytes: Vec<AtomicU64>,
    /// Records that a restart must read because of them alone.
    records: Vec<AtomicU64>,
    /// When the oldest ready trace was kept, in Unix nanoseconds; `u64::MAX` when none waits.
    oldest: Vec<AtomicU64>,
}

impl Waiting {
    fn new(shards: u16) -> Self {
        let all = |value| (0..shards).map(|_| AtomicU64::new(value)).collect();
        Self {
            bytes: all(0),
            records: all(0),
            oldest: all(u64::MAX),
        }
    }

    pub(crate) fn set(&self, shard: ShardId, bytes: u64, records: u64, oldest: u64) {
        let shard = usize::from(shard.0);
        self.bytes[shard].store(bytes, Ordering::Relaxed);
        self.records[shard].store(records, Ordering::Relaxed);
        self.oldest[shard].store(oldest, Ordering::Relaxed);
    }

    /// Of all shards.
    pub(crate) fn bytes(&self) -> u64 {
        Gauges::total(&self.bytes)
    }

    /// Of the shard with most of them.
    pub(crate) fn most_records(&self) -> u64 {
        let records = self.records.iter();
        let records = records.map(|records| records.load(Ordering::Relaxed));
        records.max().unwrap_or(0)
    }

    /// Of all shards.
    pub(crate) fn oldest(&self) -> UnixNanos {
        let oldest = self.oldest.iter();
        let oldest = oldest.map(|value| value.load(Ordering::Relaxed));
        UnixNanos(oldest.min().unwrap_or(u64::MAX))
    }
}

impl Gauges {
    fn new(shards: u16) -> Self {
        let zeros = || (0..shards).map(|_| AtomicU64::new(0)).collect();
        Self {
            open_traces: zeros(),
            unpaged_traces: zeros(),
            led: Waiting::new(shards),
            followed: Waiting::new(shards),
            entry_credit: zeros(),
            entry_bytes: zeros(),
            recalls: zeros(),
        }
    }

    pub(crate) fn total(values: &[AtomicU64]) -> u64 {
        values
            .iter()
            .map(|value| value.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn oldest(&self) -> UnixNanos {
        self.led.oldest().min(self.followed.oldest())
    }
}

/// What was decided of a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Unreadable {
    reason: String,
    /// The bytes are wrong, and will be: another try is in vain.
    pub(crate) is_damage: bool,
}

/// What blocks hold of a trace. What is damaged counts as lost: one page must hold up neither a start nor other traces.
pub(crate) fn or_lost<T: Default>(
    trace: TraceId,
    read: Result<T, BlockError>,
) -> Result<T, BlockError> {
    match read {
        Err(error) if error.is_damage() => {
            tracing::warn!(%trace, %error, "what is stored of a trace is not read");
            Ok(T::default())
        }
        read => read,
    }
}

/// Shared by reference between all actors of one node.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) node: NodeId,
    pub(crate) router: ShardRouter,
    pub(crate) bucket_nanos: u64,
    pub(crate) journal: Arc<Journal>,
    pub(crate) blocks: Arc<BlockStore>,
    pub(crate) index: Arc<IndexStore>,
    pub(crate) recent: RecentSummaries,
    pub(crate) pool: Arc<CreditPool>,
    pub(crate) limiters: Mutex<Limiters>,
    pub(crate) gauges: Gauges,
    pub(crate) checkpoints: Checkpoints,
    stages: StageCounters,
    epoch: RwLock<Arc<Epoch>>,
    /// The node's own memory pressure, and the highest of it and its followers'.
    own_pressure: AtomicU8,
    pressure: AtomicU8,
    pub(crate) follower_pressure: FollowerPressure,
    pub(crate) decided_lately: DecidedLately,
    /// What is left of the own disk.
    pub(crate) disk: Watermarks,
    /// Whether it answers.
    pub(crate) disk_hang: DiskHang,
    /// Records of the journal were lost: what this node kept may lack spans that others have.
    pub(crate) has_holes: AtomicBool,
    /// Held by whoever writes to a block and shows what it wrote.
    pub(crate) block_writes: Mutex<()>,
    /// Buckets that are still to be compared with other nodes, and those that were and yet may differ.
    pub(crate) uncompared: AtomicU64,
    pub(crate) differing: AtomicU64,
    /// The bucket that is being compared; `u64::MAX`: none.
    pub(crate) comparing: AtomicU64,
    /// The bucket that older data is being copied to; `u64::MAX`: none.
    pub(crate) copying: AtomicU64,
    /// What runs beside the actors.
    jobs: TaskTracker,
    /// Jobs go no further: the node stops.
    stopping: CancellationToken,
}

/// What [`Shared::new`] takes.
pub(crate) struct SharedParts {
    pub(crate) env: Env,
    pub(crate) node: NodeId,
    pub(crate) router: ShardRouter,
    pub(crate) bucket_nanos: u64,
    pub(crate) journal: Arc<Journal>,
    pub(crate) blocks: Arc<BlockStore>,
    pub(crate) index: Arc<IndexStore>,
    pub(crate) pool: Arc<CreditPool>,
    pub(crate) epoch: Arc<Epoch>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Self {
        Self {
            limiters: Mutex::new(Limiters::new(parts.epoch.current().set())),
            gauges: Gauges::new(parts.router.shards()),
            recent: RecentSummaries::default(),
            checkpoints: Checkpoints::read(&parts.journal, parts.router.shards()),
            stages: StageCounters::new(),
            env: parts.env,
            node: parts.node,
            router: parts.router,
            bucket_nanos: parts.bucket_nanos,
            journal: parts.journal,
            blocks: parts.blocks,
            index: parts.index,
            pool: parts.pool,
            epoch: RwLock::new(parts.epoch),
            own_pressure: AtomicU8::new(0),
            pressure: AtomicU8::new(0),
            follower_pressure: FollowerPressure::default(),
            decided_lately: DecidedLately::default(),
            disk: Watermarks::default(),
            disk_hang: DiskHang::default(),
            has_holes: AtomicBool::new(false),
            block_writes: Mutex::new(()),
            uncompared: AtomicU64::new(0),
            differing: AtomicU64::new(0),
            comparing: AtomicU64::new(u64::MAX),
            copying: AtomicU64::new(u64::MAX),
            jobs: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Runs a step of a stage and counts its processor time.
    pub(crate) fn measured<T>(&self, stage: Stage, step: impl FnOnce() -> T) -> T {
        self.measured_for(stage, 1, step)
    }

    /// Runs a step that stands for so many of its kind, and counts as much processor time for each.
    pub(crate) fn measured_for<T>(&self, stage: Stage, steps: u64, step: impl FnOnce() -> T) -> T {
        let clock = &self.env.clock;
        let before = clock.thread_cpu_nanos();
        let result = step();
        let used = clock.thread_cpu_nanos().saturating_sub(before);
        self.stages.add(stage, used * steps);
        result
    }

    /// Runs blocking work of a stage, and counts its processor time.
    pub(crate) async fn block<T: Send + 'static>(
        self: &Arc<Self>,
        stage: Stage,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let shared = Arc::clone(self);
        let work = move || shared.measured(stage, work);
        self.env.block(work).await
    }

    /// Runs a stage's work on so many bytes, which needs the processor alone: at once when that takes no longer than the
    /// scan of a request, since to hand it to another thread and to wait for it switches threads twice.
    pub(crate) async fn compute<T: Send + 'static>(
        self: &Arc<Self>,
        stage: Stage,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if bytes <= self.env.inline_work_bytes() {
            return self.measured(stage, work);
        }
        self.block(stage, work).await
    }

    /// The settings in force.
    pub(crate) fn epoch(&self) -> Arc<Epoch> {
        Arc::clone(&self.epoch.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts newer settings in force; older ones change nothing.
    pub(crate) fn set_epoch(&self, epoch: Arc<Epoch>) {
        let mut current = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
        let (before, after) = (current.versions(), epoch.versions());
        if after.0 < before.0 || after.1 < before.1 {
            return;
        }
        self.limiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .adopt(epoch.current().set());
        *current = epoch;
    }

    /// The pressure of this node's own memory, as [`Self::pressure`].
    pub(crate) fn own_pressure(&self) -> u8 {
        self.own_pressure.load(Ordering::Relaxed)
    }

    pub(crate) fn set_own_pressure(&self, level: u8) {
        self.own_pressure.store(level, Ordering::Relaxed);
    }

    /// The highest memory pressure of this node and its followers: 0 none, 1 the pool fills, 2 traces are decided early, 3
    /// healthy sampling is tightened.
    pub(crate) fn pressure(&self) -> u8 {
        self.pressure.load(Ordering::Relaxed)
    }

    /// The pressure as people are told of it: 4 when the disk has no room for spans.
    pub(crate) fn told_pressure(&self) -> u8 {
        if self.disk.refuses() {
            4
        } else {
            self.pressure()
        }
    }

    pub(crate) fn set_pressure(&self, level: u8) {
        self.pressure.store(level, Ordering::Relaxed);
    }

    /// Runs a step of an actor's work beside the actor. A panic in it would leave the actor waiting for ever, so it
    /// stops the node: what is durable is replayed.
    pub(crate) fn spawn_job(
        &self,
        what: &'static str,
        job: impl Future<Output = ()> + Send + 'static,
    ) {
        let halt = Arc::clone(&self.env.halt);
        let (buggify, stopping) = (self.env.buggify.clone(), self.stopping.clone());
        self.jobs.spawn(async move {
            let job = async move {
                buggify.pause(Site::JobLate).await;
                job.await;
            };
            let job = AssertUnwindSafe(stopping.run_until_cancelled(job));
            if job.catch_unwind().await.is_err() {
                halt(&format!("a job of the {what} panicked"));
            }
        });
    }

    /// Lets jobs go no further, and waits until none is left: the last of them hold the journal open, and whoever starts
    /// on the directory would share it. The actors have stopped: nobody waits for what a job would say.
    pub(crate) async fn end_jobs(&self) {
        self.stopping.cancel();
        self.jobs.close();
        self.jobs.wait().await;
    }

    /// The shard of a trace.
    pub(crate) fn shard(&self, tenant: &TenantId, trace_id: TraceId) -> ShardId {
        self.router
            .shard(self.router.hash(self.router.tenant_seed(tenant), trace_id))
    }

    /// What was decided of a trace, as the journal and the blocks know it. Reads from the disk.
    pub(crate) fn earlier(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<Option<Earlier>, Unreadable> {
        let found = self.journal.verdict(shard, tenant, trace_id);
        let found = found.map_err(|error| Unreadable {
            is_damage: error.class() == ErrorClass::Corrupt,
            reason: error.to_string(),
        });
        let Some(record) = found? else {
            return Ok(None);
        };
        let is_here = match record.verdict {
            Verdict::Drop => true,
            Verdict::Keep => self.is_stored(shard, tenant, trace_id)?,
        };
        Ok(Some(Earlier { record, is_here }))
    }

    /// Whether the blocks hold spans of a trace. What is damaged they do not hold; the trace stays kept.
    fn is_stored(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<bool, Unreadable> {
        let summary = self.blocks.summary_of(tenant, shard, trace_id);
        match or_lost(trace_id, summary) {
            Ok(summary) => Ok(summary.is_some()),
            Err(error) => Err(Unreadable {
                is_damage: false,
                reason: error.to_string(),
            }),
        }
    }

    /// The name of the policy that decided, if its set is still held.
    pub(crate) fn policy_name(&self, record: &VerdictRecord) -> Arc<str> {
        let epoch = self.epoch();
        let set = epoch.policy(record.policy_version).set();
        let fixed = matches!(record.policy, NO_POLICY | PROMOTED_POLICY);
        if fixed || set.version() == record.policy_version {
            Arc::from(set.policy_name(record.policy))
        } else {
            Arc::from(format!(
                "#{} of version {}",
                record.policy, record.policy_version
            ))
        }
    }
}
