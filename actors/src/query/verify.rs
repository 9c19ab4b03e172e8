//! From a candidate to a result: what the summaries cannot tell is read from the spans.

use std::collections::{BTreeSet, VecDeque};

use spandrel_model::batch::StatusCode;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, ShardId, SpanId, TraceId, UnixNanos};
use spandrel_model::limits::MAX_MATCHED_SPANS;
use spandrel_model::search::{FoundTrace, SearchRequest, SpanCondition, TraceState};
use spandrel_model::summary::TraceSummary;
use spandrel_model::verdict::CERTAIN;

use super::reader::{TraceParts, all_spans};
use super::sources::{Candidate, Origin};
use super::storage_error;
use crate::facts::evaluate;
use crate::shared::Shared;

/// What a verification read.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Inspected {
    pub(super) spans: u64,
    pub(super) bytes: u64,
    /// Records, fragments and pages that could not be read.
    pub(super) unreadable: u64,
}

/// The result of a candidate, or nothing when it does not meet the conditions.
pub(super) fn verify(
    shared: &Shared,
    request: &SearchRequest,
    candidate: Candidate,
    live_references: &dyn Fn(TraceId) -> Vec<Lsn>,
    inspected: &mut Inspected,
) -> Result<Option<FoundTrace>, PortError> {
    let (start, trace_id) = (candidate.key.0.0, candidate.key.1);
    match candidate.origin {
        Origin::Live(found) if candidate.exact => Ok(Some(*found)),
        Origin::Live(found) => {
            let verified = from_spans(
                shared,
                request,
                (start, trace_id),
                live_references(trace_id),
                inspected,
            )?;
            Ok(verified.map(|verified| FoundTrace {
                state: found.state,
                ..verified
            }))
        }
        Origin::Recent(summary) => {
            stored(shared, request, &summary, candidate.exact, None, inspected)
        }
        Origin::Stored { shard, matched, .. } => {
            let summary = shared.blocks.summary_of(&request.tenant, shard, trace_id);
            let Some(summary) = summary.map_err(storage_error)? else {
                return Ok(None);
            };
            stored(
                shared,
                request,
                &summary,
                candidate.exact,
                matched,
                inspected,
            )
        }
    }
}

/// Everything of a trace is read.
fn from_spans(
    shared: &Shared,
    request: &SearchRequest,
    (start, trace_id): (UnixNanos, TraceId),
    references: Vec<Lsn>,
    inspected: &mut Inspected,
) -> Result<Option<FoundTrace>, PortError> {
    let shard = shared.shard(&request.tenant, trace_id);
    let fragments = shared
        .blocks
        .fragments(&request.tenant, shard, trace_id)
        .map_err(storage_error)?;
    let parts = TraceParts {
        tenant: request.tenant.clone(),
        shard,
        trace_id,
        references: VecDeque::from(references),
        fragments: fragments.into(),
        probability: CERTAIN,
    };
    let (spans, unreadable) = all_spans(shared, &parts);
    inspected.unreadable += unreadable;
    inspected.spans += spans.len() as u64;
    inspected.bytes += spans.bytes() as u64;
    let epoch = shared.epoch();
    let batch = spans.scan(&request.tenant, shared.env.now(), &epoch);
    Ok(batch.and_then(|batch| evaluate(shared, &batch, &request.filter, start, &epoch)))
}

fn stored(
    shared: &Shared,
    request: &SearchRequest,
    summary: &TraceSummary,
    exact: bool,
    matched: Option<Vec<SpanId>>,
    inspected: &mut Inspected,
) -> Result<Option<FoundTrace>, PortError> {
    let filter = &request.filter;
    // The index may have answered by an earlier fragment, of a trace that has grown since.
    let duration = summary.duration_nanos();
    if filter.min_duration.is_some_and(|least| duration < least)
        || filter.max_duration.is_some_and(|most| duration > most)
    {
        return Ok(None);
    }
    if summary.truncated && !exact {
        let place = (summary.start, summary.trace_id);
        return from_spans(shared, request, place, Vec::new(), inspected).map(|found| {
            found.map(|found| FoundTrace {
                state: TraceState::Kept,
                ..found
            })
        });
    }
    let matched = match matched {
        Some(matched) => matched,
        None if filter.has_span_conditions() => matching(
            shared,
            request,
            summary.shard,
            summary.trace_id,
            &filter.span_condition(),
            inspected,
        )?,
        None => {
            let mut spans = Vec::new();
            for service in &filter.services {
                let condition = SpanCondition {
                    service: Some(service.clone()),
                    ..SpanCondition::default()
                };
                spans.extend(matching(
                    shared,
                    request,
                    summary.shard,
                    summary.trace_id,
                    &condition,
                    inspected,
                )?);
            }
            spans
        }
    };
    if filter.has_span_conditions() && matched.is_empty() {
        return Ok(None);
    }
    Ok(Some(found(summary, matched)))
}

fn matching(
    shared: &Shared,
    request: &SearchRequest,
    shard: ShardId,
    trace_id: TraceId,
    condition: &SpanCondition,
    inspected: &mut Inspected,
) -> Result<Vec<SpanId>, PortError> {
    let blocks = &shared.blocks;
    let mut matched: Vec<SpanId> = Vec::new();
    for location in blocks
        .fragments(&request.tenant, shard, trace_id)
        .map_err(storage_error)?
    {
        let spans = blocks.matching_spans(&location, condition, MAX_MATCHED_SPANS);
        matched.extend(spans.map_err(storage_error)?);
        inspected.spans += u64::from(location.rows);
    }
    Ok(matched)
}

fn found(summary: &TraceSummary, mut matched: Vec<SpanId>) -> FoundTrace {
    let services: BTreeSet<&str> = summary
        .classes
        .iter()
        .map(|class| &*class.service)
        .collect();
    let root = summary.root.as_ref();
    let mut seen = BTreeSet::new();
    matched.retain(|span| seen.insert(*span));
    matched.truncate(MAX_MATCHED_SPANS);
    let root_status = root.and_then(|root| {
        let class = summary
            .classes
            .iter()
            .filter(|class| class.service == root.service && class.operation == root.operation);
        class.map(|class| class.status).max()
    });
    FoundTrace {
        trace_id: summary.trace_id,
        root_service: root
            .map(|root| root.service.to_string())
            .unwrap_or_default(),
        root_operation: root
            .map(|root| root.operation.to_string())
            .unwrap_or_default(),
        start: summary.start,
        duration: summary.duration_nanos(),
        status: match summary.error_count {
            0 => root_status.unwrap_or(StatusCode::Unset),
            _ => StatusCode::Error,
        },
        span_count: summary.span_count,
        error_count: summary.error_count,
        services: services.into_iter().map(str::to_owned).collect(),
        state: TraceState::Kept,
        matched_spans: matched,
    }
}
