//! What a process is: a node, from its start to its end, and the clients that export to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{Rng, RngExt};
use spandrel_actors::membership::NodeStart;
use spandrel_actors::{BlockingMode, Buggify, Env, Node, NodeOptions};
use spandrel_model::ports::Query;
use spandrel_raft::ClusterSeed;
use spandrel_raft::state::NodeAddresses;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::compare::compare_replicas;
use super::fleet::{Fleet, Order, Stage};
use super::kernel::Kernel;
use super::streams::{SimulatedLinks, address};
use crate::check::{
    Phase, Violation, check_all, check_trace, credit_is_held_by_entries, credit_within_pool,
    expired_traces_are_gone, is_pressed, search_is_exact, violation,
};
use crate::client::Client;
use crate::disk::{LifeDisk, LifeDiskParts};
use crate::faults::FaultKind;
use crate::life::options_of;
use crate::random::{Stream, stream};
use crate::world::lock;

/// Times that a node whose disk is lost is to be removed without loss, before the loss is accepted.
const REMOVALS_WITHOUT_LOSS: u32 = 8;
/// Milliseconds between two checks of a trace while spans arrive.
const SAMPLE_MS: u64 = 900;
/// Milliseconds between two looks at what a node has in memory.
const STATE_MS: u64 = 100;
/// Milliseconds between two looks for clients whose node has left.
const ADOPT_MS: u64 = 500;
/// What the refusal of a directory that is too old says.
const OLD_DIRECTORY: &str = "this data directory is an older copy";

/// One process of the node at a place. Returns when it has ended by itself.
pub(super) async fn lead(fleet: Arc<Fleet>, place: usize, kernel: Kernel, disk: LifeDisk) {
    let env = environment(&fleet, place, &disk, kernel);
    let node = match Node::start(options(&fleet, place), env).await {
        Ok(node) => node,
        Err(error) => {
            // One that cannot join now is started again by whoever watches it.
            fleet.note(place, &format!("the start fails: {error}"));
            if error.reason.contains(OLD_DIRECTORY) {
                fleet.places()[place].refused = Some(error.reason);
            }
            return;
        }
    };
    let recovery = &node.recovery;
    fleet.note(
        place,
        &format!(
            "started: {} frames, {} spans replayed",
            recovery.frames, recovery.spans
        ),
    );
    if recovery.lost_frames + recovery.lost_slices > 0 {
        let lost = format!(
            "{} frames and {} slices are lost",
            recovery.lost_frames, recovery.lost_slices
        );
        return fleet.world.violate(violation("P1", lost));
    }
    let served = match fleet.started(place, &node) {
        Ok(orders) => serve(&fleet, place, node, orders).await,
        Err(found) => Err(found),
    };
    if let Err(found) = served {
        super::compare::explain(&fleet, &found).await;
        fleet.world.violate(found);
    }
}

async fn serve(
    fleet: &Arc<Fleet>,
    place: usize,
    node: Node,
    orders: mpsc::UnboundedReceiver<Order>,
) -> Result<(), Violation> {
    let mut clients = JoinSet::new();
    let (mut stages, stop) = (fleet.stages(), fleet.stop_signal(place));
    let query = node.query();
    let work = async {
        create_tenants(fleet, &node).await;
        loop {
            let stage = *stages.borrow_and_update();
            match stage {
                Stage::Faults => {
                    let mut changed = stages.clone();
                    tokio::select! {
                        biased;
                        _ = changed.changed() => {}
                        result = sample(fleet, place, &node, &query) => result?,
                    }
                }
                Stage::Checking(turn) if turn == place => {
                    check(fleet, place, &node, &query).await?;
                    fleet.checked(place);
                    let _ = stages.changed().await;
                }
                Stage::Comparing(turn) if turn == place => {
                    compare_replicas(fleet).await?;
                    fleet.checked(place);
                    let _ = stages.changed().await;
                }
                Stage::Outliving(turn) if turn == place => {
                    fleet.note(place, "is asked for what has expired");
                    expired_traces_are_gone(&fleet.world, &query).await?;
                    check(fleet, place, &node, &query).await?;
                    fleet.checked(place);
                    let _ = stages.changed().await;
                }
                Stage::Settling
                | Stage::Checking(_)
                | Stage::Comparing(_)
                | Stage::Outliving(_) => {
                    let _ = stages.changed().await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.notified() => {}
        result = work => return result,
        () = obey(fleet, place, &node, orders) => {}
        () = export(fleet, place, &node, &mut clients) => {}
        () = fold_state(fleet, place, &node) => {}
    }
    clients.abort_all();
    node.stop().await;
    fleet.note(place, "stopped");
    Ok(())
}

/// Lets the run's hash cover what the node has in memory, again and again: two runs of a seed that differ do so soon
/// after they have parted.
async fn fold_state(fleet: &Fleet, place: usize, node: &Node) {
    let settings = node.settings();
    loop {
        tokio::time::sleep(Duration::from_millis(STATE_MS)).await;
        let (credit, state) = (node.credit(), settings.state());
        let terms = state.shard_map.iter().map(|record| record.term.0);
        let parts = [
            place as u64,
            credit.used,
            credit.held_by_entries,
            credit.entry_bytes,
            state.epoch,
            terms.sum(),
            u64::from(settings.leads()),
        ];
        fleet.world.fold("state", &parts);
    }
}

/// Lets the clients of this place export, and those that are moved here.
async fn export(fleet: &Arc<Fleet>, place: usize, node: &Node, clients: &mut JoinSet<()>) {
    let mut taken = BTreeSet::new();
    let tally = Arc::clone(&fleet.places()[place].now.tally);
    loop {
        for number in fleet.clients_of(place) {
            if taken.insert(number) {
                let client = Client {
                    world: Arc::clone(&fleet.world),
                    number,
                    ingest: node.ingest(),
                    query: node.query(),
                    tally: Arc::clone(&tally),
                    patience: fleet.plan.patience(place),
                };
                clients.spawn(client.run());
            }
        }
        tokio::time::sleep(Duration::from_millis(ADOPT_MS)).await;
    }
}

/// Does what the player asks for.
async fn obey(
    fleet: &Fleet,
    place: usize,
    node: &Node,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let admin = node.admin();
    let mut asked = BTreeMap::new();
    while let Some(order) = orders.recv().await {
        let done = match order {
            Order::Leave => admin.leave_node().await,
            Order::Remove(other) => {
                // Its disk is gone: what nobody has copied in time is lost, which the operator accepts in the end.
                let told = asked.entry(other).or_insert(0_u32);
                *told += 1;
                admin
                    .remove_node(other, *told > REMOVALS_WITHOUT_LOSS)
                    .await
            }
            Order::ChangePolicy => {
                let version = admin.policy().await.version;
                let yaml = fleet.world.plan.policy_yaml_of(u64::from(version));
                let applied = admin.apply_policy(yaml).await;
                applied.map(|_| fleet.fired(FaultKind::PolicyChange))
            }
        };
        let outcome = done.map_or_else(|error| error.to_string(), |()| "done".to_owned());
        fleet.note(place, &format!("{order:?}: {outcome}"));
    }
    std::future::pending().await
}

/// Tenants are known before anything is judged: a node that does not know one takes it in with its first span.
async fn create_tenants(fleet: &Fleet, node: &Node) {
    let admin = node.admin();
    for tenant in &fleet.world.tenants {
        let _ = admin.create_tenant(tenant.clone()).await;
    }
}

/// Checks one trace after the other while spans arrive, and the node's memory.
async fn sample(
    fleet: &Fleet,
    place: usize,
    node: &Node,
    query: &Arc<dyn Query>,
) -> Result<(), Violation> {
    let world = &fleet.world;
    let mut random = stream(world.plan.seed ^ world.elapsed_ms(), Stream::Samples);
    let mut was_pressed = false;
    loop {
        tokio::time::sleep(Duration::from_millis(SAMPLE_MS)).await;
        credit_within_pool(&node.credit())?;
        if !was_pressed && is_pressed(&node.credit()) {
            was_pressed = true;
            fleet.fired(FaultKind::MemoryPressure);
            fleet.note(place, "is short of memory");
        }
        let count = world.traces().len();
        let number = random.random_range(0..count);
        check_trace(world, query, number, Phase::Running).await?;
    }
}

async fn check(
    fleet: &Fleet,
    place: usize,
    node: &Node,
    query: &Arc<dyn Query>,
) -> Result<(), Violation> {
    fleet.note(place, "checks everything");
    check_all(&fleet.world, query, Phase::Settled).await?;
    search_is_exact(&fleet.world, query).await?;
    let flushed = node.admin().flush().await;
    match flushed {
        Err(_) if !fleet.world.demands().rotted.is_empty() => {}
        flushed => {
            flushed.map_err(|error| violation("answer", format!("flush: {error}")))?;
        }
    }
    check_all(&fleet.world, query, Phase::Settled).await?;
    search_is_exact(&fleet.world, query).await?;
    credit_is_held_by_entries(&node.credit())
}

pub(super) fn life_disk(fleet: &Arc<Fleet>, place: usize) -> LifeDisk {
    let noting = Arc::clone(fleet);
    LifeDisk::new(LifeDiskParts {
        inner: fleet.disks[place].clone(),
        clock: Arc::clone(&fleet.world.clock),
        log: Arc::clone(&fleet.world.log),
        canary: fleet.world.plan.canary,
        on_strike: Box::new(move |struck| noting.struck(place, &struck)),
    })
}

fn environment(fleet: &Arc<Fleet>, place: usize, disk: &LifeDisk, kernel: Kernel) -> Env {
    let (told, life) = (Arc::clone(fleet), disk.clone());
    let halt: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(move |reason| {
        if !life.is_dead() {
            told.halted(place, reason);
        }
    });
    // Others for each start, by its time.
    let of_start = fleet.world.plan.seed ^ fleet.world.elapsed_ms() ^ ((place as u64) << 40);
    let mut secrets = stream(of_start, Stream::Runtime);
    let mut seed = [0; 32];
    secrets.fill_bytes(&mut seed);
    let secrets = Mutex::new(secrets);
    let (slow, rare) = (Arc::clone(fleet), Arc::clone(fleet));
    let links = SimulatedLinks {
        place,
        kernel,
        seed,
        halt: Arc::clone(&halt),
    };
    Env {
        clock: fleet.clocks[place].clone(),
        disk: Arc::new(disk.clone()),
        blocking: BlockingMode::Inline(Arc::new(move || slow.disk_takes(place))),
        halt,
        links: Arc::new(links),
        start_phase: Arc::new(drop),
        buggify: Buggify::new(move |site| rare.strikes(place, site)),
        secret: Arc::new(move || {
            let mut secret = [0; 32];
            lock(&secrets).fill_bytes(&mut secret);
            secret
        }),
    }
}

fn options(fleet: &Fleet, place: usize) -> NodeOptions {
    let options = options_of(&fleet.world.plan);
    let (has_started, disks, small_pool) = {
        let places = fleet.places();
        let here = &places[place];
        (here.has_started, here.disks, here.small_pool)
    };
    // Whoever starts on an empty disk while others may be there joins them.
    let start = if place == 0 && !has_started {
        NodeStart::Found
    } else {
        let others = (0..fleet.plan.places).filter(|other| *other != place);
        NodeStart::Join {
            addresses: others.map(address).collect(),
            token: None,
            expected_shards: None,
        }
    };
    let disk = disks * fleet.plan.places as u64 + place as u64;
    NodeOptions {
        start,
        seed: ClusterSeed {
            replication: fleet.plan.replication,
            ..options.seed
        },
        credit_bytes: small_pool.unwrap_or(options.credit_bytes),
        new_disk_id: options.new_disk_id.wrapping_add(disk).max(1),
        addresses: NodeAddresses {
            link: address(place),
            http: format!("node-{}:8080", place + 1),
            grpc: format!("node-{}:4317", place + 1),
        },
        ..options
    }
}
