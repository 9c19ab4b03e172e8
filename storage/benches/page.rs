//! Pages and blocks: encoding, reading one trace, scanning one attribute, committing.
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
use spandrel_model::ids::{Bucket, ShardId, TenantId, TraceId};
use spandrel_model::otlp::{RawContext, TracesDataWriter};
use spandrel_model::search::{SpanCondition, TagCondition};
use spandrel_storage::block::{BlockOptions, BlockStore, BlockWrite};
use spandrel_storage::disk::RealDisk;
use spandrel_storage::page::{EncodedPage, PageBuilder, PageCondition, PageReader, read_context};
use support::{SPANS_PER_TRACE, encode, resources, traces};

mod support;

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
            let mut write = |context: &RawContext<'_>, _, span: &[u8]| writer.push(context, span);
            store.visit(&found[0], &mut write).unwrap();
            writer.span_count()
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
