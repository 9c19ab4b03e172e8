//! A group of three over a transport in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use spandrel_model::ids::{Bucket, NodeId, ShardId, Term};
use spandrel_raft::limits::MAX_MESSAGE_BYTES;
use spandrel_raft::state::{HolderChange, HolderKey};
use spandrel_raft::{
    ClusterSeed, Command, ProposeError, RaftCall, RaftOptions, RaftTransport, Settings, Start,
    TransportError,
};
use spandrel_storage::disk::RealDisk;
use tempfile::TempDir;

const CLUSTER: u64 = 5;

/// The nodes that can be reached.
#[derive(Default)]
struct Network {
    nodes: Mutex<BTreeMap<NodeId, Settings>>,
    snapshot_pieces: AtomicUsize,
}

struct Link {
    from: NodeId,
    network: Arc<Network>,
}

#[async_trait]
impl RaftTransport for Link {
    async fn call(
        &self,
        to: NodeId,
        call: RaftCall,
        request: Vec<u8>,
        _deadline: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        assert!(request.len() <= MAX_MESSAGE_BYTES);
        let known = |id| self.network.nodes.lock().unwrap().get(&id).cloned();
        let (Some(peer), Some(_)) = (known(to), known(self.from)) else {
            let reason = "cut off".to_owned();
            return Err(TransportError::Unreachable { to, reason });
        };
        if call == RaftCall::Snapshot {
            self.network.snapshot_pieces.fetch_add(1, Ordering::Relaxed);
        }
        let answer = peer.answer(self.from, &request).await;
        answer.map_err(|error| TransportError::NoAnswer {
            to,
            reason: error.to_string(),
        })
    }
}

struct Cluster {
    network: Arc<Network>,
    dir: TempDir,
}

impl Cluster {
    async fn found() -> (Self, Settings) {
        let cluster = Self {
            network: Arc::default(),
            dir: TempDir::new().unwrap(),
        };
        let seed = ClusterSeed {
            cluster_id: CLUSTER,
            routing_key: 77,
            shards: 64,
            replication: 3,
            retention_seconds: 604_800,
            policy_yaml: "policies: []".to_owned(),
        };
        let first = cluster.start(1, Start::Found(seed)).await;
        (cluster, first)
    }

    async fn start(&self, node: u64, start: Start) -> Settings {
        let node = NodeId(node);
        let options = RaftOptions {
            disk: Arc::new(RealDisk),
            dir: Path::join(self.dir.path(), node.0.to_string()),
            node,
            start,
        };
        let link = Link {
            from: node,
            network: self.network.clone(),
        };
        let settings = Settings::open(options, Arc::new(link)).await.unwrap();
        let mut nodes = self.network.nodes.lock().unwrap();
        nodes.insert(node, settings.clone());
        settings
    }

    async fn join(&self, node: u64) -> Settings {
        let cluster_id = CLUSTER;
        self.start(node, Start::Join { cluster_id }).await
    }

    fn cut_off(&self, node: NodeId) -> Settings {
        self.network.nodes.lock().unwrap().remove(&node).unwrap()
    }

    async fn stop(&self) {
        let nodes = std::mem::take(&mut *self.network.nodes.lock().unwrap());
        for settings in nodes.into_values() {
            settings.shutdown().await;
        }
    }
}

/// Three voters, led by the first.
async fn three() -> (Cluster, [Settings; 3]) {
    let (cluster, first) = Cluster::found().await;
    let (second, third) = (cluster.join(2).await, cluster.join(3).await);
    first.add_learner(NodeId(2)).await.unwrap();
    first.add_learner(NodeId(3)).await.unwrap();
    let voters: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
    first.set_voters(voters.clone()).await.unwrap();
    assert_eq!(first.members().voters, voters);
    (cluster, [first, second, third])
}

async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(seconds);
    tokio::time::timeout(limit, future).await.expect("in time")
}

async fn retention_becomes(settings: &Settings, seconds: u64) {
    let mut states = settings.watch();
    let seen = states.wait_for(|state| state.retention_seconds == seconds);
    within(5, seen).await.unwrap();
}

fn retention(expected_seconds: u64, seconds: u64) -> Command {
    Command::SetRetention {
        expected_seconds,
        seconds,
    }
}

#[tokio::test(start_paused = true)]
async fn any_node_proposes_and_all_apply() {
    let (cluster, nodes) = three().await;
    // when a follower proposes
    let response = nodes[2].propose(retention(604_800, 86_400)).await.unwrap();
    // then it has applied the command itself, a linearizable read elsewhere shows it, and all follow
    assert!(nodes[2].state().applied_index >= response.index);
    let read = nodes[1].linearizable().await.unwrap();
    assert_eq!(read.retention_seconds, 86_400);
    for node in &nodes {
        retention_becomes(node, 86_400).await;
    }
    // and its conflict comes back to it
    let refused = nodes[2].propose(retention(604_800, 7_200)).await;
    assert!(
        matches!(refused, Err(ProposeError::Conflict(_))),
        "{refused:?}"
    );
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_group_survives_its_leader_and_the_leader_comes_back() {
    let (cluster, nodes) = three().await;
    nodes[0].propose(retention(604_800, 86_400)).await.unwrap();

    // when the leader is gone
    let old = cluster.cut_off(NodeId(1));
    old.shutdown().await;
    drop(old);

    // then the two others go on within the promised time
    within(3, nodes[1].leader_changed(Some(NodeId(1)))).await;
    within(3, nodes[1].propose(retention(86_400, 7_200)))
        .await
        .unwrap();
    retention_becomes(&nodes[2], 7_200).await;

    // and the old leader catches up when it is back
    let back = cluster.join(1).await;
    assert!(!back.created());
    retention_becomes(&back, 7_200).await;
    assert_eq!(*back.linearizable().await.unwrap(), *nodes[1].state());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_majority_takes_nothing() {
    let (cluster, nodes) = three().await;
    let others = [2, 3].map(|node| cluster.cut_off(NodeId(node)));

    let proposed = nodes[0].propose(retention(604_800, 86_400)).await;
    let read = nodes[0].linearizable().await;

    assert!(
        matches!(proposed, Err(ProposeError::OutcomeUnknown { .. })),
        "{proposed:?}"
    );
    assert!(
        matches!(read, Err(ProposeError::Unavailable { .. })),
        "{read:?}"
    );
    assert_eq!(nodes[0].state().retention_seconds, 604_800);
    for other in others {
        other.shutdown().await;
    }
    cluster.stop().await;
}

/// A change of many holders: some 80 KiB of state.
fn many_holders(bucket: u32) -> Command {
    let holders: Vec<NodeId> = (1..=14).map(NodeId).collect();
    let change = |number: u16| HolderChange {
        bucket: Bucket(bucket),
        key: HolderKey {
            shard: ShardId(number % 64),
            term: Term(u64::from(number / 64)),
        },
        expected: Vec::new(),
        holders: holders.clone(),
    };
    Command::SetHolders {
        changes: (0..4_096).map(change).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_learner_gets_a_snapshot_in_pieces() {
    let (cluster, first) = Cluster::found().await;
    // given a state of more than one message, and a log that no longer holds its first entries
    for bucket in 0..10 {
        first.propose(many_holders(bucket)).await.unwrap();
    }
    for seconds in 10_000..10_140 {
        let expected = first.state().retention_seconds;
        first.propose(retention(expected, seconds)).await.unwrap();
    }
    first.compact().await.unwrap();

    // when a learner comes
    let late = cluster.join(2).await;
    first.add_learner(NodeId(2)).await.unwrap();

    // then it has the same state, by a snapshot, and keeps it over a restart
    retention_becomes(&late, 10_139).await;
    let read = within(5, late.linearizable()).await.unwrap();
    assert_eq!(*read, *first.state());
    assert_eq!(read.holder_count(), 40_960);
    assert!(cluster.network.snapshot_pieces.load(Ordering::Relaxed) >= 2);
    cluster.cut_off(NodeId(2)).shutdown().await;
    drop(late);
    let again = cluster.join(2).await;
    retention_becomes(&again, 10_139).await;
    assert_eq!(again.state().holder_count(), 40_960);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn requests_of_strangers_are_refused() {
    let (cluster, nodes) = three().await;
    assert!(nodes[0].answer(NodeId(2), b"anything").await.is_err());
    assert!(nodes[0].answer(NodeId(2), &[]).await.is_err());
    cluster.stop().await;
}
