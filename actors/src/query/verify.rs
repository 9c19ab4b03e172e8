//! From candidates to results: what the summaries cannot tell is read from the spans. Candidates are taken in groups,
//! so that a page of a block is opened once for all of them.

use std::collections::VecDeque;
use std::sync::Arc;

use spandrel_model::batch::StatusCode;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, ShardId, SpanId, TraceId, UnixNanos};
use spandrel_model::limits::MAX_MATCHED_SPANS;
use spandrel_model::search::{FoundTrace, SearchRequest, SpanCondition, TraceState};
use spandrel_model::shard_set::ShardSet;
use spandrel_model::summary::TraceSummary;
use spandrel_model::verdict::CERTAIN;
use spandrel_storage::block::{BlockError, FragmentLocation};

use super::block_error;
use super::reader::{TraceParts, all_spans};
use super::sources::{Candidate, Origin};
use crate::assembler::UnverifiedTrace;
use crate::facts::evaluate;
use crate::found::TraceFacts;
use crate::shared::Shared;

/// What a search read.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    pub(super) spans: u64,
    pub(super) bytes: u64,
    /// Raw bytes of the journal's frames that were walked.
    pub(super) frame_bytes: u64,
    pub(super) unreadable: Unreadable,
}

/// Records, fragments and pages that could not be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    pub(super) count: u64,
    /// Of which shards they are.
    shards: ShardSet,
    /// Of some of them nobody knows.
    anywhere: bool,
}

impl Unreadable {
    pub(super) fn of_shard(&mut self, shard: ShardId, count: u64) {
        if count > 0 {
            self.count += count;
            self.shards.insert(shard);
        }
    }

    pub(super) fn somewhere(&mut self, count: u64) {
        self.count += count;
        self.anywhere |= count > 0;
    }

    /// The shards of which something may be missing; none: of all.
    pub(super) fn shards(&self) -> Vec<ShardId> {
        match self.anywhere {
            true => Vec::new(),
            false => self.shards.iter().collect(),
        }
    }
}

/// A candidate with what the blocks know of it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) candidate: Candidate,
    /// Nothing for live ones.
    fragments: Vec<FragmentLocation>,
    /// The newest one; nothing for live ones, and where it is gone or cannot be read.
    summary: Option<Arc<TraceSummary>>,
    matched: Vec<SpanId>,
}

impl Prepared {
    /// True when only the spans tell whether the trace meets the conditions.
    fn needs_spans(&self) -> bool {
        let truncated = self
            .summary
            .as_ref()
            .is_some_and(|summary| summary.truncated);
        truncated && !self.candidate.exact
    }
}

/// Reads summaries and matching spans of a group of candidates.
pub(super) fn prepare(
    shared: &Shared,
    request: &SearchRequest,
    group: Vec<Candidate>,
    inspected: &mut Inspected,
) -> Result<Vec<Prepared>, PortError> {
    let mut prepared = Vec::with_capacity(group.len());
    for candidate in group {
        let fragments = match &candidate.origin {
            Origin::Live(_) | Origin::Unverified(_) => Vec::new(),
            Origin::Recent(summary) => fragments(shared, request, summary.shard, &candidate)?,
            Origin::Stored { shard, .. } => fragments(shared, request, *shard, &candidate)?,
        };
        let summary = match &candidate.origin {
            Origin::Recent(summary) => Some(Arc::clone(summary)),
            _ => None,
        };
        prepared.push(Prepared {
            candidate,
            fragments,
            summary,
            matched: Vec::new(),
        });
    }
    read_summaries(shared, &mut prepared, inspected)?;
    read_matched(shared, request, &mut prepared, inspected)?;
    Ok(prepared)
}

fn fragments(
    shared: &Shared,
    request: &SearchRequest,
    shard: ShardId,
    candidate: &Candidate,
) -> Result<Vec<FragmentLocation>, PortError> {
    shared
        .blocks
        .fragments(&request.tenant, shard, candidate.key.1)
        .map_err(block_error)
}

fn read_summaries(
    shared: &Shared,
    prepared: &mut [Prepared],
    inspected: &mut Inspected,
) -> Result<(), PortError> {
    let mut without: Vec<&mut Prepared> = prepared
        .iter_mut()
        .filter(|one| matches!(one.candidate.origin, Origin::Stored { .. }))
        .collect();
    let fragments: Vec<&[FragmentLocation]> = without.iter().map(|one| &*one.fragments).collect();
    let summaries = shared.blocks.newest_summaries(&fragments);
    for (one, summary) in without.iter_mut().zip(summaries) {
        one.summary = match summary {
            Err(error @ (BlockError::Corrupt { .. } | BlockError::NoBlock { .. })) => {
                tracing::error!(%error, trace = %one.candidate.key.1, "trace left out of a search");
                match one.candidate.origin {
                    Origin::Stored { shard, .. } => inspected.unreadable.of_shard(shard, 1),
                    _ => inspected.unreadable.somewhere(1),
                }
                None
            }
            summary => summary.map_err(block_error)?.map(Arc::new),
        };
    }
    Ok(())
}

/// The spans that a result names: those that meet the conditions, else those of the services.
fn read_matched(
    shared: &Shared,
    request: &SearchRequest,
    prepared: &mut [Prepared],
    inspected: &mut Inspected,
) -> Result<(), PortError> {
    let filter = &request.filter;
    let conditions = match filter.has_span_conditions() {
        true => vec![filter.span_condition()],
        false => {
            let services = filter.services.iter().map(|service| SpanCondition {
                service: Some(service.clone()),
                ..SpanCondition::default()
            });
            services.collect()
        }
    };
    let mut wanted: Vec<&mut Prepared> = prepared
        .iter_mut()
        .filter(|one| one.summary.is_some() && !one.needs_spans())
        .collect();
    let locations: Vec<FragmentLocation> = wanted
        .iter()
        .flat_map(|one| one.fragments.iter().cloned())
        .collect();
    for condition in &conditions {
        let found = shared
            .blocks
            .matching_spans(&locations, condition, MAX_MATCHED_SPANS)
            .map_err(block_error)?;
        let mut found = locations.iter().zip(found);
        for one in &mut wanted {
            for (location, spans) in found.by_ref().take(one.fragments.len()) {
                inspected.spans += u64::from(location.rows);
                let is_unreadable = u64::from(spans.is_none());
                inspected.unreadable.of_shard(location.shard, is_unreadable);
                one.matched.extend(spans.unwrap_or_default());
            }
        }
    }
    Ok(())
}

/// The result of a candidate, or nothing when it does not meet the conditions.
pub(super) fn verify(
    shared: &Shared,
    request: &SearchRequest,
    prepared: Prepared,
    inspected: &mut Inspected,
) -> Result<Option<FoundTrace>, PortError> {
    let needs_spans = prepared.needs_spans();
    match prepared.candidate.origin {
        Origin::Live(found) => Ok(Some(*found)),
        Origin::Unverified(trace) => live(shared, request, trace, inspected),
        Origin::Recent(_) | Origin::Stored { .. } => {
            let Some(summary) = prepared.summary else {
                return Ok(None);
            };
            // The index may have answered by an earlier fragment, of a trace that has grown since.
            if !request.filter.admits_duration(summary.duration_nanos()) {
                return Ok(None);
            }
            if needs_spans {
                let parts = StoredParts {
                    shard: summary.shard,
                    trace_id: summary.trace_id,
                    start: summary.start,
                    references: VecDeque::new(),
                    fragments: prepared.fragments,
                };
                return from_spans(shared, request, parts, TraceState::Kept, inspected);
            }
            if request.filter.has_span_conditions() && prepared.matched.is_empty() {
                return Ok(None);
            }
            Ok(Some(found(&summary, prepared.matched)))
        }
    }
}

fn live(
    shared: &Shared,
    request: &SearchRequest,
    trace: UnverifiedTrace,
    inspected: &mut Inspected,
) -> Result<Option<FoundTrace>, PortError> {
    let shard = shared.shard(&request.tenant, trace.trace_id);
    let fragments = shared
        .blocks
        .fragments(&request.tenant, shard, trace.trace_id)
        .map_err(block_error)?;
    let parts = StoredParts {
        shard,
        trace_id: trace.trace_id,
        start: trace.start,
        references: trace.references.into(),
        fragments,
    };
    from_spans(shared, request, parts, trace.state, inspected)
}

/// Where the spans of a trace are, and the start that its verdict fixed.
struct StoredParts {
    shard: ShardId,
    trace_id: TraceId,
    start: UnixNanos,
    references: VecDeque<Lsn>,
    fragments: Vec<FragmentLocation>,
}

/// Reads all spans of a trace and evaluates the conditions on them.
fn from_spans(
    shared: &Shared,
    request: &SearchRequest,
    parts: StoredParts,
    state: TraceState,
    inspected: &mut Inspected,
) -> Result<Option<FoundTrace>, PortError> {
    let start = parts.start;
    let parts = TraceParts {
        tenant: request.tenant.clone(),
        shard: parts.shard,
        trace_id: parts.trace_id,
        references: parts.references,
        fragments: parts.fragments.into(),
        probability: CERTAIN,
    };
    let (spans, unreadable) = all_spans(shared, &parts);
    inspected.unreadable.of_shard(parts.shard, unreadable);
    inspected.spans += spans.len() as u64;
    inspected.bytes += spans.bytes() as u64;
    let epoch = shared.epoch();
    let batch = spans.scan(&request.tenant, shared.env.now(), &epoch);
    let found = batch.and_then(|batch| evaluate(shared, &batch, &request.filter, start, &epoch));
    Ok(found.map(|found| FoundTrace { state, ..found }))
}

fn found(summary: &TraceSummary, matched: Vec<SpanId>) -> FoundTrace {
    let root = summary.root.as_ref();
    let root_status = root.and_then(|root| {
        let classes = summary.classes.iter();
        let of_root = classes
            .filter(|class| class.service == root.service && class.operation == root.operation);
        of_root.map(|class| class.status).max()
    });
    let facts = TraceFacts {
        trace_id: summary.trace_id,
        root,
        root_status: root_status.unwrap_or(StatusCode::Unset),
        start: summary.start,
        earliest: summary.earliest,
        duration: summary.duration_nanos(),
        span_count: summary.span_count,
        error_count: summary.error_count,
        state: TraceState::Kept,
    };
    let services = summary.classes.iter().map(|class| &*class.service);
    facts.found(services, matched.into_iter())
}
