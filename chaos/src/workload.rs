//! Export requests from a seed: traces of several services, some with an error, some slow, some with spans that come
//! later than the rest, and whole requests that are sent twice.

use std::collections::VecDeque;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, status};
use prost::Message;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spandrel_model::ids::{SpanId, TraceId, UnixNanos};

/// All services: the first one has the roots. Every span belongs to one, so that searches for all of them find every
/// trace.
pub const SERVICES: [&str; 4] = ["chaos-front", "chaos-cart", "chaos-stock", "chaos-mail"];
/// Requests after which a span that was held back is sent, at most.
const LATE_REQUESTS: u64 = 12;

/// Text in attributes that makes a span larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// None.
    None,
    /// One attribute of so many bytes that hardly compress.
    Random(usize),
    /// Attributes of the same text everywhere: cheap to make, and to compress.
    Repeated {
        /// How many.
        attributes: usize,
        /// Bytes of each.
        bytes: usize,
    },
}

/// What the requests are made of. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadOptions {
    /// Traces of a request.
    pub traces_per_request: usize,
    /// Most spans of a trace, its root included.
    pub max_spans: usize,
    /// Whether traces have a root; without one they stay open until their maximum age.
    pub roots: bool,
    /// Share of the traces with an error span.
    pub errors: f64,
    /// Share of the traces that take two seconds; the others take some milliseconds.
    pub slow: f64,
    /// Share of the traces of which one span comes some requests later.
    pub late: f64,
    /// Share of the requests that are sent again as they were.
    pub duplicates: f64,
    /// What makes every span larger.
    pub padding: Padding,
    /// Start of the first trace; each further one starts a millisecond later.
    pub start: UnixNanos,
}

impl WorkloadOptions {
    /// A bit of everything, from `start` on.
    #[must_use]
    pub fn mixed(start: UnixNanos) -> Self {
        Self {
            traces_per_request: 4,
            max_spans: 8,
            roots: true,
            errors: 0.1,
            slow: 0.1,
            late: 0.2,
            duplicates: 0.1,
            padding: Padding::None,
            start,
        }
    }
}

/// A span of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentSpan {
    /// Its trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Its status is error.
    pub error: bool,
}

/// A request, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// The bytes of an `ExportTraceServiceRequest`.
    pub bytes: Bytes,
    /// The spans in it.
    pub spans: Vec<SentSpan>,
}

/// A span with the service that it belongs to.
#[derive(Debug, Clone)]
struct Placed {
    service: &'static str,
    span: Span,
}

/// The requests of one connection, without end.
///
/// Invariant: the same seed and options give the same requests.
#[derive(Debug)]
pub struct Workload {
    random: ChaCha8Rng,
    options: WorkloadOptions,
    requests: u64,
    traces: u64,
    /// Spans that were held back, by the request that brings them; in no order.
    held: VecDeque<(u64, Placed)>,
    last: Option<Export>,
}

impl Workload {
    /// The requests of a seed. Two connections need two seeds, else they make the same traces.
    #[must_use]
    pub fn new(seed: u64, options: WorkloadOptions) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            options,
            requests: 0,
            traces: 0,
            held: VecDeque::new(),
            last: None,
        }
    }

    /// The next request.
    pub fn next_export(&mut self) -> Export {
        self.requests += 1;
        if let Some(last) = &self.last
            && self.random.random_bool(self.options.duplicates)
        {
            return last.clone();
        }
        let mut placed = self.due();
        for _ in 0..self.options.traces_per_request {
            self.add_trace(&mut placed);
        }
        let export = encode(placed);
        self.last = Some(export.clone());
        export
    }

    /// A request with the spans that were held back until now, if there are any: for the last one before a quiet time.
    pub fn rest(&mut self) -> Option<Export> {
        let held: Vec<Placed> = self.held.drain(..).map(|(_, placed)| placed).collect();
        (!held.is_empty()).then(|| encode(held))
    }

    fn due(&mut self) -> Vec<Placed> {
        let now = self.requests;
        let (due, held): (VecDeque<_>, VecDeque<_>) =
            self.held.drain(..).partition(|(at, _)| *at <= now);
        self.held = held;
        due.into_iter().map(|(_, placed)| placed).collect()
    }

    fn add_trace(&mut self, out: &mut Vec<Placed>) {
        let start = self.options.start.plus(self.traces * UnixNanos::PER_MILLI);
        self.traces += 1;
        let mut trace_id = [0; 16];
        self.random.fill_bytes(&mut trace_id);
        let spans = self.random.random_range(1..=self.options.max_spans.max(1));
        let slow = self.random.random_bool(self.options.slow);
        let failed = self
            .random
            .random_bool(self.options.errors)
            .then(|| self.random.random_range(0..spans));
        let late = (spans > 1 && self.random.random_bool(self.options.late))
            .then(|| self.random.random_range(1..spans));
        let duration = if slow { 2_000 } else { 5 } * UnixNanos::PER_MILLI;
        let mut parent = if self.options.roots {
            Vec::new()
        } else {
            self.id().to_vec()
        };
        for at in 0..spans {
            let placed = self.place(trace_id, &parent, at, (start, duration), failed == Some(at));
            if at == 0 {
                parent.clone_from(&placed.span.span_id);
            }
            if late == Some(at) {
                let wait = self.random.random_range(1..=LATE_REQUESTS);
                self.held.push_back((self.requests + wait, placed));
            } else {
                out.push(placed);
            }
        }
    }

    fn place(
        &mut self,
        trace_id: [u8; 16],
        parent: &[u8],
        at: usize,
        (start, duration): (UnixNanos, u64),
        failed: bool,
    ) -> Placed {
        // A remainder by the length is an index.
        let service = SERVICES[at % SERVICES.len()];
        // The root lasts the whole time, its children lie inside of it.
        let begin = start.plus(at as u64 * 1_000);
        let end = if at == 0 {
            start.plus(duration)
        } else {
            begin.plus(duration / 4)
        };
        let mut attributes = vec![text("http.route", format!("/chaos/{at}"))];
        match self.options.padding {
            Padding::None => {}
            Padding::Random(bytes) => {
                attributes.push(text("chaos.padding", self.random_text(bytes)))
            }
            Padding::Repeated {
                attributes: count,
                bytes,
            } => {
                let padding = |number| text(&format!("chaos.padding.{number}"), "x".repeat(bytes));
                attributes.extend((0..count).map(padding));
            }
        }
        Placed {
            service,
            span: Span {
                trace_id: trace_id.to_vec(),
                span_id: self.id().to_vec(),
                parent_span_id: parent.to_vec(),
                name: format!("step {at}"),
                kind: if at == 0 { 2 } else { 1 },
                start_time_unix_nano: begin.0,
                end_time_unix_nano: end.0,
                attributes,
                status: failed.then(|| Status {
                    message: "broken on purpose".to_owned(),
                    code: status::StatusCode::Error.into(),
                }),
                ..Span::default()
            },
        }
    }

    fn id(&mut self) -> [u8; 8] {
        let mut id = [0; 8];
        self.random.fill_bytes(&mut id);
        id
    }

    /// Letters and digits: six bits a byte, which no compression makes much smaller.
    fn random_text(&mut self, length: usize) -> String {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bytes = vec![0; length];
        self.random.fill_bytes(&mut bytes);
        let letter = |byte: u8| char::from(LETTERS[usize::from(byte & 63)]);
        bytes.into_iter().map(letter).collect()
    }
}

fn encode(placed: Vec<Placed>) -> Export {
    let sent = |placed: &Placed| SentSpan {
        trace: TraceId(fixed(&placed.span.trace_id)),
        span: SpanId(fixed(&placed.span.span_id)),
        error: placed.span.status.is_some(),
    };
    let spans = placed.iter().map(sent).collect();
    let mut resource_spans: Vec<ResourceSpans> = Vec::new();
    let mut services: Vec<&str> = Vec::new();
    for Placed { service, span } in placed {
        let known = services.iter().position(|name| *name == service);
        let at = known.unwrap_or_else(|| {
            services.push(service);
            resource_spans.push(resource_of(service));
            services.len() - 1
        });
        let scopes = resource_spans.get_mut(at).map(|one| &mut one.scope_spans);
        if let Some(scope) = scopes.and_then(|scopes| scopes.first_mut()) {
            scope.spans.push(span);
        }
    }
    let bytes = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    Export {
        bytes: bytes.into(),
        spans,
    }
}

fn resource_of(service: &str) -> ResourceSpans {
    ResourceSpans {
        resource: Some(Resource {
            attributes: vec![text("service.name", service.to_owned())],
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: "chaos".to_owned(),
                ..InstrumentationScope::default()
            }),
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    }
}

fn text(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value)),
        }),
        ..KeyValue::default()
    }
}

/// The bytes as an array; of ids made here, which have that length.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn requests(seed: u64, count: usize) -> Vec<Export> {
        let options = WorkloadOptions::mixed(UnixNanos(UnixNanos::PER_SECOND));
        let mut workload = Workload::new(seed, options);
        (0..count).map(|_| workload.next_export()).collect()
    }

    #[test]
    fn a_seed_makes_the_same_requests_again() {
        assert_eq!(requests(7, 50), requests(7, 50));
        assert_ne!(requests(7, 1), requests(8, 1));
    }

    #[test]
    fn there_is_a_bit_of_everything() {
        // given
        let requests = requests(3, 200);
        // then: duplicates of whole requests, errors, and traces that are in two requests that differ
        assert!(requests.windows(2).any(|two| two[0] == two[1]));
        assert!(
            requests
                .iter()
                .flat_map(|export| &export.spans)
                .any(|span| span.error)
        );
        let mut seen = BTreeSet::new();
        let late = requests.iter().any(|export| {
            let traces: BTreeSet<_> = export.spans.iter().map(|span| span.trace).collect();
            let spans: BTreeSet<_> = export.spans.iter().map(|span| span.span).collect();
            let again = traces.iter().any(|trace| seen.contains(trace.0.as_slice()));
            let new = !spans.iter().any(|span| seen.contains(span.0.as_slice()));
            seen.extend(traces.iter().map(|trace| trace.0.to_vec()));
            seen.extend(spans.iter().map(|span| span.0.to_vec()));
            again && new
        });
        assert!(late, "no span came late");
    }

    #[test]
    fn what_a_request_says_is_in_its_bytes() {
        for export in requests(5, 20) {
            let decoded = ExportTraceServiceRequest::decode(export.bytes).unwrap();
            let spans = decoded
                .resource_spans
                .iter()
                .flat_map(|one| &one.scope_spans)
                .flat_map(|one| &one.spans);
            let mut ids: Vec<_> = spans.map(|span| span.span_id.clone()).collect();
            let mut said: Vec<_> = export
                .spans
                .iter()
                .map(|span| span.span.0.to_vec())
                .collect();
            ids.sort();
            said.sort();
            assert_eq!(ids, said);
        }
    }
}
