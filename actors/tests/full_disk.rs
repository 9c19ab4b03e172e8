//! A node whose disk fills up gives its shards away, and spans are refused only where nobody can take them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;

use spandrel_actors::Node;
use spandrel_model::cluster::{ClusterView, NodeUse};
use spandrel_model::error::ErrorClass;
use spandrel_model::ids::{NodeId, TenantId};
use spandrel_storage::disk::{Disk, SimulatedDisk};
use support::members::{Cluster, RESERVE_BYTES, stop_all, until, used};
use support::{TestNode, pass, span};

/// Bytes on the disk that are not the node's.
const OTHERS_BYTES: usize = 64 << 20;

/// Shards that a node leads, follows or fills.
fn shards(view: &ClusterView, node: u64) -> u32 {
    let mut nodes = view.nodes.iter();
    let node = nodes.find(|one| one.node == NodeId(node)).unwrap();
    node.primary_shards + node.in_sync_shards + node.filling_shards
}

/// Leaves so much of a disk.
fn leave(disk: &SimulatedDisk, free: u64) {
    disk.set_capacity(disk.used_bytes() + free);
}

fn cluster(replication: u8, with_own_disk: u64) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.replication = replication;
    let disk = SimulatedDisk::new(with_own_disk);
    // Most of the disk is taken by others: an empty one that is small has room.
    let others = vec![1; OTHERS_BYTES];
    disk.write_atomically(Path::new("/others"), &others)
        .unwrap();
    cluster.disks.insert(with_own_disk, disk);
    cluster
}

fn testing(cluster: &Cluster, node: Node) -> TestNode {
    TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    }
}

async fn others_take_over(replication: u8) {
    let cluster = cluster(replication, 3);
    let disk = &cluster.disks[&3];
    let nodes = cluster.three().await.map(|node| testing(&cluster, node));
    let first = &nodes[0].node;
    until(first, |view| view.lacking.is_empty() && shards(view, 3) > 0).await;
    let tenant = TenantId::default();
    let mut traces = 1..=u8::MAX;

    // The reserve is reached while spans come, also at that node: each is taken, and it is left with no shard.
    leave(disk, RESERVE_BYTES / 4 * 3);
    while shards(&first.admin().cluster().await, 3) > 0 {
        let trace = traces.next().unwrap();
        nodes[usize::from(trace) % 3]
            .send(&tenant, &[span(trace, 1, 0)])
            .await;
        pass(1).await;
    }
    let view = first.admin().cluster().await;
    assert_eq!(used(&view, 3), Some(NodeUse::Full));

    // Half of the reserve is gone: it takes no spans, and those that it is sent go to the others.
    leave(disk, RESERVE_BYTES / 4);
    pass(2).await;
    assert_eq!(nodes[2].node.admin().status().await.pressure, 4);
    let trace = traces.next().unwrap();
    nodes[2].send(&tenant, &[span(trace, 1, 0)]).await;

    // There is room again, but not much: it stays as it is. Then there is more.
    leave(disk, RESERVE_BYTES / 4 * 7);
    pass(5).await;
    assert_eq!(shards(&first.admin().cluster().await, 3), 0);
    leave(disk, RESERVE_BYTES * 3);
    until(first, |view| {
        used(view, 3) == Some(NodeUse::Up) && shards(view, 3) > 0 && view.lacking.is_empty()
    })
    .await;
    for trace in 1..traces.next().unwrap() {
        let spans = nodes[1].spans(&tenant, trace).await;
        assert_eq!(spans.len(), 1, "trace {trace}");
    }
    stop_all(nodes.map(|node| node.node)).await;
}

#[tokio::test(start_paused = true)]
async fn two_others_take_the_shards_of_a_node_with_little_disk() {
    others_take_over(2).await;
}

/// Of three copies one is given up: as when its node is down.
#[tokio::test(start_paused = true)]
async fn a_cluster_does_without_the_third_copy_on_a_full_disk() {
    others_take_over(3).await;
}

#[tokio::test(start_paused = true)]
async fn spans_are_refused_at_the_reserve_where_nobody_can_take_over() {
    let cluster = cluster(2, 2);
    let disk = &cluster.disks[&2];
    let nodes = [cluster.found().await, cluster.join(2).await];
    let nodes = nodes.map(|node| testing(&cluster, node));
    until(&nodes[0].node, |view| view.lacking.is_empty()).await;
    let tenant = TenantId::default();

    // Short of it nothing is refused, and nobody leaves: there would be one copy.
    leave(disk, RESERVE_BYTES / 4 * 5);
    pass(5).await;
    let mut traces = 1..=u8::MAX;
    let mut next = || traces.next().unwrap();
    nodes[0].send(&tenant, &[span(next(), 1, 0)]).await;
    assert!(nodes[0].node.admin().cluster().await.lacking.is_empty());

    leave(disk, RESERVE_BYTES / 4 * 3);
    pass(2).await;
    // Each primary hears of it by the first answer of its follower.
    for node in &nodes {
        let _ = node.try_send(&tenant, &[span(next(), 1, 0)]).await;
    }
    for node in &nodes {
        for _ in 0..8 {
            let error = node.try_send(&tenant, &[span(next(), 1, 0)]).await;
            let error = error.unwrap_err();
            assert_eq!(
                (error.class, error.code),
                (ErrorClass::Unavailable, "disk_reserve")
            );
            assert!(error.retry_after_ms.is_some() && error.message.contains("`default`"));
        }
    }
    leave(disk, RESERVE_BYTES * 3);
    // What a follower has said counts for three seconds.
    pass(4).await;
    for node in &nodes {
        node.send(&tenant, &[span(next(), 1, 0)]).await;
    }
    stop_all(nodes.map(|node| node.node)).await;
}
