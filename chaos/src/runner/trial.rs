//! A cluster, its clients, and the faults that strike it, one after the other.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spandrel_chaos::attempts::{AttemptLog, millis};
use spandrel_chaos::cluster_process::{CLUSTER_POLICY, ClusterOptions, ClusterProcess, Wiring};
use spandrel_chaos::examination::examine;
use spandrel_chaos::load::{Load, LoadReport};
use spandrel_chaos::observe::Receipts;
use spandrel_model::ids::UnixNanos;

use super::limits::{CALM, CLIENTS, FIRST_REQUESTS, FURTHER_REQUESTS, SLOW_DELAY};
use super::nemesis::{Nemesis, Schedule, Stroke};
use super::report::{Fault, Setup};
use super::rot::rot;

/// Flags of every node. Spans of dropped traces are asked for at the end of the longest run.
const ARGUMENTS: [&str; 2] = ["--memory=368MiB", "--journal-recovery-window=3h"];

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
        let receipts = Receipts::Complete;
        let answers = examine(&self.cluster, &places, &history, self.start, receipts).await;
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
        let place = self.faults.len();
        self.faults.push(Fault::new(stroke, self.now_ms()));
        self.strike(stroke).await.map_err(Failure::Cluster)?;
        let id = self.cluster.id(victim).to_owned();
        tokio::time::sleep(stroke.hold).await;
        self.heal(stroke).await.map_err(Failure::Cluster)?;
        let healed_ms = self.now_ms();
        if let Some(fault) = self.faults.get_mut(place) {
            fault.node = id;
            fault.healed_ms = Some(healed_ms);
        }
        let asked = usize::from(victim == 0);
        self.settle(asked).await.map_err(Failure::Cluster)?;
        let settled_ms = self.now_ms();
        if let Some(fault) = self.faults.get_mut(place) {
            fault.settled_ms = Some(settled_ms);
        }
        self.say("settled");
        tokio::time::sleep(CALM).await;
        self.settle(asked).await.map_err(Failure::Cluster)
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
            Nemesis::Restart => self.cluster.node_mut(victim).stop().await,
            Nemesis::Join => {
                let joined = self.cluster.join().await?;
                let otlp = self.cluster.node(joined).ports().otlp_grpc;
                self.load.add_target(otlp);
                Ok(())
            }
        }
    }

    async fn heal(&mut self, stroke: Stroke) -> anyhow::Result<()> {
        let victim = stroke.victim;
        match stroke.nemesis {
            Nemesis::Kill | Nemesis::Restart | Nemesis::Rot => {
                self.cluster.node_mut(victim).restart().await?;
                self.cluster.ensure_same_identity(victim).await
            }
            Nemesis::Pause => self.cluster.node(victim).resume(),
            Nemesis::Partition | Nemesis::Slow => {
                self.cluster.wires()?.heal();
                Ok(())
            }
            // It is there when it has joined.
            Nemesis::Join => Ok(()),
        }
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

fn now() -> anyhow::Result<UnixNanos> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(UnixNanos(u64::try_from(since.as_nanos())?))
}
