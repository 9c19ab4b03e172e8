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

fn with_tag(key: &str, value: &str) -> SearchFilter {
    SearchFilter {
        tags: vec![TagCondition {
            key: key.to_owned(),
            value: value.to_owned(),
        }],
        ..SearchFilter::default()
    }
}

/// Pages end within the hits of one page of a block, between blocks, and between stores.
#[tokio::test(start_paused = true)]
async fn pages_of_a_search_neither_repeat_nor_skip() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    for trace in 0..60 {
        let note = if trace % 3 == 0 { "third" } else { "plain" };
        let root = Sent {
            note,
            ..span(trace, 1, 0)
        };
        node.send(&tenant(), &[root]).await;
        clock.jump(u64::from(trace % 2));
        if trace == 20 || trace == 40 {
            pass(12).await;
            node.flush().await;
        }
        if trace == 30 {
            clock.jump(HOUR);
        }
    }
    let cases = [
        (with_service("shop"), 60),
        (with_tag("http.route", "/items/{id}"), 60),
        (with_tag("shop.note", "third"), 20),
        (with_tag("shop.note", "plain"), 40),
        (with_tag("shop.note", "none"), 0),
    ];
    for (filter, expected) in cases {
        let mut request = node.request(&tenant(), filter.clone());
        request.limit = 7;
        let mut seen = Vec::new();
        loop {
            let answer = node.node.query().search(request.clone()).await.unwrap();
            assert!(answer.receipt.complete, "{:?}", answer.receipt);
            assert!(answer.traces.len() <= 7);
            for found in &answer.traces {
                assert_eq!(found.matched_spans.len(), 1);
                seen.push((found.start, found.trace_id));
            }
            match answer.next {
                Some(cursor) => request.cursor = Some(cursor),
                None => break,
            }
        }
        assert_eq!(seen.len(), expected, "{filter:?}");
        assert!(
            seen.is_sorted_by(|a, b| (b.0, a.1) < (a.0, b.1)),
            "newest start first, then id"
        );
    }
    node.node.stop().await;
}

/// A search for an attribute that is not indexed read every live trace by itself. Now it walks the journal's frames,
/// and says what it did not reach.
#[tokio::test(start_paused = true)]
async fn live_traces_are_searched_by_their_spans() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    for trace in 0..200 {
        let rare = Sent {
            note: if trace % 50 == 7 { "rare" } else { "plain" },
            ..span(trace, 2, 1)
        };
        node.send(&tenant(), &[span(trace, 1, 0), rare]).await;
        clock.jump(1_000);
    }
    pass(12).await;
    let filter = with_tag("shop.note", "rare");
    let found = node.search(&tenant(), filter.clone()).await;
    let ids: Vec<_> = found.iter().map(|found| found.trace_id).collect();
    assert_eq!(ids.len(), 4);
    for (id, trace) in ids.iter().zip([157, 107, 57, 7]) {
        assert_eq!(*id, trace_id(trace));
    }
    assert!(found.iter().all(|found| found.state == TraceState::Kept));
    let other_service = SearchFilter {
        services: vec!["payment".to_owned()],
        ..filter.clone()
    };
    assert!(node.search(&tenant(), other_service).await.is_empty());

    let mut request = node.request(&tenant(), filter);
    request.timeout_ms = 0;
    let answer = node.node.query().search(request).await.unwrap();
    assert_eq!((answer.traces.len(), answer.next), (0, None));
    let missing = &answer.receipt.missing;
    assert!(!answer.receipt.complete);
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].reason, "not inspected within 0 ms");
    assert!(missing[0].to > found[0].start);
    node.node.stop().await;
}

/// Changes a byte of every segment of the index; the manifests stay.
fn damage_segments(index: &std::path::Path) {
    let mut damaged = 0;
    for entry in std::fs::read_dir(index).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "segment") {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
}

/// A damaged index failed every listing of names, and a lost one left names out of answers that called themselves
/// complete.
#[tokio::test(start_paused = true)]
async fn names_do_not_need_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    node.send(&tenant(), &[span(1, 1, 0)]).await;
    pass(12).await;
    node.flush().await;
    let check = async |node: &TestNode| {
        let kinds = [
            (NamesKind::Services, "shop"),
            (
                NamesKind::Operations {
                    service: "shop".to_owned(),
                },
                "GET /",
            ),
            (
                NamesKind::TagValues {
                    key: "http.route".to_owned(),
                },
                "/items/{id}",
            ),
        ];
        for (kind, expected) in kinds {
            let request = NamesRequest {
                tenant: tenant(),
                kind,
                prefix: String::new(),
                from: UnixNanos(0),
                to: UnixNanos(u64::MAX),
                limit: 10,
            };
            let answer = node.node.query().names(request).await.unwrap();
            assert!(answer.receipt.complete);
            let names: Vec<&str> = answer.names.iter().map(|name| &*name.name).collect();
            assert_eq!(names, [expected]);
        }
    };
    check(&node).await;
    node.node.stop().await;
    damage_segments(&dir.path().join("index"));
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    check(&node).await;
    node.node.stop().await;
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let node = start(dir.path(), &clock, KEEP_ALL_POLICY).await;
    check(&node).await;
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
