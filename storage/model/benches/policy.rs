//! What policies cost per span (observe) and per trace (decide).
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use spandrel_model::batch::{
    Attribute, AttributeValue, Context, Run, Slice, SpanBatch, SpanHeader, SpanKind, StatusCode,
};
use spandrel_model::ids::{SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::interest::Interests;
use spandrel_model::policy::{
    BoundPolicy, DEFAULT_POLICY, LeafBits, Limiters, PolicySet, TraceFacts,
};

const SPANS: u32 = 1_000;
const SPANS_PER_TRACE: u32 = 12;

const ATTRIBUTES: &str = "
policies:
  - name: probes
    type: drop
    drop_sub_policy:
      - {type: string_attribute, key: http.route, values: [/health, /ready]}
  - {name: errors, type: status_code, status_codes: [ERROR]}
  - {name: admin, type: string_attribute, key: http.route, values: ['^/admin/'], enabled_regex_matching: true}
  - {name: 5xx, type: numeric_attribute, key: http.response.status_code, min_value: 500}
  - {name: pay, type: service, values: [pay, cart]}
  - {name: rest, type: throughput, traces_per_second: 100}
";

/// Spans with two attributes each and one on their resource.
fn batch(interests: &Interests) -> SpanBatch {
    let buffer = "/shop/cart/itemsfrontendproduction";
    let slice = |offset, len| Slice { offset, len };
    let mut attributes = Vec::new();
    let mut push = |key: &str, value| {
        attributes.extend(interests.number(key).map(|key| Attribute { key, value }));
        u32::try_from(attributes.len()).unwrap()
    };
    let resource = push(
        "deployment.environment.name",
        AttributeValue::Text(slice(24, 10)),
    );
    push("http.route", AttributeValue::Text(slice(0, 16)));
    let end = push("http.response.status_code", AttributeValue::Int(200));
    let span = |n: u32| SpanHeader {
        trace_id: TraceId([7; 16]),
        span_id: SpanId(u64::from(n + 1).to_be_bytes()),
        parent_span_id: SpanId::default(),
        context: 0,
        span: Slice::default(),
        name: Slice::default(),
        trace_state: Slice::default(),
        start: UnixNanos(1),
        end: UnixNanos(2),
        kind: SpanKind::Server,
        status: StatusCode::Unset,
        flags: 1,
        hash: 0,
        attributes: Run {
            start: resource,
            end,
        },
    };
    SpanBatch {
        tenant: TenantId::default(),
        received_at: UnixNanos(0),
        buffer: Bytes::from_static(buffer.as_bytes()),
        contexts: vec![Context {
            service: slice(16, 8),
            attributes: Run {
                start: 0,
                end: resource,
            },
            ..Context::default()
        }],
        spans: (0..SPANS).map(span).collect(),
        attributes,
    }
}

/// Observes all spans and decides a trace after every twelfth.
fn pass(bound: &BoundPolicy, batch: &SpanBatch, limiters: &mut Limiters, now: &mut u64) -> u32 {
    let (mut kept, mut bits): (u32, LeafBits) = (0, 0);
    for (n, span) in (1..).zip(&batch.spans) {
        bits |= bound.observe(batch, span);
        if n % SPANS_PER_TRACE == 0 {
            *now += 1_000_000;
            let facts = TraceFacts {
                tenant: &batch.tenant,
                trace_id: span.trace_id,
                bits,
                start: span.start,
                end: span.end,
                span_count: SPANS_PER_TRACE,
                bytes: 10_000,
                error: false,
                pressure: 0,
            };
            let decision = bound.set().decide(&facts, limiters, UnixNanos(*now));
            kept += u32::from(decision.policy != u16::MAX);
            bits = 0;
        }
    }
    kept
}

fn policies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    group.throughput(Throughput::Elements(u64::from(SPANS)));
    for (name, yaml) in [("default", DEFAULT_POLICY), ("attributes", ATTRIBUTES)] {
        let set = Arc::new(PolicySet::parse(yaml, 1).unwrap());
        let interests = Interests::new(["deployment.environment.name"], set.keys());
        let (bound, batch) = (set.bind(&interests), batch(&interests));
        let (mut limiters, mut now) = (Limiters::new(&set), 0);
        group.bench_function(format!("observe_and_decide/{name}"), |bencher| {
            bencher.iter(|| black_box(pass(&bound, black_box(&batch), &mut limiters, &mut now)));
        });
    }
    group.finish();
    criterion.bench_function("policy/parse_default", |bencher| {
        bencher.iter(|| PolicySet::parse(black_box(DEFAULT_POLICY), 1).unwrap());
    });
}

criterion_group!(benches, policies);
criterion_main!(benches);
