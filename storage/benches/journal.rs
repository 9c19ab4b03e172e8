//! What the journal costs: building and compressing a frame, committing it, reading it back, asking for a verdict.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{Lsn, ShardId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::disk::RealDisk;
use spandrel_storage::journal::{EncodedFrame, Frame, FrameBuilder, Journal, JournalOptions};
use support::{NOW, Numbers, batch, dropped, tenant};

/// Spans of a frame of about 256 KiB.
const SPANS: usize = 320;
const SHARDS: u16 = 64;

/// The spans of a request by shard, as the framer gets them.
fn by_shard(batch: &SpanBatch) -> Vec<(ShardId, Vec<u32>)> {
    let shard = |index: &u32| u16::from(batch.spans[*index as usize].trace_id.0[0]) % SHARDS;
    let mut groups = std::collections::BTreeMap::<u16, Vec<u32>>::new();
    for index in 0..batch.spans.len() as u32 {
        groups.entry(shard(&index)).or_default().push(index);
    }
    let groups = groups.into_iter();
    groups
        .map(|(shard, spans)| (ShardId(shard), spans))
        .collect()
}

fn build(
    builder: &mut FrameBuilder,
    batch: &SpanBatch,
    groups: &[(ShardId, Vec<u32>)],
    lsn: u64,
) -> EncodedFrame {
    for (shard, spans) in groups {
        let pushed = builder.push_spans(*shard, Term(1), Lsn(lsn), batch, spans);
        pushed.unwrap();
    }
    builder.finish().unwrap()
}

fn frames(c: &mut Criterion) {
    let mut numbers = Numbers(7);
    let batch = batch(&mut numbers, "default", SPANS);
    let groups = by_shard(&batch);
    let mut builder = FrameBuilder::new(1).unwrap();
    let frame = build(&mut builder, &batch, &groups, 1);
    let raw = frame.raw_bytes() as f64 / SPANS as f64;
    let stored = frame.bytes().len() as f64 / SPANS as f64;
    let wire = batch.buffer.len() as f64 / SPANS as f64;
    println!("wire {wire:.0} B/span, raw {raw:.0} B/span, frame {stored:.1} B/span");

    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(SPANS as u64));
    for level in [-1, 1] {
        let mut builder = FrameBuilder::new(level).unwrap();
        let size = build(&mut builder, &batch, &groups, 1).bytes().len();
        println!("level {level}: {:.1} B/span", size as f64 / SPANS as f64);
        group.bench_function(format!("build, level {level}"), |b| {
            b.iter(|| build(&mut builder, &batch, &groups, 1));
        });
    }
    group.bench_function("decode", |b| {
        b.iter(|| Frame::decode(frame.bytes()).unwrap())
    });
    group.finish();
}

fn commits(c: &mut Criterion) {
    let mut numbers = Numbers(8);
    let batch = batch(&mut numbers, "default", SPANS);
    let groups = by_shard(&batch);
    let mut builder = FrameBuilder::new(1).unwrap();
    let mut group = c.benchmark_group("commit");
    group.throughput(Throughput::Elements(SPANS as u64));
    for two_phase in [false, true] {
        let dir = tempfile::tempdir_in(".").unwrap();
        let options = JournalOptions {
            two_phase,
            ..JournalOptions::default()
        };
        let opened = Journal::open(Arc::new(RealDisk), dir.path(), options, UnixNanos(NOW));
        let journal = opened.unwrap().0;
        let (mut lsn, mut bytes) = (0, 0);
        group.bench_function(format!("one frame, two_phase {two_phase}"), |b| {
            b.iter_batched(
                || {
                    lsn += 1;
                    build(&mut builder, &batch, &groups, lsn)
                },
                |frame| {
                    bytes += frame.bytes().len();
                    journal.commit(&[frame], UnixNanos(NOW)).unwrap()
                },
                BatchSize::PerIteration,
            );
        });
        let on_disk = journal.bytes_on_disk() as f64 / bytes as f64;
        println!("two_phase {two_phase}: {on_disk:.2} bytes on disk for each of frames");
    }
    group.finish();
}

fn reads(c: &mut Criterion) {
    let mut numbers = Numbers(9);
    let spans = batch(&mut numbers, "default", SPANS);
    let groups = by_shard(&spans);
    let mut builder = FrameBuilder::new(1).unwrap();
    let dir = tempfile::tempdir_in(".").unwrap();
    let options = JournalOptions {
        frame_cache_bytes: 0,
        slice_nanos: 1,
        ..JournalOptions::default()
    };
    let opened = Journal::open(Arc::new(RealDisk), dir.path(), options, UnixNanos(NOW));
    let journal = opened.unwrap().0;
    let mut traces: Vec<(ShardId, TraceId)> = Vec::new();
    for lsn in 1..=24_u64 {
        let mut chunk = vec![build(&mut builder, &spans, &groups, 2 * lsn)];
        for shard in 0..SHARDS {
            let shard = ShardId(shard);
            let verdicts: Vec<_> = (0..16)
                .map(|_| dropped(&mut numbers, "default", 2 * lsn + 1))
                .collect();
            traces.extend(verdicts.iter().map(|verdict| (shard, verdict.trace_id)));
            let pushed = builder.push_verdicts(shard, Term(1), Lsn(2 * lsn + 1), &verdicts);
            pushed.unwrap();
        }
        chunk.push(builder.finish().unwrap());
        // Each commit is older than a slice may be: a slice each.
        journal.commit(&chunk, UnixNanos(NOW + 10 * lsn)).unwrap();
        journal.maintain(UnixNanos(NOW + 10 * lsn)).unwrap();
    }
    let tenant = tenant("default");
    let mut n = 0;
    c.bench_function("locate and read a frame, 24 slices", |b| {
        b.iter(|| {
            n = (n + 1) % 24;
            let shard = groups[n % groups.len()].0;
            let id = journal.locate(shard, Lsn(2 * n as u64 + 2)).unwrap();
            journal.frame(id.unwrap()).unwrap()
        });
    });
    c.bench_function("maybe_decided, unknown trace, 24 slices", |b| {
        b.iter(|| {
            let trace = TraceId(numbers.bytes());
            black_box(journal.maybe_decided(ShardId(3), &tenant, trace))
        });
    });
    c.bench_function("verdict of a known trace, frame not in memory", |b| {
        b.iter(|| {
            n = (n + 997) % traces.len();
            let (shard, trace) = traces[n];
            journal.verdict(shard, &tenant, trace).unwrap().unwrap()
        });
    });
}

/// Bytes that dropped traces cost, alone in a frame and on disk with their index and filter.
fn verdict_bytes(_: &mut Criterion) {
    let mut numbers = Numbers(10);
    let mut builder = FrameBuilder::new(1).unwrap();
    let of_shard = |numbers: &mut Numbers, count: usize| -> Vec<VerdictRecord> {
        (0..count)
            .map(|_| dropped(numbers, "default", 100_000))
            .collect()
    };
    for count in [16, 100, 1_000] {
        let verdicts = of_shard(&mut numbers, count);
        builder
            .push_verdicts(ShardId(1), Term(1), Lsn(1), &verdicts)
            .unwrap();
        let alone = builder.finish().unwrap().bytes().len();
        println!(
            "{count} verdicts in a frame: {:.1} B each",
            alone as f64 / count as f64
        );
    }
    let spans = batch(&mut numbers, "default", SPANS);
    let groups = by_shard(&spans);
    let without = build(&mut builder, &spans, &groups, 1).bytes().len();
    let verdicts = of_shard(&mut numbers, 200);
    builder
        .push_verdicts(ShardId(1), Term(1), Lsn(2), &verdicts)
        .unwrap();
    let with = build(&mut builder, &spans, &groups, 1).bytes().len();
    println!(
        "200 verdicts beside spans: {:.1} B each",
        (with - without) as f64 / 200.0
    );

    let dir = tempfile::tempdir_in(".").unwrap();
    let options = JournalOptions {
        slice_nanos: 1,
        ..JournalOptions::default()
    };
    let opened = Journal::open(Arc::new(RealDisk), dir.path(), options, UnixNanos(NOW));
    let journal = opened.unwrap().0;
    let before = journal.bytes_on_disk();
    let mut total = 0;
    for lsn in 1..=20 {
        let frames: Vec<_> = (0..20)
            .map(|shard| {
                let verdicts = of_shard(&mut numbers, 500);
                total += verdicts.len();
                builder
                    .push_verdicts(ShardId(shard), Term(1), Lsn(lsn), &verdicts)
                    .unwrap();
                builder.finish().unwrap()
            })
            .collect();
        journal.commit(&frames, UnixNanos(NOW)).unwrap();
    }
    let open_bytes = journal.bytes_on_disk() - before;
    let open_memory = journal.index_memory_bytes();
    let last = vec![];
    journal.commit(&last, UnixNanos(NOW + 10)).unwrap();
    builder
        .push_verdicts(ShardId(0), Term(1), Lsn(21), &of_shard(&mut numbers, 1))
        .unwrap();
    journal
        .commit(&[builder.finish().unwrap()], UnixNanos(NOW + 10))
        .unwrap();
    journal.maintain(UnixNanos(NOW + 10)).unwrap();
    let sealed_memory = journal.index_memory_bytes();
    let sealed: u64 = journal.slices()[0].allocated_bytes;
    let each = |bytes: f64| bytes / total as f64;
    println!(
        "{total} verdicts: open {:.1} B on disk and {:.1} B in memory each; sealed {:.1} and {:.1}",
        each(open_bytes as f64),
        each(open_memory as f64),
        each(sealed as f64),
        each(sealed_memory as f64),
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = verdict_bytes, frames, reads, commits
}
criterion_main!(benches);
