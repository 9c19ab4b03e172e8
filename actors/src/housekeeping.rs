//! The housekeeper: once a second it reads the memory pressure, prepares journal slices, trims what nobody needs,
//! expires what is old, and watches the disk's reserve.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{Bucket, UnixNanos};
use spandrel_raft::ClusterState;
use tokio::sync::watch;

use crate::assembler_message::AssemblerMessage;
use crate::buggify::Site;
use crate::disk_room::DiskRoom;
use crate::limits::{
    DISK_RESERVE_BYTES, DISK_RESERVE_PERCENT, FOLLOWER_RELIEF_PERCENT, HOUSEKEEPING_TICK_MS,
    PAGE_MAX_AGE_MS, PRESSURE_EARLY_PERCENT, PRESSURE_RELEASE_PERCENT, PRESSURE_TIGHTEN_PERCENT,
};
use crate::meters::Stage;
use crate::node::NodeOptions;
use crate::placement::can_do_without;
use crate::shared::{Gauges, Shared};

/// Rounds between two trims: each looks at every slice and every block.
const TRIM_EVERY_ROUNDS: u64 = 5;
const DAY_SECONDS: u64 = 86_400;

pub(crate) struct Housekeeper;

pub(crate) struct HousekeeperArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<ActorRef<AssemblerMessage>>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    pub(crate) options: Arc<NodeOptions>,
}

pub(crate) struct HousekeeperState {
    arguments: HousekeeperArguments,
    round: u64,
    /// What was left of the disk when it was last looked at.
    room: DiskRoom,
}

pub(crate) struct Round;

impl ractor::Message for Round {}

impl Actor for Housekeeper {
    type Msg = Round;
    type State = HousekeeperState;
    type Arguments = HousekeeperArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Round>,
        arguments: HousekeeperArguments,
    ) -> Result<HousekeeperState, ActorProcessingErr> {
        myself.send_after(Duration::ZERO, || Round);
        Ok(HousekeeperState {
            arguments,
            round: 0,
            room: DiskRoom::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Round>,
        _: Round,
        state: &mut HousekeeperState,
    ) -> Result<(), ActorProcessingErr> {
        state.round += 1;
        state.watch_disk();
        state.press();
        state.clean().await;
        myself.send_after(Duration::from_millis(HOUSEKEEPING_TICK_MS), || Round);
        Ok(())
    }
}

impl HousekeeperState {
    /// Reads the pool and starts or ends the measures of DESIGN.md section 5.
    fn press(&mut self) {
        let shared = &self.arguments.shared;
        let (used, capacity) = (shared.pool.used(), shared.pool.capacity().max(1));
        let percent = used.saturating_mul(100) / capacity;
        let before = shared.own_pressure();
        let own = match percent {
            PRESSURE_TIGHTEN_PERCENT.. => 3,
            // Between two marks a measure goes on until the pool is below the lower one.
            PRESSURE_EARLY_PERCENT.. => before.clamp(2, 3),
            PRESSURE_RELEASE_PERCENT.. => before.clamp(1, 3),
            _ => 0,
        };
        let own = match shared.env.buggify.strikes(Site::PressureFelt) {
            true => own.max(2),
            false => own,
        };
        if own != before {
            tracing::info!(level = own, percent, "pressure changed");
            counter!("spandrel_pressure_changes_total").increment(1);
        }
        shared.set_own_pressure(own);
        let followers = shared.follower_pressure.highest();
        let level = own.max(followers).min(3);
        shared.set_pressure(level);
        let tightening = if level == 3 { 0.25 } else { 1.0 };
        shared
            .limiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_tightening(tightening);
        if (2..=3).contains(&level) {
            let target = capacity * PRESSURE_RELEASE_PERCENT / 100;
            let own_excess = used.saturating_sub(target);
            let for_followers = if followers >= 2 {
                used * FOLLOWER_RELIEF_PERCENT / 100
            } else {
                0
            };
            let shards = self.arguments.shards.len().max(1) as u64;
            let share = own_excess.max(for_followers) / shards + 1;
            for shard in &self.arguments.shards {
                let _ = shard.cast(AssemblerMessage::Relieve(share));
            }
        }
        self.report();
    }

    /// Looks at what is left of the disk, and says what follows when that changes.
    fn watch_disk(&mut self) {
        let options = &self.arguments.options;
        let shared = &self.arguments.shared;
        let Ok(space) = shared.env.disk.space(&options.data_dir) else {
            return;
        };
        let share = space.total / 100 * DISK_RESERVE_PERCENT;
        let reserve = options
            .disk_reserve_bytes
            .unwrap_or(share.max(DISK_RESERVE_BYTES));
        let (free, dir) = (space.free, options.data_dir.display());
        let room = DiskRoom::of(free, space.total, reserve, self.room);
        let before = std::mem::replace(&mut self.room, room);
        let state = self.arguments.cluster.borrow();
        let others_can = can_do_without(&state, &[shared.node]);
        shared.disk.set(room, others_can);
        match room {
            _ if room == before => {}
            DiskRoom::Enough => {
                tracing::info!(free, reserve, %dir, "the disk has room again");
            }
            DiskRoom::Short => tracing::warn!(
                free,
                reserve,
                %dir,
                "little of the disk is left: other nodes take the shards of this one, if there are enough"
            ),
            DiskRoom::Reserve | DiskRoom::HalfReserve => tracing::warn!(
                free,
                reserve,
                %dir,
                refuses = room.refuses(others_can),
                "disk reserve reached: spans are refused until there is more free space, unless others take the shards"
            ),
        }
    }

    #[allow(clippy::cast_precision_loss)] // gauges for people
    fn report(&self) {
        let shared = &self.arguments.shared;
        gauge!("spandrel_pressure_level").set(f64::from(shared.told_pressure()));
        gauge!("spandrel_credit_capacity_bytes").set(shared.pool.capacity() as f64);
        gauge!("spandrel_credit_used_bytes").set(shared.pool.used() as f64);
        gauge!("spandrel_credit_peak_bytes").set(shared.pool.peak() as f64);
        let entries = Gauges::total(&shared.gauges.entry_credit);
        gauge!("spandrel_credit_entries_bytes").set(entries as f64);
        gauge!("spandrel_open_traces").set(Gauges::total(&shared.gauges.open_traces) as f64);
        gauge!("spandrel_unpaged_traces").set(Gauges::total(&shared.gauges.unpaged_traces) as f64);
        let waiting: usize = shared.recent.waiting().iter().map(|(_, count)| count).sum();
        gauge!("spandrel_unindexed_traces").set(waiting as f64);
        let age = shared.env.now().since(shared.journal.covered_since());
        gauge!("spandrel_journal_age_seconds").set(crate::meters::seconds(age));
        gauge!("spandrel_disk_bytes", "kind" => "journal")
            .set(shared.journal.bytes_on_disk() as f64);
        let blocks = shared.blocks.buckets().unwrap_or_default();
        let bytes: u64 = blocks.iter().map(|block| block.bytes).sum();
        gauge!("spandrel_disk_bytes", "kind" => "blocks").set(bytes as f64);
        let tomorrow = shared.env.now().plus(DAY_SECONDS * UnixNanos::PER_SECOND);
        let retention = self.arguments.cluster.borrow().retention_seconds;
        let before = expired_before(shared, tomorrow, retention);
        let expiring = blocks.iter().filter(|block| block.bucket < before);
        let expiring: u64 = expiring.map(|block| block.bytes).sum();
        gauge!("spandrel_expiring_bytes_per_day").set(expiring as f64);
        gauge!("spandrel_disk_bytes", "kind" => "index").set(shared.index.bytes() as f64);
    }

    async fn clean(&mut self) {
        let shared = Arc::clone(&self.arguments.shared);
        let options = Arc::clone(&self.arguments.options);
        let retention = self.arguments.cluster.borrow().retention_seconds;
        let trims = self.round.is_multiple_of(TRIM_EVERY_ROUNDS)
            || shared.env.buggify.strikes(Site::TrimmedNow);
        self.arguments
            .shared
            .env
            .block(move || clean(&shared, &options, retention, trims))
            .await;
    }
}

fn clean(shared: &Shared, options: &NodeOptions, retention_seconds: u64, trims: bool) {
    let now = shared.env.now();
    if let Err(error) = shared.journal.maintain(now) {
        tracing::error!(%error, "journal maintenance failed");
    }
    if let Err(error) = shared.checkpoints.write(&shared.journal) {
        // Nothing is lost, but none will be written any more, and no copy of a shard can begin here.
        (shared.env.halt)(&format!("checkpoints cannot be written: {error}"));
    }
    if !trims {
        return;
    }
    let window = options.recovery_window_seconds * UnixNanos::PER_SECOND;
    let (journal, most) = (&shared.journal, options.journal_max_bytes);
    let trimmed = shared
        .checkpoints
        .trimming(|needed| journal.trim(needed, window, most, now));
    match trimmed {
        Ok(trimmed) => {
            counter!("spandrel_journal_slices_trimmed_total").increment(trimmed.len() as u64)
        }
        Err(error) => tracing::error!(%error, "journal not trimmed"),
    }
    expire(shared, now, retention_seconds);
    seal_one(shared, now);
}

/// Seals a bucket that no page is expected for any more: its small pages become full ones, its filter is stored.
/// One a call, because the pages of a bucket are read and written again.
fn seal_one(shared: &Shared, now: UnixNanos) {
    let waited = PAGE_MAX_AGE_MS * UnixNanos::PER_MILLI;
    // What is copied, or counted and compared, stays where it is.
    let busy = [&shared.copying, &shared.comparing].map(|it| it.load(Ordering::Relaxed));
    let due = shared
        .blocks
        .buckets()
        .unwrap_or_default()
        .into_iter()
        .find(|block| {
            let end = block.bucket.end(shared.bucket_nanos);
            let is_busy = busy.contains(&u64::from(block.bucket.0));
            let is_open = !block.sealed && block.unopenable.is_none();
            is_open && !is_busy && now.since(end) > waited
        });
    if let Some(block) = due
        && let Err(error) = shared.measured(Stage::Seal, || shared.blocks.seal(block.bucket))
    {
        tracing::error!(bucket = block.bucket.0, %error, "bucket not sealed");
    }
}

/// The buckets before this one have expired by `at`.
pub(crate) fn expired_before(shared: &Shared, at: UnixNanos, retention_seconds: u64) -> Bucket {
    let retention = retention_seconds.saturating_mul(UnixNanos::PER_SECOND);
    Bucket::containing(at.minus(retention), shared.bucket_nanos)
}

/// Removes buckets whose last possible trace is older than the retention: not early, at most one bucket late.
fn expire(shared: &Shared, now: UnixNanos, retention_seconds: u64) {
    let before = expired_before(shared, now, retention_seconds);
    match shared.blocks.expire(before) {
        Ok(expired) if expired.is_empty() => return,
        Ok(expired) => {
            counter!("spandrel_blocks_expired_total").increment(expired.len() as u64);
            tracing::info!(buckets = expired.len(), before = before.0, "expired");
        }
        Err(error) => tracing::error!(%error, "expired blocks not removed"),
    }
    shared.recent.expire(before);
    if let Err(error) = shared.index.expire(before) {
        tracing::error!(%error, "expired index not removed");
    }
}
