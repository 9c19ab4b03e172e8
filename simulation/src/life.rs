//! One life of the node: a runtime of its own, the node started on the disk as the last life left it, clients, and
//! an end by a fault or by plan. Everything in it dies with its runtime.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::{Rng, RngExt};
use spandrel_actors::membership::{NoLinks, NodeStart};
use spandrel_actors::{BlockingMode, Buggify, Clock, Env, Node, NodeOptions};
use spandrel_model::ids::UnixNanos;
use spandrel_model::ports::Query;
use spandrel_raft::ClusterSeed;
use spandrel_raft::state::NodeAddresses;
use tokio::runtime::{Builder, RngSeed, Runtime};
use tokio::sync::Notify;

use crate::check::{
    Phase, Violation, check_all, check_trace, credit_is_held_by_entries, credit_within_pool,
    everything_sent_is_counted, expired_traces_are_gone, halts_after_failed_sync, is_pressed,
    retained_until, search_is_exact, violation,
};
use crate::client::Client;
use crate::disk::{LifeDisk, LifeDiskParts, Struck};
use crate::faults::FaultKind;
use crate::limits::{DISK_RESERVE_BYTES, HALT_MS};
use crate::model::Tally;
use crate::operators;
use crate::plan::{Fault, LifePlan, Plan};
use crate::random::{Stream, stream};
use crate::world::World;

/// Credit of a life in which searches run: each takes 4 MiB.
const SEARCHING_CREDIT_BYTES: u64 = 32 << 20;
/// Milliseconds between two checks of a trace while spans arrive.
const SAMPLE_MS: u64 = 700;

/// What a life is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Clients send, until a fault or the plan ends it.
    Faulty(LifePlan),
    /// Clients send the rest; everything is decided, checked, written out and checked again.
    Settling,
    /// Everything is checked once more after a start.
    Checking,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Without a fault: the process may be killed or was stopped.
    Planned,
    /// The power is gone.
    PowerLoss,
    /// A sync failed, and the process stopped.
    FailedSync,
    /// A promise was broken.
    Violated,
}

/// What faults and the node have signalled.
#[derive(Default)]
struct Signals {
    struck: Mutex<Option<Struck>>,
    halted: AtomicBool,
    changed: Notify,
}

impl Signals {
    fn struck(&self) -> Option<Struck> {
        self.struck
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn has_struck(&self) -> bool {
        self.struck().is_some()
    }
}

/// The directory of the node.
pub(crate) fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}

/// Leads one life; `number` counts them from 0.
pub(crate) fn lead(world: &Arc<World>, number: u64, purpose: Purpose) -> End {
    world.note(format!("life {number} begins: {purpose:?}"));
    let runtime = match runtime(world, number) {
        Ok(runtime) => runtime,
        Err(error) => {
            world.violate(violation("start", format!("no runtime: {error}")));
            return End::Violated;
        }
    };
    let signals = Arc::new(Signals::default());
    *world.tally() = Tally::default();
    world.faulted.store(false, Ordering::Relaxed);
    let disk = life_disk(world, &signals);
    let (ending, ended_at) = runtime.block_on(async {
        world.clock.begin_life();
        let task = tokio::spawn(live(Arc::clone(world), disk.clone(), Arc::clone(&signals), purpose));
        let end = tokio::select! {
            biased;
            () = world.stopped.notified() => End::Violated,
            end = ending(world, &signals) => end,
            result = task => match result {
                // Answers that failed because the disk is failing are no news.
                _ if signals.has_struck() => ending(world, &signals).await,
                Ok(Ok(())) => End::Planned,
                Ok(Err(found)) => { world.violate(found); End::Violated }
                Err(panic) => { world.violate(violation("answer", format!("the harness panicked: {panic}"))); End::Violated }
            },
        };
        (end, world.clock.elapsed_nanos())
    });
    // From here on nothing that the node still does, not even a destructor, reaches the disk.
    disk.kill();
    world.clock.publish();
    drop(runtime);
    let pause_ms = match purpose {
        Purpose::Faulty(plan) => plan.pause_ms,
        Purpose::Settling | Purpose::Checking => 1_000,
    };
    let loses_power = match (ending, purpose) {
        (End::PowerLoss, _) => true,
        (End::FailedSync, Purpose::Faulty(plan)) => {
            matches!(
                plan.fault,
                Fault::FailedSync {
                    then_power: true,
                    ..
                }
            )
        }
        (End::Planned, Purpose::Settling) => true,
        _ => false,
    };
    if loses_power && world.disk.power_loss() > 0 {
        world.fired(FaultKind::TornWrite);
    }
    world
        .clock
        .end_life(ended_at, pause_ms * UnixNanos::PER_MILLI);
    world.note(format!(
        "life {number} ended: {ending:?}, power lost: {loses_power}"
    ));
    ending
}

fn runtime(world: &Arc<World>, number: u64) -> std::io::Result<Runtime> {
    let mut random = stream(world.plan.seed, Stream::Runtime);
    random.set_word_pos(u128::from(number) * 64);
    let clock = Arc::clone(&world.clock);
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&random.next_u64().to_le_bytes()))
        .on_before_task_poll(move |_| clock.publish())
        .build()
}

fn life_disk(world: &Arc<World>, signals: &Arc<Signals>) -> LifeDisk {
    let (noting, told) = (Arc::clone(world), Arc::clone(signals));
    LifeDisk::new(LifeDiskParts {
        inner: world.disk.clone(),
        clock: Arc::clone(&world.clock),
        log: Arc::clone(&world.log),
        canary: world.plan.canary,
        on_strike: Box::new(move |struck| {
            noting.note(format!("fault: {struck:?}"));
            let kind = match struck {
                Struck::Power => FaultKind::PowerLoss,
                Struck::Sync(_) => FaultKind::FailedSync,
                Struck::Write(_) => FaultKind::FailedWrite,
                Struck::Read(_) => FaultKind::FailedRead,
                // The node refuses spans and goes on.
                Struck::Full => return noting.fired(FaultKind::FullDisk),
                Struck::Rewritten(_) => return,
            };
            noting.fired(kind);
            noting.faulted.store(true, Ordering::Relaxed);
            *told.struck.lock().unwrap_or_else(PoisonError::into_inner) = Some(struck);
            told.changed.notify_one();
        }),
    })
}

/// Waits until a fault has ended the life.
async fn ending(world: &Arc<World>, signals: &Signals) -> End {
    signals.changed.notified().await;
    match signals.struck() {
        Some(Struck::Power) => End::PowerLoss,
        Some(Struck::Sync(path)) => {
            tokio::time::sleep(Duration::from_millis(HALT_MS)).await;
            let halted = signals.halted.load(Ordering::Relaxed);
            match halts_after_failed_sync(&path, halted) {
                Ok(()) => End::FailedSync,
                Err(found) => {
                    world.violate(found);
                    End::Violated
                }
            }
        }
        _ => {
            world.violate(violation(
                "halt",
                "the node stopped itself though no fault had struck",
            ));
            End::Violated
        }
    }
}

fn environment(world: &Arc<World>, disk: &LifeDisk, signals: &Arc<Signals>) -> Env {
    let (noting, told) = (Arc::clone(world), Arc::clone(signals));
    let (life, clock) = (disk.clone(), world.clock.clone());
    Env {
        clock: world.clock.clone(),
        disk: Arc::new(disk.clone()),
        blocking: BlockingMode::inline(),
        halt: Arc::new(move |reason| {
            if life.is_dead() {
                // A destructor whose file is gone with the process.
                return;
            }
            noting.note(format!("the node halts: {reason}"));
            told.halted.store(true, Ordering::Relaxed);
            told.changed.notify_one();
        }),
        links: Arc::new(NoLinks),
        // No life makes join tokens, and no two starts draw at the same time.
        secret: Arc::new(move || {
            let mut secret = [0; 32];
            secret[..8].copy_from_slice(&clock.now().0.to_le_bytes());
            secret
        }),
        start_phase: Arc::new(drop),
        buggify: Buggify::default(),
    }
}

fn node_options(world: &World, purpose: Purpose) -> NodeOptions {
    let searches = !matches!(purpose, Purpose::Faulty(_));
    let options = options_of(&world.plan);
    NodeOptions {
        credit_bytes: if searches {
            SEARCHING_CREDIT_BYTES
        } else {
            options.credit_bytes
        },
        ..options
    }
}

/// What a plan says of a node that founds its cluster and stays alone.
pub(crate) fn options_of(plan: &Plan) -> NodeOptions {
    let mut random = stream(plan.seed, Stream::Product);
    NodeOptions {
        data_dir: data_dir(),
        credit_bytes: plan.credit_bytes,
        frame_cache_bytes: 1 << 20,
        store_cache_bytes: 4 << 20,
        recovery_window_seconds: plan.window_seconds,
        journal_max_bytes: 1 << 40,
        disk_reserve_bytes: Some(DISK_RESERVE_BYTES),
        bucket_nanos: plan.bucket_seconds * UnixNanos::PER_SECOND,
        require_tenant: false,
        start: NodeStart::Found,
        require_join_token: false,
        seed: ClusterSeed {
            cluster_id: random.next_u64().max(1),
            routing_key: random.next_u64(),
            shards: plan.shards,
            replication: 1,
            retention_seconds: plan.retention_seconds,
            policy_yaml: plan.policy_yaml(),
        },
        new_disk_id: random.next_u64().max(1),
        addresses: NodeAddresses {
            link: "simulated:1".to_owned(),
            http: "simulated:2".to_owned(),
            grpc: "simulated:3".to_owned(),
        },
        zone: String::new(),
    }
}

/// The node and its clients, until the life ends by plan.
async fn live(
    world: Arc<World>,
    disk: LifeDisk,
    signals: Arc<Signals>,
    purpose: Purpose,
) -> Result<(), Violation> {
    let fault = match purpose {
        Purpose::Faulty(plan) => Some(plan.fault),
        Purpose::Settling | Purpose::Checking => None,
    };
    if let Some(Fault::PowerInRecovery(operations)) = fault {
        disk.fail_power_after(operations);
    }
    let env = environment(&world, &disk, &signals);
    let node = match Node::start(node_options(&world, purpose), env).await {
        Ok(node) => node,
        Err(error) => {
            world.note(format!("the start fails: {error}"));
            return Err(violation("start", error.to_string()));
        }
    };
    let recovery = node.recovery;
    world.note(format!(
        "started: {} frames, {} spans replayed",
        recovery.frames, recovery.spans
    ));
    if recovery.lost_frames + recovery.lost_slices > 0 {
        let lost = format!(
            "{} frames and {} slices are lost",
            recovery.lost_frames, recovery.lost_slices
        );
        return Err(violation("P1", lost));
    }
    let counters = world.counters.since_now();
    create_tenants(&world, &node).await?;
    let policy = node.admin().policy().await;
    world.policies().insert(policy.version, policy.yaml);
    let query = node.query();
    check_all(
        &world,
        &query,
        if purpose == Purpose::Checking {
            Phase::Settled
        } else {
            Phase::Running
        },
    )
    .await?;
    match fault {
        Some(Fault::PowerAfter(operations)) => disk.fail_power_after(operations),
        Some(Fault::FailedSync { syncs, .. }) => disk.fail_sync(syncs),
        _ => {}
    }
    match purpose {
        Purpose::Faulty(plan) => {
            let mut clients = clients(&world, &node);
            operators(&world, &node, &mut clients);
            let length = Duration::from_millis(plan.length_ms);
            let sampled = tokio::time::timeout(length, sample(&world, &query)).await;
            sampled.unwrap_or(Ok(()))?;
            credit_within_pool(&node.credit())?;
            if is_pressed(&node.credit()) {
                world.fired(FaultKind::MemoryPressure);
            }
            everything_sent_is_counted(&counters, &world.tally())?;
            if plan.fault == Fault::Kill {
                world.fired(FaultKind::Kill);
            }
            if plan.fault == Fault::Stop {
                world.fired(FaultKind::Stop);
                clients.abort_all();
                node.stop().await;
            }
        }
        Purpose::Settling => {
            let mut clients = clients(&world, &node);
            while clients.join_next().await.is_some() {}
            everything_sent_is_counted(&counters, &world.tally())?;
            settle(&world, &node).await?;
        }
        Purpose::Checking => search_is_exact(&world, &query).await?,
    }
    Ok(())
}

async fn create_tenants(world: &World, node: &Node) -> Result<(), Violation> {
    let admin = node.admin();
    let known = admin.tenants().await;
    for tenant in world
        .tenants
        .iter()
        .filter(|tenant| !known.contains(tenant))
    {
        let created = admin.create_tenant(tenant.clone()).await;
        created.map_err(|error| violation("answer", format!("tenant {tenant}: {error}")))?;
    }
    Ok(())
}

fn clients(world: &Arc<World>, node: &Node) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..world.plan.clients {
        let client = Client {
            world: Arc::clone(world),
            number,
            ingest: node.ingest(),
            query: node.query(),
            tally: world.shared_tally(),
            patience: None,
        };
        tasks.spawn(client.run());
    }
    tasks
}

/// People who change things while clients send.
fn operators(world: &Arc<World>, node: &Node, tasks: &mut tokio::task::JoinSet<()>) {
    let extras = world.plan.extras;
    if let Some(every_ms) = extras.reload_every_ms {
        tasks.spawn(operators::reload(Arc::clone(world), node.admin(), every_ms));
    }
    if let Some(every_ms) = extras.promote_every_ms {
        tasks.spawn(operators::promote(
            Arc::clone(world),
            node.query(),
            every_ms,
        ));
    }
}

/// Checks one trace after the other while spans arrive.
async fn sample(world: &Arc<World>, query: &Arc<dyn Query>) -> Result<(), Violation> {
    let mut random = stream(world.plan.seed ^ world.elapsed_ms(), Stream::Samples);
    loop {
        tokio::time::sleep(Duration::from_millis(SAMPLE_MS)).await;
        let count = world.traces().len();
        let number = random.random_range(0..count);
        check_trace(world, query, number, Phase::Running).await?;
    }
}

/// Lets time pass. Just before the first trace may go, all of them must be there.
async fn idle(world: &Arc<World>, query: &Arc<dyn Query>) -> Result<(), Violation> {
    let whole = Duration::from_secs(world.plan.idle_seconds);
    let over = tokio::time::Instant::now() + whole;
    let first = {
        let traces = world.traces();
        traces
            .iter()
            .map(|trace| retained_until(&world.plan, trace))
            .min()
    };
    let last_moment = first.map(|first| first.minus(UnixNanos::PER_SECOND));
    let left = last_moment.map(|at| Duration::from_nanos(at.since(world.now())));
    if let Some(left) = left.filter(|left| !left.is_zero() && *left < whole) {
        tokio::time::sleep(left).await;
        check_all(world, query, Phase::Settled).await?;
    }
    tokio::time::sleep_until(over).await;
    Ok(())
}

/// Waits until everything is decided, checks, flushes, checks, idles and checks.
async fn settle(world: &Arc<World>, node: &Node) -> Result<(), Violation> {
    let query = node.query();
    tokio::time::sleep(Duration::from_millis(world.plan.quiet_ms())).await;
    check_all(world, &query, Phase::Settled).await?;
    search_is_exact(world, &query).await?;
    let flushed = node.admin().flush().await;
    flushed.map_err(|error| violation("answer", format!("flush: {error}")))?;
    check_all(world, &query, Phase::Settled).await?;
    search_is_exact(world, &query).await?;
    credit_is_held_by_entries(&node.credit())?;
    idle(world, &query).await?;
    check_all(world, &query, Phase::Settled).await?;
    expired_traces_are_gone(world, &query).await?;
    search_is_exact(world, &query).await?;
    credit_is_held_by_entries(&node.credit())
}
