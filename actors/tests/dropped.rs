//! Searches that include dropped traces: what the journal holds of them, in one order with everything else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use spandrel_actors::membership::NodeStart;
use spandrel_actors::{Clock, Node};
use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{NodeId, ShardId, TenantId, UnixNanos};
use spandrel_model::search::{
    FoundTrace, Receipt, SearchFilter, SearchRequest, TagCondition, TraceState,
};
use spandrel_raft::ClusterState;
use support::members::{Cluster, PATIENCE_S};
use support::{ERRORS_ONLY, Sent, TestClock, TestNode, pass, span, start, trace_id};

fn tenant() -> TenantId {
    TenantId::default()
}

fn early(trace: u8, id: u8, parent: u8, before_ms: u64) -> Sent {
    Sent {
        before_ms,
        ..span(trace, id, parent)
    }
}

fn failed(sent: Sent) -> Sent {
    Sent {
        error: true,
        ..sent
    }
}

/// All pages of so many traces, and the last receipt.
async fn pages(node: &TestNode, filter: &SearchFilter, limit: usize) -> (Vec<FoundTrace>, Receipt) {
    let mut request = SearchRequest {
        include_dropped: true,
        limit,
        ..node.request(&tenant(), filter.clone())
    };
    let mut all = Vec::new();
    loop {
        let answer = node.node.query().search(request.clone()).await.unwrap();
        assert!(answer.traces.len() <= limit);
        all.extend(answer.traces);
        request.cursor = answer.next;
        if request.cursor.is_none() {
            return (all, answer.receipt);
        }
    }
}

/// What is found of everything that meets the filter, the same in pages of any size.
async fn found(node: &TestNode, filter: &SearchFilter) -> Vec<FoundTrace> {
    let (all, receipt) = pages(node, filter, 1_000).await;
    assert!(receipt.complete, "{receipt:?}");
    let places: Vec<_> = all
        .iter()
        .map(|found| (std::cmp::Reverse(found.start), found.trace_id))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    for limit in [1, 3, 7] {
        assert_eq!(pages(node, filter, limit).await.0, all, "{limit} a page");
    }
    all
}

fn states(found: &[FoundTrace]) -> BTreeMap<u8, (TraceState, u32)> {
    let states = found
        .iter()
        .map(|found| (found.trace_id.0[1], (found.state, found.span_count)));
    let states: BTreeMap<_, _> = states.collect();
    assert_eq!(states.len(), found.len(), "each trace once");
    states
}

#[tokio::test(start_paused = true)]
async fn dropped_traces_are_found_among_kept_and_open_ones_by_every_condition() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    // given: dropped traces with equal starts and others, kept ones in a block and live, open ones
    let dropped: Vec<Sent> = (1..=40)
        .map(|n| Sent {
            service: if n % 2 == 0 { "shop" } else { "cart" },
            note: if n % 5 == 0 { "rare" } else { "plain" },
            ..early(n, 1, 0, u64::from(n % 7) * 50)
        })
        .collect();
    let kept: Vec<Sent> = (41..=50)
        .map(|n| failed(early(n, 1, 0, u64::from(n % 7) * 50)))
        .collect();
    node.send(&tenant(), &dropped).await;
    node.send(&tenant(), &kept).await;
    pass(12).await;
    node.flush().await;
    node.send(&tenant(), &[failed(span(51, 1, 0))]).await;
    pass(12).await;
    let open = [span(52, 1, 0), span(52, 2, 1)];
    node.send(&tenant(), &open).await;

    let check = async |node: &TestNode| {
        // then: all of them, in one order
        let all = found(node, &SearchFilter::default()).await;
        let states = states(&all);
        assert_eq!(states.len(), 52);
        for (trace, (state, spans)) in states {
            let expected = match trace {
                1..=40 => (TraceState::Dropped, 1),
                52 => (TraceState::Open, 2),
                _ => (TraceState::Kept, 1),
            };
            assert_eq!((state, spans), expected, "{trace}");
        }
        // and: without asking for them none
        let without = node.search(&tenant(), SearchFilter::default()).await;
        assert_eq!(without.len(), 12);
        // and: each condition holds for them too
        let by_service = SearchFilter {
            services: vec!["cart".to_owned()],
            ..SearchFilter::default()
        };
        assert_eq!(found(node, &by_service).await.len(), 20);
        let by_note = SearchFilter {
            tags: vec![TagCondition {
                key: "shop.note".to_owned(),
                value: "rare".to_owned(),
            }],
            ..SearchFilter::default()
        };
        let rare = found(node, &by_note).await;
        assert_eq!(rare.len(), 8);
        assert!(rare.iter().all(|found| found.matched_spans.len() == 1));
        let by_route = SearchFilter {
            services: vec!["cart".to_owned()],
            tags: vec![TagCondition {
                key: "http.route".to_owned(),
                value: "/items/{id}".to_owned(),
            }],
            ..SearchFilter::default()
        };
        assert_eq!(found(node, &by_route).await.len(), 20);
        let by_status = SearchFilter {
            status: Some(StatusCode::Error),
            ..SearchFilter::default()
        };
        assert_eq!(found(node, &by_status).await.len(), 11);
        let too_long = SearchFilter {
            min_duration: Some(6_000_000),
            max_duration: Some(7_000_000),
            ..SearchFilter::default()
        };
        assert_eq!(numbers(&found(node, &too_long).await), [52]);
        let newest = all[20].start;
        let in_range = SearchFilter {
            from: newest,
            ..SearchFilter::default()
        };
        let expected = all.iter().filter(|found| found.start >= newest);
        assert_eq!(found(node, &in_range).await.len(), expected.count());
    };
    check(&node).await;
    node.node.stop().await;
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    check(&node).await;
    node.node.stop().await;
}

fn numbers(found: &[FoundTrace]) -> Vec<u8> {
    found.iter().map(|found| found.trace_id.0[1]).collect()
}

/// The late span starts before the trace: the verdict's place comes before the entry's, and the trace may be lost at
/// either or shown at both.
#[tokio::test(start_paused = true)]
async fn a_dropped_trace_with_late_spans_is_found_once_at_its_new_place() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[early(1, 1, 0, 100), early(2, 1, 0, 3_000)])
        .await;
    pass(12).await;
    // when: a span of trace 1 comes late that starts before trace 2
    node.send(&tenant(), &[early(1, 2, 1, 20_000)]).await;
    let everything = SearchFilter::default();
    for _ in 0..2 {
        let all = found(&node, &everything).await;
        let order: Vec<u8> = all.iter().map(|found| found.trace_id.0[1]).collect();
        assert_eq!(order, [2, 1]);
        assert_eq!(states(&all)[&1], (TraceState::Dropped, 2));
        // and again when its entry has left the shard
        pass(12).await;
    }
    // when: one that failed makes it a kept one
    node.send(&tenant(), &[failed(early(1, 3, 1, 0))]).await;
    for flushed in [false, true] {
        pass(12).await;
        if flushed {
            node.flush().await;
        }
        let all = found(&node, &everything).await;
        assert_eq!(
            states(&all),
            BTreeMap::from([(1, (TraceState::Kept, 3)), (2, (TraceState::Dropped, 1))])
        );
    }
    node.node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_promoted_trace_is_kept_and_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[span(1, 1, 0), span(2, 1, 0)]).await;
    pass(12).await;
    let query = node.node.query();
    query.promote(&tenant(), trace_id(1)).await.unwrap();
    for flushed in [false, true] {
        if flushed {
            node.flush().await;
        }
        let all = found(&node, &SearchFilter::default()).await;
        assert_eq!(
            states(&all),
            BTreeMap::from([(1, (TraceState::Kept, 1)), (2, (TraceState::Dropped, 1))])
        );
    }
    node.node.stop().await;
}

/// The verdicts go with their slice, and so do spans before them.
#[tokio::test(start_paused = true)]
async fn what_the_journal_has_trimmed_is_found_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    pass(12).await;
    assert_eq!(found(&node, &SearchFilter::default()).await.len(), 1);
    clock.jump(3 * support::HOUR);
    node.send(&tenant(), &[span(2, 1, 0)]).await;
    pass(30).await;
    let left = found(&node, &SearchFilter::default()).await;
    assert_eq!(numbers(&left), [2]);
    node.node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_search_without_time_says_which_verdicts_it_has_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    pass(12).await;
    let request = SearchRequest {
        include_dropped: true,
        timeout_ms: 0,
        ..node.request(&tenant(), SearchFilter::default())
    };
    let answer = node.node.query().search(request).await.unwrap();
    assert!(!answer.receipt.complete);
    let reasons = answer.receipt.missing.iter().map(|part| &*part.reason);
    assert!(
        reasons.clone().any(|reason| reason.contains("verdicts")),
        "{:?}",
        reasons.collect::<Vec<_>>()
    );
    node.node.stop().await;
}

fn test_node(cluster: &Cluster, node: Node) -> TestNode {
    TestNode {
        node,
        clock: std::sync::Arc::clone(&cluster.clock),
    }
}

async fn until(node: &TestNode, is_so: impl Fn(&ClusterState) -> bool) {
    let watching = async {
        while !is_so(&node.node.cluster()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(6 * PATIENCE_S), watching).await;
    assert!(waited.is_ok(), "{:#?}", node.node.cluster().shard_map);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_finds_what_its_copies_hold_and_names_those_that_are_new() {
    // given: a node that has dropped traces while it was alone
    let mut cluster = Cluster::new();
    cluster.replication = 2;
    let mut options = cluster.options(1, NodeStart::Found);
    options.seed.policy_yaml = ERRORS_ONLY.to_owned();
    let first = Node::start(options, cluster.environment(1)).await.unwrap();
    let first = test_node(&cluster, first);
    let old: Vec<Sent> = (1..=8).map(|n| span(n, 1, 0)).collect();
    first.send(&tenant(), &old).await;
    pass(12).await;
    assert_eq!(found(&first, &SearchFilter::default()).await.len(), 8);
    // when: a second one joins, is in sync everywhere and leads some shards, and traces are dropped by both
    let second = test_node(&cluster, cluster.join(2).await);
    until(&first, |state| {
        let mut shards = state.shard_map.iter();
        let leads = |node| state.shard_map.iter().any(|shard| shard.primary == node);
        shards.all(|shard| shard.isr.len() == 2) && leads(NodeId(2)) && leads(NodeId(1))
    })
    .await;
    let new: Vec<Sent> = (11..=18).map(|n| span(n, 1, 0)).collect();
    second.send(&tenant(), &new).await;
    pass(12).await;

    // then: of the shards that the second one leads the old drops are missing, and it says so
    let state = second.node.cluster();
    for node in [&first, &second] {
        let (all, receipt) = pages(node, &SearchFilter::default(), 1_000).await;
        let states = states(&all);
        assert!((11..=18).all(|trace| states.get(&trace) == Some(&(TraceState::Dropped, 1))));
        assert!(!receipt.complete);
        let [missing] = receipt.missing.as_slice() else {
            panic!("{:?}", receipt.missing);
        };
        assert_eq!(missing.node, NodeId(2));
        assert!(missing.reason.contains("dropped"), "{}", missing.reason);
        let asked: Vec<_> = (0u16..)
            .map(ShardId)
            .zip(&state.shard_map)
            .filter(|(_, shard)| shard.primary == NodeId(2))
            .map(|(shard, _)| shard)
            .collect();
        assert_eq!(missing.shards, asked);
        let paged = pages(node, &SearchFilter::default(), 3).await.0;
        assert_eq!(paged, all);
    }
    // and: once that lies before the recovery window, the answer is whole
    cluster.clock.jump(3 * support::HOUR);
    pass(30).await;
    let newest: Vec<Sent> = (21..=28).map(|n| span(n, 1, 0)).collect();
    second.send(&tenant(), &newest).await;
    pass(12).await;
    for node in [&first, &second] {
        let filter = SearchFilter {
            from: node.clock.now().minus(60 * UnixNanos::PER_SECOND),
            ..SearchFilter::default()
        };
        assert_eq!(found(node, &filter).await.len(), 8);
    }
    first.node.stop().await;
    second.node.stop().await;
}
