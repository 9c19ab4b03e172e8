//! Merging on any answers of any nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{NodeId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, FoundTrace, MissingPart, Name, Receipt, TraceState};

use super::super::found::Reached;
use super::merge::{Found, Page, Version, add_receipt, merge_names, merge_page};

fn trace(number: u8, start: u64, span_count: u32) -> FoundTrace {
    FoundTrace {
        trace_id: TraceId([number; 16]),
        root_service: String::new(),
        root_operation: String::new(),
        start: UnixNanos(start),
        earliest: UnixNanos(start),
        duration: 0,
        status: StatusCode::Unset,
        span_count,
        error_count: 0,
        services: Vec::new(),
        state: TraceState::Kept,
        matched_spans: Vec::new(),
    }
}

fn place(found: &FoundTrace) -> (Reverse<UnixNanos>, TraceId) {
    (Reverse(found.start), found.trace_id)
}

fn cursor(found: &FoundTrace) -> Cursor {
    Cursor {
        start: found.start,
        trace_id: found.trace_id,
    }
}

/// What a node with these traces answers: at most `limit` after the cursor.
fn answer(node: &[FoundTrace], after: Option<Cursor>, limit: usize) -> Found {
    let is_after = |found: &&FoundTrace| {
        after.is_none_or(|after| place(found) > (Reverse(after.start), after.trace_id))
    };
    let mut left: Vec<FoundTrace> = node.iter().filter(is_after).cloned().collect();
    left.sort_by_key(place);
    let reached = match left.len() > limit {
        true => Reached::Until(left.get(limit - 1).map(cursor)),
        false => Reached::End,
    };
    left.truncate(limit);
    let versions = left.into_iter().map(|found| Version {
        found,
        is_live: false,
    });
    Found {
        versions: versions.collect(),
        reached,
    }
}

proptest! {
    /// Pages of the merged answers are the pages of all traces together, each with its newest version, whatever limits
    /// the nodes keep to.
    #[test]
    fn pages_neither_repeat_nor_skip(
        traces in proptest::collection::vec((0u8..60, 0u64..9), 0..80),
        nodes in proptest::collection::vec(proptest::collection::vec((any::<prop::sample::Index>(), 1u32..5), 0..40), 1..4),
        limit in 1usize..9,
        node_limits in proptest::collection::vec(1usize..9, 4),
    ) {
        // given: nodes that hold versions of some traces; a trace's start is the same everywhere
        let starts: BTreeMap<u8, u64> = traces.into_iter().collect();
        prop_assume!(!starts.is_empty());
        let ids: Vec<u8> = starts.keys().copied().collect();
        let nodes: Vec<Vec<FoundTrace>> = nodes
            .iter()
            .map(|picks| {
                let picked: BTreeMap<u8, u32> =
                    picks.iter().map(|(id, spans)| (*id.get(&ids), *spans)).collect();
                picked.iter().map(|(id, spans)| trace(*id, starts[id], *spans)).collect()
            })
            .collect();
        let mut expected: BTreeMap<TraceId, FoundTrace> = BTreeMap::new();
        for found in nodes.iter().flatten() {
            let best = expected.entry(found.trace_id).or_insert_with(|| found.clone());
            best.span_count = best.span_count.max(found.span_count);
        }
        let mut expected: Vec<FoundTrace> = expected.into_values().collect();
        expected.sort_by_key(place);
        // when: pages are asked for until the end
        let (mut pages, mut after) = (Vec::new(), None);
        for _ in 0..200 {
            let answers = nodes.iter().zip(&node_limits);
            let answers = answers.map(|(node, most)| answer(node, after, limit.min(*most)));
            let page = merge_page(answers.collect(), after, limit, &BTreeSet::new());
            prop_assert!(page.traces.len() <= limit);
            pages.extend(page.traces);
            match page.reached {
                Reached::End => break,
                Reached::Until(reached) => after = reached,
            }
        }
        // then
        prop_assert_eq!(pages, expected);
    }
}

#[test]
fn nothing_is_given_beyond_what_every_node_has_reached() {
    let early = Found {
        versions: vec![Version {
            found: trace(1, 90, 1),
            is_live: true,
        }],
        reached: Reached::Until(Some(cursor(&trace(1, 90, 1)))),
    };
    let late = answer(&[trace(2, 95, 1), trace(3, 80, 1)], None, 9);
    let page = merge_page(vec![early, late], None, 9, &BTreeSet::new());
    let numbers: Vec<u8> = page
        .traces
        .iter()
        .map(|found| found.trace_id.0[0])
        .collect();
    assert_eq!(numbers, [2, 1]);
    assert_eq!(page.reached, Reached::Until(Some(cursor(&trace(1, 90, 1)))));

    let nothing = Found {
        versions: Vec::new(),
        reached: Reached::Until(None),
    };
    let late = answer(&[trace(2, 95, 1)], None, 9);
    assert_eq!(
        merge_page(vec![nothing, late], None, 9, &BTreeSet::new()),
        Page {
            traces: Vec::new(),
            reached: Reached::Until(None)
        }
    );
}

#[test]
fn of_equal_versions_the_live_one_counts() {
    let version = |state, is_live| Found {
        versions: vec![Version {
            found: FoundTrace {
                state,
                ..trace(1, 5, 3)
            },
            is_live,
        }],
        reached: Reached::End,
    };
    let answers = vec![
        version(TraceState::Kept, false),
        version(TraceState::Open, true),
        version(TraceState::Kept, false),
    ];
    let page = merge_page(answers, None, 9, &BTreeSet::new());
    assert_eq!(page.traces.len(), 1);
    assert_eq!(page.traces[0].state, TraceState::Open);
}

#[test]
fn what_one_node_has_kept_was_not_dropped() {
    let version = |state, spans| Found {
        versions: vec![Version {
            found: FoundTrace {
                state,
                ..trace(1, 5, spans)
            },
            is_live: state == TraceState::Dropped,
        }],
        reached: Reached::End,
    };
    let answers = vec![
        version(TraceState::Kept, 3),
        version(TraceState::Dropped, 4),
    ];
    let page = merge_page(answers, None, 9, &BTreeSet::new());
    assert_eq!(page.traces.len(), 1);
    assert_eq!(page.traces[0].state, TraceState::Kept);
}

fn name(name: &str, scope: Option<&'static str>) -> Name {
    Name {
        name: name.to_owned(),
        kind: None,
        scope,
        indexed: None,
    }
}

#[test]
fn names_are_sorted_distinct_and_end_where_a_node_could_not_send_more() {
    let names = |given: &[&str]| {
        given
            .iter()
            .map(|text| name(text, None))
            .collect::<Vec<_>>()
    };
    let (merged, is_cut) = merge_names(
        vec![(names(&["b", "d"]), false), (names(&["a", "b"]), false)],
        3,
    );
    assert_eq!((merged, is_cut), (names(&["a", "b", "d"]), false));
    let (merged, is_cut) = merge_names(
        vec![(names(&["b", "d"]), false), (names(&["a", "c"]), true)],
        9,
    );
    assert_eq!((merged, is_cut), (names(&["a", "b", "c"]), true));
    let typed = vec![
        (vec![name("200", Some("string"))], false),
        (vec![name("200", Some("int"))], false),
    ];
    assert_eq!(merge_names(typed, 9).0, [name("200", Some("int"))]);
}

#[test]
fn receipts_add_up() {
    let part = MissingPart {
        node: NodeId(3),
        shards: Vec::new(),
        from: UnixNanos(0),
        to: UnixNanos(1),
        reason: "gone".to_owned(),
    };
    let receipt = |watermark, missing| Receipt {
        index_watermark: UnixNanos(watermark),
        missing,
        inspected_spans: 2,
        inspected_bytes: 3,
        ..Receipt::default()
    };
    let mut sum = receipt(9, vec![part.clone()]);
    add_receipt(&mut sum, receipt(4, vec![part.clone()]));
    assert_eq!(
        sum,
        Receipt {
            inspected_spans: 4,
            inspected_bytes: 6,
            ..receipt(4, vec![part])
        }
    );
}
