//! Traces as the benchmarks of pages and blocks use them.
//!
//! Spans are about 900 bytes with about 16 attributes on the wire, 11 a trace, of 15 services with 6 instances each.

use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, span};
use prost::Message;
use spandrel_model::ids::{Lsn, ShardId, TraceId, UnixNanos};
use spandrel_model::otlp::RawContext;
use spandrel_storage::page::{EncodedPage, FragmentHead, PageBuilder, PageSpan};

pub(crate) const SPANS_PER_TRACE: usize = 11;
pub(crate) const SERVICES: u64 = 15;
pub(crate) const INSTANCES: u64 = 6;

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
}

fn text(key: &str, value: String) -> KeyValue {
    pair(key, Value::StringValue(value))
}

fn int(key: &str, value: u64) -> KeyValue {
    pair(key, Value::IntValue(value.cast_signed()))
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

pub(crate) fn resources() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut resources = Vec::new();
    for service in 0..SERVICES {
        for instance in 0..INSTANCES {
            let attributes = vec![
                text("service.name", format!("service-{service}")),
                text("service.version", format!("1.{service}.0")),
                text(
                    "service.instance.id",
                    format!("{:032x}", Random(service * 7 + instance + 1).next()),
                ),
                text(
                    "k8s.pod.name",
                    format!("service-{service}-7f9c{instance}-x{instance}"),
                ),
                text("k8s.namespace.name", "shop".to_owned()),
                text("k8s.node.name", format!("node-{}", instance % 4)),
                text("telemetry.sdk.language", "java".to_owned()),
                text("telemetry.sdk.name", "opentelemetry".to_owned()),
                text("telemetry.sdk.version", "1.40.0".to_owned()),
                text("host.name", format!("host-{instance}")),
            ];
            let resource = Resource {
                attributes,
                ..Resource::default()
            };
            let scope = InstrumentationScope {
                name: "io.opentelemetry.netty-4.1".to_owned(),
                version: "2.6.0-alpha".to_owned(),
                ..InstrumentationScope::default()
            };
            resources.push((resource.encode_to_vec(), scope.encode_to_vec()));
        }
    }
    resources
}

fn span(
    random: &mut Random,
    trace: TraceId,
    ids: &[[u8; 8]],
    number: usize,
    operation: u64,
) -> Span {
    let start = 1_763_800_000_000_000_000 + random.below(60_000_000_000);
    let order = random.below(500_000);
    let mut attributes = vec![
        text(
            "http.request.method",
            ["GET", "POST", "PUT"][operation as usize % 3].to_owned(),
        ),
        int(
            "http.response.status_code",
            if random.below(50) == 0 { 500 } else { 200 },
        ),
        text(
            "http.route",
            format!("/api/v1/resource-{operation}/items/{{id}}"),
        ),
        text(
            "url.path",
            format!("/api/v1/resource-{operation}/items/{order}"),
        ),
        text("url.scheme", "https".to_owned()),
        text(
            "server.address",
            format!("service-{}.shop.svc.cluster.local", operation % SERVICES),
        ),
        int("server.port", 8443),
        text(
            "client.address",
            format!(
                "10.{}.{}.{}",
                random.below(4),
                random.below(256),
                random.below(256)
            ),
        ),
        text("network.protocol.version", "1.1".to_owned()),
        text(
            "network.peer.address",
            format!("10.1.{}.{}", random.below(256), random.below(256)),
        ),
        int("network.peer.port", 30_000 + random.below(20_000)),
        text(
            "user_agent.original",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126".to_owned(),
        ),
        text(
            "thread.name",
            format!("http-nio-8443-exec-{}", random.below(64)),
        ),
        int("thread.id", 20 + random.below(64)),
        text(
            "tenant.plan",
            ["free", "pro", "enterprise"][random.below(3) as usize].to_owned(),
        ),
        text("deployment.environment.name", "production".to_owned()),
    ];
    if operation.is_multiple_of(4) {
        attributes.push(text("db.system.name", "postgresql".to_owned()));
        attributes.push(text(
            "db.query.text",
            format!("SELECT id, name FROM table_{operation} WHERE id = ?"),
        ));
    }
    let events = match random.below(7) {
        0 => vec![span::Event {
            time_unix_nano: start + 10,
            name: "cache.miss".to_owned(),
            attributes: vec![text("cache.key", format!("key-{order}"))],
            dropped_attributes_count: 0,
        }],
        _ => Vec::new(),
    };
    Span {
        trace_id: trace.0.to_vec(),
        span_id: ids[number].to_vec(),
        parent_span_id: match number {
            0 => Vec::new(),
            _ => ids[random.below(number as u64) as usize].to_vec(),
        },
        flags: 0x101,
        name: format!(
            "{} /api/v1/resource-{operation}/items/{{id}}",
            ["GET", "POST", "PUT"][operation as usize % 3]
        ),
        kind: 2 + (operation % 2) as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 1_000_000 + random.below(200_000_000),
        attributes,
        events,
        ..Span::default()
    }
}

pub(crate) struct Trace {
    pub(crate) head: FragmentHead,
    pub(crate) spans: Vec<(usize, Vec<u8>)>,
}

pub(crate) fn traces(seed: u64, count: usize) -> Vec<Trace> {
    let mut random = Random(seed);
    (0..count)
        .map(|number| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&random.next().to_be_bytes());
            id[8..].copy_from_slice(&random.next().to_be_bytes());
            let ids: Vec<[u8; 8]> = (0..SPANS_PER_TRACE)
                .map(|_| random.next().to_be_bytes())
                .collect();
            let base = 1_763_800_000_000_000_000 + random.below(60_000_000_000);
            let spans = (0..SPANS_PER_TRACE).map(|span_number| {
                let operation = random.below(40);
                let mut span = span(&mut random, TraceId(id), &ids, span_number, operation);
                let duration = span.end_time_unix_nano - span.start_time_unix_nano;
                span.start_time_unix_nano = base + random.below(100_000_000);
                span.end_time_unix_nano = span.start_time_unix_nano + duration;
                let service = operation % SERVICES * INSTANCES + random.below(INSTANCES);
                (service as usize, span.encode_to_vec())
            });
            Trace {
                spans: spans.collect(),
                head: FragmentHead {
                    shard: ShardId(u16::from(id[0]) % 64),
                    trace_id: TraceId(id),
                    fragment: Lsn(1_000 + number as u64),
                    received_at: UnixNanos(base),
                },
            }
        })
        .collect()
}

pub(crate) fn encode(
    builder: &mut PageBuilder,
    resources: &[(Vec<u8>, Vec<u8>)],
    traces: &[Trace],
) -> EncodedPage {
    let mut spans = Vec::new();
    for trace in traces {
        spans.clear();
        spans.extend(trace.spans.iter().map(|(number, span)| PageSpan {
            context: RawContext {
                resource: &resources[*number].0,
                scope: &resources[*number].1,
                ..RawContext::default()
            },
            span,
        }));
        builder.push(trace.head, &spans).unwrap();
    }
    builder.finish().unwrap().unwrap()
}
