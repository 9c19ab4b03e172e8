//! A node whose disk does not answer is down until it does: nobody waits for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use spandrel_actors::Node;
use spandrel_model::cluster::{ClusterView, NodeUse};
use spandrel_model::ids::{NodeId, TenantId};
use support::members::{Cluster, stop_all, until, used};
use support::{TestNode, span};
use tokio::time::{Instant, sleep, sleep_until};

/// How long the disk does not answer.
const HANG: Duration = Duration::from_secs(30);
/// How long exporters wait by default.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Until when work on the disk takes.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Option<Instant>>>);

impl Disk {
    fn hang(&self) -> Instant {
        let end = Instant::now() + HANG;
        *self.0.lock().unwrap() = Some(end);
        end
    }

    fn takes(&self) -> Duration {
        let end = *self.0.lock().unwrap();
        end.map_or(Duration::ZERO, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }
}

fn leads(view: &ClusterView, node: u64) -> u32 {
    let node = view.nodes.iter().find(|one| one.node == NodeId(node));
    node.unwrap().primary_shards
}

/// A client: what is put off comes again.
async fn send(node: &TestNode, trace: u8) {
    let tenant = TenantId::default();
    while let Err(error) = node.try_send(&tenant, &[span(trace, 1, 0)]).await {
        let wait = error.retry_after_ms.expect("a hint");
        sleep(Duration::from_millis(wait)).await;
    }
}

async fn others_go_on_without(hung: u64) {
    let (mut cluster, disk) = (Cluster::new(), Disk::default());
    cluster.replication = 2;
    let takes = disk.clone();
    cluster
        .disk_times
        .insert(hung, Arc::new(move || takes.takes()));
    let testing = |node: Node| TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    };
    let nodes = cluster.three().await.map(testing);
    let at = usize::try_from(hung).unwrap() - 1;
    let other = &nodes[(at + 1) % 3];
    let is_well = |view: &ClusterView| {
        used(view, hung) == Some(NodeUse::Up) && view.lacking.is_empty() && leads(view, hung) > 0
    };
    until(&other.node, is_well).await;
    send(other, 1).await;

    let end = disk.hang();
    let began = Instant::now();
    for trace in 2..=60 {
        send(other, trace).await;
    }
    assert!(began.elapsed() < EXPORT_TIMEOUT, "{:?}", began.elapsed());
    let view = until(&other.node, |view| used(view, hung) == Some(NodeUse::Down)).await;
    assert_eq!(leads(&view, hung), 0);
    let status = nodes[at].node.admin().status().await;
    assert!(!status.ready && status.not_ready_because.contains("disk"));

    sleep_until(end).await;
    until(&other.node, is_well).await;
    assert!(nodes[at].node.admin().status().await.ready);
    for node in &nodes {
        for trace in 1..=60 {
            let spans = node.spans(&TenantId::default(), trace).await;
            assert_eq!(spans.len(), 1, "trace {trace}");
        }
    }
    stop_all(nodes.map(|node| node.node)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_goes_on_without_a_hung_disk() {
    others_go_on_without(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_goes_on_when_the_disk_of_the_leader_hangs() {
    others_go_on_without(1).await;
}
