//! What a search asks of a block: summaries of hits, their matching spans, and a scan of columns.
//!
//! One bucket of 600,000 spans in 120 pages, as the pager leaves it. Hits lie one to a page (the worst case) or all
//! in two neighbouring pages.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    missing_docs
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::{SpanCondition, TagCondition};
use spandrel_model::summary::{AttributeText, RootSpan, SpanClass, SummaryDecision, TraceSummary};
use spandrel_model::verdict::Trigger;
use spandrel_storage::block::{
    BlockOptions, BlockStore, BlockWrite, FragmentLocation, ScanRequest,
};
use spandrel_storage::disk::RealDisk;
use spandrel_storage::page::PageBuilder;
use support::{Random, SERVICES, SPANS_PER_TRACE, Trace, encode, resources, traces};

mod support;

const PAGES: u64 = 120;
const PAGE_SPANS: usize = 5_000;
const HITS: usize = 20;

fn summary(trace: &Trace, random: &mut Random) -> TraceSummary {
    let class = |number: u64| SpanClass {
        service: Arc::from(format!("service-{}", number % SERVICES)),
        operation: Arc::from(format!("GET /api/v1/resource-{number}/items/{{id}}")),
        kind: SpanKind::from_wire(2),
        status: StatusCode::Unset,
    };
    let mut classes: Vec<SpanClass> = (0..9).map(|_| class(random.below(40))).collect();
    classes.sort();
    classes.dedup();
    let mut attribute = |key: &str, values: u64| AttributeText {
        key: Arc::from(key),
        value: Arc::from(format!("{key}-{}", random.below(values))),
    };
    let attributes = vec![
        attribute("deployment.environment.name", 2),
        attribute("http.request.method", 3),
        attribute("http.response.status_code", 4),
        attribute("http.route", 40),
        attribute("k8s.namespace.name", 1),
        attribute("service.version", 15),
        attribute("user.id", 100_000),
    ];
    TraceSummary {
        tenant: TenantId::default(),
        shard: trace.head.shard,
        trace_id: trace.head.trace_id,
        fragment: trace.head.fragment,
        bucket: Bucket(0),
        start: trace.head.received_at,
        earliest: trace.head.received_at,
        end: trace.head.received_at.plus(300_000_000),
        root: Some(RootSpan {
            span_id: spandrel_model::ids::SpanId([7; 8]),
            service: Arc::clone(&classes[0].service),
            operation: Arc::clone(&classes[0].operation),
        }),
        span_count: SPANS_PER_TRACE as u32,
        error_count: 0,
        classes,
        attributes,
        truncated: false,
        decision: SummaryDecision {
            policy: Arc::from("keep-all"),
            trigger: Trigger::Idle,
            policy_version: 1,
            probability: 1 << 32,
            decided_at: trace.head.received_at.plus(10_000_000_000),
        },
    }
}

fn open(dir: &std::path::Path, options: BlockOptions) -> BlockStore {
    BlockStore::open(Arc::new(RealDisk), dir, options).unwrap()
}

type Hits = Vec<(ShardId, TraceId)>;

/// The store, hits spread over the pages, hits in two pages.
fn filled(dir: &std::path::Path) -> (BlockStore, Hits, Hits) {
    let store = open(dir, BlockOptions::default());
    let resources = resources();
    let mut builder = PageBuilder::new();
    let mut random = Random(99);
    let (mut spread, mut close) = (Vec::new(), Vec::new());
    for page in 0..PAGES {
        let mut traces = traces(page + 1, PAGE_SPANS / SPANS_PER_TRACE);
        traces.sort_by_key(|trace| trace.head.key());
        let summaries = traces.iter().map(|trace| summary(trace, &mut random));
        let write = BlockWrite {
            bucket: Bucket(0),
            tenant: TenantId::default(),
            summaries: summaries.collect(),
            pages: vec![encode(&mut builder, &resources, &traces)],
        };
        store.commit(&write).unwrap();
        let hit = |number: usize| (traces[number].head.shard, traces[number].head.trace_id);
        if spread.len() < HITS {
            spread.push(hit(page as usize * 17 % traces.len()));
        }
        if page < 2 {
            close.extend((0..HITS / 2).map(|number| hit(number * 40)));
        }
    }
    (store, spread, close)
}

fn tag(key: &str, value: &str) -> SpanCondition {
    SpanCondition {
        tags: vec![TagCondition {
            key: key.to_owned(),
            value: value.to_owned(),
        }],
        ..SpanCondition::default()
    }
}

fn search(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (store, spread, close) = filled(dir.path());
    let tenant = TenantId::default();
    let service = SpanCondition {
        service: Some("service-3".to_owned()),
        ..SpanCondition::default()
    };
    for (name, hits) in [("20 pages", &spread), ("2 pages", &close)] {
        criterion.bench_function(&format!("summaries of 20 hits in {name}"), |bencher| {
            bencher.iter(|| summaries(&store, &tenant, hits));
        });
        criterion.bench_function(&format!("matching spans of 20 hits in {name}"), |bencher| {
            bencher.iter(|| matching(&store, &tenant, hits, &service));
        });
    }
    drop(store);
    let store = open(
        dir.path(),
        BlockOptions {
            summary_cache_bytes: 0,
            column_cache_bytes: 0,
            ..BlockOptions::default()
        },
    );
    criterion.bench_function("summaries of 20 hits in 20 pages, no cache", |bencher| {
        bencher.iter(|| summaries(&store, &tenant, &spread));
    });
    criterion.bench_function(
        "matching spans of 20 hits in 20 pages, no cache",
        |bencher| {
            bencher.iter(|| matching(&store, &tenant, &spread, &service));
        },
    );
    for (name, condition) in [
        ("key of no page", tag("no.such.key", "1")),
        ("dictionary, no match", tag("tenant.plan", "none")),
        ("unique values, no match", tag("url.path", "none")),
    ] {
        criterion.bench_function(&format!("scan of 600,000 spans, {name}"), |bencher| {
            bencher.iter(|| {
                let request = ScanRequest {
                    bucket: Bucket(0),
                    tenant: &tenant,
                    condition: &condition,
                    from: UnixNanos(0),
                    to: UnixNanos(u64::MAX),
                };
                let mut scan = store.scan(&request).unwrap().unwrap();
                let mut found = 0;
                while let Some(page) = scan.next_page().unwrap() {
                    found += page.found.len();
                }
                black_box(found)
            });
        });
    }
}

fn fragments(store: &BlockStore, tenant: &TenantId, hits: &Hits) -> Vec<Vec<FragmentLocation>> {
    let found = hits
        .iter()
        .map(|(shard, trace)| store.fragments(tenant, *shard, *trace).unwrap());
    found.collect()
}

fn summaries(store: &BlockStore, tenant: &TenantId, hits: &Hits) -> usize {
    let found = store.newest_summaries(&fragments(store, tenant, hits));
    found
        .into_iter()
        .filter(|found| found.as_ref().unwrap().is_some())
        .count()
}

fn matching(
    store: &BlockStore,
    tenant: &TenantId,
    hits: &Hits,
    condition: &SpanCondition,
) -> usize {
    let fragments = fragments(store, tenant, hits).concat();
    let found = store.matching_spans(&fragments, condition, 20).unwrap();
    found.into_iter().flatten().flatten().count()
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = settings();
    targets = search
}
criterion_main!(benches);
