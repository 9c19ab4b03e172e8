//! Queries of a cluster: three nodes, each with its shards, asked through any of them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use spandrel_model::error::ErrorClass;
use spandrel_model::ids::{NodeId, ShardId, UnixNanos};
use spandrel_model::policy::KEEP_ALL_POLICY;
use spandrel_model::ports::{Query, TraceAbsence, TraceLookup};
use spandrel_model::search::{
    FoundTrace, NamesKind, NamesRequest, SearchFilter, SearchRequest, TagCondition, TraceState,
};
use spandrel_model::shard_set::ShardSet;
use spandrel_model::verdict::{Trigger, Verdict};
use tokio::time::Instant;

use super::Coordinator;
use super::part::NodePart;
use super::test_cluster::support::{ERRORS_ONLY, Sent, pass, span};
use super::test_cluster::{
    ALONE, Fault, TWICE, TestCluster, everything, fetch, filled, id, read, request, search, tenant,
};

/// All pages.
async fn pages(query: &Coordinator, mut request: SearchRequest) -> Vec<FoundTrace> {
    let mut all = Vec::new();
    loop {
        let answer = search(query, request.clone()).await;
        assert!(answer.receipt.complete, "{:?}", answer.receipt);
        assert!(answer.traces.len() <= request.limit);
        all.extend(answer.traces);
        request.cursor = answer.next;
        if request.cursor.is_none() {
            return all;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_pages_through_all_nodes_in_the_total_order() {
    for shards in [ALONE, TWICE] {
        let cluster = TestCluster::start(KEEP_ALL_POLICY, shards).await;
        filled(&cluster).await;
        for node in 1..=3 {
            let query = cluster.query(node);
            let all = pages(&query, everything(100)).await;
            assert_eq!(all.len(), 60);
            let places: Vec<_> = all
                .iter()
                .map(|found| (std::cmp::Reverse(found.start), found.trace_id))
                .collect();
            assert!(places.is_sorted());
            assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), 60);
            for limit in [1, 7, 30] {
                assert_eq!(
                    pages(&query, everything(limit)).await,
                    all,
                    "{limit} a page"
                );
            }
            // by an attribute without index: columns and frames are read
            let by_note = SearchFilter {
                tags: vec![TagCondition {
                    key: "shop.note".to_owned(),
                    value: "plain".to_owned(),
                }],
                ..SearchFilter::default()
            };
            let mut noted = pages(&query, request(by_note, 7)).await;
            noted
                .iter_mut()
                .for_each(|found| found.matched_spans.clear());
            assert_eq!(noted, all);
        }
        cluster.stop().await;
    }
}

/// Live, recent, indexed and scanned traces alike; of a shard that is asked for its stored data, also kept ones that wait
/// for a block.
#[tokio::test(start_paused = true)]
async fn a_node_answers_of_the_shards_that_it_is_asked_for() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, [&[1], &[1], &[1], &[1]]).await;
    filled(&cluster).await;
    let local = cluster.nodes[&1].node.query_port();
    let by_note = SearchFilter {
        tags: vec![TagCondition {
            key: "shop.note".to_owned(),
            value: "plain".to_owned(),
        }],
        ..SearchFilter::default()
    };
    let shards = |numbers: &[u16]| -> ShardSet { numbers.iter().copied().map(ShardId).collect() };
    let part = NodePart {
        live: shards(&[1]),
        stored: shards(&[1, 2]),
    };
    let is_asked = |trace: u8| part.stored.contains(cluster.shard(trace));
    let expected: BTreeSet<_> = (1..=60).filter(|n| is_asked(*n)).map(id).collect();
    for filter in [SearchFilter::default(), by_note] {
        let mut page = request(filter, 4);
        let mut found = Vec::new();
        loop {
            let answer = local.find(page.clone(), &part).await.unwrap().answer;
            found.extend(answer.traces.iter().map(|found| found.trace_id));
            page.cursor = answer.next;
            if page.cursor.is_none() {
                break;
            }
        }
        assert_eq!(found.len(), expected.len());
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_shards_of_a_dead_node_are_answered_by_another_or_named() {
    for is_known in [true, false] {
        let cluster = TestCluster::start(KEEP_ALL_POLICY, TWICE).await;
        filled(&cluster).await;
        let all = pages(&cluster.query(1), everything(100)).await;
        cluster.fault(3, Some(Fault::Dead));
        if is_known {
            cluster.disconnect(3);
        }
        cluster.network.calls.lock().unwrap().clear();
        let without = pages(&cluster.query(1), everything(100)).await;
        assert_eq!(without, all, "its copies answer");
        let calls = cluster.network.calls.lock().unwrap().clone();
        let has_called = calls.iter().any(|(to, _)| *to == NodeId(3));
        assert_eq!(
            has_called, !is_known,
            "a node without a session is asked last"
        );
        cluster.stop().await;
    }

    let cluster = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    filled(&cluster).await;
    cluster.fault(3, Some(Fault::Dead));
    let answer = search(&cluster.query(1), everything(100)).await;
    assert!(!answer.receipt.complete);
    let [missing] = answer.receipt.missing.as_slice() else {
        panic!("{:?}", answer.receipt.missing);
    };
    assert_eq!(missing.node, NodeId(3));
    assert_eq!(missing.shards, [ShardId(2), ShardId(3)]);
    assert_eq!(
        (missing.from, missing.to),
        (UnixNanos(0), UnixNanos(u64::MAX))
    );
    assert!(missing.reason.contains("node 3"), "{}", missing.reason);
    let expected = (1..=60).filter(|trace| cluster.primary(*trace) != 3);
    assert_eq!(answer.traces.len(), expected.count());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_next_holder_is_asked_when_a_node_is_slow() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, TWICE).await;
    filled(&cluster).await;
    let all = pages(&cluster.query(1), everything(100)).await;
    for fault in [Fault::Mute, Fault::Slow(Duration::from_secs(5))] {
        cluster.fault(3, Some(fault));
        let started = Instant::now();
        let answer = search(&cluster.query(1), everything(100)).await;
        assert_eq!(answer.traces, all);
        assert!(answer.receipt.complete, "{:?}", answer.receipt);
        assert_eq!(started.elapsed(), Duration::from_secs(1), "in virtual time");
    }
    // The next holder is no better: whoever answers first counts.
    let spare = TestCluster::start(KEEP_ALL_POLICY, [&[1], &[1], &[3, 2], &[1]]).await;
    filled(&spare).await;
    spare.fault(2, Some(Fault::Mute));
    spare.fault(3, Some(Fault::Slow(Duration::from_millis(1_500))));
    let started = Instant::now();
    let answer = search(&spare.query(1), everything(100)).await;
    assert_eq!((answer.traces.len(), answer.receipt.complete), (60, true));
    assert_eq!(started.elapsed(), Duration::from_millis(1_500));
    spare.stop().await;
    // Only it holds shard 2: what is slow is waited for, what is mute is named.
    let alone = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    filled(&alone).await;
    alone.fault(3, Some(Fault::Slow(Duration::from_secs(5))));
    assert!(
        search(&alone.query(1), everything(100))
            .await
            .receipt
            .complete
    );
    alone.fault(3, Some(Fault::Mute));
    let answer = search(&alone.query(1), everything(100)).await;
    assert_eq!(answer.receipt.missing.len(), 1);
    assert_eq!(answer.receipt.missing[0].node, NodeId(3));
    assert!(
        !answer.traces.is_empty(),
        "the others' are there all the same"
    );
    cluster.stop().await;
    alone.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_found_through_a_node_that_does_not_hold_it() {
    let cluster = TestCluster::start(ERRORS_ONLY, ALONE).await;
    let trace = cluster.trace_in(1, 1);
    let failed = Sent {
        error: true,
        ..span(trace, 2, 1)
    };
    // P6: at once.
    cluster.send(&[span(trace, 1, 0)]).await;
    for node in 1..=3 {
        let answer = fetch(&cluster.query(node), trace).await;
        assert_eq!((answer.state, answer.complete), (TraceState::Open, true));
        assert_eq!(read(answer).await.0.len(), 1);
    }
    cluster.send(&[failed]).await;
    pass(12).await;
    cluster.flush().await;
    for node in 1..=3 {
        let answer = fetch(&cluster.query(node), trace).await;
        assert_eq!(answer.state, TraceState::Kept);
        assert_eq!(answer.span_count, 2);
        let decision = answer.decision.as_ref().unwrap();
        assert_eq!(
            (decision.verdict, decision.policy.as_str()),
            (Verdict::Keep, "errors")
        );
        assert_eq!(read(answer).await.0, BTreeSet::from([[1; 8], [2; 8]]));
    }
    assert_eq!(
        cluster.server(2).open_readers(),
        0,
        "small traces are not held"
    );
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_absent_only_when_its_holders_have_answered() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, [&[1], &[2], &[3], &[3, 2]]).await;
    let (alone, twice) = (cluster.trace_in(2, 1), cluster.trace_in(3, 1));
    let lookup = async |trace| cluster.query(1).trace(&tenant(), id(trace)).await;
    for trace in [alone, twice] {
        let absent = lookup(trace).await.map(|found| match found {
            TraceLookup::Absent(TraceAbsence::Unknown { .. }) => (),
            _ => panic!("found"),
        });
        assert_eq!(absent, Ok(()));
    }
    cluster.fault(3, Some(Fault::Dead));
    for trace in [alone, twice] {
        let error = lookup(trace).await.err().unwrap();
        assert_eq!(
            (error.class, error.code),
            (ErrorClass::Unavailable, "holders_unreachable")
        );
        assert!(error.retry_after_ms.is_some());
    }
    // What the other copy has is found.
    cluster.send(&[span(twice, 1, 0)]).await;
    assert_eq!(read(fetch(&cluster.query(1), twice).await).await.0.len(), 1);
    // Older data may be anywhere: it is asked for too.
    cluster.fault(3, None);
    cluster.holds(ShardId(2), &[2]);
    cluster.fault(2, Some(Fault::Dead));
    let error = lookup(alone).await.err().unwrap();
    assert_eq!(error.code, "holders_unreachable");
    cluster.stop().await;
}

/// Shard 0 was node 2's in its first term; node 1 leads it now and has nothing of then.
#[tokio::test(start_paused = true)]
async fn a_trace_in_parts_is_put_together_each_span_once() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    let trace = cluster.trace_in(0, 1);
    let old = [span(trace, 1, 0), span(trace, 2, 1)];
    cluster.nodes[&2].send(&tenant(), &old).await;
    let new = [span(trace, 2, 1), span(trace, 3, 1), span(trace, 4, 1)];
    cluster.nodes[&1].send(&tenant(), &new).await;
    let query = cluster.query(3);
    assert_eq!(
        read(fetch(&query, trace).await).await.0.len(),
        3,
        "nobody knows of the old part"
    );

    cluster.holds(ShardId(0), &[2]);
    let answer = fetch(&query, trace).await;
    assert_eq!(
        read(answer).await.0.len(),
        4,
        "kept ones of a former copy count before they are in a block too"
    );
    pass(12).await;
    cluster.flush().await;
    for node in 1..=3 {
        let query = cluster.query(node);
        let answer = fetch(&query, trace).await;
        assert_eq!((answer.state, answer.complete), (TraceState::Kept, true));
        let all = BTreeSet::from([[1; 8], [2; 8], [3; 8], [4; 8]]);
        assert_eq!(read(answer).await.0, all);
        let found = search(&query, everything(10)).await;
        assert!(found.receipt.complete);
        assert_eq!(found.traces.len(), 1, "one trace, though of two nodes");
        assert_eq!(found.traces[0].span_count, 3, "the version with most spans");
    }
    // A dead holder of the old part: the rest is there, and the answer says so.
    cluster.fault(2, Some(Fault::Dead));
    let answer = fetch(&query, trace).await;
    assert!(!answer.complete);
    assert_eq!(answer.missing[0].node, NodeId(2));
    assert_eq!(read(answer).await.0.len(), 3);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn names_of_all_nodes_are_merged() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    let of = |shard: u16, service: &'static str| Sent {
        service,
        ..span(cluster.trace_in(shard, 1), 1, 0)
    };
    cluster.send(&[of(0, "cart"), of(1, "shop")]).await;
    pass(12).await;
    cluster.flush().await;
    let both = [of(2, "billing"), of(3, "shop")];
    cluster.send(&both).await;
    let names = async |node: u64, limit: usize| {
        let request = NamesRequest {
            tenant: tenant(),
            kind: NamesKind::Services,
            from: UnixNanos(0),
            to: UnixNanos(u64::MAX),
            limit,
            prefix: String::new(),
        };
        cluster.query(node).names(request).await.unwrap()
    };
    for node in 1..=3 {
        let answer = names(node, 10).await;
        assert!(answer.receipt.complete);
        let services: Vec<&str> = answer.names.iter().map(|name| &*name.name).collect();
        assert_eq!(services, ["billing", "cart", "shop"]);
        assert_eq!(names(node, 2).await.names.len(), 2);
    }
    cluster.fault(2, Some(Fault::Dead));
    let answer = names(1, 10).await;
    assert_eq!(answer.receipt.missing.len(), 1);
    assert_eq!(answer.names.len(), 3, "shop is known elsewhere");
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_promoted_through_any_node() {
    let cluster = TestCluster::start(ERRORS_ONLY, ALONE).await;
    let trace = cluster.trace_in(1, 1);
    cluster.send(&[span(trace, 1, 0)]).await;
    pass(12).await;
    assert_eq!(
        fetch(&cluster.query(3), trace).await.state,
        TraceState::Dropped
    );
    let decision = cluster
        .query(1)
        .promote(&tenant(), id(trace))
        .await
        .unwrap();
    assert_eq!(
        (decision.verdict, decision.trigger),
        (Verdict::Keep, Trigger::Promoted)
    );
    cluster.flush().await;
    assert_eq!(
        fetch(&cluster.query(3), trace).await.state,
        TraceState::Kept
    );

    let unknown = cluster.trace_in(1, trace + 1);
    let error = cluster
        .query(1)
        .promote(&tenant(), id(unknown))
        .await
        .unwrap_err();
    assert_eq!((error.class, error.code), (ErrorClass::NotFound, "unknown"));

    // The primary is gone; a new one is asked as soon as there is one.
    cluster.fault(2, Some(Fault::Dead));
    let error = cluster
        .query(1)
        .promote(&tenant(), id(trace))
        .await
        .unwrap_err();
    assert_eq!(error.code, "holders_unreachable");
    let other = cluster.trace_in(1, unknown + 1);
    cluster.nodes[&3]
        .send(&tenant(), &[span(other, 1, 0)])
        .await;
    let failover = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.change(|state| {
            state.shard_map[1].primary = NodeId(3);
            state.shard_map[1].isr = vec![NodeId(3)];
            state.epoch += 1;
        });
    };
    let query = cluster.query(1);
    let tenant = tenant();
    let (decision, ()) = tokio::join!(query.promote(&tenant, id(other)), failover);
    assert_eq!(decision.unwrap().verdict, Verdict::Keep);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_contact_to_the_majority_says_so() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    filled(&cluster).await;
    let (known, unknown) = (cluster.trace_in(0, 1), cluster.trace_in(0, 61));
    cluster.has_contact.store(false, Ordering::Relaxed);
    let answer = search(&cluster.query(1), everything(100)).await;
    assert_eq!(answer.traces.len(), 60);
    assert!(!answer.receipt.complete);
    assert!(answer.receipt.missing[0].reason.contains("majority"));
    let answer = fetch(&cluster.query(1), known).await;
    assert!(!answer.complete);
    assert_eq!(read(answer).await.0.len(), 1);
    let error = cluster
        .query(1)
        .trace(&tenant(), id(unknown))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code, "holders_unreachable");
    cluster.stop().await;
}
