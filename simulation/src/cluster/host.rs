//! What runs on a host: a node, from its start to its end, and the clients that export to it.

use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, RngExt};
use spandrel_actors::membership::NodeStart;
use spandrel_actors::{BlockingMode, Env, Node, NodeOptions};
use spandrel_model::ports::Query;
use spandrel_raft::ClusterSeed;
use spandrel_raft::state::NodeAddresses;
use tokio::task::JoinSet;

use super::fleet::{Fleet, Stage};
use super::streams::{SimulatedLinks, address};
use crate::check::{Phase, Violation, check_all, check_trace, search_is_exact, violation};
use crate::client::Client;
use crate::disk::{LifeDisk, LifeDiskParts, Struck};
use crate::life::options_of;
use crate::random::{Stream, stream};

/// Milliseconds between two checks of a trace while spans arrive.
const SAMPLE_MS: u64 = 900;

/// One process of the node at a place. Returns when it has ended by itself.
pub(super) async fn lead(fleet: Arc<Fleet>, place: usize) {
    let life = fleet.begin_life(place, |number| life_disk(&fleet, place, number));
    let node = Node::start(options(&fleet, place), environment(&fleet, place, &life));
    let node = match node.await {
        Ok(node) => node,
        Err(error) => {
            // One that cannot join now is started again by whoever watches it.
            fleet.note(place, &format!("the start fails: {error}"));
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
    fleet.started(place, &node);
    if let Err(found) = serve(&fleet, place, node).await {
        fleet.explain(&found).await;
        fleet.world.violate(found);
    }
}

async fn serve(fleet: &Arc<Fleet>, place: usize, node: Node) -> Result<(), Violation> {
    let mut clients = JoinSet::new();
    let world = &fleet.world;
    for number in (0..world.plan.clients).filter(|number| number % fleet.plan.nodes == place) {
        let client = Client {
            world: Arc::clone(world),
            number,
            ingest: node.ingest(),
            query: node.query(),
        };
        clients.spawn(client.run());
    }
    let query = node.query();
    let (mut stages, stop) = (fleet.stages(), fleet.stop_signal(place));
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
                        result = sample(fleet, &query) => result?,
                    }
                }
                Stage::Checking(turn) if turn == place => {
                    check(fleet, place, &node, &query).await?;
                    fleet.checked(place);
                    let _ = stages.changed().await;
                }
                Stage::Settling | Stage::Checking(_) => {
                    let _ = stages.changed().await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.notified() => {}
        result = work => return result,
    }
    clients.abort_all();
    node.stop().await;
    fleet.note(place, "stopped");
    Ok(())
}

/// Tenants are known before anything is judged: a node that does not know one takes it in with its first span.
async fn create_tenants(fleet: &Fleet, node: &Node) {
    let admin = node.admin();
    for tenant in &fleet.world.tenants {
        let _ = admin.create_tenant(tenant.clone()).await;
    }
}

/// Checks one trace after the other while spans arrive.
async fn sample(fleet: &Fleet, query: &Arc<dyn Query>) -> Result<(), Violation> {
    let world = &fleet.world;
    let mut random = stream(world.plan.seed ^ world.elapsed_ms(), Stream::Samples);
    loop {
        tokio::time::sleep(Duration::from_millis(SAMPLE_MS)).await;
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
    flushed.map_err(|error| violation("answer", format!("flush: {error}")))?;
    check_all(&fleet.world, query, Phase::Settled).await?;
    search_is_exact(&fleet.world, query).await
}

fn life_disk(fleet: &Arc<Fleet>, place: usize, number: u64) -> LifeDisk {
    let noting = Arc::clone(fleet);
    let disk = LifeDisk::new(LifeDiskParts {
        inner: fleet.disks[place].clone(),
        clock: Arc::clone(&fleet.world.clock),
        log: Arc::clone(&fleet.world.log),
        canary: fleet.world.plan.canary,
        on_strike: Box::new(move |struck| {
            noting.note(place, &format!("fault: {struck:?}"));
            if matches!(struck, Struck::Sync(_)) {
                noting.sync_failed(place);
            }
        }),
    });
    fleet.note(place, &format!("life {number} begins"));
    disk
}

fn environment(fleet: &Arc<Fleet>, place: usize, disk: &LifeDisk) -> Env {
    let (told, life) = (Arc::clone(fleet), disk.clone());
    let halt: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(move |reason| {
        if !life.is_dead() {
            told.halted(place, reason);
        }
    });
    let mut seed = [0; 32];
    stream(
        fleet.world.plan.seed ^ fleet.world.elapsed_ms() ^ ((place as u64) << 40),
        Stream::Runtime,
    )
    .fill_bytes(&mut seed);
    Env {
        clock: fleet.world.clock.clone(),
        disk: Arc::new(disk.clone()),
        blocking: BlockingMode::Inline,
        halt: Arc::clone(&halt),
        links: Arc::new(SimulatedLinks { place, seed, halt }),
        start_phase: Arc::new(drop),
        // Another one for each start, by its time: a process draws one life.
        secret: Arc::new(move || seed),
    }
}

fn options(fleet: &Fleet, place: usize) -> NodeOptions {
    let options = options_of(&fleet.world.plan);
    // Whoever starts on an empty disk while others may be there joins them.
    let start = if place == 0 && !fleet.has_started(place) {
        NodeStart::Found
    } else {
        let others = (0..fleet.plan.nodes).filter(|other| *other != place);
        NodeStart::Join {
            addresses: others.map(address).collect(),
            token: None,
            expected_shards: None,
        }
    };
    NodeOptions {
        start,
        seed: ClusterSeed {
            replication: fleet.plan.replication,
            ..options.seed
        },
        new_disk_id: options.new_disk_id.wrapping_add(place as u64).max(1),
        addresses: NodeAddresses {
            link: address(place),
            http: format!("node-{}:8080", place + 1),
            grpc: format!("node-{}:4317", place + 1),
        },
        ..options
    }
}
