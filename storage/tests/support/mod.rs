//! Spans and verdicts that look like real ones, from a seed.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

pub mod workload;

use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use smallvec::smallvec;
use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{Bucket, Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::interest::Interests;
use spandrel_model::otlp::{AttributePolicy, ScanRules, scan_request};
use spandrel_model::verdict::{CERTAIN, Trigger, Verdict, VerdictRecord};

/// A small generator of numbers (splitmix64), so that a seed names a test's data for good.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| (self.next() | 1) as u8)
    }
}

pub const NOW: u64 = 1_760_000_000_000_000_000;

pub fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.into())),
        }),
        ..Default::default()
    }
}

fn int(key: &str, value: u64) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::IntValue(value.cast_signed())),
        }),
        ..Default::default()
    }
}

/// The context of a pod of a service.
pub fn resource(service: u64, pod: u64) -> Resource {
    Resource {
        attributes: vec![
            text("service.name", format!("service-{service}")),
            text("service.version", "1.14.3"),
            text(
                "k8s.pod.name",
                format!("service-{service}-7d9f8c5b6-{pod:05}"),
            ),
            text("k8s.namespace.name", "production"),
            text("k8s.node.name", format!("node-{}", pod % 7)),
            text("host.name", format!("ip-10-0-{service}-{pod}")),
            text("telemetry.sdk.language", "java"),
            text("telemetry.sdk.version", "1.42.1"),
        ],
        ..Default::default()
    }
}

/// A span of a server or client as auto-instrumentation writes it: about 750 bytes.
pub fn span(numbers: &mut Numbers, trace_id: [u8; 16]) -> Span {
    let start = NOW + numbers.below(5_000_000_000);
    let operation = numbers.below(40);
    let user = numbers.below(100_000);
    Span {
        trace_id: trace_id.to_vec(),
        span_id: numbers.bytes::<8>().to_vec(),
        parent_span_id: numbers.bytes::<8>().to_vec(),
        flags: 1,
        name: format!("GET /api/v1/resource-{operation}/{{id}}"),
        kind: 2 + (operation % 2) as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start + numbers.below(300_000_000),
        attributes: vec![
            text("http.request.method", "GET"),
            text("http.route", format!("/api/v1/resource-{operation}/{{id}}")),
            text("url.path", format!("/api/v1/resource-{operation}/{user}")),
            text("url.scheme", "https"),
            int("http.response.status_code", 200 + numbers.below(3) * 100),
            text("network.protocol.version", "1.1"),
            text(
                "server.address",
                format!("resource-{operation}.production.svc"),
            ),
            int("server.port", 8443),
            text(
                "client.address",
                format!("10.0.{}.{}", user % 251, user % 241),
            ),
            text(
                "user_agent.original",
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
            ),
            text("thread.name", format!("http-nio-8443-exec-{}", user % 50)),
            int("thread.id", user % 200),
            text("enduser.id", format!("user-{user}")),
            text("db.system", "postgresql"),
            text("db.operation.name", "SELECT"),
            text(
                "db.query.text",
                format!("SELECT * FROM resource_{operation} WHERE id = $1"),
            ),
            text(
                "net.sock.peer.addr",
                format!("10.1.{}.{}", user % 7, user % 199),
            ),
        ],
        status: Some(Status {
            code: i32::from(user.is_multiple_of(50)) * 2,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A request of `count` spans as a collector sends it: grouped by pod, several spans to a trace.
pub fn request(numbers: &mut Numbers, count: usize) -> Bytes {
    let mut resource_spans = Vec::new();
    let mut left = count;
    let traces: Vec<[u8; 16]> = (0..count / 11 + 1).map(|_| numbers.bytes()).collect();
    while left > 0 {
        let spans = left.min(16);
        left -= spans;
        let scope = InstrumentationScope {
            name: "io.opentelemetry.tomcat-10.0".to_owned(),
            version: "2.8.0-alpha".to_owned(),
            ..Default::default()
        };
        let spans = (0..spans)
            .map(|_| {
                let trace = traces[numbers.below(traces.len() as u64) as usize];
                span(numbers, trace)
            })
            .collect();
        resource_spans.push(ResourceSpans {
            resource: Some(resource(numbers.below(15), numbers.below(6))),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans,
                schema_url: "https://opentelemetry.io/schemas/1.24.0".to_owned(),
            }],
            schema_url: String::new(),
        });
    }
    let request = ExportTraceServiceRequest { resource_spans };
    Bytes::from(request.encode_to_vec())
}

pub fn interests() -> Arc<Interests> {
    Arc::new(Interests::new(
        ["http.route", "http.response.status_code", "service.name"],
        [],
    ))
}

/// A request as the node has scanned it.
pub fn batch(numbers: &mut Numbers, tenant_name: &str, count: usize) -> SpanBatch {
    let request = request(numbers, count);
    scan(request, tenant_name, NOW + numbers.below(1_000_000_000))
}

pub fn scan(request: Bytes, tenant_name: &str, received_at: u64) -> SpanBatch {
    let rules = ScanRules::new(interests(), &AttributePolicy::default());
    let received_at = UnixNanos(received_at);
    let scanned = scan_request(request, tenant(tenant_name), received_at, &rules);
    scanned.unwrap().batch
}

/// All spans of a batch, by index.
pub fn all(batch: &SpanBatch) -> Vec<u32> {
    (0..batch.spans.len() as u32).collect()
}

/// The verdict about a healthy trace that was dropped after some seconds.
pub fn dropped(numbers: &mut Numbers, tenant_name: &str, input_lsn: u64) -> VerdictRecord {
    let start = NOW - 10_000_000_000 - numbers.below(5_000_000_000);
    VerdictRecord {
        tenant: tenant(tenant_name),
        trace_id: TraceId(numbers.bytes()),
        verdict: Verdict::Drop,
        trigger: Trigger::Idle,
        pressure: 0,
        policy_version: 7,
        policy: 3,
        votes: u128::from(numbers.below(4)) << 3 | 1,
        probability: CERTAIN / 100,
        limiters: smallvec![],
        decided_at: UnixNanos(NOW),
        bucket: Bucket(488_888),
        input_lsn: Lsn(input_lsn),
        start: UnixNanos(start),
        end: UnixNanos(start + numbers.below(300_000_000)),
        span_count: 2 + numbers.below(20) as u32,
        references: smallvec![
            Lsn(input_lsn.saturating_sub(600 + numbers.below(100))),
            Lsn(input_lsn.saturating_sub(500 - numbers.below(100))),
        ],
    }
}
