//! Pages and blocks: encoding, reading one trace, scanning one attribute, committing.
//!
//! Spans are about 900 bytes with about 16 attributes on the wire, 11 a trace, of 15 services with 6 instances each.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    missing_docs
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, span};
use prost::Message;
use spandrel_model::ids::{Bucket, Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::otlp::{RawContext, TracesDataWriter};
use spandrel_model::search::{SpanCondition, TagCondition};
use spandrel_storage::block::{BlockOptions, BlockStore, BlockWrite};
use spandrel_storage::disk::RealDisk;
use spandrel_storage::page::{
    EncodedPage, FragmentHead, PageBuilder, PageCondition, PageReader, PageSpan, read_context,
};

const SPANS_PER_TRACE: usize = 11;
const SERVICES: u64 = 15;
const INSTANCES: u64 = 6;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
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

fn resources() -> Vec<(Vec<u8>, Vec<u8>)> {
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

struct Trace {
    head: FragmentHead,
    spans: Vec<(usize, Vec<u8>)>,
}

fn traces(seed: u64, count: usize) -> Vec<Trace> {
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

fn encode(
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

fn condition(key: &str, value: &str) -> SpanCondition {
    SpanCondition {
        tags: vec![TagCondition {
            key: key.to_owned(),
            value: value.to_owned(),
        }],
        ..SpanCondition::default()
    }
}

fn pages(criterion: &mut Criterion) {
    let resources = resources();
    for size in [1_000, 5_000] {
        let traces = traces(1, size / SPANS_PER_TRACE);
        let spans = traces.len() * SPANS_PER_TRACE;
        let mut builder = PageBuilder::new();
        let page = encode(&mut builder, &resources, &traces);
        let wire: usize = traces
            .iter()
            .flat_map(|trace| &trace.spans)
            .map(|(_, span)| span.len())
            .sum();
        println!(
            "{spans} spans: {} bytes of message each, {:.1} bytes stored each",
            wire / spans,
            page.bytes.len() as f64 / spans as f64
        );
        let mut group = criterion.benchmark_group(format!("page of {size}"));
        group.throughput(Throughput::Elements(spans as u64));
        group.bench_function("encode", |bencher| {
            bencher.iter(|| encode(&mut builder, &resources, &traces));
        });
        for (name, condition) in [
            ("scan, some match", condition("tenant.plan", "pro")),
            ("scan, none match", condition("tenant.plan", "none")),
            ("scan, unique values", condition("url.path", "none")),
        ] {
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let condition = PageCondition::new(&condition);
                    let mut reader = PageReader::open(&page.bytes).unwrap();
                    let mut resource = |hash| {
                        let known = page.contexts.iter().find(|context| context.hash == hash);
                        let context = read_context(&known.unwrap().bytes).unwrap();
                        Ok(condition.match_resource(context.resource))
                    };
                    black_box(
                        reader
                            .matching_rows(&condition, &mut resource)
                            .unwrap()
                            .len(),
                    )
                });
            });
        }
        let some = condition("tenant.plan", "pro");
        let some = PageCondition::new(&some);
        let unknown = some.match_resource(&[]);
        group.bench_function("scan again, some match", |bencher| {
            let mut reader = PageReader::open(&page.bytes).unwrap();
            bencher.iter(|| {
                let mut resource = |_| Ok(unknown.clone());
                black_box(reader.matching_rows(&some, &mut resource).unwrap().len())
            });
        });
        group.finish();
        criterion.bench_function(&format!("page of {size}/read one trace"), |bencher| {
            let fragment = page.fragments[page.fragments.len() / 2];
            bencher.iter(|| {
                let mut bytes = 0;
                let mut reader = PageReader::open(&page.bytes).unwrap();
                reader
                    .visit(&fragment, &mut |span| bytes += span.span.len())
                    .unwrap();
                bytes
            });
        });
    }
}

fn blocks(criterion: &mut Criterion) {
    let resources = resources();
    let dir = tempfile::tempdir().unwrap();
    let open =
        |dir: &Path| BlockStore::open(Arc::new(RealDisk), dir, BlockOptions::default()).unwrap();
    let store = open(dir.path());
    let tenant = TenantId::default();
    let mut builder = PageBuilder::new();
    let write = |page: EncodedPage, bucket: u32| BlockWrite {
        bucket: Bucket(bucket),
        tenant: tenant.clone(),
        pages: vec![page],
        summaries: Vec::new(),
    };
    let mut known = Vec::new();
    for number in 0..40u64 {
        let traces = traces(number + 1, 5_000 / SPANS_PER_TRACE);
        known.push(traces[7].head);
        store
            .commit(&write(encode(&mut builder, &resources, &traces), 0))
            .unwrap();
    }
    let unsealed = store.buckets().unwrap()[0].clone();
    store.seal(Bucket(0)).unwrap();
    let sealed = store.buckets().unwrap()[0].clone();
    println!(
        "block of {} spans: {:.1} bytes on disk each, sealed {:.1}",
        sealed.spans,
        unsealed.bytes as f64 / sealed.spans as f64,
        sealed.bytes as f64 / sealed.spans as f64
    );
    for bucket in 1..168 {
        let traces = traces(u64::from(bucket) + 100, 20);
        store
            .commit(&write(encode(&mut builder, &resources, &traces), bucket))
            .unwrap();
        store.seal(Bucket(bucket)).unwrap();
    }
    let absent = TraceId([7; 16]);
    criterion.bench_function("unknown id, 168 blocks, filters in memory", |bencher| {
        bencher.iter(|| store.fragments(&tenant, ShardId(3), absent).unwrap().len());
    });
    let without_memory = BlockOptions {
        filter_bytes: 0,
        ..BlockOptions::default()
    };
    criterion.bench_function("known id in a block of 200,000 spans", |bencher| {
        let mut next = 0;
        bencher.iter(|| {
            next = (next + 1) % known.len();
            let head = known[next];
            let found = store.fragments(&tenant, head.shard, head.trace_id).unwrap();
            let mut writer = TracesDataWriter::new();
            store
                .read(&found[0], &mut writer, &mut |_, _| false)
                .unwrap()
        });
    });
    drop(store);
    let store = BlockStore::open(Arc::new(RealDisk), dir.path(), without_memory).unwrap();
    criterion.bench_function("unknown id, 168 blocks, filters on disk", |bencher| {
        bencher.iter(|| store.fragments(&tenant, ShardId(3), absent).unwrap().len());
    });
    let mut seed = 10_000;
    criterion.bench_function("commit of 5,000 spans", |bencher| {
        bencher.iter_batched(
            || {
                seed += 1;
                let traces = traces(seed, 5_000 / SPANS_PER_TRACE);
                write(encode(&mut builder, &resources, &traces), 500)
            },
            |write| store.commit(&write).unwrap(),
            BatchSize::PerIteration,
        );
    });
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = pages, blocks
}
criterion_main!(benches);
