//! A run: the lives of one seed, on a thread of its own.

use std::sync::Arc;

use spandrel_storage::disk::Disk;

use crate::check::{Violation, verdicts_follow_from_their_records, violation};
use crate::cluster::{self, ClusterPlan};
use crate::events::Printing;
use crate::faults::{FaultKind, Fired};
use crate::life::{End, Purpose, data_dir, lead};
use crate::limits::{MAX_LIVES, STACK_BYTES};
use crate::overrides;
use crate::plan::{Fault, Plan};
use crate::random::{Stream, stream};
use crate::world::{Scene, World};

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Hash of every event with its virtual time: the same for the same seed and the same program.
    pub hash: u64,
    /// Events that were hashed.
    pub events: u64,
    /// Virtual milliseconds.
    pub elapsed_ms: u64,
    /// Spans that were acknowledged.
    pub acknowledged: usize,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
    /// The last events, in words.
    pub last_events: Vec<String>,
    /// The faults that took effect.
    pub fired: Fired,
}

/// Runs a plan. Do so once per process: some ids of dependencies are counted per process.
#[must_use]
pub fn run_seed(plan: Plan, print_events: bool) -> Outcome {
    run(plan, print_events, Scene::Alone, lives)
}

/// Runs the plan of a cluster. Once per process, too.
#[must_use]
pub fn run_cluster(plan: ClusterPlan, print_events: bool) -> Outcome {
    run(
        plan.node.clone(),
        print_events,
        Scene::Cluster,
        move |world| cluster::run(world, plan),
    )
}

fn run(
    plan: Plan,
    print_events: bool,
    scene: Scene,
    lives: impl FnOnce(&Arc<World>) + Send + 'static,
) -> Outcome {
    let printing = if print_events {
        Printing::All
    } else {
        Printing::Last
    };
    let body = move || run_here(plan, printing, scene, lives);
    let thread = std::thread::Builder::new()
        .name("simulation".to_owned())
        .stack_size(STACK_BYTES);
    let joined = thread.spawn(body).map(std::thread::JoinHandle::join);
    match joined {
        Ok(Ok(outcome)) => outcome,
        _ => Outcome {
            hash: 0,
            events: 0,
            elapsed_ms: 0,
            acknowledged: 0,
            violation: Some(violation("answer", "the simulation panicked")),
            last_events: Vec::new(),
            fired: Fired::default(),
        },
    }
}

fn run_here(
    plan: Plan,
    printing: Printing,
    scene: Scene,
    lives: impl FnOnce(&Arc<World>),
) -> Outcome {
    use rand::Rng;
    overrides::install(stream(plan.seed, Stream::Product).next_u64());
    let world = World::new(plan, printing, scene);
    metrics::with_local_recorder(&world.counters, || lives(&world));
    let acknowledged = {
        let traces = world.traces();
        let spans = traces.iter().flat_map(|trace| trace.spans.values());
        spans.filter(|span| span.acked_at.is_some()).count()
    };
    Outcome {
        hash: world.log.hash(),
        events: world.log.count(),
        elapsed_ms: world.elapsed_ms(),
        acknowledged,
        violation: world.violation(),
        last_events: world.log.last(),
        fired: world.all_fired(),
    }
}

fn lives(world: &Arc<World>) {
    let mut number = 0;
    let mut next = |purpose| {
        number += 1;
        lead(world, number - 1, purpose)
    };
    for life in world.plan.lives.iter().take(MAX_LIVES) {
        let mut life = *life;
        match next(Purpose::Faulty(life)) {
            End::Violated => return,
            // The power failed before the node was up: this time it starts.
            End::PowerLoss if matches!(life.fault, Fault::PowerInRecovery(_)) => {
                world.fired(FaultKind::CrashInStart);
                life.fault = Fault::Kill;
                if next(Purpose::Faulty(life)) == End::Violated {
                    return;
                }
            }
            _ => {}
        }
    }
    if next(Purpose::Settling) == End::Violated {
        return;
    }
    if world.plan.loses_index {
        let index = data_dir().join("index");
        world.note("the index is deleted");
        world.fired(FaultKind::LostIndex);
        let removed = world
            .disk
            .remove_dir_all(&index)
            .and_then(|()| world.disk.sync_dir(&index));
        if let Err(error) = removed {
            world.violate(violation(
                "start",
                format!("the index cannot be deleted: {error}"),
            ));
            return;
        }
    }
    if next(Purpose::Checking) == End::Violated {
        return;
    }
    let journal = data_dir().join("journal");
    if let Err(found) = verdicts_follow_from_their_records(world, &world.disk, &journal) {
        world.violate(found);
    }
}
