//! Facts of a trace made anew from its spans: for entries that know only some of them, and for conditions that
//! only the spans can answer.

use bytes::Bytes;
use spandrel_model::batch::{Context, Slice, SpanBatch, SpanHeader};
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::limits::{MAX_MATCHED_SPANS, UNKNOWN_SERVICE};
use spandrel_model::otlp::{RawContext, rescan, visit_attributes, visit_resource_attributes};
use spandrel_model::search::{FoundTrace, SearchFilter, TagCondition};

use crate::assembler::{Decided, Effects, Prior, ShardOptions, ShardState, Step};
use crate::settings::Epoch;
use crate::shared::Shared;

/// The spans of one trace, copied out of frames and blocks.
///
/// Invariant: each context index of `spans` lies inside `contexts`, each slice inside `buffer`.
#[derive(Debug, Default)]
pub(crate) struct TraceSpans {
    buffer: Vec<u8>,
    contexts: Vec<Context>,
    spans: Vec<(u32, Slice)>,
}

impl TraceSpans {
    fn store(&mut self, bytes: &[u8]) -> Slice {
        // A trace is a few megabytes; what does not fit 32 bits is left out by the empty slice.
        let (Ok(offset), Ok(len)) = (u32::try_from(self.buffer.len()), u32::try_from(bytes.len()))
        else {
            return Slice::default();
        };
        self.buffer.extend_from_slice(bytes);
        Slice { offset, len }
    }

    /// Adds a span.
    pub(crate) fn push(&mut self, context: &RawContext<'_>, span: &[u8]) {
        let same = |known: &Context| {
            known.resource.of(&self.buffer) == context.resource
                && known.scope.of(&self.buffer) == context.scope
                && known.resource_schema_url.of(&self.buffer) == context.resource_schema_url
                && known.scope_schema_url.of(&self.buffer) == context.scope_schema_url
        };
        // Spans of one context come together: the last ones are looked at first.
        let known = self.contexts.iter().rposition(same);
        let number = known.unwrap_or_else(|| {
            let stored = Context {
                resource: self.store(context.resource),
                resource_schema_url: self.store(context.resource_schema_url),
                scope: self.store(context.scope),
                scope_schema_url: self.store(context.scope_schema_url),
                ..Context::default()
            };
            self.contexts.push(stored);
            self.contexts.len() - 1
        });
        let slice = self.store(span);
        self.spans
            .push((u32::try_from(number).unwrap_or(u32::MAX), slice));
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Spans held.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// True without a span.
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The spans with their contexts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RawContext<'_>, &[u8])> {
        self.spans.iter().filter_map(|(number, span)| {
            let context = self.contexts.get(*number as usize)?;
            let raw = RawContext {
                resource: context.resource.of(&self.buffer),
                resource_schema_url: context.resource_schema_url.of(&self.buffer),
                scope: context.scope.of(&self.buffer),
                scope_schema_url: context.scope_schema_url.of(&self.buffer),
            };
            Some((raw, span.of(&self.buffer)))
        })
    }

    /// Scans the spans again.
    pub(crate) fn scan(self, tenant: &TenantId, at: UnixNanos, epoch: &Epoch) -> Option<SpanBatch> {
        let interests = epoch.rules().interests();
        let buffer = Bytes::from(self.buffer);
        let spans = self.spans.into_iter();
        rescan(buffer, tenant.clone(), at, self.contexts, spans, interests).ok()
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
        epoch,
        decided: &NothingDecided,
        limiters: &shared.limiters,
        pressure: 0,
        now: batch.received_at,
    };
    state.collect(&batch.clone(), &rows, &step, &mut Effects::default());
    state
}

/// Evaluates a filter on all spans of a trace: `None` when it does not meet it.
pub(crate) fn evaluate(
    shared: &Shared,
    batch: &SpanBatch,
    filter: &SearchFilter,
    epoch: &Epoch,
) -> Option<FoundTrace> {
    let without_span_conditions = SearchFilter {
        operation: None,
        status: None,
        tags: Vec::new(),
        ..filter.clone()
    };
    let state = alone(shared, batch, epoch);
    let hits = state.search(
        &batch.tenant,
        &without_span_conditions,
        None,
        1,
        true,
        &|_| true,
    );
    let mut found = hits.into_iter().next()?.found;
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
