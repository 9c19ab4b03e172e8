//! What the hosts of a run and the one who plays with them share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spandrel_actors::Node;
use spandrel_model::ports::Query;
use spandrel_model::routing::ShardRouter;
use spandrel_raft::state::NodeState;
use spandrel_raft::{ClusterState, Settings};
use spandrel_storage::disk::SimulatedDisk;
use tokio::sync::{Notify, watch};

use super::plan::ClusterPlan;
use crate::check::{Violation, describe, observe, violation};
use crate::disk::LifeDisk;
use crate::world::World;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Clients send, faults strike.
    Faults,
    /// No faults any more: everything comes to rest.
    Settling,
    /// The node at this place is asked for everything.
    Checking(usize),
}

/// The process at a place.
#[derive(Default)]
pub(super) struct Place {
    lives: u64,
    disk: Option<LifeDisk>,
    stop: Arc<Notify>,
    settings: Option<Settings>,
    /// Answers from what the node alone holds.
    alone: Option<Arc<dyn Query>>,
    has_started: bool,
    sync_failed: bool,
    halted: bool,
    checked: bool,
}

pub(super) struct Fleet {
    pub(super) world: Arc<World>,
    pub(super) plan: ClusterPlan,
    pub(super) disks: Vec<SimulatedDisk>,
    stage: watch::Sender<Stage>,
    places: Mutex<Vec<Place>>,
}

impl Fleet {
    pub(super) fn new(world: Arc<World>, plan: ClusterPlan, disks: Vec<SimulatedDisk>) -> Self {
        let places = disks.iter().map(|_| Place::default()).collect();
        Self {
            world,
            plan,
            disks,
            stage: watch::Sender::new(Stage::Faults),
            places: Mutex::new(places),
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, place: usize, event: &str) {
        self.world.note(format!("node {}: {event}", place + 1));
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.world.note(format!("{stage:?}"));
        self.stage.send_replace(stage);
    }

    pub(super) fn stages(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// A process begins, on a disk of its own.
    pub(super) fn begin_life(&self, place: usize, disk: impl FnOnce(u64) -> LifeDisk) -> LifeDisk {
        let lives = self.places()[place].lives;
        let disk = disk(lives);
        let mut places = self.places();
        let here = &mut places[place];
        *here = Place {
            lives: lives + 1,
            disk: Some(disk.clone()),
            has_started: here.has_started,
            ..Place::default()
        };
        disk
    }

    pub(super) fn started(&self, place: usize, node: &Node) {
        let mut places = self.places();
        places[place].settings = Some(node.settings().clone());
        places[place].alone = Some(node.query_alone());
        places[place].has_started = true;
    }

    pub(super) fn has_started(&self, place: usize) -> bool {
        self.places()[place].has_started
    }

    pub(super) fn stop_signal(&self, place: usize) -> Arc<Notify> {
        Arc::clone(&self.places()[place].stop)
    }

    /// Asks the process to stop.
    pub(super) fn stop(&self, place: usize) {
        self.places()[place].stop.notify_one();
    }

    /// Lets the so-manieth sync from now on fail.
    pub(super) fn fail_sync(&self, place: usize, syncs: u64) {
        if let Some(disk) = &self.places()[place].disk {
            disk.fail_sync(syncs);
        }
    }

    pub(super) fn sync_failed(&self, place: usize) {
        self.places()[place].sync_failed = true;
    }

    /// The node stops itself: only a failed sync is a reason.
    pub(super) fn halted(&self, place: usize, reason: &str) {
        self.note(place, &format!("halts: {reason}"));
        let mut places = self.places();
        places[place].halted = true;
        if !places[place].sync_failed {
            drop(places);
            let problem = format!("node {} halts without a fault: {reason}", place + 1);
            self.world.violate(violation("halt", problem));
        }
    }

    pub(super) fn has_halted(&self, place: usize) -> bool {
        self.places()[place].halted
    }

    /// The process ends here: whatever its destructors try, nothing reaches the disk.
    pub(super) fn kill(&self, place: usize) {
        let mut places = self.places();
        if let Some(disk) = places[place].disk.take() {
            disk.kill();
        }
        places[place].settings = None;
        places[place].alone = None;
        places[place].halted = false;
    }

    /// What each node alone says about the traces that a violation names, and who holds their shards.
    pub(super) async fn explain(&self, found: &Violation) {
        let named = self.world.traces().clone().into_iter();
        let named = named.filter(|trace| found.detail.contains(&trace.trace_id.to_string()));
        for trace in named {
            let alone: Vec<_> = self
                .places()
                .iter()
                .map(|here| here.alone.clone())
                .collect();
            for (place, query) in alone.into_iter().enumerate() {
                let Some(query) = query else { continue };
                let seen = observe(&self.world, &query, &trace.tenant, trace.trace_id).await;
                let said = seen.map_or_else(|error| error.to_string(), |seen| describe(&seen));
                self.note(place, &format!("alone, of {}: {said}", trace.trace_id));
            }
            let settings = self.places().iter().find_map(|here| here.settings.clone());
            let Some(state) = settings.map(|settings| settings.state()) else {
                continue;
            };
            let Some(router) = ShardRouter::new(state.routing_key, state.shards) else {
                continue;
            };
            let seed = router.tenant_seed(&trace.tenant);
            let shard = router.shard(router.hash(seed, trace.trace_id));
            let holders = state.holders.iter().flat_map(|(bucket, records)| {
                let records = records.iter().filter(|(key, _)| key.shard == shard);
                records.map(|(key, held)| (bucket.0, key.term.0, held.clone()))
            });
            let holders: Vec<_> = holders.collect();
            self.world.note(format!(
                "shard {}: {:?}; holders by bucket and term: {holders:?}",
                shard.0,
                state.shard(shard)
            ));
        }
    }

    pub(super) fn checked(&self, place: usize) {
        self.places()[place].checked = true;
    }

    pub(super) fn has_checked(&self, place: usize) -> bool {
        self.places()[place].checked
    }

    /// Why the cluster is not at rest; `None` when it is.
    pub(super) fn unrest(&self) -> Option<String> {
        let waiting: usize = self
            .world
            .queues()
            .iter()
            .map(std::collections::VecDeque::len)
            .sum();
        let places = self.places();
        for (place, here) in places.iter().enumerate() {
            let Some(settings) = &here.settings else {
                return Some(format!("node {} does not run", place + 1));
            };
            if settings.leader().is_none() {
                return Some(format!("node {} knows no leader", place + 1));
            }
            if let Some(reason) = self.unsettled(&settings.state()) {
                return Some(format!("as node {} sees it: {reason}", place + 1));
            }
        }
        (waiting > 0).then(|| format!("{waiting} requests are not acknowledged"))
    }

    fn unsettled(&self, state: &ClusterState) -> Option<String> {
        let nodes = self.plan.nodes;
        let up = state.nodes.values();
        let up = up.filter(|node| node.state == NodeState::Up).count();
        if up != nodes {
            return Some(format!("{up} of {nodes} nodes are up"));
        }
        let copies = usize::from(self.plan.replication).min(nodes);
        let shards = (0..).zip(&state.shard_map);
        for (shard, record) in shards {
            if record.isr.len() != copies || !record.filling.is_empty() {
                return Some(format!("shard {shard} is not settled: {record:?}"));
            }
        }
        None
    }
}
