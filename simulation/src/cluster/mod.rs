//! Several whole nodes in one simulation: openraft, the links, journals and blocks as in production, over the network of
//! turmoil and disks of their own. Faults strike between two steps of a millisecond.
//!
//! Not simulated: threads, a process that stands still while its connections live, and clocks that differ.

mod fleet;
mod host;
mod plan;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use spandrel_storage::disk::SimulatedDisk;
use turmoil::Sim;

use self::fleet::{Fleet, Stage};
pub use self::plan::ClusterPlan;
use self::plan::{Fault, Planned};
use self::streams::host;
use crate::check::violation;
use crate::random::{Stream, stream};
use crate::world::World;

/// Milliseconds of a step: what happens within one is at one time for the clocks of the nodes.
const TICK_MS: u64 = 1;
/// Milliseconds after which a process that ended by itself is started again.
const RESTART_MS: u64 = 1_000;
/// Milliseconds after the last fault in which the cluster comes to rest.
const REST_MS: u64 = 120_000;
/// Milliseconds that a check of everything through one node may take.
const CHECK_MS: u64 = 120_000;
/// Bytes of a connection that are under way at most.
const TCP_BYTES: usize = 65_536;
/// Longest run in seconds: a bound for turmoil that no run reaches.
const LONGEST_S: u64 = 86_400;

/// Runs a plan to its end, or to the first promise that is broken.
pub(crate) fn run(world: &Arc<World>, plan: ClusterPlan) {
    use rand::Rng;
    let mut seeds = stream(plan.node.seed, Stream::Disk);
    let disks = (0..plan.nodes).map(|_| SimulatedDisk::new(seeds.next_u64()));
    let disks = disks.collect();
    let mut builder = turmoil::Builder::new();
    builder
        .tick_duration(Duration::from_millis(TICK_MS))
        .simulation_duration(Duration::from_secs(LONGEST_S))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(plan.latency_ms.max(1)))
        .tcp_capacity(TCP_BYTES)
        .rng_seed(seeds.next_u64());
    let fleet = Arc::new(Fleet::new(Arc::clone(world), plan, disks));
    let mut sim = builder.build();
    for place in 0..fleet.plan.nodes {
        let fleet = Arc::clone(&fleet);
        sim.host(host(place), move || {
            let fleet = Arc::clone(&fleet);
            async move {
                host::lead(fleet, place).await;
                Ok(())
            }
        });
    }
    let mut player = Player {
        down: vec![None; fleet.plan.nodes],
        fleet: Arc::clone(&fleet),
        sim,
    };
    player.play();
    // Nothing that ends with the simulation writes to a disk.
    (0..fleet.plan.nodes).for_each(|place| fleet.kill(place));
}

/// Steps the simulation and lets faults strike.
struct Player<'a> {
    fleet: Arc<Fleet>,
    sim: Sim<'a>,
    /// For each place whose process has ended: when it starts again, in milliseconds.
    down: Vec<Option<u64>>,
}

/// The run is over: a promise is broken.
struct Broken;

impl Player<'_> {
    fn play(&mut self) {
        if self.faults().is_ok() && self.rest().is_ok() {
            let _ = self.checks();
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn fail(&self, invariant: &'static str, problem: String) -> Broken {
        self.fleet.world.violate(violation(invariant, problem));
        Broken
    }

    fn step(&mut self) -> Result<(), Broken> {
        let nanos = u64::try_from(self.sim.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.fleet.world.clock.step_to(nanos);
        if let Err(error) = self.sim.step() {
            return Err(self.fail("answer", format!("the simulation: {error}")));
        }
        self.watch();
        match self.fleet.world.violation() {
            None => Ok(()),
            Some(_) => Err(Broken),
        }
    }

    /// Ends processes that halt, and starts those again whose time has come.
    fn watch(&mut self) {
        let now = self.now_ms();
        for place in 0..self.down.len() {
            if self.fleet.has_halted(place) {
                self.end(place, now + RESTART_MS);
            }
            match self.down[place] {
                None if !self.sim.is_host_running(host(place)) => {
                    self.fleet.kill(place);
                    self.down[place] = Some(now + RESTART_MS);
                }
                Some(again) if now >= again => {
                    self.down[place] = None;
                    self.sim.bounce(host(place));
                }
                _ => {}
            }
        }
    }

    /// The process ends without a last word.
    fn end(&mut self, place: usize, again_ms: u64) {
        self.fleet.kill(place);
        self.sim.crash(host(place));
        self.down[place] = Some(again_ms);
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
                self.begin(planned);
            } else {
                self.cease(&planned.fault);
            }
        }
        let last = self.fleet.plan.node.span_ms;
        while self.now_ms() < last {
            self.step()?;
        }
        Ok(())
    }

    fn begin(&mut self, planned: &Planned) {
        self.fleet.world.note(format!(
            "fault for {} ms: {:?}",
            planned.for_ms, planned.fault
        ));
        let again_ms = planned.at_ms + planned.for_ms;
        match &planned.fault {
            Fault::Crash { place, loses_power } => {
                self.end(*place, again_ms);
                if *loses_power {
                    self.fleet.disks[*place].power_loss();
                }
            }
            Fault::Stop { place } => self.fleet.stop(*place),
            Fault::FailedSync { place, syncs } => self.fleet.fail_sync(*place, *syncs),
            Fault::Partition { side } => {
                self.each_pair(side, |sim, one, other| sim.partition(one, other))
            }
            Fault::OneWay { from, to } => self.sim.partition_oneway(host(*from), host(*to)),
            Fault::Held { one, other } => self.sim.hold(host(*one), host(*other)),
            Fault::Slow { one, other, ms } => self.latency(*one, *other, *ms),
        }
    }

    fn cease(&mut self, fault: &Fault) {
        match fault {
            Fault::Crash { .. } | Fault::Stop { .. } | Fault::FailedSync { .. } => {}
            Fault::Partition { side } => {
                self.each_pair(side, |sim, one, other| sim.repair(one, other))
            }
            Fault::OneWay { from, to } => self.sim.repair_oneway(host(*from), host(*to)),
            Fault::Held { one, other } => self.sim.release(host(*one), host(*other)),
            Fault::Slow { one, other, .. } => {
                self.latency(*one, *other, self.fleet.plan.latency_ms);
            }
        }
    }

    fn latency(&mut self, one: usize, other: usize, ms: u64) {
        let latency = Duration::from_millis(ms.max(1));
        self.sim
            .set_link_max_message_latency(host(one), host(other), latency);
    }

    fn each_pair(&self, side: &[usize], act: impl Fn(&Sim<'_>, String, String)) {
        for one in side {
            for other in (0..self.fleet.plan.nodes).filter(|other| !side.contains(other)) {
                act(&self.sim, host(*one), host(other));
            }
        }
    }

    fn rest(&mut self) -> Result<(), Broken> {
        for one in 0..self.fleet.plan.nodes {
            for other in 0..one {
                self.sim.release(host(one), host(other));
                self.sim.repair(host(one), host(other));
            }
        }
        self.fleet.set_stage(Stage::Settling);
        let until = self.now_ms() + REST_MS;
        while let Some(unrest) = self.fleet.unrest() {
            if self.now_ms() > until {
                let problem = format!("no rest {REST_MS} ms after the last fault: {unrest}");
                return Err(self.fail("liveness", problem));
            }
            self.pass(100)?;
        }
        self.pass(self.fleet.plan.node.quiet_ms())
    }

    fn pass(&mut self, ms: u64) -> Result<(), Broken> {
        let until = self.now_ms() + ms;
        while self.now_ms() < until {
            self.step()?;
        }
        Ok(())
    }

    fn checks(&mut self) -> Result<(), Broken> {
        for place in 0..self.fleet.plan.nodes {
            self.fleet.set_stage(Stage::Checking(place));
            let until = self.now_ms() + CHECK_MS;
            while !self.fleet.has_checked(place) {
                if self.now_ms() > until {
                    let problem = format!("the checks of node {} do not end", place + 1);
                    return Err(self.fail("liveness", problem));
                }
                self.step()?;
            }
        }
        Ok(())
    }
}
