//! Time to scan one request of 512 spans of about 900 bytes, as a collector sends them. Divide by 512 for a span.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};
use prost::Message;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::interest::Interests;
use spandrel_model::otlp::{
    AttributeAction, AttributePolicy, AttributeRule, ScanRules, scan_request,
};

const RECEIVED_AT: u64 = 1_767_225_600_000_000_000;
const SPANS: usize = 512;
/// The default allowlist of the index.
const ALLOWLIST: [&str; 6] = [
    "deployment.environment.name",
    "http.route",
    "http.request.method",
    "http.response.status_code",
    "rpc.method",
    "messaging.destination.name",
];

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text(key: &str, value: String) -> KeyValue {
    attribute(key, Value::StringValue(value))
}

/// A server span with 17 attributes; every seventh has an event.
fn span(number: usize) -> Span {
    let id = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let trace = id.to_le_bytes().repeat(2);
    let attributes = vec![
        text("http.request.method", "GET".to_owned()),
        text(
            "http.route",
            format!("/api/v1/carts/{{id}}/items/{}", number % 40),
        ),
        attribute("http.response.status_code", Value::IntValue(200)),
        text(
            "url.path",
            format!("/api/v1/carts/{id:016x}/items/{}", number % 40),
        ),
        text("url.scheme", "https".to_owned()),
        text(
            "server.address",
            format!("cart-{}.shop.svc.cluster.local", number % 6),
        ),
        attribute("server.port", Value::IntValue(8_443)),
        text(
            "client.address",
            format!("10.1.{}.{}", number % 256, number % 100),
        ),
        text("network.protocol.version", "1.1".to_owned()),
        text(
            "user_agent.original",
            "shop-app/4.12 (iPhone; iOS 19.1)".to_owned(),
        ),
        text("enduser.id", format!("user-{id:x}")),
        text("session.id", format!("{id:032x}")),
        text(
            "thread.name",
            format!("http-nio-8443-exec-{}", number % 200),
        ),
        attribute("thread.id", Value::IntValue(i64::try_from(number).unwrap())),
        attribute("cache.hit", Value::BoolValue(number.is_multiple_of(3))),
        attribute("queue.wait_ms", Value::DoubleValue(0.37)),
        text("feature.flags", "checkout-v2,new-prices".to_owned()),
    ];
    let event = Event {
        time_unix_nano: RECEIVED_AT,
        name: "retry".to_owned(),
        attributes: vec![attribute("attempt", Value::IntValue(2))],
        ..Event::default()
    };
    Span {
        trace_id: trace,
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: id.rotate_left(9).to_le_bytes().to_vec(),
        flags: 257,
        name: format!("GET /api/v1/carts/{{id}}/items/{}", number % 40),
        kind: 2,
        start_time_unix_nano: RECEIVED_AT - 5_000_000,
        end_time_unix_nano: RECEIVED_AT - 1_000_000,
        attributes,
        events: vec![event; usize::from(number.is_multiple_of(7))],
        status: Some(Status::default()),
        ..Span::default()
    }
}

fn request() -> Bytes {
    let resource_spans = (0..16)
        .map(|service| ResourceSpans {
            resource: Some(Resource {
                attributes: vec![
                    text("service.name", format!("service-{service}")),
                    text("deployment.environment.name", "production".to_owned()),
                    text("k8s.pod.name", format!("service-{service}-5d9f7c6b8-x2x4z")),
                    text("telemetry.sdk.language", "java".to_owned()),
                ],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "io.opentelemetry.tomcat-10.0".to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans: (0..SPANS / 16).map(|n| span(service * 32 + n)).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        })
        .collect();
    Bytes::from(TracesData { resource_spans }.encode_to_vec())
}

fn scans(criterion: &mut Criterion) {
    let request = request();
    let rules = |allowlist: &[&str], policy: &AttributePolicy| {
        let interests = Interests::new(allowlist.iter().copied(), []);
        ScanRules::new(Arc::new(interests), policy)
    };
    let policy = |key: &str| AttributePolicy {
        rules: vec![AttributeRule {
            key: key.to_owned(),
            action: AttributeAction::Hash,
        }],
    };
    let mut group = criterion.benchmark_group(format!(
        "scan of {SPANS} spans of {} bytes",
        request.len() / SPANS
    ));
    group.throughput(Throughput::Elements(SPANS as u64));
    for (name, rules) in [
        ("header only", rules(&[], &AttributePolicy::default())),
        (
            "default allowlist",
            rules(&ALLOWLIST, &AttributePolicy::default()),
        ),
        (
            "a policy that matches nothing",
            rules(&ALLOWLIST, &policy("absent")),
        ),
        (
            "a policy that rewrites each span",
            rules(&ALLOWLIST, &policy("enduser.id")),
        ),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let scanned = scan_request(
                    request.clone(),
                    TenantId::default(),
                    UnixNanos(RECEIVED_AT),
                    black_box(&rules),
                )
                .unwrap();
                assert_eq!(scanned.batch.spans.len(), SPANS);
                scanned
            });
        });
    }
    group.bench_function("prost decode, for comparison", |bencher| {
        bencher.iter(|| TracesData::decode(black_box(request.clone())).unwrap());
    });
    group.finish();
}

criterion_group!(benches, scans);
criterion_main!(benches);
