//! Puts the answers of several nodes together, without I/O.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use spandrel_model::batch::SpanKind;
use spandrel_model::ids::{TraceId, UnixNanos};
use spandrel_model::search::{Cursor, FoundTrace, MissingPart, Name, Receipt, TraceState};

use super::super::found::Reached;
use super::super::sources::{Key, after, key};

/// A trace as one node knows it.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) found: FoundTrace,
    /// Of the copy that was asked for live traces.
    pub(super) is_live: bool,
}

/// What one node found, and how far that goes.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) versions: Vec<Version>,
    pub(super) reached: Reached,
}

/// A page, and how far it goes.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// In the total order.
    pub(super) traces: Vec<FoundTrace>,
    pub(super) reached: Reached,
}

fn place(found: &FoundTrace) -> Key {
    key(found.start, found.trace_id)
}

/// Merges to one page of at most `limit` traces after the cursor, each once.
///
/// Each node has said everything up to where it reached and nothing about what lies beyond. So whatever comes after the
/// nearest such point waits for the next page: another node may have something before it.
pub(super) fn merge_page(
    answers: Vec<Found>,
    cursor: Option<Cursor>,
    limit: usize,
    seen: &BTreeSet<TraceId>,
) -> Page {
    let bound = answers.iter().filter_map(|answer| match answer.reached {
        Reached::End => None,
        // Nothing was reached beyond where the question began.
        Reached::Until(reached) => Some(reached.or(cursor)),
    });
    let bound =
        bound.min_by_key(|reached| reached.map(|cursor| key(cursor.start, cursor.trace_id)));
    let is_reached = |found: &FoundTrace| match bound {
        None => true,
        Some(None) => false,
        Some(Some(bound)) => place(found) <= key(bound.start, bound.trace_id),
    };

    let mut versions: BTreeMap<TraceId, Version> = BTreeMap::new();
    for version in answers.into_iter().flat_map(|answer| answer.versions) {
        let known = versions.remove(&version.found.trace_id);
        let best = match known {
            Some(known) if newness(&known) >= newness(&version) => known,
            _ => version,
        };
        versions.insert(best.found.trace_id, best);
    }
    let mut traces: Vec<FoundTrace> = versions
        .into_values()
        .map(|version| version.found)
        .filter(|found| is_reached(found) && after(cursor, place(found)))
        .filter(|found| !seen.contains(&found.trace_id))
        .collect();
    traces.sort_unstable_by_key(place);
    let is_cut = traces.len() > limit;
    traces.truncate(limit);
    let last = traces.last().map(|last| Cursor {
        start: last.start,
        trace_id: last.trace_id,
    });
    let reached = match (is_cut, bound) {
        (true, _) => Reached::Until(last),
        (false, None) => Reached::End,
        (false, Some(bound)) => Reached::Until(bound),
    };
    Page { traces, reached }
}

/// Summaries are cumulative: of two versions of a trace the one with more spans is the newer one, and of equals that of
/// the copy that takes new spans. What one node has kept was not dropped.
fn newness(version: &Version) -> (bool, u32, bool, Reverse<UnixNanos>) {
    let found = &version.found;
    let is_dropped = found.state == TraceState::Dropped;
    (
        !is_dropped,
        found.span_count,
        version.is_live,
        Reverse(found.start),
    )
}

/// Names of several nodes, each once, and whether some may be missing because a node could not send all.
pub(super) fn merge_names(answers: Vec<(Vec<Name>, bool)>, limit: usize) -> (Vec<Name>, bool) {
    let last = |(names, cut): &(Vec<Name>, bool)| {
        let last = names.last().filter(|_| *cut)?;
        Some((last.name.clone(), last.kind))
    };
    let bound = answers.iter().filter_map(last).min();
    let mut merged: BTreeMap<(String, Option<SpanKind>), Name> = BTreeMap::new();
    for name in answers.into_iter().flat_map(|(names, _)| names) {
        let known = merged.entry((name.name.clone(), name.kind));
        let known = known.or_insert_with(|| name.clone());
        // A node without pages takes every value for text.
        if known.scope.is_none() || known.scope == Some("string") {
            known.scope = name.scope.or(known.scope);
        }
        known.indexed = known.indexed.max(name.indexed);
    }
    if let Some(bound) = &bound {
        merged.retain(|place, _| place <= bound);
    }
    let is_full = merged.len() >= limit;
    let names = merged.into_values().take(limit).collect();
    (names, bound.is_some() && !is_full)
}

/// Adds what another answer covers: counters together, the oldest watermark, every missing part once.
pub(super) fn add_receipt(sum: &mut Receipt, other: Receipt) {
    sum.index_watermark = sum.index_watermark.min(other.index_watermark);
    sum.inspected_spans = sum.inspected_spans.saturating_add(other.inspected_spans);
    sum.inspected_bytes = sum.inspected_bytes.saturating_add(other.inspected_bytes);
    add_missing(&mut sum.missing, other.missing);
}

pub(super) fn add_missing(sum: &mut Vec<MissingPart>, parts: Vec<MissingPart>) {
    for part in parts {
        if !sum.contains(&part) {
            sum.push(part);
        }
    }
}
