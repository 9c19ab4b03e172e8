//! What the index costs: CPU and bytes per trace to build, and the time of typical searches.
//!
//! 50,000 traces a segment, 15 services, 40 operations, 5 to 8 classes and 4 attributes a trace, one span in 100 an
//! error, one trace a millisecond. Prints bytes per trace once.

#![allow(clippy::expect_used, clippy::unwrap_used)] // a benchmark may stop

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::SearchFilter;
use spandrel_model::summary::{AttributeText, SpanClass, SummaryDecision, TraceSummary};
use spandrel_storage::disk::RealDisk;
use spandrel_storage::index::{IndexOptions, IndexQuery, IndexStore};

const BUCKET: Bucket = Bucket(1);
const BLOCK: u128 = 1;
const SEGMENT: u64 = 50_000;
const SEGMENTS: u64 = 4;

/// A reproducible number that looks random (splitmix64).
fn scatter(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn summary(number: u64) -> TraceSummary {
    let random = |what: u64, below: u64| scatter(number * 64 + what) % below;
    let start = UnixNanos(1_700_000_000_000_000_000 + number * UnixNanos::PER_MILLI);
    let mut classes: Vec<SpanClass> = (0..5 + random(0, 4))
        .map(|class| {
            let service = random(1 + class, 15);
            let operation = service * 3 % 40 + random(11 + class, 3);
            let failed = random(21 + class, 100) == 0;
            SpanClass {
                service: format!("service-{service}").into(),
                operation: format!("GET /operation/{operation}").into(),
                kind: SpanKind::from_wire(1 + i32::try_from(operation % 3).unwrap_or(0)),
                status: if failed {
                    StatusCode::Error
                } else {
                    StatusCode::Unset
                },
            }
        })
        .collect();
    classes.sort();
    classes.dedup();
    let attribute = |key: &str, value: String| AttributeText {
        key: key.into(),
        value: value.into(),
    };
    TraceSummary {
        tenant: TenantId::default(),
        shard: ShardId(u16::try_from(random(31, 64)).unwrap_or(0)),
        trace_id: TraceId(
            (u128::from(scatter(number)) << 64 | u128::from(scatter(!number))).to_be_bytes(),
        ),
        fragment: Lsn(number),
        bucket: BUCKET,
        start,
        earliest: start,
        end: start.plus(random(32, 2_000) * random(33, 1_000) * 1_000),
        root: None,
        span_count: 11,
        error_count: 0,
        classes,
        attributes: vec![
            attribute("deployment.environment", format!("env-{}", random(34, 3))),
            attribute(
                "http.response.status_code",
                format!("{}", 200 + random(35, 6)),
            ),
            attribute("k8s.pod.name", format!("pod-{}", random(36, 90))),
            attribute("user.tier", format!("tier-{}", random(37, 5))),
        ],
        truncated: false,
        decision: SummaryDecision::default(),
    }
}

fn keys() -> Vec<String> {
    let keys = [
        "deployment.environment",
        "http.response.status_code",
        "k8s.pod.name",
        "user.tier",
    ];
    keys.map(str::to_owned).to_vec()
}

fn batch(number: u64) -> Vec<TraceSummary> {
    (number * SEGMENT..(number + 1) * SEGMENT)
        .map(summary)
        .collect()
}

fn open(dir: &Path) -> IndexStore {
    IndexStore::open(Arc::new(RealDisk), dir, IndexOptions::default()).expect("open")
}

fn building(criterion: &mut Criterion) {
    let traces = batch(0);
    let mut group = criterion.benchmark_group("index/build");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(SEGMENT));
    group.bench_function("50k traces", |bencher| {
        let fresh = || tempfile::tempdir().expect("directory");
        bencher.iter_batched(
            fresh,
            |dir| {
                let store = open(dir.path());
                store
                    .add(BUCKET, BLOCK, SEGMENT, &traces, &keys())
                    .expect("add");
                dir
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn searching(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path());
    for number in 0..SEGMENTS {
        let up_to = (number + 1) * SEGMENT;
        store
            .add(BUCKET, BLOCK, up_to, &batch(number), &keys())
            .expect("add");
    }
    println!(
        "index: {} bytes per trace",
        store.bytes() / (SEGMENT * SEGMENTS)
    );
    let service = SearchFilter {
        services: vec!["service-7".to_owned()],
        to: UnixNanos(u64::MAX),
        ..SearchFilter::default()
    };
    let error = SearchFilter {
        status: Some(StatusCode::Error),
        ..service.clone()
    };
    let long = SearchFilter {
        min_duration: Some(UnixNanos::PER_SECOND + UnixNanos::PER_SECOND / 2),
        ..service.clone()
    };
    let mut group = criterion.benchmark_group("index/search 200k traces, newest 20");
    for (name, filter) in [
        ("service", service),
        ("service+error", error),
        ("service+duration", long),
    ] {
        let query = IndexQuery {
            tenant: &TenantId::default(),
            filter: &filter,
            shards: None,
            cursor: None,
            limit: 20,
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(store.search(BUCKET, BLOCK, &query)).expect("search"));
        });
    }
    group.finish();
}

criterion_group!(benches, building, searching);
criterion_main!(benches);
