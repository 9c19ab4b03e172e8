//! A cluster, its clients, and the faults that strike it, one after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use spandrel_chaos::attempts::{AttemptLog, millis};
use spandrel_chaos::cluster_process::{CLUSTER_POLICY, ClusterOptions, ClusterProcess, Wiring};
use spandrel_chaos::examination::{Examination, examine};
use spandrel_chaos::limits::SMALL_DISK_RESERVE_BYTES;
use spandrel_chaos::load::{Load, LoadReport, now};
use spandrel_chaos::node_process::{ClockKind, DiskKind, MachineOptions};
use spandrel_chaos::observe::Receipts;
use spandrel_model::ids::UnixNanos;

use super::limits::{
    CALM, CLIENTS, CLOCK_STEP, FIRST_REQUESTS, FURTHER_REQUESTS, FURTHEST_AHEAD, SLOW_DELAY,
};
use super::nemesis::{Nemeses, Nemesis, Schedule, Stroke};
use super::report::{Fault, Setup};
use super::rot::rot;
use super::shift::Shift;

/// Flags of every node. Spans of dropped traces are asked for at the end of the longest run.
const ARGUMENTS: [&str; 2] = ["--memory=368MiB", "--journal-recovery-window=3h"];

/// What makes a node speak as the version before.
const VERSION_BEFORE: &str = "--link-version=1";

/// What nodes need of their own for these faults.
pub(crate) fn machine(nemeses: &Nemeses) -> MachineOptions {
    MachineOptions {
        disk: match nemeses.contains(Nemesis::DiskFull) {
            true => DiskKind::Small,
            false => DiskKind::Shared,
        },
        clock: match nemeses.contains(Nemesis::Clock) {
            true => ClockKind::Shifted,
            false => ClockKind::System,
        },
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ending {
    /// What struck, and when.
    pub(crate) faults: Vec<Fault>,
    /// Spans that were acknowledged, each counted once.
    pub(crate) acknowledged_spans: usize,
    /// What the clients met.
    pub(crate) load: LoadReport,
    /// The cluster was well after each fault.
    pub(crate) settled: anyhow::Result<()>,
    /// No client has failed.
    pub(crate) clients: anyhow::Result<()>,
    /// Everything holds through every node.
    pub(crate) examined: anyhow::Result<()>,
}

/// As what a node is started.
#[derive(Debug, Clone, Copy)]
enum Version {
    Before,
    Now,
}

/// Why no further fault strikes.
enum Failure {
    Cluster(anyhow::Error),
    Clients(anyhow::Error),
}

/// A cluster under load.
pub(crate) struct Trial {
    cluster: ClusterProcess,
    load: Load,
    /// No span starts before.
    start: UnixNanos,
    /// What all times of the report count from.
    since: Instant,
    faults: Vec<Fault>,
}

impl Trial {
    /// A cluster that has settled, and clients whose first requests were acknowledged.
    ///
    /// # Errors
    /// When it does not come to that.
    pub(crate) async fn start(setup: &Setup, history: &Path) -> anyhow::Result<Self> {
        let start = now()?;
        let mut of_wires = [Nemesis::Partition, Nemesis::Slow].into_iter();
        let strikes_wires = of_wires.any(|nemesis| setup.nemeses.contains(nemesis));
        let copies = format!("--replication={}", setup.copies);
        let cluster = ClusterProcess::start(ClusterOptions {
            nodes: setup.nodes,
            seeds: &[&copies, "--shards=16"],
            arguments: &ARGUMENTS,
            policy: CLUSTER_POLICY,
            wiring: if strikes_wires {
                Wiring::Proxied
            } else {
                Wiring::Direct
            },
            machine: machine(&setup.nemeses),
        })
        .await?;
        let mut load = Load::new(CLIENTS, setup.seed, start);
        for place in 0..setup.nodes {
            load.add_target(cluster.node(place).ports().otlp_grpc);
        }
        let since = Instant::now();
        load.note_attempts(AttemptLog::create(history, since)?);
        load.run();
        load.wait_for(FIRST_REQUESTS).await?;
        Ok(Self {
            cluster,
            load,
            start,
            since,
            faults: Vec::new(),
        })
    }

    /// Faults strike until the time is over; then everything is judged.
    ///
    /// # Errors
    /// When the history of the clients cannot be written. What the cluster does wrong is part of the ending.
    pub(crate) async fn run(mut self, setup: &Setup) -> anyhow::Result<Ending> {
        let (mut settled, mut clients) = match self.strike_until_the_end(setup).await {
            Ok(()) => (Ok(()), Ok(())),
            Err(Failure::Cluster(error)) => (Err(error), Ok(())),
            Err(Failure::Clients(error)) => (Ok(()), Err(error)),
        };
        if settled.is_ok() {
            settled = self.settle(0).await;
        }
        let stopped = self.load.stop().await;
        clients = clients.and(stopped);
        self.load.finish_attempts()?;
        let history = self.load.history();
        let traces = history.traces().count();
        let nodes = self.cluster.len();
        self.say(&format!("{nodes} nodes are asked for {traces} traces"));
        let places: Vec<usize> = (0..nodes).collect();
        let mut examination = Examination::new(self.start, Receipts::Complete);
        if setup.nemeses.contains(Nemesis::Clock) {
            // What came while a clock was ahead waits until that time has come.
            examination.decided_deadline += FURTHEST_AHEAD;
        }
        let answers = examine(&self.cluster, &places, &history, examination).await;
        Ok(Ending {
            acknowledged_spans: history.acknowledged_spans(),
            load: self.load.report(),
            settled,
            clients,
            examined: answers.map(drop),
            faults: self.faults,
        })
    }

    async fn strike_until_the_end(&mut self, setup: &Setup) -> Result<(), Failure> {
        let mut schedule = Schedule::new(setup.nemeses.clone(), setup.seed);
        let end = Duration::from_secs(60 * setup.minutes);
        while self.since.elapsed() < end {
            match schedule.next(self.cluster.len()) {
                Some(stroke) => self.suffer(stroke).await?,
                // The load alone goes on.
                None => tokio::time::sleep(CALM).await,
            }
            let served = self.load.wait_for(FURTHER_REQUESTS).await;
            served.map_err(Failure::Clients)?;
        }
        Ok(())
    }

    /// One fault, from the strike until the cluster is well and some calm has passed.
    async fn suffer(&mut self, stroke: Stroke) -> Result<(), Failure> {
        let (nemesis, victim) = (stroke.nemesis, stroke.victim);
        self.say(&format!(
            "{} strikes place {victim} for {:?}",
            nemesis.as_str(),
            stroke.hold
        ));
        let asked = usize::from(victim == 0);
        let suffered = match nemesis {
            Nemesis::Upgrade => self.upgrade_and_back(stroke).await,
            _ => self.suffer_one(stroke).await,
        };
        suffered.map_err(Failure::Cluster)?;
        self.say("settled");
        tokio::time::sleep(CALM).await;
        self.settle(asked).await.map_err(Failure::Cluster)
    }

    async fn suffer_one(&mut self, stroke: Stroke) -> anyhow::Result<()> {
        let place = self.faults.len();
        self.faults.push(Fault::new(stroke, self.now_ms()));
        self.strike(stroke).await?;
        let id = self.cluster.id(stroke.victim).to_owned();
        self.hold(stroke).await?;
        self.heal(stroke).await?;
        let healed_ms = self.now_ms();
        if let Some(fault) = self.faults.get_mut(place) {
            fault.node = id;
            fault.healed_ms = Some(healed_ms);
        }
        self.settle(usize::from(stroke.victim == 0)).await?;
        let settled_ms = self.now_ms();
        if let Some(fault) = self.faults.get_mut(place) {
            fault.settled_ms = Some(settled_ms);
        }
        Ok(())
    }

    /// Each node in turn, from the victim on, is replaced by one of the version before; and after a while back.
    async fn upgrade_and_back(&mut self, stroke: Stroke) -> anyhow::Result<()> {
        for version in [Version::Before, Version::Now] {
            for step in 0..self.cluster.len() {
                let victim = (stroke.victim + step) % self.cluster.len();
                let node = self.cluster.node_mut(victim);
                match version {
                    Version::Before => node.add_argument(VERSION_BEFORE),
                    Version::Now => node.drop_argument(VERSION_BEFORE),
                }
                let step = Stroke {
                    victim,
                    hold: Duration::ZERO,
                    ..stroke
                };
                self.suffer_one(step).await?;
            }
            self.say(&format!("all nodes are of the version {version:?}"));
            tokio::time::sleep(stroke.hold).await;
        }
        Ok(())
    }

    async fn strike(&mut self, stroke: Stroke) -> anyhow::Result<()> {
        let victim = stroke.victim;
        match stroke.nemesis {
            Nemesis::Kill => self.cluster.node_mut(victim).kill(),
            Nemesis::Pause => self.cluster.node(victim).pause(),
            Nemesis::Partition => {
                self.cluster.wires()?.cut_off(victim);
                Ok(())
            }
            Nemesis::Slow => {
                self.cluster.wires()?.slow_down(victim, SLOW_DELAY);
                Ok(())
            }
            Nemesis::Rot => {
                self.cluster.node_mut(victim).kill()?;
                let directory = self.cluster.node(victim).data_dir();
                let done = rot(&directory, millis(stroke.hold))?;
                self.say(done.as_deref().unwrap_or("there is nothing that could rot"));
                Ok(())
            }
            Nemesis::Restart | Nemesis::Upgrade => self.cluster.node_mut(victim).stop().await,
            Nemesis::DiskFull => self.fill_disk(stroke),
            // The clock is set while it holds.
            Nemesis::Clock => Ok(()),
            Nemesis::Leave => {
                let asked = usize::from(victim == 0);
                self.cluster.leave(victim, asked).await?;
                self.say("it has left");
                Ok(())
            }
            Nemesis::Join => {
                let joined = self.cluster.join().await?;
                let otlp = self.cluster.node(joined).ports().otlp_grpc;
                self.load.add_target(otlp);
                Ok(())
            }
        }
    }

    /// Of what the node is to keep free, three quarters are left, or a quarter, or nothing.
    fn fill_disk(&self, stroke: Stroke) -> anyhow::Result<()> {
        let room_bytes = match millis(stroke.hold) % 3 {
            0 => 0,
            1 => SMALL_DISK_RESERVE_BYTES / 4,
            _ => SMALL_DISK_RESERVE_BYTES / 4 * 3,
        };
        let disk = self.cluster.node(stroke.victim).disk()?;
        let before = disk.free_bytes()?;
        disk.fill(room_bytes)?;
        self.say(&format!(
            "of {before} bytes of its disk {room_bytes} are left"
        ));
        Ok(())
    }

    async fn hold(&self, stroke: Stroke) -> anyhow::Result<()> {
        if stroke.nemesis != Nemesis::Clock {
            tokio::time::sleep(stroke.hold).await;
            return Ok(());
        }
        let shift = Shift::drawn(millis(stroke.hold));
        self.say(&shift.to_string());
        let (clock, since) = (self.cluster.node(stroke.victim).clock()?, Instant::now());
        while since.elapsed() < stroke.hold {
            clock.set(shift.ahead_ms(since.elapsed()))?;
            tokio::time::sleep(CLOCK_STEP).await;
        }
        Ok(())
    }

    async fn heal(&mut self, stroke: Stroke) -> anyhow::Result<()> {
        let victim = stroke.victim;
        match stroke.nemesis {
            Nemesis::Kill | Nemesis::Restart | Nemesis::Rot | Nemesis::Upgrade => {
                self.start_again(victim).await
            }
            Nemesis::DiskFull => {
                self.cluster.node(victim).disk()?.clear()?;
                // A node whose write failed has stopped itself; whoever supervises it starts it again.
                if self.cluster.node_mut(victim).has_ended()? {
                    self.say("it has stopped itself, and is started again");
                    self.start_again(victim).await?;
                }
                Ok(())
            }
            Nemesis::Clock => self.cluster.node(victim).clock()?.set(0),
            Nemesis::Leave => self.cluster.replace(victim).await,
            Nemesis::Pause => self.cluster.node(victim).resume(),
            Nemesis::Partition | Nemesis::Slow => {
                self.cluster.wires()?.heal();
                Ok(())
            }
            // It is there when it has joined.
            Nemesis::Join => Ok(()),
        }
    }

    async fn start_again(&mut self, place: usize) -> anyhow::Result<()> {
        self.cluster.node_mut(place).restart().await?;
        self.cluster.ensure_same_identity(place).await
    }

    async fn settle(&self, asked: usize) -> anyhow::Result<()> {
        let nodes = self.cluster.len();
        self.cluster.wait_until_settled(asked, nodes).await
    }

    fn now_ms(&self) -> u64 {
        millis(self.since.elapsed())
    }

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.since.elapsed().as_secs_f64());
    }
}
