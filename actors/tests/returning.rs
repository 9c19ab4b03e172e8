//! Nodes that come back: after a stop, a cut, a crash, and from an image of their directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::membership::NodeStart;
use spandrel_actors::{Env, Node, NodeOptions, StartPhase};
use spandrel_model::cluster::NodeUse;
use spandrel_model::ids::{NodeId, TenantId};
use spandrel_raft::ClusterState;
use spandrel_raft::state::ShardRecord;
use spandrel_storage::disk::SimulatedDisk;
use support::counts::Counts;
use support::members::{
    Cluster, PATIENCE_S, address, at, same_state, set_shards, stop_all, until, used, voters,
};
use support::{TestNode, pass, span};
use tokio::sync::watch;

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
    first.admin().remove_node(NodeId(3), false).await.unwrap();
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

/// It was let in: nothing told it from the node after a crash. Its settings never caught up, and it was a copy of what
/// it did not have.
#[tokio::test(start_paused = true)]
async fn an_image_that_was_taken_while_the_node_ran_is_refused_a_minute_later() {
    let mut cluster = Cluster::new();
    let disk = SimulatedDisk::new(3);
    cluster.disks.insert(3, disk.clone());
    let [first, second, third] = cluster.three().await;
    same_state(&[&first, &second, &third]).await;
    let before = first.cluster().nodes[&NodeId(3)].clone();
    let image = disk.image();
    pass(62).await;
    let after = first.cluster().nodes[&NodeId(3)].clone();
    assert_eq!(after, before, "for the others it goes on as it was");
    third.stop().await;
    let last = disk.image();

    // when the image is put back
    disk.restore(&image);
    let refused = cluster.try_start(3, NodeStart::Found).await.err().unwrap();
    assert!(
        refused.reason.contains("an image of its directory"),
        "{refused}"
    );

    // then the node itself can still come back
    disk.restore(&last);
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

/// It came back as up, and took the shards again that it had handed over.
#[tokio::test(start_paused = true)]
async fn a_node_that_stops_while_it_leaves_goes_on_when_it_is_back() {
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    until(&first, |view| view.lacking.is_empty()).await;
    third.admin().leave_node().await.unwrap();
    third.stop().await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;

    let third = cluster.restart(3).await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Draining)).await;
    // when it is asked again how far it is
    third.admin().leave_node().await.unwrap();
    until(&first, |view| {
        let left = view.nodes.iter().find(|node| node.node == NodeId(3));
        left.is_some_and(|node| node.in_sync_shards + node.filling_shards == 0)
    })
    .await;
    // and also when it was cut off meanwhile
    cluster.network.cut_off(&address(3));
    until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;
    cluster.network.heal(&address(3));
    until(&first, |view| used(view, 3) == Some(NodeUse::Draining)).await;
    third.stop().await;
    first.admin().remove_node(NodeId(3), false).await.unwrap();
    stop_all([first, second]).await;
}

/// Sends as many traces that stay open, each in a request of its own, and returns the node.
async fn send_traces(cluster: &Cluster, node: Node, traces: u64) -> Node {
    let node = TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    };
    for trace in 1..=u8::try_from(traces).unwrap() {
        node.send(&TenantId::default(), &[span(trace, 1, 0)]).await;
    }
    node.node
}

/// Of three nodes, adds to the two replicas of each shard the one that the plan does not name: it is filled, and let go
/// again.
async fn fill_another(node: &Node) {
    two_in_sync(node).await;
    set_shards(node, |old| {
        let nodes = (1..=3).map(NodeId);
        let others = nodes.filter(|node| old.nodes().all(|other| other != *node));
        ShardRecord {
            filling: others.take(1).collect(),
            ..old.clone()
        }
    })
    .await;
    two_in_sync(node).await;
}

/// Waits until each shard has two replicas and wants no other.
async fn two_in_sync(node: &Node) {
    let settled = |state: &ClusterState| {
        let mut shards = state.shard_map.iter();
        shards.all(|record| record.isr.len() == 2 && record.filling.is_empty())
    };
    until(node, |_| settled(&node.cluster())).await;
}

/// A fill repeats what the shard holds, as records of their own. Repeated once each, whatever was repeated by the fills
/// before: all of it each time would be twice as much after each.
#[tokio::test(start_paused = true)]
async fn fills_repeat_each_span_once_each() {
    const FILLS: u64 = 11;
    const SPANS: u64 = 40;
    let mut cluster = Cluster::new();
    cluster.replication = 2;
    let [first, second, third] = cluster.three().await;
    until(&first, |view| view.lacking.is_empty()).await;
    let first = send_traces(&cluster, first, SPANS).await;
    for _ in 0..FILLS {
        fill_another(&first).await;
    }
    first.stop().await;
    let first = cluster.restart(1).await;
    // Twice as many records after each fill were 2,000 of each span, of which 128 at most share a frame.
    let frames = first.recovery.frames;
    assert!(frames > SPANS + FILLS, "{frames}: nothing was repeated");
    assert!(frames < FILLS * SPANS, "{frames}");
    stop_all([first, second, third]).await;
}

/// Replicas that have joined a shard, by how.
fn joined(counts: &Counts) -> (u64, u64) {
    let of = |how| counts.get("spandrel_replicas_joined_total", how);
    (of("went_on"), of("filled"))
}

/// Each restart of a node was a fill of all its shards: everything that they held was sent again.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_for_a_moment_goes_on_and_is_not_filled() {
    const TIMES: u64 = 5;
    let counts = Counts::default();
    let _counted = metrics::set_default_local_recorder(&counts);
    let cluster = Cluster::new();
    let [first, second, mut third] = cluster.three().await;
    until(&first, |view| view.lacking.is_empty()).await;
    let first = send_traces(&cluster, first, 40).await;
    let shards = first.cluster().shard_map.len() as u64;
    let (went_on, filled) = joined(&counts);
    for _ in 0..TIMES {
        // when it was stopped
        third.stop().await;
        until(&first, |view| !view.lacking.is_empty()).await;
        third = cluster.restart(3).await;
        until(&first, |view| view.lacking.is_empty()).await;
        // and when it was cut off
        cluster.network.cut_off(&address(3));
        until(&first, |view| !view.lacking.is_empty()).await;
        cluster.network.heal(&address(3));
        until(&first, |view| view.lacking.is_empty()).await;
    }
    // then it went on with all of them each time
    let now = joined(&counts);
    assert_eq!((now.0 - went_on, now.1 - filled), (2 * TIMES * shards, 0));
    stop_all([first, second, third]).await;
}

/// What was let go is not there after a restart either, though the journal has its records.
#[tokio::test(start_paused = true)]
async fn a_replica_that_was_let_go_is_filled_also_when_its_node_was_restarted() {
    let counts = Counts::default();
    let _counted = metrics::set_default_local_recorder(&counts);
    let mut cluster = Cluster::new();
    cluster.replication = 2;
    let [first, mut second, mut third] = cluster.three().await;
    until(&first, |view| view.lacking.is_empty()).await;
    let first = send_traces(&cluster, first, 40).await;
    fill_another(&first).await;
    for _ in 0..3 {
        two_in_sync(&first).await;
        second.stop().await;
        second = cluster.restart(2).await;
        two_in_sync(&first).await;
        third.stop().await;
        third = cluster.restart(3).await;
        // when those join that were let go
        two_in_sync(&first).await;
        let before = joined(&counts);
        let shards = first.cluster().shard_map.len() as u64;
        fill_another(&first).await;
        let now = joined(&counts);
        assert_eq!((now.0 - before.0, now.1 - before.1), (0, shards));
    }
    stop_all([first, second, third]).await;
}
