//! Facts of a trace made anew from its spans: for entries that know only some of them, and for conditions that
//! only the spans can answer.

use spandrel_model::batch::{SpanBatch, SpanHeader};
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::limits::{MAX_MATCHED_SPANS, UNKNOWN_SERVICE};
use spandrel_model::otlp::{RawContext, visit_attributes, visit_resource_attributes};
use spandrel_model::search::{FoundTrace, SearchFilter, TagCondition};

use crate::arena::{SpanArena, SpanList};
use crate::assembler::{Decided, Effects, Prior, ShardOptions, ShardState, Step};
use crate::settings::Epoch;
use crate::shared::Shared;

/// The spans of one trace, copied out of frames and blocks.
#[derive(Debug, Default)]
pub(crate) struct TraceSpans {
    arena: SpanArena,
    list: SpanList,
}

impl TraceSpans {
    /// Adds a span.
    pub(crate) fn push(&mut self, context: &RawContext<'_>, span: &[u8]) {
        self.arena.push(&mut self.list, context, span);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Spans held.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Scans the spans again.
    pub(crate) fn scan(self, tenant: &TenantId, at: UnixNanos, epoch: &Epoch) -> Option<SpanBatch> {
        self.arena.scan(self.list, tenant, at, epoch)
    }
}

struct NothingDecided;

impl Decided for NothingDecided {
    fn prior(&self, _: ShardId, _: &TenantId, _: TraceId, _: Lsn) -> Prior {
        Prior::None
    }
}

/// A shard state that holds nothing but the trace of `batch`.
pub(crate) fn alone(shared: &Shared, batch: &SpanBatch, epoch: &Epoch) -> ShardState {
    let options = ShardOptions {
        shard: batch.spans.first().map_or(ShardId(0), |span| {
            shared.shard(&batch.tenant, span.trace_id)
        }),
        term: spandrel_model::ids::Term(0),
        router: shared.router,
        bucket_nanos: shared.bucket_nanos,
    };
    let mut state = ShardState::new(options, Lsn(0));
    let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
    let step = Step {
        decides: true,
        epoch,
        decided: &NothingDecided,
        limiters: &shared.limiters,
        pressure: 0,
        now: batch.received_at,
    };
    state.collect(&batch.clone(), &rows, &step, &mut Effects::default());
    state
}

/// Evaluates a filter on all spans of a trace: `None` when it does not meet it. `start` is the one that search orders
/// the trace by: late spans do not move it.
pub(crate) fn evaluate(
    shared: &Shared,
    batch: &SpanBatch,
    filter: &SearchFilter,
    start: UnixNanos,
    epoch: &Epoch,
) -> Option<FoundTrace> {
    if !filter.admits_start(start) {
        return None;
    }
    let without_span_conditions = SearchFilter {
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
        operation: None,
        status: None,
        tags: Vec::new(),
        ..filter.clone()
    };
    let state = alone(shared, batch, epoch);
    let mut found = state.only_found(&without_span_conditions)?;
    found.start = start;
    found.earliest = found.earliest.min(start);
    if !filter.has_span_conditions() {
        return Some(found);
    }
    let matched = batch
        .spans
        .iter()
        .filter(|span| span_meets(batch, span, filter));
    found.matched_spans = matched
        .take(MAX_MATCHED_SPANS)
        .map(|span| span.span_id)
        .collect();
    (!found.matched_spans.is_empty()).then_some(found)
}

fn span_meets(batch: &SpanBatch, span: &SpanHeader, filter: &SearchFilter) -> bool {
    let context = batch.context(span);
    let service = match batch.text(context.service) {
        "" => UNKNOWN_SERVICE,
        name => name,
    };
    filter.span_service().is_none_or(|wanted| wanted == service)
        && filter
            .operation
            .as_deref()
            .is_none_or(|name| name == batch.text(span.name))
        && filter.status.is_none_or(|status| status == span.status)
        && filter
            .tags
            .iter()
            .all(|tag| has_tag(batch.bytes(span.span), batch.bytes(context.resource), tag))
}

fn has_tag(span: &[u8], resource: &[u8], tag: &TagCondition) -> bool {
    let mut found = false;
    let mut visit = |key: &str, value: spandrel_model::otlp::RawValue<'_>| {
        found |= key == tag.key && value.text().is_some_and(|text| text == tag.value);
    };
    // Malformed attributes match nothing; they were refused at ingest.
    let _ = visit_attributes(span, &mut visit);
    let _ = visit_resource_attributes(resource, &mut visit);
    found
}
