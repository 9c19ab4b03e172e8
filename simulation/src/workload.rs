//! The spans of a run: healthy, failed and slow traces, late and repeated batches, traces without a root, one with
//! many spans, ids that two tenants or two spans share.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use spandrel_model::ids::{TenantId, TraceId};

use crate::limits::{BATCH_MS, EPOCH_SECONDS, MAX_LARGE_REQUEST_SPANS, MAX_REQUEST_SPANS};
use crate::model::{Fingerprint, SpanRecord, TraceRecord, fingerprint};
use crate::plan::{Plan, Size};
use crate::random::{Stream, stream};

pub(crate) const SERVICES: [&str; 5] = ["cart", "checkout", "pay", "search", "shipping"];
/// Milliseconds over which the spans of a long trace begin.
const LONG_MS: u64 = 90_000;
const NANOS_PER_MILLI: u64 = 1_000_000;
/// Of all requests, where there are malformed ones.
const MALFORMED_SHARE: f64 = 0.05;

/// One export request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// When its client sends it, in milliseconds since the beginning.
    pub(crate) at_ms: u64,
    pub(crate) tenant: TenantId,
    pub(crate) bytes: Bytes,
    /// The trace and fingerprint of each span.
    pub(crate) spans: Vec<(usize, Fingerprint)>,
    /// Its bytes are no request: it must be refused as such.
    pub(crate) is_malformed: bool,
}

pub(crate) struct Workload {
    pub(crate) tenants: Vec<TenantId>,
    pub(crate) traces: Vec<TraceRecord>,
    /// What each client sends, in order.
    pub(crate) queues: Vec<VecDeque<Request>>,
}

struct Sent {
    at_ms: u64,
    trace: usize,
    service: &'static str,
    span: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Healthy,
    Failed,
    Slow,
    /// An error after the trace has probably been decided.
    FailedLate,
    /// A healthy span after that.
    HealthyLate,
    NoRoot,
    Large,
    /// Thousands of spans of many operations.
    Giant,
    /// A span that starts before all others comes last, after the trace has probably been decided.
    EarlierLate,
    /// Several spans without a parent.
    TwoRoots,
    /// Spans come again and again for minutes.
    Long,
}

struct Generator<'a> {
    random: ChaCha8Rng,
    plan: &'a Plan,
    tenants: Vec<TenantId>,
    traces: Vec<TraceRecord>,
    sent: Vec<Vec<Sent>>,
}

impl Workload {
    pub(crate) fn of(plan: &Plan) -> Self {
        let names = ["default", "shop", "billing", "search"];
        let tenants = names
            .iter()
            .take(plan.tenants)
            .filter_map(|name| name.parse().ok());
        let mut generator = Generator {
            random: stream(plan.seed, Stream::Workload),
            plan,
            tenants: tenants.collect(),
            traces: Vec::new(),
            sent: (0..plan.clients).map(|_| Vec::new()).collect(),
        };
        for number in 0..plan.traces {
            let kind = match number {
                3 => Kind::Large,
                4.. if number < 4 + plan.extras.giants => Kind::Giant,
                _ => generator.kind(),
            };
            generator.trace(kind);
        }
        generator.batches()
    }
}

impl Generator<'_> {
    fn kind(&mut self) -> Kind {
        if self.plan.size == Size::Large && self.random.random_bool(0.25) {
            return match self.random.random_range(0..4) {
                0..2 => Kind::EarlierLate,
                2 => Kind::TwoRoots,
                _ => Kind::Long,
            };
        }
        match self.random.random_range(0..20) {
            0..9 => Kind::Healthy,
            9..12 => Kind::Failed,
            12..14 => Kind::Slow,
            14..16 => Kind::FailedLate,
            16..18 => Kind::HealthyLate,
            _ => Kind::NoRoot,
        }
    }

    fn trace_id(&mut self, tenant: &TenantId) -> TraceId {
        let shared = self.random.random_bool(0.05);
        let other = self
            .traces
            .iter()
            .rev()
            .find(|trace| trace.tenant != *tenant);
        match other {
            Some(other)
                if shared
                    && !self
                        .traces
                        .iter()
                        .any(|t| t.tenant == *tenant && t.trace_id == other.trace_id) =>
            {
                other.trace_id
            }
            _ => {
                let mut id = [0; 16];
                self.random.fill_bytes(&mut id);
                TraceId(id)
            }
        }
    }

    fn trace(&mut self, kind: Kind) {
        let client = self.random.random_range(0..self.plan.clients);
        let tenant = self.tenants[client % self.tenants.len()].clone();
        let trace_id = self.trace_id(&tenant);
        let number = self.traces.len();
        self.traces.push(TraceRecord {
            tenant,
            trace_id,
            spans: BTreeMap::new(),
            seen: None,
            first_sent_at: None,
            read_spans: 0,
        });
        let began_ms = self.random.random_range(0..self.plan.span_ms);
        let spans = match kind {
            Kind::Large => 500,
            Kind::Giant => self.random.random_range(2_000..8_000),
            Kind::Long => self.random.random_range(10..40),
            _ => self.random.random_range(1..9),
        };
        let slowest_ms = if kind == Kind::Slow { 3_000 } else { 300 };
        let root_id = self.span_id();
        let failed = self.random.random_range(0..spans);
        for at in 0..spans {
            let is_root = at == 0;
            let late = at + 1 == spans
                && matches!(
                    kind,
                    Kind::FailedLate | Kind::HealthyLate | Kind::EarlierLate
                );
            let after_ms = match kind {
                // Behind the others, so that the late one starts before them.
                Kind::EarlierLate if !late => self.random.random_range(200..400),
                Kind::Long => self.random.random_range(0..LONG_MS),
                _ => self.random.random_range(0..200),
            };
            let length_ms = if is_root {
                slowest_ms
            } else {
                self.random.random_range(1..slowest_ms / 2)
            };
            let fails =
                (kind == Kind::Failed && at == failed) || (kind == Kind::FailedLate && late);
            let span = Span {
                trace_id: trace_id.0.to_vec(),
                span_id: if is_root {
                    root_id.clone()
                } else {
                    self.span_id()
                },
                parent_span_id: if (is_root && kind != Kind::NoRoot)
                    || (at == 1 && kind == Kind::TwoRoots)
                {
                    Vec::new()
                } else {
                    root_id.clone()
                },
                ..self.span(began_ms + after_ms, length_ms, fails)
            };
            let span = match kind {
                Kind::Giant => Span {
                    name: format!("operation {}", at % 200),
                    ..span
                },
                _ => span,
            };
            let lateness_ms = match () {
                () if late && self.plan.size == Size::Large => {
                    self.random.random_range(5_000..120_000)
                }
                () if late => self.random.random_range(5_000..30_000),
                // Out of order: a root often arrives before its children, sometimes long after.
                () if self.random.random_bool(0.1) => self.random.random_range(500..6_000),
                () => 0,
            };
            let at_ms = began_ms + after_ms + length_ms + lateness_ms;
            self.send(client, number, at_ms, &span);
            self.variations(client, number, at_ms, span);
        }
    }

    /// Spans that are sent twice, and other spans of the same id.
    fn variations(&mut self, client: usize, trace: usize, at_ms: u64, mut span: Span) {
        let peers: Vec<usize> = (0..self.plan.clients)
            .filter(|other| other % self.tenants.len() == client % self.tenants.len())
            .collect();
        let peer = peers[self.random.random_range(0..peers.len())];
        if self.random.random_bool(0.05) {
            let at_ms = at_ms + self.random.random_range(0..20_000);
            self.send(peer, trace, at_ms, &span);
        }
        if self.random.random_bool(0.01) {
            span.name.push_str(" again");
            self.send(peer, trace, at_ms + 10, &span);
        }
    }

    fn send(&mut self, client: usize, trace: usize, at_ms: u64, span: &Span) {
        // A span always has the same resource, whoever sends it.
        let owner = span.span_id.first().copied().unwrap_or_default();
        let service = SERVICES[usize::from(owner) % SERVICES.len()];
        let key = fingerprint(&resource(service), &scope(), span.clone());
        let record = SpanRecord {
            is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
            sent: false,
            acked_at: None,
        };
        self.traces[trace].spans.insert(key, record);
        self.sent[client].push(Sent {
            at_ms,
            trace,
            service,
            span: span.clone(),
        });
    }

    fn span_id(&mut self) -> Vec<u8> {
        let mut id = [0; 8];
        self.random.fill_bytes(&mut id);
        id.to_vec()
    }

    fn span(&mut self, start_ms: u64, length_ms: u64, fails: bool) -> Span {
        let start = EPOCH_SECONDS * 1_000 * NANOS_PER_MILLI + start_ms * NANOS_PER_MILLI;
        let number = self.random.random_range(0..12);
        let text = |value: String| Value::StringValue(value);
        let mut attributes = vec![
            attribute("http.route", text(format!("/api/v1/things/{number}"))),
            attribute(
                "http.response.status_code",
                Value::IntValue(if fails { 500 } else { 200 }),
            ),
        ];
        if self.random.random_bool(0.3) {
            let padding = self.random.random_range(1..1_500);
            attributes.push(attribute("app.note", text("n".repeat(padding))));
        }
        let events = if fails {
            vec![Event {
                time_unix_nano: start,
                name: "exception".to_owned(),
                attributes: vec![attribute("exception.type", text("Timeout".to_owned()))],
                ..Event::default()
            }]
        } else {
            Vec::new()
        };
        Span {
            name: format!("operation {}", number % 5),
            kind: 2,
            start_time_unix_nano: start,
            end_time_unix_nano: start + length_ms * NANOS_PER_MILLI,
            attributes,
            events,
            status: fails.then(|| Status {
                message: "it failed".to_owned(),
                code: 2,
            }),
            ..Span::default()
        }
    }

    /// Each client sends what it has buffered for a while, or a full buffer.
    fn batches(mut self) -> Workload {
        let most = match self.plan.size {
            Size::Small => MAX_REQUEST_SPANS,
            Size::Large => MAX_LARGE_REQUEST_SPANS,
        };
        let mut queues = Vec::new();
        let mut random = self.random;
        for (client, mut sent) in std::mem::take(&mut self.sent).into_iter().enumerate() {
            sent.sort_by_key(|sent| sent.at_ms);
            let tenant = &self.tenants[client % self.tenants.len()];
            let mut queue = VecDeque::new();
            let mut batch: Vec<Sent> = Vec::new();
            for one in sent {
                let first_ms = batch.first().map_or(one.at_ms, |first| first.at_ms);
                if batch.len() >= most || one.at_ms > first_ms + BATCH_MS {
                    queue.push_back(request(tenant, &std::mem::take(&mut batch)));
                    if self.plan.malformed && random.random_bool(MALFORMED_SHARE) {
                        queue.push_back(malformed(tenant, one.at_ms));
                    }
                }
                batch.push(one);
            }
            if !batch.is_empty() {
                queue.push_back(request(tenant, &batch));
            }
            queues.push(queue);
        }
        Workload {
            tenants: self.tenants,
            traces: self.traces,
            queues,
        }
    }
}

/// Bytes that are no protobuf: a field whose length is beyond the end.
fn malformed(tenant: &TenantId, at_ms: u64) -> Request {
    Request {
        at_ms,
        tenant: tenant.clone(),
        bytes: Bytes::from_static(&[0x0a, 0x7f, 1, 2, 3]),
        spans: Vec::new(),
        is_malformed: true,
    }
}

fn request(tenant: &TenantId, batch: &[Sent]) -> Request {
    let mut by_service: BTreeMap<&'static str, Vec<Span>> = BTreeMap::new();
    let mut spans = Vec::new();
    for sent in batch {
        spans.push((
            sent.trace,
            fingerprint(&resource(sent.service), &scope(), sent.span.clone()),
        ));
        by_service
            .entry(sent.service)
            .or_default()
            .push(sent.span.clone());
    }
    let resource_spans = by_service
        .into_iter()
        .map(|(service, spans)| ResourceSpans {
            resource: Some(resource(service)),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        });
    let message = ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    };
    Request {
        at_ms: batch
            .iter()
            .map(|sent| sent.at_ms)
            .max()
            .unwrap_or_default(),
        tenant: tenant.clone(),
        bytes: message.encode_to_vec().into(),
        spans,
        is_malformed: false,
    }
}

fn resource(service: &str) -> Resource {
    Resource {
        attributes: vec![
            attribute("service.name", Value::StringValue(service.to_owned())),
            attribute("service.version", Value::StringValue("1.4.2".to_owned())),
        ],
        ..Resource::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "simulation".to_owned(),
        version: "1".to_owned(),
        ..InstrumentationScope::default()
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
