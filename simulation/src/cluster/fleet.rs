//! What the processes of a run and the one who plays with them share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use spandrel_actors::{Node, Site};
use spandrel_model::ids::NodeId;
use spandrel_model::ports::Query;
use spandrel_raft::state::NodeState;
use spandrel_raft::{ClusterState, Settings};
use spandrel_storage::disk::{DiskImage, SimulatedDisk};
use tokio::sync::{Notify, mpsc, watch};

use super::plan::ClusterPlan;
use crate::check::{Owners, Violation, everything_sent_is_counted, violation};
use crate::clock::OffsetClock;
use crate::counters::Counters;
use crate::disk::{LifeDisk, Struck};
use crate::faults::FaultKind;
use crate::limits::HALT_MS;
use crate::model::Tally;
use crate::random::{Stream, stream};
use crate::world::{World, lock};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Clients send, faults strike.
    Faults,
    /// No faults any more: everything comes to rest.
    Settling,
    /// The node at this place is asked for everything.
    Checking(usize),
    /// The node at this place asks each replica what it says alone.
    Comparing(usize),
    /// The node at this place is asked for what has expired.
    Outliving(usize),
}

/// What the player asks of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// To leave.
    Leave,
    /// To take another one out.
    Remove(NodeId),
    /// To change the policy.
    ChangePolicy,
}

/// The process at a place.
#[derive(Default)]
pub(super) struct Life {
    disk: Option<LifeDisk>,
    stop: Arc<Notify>,
    pub(super) settings: Option<Settings>,
    /// Answers from what the node alone holds.
    alone: Option<Arc<dyn Query>>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    pub(super) tally: Arc<Mutex<Tally>>,
    pub(super) counters: Counters,
    /// Its disk has failed it: it may halt, and is to be started anew before anything is judged.
    pub(super) is_hurt: bool,
    /// The power failed.
    lost_power: bool,
    /// When something failed after which it must halt, in milliseconds.
    must_halt_since: Option<u64>,
    /// Why.
    must_halt_for: Option<Struck>,
    halted: bool,
    checked: bool,
    /// The settings as they were last looked at.
    seen: Option<Arc<ClusterState>>,
}

/// What stays at a place.
#[derive(Default)]
pub(super) struct Place {
    pub(super) lives: u64,
    /// Which disk it has, counted from 0.
    pub(super) disks: u64,
    pub(super) has_started: bool,
    /// The number of the node, once it has started.
    pub(super) node: Option<NodeId>,
    /// The credit pool of the next lives, if it is a small one.
    pub(super) small_pool: Option<u64>,
    /// Milliseconds that work on the disk takes at most.
    slow_ms: u64,
    /// Until when what is begun on the disk does not end.
    hangs_until_ms: u64,
    /// An image of the directory.
    pub(super) image: Option<DiskImage>,
    /// The directory is an old image: it must not be let in.
    pub(super) is_image: bool,
    /// Why the last start was refused for good.
    pub(super) refused: Option<String>,
    pub(super) now: Life,
}

pub(super) struct Fleet {
    pub(super) world: Arc<World>,
    pub(super) plan: ClusterPlan,
    pub(super) disks: Vec<SimulatedDisk>,
    pub(super) clocks: Vec<Arc<OffsetClock>>,
    stage: watch::Sender<Stage>,
    places: Mutex<Vec<Place>>,
    /// Which place each client exports to.
    clients: Mutex<Vec<usize>>,
    owners: Mutex<Owners>,
    /// Nodes whose directories are gone for good.
    gone: Mutex<BTreeSet<NodeId>>,
    random: Mutex<ChaCha8Rng>,
    /// Decides what happens at places of the product.
    sites: Mutex<ChaCha8Rng>,
}

impl Fleet {
    pub(super) fn new(world: Arc<World>, plan: ClusterPlan, disks: Vec<SimulatedDisk>) -> Self {
        let clock = |_| Arc::new(OffsetClock::new(Arc::clone(&world.clock)));
        let clients = 0..plan.node.clients;
        Self {
            clocks: (0..plan.places).map(clock).collect(),
            places: Mutex::new(disks.iter().map(|_| Place::default()).collect()),
            clients: Mutex::new(clients.map(|number| number % plan.nodes).collect()),
            random: Mutex::new(stream(plan.node.seed, Stream::Operators)),
            sites: Mutex::new(stream(plan.node.seed, Stream::Sites)),
            stage: watch::Sender::new(Stage::Faults),
            owners: Mutex::default(),
            gone: Mutex::default(),
            world,
            plan,
            disks,
        }
    }

    pub(super) fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, place: usize, event: &str) {
        self.world.note(format!("node {}: {event}", place + 1));
    }

    pub(super) fn fired(&self, kind: FaultKind) {
        self.world.fired(kind);
    }

    /// Whether something rare happens at a place of the product.
    pub(super) fn strikes(&self, place: usize, site: Site) -> bool {
        let Some(rate) = self.plan.sites.get(&site) else {
            return false;
        };
        let strikes = *self.stage.borrow() == Stage::Faults
            && lock(&self.sites).random_range(0..1_000) < *rate;
        if strikes {
            self.world.fired(site);
            self.world.fold(site.describe().0, &[place as u64]);
        }
        strikes
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&self, bound: u64) -> u64 {
        lock(&self.random).random_range(0..bound.max(1))
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.world.note(format!("{stage:?}"));
        self.stage.send_replace(stage);
    }

    pub(super) fn stages(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// A process begins, on a disk of its own.
    pub(super) fn begin_life(&self, place: usize, disk: LifeDisk) {
        let mut places = self.places();
        let here = &mut places[place];
        here.lives += 1;
        here.refused = None;
        here.now.disk = Some(disk);
    }

    /// The node has started; what is to be asked of it comes from the receiver.
    pub(super) fn started(
        &self,
        place: usize,
        node: &Node,
    ) -> Result<mpsc::UnboundedReceiver<Order>, Violation> {
        let (orders, receiver) = mpsc::unbounded_channel();
        let mut places = self.places();
        let here = &mut places[place];
        here.now.settings = Some(node.settings().clone());
        here.now.alone = Some(node.query_alone());
        here.now.orders = Some(orders);
        here.has_started = true;
        here.node = Some(node.settings().node());
        if here.is_image {
            let problem = format!("node {} runs from an old image of its directory", place + 1);
            return Err(violation("old_image", problem));
        }
        Ok(receiver)
    }

    pub(super) fn stop_signal(&self, place: usize) -> Arc<Notify> {
        Arc::clone(&self.places()[place].now.stop)
    }

    /// Asks the process to stop.
    pub(super) fn stop(&self, place: usize) {
        self.places()[place].now.stop.notify_one();
    }

    /// False when no node runs there.
    pub(super) fn order(&self, place: usize, order: Order) -> bool {
        let places = self.places();
        let orders = places[place].now.orders.as_ref();
        orders.is_some_and(|orders| orders.send(order).is_ok())
    }

    /// Lets a disk of a running process fail.
    pub(super) fn arm(&self, place: usize, arm: impl FnOnce(&LifeDisk)) {
        if let Some(disk) = &self.places()[place].now.disk {
            arm(disk);
        }
    }

    pub(super) fn set_slow(&self, place: usize, ms: u64) {
        self.places()[place].slow_ms = ms;
    }

    /// What is begun on the disk until then ends then.
    pub(super) fn hang(&self, place: usize, until_ms: u64) {
        self.places()[place].hangs_until_ms = until_ms;
    }

    /// How long work on the disk takes now.
    pub(super) fn disk_takes(&self, place: usize) -> Duration {
        let (most, hangs_until_ms) = {
            let places = self.places();
            (places[place].slow_ms, places[place].hangs_until_ms)
        };
        let hangs_ms = hangs_until_ms.saturating_sub(self.world.elapsed_ms());
        if hangs_ms > 0 {
            return Duration::from_millis(hangs_ms);
        }
        if most == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.below(most + 1))
    }

    pub(super) fn struck(&self, place: usize, struck: &Struck) {
        self.note(place, &format!("fault: {struck:?}"));
        let has_started = self.places()[place].now.settings.is_some();
        self.fired(match struck {
            Struck::Power if has_started => FaultKind::PowerLoss,
            Struck::Power => FaultKind::CrashInStart,
            Struck::Sync(_) => FaultKind::FailedSync,
            Struck::Write(_) => FaultKind::FailedWrite,
            Struck::Rewritten(path) => {
                let life = &mut self.places()[place].now;
                if life.must_halt_for == Some(Struck::Write(path.clone())) {
                    life.must_halt_since = None;
                }
                return;
            }
            Struck::Read(_) => FaultKind::FailedRead,
            Struck::Full => FaultKind::FullDisk,
        });
        let now_ms = self.world.elapsed_ms();
        let mut places = self.places();
        let life = &mut places[place].now;
        life.is_hurt = true;
        life.lost_power |= *struck == Struck::Power;
        if struck.must_halt() {
            life.must_halt_since.get_or_insert(now_ms);
            // A failed sync is not made up for by anything.
            let is_sync = matches!(struck, Struck::Sync(_));
            if is_sync || life.must_halt_for.is_none() {
                life.must_halt_for = Some(struck.clone());
            }
        }
    }

    /// The node stops itself: only a disk that fails it is a reason.
    pub(super) fn halted(&self, place: usize, reason: &str) {
        self.note(place, &format!("halts: {reason}"));
        let mut places = self.places();
        places[place].now.halted = true;
        let expected = places[place].now.is_hurt || places[place].is_image;
        drop(places);
        if !expected {
            let problem = format!("node {} halts without a fault: {reason}", place + 1);
            self.world.violate(violation("halt", problem));
        }
    }

    pub(super) fn takes_power_loss(&self, place: usize) -> bool {
        std::mem::take(&mut self.places()[place].now.lost_power)
    }

    pub(super) fn has_halted(&self, place: usize) -> bool {
        self.places()[place].now.halted
    }

    /// The process stands still: it cannot halt.
    pub(super) fn stands_still(&self, place: usize, now_ms: u64) {
        if let Some(since) = &mut self.places()[place].now.must_halt_since {
            *since = now_ms;
        }
    }

    /// A node whose disk has failed it must be gone after a while.
    pub(super) fn check_halt(&self, place: usize, now_ms: u64) -> Result<(), Violation> {
        let since = self.places()[place].now.must_halt_since;
        if since.is_none_or(|since| now_ms <= since + HALT_MS) {
            return Ok(());
        }
        let problem = format!(
            "node {} runs {HALT_MS} ms after its disk has failed it",
            place + 1
        );
        Err(violation("halt", problem))
    }

    /// The process ends here: whatever its destructors try, nothing reaches the disk. What its clients know is compared
    /// with what it has counted.
    pub(super) fn kill(&self, place: usize) -> Result<(), Violation> {
        let mut places = self.places();
        let life = std::mem::take(&mut places[place].now);
        drop(places);
        if let Some(disk) = &life.disk {
            disk.kill();
        }
        if life.settings.is_none() {
            return Ok(());
        }
        let tally = *lock(&life.tally);
        everything_sent_is_counted(&life.counters, &tally)
    }

    /// Clients that are to export to a place.
    pub(super) fn clients_of(&self, place: usize) -> Vec<usize> {
        let clients = lock(&self.clients);
        let mine = clients.iter().enumerate().filter(|(_, at)| **at == place);
        mine.map(|(number, _)| number).collect()
    }

    /// The node at a place has left: its clients go elsewhere.
    pub(super) fn move_clients(&self, from: usize, to: usize) {
        for at in lock(&self.clients).iter_mut().filter(|at| **at == from) {
            *at = to;
        }
    }

    /// A directory is gone for good, and the number of its node with it.
    pub(super) fn forget(&self, node: NodeId) {
        lock(&self.gone).insert(node);
    }

    pub(super) fn gone(&self) -> BTreeSet<NodeId> {
        lock(&self.gone).clone()
    }

    /// The settings as each running node knows them, by place.
    pub(super) fn views(&self) -> Vec<(usize, Arc<ClusterState>)> {
        let places = self.places();
        let views = places.iter().enumerate().filter_map(|(place, here)| {
            let settings = here.now.settings.as_ref();
            settings.map(|settings| (place, settings.state()))
        });
        views.collect()
    }

    /// The newest settings that any running node knows.
    pub(super) fn newest(&self) -> Option<Arc<ClusterState>> {
        let views = self.views().into_iter().map(|(_, state)| state);
        views.max_by_key(|state| state.applied_index)
    }

    /// Who answers from what it alone holds, by node.
    pub(super) fn alone(&self) -> Vec<(NodeId, Arc<dyn Query>)> {
        let places = self.places();
        let alone = places
            .iter()
            .filter_map(|here| here.node.zip(here.now.alone.clone()));
        alone.collect()
    }

    /// Looks at the settings of all nodes that have changed since the last look.
    pub(super) fn check_owners(&self) -> Result<(), Violation> {
        let mut owners = lock(&self.owners);
        for here in self.places().iter_mut() {
            let Some(settings) = &here.now.settings else {
                continue;
            };
            let state = settings.state();
            let seen = here.now.seen.as_ref();
            if seen.is_some_and(|seen| Arc::ptr_eq(seen, &state)) {
                continue;
            }
            owners.see(&state, seen.map(Arc::as_ref))?;
            here.now.seen = Some(state);
        }
        let known = owners.policies();
        let mut policies = self.world.policies();
        if known.len() > policies.len() {
            policies.extend(known.clone());
        }
        Ok(())
    }

    pub(super) fn checked(&self, place: usize) {
        self.places()[place].now.checked = true;
    }

    /// Whether the node there has answered; from then on it may be asked again.
    pub(super) fn take_checked(&self, place: usize) -> bool {
        std::mem::take(&mut self.places()[place].now.checked)
    }

    /// Why the cluster of the nodes at these places is not at rest; `None` when it is.
    pub(super) fn unrest(&self, here: &[usize]) -> Option<String> {
        let waiting: usize = self
            .world
            .queues()
            .iter()
            .map(std::collections::VecDeque::len)
            .sum();
        for place in here {
            let settings = self.places()[*place].now.settings.clone();
            let Some(settings) = settings else {
                return Some(format!("node {} does not run", place + 1));
            };
            if settings.leader().is_none() {
                return Some(format!("node {} knows no leader", place + 1));
            }
            if let Some(reason) = self.unsettled(&settings.state(), here.len()) {
                return Some(format!("as node {} sees it: {reason}", place + 1));
            }
        }
        (waiting > 0).then(|| format!("{waiting} requests are not acknowledged"))
    }

    /// Why a cluster of so many nodes is not complete; `None` when it is.
    pub(super) fn unsettled(&self, state: &ClusterState, nodes: usize) -> Option<String> {
        let up = state.nodes.values();
        let up = up.filter(|node| node.state == NodeState::Up).count();
        if up != nodes || state.nodes.len() != nodes {
            let known = state.nodes.len();
            return Some(format!("{up} of {known} nodes are up, not {nodes}"));
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
