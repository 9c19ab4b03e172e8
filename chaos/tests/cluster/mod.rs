//! What the tests of clusters have in common.

// Each test is a program of its own and uses some of it.
#![allow(dead_code)]

use spandrel_chaos::cluster_process::{CLUSTER_POLICY, ClusterOptions, ClusterProcess, Wiring};
use spandrel_chaos::examination::{Answers, Examination, ensure_none, examine};
use spandrel_chaos::http::Metrics;
use spandrel_chaos::limits::DECIDED_DEADLINE;
use spandrel_chaos::load::{Load, now};
use spandrel_chaos::node_process::MachineOptions;
use spandrel_chaos::observe::{Receipts, wait_until};
use spandrel_chaos::oracle::judge_keeps;
use spandrel_model::ids::UnixNanos;

/// Another one is taken from `SPANDREL_CHAOS_SEED`.
const SEED: u64 = 0x5eed_0003;
const CLIENTS: u64 = 4;

/// A cluster with its clients, which do not run yet.
pub(crate) struct Trial {
    pub(crate) cluster: ClusterProcess,
    pub(crate) load: Load,
    /// No span starts before.
    pub(crate) start: UnixNanos,
}

impl Trial {
    /// Nodes with two copies of each of 16 shards, settled.
    pub(crate) async fn start(nodes: usize, wiring: Wiring) -> anyhow::Result<Self> {
        Self::start_with(nodes, wiring, &["--memory=368MiB"]).await
    }

    /// The same with other flags of the nodes.
    pub(crate) async fn start_with(
        nodes: usize,
        wiring: Wiring,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        Self::seeded(
            nodes,
            wiring,
            &["--replication=2", "--shards=16"],
            arguments,
        )
        .await
    }

    /// The same with other settings of the cluster.
    pub(crate) async fn seeded(
        nodes: usize,
        wiring: Wiring,
        seeds: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        Self::on_machines(nodes, wiring, seeds, arguments, MachineOptions::default()).await
    }

    /// The same on other machines.
    pub(crate) async fn on_machines(
        nodes: usize,
        wiring: Wiring,
        seeds: &[&str],
        arguments: &[&str],
        machine: MachineOptions,
    ) -> anyhow::Result<Self> {
        let start = now()?;
        let options = ClusterOptions {
            nodes,
            seeds,
            arguments,
            policy: CLUSTER_POLICY,
            wiring,
            machine,
        };
        let cluster = ClusterProcess::start(options).await?;
        let load = Load::new(CLIENTS, seed(), start);
        for place in 0..nodes {
            load.add_target(cluster.node(place).ports().otlp_grpc);
        }
        Ok(Self {
            cluster,
            load,
            start,
        })
    }

    /// Waits until every node has decided traces: what happens then falls among verdicts, late spans and pages.
    pub(crate) async fn wait_for_decisions(&mut self) -> anyhow::Result<()> {
        for place in 0..self.cluster.len() {
            let http = self.cluster.node(place).ports().http;
            let decided = async || {
                let metrics = Metrics::read(http).await?;
                Ok(metrics.sum("spandrel_traces_decided_total", "") >= 20.0)
            };
            wait_until("decisions", DECIDED_DEADLINE, decided).await?;
        }
        Ok(())
    }

    /// Everything holds through the nodes at these places, now that the load has stopped.
    pub(crate) async fn examined(
        &self,
        places: &[usize],
        receipts: Receipts,
    ) -> anyhow::Result<Answers> {
        let history = self.load.history();
        let examination = Examination::new(self.start, receipts);
        examine(&self.cluster, places, &history, examination).await
    }

    /// All nodes are well again, under load: the cluster settles as the node at `asked` sees it, everything holds through
    /// every node, and what was kept `before` still is.
    pub(crate) async fn ends_well(&mut self, asked: usize, before: &Answers) -> anyhow::Result<()> {
        let nodes = self.cluster.len();
        self.cluster.wait_until_settled(asked, nodes).await?;
        self.load.wait_for(30).await?;
        self.load.stop().await?;
        self.say("with the victim back");
        let places: Vec<usize> = (0..nodes).collect();
        let after = self.examined(&places, Receipts::Complete).await?;
        ensure_none("before and after", &judge_keeps(before, &after))
    }

    /// For the log of the test: figures, and no verdict.
    pub(crate) fn say(&self, what: &str) {
        let history = self.load.history();
        let traces = history.traces().count();
        let spans = history.acknowledged_spans();
        let report = self.load.report();
        eprintln!("{what}: {traces} traces sent, {spans} spans acknowledged, {report:?}");
    }
}

fn seed() -> u64 {
    match std::env::var("SPANDREL_CHAOS_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => SEED,
    }
}

/// The places below `nodes` but one.
pub(crate) fn all_but(nodes: usize, victim: usize) -> Vec<usize> {
    (0..nodes).filter(|place| *place != victim).collect()
}

/// What answers may say of themselves while a node is away. Without the first one none is whole: while it was alone, it
/// alone held every shard, so that nobody else can say that nothing is kept from that time.
pub(crate) fn receipts_without(victim: usize) -> Receipts {
    if victim == 0 {
        Receipts::Honest
    } else {
        Receipts::Complete
    }
}
