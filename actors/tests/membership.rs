//! Nodes of one cluster in one process, over links in memory: joining, silence, failover, leaving.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::Node;
use spandrel_actors::membership::{JoinSecret, NodeStart};
use spandrel_model::cluster::{NodeUse, NodeView};
use spandrel_model::ids::NodeId;
use spandrel_model::policy::KEEP_ALL_POLICY;
use spandrel_raft::ClusterState;
use support::members::{Cluster, address, at, place, same_state, stop_all, until, used, voters};
use support::pass;

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
    let up = first
        .admin()
        .remove_node(NodeId(2), false)
        .await
        .unwrap_err();
    assert_eq!(up.code, "node_is_up");
    let own = first
        .admin()
        .remove_node(NodeId(1), false)
        .await
        .unwrap_err();
    assert_eq!(own.code, "own_node");
    let unknown = first
        .admin()
        .remove_node(NodeId(8), false)
        .await
        .unwrap_err();
    assert_eq!(unknown.code, "unknown_node");
    // when its shards have gone elsewhere and it has stopped
    until(&first, |view| {
        let left = view.nodes.iter().find(|node| node.node == NodeId(3));
        left.is_some_and(|node| node.in_sync_shards + node.filling_shards == 0)
    })
    .await;
    third.stop().await;
    first.admin().remove_node(NodeId(3), false).await.unwrap();
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
