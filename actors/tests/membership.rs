//! Nodes of one cluster in one process, over links in memory: joining, silence, failover, coming back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::membership::{JoinSecret, NodeStart};
use spandrel_actors::{Env, Node, NodeOptions, StartError, StartPhase};
use spandrel_model::cluster::{ClusterView, NodeRole, NodeUse, NodeView};
use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_model::policy::KEEP_ALL_POLICY;
use spandrel_raft::state::{NodeAddresses, ShardChange, ShardRecord};
use spandrel_raft::{ClusterState, Command, Conflict, ProposeError};
use support::network::Network;
use support::{TestClock, environment, options, pass};
use tempfile::TempDir;
use tokio::sync::watch;

/// Longest wait for something that the cluster does by itself, in seconds: elections and silence take one to three.
const PATIENCE_S: u64 = 10;

struct Cluster {
    network: Arc<Network>,
    clock: Arc<TestClock>,
    dir: TempDir,
    require_join_token: bool,
}

impl Cluster {
    fn new() -> Self {
        Self {
            network: Arc::default(),
            clock: TestClock::new(),
            dir: TempDir::new().unwrap(),
            require_join_token: false,
        }
    }

    fn data_dir(&self, number: u64) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    fn options(&self, number: u64, start: NodeStart) -> NodeOptions {
        let mut options = options(&self.data_dir(number), KEEP_ALL_POLICY);
        options.seed.replication = 3;
        NodeOptions {
            start,
            require_join_token: self.require_join_token,
            new_disk_id: number + 100,
            addresses: NodeAddresses {
                link: address(number),
                ..NodeAddresses::default()
            },
            ..options
        }
    }

    fn environment(&self, number: u64) -> Env {
        Env {
            links: self.network.links(&address(number)),
            ..environment(&self.clock)
        }
    }

    async fn try_start(&self, number: u64, start: NodeStart) -> Result<Node, StartError> {
        Node::start(self.options(number, start), self.environment(number)).await
    }

    async fn found(&self) -> Node {
        self.try_start(1, NodeStart::Found).await.unwrap()
    }

    /// The node numbered so, joining at the first.
    async fn join(&self, number: u64) -> Node {
        self.try_start(number, at(&[1])).await.unwrap()
    }

    /// The same node again, from its directory.
    async fn restart(&self, number: u64) -> Node {
        self.try_start(number, NodeStart::Found).await.unwrap()
    }

    /// Three nodes, all of them voters.
    async fn three(&self) -> [Node; 3] {
        let nodes = [self.found().await, self.join(2).await, self.join(3).await];
        until(&nodes[0], |view| voters(view) == [1, 2, 3]).await;
        nodes
    }
}

fn address(number: u64) -> String {
    format!("node-{number}:7200")
}

/// Joining at these nodes.
fn at(numbers: &[u64]) -> NodeStart {
    NodeStart::Join {
        addresses: numbers.iter().copied().map(address).collect(),
        token: None,
        expected_shards: None,
    }
}

fn voters(view: &ClusterView) -> Vec<u64> {
    let nodes = view.nodes.iter();
    let voting = nodes.filter(|node| matches!(node.role, NodeRole::Leader | NodeRole::Voter));
    voting.map(|node| node.node.0).collect()
}

fn used(view: &ClusterView, node: u64) -> Option<NodeUse> {
    let node = view.nodes.iter().find(|one| one.node == NodeId(node))?;
    Some(node.state)
}

/// Waits until the cluster looks so at a node.
async fn until(node: &Node, is_so: impl Fn(&ClusterView) -> bool) -> ClusterView {
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
async fn same_state(nodes: &[&Node]) -> Arc<ClusterState> {
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
async fn place(node: &Node, primary: u64, in_sync: &[u64]) {
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
async fn set_shards(node: &Node, change: impl Fn(&ShardRecord) -> ShardRecord) {
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

async fn stop_all(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_nodes_become_one_cluster_of_three_voters() {
    let cluster = Cluster::new();
    let nodes = cluster.three().await;
    let state = same_state(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    assert_eq!(state.nodes.len(), 3);
    let disks: BTreeSet<u64> = state.nodes.values().map(|node| node.disk_id).collect();
    assert_eq!(disks, BTreeSet::from([101, 102, 103]));
    let view = nodes[2].admin().cluster().await;
    assert_eq!(view.leader, Some(NodeId(1)));
    for node in &view.nodes {
        assert_eq!(node.state, NodeUse::Up);
        assert_eq!(node.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
    for node in &nodes {
        assert!(node.admin().status().await.ready);
    }
    // every node takes changes of the settings, wherever the leader is
    let policy = nodes[1]
        .admin()
        .apply_policy(KEEP_ALL_POLICY.to_owned())
        .await;
    assert_eq!(policy.unwrap().version, 2);
    // and all follow
    pass(2).await;
    for node in &nodes {
        assert_eq!(node.admin().status().await.policy_version, 2);
    }
    stop_all(nodes).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_is_down_and_comes_back_as_itself() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    let before = first.cluster().nodes[&NodeId(3)].clone();
    third.stop().await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;
    assert_eq!(used(&second.admin().cluster().await, 2), Some(NodeUse::Up));

    let third = cluster.restart(3).await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Up)).await;
    let after = first.cluster().nodes[&NodeId(3)].clone();
    assert_eq!(after.disk_id, before.disk_id);
    assert_eq!(
        (after.boot, after.incarnation),
        (before.boot + 1, before.incarnation + 1)
    );
    assert!(!third.recovery.created);

    // joining again with a used directory is a restart, too
    third.stop().await;
    let third = cluster.try_start(3, at(&[9, 2])).await.unwrap();
    let after = same_state(&[&first, &third]).await.nodes[&NodeId(3)].clone();
    assert_eq!(after.boot, before.boot + 2);
    assert_eq!(first.cluster().nodes.len(), 3);
    stop_all([first, second, third]).await;
}

#[tokio::test(start_paused = true)]
async fn the_shards_of_a_leader_that_stops_go_to_in_sync_copies() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    until(&first, |view| view.lacking.is_empty()).await;
    let before = first.cluster().shard_map.clone();
    assert!(before.iter().any(|old| old.primary == NodeId(1)));

    // when the leader of the settings, which leads shards too, stops
    first.stop().await;

    // then another one leads, notices its silence, and copies in sync take over, within the promised time
    let seen = Duration::from_secs(5);
    let took = until(&second, |view| {
        let gone = view.nodes.iter().find(|node| node.node == NodeId(1));
        let shards = |node: &NodeView| node.primary_shards + node.in_sync_shards;
        let is_gone = gone.is_some_and(|node| node.state == NodeUse::Down && shards(node) == 0);
        is_gone && view.leader.is_some_and(|leader| leader != NodeId(1))
    });
    let view = tokio::time::timeout(seen, took).await.expect("within 5 s");
    assert!(view.lacking.iter().all(|lack| lack.copies > 0));
    for (old, new) in before.iter().zip(&second.cluster().shard_map) {
        if old.primary == NodeId(1) {
            assert!(old.isr.contains(&new.primary) && new.term > old.term);
            assert!(!new.nodes().any(|node| node == NodeId(1)));
        }
    }

    // and the old leader comes back as a follower
    let first = cluster.restart(1).await;
    until(&second, |view| used(view, 1) == Some(NodeUse::Up)).await;
    same_state(&[&first, &second, &third]).await;
    stop_all([first, second, third]).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_whose_last_full_copy_is_gone_waits_for_it() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    place(&first, 3, &[3]).await;
    third.stop().await;
    let view = until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;
    pass(3).await;
    assert!(view.lacking.iter().all(|lack| lack.copies == 0));
    let records = first.cluster().shard_map.clone();
    assert!(records.iter().all(|record| record.primary == NodeId(3)));
    let third = cluster.restart(3).await;
    until(&first, |view| {
        view.lacking.iter().all(|lack| lack.copies == 1)
    })
    .await;
    stop_all([first, second, third]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_cut_off_comes_back_without_a_restart() {
    let cluster = Cluster::new();
    let nodes = cluster.three().await;
    let before = nodes[0].cluster().nodes[&NodeId(2)].clone();
    cluster.network.cut_off(&address(2));
    until(&nodes[0], |view| used(view, 2) == Some(NodeUse::Down)).await;
    cluster.network.heal(&address(2));
    until(&nodes[0], |view| used(view, 2) == Some(NodeUse::Up)).await;
    let after = nodes[0].cluster().nodes[&NodeId(2)].clone();
    assert_eq!(
        (after.boot, after.incarnation),
        (before.boot, before.incarnation + 1)
    );
    until(&nodes[1], |_| true).await;
    same_state(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    assert!(nodes[1].admin().status().await.ready);
    stop_all(nodes).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_declares_nobody_down() {
    let cluster = Cluster::new();
    let nodes = cluster.three().await;
    let lives = |state: &ClusterState| [2, 3].map(|node| state.nodes[&NodeId(node)].incarnation);
    let before = lives(&*same_state(&[&nodes[0], &nodes[1], &nodes[2]]).await);
    cluster.network.cut_off(&address(1));
    until(&nodes[1], |view| used(view, 1) == Some(NodeUse::Down)).await;
    cluster.network.heal(&address(1));
    until(&nodes[1], |view| used(view, 1) == Some(NodeUse::Up)).await;
    let state = same_state(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    assert_eq!(lives(&state), before, "the others were up all the time");
    stop_all(nodes).await;
}

#[tokio::test(start_paused = true)]
async fn an_old_copy_of_a_directory_is_refused_and_an_empty_one_is_a_new_node() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    third.stop().await;
    let identity = cluster.data_dir(3).join("identity.json");
    let old = std::fs::read(&identity).unwrap();
    cluster.restart(3).await.stop().await;
    cluster.restart(3).await.stop().await;
    // given the identity as it was two starts ago
    std::fs::write(&identity, old).unwrap();
    let refused = cluster.try_start(3, NodeStart::Found).await.err().unwrap();
    assert!(refused.reason.contains("older copy"), "{refused}");
    assert!(refused.reason.contains("spandrel node join"), "{refused}");

    // when the directory is emptied (and with it the disk's id is another one)
    std::fs::remove_dir_all(cluster.data_dir(3)).unwrap();
    let options = NodeOptions {
        new_disk_id: 333,
        ..cluster.options(3, at(&[2]))
    };
    let fourth = Node::start(options, cluster.environment(3)).await.unwrap();
    assert_eq!(fourth.admin().status().await.node, NodeId(4));
    // then the old one can be removed, and its place is taken by the new one
    until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;
    first.admin().remove_node(NodeId(3)).await.unwrap();
    until(&first, |view| voters(view) == [1, 2, 4]).await;
    stop_all([first, second, fourth]).await;
}

/// Copies a directory, as an image that is taken of it or put back.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// An image of the start before was let in: its counter of starts comes out as high as the cluster's. It was shown as
/// up, its settings never caught up, and the shards that it filled stalled.
#[tokio::test(start_paused = true)]
async fn an_image_of_the_start_before_is_refused_and_does_no_harm() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    third.stop().await;
    let (dir, image, last) = (
        cluster.data_dir(3),
        cluster.data_dir(33),
        cluster.data_dir(34),
    );
    copy(&dir, &image);
    cluster.restart(3).await.stop().await;

    // when the image is put back
    std::fs::rename(&dir, &last).unwrap();
    copy(&image, &dir);
    let refused = cluster.try_start(3, NodeStart::Found).await.err().unwrap();
    assert!(
        refused.reason.contains("an image of its directory"),
        "{refused}"
    );
    assert!(refused.reason.contains("spandrel node join"), "{refused}");
    assert_eq!(used(&first.admin().cluster().await, 3), Some(NodeUse::Down));

    // then the node itself can still come back
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&last, &dir).unwrap();
    let third = cluster.restart(3).await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Up)).await;
    stop_all([first, second, third]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_died_twice_before_it_registered_is_let_in() {
    let cluster = Cluster::new();
    let nodes = cluster.three().await;
    same_state(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    let before = nodes[0].cluster().nodes[&NodeId(3)].boot;
    stop_all(nodes).await;
    for _ in 0..2 {
        // alone it cannot register, and dies
        let waiting = cluster.restart(3);
        assert!(
            tokio::time::timeout(Duration::from_secs(9), waiting)
                .await
                .is_err()
        );
        cluster.network.detach(&address(3));
    }
    let (second, third) = tokio::join!(cluster.restart(2), cluster.restart(3));
    let state = same_state(&[&second, &third]).await;
    assert_eq!(state.nodes[&NodeId(3)].boot, before + 3);
    stop_all([second, third]).await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_with_both_sides() {
    let cluster = Cluster::new();
    let first = cluster.found().await;
    let start = NodeStart::Join {
        addresses: vec![address(1)],
        token: None,
        expected_shards: Some(128),
    };
    let refused = cluster.try_start(2, start).await.err().unwrap();
    assert!(
        refused.reason.contains("128") && refused.reason.contains("has 4"),
        "{refused}"
    );
    assert_eq!(first.cluster().nodes.len(), 1, "nobody was let in");

    // a directory of another cluster
    let mut other = Cluster::new();
    other.network = Arc::clone(&cluster.network);
    let mut options = other.options(7, NodeStart::Found);
    options.seed.cluster_id = 0x77;
    let stranger = Node::start(options, other.environment(7)).await.unwrap();
    stranger.stop().await;
    let refused = other.try_start(7, at(&[1])).await.err().unwrap();
    let both = ["0000000000000077", "0000000000000001"];
    assert!(
        both.iter().all(|id| refused.reason.contains(id)),
        "{refused}"
    );

    // and nobody at the address
    let refused = cluster.try_start(2, at(&[9])).await.err().unwrap();
    assert!(refused.reason.contains("node-9:7200"), "{refused}");
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_join_token_is_asked_for_once() {
    let cluster = Cluster {
        require_join_token: true,
        ..Cluster::new()
    };
    let first = cluster.found().await;
    let refused = cluster.try_start(2, at(&[1])).await.err().unwrap();
    assert!(
        refused.reason.contains("spandrel token create --join"),
        "{refused}"
    );
    let with = |token: &str| NodeStart::Join {
        addresses: vec![address(1)],
        token: Some(JoinSecret::from_text(token)),
        expected_shards: None,
    };
    let refused = cluster
        .try_start(2, with("spandrel-join-00"))
        .await
        .err()
        .unwrap();
    assert!(
        refused.reason.contains("not known or has expired"),
        "{refused}"
    );
    assert!(!refused.reason.contains("spandrel-join-00"), "{refused}");
    let token = first.admin().create_join_token().await.unwrap();
    let second = cluster.try_start(2, with(&token.token)).await.unwrap();
    // a member needs none to come back, not even by joining
    second.stop().await;
    let second = cluster.try_start(2, at(&[1])).await.unwrap();
    // and a day later nobody gets in by it
    cluster.clock.jump(25 * support::HOUR);
    let refused = cluster
        .try_start(3, with(&token.token))
        .await
        .err()
        .unwrap();
    assert!(refused.reason.contains("expired"), "{refused}");
    stop_all([first, second]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_leaves_and_is_removed() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    until(&first, |view| view.lacking.is_empty()).await;
    third.admin().leave_node().await.unwrap();
    third.admin().leave_node().await.unwrap();
    until(&first, |view| used(view, 3) == Some(NodeUse::Draining)).await;
    let up = first.admin().remove_node(NodeId(2)).await.unwrap_err();
    assert_eq!(up.code, "node_is_up");
    let own = first.admin().remove_node(NodeId(1)).await.unwrap_err();
    assert_eq!(own.code, "own_node");
    let unknown = first.admin().remove_node(NodeId(8)).await.unwrap_err();
    assert_eq!(unknown.code, "unknown_node");
    // when its shards have gone elsewhere and it has stopped
    until(&first, |view| {
        let left = view.nodes.iter().find(|node| node.node == NodeId(3));
        left.is_some_and(|node| node.in_sync_shards + node.filling_shards == 0)
    })
    .await;
    third.stop().await;
    first.admin().remove_node(NodeId(3)).await.unwrap();
    until(&first, |view| voters(view) == [1] && view.nodes.len() == 2).await;
    let last = [
        first.admin().cluster().await,
        second.admin().cluster().await,
    ];
    assert!(last.iter().all(|view| view.nodes.len() == 2));
    stop_all([second]).await;
    until(&first, |view| used(view, 2) == Some(NodeUse::Down)).await;
    let alone = first.admin().leave_node().await.unwrap_err();
    assert_eq!(alone.code, "last_node");
    first.stop().await;
}

/// A node that came back while the majority was away hung in its start, and nobody could ask it why.
#[tokio::test(start_paused = true)]
async fn a_node_that_waits_for_a_majority_says_so_while_it_starts() {
    let cluster = Cluster::new();
    let nodes = cluster.three().await;
    same_state(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    stop_all(nodes).await;

    // when one of three comes back
    let (reached, mut phase) = watch::channel(StartPhase::default());
    let env = Env {
        start_phase: Arc::new(move |now| {
            reached.send_replace(now);
        }),
        ..cluster.environment(3)
    };
    let third = tokio::spawn(Node::start(cluster.options(3, NodeStart::Found), env));
    let waits = phase.wait_for(|phase| *phase == StartPhase::WaitingForMajority);
    let limit = Duration::from_secs(PATIENCE_S);
    drop(tokio::time::timeout(limit, waits).await.expect("in time"));
    pass(10).await;
    assert!(!third.is_finished());

    // then it serves once another one is back
    let second = cluster.restart(2).await;
    let third = third.await.unwrap().unwrap();
    assert_eq!(*phase.borrow(), StartPhase::Replaying);
    stop_all([second, third]).await;
}
