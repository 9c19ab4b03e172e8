//! Older data that has too few copies is copied by the nodes that are to hold it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::Node;
use spandrel_model::cluster::{ClusterView, NodeUse};
use spandrel_model::ids::{NodeId, SpanId, TenantId};
use spandrel_model::search::SearchFilter;
use support::members::{Cluster, stop_all, used, voters};
use support::{TestNode, pass, span};

const TRACES: std::ops::Range<u8> = 0..24;
/// Longest wait for copies in seconds: a page waits for up to ten minutes.
const PATIENCE_S: u64 = 900;

fn test_node(cluster: &Cluster, node: Node) -> TestNode {
    TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    }
}

async fn until(node: &TestNode, is_so: impl Fn(&ClusterView) -> bool) {
    let admin = node.node.admin();
    let watching = async {
        while !is_so(&admin.cluster().await) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let limit = Duration::from_secs(PATIENCE_S);
    if tokio::time::timeout(limit, watching).await.is_err() {
        panic!("not in time: {:#?}", admin.cluster().await);
    }
}

fn in_sync(view: &ClusterView, node: u64) -> u32 {
    let mut nodes = view.nodes.iter();
    let node = nodes.find(|one| one.node == NodeId(node)).unwrap();
    node.in_sync_shards + node.filling_shards
}

fn needed(view: &ClusterView, node: u64) -> u32 {
    let mut nodes = view.nodes.iter();
    nodes
        .find(|one| one.node == NodeId(node))
        .unwrap()
        .needed_copies
}

/// Sends two spans of each trace and waits until they are decided and in blocks.
async fn keep_some(nodes: &[&TestNode]) {
    let tenant = TenantId::default();
    for trace in TRACES {
        let spans = [span(trace, 1, 0), span(trace, 2, 1)];
        nodes[0].send(&tenant, &spans).await;
    }
    pass(70).await;
    for node in nodes {
        node.flush().await;
    }
}

/// Everything is found, once, in answers that say they are whole.
async fn all_is_there(node: &TestNode) {
    let tenant = TenantId::default();
    // A leader may just be elected: until then answers say that newer data may be elsewhere.
    for _ in 0..100 {
        let answer = node.find(&tenant, TRACES.start).await;
        if answer.is_some_and(|answer| answer.missing.is_empty()) {
            break;
        }
        pass(1).await;
    }
    for trace in TRACES {
        let answer = node.find(&tenant, trace).await.expect("the trace");
        assert!(answer.missing.is_empty(), "{:?}", answer.missing);
        let spans = node.spans(&tenant, trace).await;
        let both: BTreeSet<SpanId> = [1, 2].map(|id| SpanId([id; 8])).into();
        assert_eq!(spans, both, "trace {trace}");
    }
    let found = node.search(&tenant, SearchFilter::default()).await;
    assert_eq!(found.len(), TRACES.len());
    assert!(found.iter().all(|found| found.span_count == 2), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_first_node_kept_alone_outlives_it() {
    let cluster = Cluster {
        replication: 2,
        ..Cluster::new()
    };
    let first = test_node(&cluster, cluster.found().await);
    keep_some(&[&first]).await;
    let second = test_node(&cluster, cluster.join(2).await);
    let third = test_node(&cluster, cluster.join(3).await);
    until(&second, |view| {
        view.lacking.is_empty() && voters(view).len() == 3
    })
    .await;
    until(&second, |view| view.lacking_copies == 0).await;
    all_is_there(&third).await;
    first.node.stop().await;
    until(&second, |view| view.lacking.is_empty()).await;
    all_is_there(&second).await;
    all_is_there(&third).await;
    // and a copy stays a copy over a restart
    third.node.stop().await;
    let third = test_node(&cluster, cluster.restart(3).await);
    until(&second, |view| view.lacking.is_empty()).await;
    all_is_there(&third).await;
    stop_all([second.node, third.node]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_leaves_when_its_older_data_has_been_copied() {
    let cluster = Cluster {
        replication: 2,
        ..Cluster::new()
    };
    let [first, second, third] = cluster.three().await.map(|node| test_node(&cluster, node));
    until(&first, |view| {
        view.lacking.is_empty() && view.lacking_copies == 0
    })
    .await;
    keep_some(&[&first, &second, &third]).await;
    third.node.admin().leave_node().await.unwrap();
    until(&first, |view| in_sync(view, 3) == 0 && needed(view, 3) == 0).await;
    third.node.stop().await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;
    first
        .node
        .admin()
        .remove_node(NodeId(3), false)
        .await
        .unwrap();
    until(&first, |view| view.lacking.is_empty()).await;
    all_is_there(&first).await;
    all_is_there(&second).await;
    stop_all([first.node, second.node]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_for_long_counts_for_lost() {
    let cluster = Cluster {
        replication: 2,
        ..Cluster::new()
    };
    let [first, second, third] = cluster.three().await.map(|node| test_node(&cluster, node));
    until(&first, |view| {
        view.lacking.is_empty() && view.lacking_copies == 0
    })
    .await;
    keep_some(&[&first, &second, &third]).await;
    third.node.stop().await;
    until(&first, |view| view.lacking.is_empty()).await;
    assert!(
        beside(&first, 3) > 0,
        "copies of what it holds are one too few"
    );
    pass(700).await;
    assert_eq!(beside(&first, 3), 0, "others have copied it");
    first
        .node
        .admin()
        .remove_node(NodeId(3), false)
        .await
        .unwrap();
    until(&first, |view| view.lacking_copies == 0).await;
    second.node.stop().await;
    all_is_there_without_contact(&first).await;
    stop_all([first.node]).await;
}

/// Pieces of older data that node `node` holds beside one other node alone.
fn beside(asked: &TestNode, node: u64) -> usize {
    let state = asked.node.cluster();
    let records = state.holders.values().flat_map(|records| records.values());
    let few = records.filter(|holders| holders.contains(&NodeId(node)) && holders.len() <= 2);
    few.count()
}

/// As [`all_is_there`], of a node that has lost the majority and says so.
async fn all_is_there_without_contact(node: &TestNode) {
    let tenant = TenantId::default();
    for trace in TRACES {
        assert_eq!(
            node.spans_alone(&tenant, trace).await.len(),
            2,
            "trace {trace}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_copy_is_not_removed_unless_its_loss_is_accepted() {
    let cluster = Cluster {
        replication: 1,
        ..Cluster::new()
    };
    let [first, second, third] = cluster.three().await.map(|node| test_node(&cluster, node));
    until(&first, |view| (1..=3).all(|node| in_sync(view, node) > 0)).await;
    keep_some(&[&first, &second, &third]).await;
    third.node.stop().await;
    until(&first, |view| used(view, 3) == Some(NodeUse::Down)).await;
    let refused = first
        .node
        .admin()
        .remove_node(NodeId(3), false)
        .await
        .unwrap_err();
    // Its shards wait for it, too: that is said first where nothing older is at stake.
    assert_eq!(refused.code, "only_copy");
    assert!(refused.message.contains("--i-accept-loss"), "{refused}");
    stop_all([first.node, second.node]).await;
}

/// A copy has the spans that its writer had: after a restart the taker must not take it for a fragment of its own, which
/// covers all records before it.
#[tokio::test(start_paused = true)]
async fn late_spans_that_wait_for_a_page_outlive_a_copy_and_a_restart() {
    let cluster = Cluster {
        replication: 2,
        ..Cluster::new()
    };
    let first = test_node(&cluster, cluster.found().await);
    keep_some(&[&first]).await;
    let second = test_node(&cluster, cluster.join(2).await);
    until(&first, |view| view.lacking.is_empty()).await;
    // kept in the term of both, and copied with the rest
    let tenant = TenantId::default();
    for trace in TRACES {
        first.send(&tenant, &[span(trace, 3, 1)]).await;
    }
    pass(70).await;
    first.flush().await;
    until(&first, |view| view.lacking_copies == 0).await;
    for trace in TRACES {
        first.send(&tenant, &[span(trace, 4, 1)]).await;
    }
    pass(2).await;
    second.node.stop().await;
    let second = test_node(&cluster, cluster.restart(2).await);
    until(&first, |view| view.lacking.is_empty()).await;
    second.flush().await;
    let all: BTreeSet<SpanId> = [1, 2, 3, 4].map(|id| SpanId([id; 8])).into();
    for trace in TRACES {
        assert_eq!(
            second.spans_alone(&tenant, trace).await,
            all,
            "trace {trace}"
        );
    }
    stop_all([first.node, second.node]).await;
}
