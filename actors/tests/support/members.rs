//! Nodes of one cluster in one process, over links in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::membership::NodeStart;
use spandrel_actors::{BlockingMode, Env, Node, NodeOptions, StartError};
use spandrel_model::cluster::{ClusterView, NodeRole, NodeUse};
use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_model::policy::KEEP_ALL_POLICY;
use spandrel_raft::state::{NodeAddresses, ShardChange, ShardRecord};
use spandrel_raft::{ClusterState, Command, Conflict, ProposeError};
use spandrel_storage::disk::SimulatedDisk;
use tempfile::TempDir;

use super::TestClock;
use super::network::Network;

/// Longest wait for something that the cluster does by itself, in seconds: elections and silence take one to three.
pub const PATIENCE_S: u64 = 10;

pub struct Cluster {
    pub network: Arc<Network>,
    pub clock: Arc<TestClock>,
    pub dir: TempDir,
    pub require_join_token: bool,
    pub replication: u8,
    pub bucket_nanos: u64,
    /// Disks of nodes that have one of their own, with room for this reserve.
    pub disks: BTreeMap<u64, SimulatedDisk>,
    /// How long work on the disk takes, of nodes where it takes time.
    pub disk_times: BTreeMap<u64, Arc<dyn Fn() -> Duration + Send + Sync>>,
}

/// What a node with a disk of its own keeps free.
pub const RESERVE_BYTES: u64 = 16 << 20;

impl Cluster {
    pub fn new() -> Self {
        Self {
            network: Arc::default(),
            clock: TestClock::new(),
            dir: TempDir::new().unwrap(),
            require_join_token: false,
            replication: 3,
            bucket_nanos: super::HOUR,
            disks: BTreeMap::new(),
            disk_times: BTreeMap::new(),
        }
    }

    pub fn data_dir(&self, number: u64) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    pub fn options(&self, number: u64, start: NodeStart) -> NodeOptions {
        let mut options = super::options(&self.data_dir(number), KEEP_ALL_POLICY);
        options.seed.replication = self.replication;
        if self.disks.contains_key(&number) {
            options.disk_reserve_bytes = Some(RESERVE_BYTES);
        }
        NodeOptions {
            start,
            bucket_nanos: self.bucket_nanos,
            require_join_token: self.require_join_token,
            new_disk_id: number + 100,
            addresses: NodeAddresses {
                link: address(number),
                ..NodeAddresses::default()
            },
            ..options
        }
    }

    pub fn environment(&self, number: u64) -> Env {
        let mut env = super::environment(&self.clock);
        if let Some(disk) = self.disks.get(&number) {
            env.disk = Arc::new(disk.clone());
        }
        if let Some(takes) = self.disk_times.get(&number) {
            env.blocking = BlockingMode::Inline(Arc::clone(takes));
        }
        Env {
            links: self.network.links(&address(number)),
            ..env
        }
    }

    pub async fn try_start(&self, number: u64, start: NodeStart) -> Result<Node, StartError> {
        Node::start(self.options(number, start), self.environment(number)).await
    }

    pub async fn found(&self) -> Node {
        self.try_start(1, NodeStart::Found).await.unwrap()
    }

    /// The node numbered so, joining at the first.
    pub async fn join(&self, number: u64) -> Node {
        self.try_start(number, at(&[1])).await.unwrap()
    }

    /// The same node again, from its directory.
    pub async fn restart(&self, number: u64) -> Node {
        self.try_start(number, NodeStart::Found).await.unwrap()
    }

    /// Three nodes, all of them voters.
    pub async fn three(&self) -> [Node; 3] {
        let nodes = [self.found().await, self.join(2).await, self.join(3).await];
        until(&nodes[0], |view| voters(view) == [1, 2, 3]).await;
        nodes
    }
}

pub fn address(number: u64) -> String {
    format!("node-{number}:7200")
}

/// Joining at these nodes.
pub fn at(numbers: &[u64]) -> NodeStart {
    NodeStart::Join {
        addresses: numbers.iter().copied().map(address).collect(),
        token: None,
        expected_shards: None,
    }
}

pub fn voters(view: &ClusterView) -> Vec<u64> {
    let nodes = view.nodes.iter();
    let voting = nodes.filter(|node| matches!(node.role, NodeRole::Leader | NodeRole::Voter));
    voting.map(|node| node.node.0).collect()
}

pub fn used(view: &ClusterView, node: u64) -> Option<NodeUse> {
    let node = view.nodes.iter().find(|one| one.node == NodeId(node))?;
    Some(node.state)
}

/// Waits until the cluster looks so at a node.
pub async fn until(node: &Node, is_so: impl Fn(&ClusterView) -> bool) -> ClusterView {
    let admin = node.admin();
    let watching = async {
        loop {
            let view = admin.cluster().await;
            if is_so(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(PATIENCE_S), watching).await {
        Ok(view) => view,
        Err(_) => panic!("not in time: {:#?}", admin.cluster().await),
    }
}

/// Waits until nodes hold the same state, and returns it.
pub async fn same_state(nodes: &[&Node]) -> Arc<ClusterState> {
    let watching = async {
        loop {
            let states: Vec<_> = nodes.iter().map(|node| node.cluster()).collect();
            if states.iter().all(|state| *state == states[0]) {
                return states[0].clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_secs(PATIENCE_S);
    tokio::time::timeout(limit, watching)
        .await
        .expect("in time")
}

/// Gives all shards to a primary and its in-sync copies, as replication will.
pub async fn place(node: &Node, primary: u64, in_sync: &[u64]) {
    let primary = NodeId(primary);
    let isr: Vec<NodeId> = in_sync.iter().copied().map(NodeId).collect();
    // The next primary must be in sync before it may lead.
    set_shards(node, |old| ShardRecord {
        term: Term(old.term.0 + 1),
        isr: old
            .isr
            .iter()
            .chain(&isr)
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        filling: Vec::new(),
        ..old.clone()
    })
    .await;
    set_shards(node, |old| ShardRecord {
        term: Term(old.term.0 + u64::from(old.primary != primary)),
        primary,
        isr: isr.clone(),
        filling: Vec::new(),
        ..old.clone()
    })
    .await;
}

/// Changes all shards at once; again when replication has changed one meanwhile.
pub async fn set_shards(node: &Node, change: impl Fn(&ShardRecord) -> ShardRecord) {
    let changing = async {
        loop {
            let state = node.settings().linearizable().await.unwrap();
            let changes = (0..).map(ShardId).zip(&state.shard_map);
            let changes = changes.map(|(shard, old)| ShardChange {
                shard,
                expected: old.clone(),
                record: change(old),
            });
            let changes = changes.collect();
            let proposed = node.settings().propose(Command::SetShards { changes });
            match proposed.await {
                Ok(_) => return,
                Err(ProposeError::Conflict(Conflict::ShardChanged { .. })) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let limit = Duration::from_secs(PATIENCE_S);
    tokio::time::timeout(limit, changing)
        .await
        .expect("in time");
}

pub async fn stop_all(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        node.stop().await;
    }
}
