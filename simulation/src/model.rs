//! What the clients sent, what was acknowledged, and what was seen of the decisions: the truth that answers are
//! checked against.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use prost::Message;
use spandrel_model::ids::{TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::Verdict;
use xxhash_rust::xxh3::xxh3_64;

/// The identity of a span with its resource and scope: what must come back as it was sent.
pub(crate) type Fingerprint = u64;

/// A span that some client sends.
#[derive(Debug, Clone)]
pub(crate) struct SpanRecord {
    pub(crate) is_error: bool,
    /// It has left its client at least once.
    pub(crate) sent: bool,
    /// When it was first acknowledged.
    pub(crate) acked_at: Option<UnixNanos>,
}

/// The decision that was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) verdict: Verdict,
    pub(crate) decided_at: UnixNanos,
    pub(crate) policy: String,
    /// Of a drop: until then it stands, and only a keep may replace it.
    pub(crate) until: UnixNanos,
}

/// A trace.
#[derive(Debug, Clone)]
pub(crate) struct TraceRecord {
    pub(crate) tenant: TenantId,
    pub(crate) trace_id: TraceId,
    pub(crate) spans: BTreeMap<Fingerprint, SpanRecord>,
    pub(crate) seen: Option<Seen>,
    /// When the first of its spans left a client.
    pub(crate) first_sent_at: Option<UnixNanos>,
    /// Its acknowledged spans when a client last read it.
    pub(crate) read_spans: usize,
}

/// What clients know of their requests in one life of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// Requests that were not answered yet.
    pub(crate) under_way: u64,
    pub(crate) spans: u64,
    pub(crate) bytes: u64,
    pub(crate) accepted_spans: u64,
    pub(crate) rejected_spans: u64,
    pub(crate) accepted_bytes: u64,
    pub(crate) refused_requests: u64,
    pub(crate) refused_spans: u64,
    pub(crate) refused_bytes: u64,
}

impl TraceRecord {
    /// Acknowledged spans that were acknowledged after `since`.
    pub(crate) fn acked_after(&self, since: UnixNanos) -> impl Iterator<Item = Fingerprint> + '_ {
        let acked = self
            .spans
            .iter()
            .filter(move |(_, span)| span.acked_at.is_some_and(|at| at > since));
        acked.map(|(fingerprint, _)| *fingerprint)
    }

    pub(crate) fn is_acked(&self) -> bool {
        self.spans.values().any(|span| span.acked_at.is_some())
    }

    pub(crate) fn has_acked_error(&self) -> bool {
        self.spans
            .values()
            .any(|span| span.is_error && span.acked_at.is_some())
    }
}

/// A span that an answer returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReturnedSpan {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) trace_id: Vec<u8>,
    pub(crate) service: String,
    pub(crate) name: String,
}

/// The spans of a `TracesData`.
pub(crate) fn returned_spans(bytes: &[u8]) -> Result<Vec<ReturnedSpan>, prost::DecodeError> {
    let data = TracesData::decode(bytes)?;
    let mut returned = Vec::new();
    for ResourceSpans {
        resource,
        scope_spans,
        ..
    } in data.resource_spans
    {
        let resource = resource.unwrap_or_default();
        for ScopeSpans { scope, spans, .. } in scope_spans {
            let scope = scope.unwrap_or_default();
            returned.extend(spans.into_iter().map(|span| ReturnedSpan {
                trace_id: span.trace_id.clone(),
                service: service_of(&resource),
                name: span.name.clone(),
                fingerprint: fingerprint(&resource, &scope, span),
            }));
        }
    }
    Ok(returned)
}

/// Everything of a span but the order of its attributes and its trace state, which a sampler completes.
pub(crate) fn fingerprint(
    resource: &Resource,
    scope: &InstrumentationScope,
    mut span: Span,
) -> Fingerprint {
    span.trace_state.clear();
    sort(&mut span.attributes);
    for event in &mut span.events {
        sort(&mut event.attributes);
    }
    let mut resource = resource.clone();
    sort(&mut resource.attributes);
    let mut bytes = resource.encode_length_delimited_to_vec();
    bytes.extend(scope.encode_length_delimited_to_vec());
    bytes.extend(span.encode_length_delimited_to_vec());
    xxh3_64(&bytes)
}

fn sort(attributes: &mut [KeyValue]) {
    attributes.sort_by(|a, b| a.key.cmp(&b.key));
}

fn service_of(resource: &Resource) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = resource
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name");
    match found
        .and_then(|attribute| attribute.value.as_ref())
        .and_then(|value| value.value.as_ref())
    {
        Some(Value::StringValue(name)) => name.clone(),
        _ => String::new(),
    }
}
