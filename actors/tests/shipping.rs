//! A primary builds pages once, and its followers store them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use spandrel_model::ids::{SpanId, TenantId};
use spandrel_model::search::SearchFilter;
use support::members::{Cluster, place, stop_all};
use support::{TestNode, pass, span};

const TRACES: std::ops::Range<u8> = 1..40;
/// Seconds after which a kept trace has waited long enough for its page.
const DUE_S: u64 = 600;

/// Three nodes; the first one leads all shards.
async fn led_by_the_first(cluster: &Cluster) -> [TestNode; 3] {
    let nodes = cluster.three().await.map(|node| TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    });
    place(&nodes[0].node, 1, &[1, 2, 3]).await;
    nodes
}

#[tokio::test(start_paused = true)]
async fn a_follower_stores_the_pages_of_its_primary() {
    let cluster = Cluster::new();
    let nodes = led_by_the_first(&cluster).await;
    let tenant = TenantId::default();
    for trace in TRACES {
        let spans = [span(trace, 1, 0), span(trace, 2, 1)];
        nodes[1].send(&tenant, &spans).await;
    }
    pass(DUE_S - 100).await;
    for node in &nodes {
        let waiting = node.node.admin().status().await.unpaged_traces;
        assert_eq!(
            waiting,
            TRACES.len() as u64,
            "node {:?}",
            node.node.cluster().shard_map
        );
    }
    // Due for all; a follower would build pages of its own ten seconds later.
    pass(105).await;
    for node in &nodes {
        // The disk takes time of its own.
        for _ in 0..3 {
            if node.node.admin().status().await.unpaged_traces > 0 {
                pass(1).await;
            }
        }
        assert_eq!(node.node.admin().status().await.unpaged_traces, 0);
        let both: BTreeSet<SpanId> = [1, 2].map(|id| SpanId([id; 8])).into();
        for trace in TRACES {
            assert_eq!(
                node.spans_alone(&tenant, trace).await,
                both,
                "trace {trace}"
            );
        }
        let alone = node.node.query_alone();
        let found = alone.search(node.request(&tenant, SearchFilter::default()));
        let found = found.await.unwrap().traces;
        assert_eq!(found.len(), TRACES.len());
        assert!(found.iter().all(|found| found.span_count == 2));
    }
    stop_all(nodes.map(|node| node.node)).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_builds_the_pages_that_do_not_come() {
    let cluster = Cluster::new();
    let nodes = led_by_the_first(&cluster).await;
    let tenant = TenantId::default();
    nodes[0].send(&tenant, &[span(1, 1, 0)]).await;
    nodes[0].send(&tenant, &[span(2, 1, 0)]).await;
    pass(70).await;
    // The second one stores it by itself: the page of the first one, with a trace more, is not what it waits for.
    nodes[1].flush().await;
    for trace in TRACES.skip(2) {
        nodes[0].send(&tenant, &[span(trace, 1, 0)]).await;
    }
    pass(DUE_S).await;
    nodes[0].flush().await;
    pass(80).await;
    for node in &nodes {
        assert_eq!(node.node.admin().status().await.unpaged_traces, 0);
        for trace in TRACES {
            let spans = node.spans_alone(&tenant, trace).await;
            assert_eq!(spans, [SpanId([1; 8])].into(), "trace {trace}");
        }
    }
    stop_all(nodes.map(|node| node.node)).await;
}
