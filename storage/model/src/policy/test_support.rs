//! Spans and traces for the tests of policies.

use std::sync::Arc;

use bytes::Bytes;

use super::{BoundPolicy, Decision, LeafBits, Limiters, PolicySet, TraceFacts};
use crate::batch::{
    Attribute, AttributeValue, Context, Run, Slice, SpanBatch, SpanHeader, SpanKind, StatusCode,
};
use crate::ids::{SpanId, TenantId, TraceId, UnixNanos};
use crate::interest::Interests;
use crate::verdict::Verdict;

/// A value of an attribute, owned.
#[derive(Debug, Clone)]
pub(super) enum Attr {
    Text(&'static str),
    Int(i64),
    Double(f64),
    Bool(bool),
}

/// A span to observe.
#[derive(Debug, Clone, Default)]
pub(super) struct TestSpan {
    pub(super) service: &'static str,
    pub(super) status: StatusCode,
    pub(super) flags: u32,
    pub(super) trace_state: &'static str,
    pub(super) attributes: Vec<(&'static str, Attr)>,
    pub(super) resource: Vec<(&'static str, Attr)>,
}

/// A batch of one span, as the scanner would give it.
pub(super) fn batch_of(span: &TestSpan, interests: &Interests) -> SpanBatch {
    let mut buffer = Vec::new();
    let mut put = |text: &str| {
        let offset = u32::try_from(buffer.len()).unwrap();
        buffer.extend_from_slice(text.as_bytes());
        let len = u32::try_from(text.len()).unwrap();
        Slice { offset, len }
    };
    let mut attributes = Vec::new();
    let mut run = |list: &[(&'static str, Attr)], put: &mut dyn FnMut(&str) -> Slice| {
        let start = u32::try_from(attributes.len()).unwrap();
        for (key, value) in list {
            let Some(key) = interests.number(key) else {
                continue;
            };
            let value = match value {
                Attr::Text(text) => AttributeValue::Text(put(text)),
                Attr::Int(number) => AttributeValue::Int(*number),
                Attr::Double(number) => AttributeValue::Double(*number),
                Attr::Bool(value) => AttributeValue::Bool(*value),
            };
            attributes.push(Attribute { key, value });
        }
        let end = u32::try_from(attributes.len()).unwrap();
        Run { start, end }
    };
    let span_run = run(&span.attributes, &mut put);
    let resource_run = run(&span.resource, &mut put);
    let service = put(span.service);
    let trace_state = put(span.trace_state);
    SpanBatch {
        tenant: TenantId::default(),
        received_at: UnixNanos(0),
        contexts: vec![Context {
            service,
            attributes: resource_run,
            ..Context::default()
        }],
        spans: vec![SpanHeader {
            trace_id: TraceId([1; 16]),
            span_id: SpanId([1; 8]),
            parent_span_id: SpanId::default(),
            context: 0,
            span: Slice::default(),
            name: Slice::default(),
            trace_state,
            start: UnixNanos(0),
            end: UnixNanos(0),
            kind: SpanKind::Internal,
            status: span.status,
            flags: span.flags,
            hash: 0,
            attributes: span_run,
        }],
        attributes,
        buffer: Bytes::from(buffer),
    }
}

/// The set of a file whose policies are the given YAML list items.
pub(super) fn set(policies: &str) -> Arc<PolicySet> {
    let yaml = format!("policies:\n{policies}");
    Arc::new(PolicySet::parse(&yaml, 7).unwrap_or_else(|error| panic!("{error}\n{yaml}")))
}

/// The bits of a trace of these spans.
pub(super) fn observe(set: &Arc<PolicySet>, spans: &[TestSpan]) -> LeafBits {
    let interests = Interests::new(["unrelated"], set.keys());
    let bound: BoundPolicy = set.bind(&interests);
    spans.iter().fold(0, |bits, span| {
        let batch = batch_of(span, &interests);
        bits | bound.observe(&batch, &batch.spans[0])
    })
}

/// A trace with what policies may know of it.
#[derive(Debug, Clone)]
pub(super) struct TestTrace {
    pub(super) tenant: TenantId,
    pub(super) trace_id: TraceId,
    pub(super) bits: LeafBits,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) span_count: u32,
    pub(super) bytes: u64,
    pub(super) error: bool,
}

impl Default for TestTrace {
    fn default() -> Self {
        Self {
            tenant: TenantId::default(),
            trace_id: TraceId([0xff; 16]),
            bits: 0,
            start: 1_000_000_000,
            end: 1_000_000_000,
            span_count: 1,
            bytes: 100,
            error: false,
        }
    }
}

impl TestTrace {
    /// A trace of these spans that took so many milliseconds.
    pub(super) fn of(set: &Arc<PolicySet>, spans: &[TestSpan], took_ms: u64) -> Self {
        let default = Self::default();
        Self {
            bits: observe(set, spans),
            end: default.start + took_ms * UnixNanos::PER_MILLI,
            span_count: u32::try_from(spans.len()).unwrap(),
            error: spans.iter().any(|span| span.status == StatusCode::Error),
            ..default
        }
    }

    pub(super) fn facts(&self) -> TraceFacts<'_> {
        TraceFacts {
            tenant: &self.tenant,
            trace_id: self.trace_id,
            bits: self.bits,
            start: UnixNanos(self.start),
            end: UnixNanos(self.end),
            span_count: self.span_count,
            bytes: self.bytes,
            error: self.error,
            pressure: 0,
        }
    }
}

/// The decision with fresh limiters.
pub(super) fn decide(set: &PolicySet, trace: &TestTrace) -> Decision {
    set.decide(&trace.facts(), &mut Limiters::new(set), UnixNanos(0))
}

/// True when fresh limiters keep it.
pub(super) fn kept(set: &PolicySet, trace: &TestTrace) -> bool {
    decide(set, trace).verdict == Verdict::Keep
}

/// The n-th of a sequence of well mixed trace ids.
pub(super) fn mixed_id(n: u64) -> TraceId {
    let low = u128::from(n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    TraceId((low ^ low.rotate_right(61)).to_be_bytes())
}
