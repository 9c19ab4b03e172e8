//! Life of a trace in its shard, decision by decision.

use spandrel_model::ids::{Lsn, TenantId, UnixNanos};
use spandrel_model::limits::MAX_TRACE_SPANS;
use spandrel_model::policy::{DEFAULT_POLICY, KEEP_ALL_POLICY, PolicySet};
use spandrel_model::search::{SearchFilter, TagCondition, TraceState};
use spandrel_model::verdict::{PROMOTED_POLICY, Trigger, Verdict};

use super::world::{ERRORS_ONLY, EVERYTHING, READY, Sent, World, search_of, span, trace};
use super::{Depth, HitLimits, KeptTrace, MemoryHit, PagedTrace, PagingBacklog, Promotion};

const END_OF_TIME: UnixNanos = UnixNanos(u64::MAX);

fn tenant() -> TenantId {
    TenantId::default()
}

fn state_of(world: &World, number: u8) -> Option<TraceState> {
    world
        .state
        .view(&tenant(), trace(number), Depth::Live)
        .map(|view| view.state)
}

fn failed(id: u64, parent: u64) -> Sent {
    Sent {
        error: true,
        ..span(id, parent)
    }
}

#[test]
fn a_trace_is_decided_when_its_root_has_ended_and_it_is_idle() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(2, 1)]);
    world.pass(30);
    assert!(world.effects.verdicts.is_empty(), "without a root it waits");
    world.send(1, &[span(1, 0)]);
    world.pass(9);
    assert!(world.effects.verdicts.is_empty(), "9 s are not 10");
    world.pass(1);
    assert_eq!(world.decided(), (Verdict::Drop, Trigger::Idle));
    assert_eq!(state_of(&world, 1), None);
}

#[test]
fn a_trace_without_a_root_is_decided_at_its_maximum_age() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[failed(2, 1)]);
    // The error makes the keep final: it is decided at once and waits for more spans before its page.
    assert_eq!(world.decided(), (Verdict::Keep, Trigger::EarlyKeep));
    world.send(2, &[span(2, 1)]);
    world.pass(59);
    assert!(world.effects.verdicts.is_empty());
    world.pass(1);
    assert_eq!(world.decided(), (Verdict::Drop, Trigger::MaxAge));
}

#[test]
fn several_roots_and_any_order_of_arrival_make_one_trace() {
    let mut world = World::new(KEEP_ALL_POLICY);
    let late_root = Sent {
        start_ms: 50,
        name: "first",
        ..span(9, 0)
    };
    world.send(1, &[span(3, 2), span(2, 1)]);
    world.send(1, &[span(1, 0), late_root]);
    world.commit();
    world.pass(10);
    let kept = world.step(|state, _, _| state.collect_kept(END_OF_TIME, READY, &|_| "all".into()));
    let summary = kept[0].summary.as_ref().unwrap();
    assert_eq!(summary.span_count, 4);
    assert_eq!(
        &*summary.root.as_ref().unwrap().operation,
        "first",
        "the earliest root is the root"
    );
    // It was kept at its first spans, which started later.
    assert_eq!(summary.start, world.base().plus(1_000_000_000));
    assert_eq!(summary.earliest, world.base().plus(50_000_000));
    assert_eq!(kept[0].references, [Lsn(1), Lsn(2)]);
}

#[test]
fn a_duplicate_batch_changes_nothing() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0), span(2, 1)]);
    let again = world.send(1, &[span(1, 0), span(2, 1)]);
    assert_eq!((again.spans, again.duplicates), (0, 2));
    let view = world.state.view(&tenant(), trace(1), Depth::Live).unwrap();
    assert_eq!(view.references, [Lsn(1)], "the second record is not needed");
    let other_bytes = Sent {
        duration_ms: 11,
        ..span(2, 1)
    };
    let conflict = world.send(1, &[other_bytes]);
    assert_eq!(
        (conflict.spans, conflict.conflicts),
        (1, 1),
        "kept and counted"
    );
}

#[test]
fn a_late_error_turns_a_drop_into_a_keep_with_all_of_the_trace() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    assert_eq!(world.decided(), (Verdict::Drop, Trigger::Idle));

    world.send(1, &[failed(2, 1)]);
    assert_eq!(world.effects.confirm.len(), 1, "the journal is asked");
    world.confirm();
    let records = world.commit();
    assert_eq!(
        (records[0].verdict, records[0].trigger),
        (Verdict::Keep, Trigger::LateSpan)
    );
    assert_eq!(
        records[0].references.as_slice(),
        [Lsn(1), Lsn(3)],
        "the dropped spans too"
    );
    assert_eq!(state_of(&world, 1), Some(TraceState::Kept));
    let kept =
        world.step(|state, _, _| state.collect_kept(END_OF_TIME, EVERYTHING, &|_| "errors".into()));
    assert!(
        kept[0].summary.is_none(),
        "the summary is made from the spans"
    );
    assert_eq!(kept[0].references, [Lsn(1), Lsn(3)]);
}

#[test]
fn late_spans_that_change_nothing_follow_the_drop_and_are_named_by_its_record() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    world.commit();
    world.send(1, &[span(2, 1)]);
    world.confirm();
    assert!(world.effects.verdicts.is_empty());
    assert_eq!(state_of(&world, 1), Some(TraceState::Dropped));
    world.pass(10);
    let records = world.commit();
    assert_eq!(records[0].verdict, Verdict::Drop);
    assert_eq!(records[0].references.as_slice(), [Lsn(1), Lsn(3)]);
    assert_eq!(records[0].span_count, 2);
    assert_eq!(state_of(&world, 1), None);
}

#[test]
fn spans_that_come_while_the_verdict_is_on_its_way_are_late_spans() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    world.send(1, &[span(2, 1)]);
    assert_eq!(world.decided(), (Verdict::Drop, Trigger::Idle));
    assert_eq!(state_of(&world, 1), Some(TraceState::Dropped));
    world.send(1, &[failed(3, 1)]);
    assert_eq!(world.decided(), (Verdict::Keep, Trigger::LateSpan));
    let kept =
        world.step(|state, _, _| state.collect_kept(END_OF_TIME, EVERYTHING, &|_| "errors".into()));
    assert_eq!(
        kept[0].summary.as_ref().unwrap().span_count,
        3,
        "the entry held all of it"
    );
}

#[test]
fn late_spans_of_a_paged_trace_become_a_fragment_of_their_own() {
    let mut world = World::new(KEEP_ALL_POLICY);
    world.send(1, &[span(1, 0)]);
    world.commit();
    world.pass(10);
    let kept = world.step(|state, _, _| state.collect_kept(END_OF_TIME, READY, &|_| "all".into()));
    let (fragment, paged) = (kept[0].fragment, kept[0].paged());
    world.send(1, &[span(2, 1)]);
    world.step(|state, _, _| state.paged(&[paged]));
    let view = world.state.view(&tenant(), trace(1), Depth::Live).unwrap();
    assert_eq!(view.references, [Lsn(3)], "what the block holds is let go");
    world.pass(10);
    let late = world.step(|state, _, _| state.collect_kept(END_OF_TIME, READY, &|_| "all".into()));
    assert!(late[0].stored && late[0].summary.is_none() && late[0].fragment > fragment);
    let paged = late[0].paged();
    world.step(|state, _, _| state.paged(&[paged]));
    assert_eq!(state_of(&world, 1), None);

    world.send(1, &[span(3, 1)]);
    world.confirm();
    assert_eq!(
        state_of(&world, 1),
        Some(TraceState::Kept),
        "by the verdict in the journal"
    );
}

#[test]
fn a_giant_trace_is_decided_at_its_cap_and_its_rest_follows() {
    let mut world = World::new(ERRORS_ONLY);
    let mut id = 1;
    while world.effects.verdicts.is_empty() {
        let spans: Vec<Sent> = (0..10_000).map(|offset| span(id + offset, 1)).collect();
        id += 10_000;
        world.send(1, &spans);
        assert!(id <= u64::from(MAX_TRACE_SPANS) + 1);
    }
    assert_eq!(world.decided(), (Verdict::Drop, Trigger::Cap));
    assert_eq!(state_of(&world, 1), None);
    let held = world.state.memory_bytes();
    world.send(1, &[span(id, 1)]);
    world.confirm();
    assert_eq!(state_of(&world, 1), Some(TraceState::Dropped));
    assert!(
        world.state.memory_bytes() < held + 10_000,
        "the giant's rows are gone"
    );
}

#[test]
fn under_pressure_healthy_traces_go_first_and_errors_last() {
    let mut world = World::new(DEFAULT_POLICY);
    for number in 1..=9 {
        world.send(number, &[span(1, 0)]);
    }
    let composite_error = failed(1, 7);
    world.pressure = 2;
    let before = world.state.memory_bytes();
    world.step(|state, step, effects| state.relieve(before / 3, step, effects));
    let decided = world.effects.verdicts.len();
    assert!((2..9).contains(&decided), "about a third, got {decided}");
    assert!(
        world
            .effects
            .verdicts
            .iter()
            .all(|record| record.trigger == Trigger::Pressure)
    );
    world.commit();
    world.send(20, &[composite_error]);
    let kept = world.commit();
    assert_eq!(
        kept[0].verdict,
        Verdict::Keep,
        "an error is kept under pressure"
    );
}

#[test]
fn promotion_keeps_open_and_dropped_traces() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    let outcome =
        world.step(|state, step, effects| state.promote(&tenant(), trace(1), step, effects));
    assert_eq!(outcome, Promotion::Decided);
    let records = world.commit();
    assert_eq!(
        (records[0].verdict, records[0].policy),
        (Verdict::Keep, PROMOTED_POLICY)
    );

    world.send(2, &[span(1, 0)]);
    world.pass(10);
    let dropped = world.commit().remove(0);
    let absent =
        world.step(|state, step, effects| state.promote(&tenant(), trace(2), step, effects));
    assert_eq!(absent, Promotion::Absent);
    let outcome =
        world.step(|state, step, effects| state.promote_dropped(dropped.clone(), step, effects));
    assert_eq!(outcome, Promotion::Decided);
    let records = world.commit();
    assert_eq!(records[0].trigger, Trigger::Promoted);
    assert_eq!(records[0].references, dropped.references);
    // Without a span in memory the start was the beginning of time once.
    assert_eq!(records[0].start, dropped.start);
    let paged = PagedTrace {
        tenant: tenant(),
        trace_id: trace(1),
        fragment: Lsn(2),
    };
    world.step(|state, _, _| state.paged(&[paged]));
    assert_eq!(
        world.state.low_water(),
        dropped.references[0],
        "its records are needed until it is paged"
    );
}

#[test]
fn every_verdict_can_be_recomputed_from_its_record() {
    let mut world = World::new(DEFAULT_POLICY);
    for number in 1..=200u8 {
        let slow = Sent {
            duration_ms: if number % 7 == 0 { 2_000 } else { 5 },
            error: number % 11 == 0,
            ..span(1, 0)
        };
        world.send(number, &[slow]);
    }
    world.pass(10);
    let records = world.commit();
    let set = PolicySet::parse(DEFAULT_POLICY, 1).unwrap();
    for record in records {
        let again = set.recompute(&record.facts(), &record.limiters);
        assert_eq!(
            (again.verdict, again.policy),
            (record.verdict, record.policy)
        );
    }
}

#[test]
fn search_answers_conditions_on_one_span_exactly_from_memory() {
    let mut world = World::new(ERRORS_ONLY);
    let pay = Sent {
        service: "payment",
        name: "charge",
        error: true,
        ..span(2, 1)
    };
    world.send(1, &[span(1, 0), pay.clone()]);
    world.send(
        2,
        &[
            span(1, 0),
            Sent {
                error: false,
                ..pay
            },
        ],
    );
    world.commit();
    let filter = |service: &str, status| SearchFilter {
        services: vec![service.to_owned()],
        status,
        to: END_OF_TIME,
        ..SearchFilter::default()
    };
    let error = Some(spandrel_model::batch::StatusCode::Error);
    let find = |filter: &SearchFilter| -> Vec<_> {
        let limits = HitLimits {
            all: 10,
            meeting: 10,
        };
        let search = search_of(filter.clone(), limits);
        let found = world.state.search(&search, &|_| true);
        let hits = found.hits.into_iter().map(|hit| match hit {
            MemoryHit::Meets(found) => (found.trace_id, true, found.matched_spans.len()),
            MemoryHit::Unverified(trace) => (trace.trace_id, false, 0),
        });
        hits.collect()
    };
    assert_eq!(find(&filter("payment", error)), [(trace(1), true, 1)]);
    assert_eq!(find(&filter("payment", None)).len(), 2);
    assert_eq!(
        find(&filter("shop", error)),
        [],
        "the shop's own span did not fail"
    );
}

#[test]
fn a_search_says_when_there_is_more() {
    let mut world = World::new(ERRORS_ONLY);
    for number in 1..=6 {
        world.send(number, &[span(1, 0)]);
    }
    let search = |filter: SearchFilter, limits| {
        let filter = SearchFilter {
            to: spandrel_model::ids::UnixNanos(u64::MAX),
            ..filter
        };
        let search = search_of(filter, limits);
        let found = world.state.search(&search, &|_| false);
        let meeting = found.hits.iter();
        let meeting = meeting.filter(|hit| matches!(hit, MemoryHit::Meets(_)));
        (found.hits.len(), meeting.count(), found.more)
    };
    let limits = |all, meeting| HitLimits { all, meeting };
    assert_eq!(search(SearchFilter::default(), limits(6, 6)), (6, 6, false));
    assert_eq!(search(SearchFilter::default(), limits(4, 6)), (4, 4, true));
    assert_eq!(search(SearchFilter::default(), limits(6, 2)), (2, 2, true));
    let by_tag = SearchFilter {
        tags: vec![TagCondition {
            key: "shop.note".to_owned(),
            value: "rare".to_owned(),
        }],
        ..SearchFilter::default()
    };
    assert_eq!(search(by_tag, limits(5, 1)), (5, 0, true));
}

#[test]
fn memory_comes_back_when_traces_leave() {
    let mut world = World::new(ERRORS_ONLY);
    let empty = world.state.memory_bytes();
    for number in 1..=100 {
        world.send(
            number,
            &[
                span(1, 0),
                Sent {
                    route: Some("/a"),
                    ..span(2, 1)
                },
            ],
        );
    }
    assert!(world.state.memory_bytes() > empty + 100 * 300);
    world.pass(10);
    world.commit();
    assert_eq!(world.state.memory_bytes(), empty);
    assert_eq!(world.state.low_water(), world.state.applied().next());
}

#[test]
fn pages_take_the_oldest_and_leave_what_came_after_the_cut() {
    // given three kept traces, one after the other
    let mut world = World::new(KEEP_ALL_POLICY);
    for number in 1..=3 {
        world.send(number, &[span(1, 0)]);
        world.commit();
        world.pass(1);
    }
    world.pass(20);

    // when a job lists what fits two traces, and takes what came until then
    let (backlog, more) = world.step(|state, _, _| state.kept_backlog(u64::MAX, READY));
    assert_eq!((backlog.len(), more), (3, false));
    assert!(backlog.is_sorted());
    let two_bytes = backlog[0].1 + backlog[1].1;
    let (first, more) = world.step(|state, _, _| state.kept_backlog(two_bytes, READY));
    let taken = world.step(|state, _, _| state.collect_kept(first[1].0, READY, &|_| "all".into()));

    // then the third one waits, and is the only one that does
    assert_eq!((first.len(), more, taken.len()), (2, true, 2));
    let (rest, more) = world.step(|state, _, _| state.kept_backlog(u64::MAX, READY));
    assert_eq!((rest, more), (vec![backlog[2]], false));
}

#[test]
fn what_waits_for_a_page_says_how_far_it_holds_a_restart_back() {
    // given a kept trace that waits for its page, and later ones that are open
    let mut world = World::new(KEEP_ALL_POLICY);
    world.send(1, &[span(1, 0)]);
    world.commit();
    world.pass(10);
    for number in 2..=4 {
        world.send(number, &[span(1, 0)]);
        world.commit();
    }

    // then it alone is listed, and the records between it and the first open one are counted
    let first_open = world
        .state
        .view(&tenant(), trace(2), Depth::Live)
        .unwrap()
        .references[0];
    let backlog = world.state.backlog().1;
    assert_eq!(backlog.records, first_open.0 - 1);
    assert!(backlog.bytes > 0 && backlog.oldest.is_some());

    // when it is on its page, nothing waits
    let kept = world.step(|state, _, _| state.collect_kept(END_OF_TIME, READY, &|_| "all".into()));
    let paged: Vec<_> = kept.iter().map(KeptTrace::paged).collect();
    world.step(|state, _, _| state.paged(&paged));
    assert_eq!(world.state.backlog().1, PagingBacklog::default());
}
