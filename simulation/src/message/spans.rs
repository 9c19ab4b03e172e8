//! Spans as the wire brings them, scanned as in production.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use spandrel_actors::settings::Epoch;
use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{TenantId, TraceId, UnixNanos};
use spandrel_model::otlp::scan_request;

/// What a batch is to hold.
pub(crate) struct Wanted<'a> {
    pub(crate) trace_id: TraceId,
    /// A number for each span, which is its id too.
    pub(crate) values: &'a [u64],
    /// The last one failed.
    pub(crate) error: bool,
    pub(crate) at: UnixNanos,
    pub(crate) epoch: &'a Epoch,
}

/// Makes it.
pub(crate) fn batch(wanted: &Wanted<'_>) -> SpanBatch {
    let last = wanted.values.len().saturating_sub(1);
    let spans = wanted.values.iter().enumerate();
    let spans = spans.map(|(number, value)| Span {
        trace_id: wanted.trace_id.0.to_vec(),
        span_id: value.to_be_bytes().to_vec(),
        name: "work".to_owned(),
        start_time_unix_nano: wanted.at.0,
        end_time_unix_nano: wanted.at.0 + UnixNanos::PER_MILLI,
        status: (wanted.error && number == last).then(|| Status {
            code: 2,
            ..Status::default()
        }),
        ..Span::default()
    });
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: spans.collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let bytes = Bytes::from(request.encode_to_vec());
    let rules = wanted.epoch.rules();
    #[allow(clippy::expect_used)] // made right above
    let scanned = scan_request(bytes, TenantId::default(), wanted.at, rules).expect("a request");
    scanned.batch
}
