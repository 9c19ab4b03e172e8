//! Steps the machines and the network, lets faults strike, and does what an operator would do.

use std::sync::{Arc, Mutex};

use rand::Rng;
use spandrel_model::ids::UnixNanos;
use spandrel_storage::disk::DiskImage;

use super::TICK_MS;
use super::fleet::{Fleet, Order, Stage};
use super::host::{lead, life_disk};
use super::kernel::Kernel;
use super::machine::{Machine, Presence, Process, Ticked};
use super::network::Network;
use super::plan::Planned;
use super::streams::host;
use crate::check::{Violation, gone_from, retained_until, violation};
use crate::faults::FaultKind;
use crate::random::{Stream, stream};
use crate::world::lock;

/// Milliseconds after which a process that ended by itself is started again.
pub(super) const RESTART_MS: u64 = 1_000;
/// Milliseconds after the last fault in which the cluster comes to rest.
const REST_MS: u64 = 120_000;
/// Milliseconds that a check of everything through one node may take.
const CHECK_MS: u64 = 120_000;
/// Milliseconds after a skip of time in which every node has looked at all that time changes.
const NOTICE_MS: u64 = 20_000;
/// Milliseconds between two looks of the operator.
const OPERATOR_MS: u64 = 100;
/// Looks of the operator between two orders of the same.
const ORDER_LOOKS: u64 = 10;
/// Size of a disk without a fault: 1 TiB.
pub(super) const DISK_BYTES: u64 = 1 << 40;

/// The run is over: a promise is broken.
pub(super) struct Broken;

type Kernels = Arc<Mutex<Vec<Option<Kernel>>>>;

pub(super) struct Player {
    pub(super) fleet: Arc<Fleet>,
    pub(super) network: Network,
    pub(super) machines: Vec<Machine>,
    kernels: Kernels,
    /// Faults that wait until every shard has its copies.
    pub(super) postponed: Vec<Planned>,
    /// Places whose nodes are leaving.
    pub(super) leaving: Vec<usize>,
    looks: u64,
}

impl Player {
    pub(super) fn new(fleet: Arc<Fleet>, seed: u64) -> Self {
        let plan = &fleet.plan;
        let mut network = Network::new(plan.places, plan.latency_ms, seed);
        let kernels: Kernels = Arc::new(Mutex::new(vec![None; plan.places]));
        for place in 0..plan.places {
            let slots = Arc::clone(&kernels);
            let world = Arc::clone(&fleet.world);
            network.sim.host(host(place), move || {
                let (kernel, serve) = Kernel::new(Arc::clone(&world));
                lock(&slots)[place] = Some(kernel);
                async move {
                    serve.await;
                    Ok(())
                }
            });
        }
        let machine = |place| match place < plan.nodes {
            true => Machine::new(Presence::Here),
            false => Machine::new(Presence::Later),
        };
        Self {
            machines: (0..plan.places).map(machine).collect(),
            network,
            kernels,
            postponed: Vec::new(),
            leaving: Vec::new(),
            looks: 0,
            fleet,
        }
    }

    pub(super) fn play(&mut self) {
        if self.faults().is_ok() && self.rest().is_ok() {
            let _ = self.checks();
        }
    }

    /// Ends all processes.
    pub(super) fn end_all(&mut self) -> Result<(), Violation> {
        let ended = (0..self.machines.len()).map(|place| {
            let kept = self.fleet.kill(place);
            self.machines[place].process = None;
            kept
        });
        ended.collect()
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.network.now_ms()
    }

    fn fail(&self, invariant: &'static str, problem: String) -> Broken {
        self.fleet.world.violate(violation(invariant, problem));
        Broken
    }

    pub(super) fn hold(&self, kept: Result<(), Violation>) {
        if let Err(found) = kept {
            self.fleet.world.violate(found);
        }
    }

    /// The places where nodes are, or should be.
    pub(super) fn here(&self) -> Vec<usize> {
        let machines = self.machines.iter().enumerate();
        let here = machines.filter(|(_, machine)| machine.presence == Presence::Here);
        here.map(|(place, _)| place).collect()
    }

    pub(super) fn runs(&self, place: usize) -> bool {
        self.machines[place].process.is_some()
    }

    /// A node that serves, and does not stand still.
    pub(super) fn serves(&self, place: usize) -> bool {
        let started = self.fleet.places()[place].now.settings.is_some();
        self.runs(place) && started && self.machines[place].paused_until_ms <= self.now_ms()
    }

    pub(super) fn kernel(&self, place: usize) -> Option<Kernel> {
        lock(&self.kernels)[place].clone()
    }

    fn step(&mut self) -> Result<(), Broken> {
        let now = self.now_ms();
        self.fleet.world.clock.step_to(now * 1_000_000);
        for place in 0..self.machines.len() {
            self.tick(place, now);
        }
        if let Err(error) = self.network.sim.step() {
            return Err(self.fail("answer", format!("the simulation: {error}")));
        }
        self.watch(now);
        if now.is_multiple_of(OPERATOR_MS) {
            self.operate();
        }
        self.hold(self.fleet.check_owners());
        match self.fleet.world.violation() {
            None => Ok(()),
            Some(_) => Err(Broken),
        }
    }

    fn tick(&mut self, place: usize, now: u64) {
        let machine = &mut self.machines[place];
        let Some(process) = &mut machine.process else {
            return;
        };
        if machine.paused_until_ms > now {
            process.miss();
            return self.fleet.stands_still(place, now);
        }
        if std::mem::take(&mut machine.paused_until_ms) > 0 {
            self.fleet.note(place, "goes on");
            self.fleet.fired(FaultKind::Pause);
        }
        match process.tick() {
            Ticked::Runs => self.hold(self.fleet.check_halt(place, now)),
            Ticked::Ended => self.ended(place, now),
            Ticked::Panicked(panic) => {
                let problem = format!("node {}: {panic}", place + 1);
                self.fail("panic", problem);
            }
        }
    }

    /// A process has ended by itself.
    fn ended(&mut self, place: usize, now: u64) {
        self.end(place, now + RESTART_MS);
        if std::mem::take(&mut self.machines[place].stops) {
            self.fleet.fired(FaultKind::Stop);
        }
        let (refused, is_image) = {
            let mut places = self.fleet.places();
            (places[place].refused.take(), places[place].is_image)
        };
        match refused {
            Some(_) if is_image => {
                self.fleet.fired(FaultKind::OldDisk);
                self.wipe(place);
            }
            Some(reason) => {
                self.fail("start", reason);
            }
            None => {}
        }
    }

    /// The process ends without a last word.
    pub(super) fn end(&mut self, place: usize, again_ms: u64) {
        let kept = self.fleet.kill(place);
        self.hold(kept);
        if let Some(kernel) = self.kernel(place) {
            kernel.exit();
        }
        let machine = &mut self.machines[place];
        machine.process = None;
        machine.paused_until_ms = 0;
        machine.again_ms = again_ms;
    }

    /// The machine loses its power.
    pub(super) fn power_off(&mut self, place: usize, again_ms: u64) {
        self.end(place, again_ms);
        if self.fleet.disks[place].power_loss() > 0 {
            self.fleet.fired(FaultKind::TornWrite);
        }
        self.network.cut_off(&[place]);
        self.network.sim.crash(host(place));
        self.machines[place].is_off = true;
    }

    /// The directory is empty from now on: whoever was there is gone for good.
    pub(super) fn wipe(&mut self, place: usize) {
        self.fleet.note(place, "its directory is emptied");
        self.fleet.disks[place].restore(&DiskImage::default());
        let node = {
            let mut places = self.fleet.places();
            let here = &mut places[place];
            here.disks += 1;
            here.is_image = false;
            here.image = None;
            here.node.take()
        };
        if let Some(node) = node {
            self.fleet.forget(node);
        }
    }

    fn begin_process(&mut self, place: usize) {
        if std::mem::take(&mut self.machines[place].is_off) {
            self.network.join_again(&[place]);
            self.network.sim.bounce(host(place));
        }
        let Some(kernel) = self.kernel(place) else {
            return;
        };
        let fleet = &self.fleet;
        let disk = life_disk(fleet, place);
        if let Some(operations) = self.machines[place].dies_after.take() {
            disk.fail_power_after(operations);
        }
        fleet.begin_life(place, disk.clone());
        let (lives, counters) = {
            let places = fleet.places();
            (places[place].lives, places[place].now.counters.clone())
        };
        fleet.note(place, &format!("life {lives} begins"));
        let seed = fleet.plan.node.seed ^ ((place as u64) << 40) ^ (lives << 20);
        let seed = stream(seed, Stream::Runtime).next_u64();
        let main = lead(Arc::clone(fleet), place, kernel, disk);
        match Process::begin(seed, counters, main) {
            Ok(process) => self.machines[place].process = Some(process),
            Err(error) => {
                self.fail("start", format!("no runtime: {error}"));
            }
        }
        self.next_of_storm(place);
    }

    /// Ends processes that halt or lose their power, and starts those whose time has come.
    fn watch(&mut self, now: u64) {
        for place in 0..self.machines.len() {
            if self.fleet.takes_power_loss(place) {
                self.power_off(place, now + RESTART_MS);
            }
            if self.fleet.has_halted(place) {
                self.end(place, now + RESTART_MS);
            }
            self.storm(place, now);
            let machine = &self.machines[place];
            let waits = machine.process.is_none() && machine.presence == Presence::Here;
            if waits && now >= machine.again_ms {
                self.begin_process(place);
            }
        }
    }

    /// What an operator does: takes out nodes that are gone, and stops one that has handed over its shards.
    fn operate(&mut self) {
        self.looks += 1;
        let Some(state) = self.fleet.newest() else {
            return;
        };
        let is_turn = self.looks.is_multiple_of(ORDER_LOOKS);
        let gone = self.fleet.gone();
        let running: Vec<usize> = self.here();
        for node in gone.iter().filter(|node| state.nodes.contains_key(node)) {
            let other = running.iter().find(|place| self.serves(**place));
            if let (Some(place), true) = (other, is_turn) {
                self.fleet.order(*place, Order::Remove(*node));
            }
        }
        for place in self.leaving.clone() {
            let node = self.fleet.places()[place].node;
            let Some(node) = node else { continue };
            let gone_for_good = !state.nodes.contains_key(&node);
            let named = state
                .shard_map
                .iter()
                .any(|record| record.nodes().any(|other| other == node));
            let leaves = state
                .nodes
                .get(&node)
                .is_some_and(|record| record.state == spandrel_raft::state::NodeState::Draining);
            let here = self.machines[place].presence == Presence::Here;
            if here && leaves && !named && self.serves(place) {
                self.fleet.stop(place);
                self.fleet.forget(node);
                self.machines[place].presence = Presence::Gone;
                if let Some(other) = self.here().first() {
                    self.fleet.move_clients(place, *other);
                }
            } else if here && !leaves && is_turn {
                self.fleet.order(place, Order::Leave);
            } else if !here && gone_for_good {
                self.fleet.fired(FaultKind::Leave);
                self.leaving.retain(|other| *other != place);
            }
        }
        self.strike_postponed(&state);
    }

    fn faults(&mut self) -> Result<(), Broken> {
        let faults = self.fleet.plan.faults.clone();
        let begins = faults.iter().map(|planned| (planned.at_ms, true, planned));
        let ends = faults
            .iter()
            .map(|planned| (planned.at_ms + planned.for_ms, false, planned));
        let mut turns: Vec<(u64, bool, &Planned)> = begins.chain(ends).collect();
        turns.sort_by_key(|(at, begins, _)| (*at, *begins));
        for (at, begins, planned) in turns {
            while self.now_ms() < at {
                self.step()?;
            }
            if begins {
                self.strike(planned);
            } else {
                self.cease(planned);
            }
        }
        let last = self.fleet.plan.node.span_ms;
        while self.now_ms() < last {
            self.step()?;
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<(), Broken> {
        self.end_faults();
        self.fleet.set_stage(Stage::Settling);
        let until = self.now_ms() + REST_MS;
        while let Some(unrest) = self.unrest() {
            if self.now_ms() > until {
                let problem = format!("no rest {REST_MS} ms after the last fault: {unrest}");
                return Err(self.fail("liveness", problem));
            }
            self.pass(100)?;
        }
        self.pass(self.fleet.plan.quiet_ms())
    }

    fn unrest(&self) -> Option<String> {
        let left = self.leaving.first();
        let left = left.map(|place| format!("node {} has not left yet", place + 1));
        left.or_else(|| self.fleet.unrest(&self.here()))
    }

    fn pass(&mut self, ms: u64) -> Result<(), Broken> {
        let until = self.now_ms() + ms.max(TICK_MS);
        while self.now_ms() < until {
            self.step()?;
        }
        Ok(())
    }

    fn checks(&mut self) -> Result<(), Broken> {
        if let Some(state) = self.fleet.newest() {
            let gone = self.fleet.gone();
            let mut demands = self.fleet.world.demands();
            demands.let_off_what_is_gone(&state, &gone);
            let gaps = demands.allow_gaps();
            drop(demands);
            if gaps {
                self.fleet
                    .world
                    .note("not everything has a holder any more");
            }
        }
        self.fleet.world.falsify();
        let here = self.here();
        for place in &here {
            self.stage(*place, Stage::Checking(*place))?;
        }
        if let Some(place) = here.first() {
            self.stage(*place, Stage::Comparing(*place))?;
        }
        match self.fleet.world.plan.outlives_retention() {
            true => self.outlive(&here),
            false => Ok(()),
        }
    }

    /// Checks everything shortly before the first trace may go, and once the last one must be gone.
    fn outlive(&mut self, here: &[usize]) -> Result<(), Broken> {
        let world = Arc::clone(&self.fleet.world);
        let traces = world.traces().clone();
        let until = traces
            .iter()
            .map(|trace| retained_until(&world.plan, trace));
        self.skip_to(
            until
                .min()
                .map(|first| first.minus(CHECK_MS * UnixNanos::PER_MILLI)),
        )?;
        for place in here {
            self.stage(*place, Stage::Checking(*place))?;
        }
        let gone = traces
            .iter()
            .filter_map(|trace| gone_from(&world.plan, trace));
        self.skip_to(gone.max())?;
        for place in here {
            self.stage(*place, Stage::Outliving(*place))?;
        }
        Ok(())
    }

    /// All clocks go on to this time, and the nodes have a while to notice.
    fn skip_to(&mut self, at: Option<UnixNanos>) -> Result<(), Broken> {
        let world = &self.fleet.world;
        let left = at.map_or(0, |at| at.since(world.now()));
        world.clock.skip(left);
        world.note(format!("{} s pass at once", left / UnixNanos::PER_SECOND));
        self.pass(NOTICE_MS)
    }

    /// Lets the node at a place check something, until it is done.
    fn stage(&mut self, place: usize, stage: Stage) -> Result<(), Broken> {
        self.fleet.set_stage(stage);
        let until = self.now_ms() + CHECK_MS;
        while !self.fleet.take_checked(place) {
            if self.now_ms() > until {
                let problem = format!("{stage:?} does not end");
                return Err(self.fail("liveness", problem));
            }
            self.step()?;
        }
        Ok(())
    }
}
