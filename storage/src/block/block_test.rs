#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::otlp::{RawContext, TracesDataWriter};
use spandrel_model::search::{SpanCondition, TagCondition};
use spandrel_model::summary::{SpanClass, SummaryDecision, TraceSummary};

use super::*;
use crate::disk::{Disk, RealDisk, SimulatedDisk};
use crate::page::testing::contexts;
use crate::page::{EncodedPage, FragmentHead, PageBuilder, PageSpan, ValueKind};

pub(super) const DIR: &str = "/data/blocks";

pub(super) fn open(disk: &SimulatedDisk, boot: u64) -> BlockStore {
    let options = BlockOptions {
        boot,
        max_open_files: 4,
        ..BlockOptions::default()
    };
    BlockStore::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap()
}

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn trace(number: u64) -> TraceId {
    TraceId((u128::from(number) << 64 | 1).to_be_bytes())
}

/// Three spans of a trace: a client and a server, the last one an error with `n=<number>`.
pub(super) fn spans(number: u64) -> Vec<Vec<u8>> {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::{Span, Status};
    use prost::Message;
    (1..=3u64)
        .map(|span| {
            let attributes = vec![KeyValue {
                key: "n".to_owned(),
                value: Some(AnyValue {
                    value: Some(Value::IntValue(number.cast_signed())),
                }),
                ..KeyValue::default()
            }];
            let status = (span == 3).then(|| Status {
                code: 2,
                message: String::new(),
            });
            Span {
                trace_id: trace(number).0.to_vec(),
                span_id: span.to_be_bytes().to_vec(),
                parent_span_id: (span - 1).to_be_bytes().to_vec(),
                name: format!("operation {span}"),
                start_time_unix_nano: 1_000 * number + span,
                end_time_unix_nano: 1_000 * number + 900,
                attributes,
                status,
                ..Span::default()
            }
            .encode_to_vec()
        })
        .collect()
}

fn page(numbers: impl IntoIterator<Item = u64>) -> EncodedPage {
    let contexts = contexts();
    let mut builder = PageBuilder::new();
    for number in numbers {
        let spans = spans(number);
        let spans: Vec<PageSpan<'_>> = spans
            .iter()
            .map(|span| PageSpan {
                context: contexts[number as usize % 3].raw(),
                span,
            })
            .collect();
        let head = FragmentHead {
            shard: ShardId(number as u16 % 8),
            trace_id: trace(number),
            fragment: Lsn(number + 1),
            received_at: UnixNanos(number),
        };
        builder.push(head, &spans).unwrap();
    }
    builder.finish().unwrap().unwrap()
}

fn summary(number: u64, bucket: u32, tenant: &TenantId) -> TraceSummary {
    TraceSummary {
        tenant: tenant.clone(),
        shard: ShardId(number as u16 % 8),
        trace_id: trace(number),
        fragment: Lsn(number + 1),
        bucket: Bucket(bucket),
        start: UnixNanos(1_000 * number),
        earliest: UnixNanos(1_000 * number),
        end: UnixNanos(1_000 * number + 900),
        root: None,
        span_count: 3,
        error_count: 1,
        classes: vec![SpanClass {
            service: Arc::from("a"),
            operation: Arc::from("operation 1"),
            kind: SpanKind::Server,
            status: StatusCode::Unset,
        }],
        attributes: Vec::new(),
        truncated: false,
        decision: SummaryDecision::default(),
    }
}

pub(super) fn write(bucket: u32, name: &str, numbers: std::ops::Range<u64>) -> BlockWrite {
    let tenant = tenant(name);
    let summaries = numbers
        .clone()
        .map(|number| summary(number, bucket, &tenant));
    BlockWrite {
        bucket: Bucket(bucket),
        summaries: summaries.collect(),
        pages: vec![page(numbers)],
        tenant,
    }
}

/// All spans of a trace that the store finds.
pub(super) fn fetch(store: &BlockStore, name: &str, number: u64) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for location in store
        .fragments(&tenant(name), ShardId(number as u16 % 8), trace(number))
        .unwrap()
    {
        store
            .visit(&location, &mut |context: &RawContext<'_>, _, span| {
                assert_eq!(*context, contexts()[number as usize % 3].raw());
                found.push(span.to_vec());
            })
            .unwrap();
    }
    found
}

fn tag(value: &str) -> SpanCondition {
    SpanCondition {
        tags: vec![TagCondition {
            key: "n".to_owned(),
            value: value.to_owned(),
        }],
        ..SpanCondition::default()
    }
}

/// All that a scan finds, and the pages that it looked at.
fn scan(
    store: &BlockStore,
    bucket: u32,
    name: &str,
    condition: &SpanCondition,
) -> (Vec<FoundFragment>, Vec<ScannedPage>) {
    let tenant = tenant(name);
    let request = ScanRequest {
        bucket: Bucket(bucket),
        tenant: &tenant,
        condition,
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
    };
    let pages = pages(store.scan(&request).unwrap());
    let found = pages.iter().flat_map(|page| page.found.clone());
    (found.collect(), pages)
}

fn pages(scan: Option<BlockScan>) -> Vec<ScannedPage> {
    let mut scan = scan.unwrap();
    std::iter::from_fn(|| scan.next_page().unwrap()).collect()
}

fn spans_of(pages: &[ScannedPage]) -> u64 {
    pages.iter().map(|page| page.spans).sum()
}

#[test]
fn what_was_committed_is_found_and_survives_reopening() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..50)).unwrap();
    store.commit(&write(5, "b", 50..60)).unwrap();
    store.commit(&write(6, "a", 60..70)).unwrap();
    let blocks = store.buckets().unwrap();
    drop(store);
    let store = open(&disk, 2);
    let mut reopened = store.buckets().unwrap();
    for (block, before) in reopened.iter_mut().zip(&blocks) {
        // redb gives back space when it closes a file.
        block.bytes = before.bytes;
    }
    assert_eq!(reopened, blocks);
    assert_ne!(blocks[0].block_id, blocks[1].block_id);
    assert_eq!((blocks[0].last_sequence, blocks[0].spans), (60, 180));
    for number in (0..50).chain(60..70) {
        assert_eq!(fetch(&store, "a", number), spans(number));
        assert!(fetch(&store, "b", number).is_empty());
    }
    assert_eq!(fetch(&store, "b", 55), spans(55));
    assert!(fetch(&store, "a", 1_000).is_empty());
    assert!(fetch(&store, "c", 1).is_empty());
    let key = |number: u64| (ShardId(number as u16 % 8), trace(number), Lsn(number + 1));
    let (shard, id, fragment) = key(7);
    for (bucket, name, expected) in [
        (5, "a", true),
        (5, "b", false),
        (6, "a", false),
        (9, "a", false),
    ] {
        let found = store.has_fragment(Bucket(bucket), &tenant(name), shard, id, fragment);
        assert_eq!(found.unwrap(), expected);
    }
}

#[test]
fn a_fetch_writes_each_span_once() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..10)).unwrap();
    let location = &store.fragments(&tenant("a"), ShardId(3), trace(3)).unwrap()[0];
    let mut writer = TracesDataWriter::new();
    let mut keys = BTreeSet::new();
    let mut seen = |id: SpanId, hash: u64| !keys.insert((id, hash));
    assert_eq!(store.read(location, &mut writer, &mut seen).unwrap(), 3);
    assert_eq!(store.read(location, &mut writer, &mut seen).unwrap(), 0);
    assert_eq!(writer.span_count(), 3);
    let errors = SpanCondition {
        status: Some(StatusCode::Error),
        ..tag("3")
    };
    let id = |number: u64| SpanId(number.to_be_bytes());
    let matching = |condition: &SpanCondition, limit| {
        let location = std::slice::from_ref(location);
        store.matching_spans(location, condition, limit).unwrap()
    };
    assert_eq!(matching(&errors, 9), [Some(vec![id(3)])]);
    assert_eq!(matching(&tag("3"), 2), [Some(vec![id(1), id(2)])]);
    assert_eq!(matching(&tag("4"), 2), [Some(vec![])]);
}

fn located(store: &BlockStore, name: &str, number: u64) -> Vec<FragmentLocation> {
    store
        .fragments(&tenant(name), ShardId(number as u16 % 8), trace(number))
        .unwrap()
}

fn span_id(number: u64) -> SpanId {
    SpanId(number.to_be_bytes())
}

#[test]
fn matching_spans_come_in_the_order_asked_whatever_page_they_are_on() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..10)).unwrap();
    store.commit(&write(5, "a", 10..20)).unwrap();
    store.commit(&write(6, "b", 20..30)).unwrap();
    let errors = SpanCondition {
        status: Some(StatusCode::Error),
        ..SpanCondition::default()
    };
    let locations: Vec<FragmentLocation> = [(3, "a"), (25, "b"), (17, "a"), (4, "a"), (3, "a")]
        .iter()
        .flat_map(|(number, name)| located(&store, name, *number))
        .collect();
    for _ in ["from the disk", "from the cache"] {
        let found = store.matching_spans(&locations, &errors, 9).unwrap();
        assert_eq!(found, vec![Some(vec![span_id(3)]); 5]);
        let found = store.matching_spans(&locations, &tag("17"), 2).unwrap();
        let mut expected = vec![Some(vec![]); 5];
        expected[2] = Some(vec![span_id(1), span_id(2)]);
        assert_eq!(found, expected);
    }
}

/// A search located its hits, then the housekeeper sealed the block: their pages were merged into one with another
/// number, and the search failed.
#[test]
fn what_was_located_before_a_seal_is_read_after_it() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    for start in 0..5 {
        let numbers = start * 10..start * 10 + 10;
        store.commit(&write(5, "a", numbers)).unwrap();
    }
    let numbers = [7, 23, 24, 48];
    let before: Vec<FragmentLocation> = numbers
        .iter()
        .flat_map(|number| located(&store, "a", *number))
        .collect();
    let check = |store: &BlockStore| {
        let found = store.matching_spans(&before, &tag("23"), 9).unwrap();
        let of_23 = vec![span_id(1), span_id(2), span_id(3)];
        assert_eq!(
            found,
            [Some(vec![]), Some(of_23), Some(vec![]), Some(vec![])]
        );
        for (location, number) in before.iter().zip(numbers) {
            let mut visited = Vec::new();
            store
                .visit(location, &mut |_, _, span| visited.push(span.to_vec()))
                .unwrap();
            assert_eq!(visited, spans(number));
            let newest = store.newest_summary(std::slice::from_ref(location));
            assert_eq!(newest.unwrap(), Some(summary(number, 5, &tenant("a"))));
        }
    };
    check(&store);
    store.seal(Bucket(5)).unwrap();
    assert_ne!(located(&store, "a", 23)[0].page, before[1].page);
    check(&store);
}

/// Sequences and pages count from 1 in every file: what was cached of an expired block must not answer for a new one.
#[test]
fn a_new_block_of_an_expired_bucket_is_not_answered_from_the_cache() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    let check = |store: &BlockStore, number: u64| {
        let locations = located(store, "a", number);
        assert_eq!(locations.len(), 1);
        let newest = store.newest_summary(&locations).unwrap();
        assert_eq!(newest, Some(summary(number, 5, &tenant("a"))));
        let found = store
            .matching_spans(&locations, &tag(&number.to_string()), 1)
            .unwrap();
        assert_eq!(found, [Some(vec![span_id(1)])]);
    };
    store.commit(&write(5, "a", 0..10)).unwrap();
    check(&store, 3);
    let old = located(&store, "a", 3);
    store.expire(Bucket(6)).unwrap();
    assert!(matches!(
        store.newest_summary(&old),
        Err(BlockError::NoBlock { .. })
    ));
    assert_eq!(store.matching_spans(&old, &tag("3"), 1).unwrap(), [None]);
    store.commit(&write(5, "a", 100..110)).unwrap();
    check(&store, 103);
}

/// One rotten batch used to fail a whole search.
#[test]
fn a_corrupt_batch_of_summaries_fails_alone() {
    use redb::ReadableDatabase;
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..10)).unwrap();
    store.commit(&write(5, "a", 10..20)).unwrap();
    drop(store);
    let path = Path::new(DIR).join("bucket-5.block");
    let backend = crate::disk::Backend(disk.open(&path).unwrap());
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let read = database.begin_read().unwrap();
    let batches = read.open_table(schema::SUMMARIES).unwrap();
    let mut bytes = batches.get(11).unwrap().unwrap().value().to_vec();
    bytes[20] ^= 1;
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(schema::SUMMARIES)
        .unwrap()
        .insert(11, bytes.as_slice())
        .unwrap();
    transaction.commit().unwrap();
    drop((batches, read, database));

    let store = open(&disk, 2);
    let traces = [located(&store, "a", 15), located(&store, "a", 5)];
    for _ in ["from the disk", "from the cache"] {
        let found = store.newest_summaries(&traces);
        assert!(matches!(found[0], Err(BlockError::Corrupt { .. })));
        assert_eq!(
            found[1].as_ref().unwrap(),
            &Some(summary(5, 5, &tenant("a")))
        );
    }
}

/// A scan stops at the latest start of the pages that it has not read. A late span may start before its trace, which
/// keeps its place in the order: a page by the spans' starts alone made the scan stop before that trace.
#[test]
fn a_page_starts_no_earlier_than_its_traces() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    let mut late = write(5, "a", 3..4);
    late.summaries[0].start = UnixNanos(1_000_000);
    store.commit(&late).unwrap();
    store.commit(&write(5, "a", 4..5)).unwrap();
    let (tenant, condition) = (tenant("a"), SpanCondition::default());
    let request = ScanRequest {
        bucket: Bucket(5),
        tenant: &tenant,
        condition: &condition,
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
    };
    let next_start = || store.scan(&request).unwrap().unwrap().next_start();
    assert_eq!(next_start(), Some(UnixNanos(1_000_000)));
    assert_eq!(store.buckets().unwrap()[0].max_start, UnixNanos(1_000_000));
    store.seal(Bucket(5)).unwrap();
    assert_eq!(next_start(), Some(UnixNanos(1_000_000)));
}

/// The pager commits again what a crash made it forget, perhaps divided into other pages.
#[test]
fn fragments_are_never_stored_twice() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..10)).unwrap();
    let before = store.buckets().unwrap();
    store.commit(&write(5, "a", 2..9)).unwrap();
    assert_eq!(store.buckets().unwrap(), before);
    store.commit(&write(5, "a", 5..15)).unwrap();
    let after = &store.buckets().unwrap()[0];
    assert_eq!((after.spans, after.last_sequence), (45, 15));
    let (found, _) = scan(&store, 5, "a", &SpanCondition::default());
    assert_eq!(found.len(), 15);
    (0..15).for_each(|number| assert_eq!(fetch(&store, "a", number), spans(number)));
}

#[test]
fn summaries_come_in_sequence_and_by_trace() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..300)).unwrap();
    store.commit(&write(5, "b", 300..310)).unwrap();
    let all = store.summaries(Bucket(5), 0, 1_000).unwrap();
    assert_eq!(all.len(), 310);
    for (index, (sequence, found)) in all.iter().enumerate() {
        let name = if index < 300 { "a" } else { "b" };
        assert_eq!(
            (*sequence, found),
            (index as u64 + 1, &summary(index as u64, 5, &tenant(name)))
        );
    }
    assert_eq!(store.summaries(Bucket(5), 200, 7).unwrap(), all[200..207]);
    assert!(store.summaries(Bucket(5), 310, 7).unwrap().is_empty());
    let one = store
        .summary_of(&tenant("a"), ShardId(1), trace(257))
        .unwrap();
    assert_eq!(one, Some(summary(257, 5, &tenant("a"))));
    assert_eq!(
        store
            .summary_of(&tenant("b"), ShardId(1), trace(257))
            .unwrap(),
        None
    );
}

#[test]
fn a_seal_merges_small_pages_and_changes_no_answer() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    for start in 0..20 {
        store
            .commit(&write(5, "a", start * 10..start * 10 + 10))
            .unwrap();
    }
    store.commit(&write(5, "b", 900..910)).unwrap();
    let before = scan(&store, 5, "a", &tag("77")).0;
    store.seal(Bucket(5)).unwrap();
    let sealed = store.buckets().unwrap()[0].clone();
    assert!(sealed.sealed);
    let check = |store: &BlockStore| {
        (0..200).for_each(|number| assert_eq!(fetch(store, "a", number), spans(number)));
        let unknown = (10_000..11_000).filter(|&number| !fetch(store, "a", number).is_empty());
        assert_eq!(unknown.count(), 0);
        let (found, pages) = scan(store, 5, "a", &tag("77"));
        assert_eq!((found.len(), &found[0].matched), (1, &before[0].matched));
        assert_eq!(spans_of(&pages), 600);
        assert_eq!(store.summaries(Bucket(5), 0, 1_000).unwrap().len(), 210);
        let one = store
            .summary_of(&tenant("a"), ShardId(5), trace(77))
            .unwrap();
        assert_eq!(one.unwrap().trace_id, trace(77));
    };
    check(&store);
    drop(store);
    let without_memory = BlockOptions {
        filter_bytes: 0,
        ..BlockOptions::default()
    };
    check(&BlockStore::open(Arc::new(disk.clone()), Path::new(DIR), without_memory).unwrap());
    let store = open(&disk, 2);
    check(&store);
    // A late fragment opens the block again.
    store.commit(&write(5, "a", 500..501)).unwrap();
    assert!(!store.buckets().unwrap()[0].sealed);
    assert_eq!(fetch(&store, "a", 500), spans(500));
    store.seal(Bucket(5)).unwrap();
    assert_eq!(fetch(&store, "a", 500), spans(500));
    assert_eq!(store.buckets().unwrap()[0].block_id, sealed.block_id);
}

#[test]
fn a_scan_keeps_its_range_and_order() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    for start in 0..5 {
        store
            .commit(&write(5, "a", start * 10..start * 10 + 10))
            .unwrap();
    }
    let (condition, tenant) = (SpanCondition::default(), tenant("a"));
    let mut request = ScanRequest {
        bucket: Bucket(5),
        tenant: &tenant,
        condition: &condition,
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
    };
    let mut scan = store.scan(&request).unwrap().unwrap();
    for newest in (0..5u64).rev() {
        let latest = UnixNanos(1_000 * (10 * newest + 9) + 3);
        assert_eq!(scan.next_start(), Some(latest), "newest pages first");
        let page = scan.next_page().unwrap().unwrap();
        assert_eq!(
            (page.spans, page.found.len(), page.corrupt),
            (30, 10, false)
        );
        assert!(
            page.found
                .iter()
                .all(|found| found.trace_id >= trace(10 * newest))
        );
    }
    assert_eq!((scan.next_start(), scan.next_page().unwrap()), (None, None));
    (request.from, request.to) = (UnixNanos(10_500), UnixNanos(20_000));
    assert_eq!(spans_of(&pages(store.scan(&request).unwrap())), 30);
}

#[test]
fn keys_and_values_come_from_pages_and_resources() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..10)).unwrap();
    let keys = store.attribute_keys(Bucket(5), &tenant("a")).unwrap();
    let expected = [
        ("k", AttributeScope::Resource),
        ("l", AttributeScope::Resource),
        ("n", AttributeScope::Span),
        ("service.name", AttributeScope::Resource),
    ];
    assert_eq!(
        keys,
        expected.map(|(key, scope)| (key.to_owned(), scope)).into()
    );
    let values = |key, limit| {
        store
            .attribute_values(Bucket(5), &tenant("a"), key, limit)
            .unwrap()
    };
    assert_eq!(values("n", 100).len(), 10);
    assert!(values("n", 100).contains(&("7".to_owned(), ValueKind::Int)));
    assert_eq!(values("n", 4).len(), 4);
    assert_eq!(values("k", 4), [("b".to_owned(), ValueKind::Text)].into());
    assert!(
        store
            .attribute_keys(Bucket(5), &tenant("b"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn expiry_removes_files_also_those_that_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        || BlockStore::open(Arc::new(RealDisk), dir.path(), BlockOptions::default()).unwrap();
    let store = open();
    for bucket in 1..=8 {
        store.commit(&write(bucket, "a", 0..5)).unwrap();
    }
    drop(store);
    std::fs::write(dir.path().join("bucket-2.block"), b"not a database").unwrap();
    std::fs::write(dir.path().join("bucket-9.block.tmp"), b"half").unwrap();
    let store = open();
    let blocks = store.buckets().unwrap();
    assert_eq!(blocks.len(), 8);
    assert!(blocks[1].unopenable.is_some());
    assert!(matches!(
        store.commit(&write(2, "a", 0..5)),
        Err(BlockError::Unopenable { .. })
    ));
    let location = store
        .fragments(&tenant("a"), ShardId(1), trace(1))
        .unwrap()
        .pop()
        .unwrap();
    assert_eq!(location.bucket, Bucket(1));
    let expired = store.expire(Bucket(4)).unwrap();
    let buckets: Vec<u32> = expired.iter().map(|info| info.bucket.0).collect();
    assert_eq!(buckets, [1, 3, 2]);
    assert!(matches!(
        store.visit(&location, &mut |_, _, _| {}),
        Err(BlockError::NoBlock { .. })
    ));
    assert_eq!(RealDisk.list(dir.path()).unwrap().len(), 5);
    assert_eq!(fetch(&store, "a", 1).len(), 5 * 3);
}

#[test]
fn a_corrupt_page_fails_alone() {
    use redb::ReadableDatabase;
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..10)).unwrap();
    store.commit(&write(5, "a", 10..20)).unwrap();
    drop(store);
    // Rot of a stored page, below redb.
    let path = Path::new(DIR).join("bucket-5.block");
    let backend = crate::disk::Backend(disk.open(&path).unwrap());
    let database = redb::Builder::new().create_with_backend(backend).unwrap();
    let read = database.begin_read().unwrap();
    let chunks = read.open_table(schema::CHUNKS).unwrap();
    let mut bytes = chunks.get((0, 1, 0)).unwrap().unwrap().value().to_vec();
    let middle = bytes.len() - 20;
    bytes[middle] ^= 1;
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(schema::CHUNKS)
        .unwrap()
        .insert((0, 1, 0), bytes.as_slice())
        .unwrap();
    transaction.commit().unwrap();
    drop((chunks, read, database));

    let store = open(&disk, 2);
    let corrupt = |pages: &[ScannedPage]| pages.iter().filter(|page| page.corrupt).count();
    let (found, pages) = scan(&store, 5, "a", &tag("13"));
    assert_eq!((found.len(), corrupt(&pages) <= 1), (1, true));
    let (found, pages) = scan(&store, 5, "a", &tag("3"));
    assert_eq!((found.len(), corrupt(&pages)), (0, 1));
    let location = &store.fragments(&tenant("a"), ShardId(3), trace(3)).unwrap()[0];
    assert!(matches!(
        store.visit(location, &mut |_, _, _| {}),
        Err(BlockError::Page { page: 1, .. })
    ));
    assert_eq!(fetch(&store, "a", 13), spans(13));
    store.seal(Bucket(5)).unwrap();
    assert_eq!(fetch(&store, "a", 13), spans(13));
}

#[test]
fn more_blocks_than_open_files_are_all_read() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    for bucket in 0..12 {
        store
            .commit(&write(
                bucket,
                "a",
                u64::from(bucket)..u64::from(bucket) + 2,
            ))
            .unwrap();
        if bucket % 2 == 0 {
            store.seal(Bucket(bucket)).unwrap();
        }
    }
    for _ in 0..2 {
        assert_eq!(fetch(&store, "a", 0), spans(0));
        (1..12).for_each(|number| assert_eq!(fetch(&store, "a", number).len(), 6));
    }
}

/// The power fails at every kind of moment: while files are created, commits are under way, blocks are sealed.
#[test]
fn what_was_acknowledged_survives_crashes() {
    for seed in 0..60u64 {
        let disk = SimulatedDisk::new(seed);
        let mut acknowledged = 0u64;
        for round in 0..4u64 {
            let Ok(store) = BlockStore::open(
                Arc::new(disk.clone()),
                Path::new(DIR),
                BlockOptions {
                    boot: round,
                    ..BlockOptions::default()
                },
            ) else {
                disk.power_loss();
                continue;
            };
            let blocks = store.buckets().unwrap();
            assert!(
                blocks.iter().all(|info| info.unopenable.is_none()),
                "seed {seed}"
            );
            for number in 0..acknowledged {
                assert_eq!(fetch(&store, "a", number), spans(number), "seed {seed}");
            }
            disk.fail_power_after(20 + (seed * 37 + round * 101) % 400);
            for step in 0..40 {
                let next = acknowledged;
                let bucket = (next / 7) as u32;
                // What the crash left of an unacknowledged commit is not stored a second time.
                let done = store.commit(&write(bucket, "a", next..next + 1)).is_ok();
                if !done {
                    break;
                }
                acknowledged += 1;
                if step % 5 == 4 && store.seal(Bucket(bucket)).is_err() {
                    break;
                }
            }
            drop(store);
            disk.power_loss();
        }
        assert!(acknowledged > 0, "seed {seed}");
    }
}
