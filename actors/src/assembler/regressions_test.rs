//! Defects that were found and fixed, each with its story.

use spandrel_model::ids::{Lsn, TenantId, Term, UnixNanos};
use spandrel_model::policy::{KEEP_ALL_POLICY, PolicySet};
use spandrel_model::search::{SearchFilter, TraceState};
use spandrel_model::verdict::{Trigger, Verdict};

use super::world::{ERRORS_ONLY, EVERYTHING, READY, Sent, World, search_of, span, trace};
use super::{Depth, HitLimits, MemoryHit, Step};

fn tenant() -> TenantId {
    TenantId::default()
}

fn everything() -> SearchFilter {
    SearchFilter {
        to: UnixNanos(u64::MAX),
        ..SearchFilter::default()
    }
}

fn hits(world: &World) -> Vec<MemoryHit> {
    let limits = HitLimits {
        all: 10,
        meeting: 10,
    };
    let search = search_of(everything(), limits);
    world.state.search(&search, &|_| true).hits
}

fn failed(id: u64, parent: u64) -> Sent {
    Sent {
        error: true,
        ..span(id, parent)
    }
}

/// A trace was promoted and the process killed. Its spans lay before the checkpoint, so that replay met the verdict
/// alone, found no entry for it and passed on: the trace was neither in a shard nor in a block, for ever.
/// (`replay 6 --large`)
#[test]
fn a_keep_whose_spans_lie_before_the_checkpoint_is_kept_on_replay() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    let dropped = world.commit().remove(0);
    world.step(|state, step, effects| state.promote_dropped(dropped, step, effects));
    let records = world.commit();
    assert_eq!(records[0].verdict, Verdict::Keep);

    let mut replayed = World::new(ERRORS_ONLY);
    replayed.step(|state, step, effects| {
        state.verdicts_committed(Lsn(3), &records, step, effects);
    });

    let view = replayed
        .state
        .view(&tenant(), trace(1), Depth::Live)
        .unwrap();
    assert_eq!(view.state, TraceState::Kept);
    assert_eq!(view.references, [Lsn(1)]);
    assert_eq!(replayed.state.low_water(), Lsn(1));
    let kept =
        replayed.step(|state, _, _| state.collect_kept(UnixNanos(u64::MAX), READY, &|_| "".into()));
    assert_eq!(kept.len(), 1, "it goes to a page");
}

/// A failed span that came after the decision and before its verdict was durable was weighed by nobody: the drop
/// stood, although the policy keeps errors, unless one more span came.
#[test]
fn an_error_that_comes_while_the_drop_is_on_its_way_turns_it() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    world.send(1, &[failed(2, 1)]);
    assert_eq!(world.decided(), (Verdict::Drop, Trigger::Idle));
    assert_eq!(world.decided(), (Verdict::Keep, Trigger::LateSpan));
    let view = world.state.view(&tenant(), trace(1), Depth::Live).unwrap();
    assert_eq!(view.references, [Lsn(1), Lsn(2)]);
}

/// A dropped trace with late spans is dropped again, so that its record names them. While that record was on its way
/// the trace showed as open, without a decision.
#[test]
fn a_dropped_trace_stays_dropped_while_its_next_record_is_on_its_way() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    world.commit();
    world.send(1, &[span(2, 1)]);
    world.confirm();
    world.pass(10);
    assert_eq!(world.effects.verdicts.len(), 1, "the second drop");
    let view = world.state.view(&tenant(), trace(1), Depth::Live).unwrap();
    assert_eq!(view.state, TraceState::Dropped);
    assert_eq!(view.record.unwrap().trigger, Trigger::Idle);
    assert_eq!(view.references, [Lsn(1), Lsn(3)]);
    assert_eq!(hits(&world), []);
}

/// The second drop of a trace took over the policy of the first one, by its number, under the version of another
/// policy set: it named a policy that had not decided, and could not be recomputed.
#[test]
fn a_drop_that_is_recorded_again_under_another_policy_is_by_that_policy() {
    let first = "policies:\n  - {name: shed, type: drop, drop_sub_policy: [{name: shop, type: string_attribute, key: service.name, values: [shop]}]}\n  - {name: all, type: always_sample}\n";
    let mut world = World::new(first);
    world.send(1, &[span(1, 0)]);
    world.pass(60);
    let dropped = world.commit().remove(0);
    assert_eq!((dropped.verdict, dropped.policy), (Verdict::Drop, 0));

    world.adopt(ERRORS_ONLY, 2);
    world.send(1, &[span(2, 1)]);
    world.confirm();
    world.pass(10);
    let again = world.commit().remove(0);
    assert_eq!((again.verdict, again.policy_version), (Verdict::Drop, 2));
    let set = PolicySet::parse(ERRORS_ONLY, 2).unwrap();
    let decision = set.recompute(&again.facts(), &again.limiters);
    assert_eq!(
        (decision.verdict, decision.policy),
        (again.verdict, again.policy)
    );
}

/// Search sorts by the start under which the trace is in its block. A late span that started before all others moved
/// it while the late part was in memory, and what was in the block did not follow: the trace came out of order.
#[test]
fn a_late_span_does_not_move_the_start_that_search_sorts_by() {
    let mut world = World::new(KEEP_ALL_POLICY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    let start = world.commit()[0].start;
    world.pass(10);
    let kept =
        world.step(|state, _, _| state.collect_kept(UnixNanos(u64::MAX), READY, &|_| "all".into()));
    let earlier = Sent {
        start_ms: 400,
        ..span(2, 1)
    };
    world.send(1, std::slice::from_ref(&earlier));
    let starts = |world: &World| -> Vec<_> {
        let starts = hits(world).into_iter().map(|hit| match hit {
            MemoryHit::Meets(found) => found.start,
            MemoryHit::Unverified(trace) => trace.start,
        });
        starts.collect()
    };

    let paged = kept[0].paged();
    world.step(|state, _, _| state.paged(&[paged]));
    assert_eq!(starts(&world), [start]);

    let kept = world
        .step(|state, _, _| state.collect_kept(UnixNanos(u64::MAX), EVERYTHING, &|_| "all".into()));
    assert_eq!((kept[0].record.start, kept[0].stored), (start, true));
    let paged = kept[0].paged();
    world.step(|state, _, _| state.paged(&[paged]));
    assert_eq!(starts(&world), []);
    world.send(1, &[earlier]);
    world.confirm();
    assert_eq!(starts(&world), [start], "also when the journal tells it");
}

/// A trace with more operations than a summary holds lost the services that came after them: results did not name
/// them.
#[test]
fn a_giant_trace_names_the_services_that_come_last() {
    let names: Vec<&'static str> = (0..200)
        .map(|number| &*Box::leak(format!("operation {number}").into_boxed_str()))
        .collect();
    let mut spans: Vec<Sent> = (1..)
        .zip(names)
        .map(|(id, name)| Sent {
            name,
            ..span(id, 0)
        })
        .collect();
    spans.push(Sent {
        service: "shipping",
        ..span(500, 1)
    });
    let mut world = World::new(KEEP_ALL_POLICY);
    world.send(1, &spans);
    let hits = hits(&world);
    let [MemoryHit::Meets(found)] = hits.as_slice() else {
        panic!("its entry holds all of it");
    };
    assert_eq!(found.services, ["shipping", "shop"]);
}

/// A replica left its shard while a kept trace waited for its page, and forgot it; the settings named it as a holder all
/// the same, and whoever asked it was told that there is no such trace.
#[test]
fn a_replica_that_leaves_its_shard_writes_what_was_kept_to_a_page_first() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.send(2, &[failed(1, 0)]);
    world.commit();
    assert_eq!(hits(&world).len(), 2);

    let stale = world.state.view(&tenant(), trace(1), Depth::Stored);
    assert_eq!(stale, None, "what is not kept the others know better");
    let last = world.next_lsn;
    world.state.let_go(Lsn(u64::MAX), last);
    world.state.page_kept();
    world.state.check();
    let view = |number, depth| world.state.view(&tenant(), trace(number), depth);
    assert_eq!(view(1, Depth::Live), None, "open ones are let go");
    let kept = view(2, Depth::Stored).map(|view| view.state);
    assert_eq!(kept, Some(TraceState::Kept));

    let name = |_: &spandrel_model::verdict::VerdictRecord| std::sync::Arc::from("errors");
    let taken = world.state.collect_kept(world.now, READY, &name);
    let paged: Vec<_> = taken.iter().map(super::KeptTrace::paged).collect();
    assert_eq!(paged.len(), 1);
    world.state.paged(&paged);
    assert_eq!(world.state.traces(), 0);
}

/// A primary was killed while its keep was on its way to the others, which decided anew. Started again it wrote the trace
/// to a block as kept, before the new primary could tell it that its own verdict never counted.
#[test]
fn a_keep_that_a_replay_found_is_not_written_to_a_page_before_it_counts() {
    let mut world = World::new(ERRORS_ONLY);
    world.state.doubt();
    world.send(1, &[failed(1, 0)]);
    world.commit();
    let at = world.state.applied();
    assert_eq!(world.state.kept_backlog(u64::MAX, EVERYTHING).0, []);
    assert_eq!(world.state.backlog().1, super::PagingBacklog::default());

    // when it starts anew and its verdict is behind what counts, then it is gone
    let mut without = World::new(ERRORS_ONLY);
    without.state.doubt();
    without.send(1, &[failed(1, 0)]);
    without.commit();
    without.state.let_go(Lsn(at.0 - 1), at);
    assert_eq!(without.state.traces(), 0);

    // when it counts, then it waits for its page
    world.state.count(at);
    assert_eq!(world.state.kept_backlog(u64::MAX, EVERYTHING).0.len(), 1);
}

/// A trace was dropped, and spans of it came late; a replica joined that knew of the drop already. The late spans, which
/// were repeated for it, it took for those that the drop had read, and forgot them: when it led the shard and an error
/// came, it kept the trace without them.
#[test]
fn late_spans_that_are_repeated_for_a_replica_that_knows_the_drop_are_late_ones() {
    let mut primary = World::new(ERRORS_ONLY);
    primary.send(1, &[span(1, 0)]);
    primary.pass(20);
    let dropped = primary.commit();
    assert_eq!(dropped[0].verdict, Verdict::Drop);

    let join = |verdict_first: bool| {
        let mut replica = World::new(ERRORS_ONLY);
        replica
            .horizon
            .verdicts
            .insert(trace(1), dropped[0].clone());
        replica.next_lsn = primary.next_lsn;
        let (verdict_at, spans_at) = (replica.next_lsn, replica.next_lsn.next());
        let batch = replica.batch(1, &[span(2, 1)]);
        replica.step(|state, step, effects| {
            if verdict_first {
                state.verdicts_again(verdict_at, &dropped, step, effects);
            }
            state.apply_again(spans_at, &batch, &[0], step, effects);
        });
        replica.confirm();
        replica.state.view(&tenant(), trace(1), Depth::Live)
    };
    let late = join(true).expect("it is held");
    assert_eq!(late.state, TraceState::Dropped);
    assert!(late.references.len() > dropped[0].references.len());
    // Without it, the drop has read the spans: it was on its way when they were repeated.
    assert_eq!(join(false), None);
}

/// The journal of a follower is ahead of its shards, which found there what had been decided of spans that they were still
/// to apply, and took these for late ones. An entry with late spans alone knows only some of the trace: a quarter of the
/// pages of primaries were refused for one such trace each.
#[test]
fn a_verdict_that_has_read_the_spans_does_not_make_them_late_ones() {
    let mut primary = World::new(ERRORS_ONLY);
    primary.send(1, &[failed(1, 0)]);
    let kept = primary.commit();
    assert_eq!(
        (kept[0].verdict, kept[0].input_lsn),
        (Verdict::Keep, Lsn(1))
    );

    let mut follower = World::new(ERRORS_ONLY);
    follower.horizon.verdicts.insert(trace(1), kept[0].clone());
    follower.send(1, &[failed(1, 0)]);
    follower.confirm();
    let place = follower.next_lsn;
    follower.step(|state, step, effects| {
        state.verdicts_committed(place, &kept, step, effects);
    });
    let taken = follower
        .state
        .collect_kept(UnixNanos(u64::MAX), EVERYTHING, &|_| "p".into());
    assert!(taken[0].summary.is_some(), "it has seen the whole trace");
}

/// A replica that joined long after a trace had been kept got a late span of it, was told no verdict, and waited with it
/// for ever: its journal grew. The primary, which finds the keep in its own journal, repeats it.
#[test]
fn a_late_span_of_what_was_kept_in_an_earlier_term_brings_the_verdict_along() {
    let mut primary = World::new(ERRORS_ONLY);
    primary.send(1, &[failed(1, 0)]);
    let kept = primary.commit();
    assert_eq!(kept[0].verdict, Verdict::Keep);
    let taken = primary
        .state
        .collect_kept(UnixNanos(u64::MAX), EVERYTHING, &|_| "p".into());
    let paged: Vec<_> = taken.iter().map(super::KeptTrace::paged).collect();
    primary.state.paged(&paged);
    assert_eq!(primary.state.traces(), 0);
    primary.next_lsn = Lsn::before_term(Term(2)).next();
    primary.send(1, &[span(2, 1)]);
    primary.confirm();
    let recalled = std::mem::take(&mut primary.effects.recall);
    assert_eq!(recalled[0].keep.as_ref(), Some(&kept[0]));

    // the replica, for which the trace is new
    let mut replica = World::new(ERRORS_ONLY);
    let (span_at, verdict_at) = (primary.next_lsn, primary.next_lsn.next());
    let batch = replica.batch(1, &[span(2, 1)]);
    replica.step(|state, step, effects| {
        let follows = Step {
            decides: false,
            ..*step
        };
        state.apply(span_at, &batch, &[0], &follows, effects);
        let open = state.view(&tenant(), trace(1), Depth::Live);
        assert_eq!(open.map(|open| open.state), Some(TraceState::Open));
        let keeps: Vec<_> = recalled
            .into_iter()
            .filter_map(|recall| recall.keep)
            .collect();
        state.verdicts_again(verdict_at, &keeps, &follows, effects);
        state.count(verdict_at);
    });
    let known = replica.state.view(&tenant(), trace(1), Depth::Live);
    assert_eq!(known.map(|known| known.state), Some(TraceState::Kept));
}

/// A replica left its shard when it knew a trace as dropped; the trace was kept while it was away. When it joined again
/// it was told of the keep, and went on to say that the trace was dropped.
#[test]
fn a_replica_that_knows_a_drop_takes_the_keep_that_is_repeated_for_it() {
    let mut primary = World::new(ERRORS_ONLY);
    primary.send(1, &[span(1, 0)]);
    primary.pass(20);
    let dropped = primary.commit();
    let mut kept = dropped.clone();
    kept[0].verdict = Verdict::Keep;
    kept[0].trigger = Trigger::LateSpan;

    let mut replica = World::new(ERRORS_ONLY);
    let earlier = dropped[0].clone();
    replica.horizon.verdicts.insert(trace(1), earlier);
    let (drop_at, spans_at) = (primary.next_lsn, primary.next_lsn.next());
    let batch = replica.batch(1, &[span(2, 1)]);
    replica.step(|state, step, effects| {
        state.verdicts_again(drop_at, &dropped, step, effects);
        state.apply_again(spans_at, &batch, &[0], step, effects);
    });
    replica.confirm();
    let says = |replica: &World| {
        let view = replica.state.view(&tenant(), trace(1), Depth::Live);
        view.map(|view| view.state)
    };
    assert_eq!(says(&replica), Some(TraceState::Dropped));

    replica.step(|state, step, effects| {
        state.verdicts_again(spans_at.next(), &kept, step, effects);
    });
    assert_eq!(says(&replica), Some(TraceState::Kept));
}

/// An error came late for a dropped trace, and the primary, which had joined after the drop, asked the holders for the
/// spans that the drop had read. The keep stood in their journals and did not count yet, so they looked for a keep among
/// what they held, found the drop, and said that they knew nothing. (`replay 195`)
#[test]
fn who_is_asked_for_older_data_tells_of_a_dropped_trace_with_late_spans() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    world.commit();
    world.send(1, &[failed(2, 1)]);
    world.confirm();

    let asked = world
        .state
        .view(&tenant(), trace(1), Depth::Stored)
        .unwrap();

    assert_eq!(asked.state, TraceState::Dropped);
    assert_eq!(asked.references.len(), 2, "of the drop, and the late one");
}

/// A primary that had joined after a drop was killed before it had brought the spans of the drop to all copies, though an
/// error had come late; none of its next lives remembered, and a search did not find the trace. (`replay 238`)
#[test]
fn who_leads_next_brings_what_was_kept_late_to_all_copies() {
    let mut world = World::new(ERRORS_ONLY);
    world.send(1, &[span(1, 0)]);
    world.pass(10);
    world.commit();
    world.next_lsn = Lsn::before_term(Term(2)).next();
    world.send(1, &[failed(2, 1)]);
    world.confirm();
    let keep_at = world.next_lsn;
    let kept = world.commit();
    assert_eq!(kept[0].trigger, Trigger::LateSpan);
    let taken = world
        .state
        .collect_kept(UnixNanos(u64::MAX), EVERYTHING, &|_| "p".into());
    let paged: Vec<_> = taken.iter().map(super::KeptTrace::paged).collect();
    world.state.paged(&paged);
    assert_eq!(world.state.traces(), 0);

    let now = world.now;
    let recalls = world.state.begin_deciding(now);
    assert_eq!(recalls.len(), 1);
    assert_eq!(recalls[0].keep.as_ref(), Some(&kept[0]));
    assert_eq!(world.state.low_water(), keep_at, "a replay tells of it");

    // and: long after that nobody has to
    world.pass(200);
    assert!(world.state.low_water() > keep_at);
    let now = world.now;
    assert_eq!(world.state.begin_deciding(now), []);
}
