//! The whole node, from the ingest port to the query port, over real files in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use spandrel_actors::Clock;
use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::policy::KEEP_ALL_POLICY;
use spandrel_model::ports::{TraceAbsence, TraceLookup};
use spandrel_model::search::{NamesKind, NamesRequest, SearchFilter, TagCondition, TraceState};
use spandrel_model::verdict::{Trigger, Verdict};
use support::{ERRORS_ONLY, HOUR, Sent, TestClock, TestNode, pass, span, start, trace_id};

fn tenant() -> TenantId {
    TenantId::default()
}

fn with_service(service: &str) -> SearchFilter {
    SearchFilter {
        services: vec![service.to_owned()],
        ..SearchFilter::default()
    }
}

async fn state_of(node: &TestNode, trace: u8) -> Option<TraceState> {
    node.find(&tenant(), trace).await.map(|answer| answer.state)
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_found_at_once_then_decided_then_stored_and_survives_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    let failed = Sent {
        service: "payment",
        name: "charge",
        error: true,
        ..span(1, 2, 1)
    };
    node.send(&tenant(), &[span(1, 1, 0), failed]).await;
    node.send(&tenant(), &[span(2, 1, 0)]).await;
    // P6: visible with the acknowledgement, before any decision.
    assert_eq!(node.spans(&tenant(), 1).await.len(), 2);
    assert_eq!(node.spans(&tenant(), 2).await.len(), 1);
    assert_eq!(state_of(&node, 2).await, Some(TraceState::Open));

    pass(12).await;
    assert_eq!(state_of(&node, 1).await, Some(TraceState::Kept));
    let dropped = node.find(&tenant(), 2).await.expect("the journal holds it");
    assert_eq!(dropped.state, TraceState::Dropped);
    assert_eq!(dropped.decision.unwrap().verdict, Verdict::Drop);

    let check = async |node: &TestNode| {
        assert_eq!(node.spans(&tenant(), 1).await.len(), 2);
        assert_eq!(state_of(node, 1).await, Some(TraceState::Kept));
        assert_eq!(node.spans(&tenant(), 2).await.len(), 1);
        let found = node.search(&tenant(), with_service("payment")).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].trace_id, trace_id(1));
        assert_eq!((found[0].span_count, found[0].error_count), (2, 1));
        assert_eq!(found[0].matched_spans.len(), 1);
        let by_note = SearchFilter {
            status: Some(StatusCode::Error),
            tags: vec![TagCondition {
                key: "shop.note".to_owned(),
                value: "plain".to_owned(),
            }],
            ..with_service("payment")
        };
        assert_eq!(
            node.search(&tenant(), by_note).await.len(),
            1,
            "an attribute without index"
        );
        let shop_errors = SearchFilter {
            status: Some(StatusCode::Error),
            ..with_service("shop")
        };
        assert!(node.search(&tenant(), shop_errors).await.is_empty());
    };
    check(&node).await;
    node.node.stop().await;
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    check(&node).await;
    node.flush().await;
    check(&node).await;
    node.node.stop().await;
    // P5: without the index everything is found all the same.
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    check(&node).await;
    node.flush().await;
    check(&node).await;
    node.node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn late_spans_reach_a_stored_trace() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    pass(12).await;
    node.flush().await;
    node.send(&tenant(), &[span(1, 2, 1)]).await;
    assert_eq!(node.spans(&tenant(), 1).await.len(), 2);
    pass(12).await;
    node.flush().await;
    assert_eq!(node.spans(&tenant(), 1).await.len(), 2);
    let found = node.search(&tenant(), with_service("shop")).await;
    assert_eq!(found.len(), 1, "one trace, though of two fragments");
    assert_eq!(found[0].span_count, 2);
    node.node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn promotion_brings_a_dropped_trace_into_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[span(1, 1, 0), span(1, 2, 1)]).await;
    pass(12).await;
    let decision = node
        .node
        .query()
        .promote(&tenant(), trace_id(1))
        .await
        .unwrap();
    assert_eq!(
        (decision.verdict, decision.trigger),
        (Verdict::Keep, Trigger::Promoted)
    );
    assert_eq!(decision.policy, "promoted");
    node.flush().await;
    assert_eq!(state_of(&node, 1).await, Some(TraceState::Kept));
    assert_eq!(
        node.search(&tenant(), with_service("shop")).await[0].span_count,
        2
    );
    let unknown = node.node.query().promote(&tenant(), trace_id(9)).await;
    assert!(unknown.is_err());
    node.node.stop().await;
}

/// P3: the same ids in two tenants are two traces, in memory, in blocks and in the index.
#[tokio::test(start_paused = true)]
async fn tenants_never_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    let other: TenantId = "other".parse().unwrap();
    assert!(
        node.node.ingest().tenant(Some("other")).is_err(),
        "unknown until created"
    );
    node.node
        .admin()
        .create_tenant(other.clone())
        .await
        .unwrap();
    assert_eq!(node.node.ingest().tenant(Some("other")).unwrap(), other);
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    let theirs = Sent {
        service: "theirs",
        ..span(1, 2, 0)
    };
    node.send(&other, &[theirs]).await;
    for flushed in [false, true] {
        if flushed {
            pass(12).await;
            node.flush().await;
        }
        let (mine, others) = (node.spans(&tenant(), 1).await, node.spans(&other, 1).await);
        assert_eq!((mine.len(), others.len()), (1, 1));
        assert!(mine.is_disjoint(&others));
        assert!(
            node.search(&tenant(), with_service("theirs"))
                .await
                .is_empty()
        );
        assert!(node.search(&other, with_service("shop")).await.is_empty());
        let request = NamesRequest {
            tenant: other.clone(),
            kind: NamesKind::Services,
            from: Default::default(),
            to: spandrel_model::ids::UnixNanos(u64::MAX),
            limit: 10,
            prefix: String::new(),
        };
        let names = node.node.query().names(request).await.unwrap().names;
        assert_eq!(
            names.iter().map(|name| &name.name).collect::<Vec<_>>(),
            ["theirs"]
        );
    }
    node.node.stop().await;
}

/// P7: neither early nor more than one bucket late.
#[tokio::test(start_paused = true)]
async fn retention_removes_buckets_on_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    pass(12).await;
    node.flush().await;
    let retention = 7 * 24 * HOUR;
    clock.jump(retention - HOUR / 100);
    pass(12).await;
    assert_eq!(node.spans(&tenant(), 1).await.len(), 1, "not early");
    clock.jump(HOUR + HOUR / 50);
    pass(12).await;
    let gone = node
        .node
        .query()
        .trace(&tenant(), trace_id(1))
        .await
        .unwrap();
    assert!(
        matches!(gone, TraceLookup::Absent(TraceAbsence::Unknown { .. })),
        "at most one bucket late"
    );
    assert!(
        node.search(&tenant(), with_service("shop"))
            .await
            .is_empty()
    );
    node.node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_policy_decides_new_traces_and_open_ones_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    let refused = node
        .node
        .admin()
        .apply_policy("policies: 7".to_owned())
        .await;
    assert!(refused.is_err());
    let view = node
        .node
        .admin()
        .apply_policy(KEEP_ALL_POLICY.to_owned())
        .await
        .unwrap();
    assert_eq!(view.version, 2);
    node.send(&tenant(), &[span(2, 1, 0)]).await;
    pass(12).await;
    assert_eq!(state_of(&node, 1).await, Some(TraceState::Dropped));
    assert_eq!(state_of(&node, 2).await, Some(TraceState::Kept));
    node.node.stop().await;
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    assert_eq!(
        node.node.admin().policy().await.version,
        2,
        "the seed is ignored"
    );
    node.node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_search_neither_repeat_nor_skip() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    for trace in 0..60 {
        node.send(&tenant(), &[span(trace, 1, 0)]).await;
        if trace == 20 || trace == 40 {
            pass(12).await;
            node.flush().await;
        }
    }
    let mut request = node.request(&tenant(), with_service("shop"));
    request.limit = 7;
    let mut seen = Vec::new();
    loop {
        let answer = node.node.query().search(request.clone()).await.unwrap();
        seen.extend(
            answer
                .traces
                .iter()
                .map(|found| (found.start, found.trace_id)),
        );
        match answer.next {
            Some(cursor) => request.cursor = Some(cursor),
            None => break,
        }
    }
    assert_eq!(seen.len(), 60);
    assert!(
        seen.is_sorted_by(|a, b| (b.0, a.1) < (a.0, b.1)),
        "newest start first, then id"
    );
    node.node.stop().await;
}

/// A late span that starts before its trace moved the trace in the order of results while it was in memory, and made
/// its block look as if it held nothing so late: the trace came twice, out of order, or not at all.
#[tokio::test(start_paused = true)]
async fn a_late_span_that_starts_before_its_trace_leaves_the_trace_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    let began = clock.now();
    pass(1).await;
    node.send(&tenant(), &[span(2, 1, 0)]).await;
    pass(11).await;
    node.flush().await;
    // The next bucket, which gets nothing else, while the journal still knows the verdict.
    clock.jump(HOUR - 11 * UnixNanos::PER_SECOND);
    let late = Sent {
        service: "late",
        before_ms: 7_200_000,
        ..span(1, 2, 1)
    };
    node.send(&tenant(), &[late]).await;
    pass(12).await;

    let check = async |what: &str| {
        let all = node.search(&tenant(), SearchFilter::default()).await;
        let ids: Vec<_> = all.iter().map(|found| found.trace_id).collect();
        assert_eq!(ids, [trace_id(2), trace_id(1)], "{what}");
        let mut request = node.request(&tenant(), with_service("late"));
        request.filter.from = began;
        let found = node.node.query().search(request).await.unwrap().traces;
        assert_eq!(found.len(), 1, "{what}");
        assert_eq!(found[0].span_count, 2, "{what}");
        assert_eq!(found[0].start, began.plus(1_000_000), "{what}");
        assert!(
            found[0].duration > HOUR / 2,
            "{what}: {}",
            found[0].duration
        );
        assert_eq!(found[0].services, ["late", "shop"], "{what}");
    };
    check("in memory").await;
    node.flush().await;
    check("in a block").await;
}

/// A dropped trace was promoted just before its recovery window ended. The shard's checkpoint, up to ten seconds old,
/// did not know that its records were needed again, and the next trim took them.
#[tokio::test(start_paused = true)]
async fn a_promoted_trace_is_not_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    pass(25).await;
    clock.jump(HOUR);
    // The slice is closed by a commit to the next one.
    node.send(&tenant(), &[span(2, 1, 0)]).await;

    let promoted = node.node.query().promote(&tenant(), trace_id(1)).await;
    assert_eq!(promoted.unwrap().trigger, Trigger::Promoted);
    pass(7).await;

    assert_eq!(state_of(&node, 1).await, Some(TraceState::Kept));
    assert_eq!(node.spans(&tenant(), 1).await.len(), 1);
    node.flush().await;
    assert_eq!(node.spans(&tenant(), 1).await.len(), 1);
}

/// Spans came for a kept trace when the journal had forgotten its verdict. They were decided anew, and until then the
/// trace showed as open; when they were dropped, a fetch did not find them.
#[tokio::test(start_paused = true)]
async fn a_kept_trace_stays_kept_when_the_journal_has_forgotten_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, ERRORS_ONLY).await;
    let failed = Sent {
        error: true,
        ..span(1, 1, 0)
    };
    node.send(&tenant(), &[failed]).await;
    pass(25).await;
    node.flush().await;
    let decided = async |node: &TestNode| {
        let answer = node.find(&tenant(), 1).await.unwrap();
        (answer.state, answer.decision.unwrap().decided_at)
    };
    let before = decided(&node).await;
    clock.jump(2 * HOUR);
    node.send(&tenant(), &[span(2, 1, 0)]).await;
    pass(25).await;

    node.send(&tenant(), &[span(1, 2, 1)]).await;
    assert_eq!(decided(&node).await, before);
    assert_eq!(node.spans(&tenant(), 1).await.len(), 2);
    // Without a root the healthy span is decided, and dropped, when it is a minute old.
    pass(62).await;
    assert_eq!(decided(&node).await, before);
    assert_eq!(node.spans(&tenant(), 1).await.len(), 2);
}
