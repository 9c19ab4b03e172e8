//! Plans one trace: which span calls which, when, with which attributes. Times grow as the calls nest, so that a
//! parent is always long enough for its children.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rand_chacha::ChaCha8Rng;

use super::attributes::{Varying, text, truth};
use super::services::{Scope, Service};

/// Position of a span in its plan.
pub(super) type SpanIndex = usize;

/// A point in a span's life.
#[derive(Debug, Clone)]
pub(super) struct EventPlan {
    pub(super) at_us: u64,
    pub(super) name: &'static str,
    pub(super) attributes: Vec<KeyValue>,
}

/// What a link of a span points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// The producer span of the trace that this one follows up.
    Producer,
    /// The n-th newest message that was produced before.
    Earlier(usize),
}

/// One span. Times are microseconds after the start of the trace.
#[derive(Debug, Clone)]
pub(super) struct SpanPlan {
    pub(super) service: Service,
    pub(super) scope: Scope,
    pub(super) kind: SpanKind,
    pub(super) name: String,
    pub(super) parent: Option<SpanIndex>,
    pub(super) start_us: u64,
    pub(super) end_us: u64,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) events: Vec<EventPlan>,
    pub(super) links: Vec<LinkTarget>,
    /// The status message when the span failed.
    pub(super) error: Option<String>,
}

/// A planned trace, and the trace that continues it in another one, if any.
#[derive(Debug, Clone)]
pub(super) struct TracePlan {
    pub(super) spans: Vec<SpanPlan>,
    /// The span whose message others may link to.
    pub(super) producer: Option<SpanIndex>,
    pub(super) follow_up: Option<Box<TracePlan>>,
}

/// What a span is besides its place and time.
pub(super) struct Call {
    pub(super) service: Service,
    pub(super) scope: Scope,
    pub(super) kind: SpanKind,
    pub(super) name: String,
    pub(super) attributes: Vec<KeyValue>,
}

/// A failure and how it shows in each protocol.
pub(super) struct Failure {
    pub(super) error_type: &'static str,
    pub(super) message: String,
    pub(super) http_status: i64,
    pub(super) grpc_status: i64,
    pub(super) stack: &'static str,
}

/// Builds a plan as the calls would happen: open, work, close.
pub(super) struct Planner<'a> {
    pub(super) rng: &'a mut ChaCha8Rng,
    spans: Vec<SpanPlan>,
    producer: Option<SpanIndex>,
}

/// Time between a caller's work and the start of its call.
const CALL_GAP_US: u64 = 150;

impl<'a> Planner<'a> {
    pub(super) fn new(rng: &'a mut ChaCha8Rng) -> Self {
        Self {
            rng,
            spans: Vec::new(),
            producer: None,
        }
    }

    /// Opens the trace's first span.
    pub(super) fn root(&mut self, call: Call) -> SpanIndex {
        self.push(call, None, 0)
    }

    /// Opens a span that `parent` waits for.
    pub(super) fn open(&mut self, parent: SpanIndex, call: Call) -> SpanIndex {
        let start_us = self.spans[parent].end_us + CALL_GAP_US;
        self.push(call, Some(parent), start_us)
    }

    /// Opens a span that happens `delay_us` after `parent` ended and that nobody waits for.
    pub(super) fn open_later(&mut self, parent: SpanIndex, delay_us: u64, call: Call) -> SpanIndex {
        let start_us = self.spans[parent].end_us + delay_us;
        self.push(call, Some(parent), start_us)
    }

    /// The span itself takes `us` longer.
    pub(super) fn work(&mut self, span: SpanIndex, us: u64) {
        self.spans[span].end_us += us;
    }

    /// Ends a span after `us` more; its parent goes on from there.
    pub(super) fn close(&mut self, span: SpanIndex, us: u64) {
        self.work(span, us);
        let end_us = self.spans[span].end_us;
        if let Some(parent) = self.spans[span].parent {
            let parent = &mut self.spans[parent];
            parent.end_us = parent.end_us.max(end_us + CALL_GAP_US);
        }
    }

    /// Ends a span that nobody waits for.
    pub(super) fn close_later(&mut self, span: SpanIndex, us: u64) {
        self.work(span, us);
    }

    /// Adds an event at the present moment of the span.
    pub(super) fn event(&mut self, span: SpanIndex, name: &'static str, attributes: Vec<KeyValue>) {
        let at_us = self.spans[span].end_us;
        self.spans[span].events.push(EventPlan {
            at_us,
            name,
            attributes,
        });
    }

    /// Adds a link.
    pub(super) fn link(&mut self, span: SpanIndex, target: LinkTarget) {
        self.spans[span].links.push(target);
    }

    /// Says that the span's message may be linked to.
    pub(super) fn produces(&mut self, span: SpanIndex) {
        self.producer = Some(span);
    }

    /// The span failed, and with it each span that waits for it.
    pub(super) fn fail(&mut self, span: SpanIndex, failure: &Failure) {
        self.event(span, "exception", failure.exception(failure.stack));
        let mut next = Some(span);
        while let Some(index) = next {
            let failed = &mut self.spans[index];
            failed.error = Some(failure.message.clone());
            failed
                .attributes
                .push(text("error.type", failure.error_type));
            set_int(
                &mut failed.attributes,
                "http.response.status_code",
                failure.http_status,
            );
            set_int(
                &mut failed.attributes,
                "rpc.grpc.status_code",
                failure.grpc_status,
            );
            next = failed.parent;
        }
    }

    pub(super) fn finish(self) -> TracePlan {
        TracePlan {
            spans: self.spans,
            producer: self.producer,
            follow_up: None,
        }
    }

    fn push(&mut self, call: Call, parent: Option<SpanIndex>, start_us: u64) -> SpanIndex {
        let mut attributes = call.attributes;
        attributes.extend(call.service.thread(self.rng));
        attributes.push(text(
            "app.request.baggage",
            format!(
                "tenant=shop-eu,channel=web,market=de,currency=EUR,experiment=checkout-b,session={}",
                Varying::Session.digits(12)
            ),
        ));
        self.spans.push(SpanPlan {
            service: call.service,
            scope: call.scope,
            kind: call.kind,
            name: call.name,
            parent,
            start_us,
            end_us: start_us,
            attributes,
            events: Vec::new(),
            links: Vec::new(),
            error: None,
        });
        self.spans.len() - 1
    }
}

impl Failure {
    /// The attributes of an exception event.
    fn exception(&self, stack: &str) -> Vec<KeyValue> {
        vec![
            text("exception.type", self.error_type),
            text("exception.message", self.message.clone()),
            text("exception.stacktrace", stack),
            truth("exception.escaped", true),
        ]
    }
}

/// Changes an attribute that is there.
fn set_int(attributes: &mut [KeyValue], key: &str, value: i64) {
    for attribute in attributes
        .iter_mut()
        .filter(|attribute| attribute.key == key)
    {
        attribute.value = Some(AnyValue {
            value: Some(Value::IntValue(value)),
        });
    }
}
