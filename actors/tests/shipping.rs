//! A primary builds pages once, and its followers store them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spandrel_actors::Node;
use spandrel_model::ids::{SpanId, TenantId};
use spandrel_model::search::SearchFilter;
use support::members::{Cluster, stop_all};
use support::{TestNode, pass, span};

const TRACES: std::ops::Range<u8> = 1..40;
/// Some on each shard.
const EARLY: std::ops::Range<u8> = 1..13;
/// Seconds after which a kept trace has waited long enough for its page.
const DUE_S: u64 = 600;

/// Seconds for which the shards of a settled cluster have stayed where they are.
const CALM_S: u64 = 5;

/// Three nodes, each of which has all shards, and leads some: none of them moves any more. A shard that did would be
/// filled elsewhere, and a trace with records that repeat its spans is paged by each node itself.
async fn settled(cluster: &Cluster) -> [TestNode; 3] {
    let nodes = cluster.three().await;
    let settling = async {
        loop {
            let [before, ..] = nodes.each_ref().map(Node::cluster);
            pass(CALM_S).await;
            let is_calm = |node: &Node| node.cluster().shard_map == before.shard_map;
            let is_whole = before
                .shard_map
                .iter()
                .all(|record| record.isr.len() == 3 && record.filling.is_empty());
            if is_whole && nodes.iter().all(is_calm) {
                break;
            }
        }
    };
    let limit = Duration::from_secs(10 * CALM_S);
    tokio::time::timeout(limit, settling)
        .await
        .expect("in time");
    nodes.map(|node| TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    })
}

#[tokio::test(start_paused = true)]
async fn a_follower_stores_the_pages_of_its_primary() {
    let cluster = Cluster::new();
    let nodes = settled(&cluster).await;
    let tenant = TenantId::default();
    for trace in TRACES {
        let spans = [span(trace, 1, 0), span(trace, 2, 1)];
        nodes[1].send(&tenant, &spans).await;
    }
    pass(DUE_S - 100).await;
    for node in &nodes {
        let waiting = node.node.admin().status().await.unpaged_traces;
        assert_eq!(waiting, TRACES.len() as u64);
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
    let nodes = settled(&cluster).await;
    let tenant = TenantId::default();
    for trace in EARLY {
        nodes[0].send(&tenant, &[span(trace, 1, 0)]).await;
    }
    pass(70).await;
    // Two store them by themselves: their primaries' pages, which have more traces, are not what those wait for.
    nodes[1].flush().await;
    nodes[2].flush().await;
    for trace in TRACES.skip(EARLY.len()) {
        nodes[0].send(&tenant, &[span(trace, 1, 0)]).await;
    }
    // All are due a moment after the early ones, those of refused pages later.
    pass(DUE_S + 80).await;
    for node in &nodes {
        assert_eq!(node.node.admin().status().await.unpaged_traces, 0);
        for trace in TRACES {
            let spans = node.spans_alone(&tenant, trace).await;
            assert_eq!(spans, [SpanId([1; 8])].into(), "trace {trace}");
        }
    }
    stop_all(nodes.map(|node| node.node)).await;
}
