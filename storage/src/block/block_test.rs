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
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::disk::{Disk, SimulatedDisk};
use crate::page::testing::contexts;
use crate::page::{EncodedPage, FragmentHead, PageBuilder, PageSpan};

pub(super) const DIR: &str = "/data/blocks";

pub(super) fn open(disk: &SimulatedDisk, boot: u64) -> BlockStore {
    let options = BlockOptions {
        boot,
        max_open_files: 4,
        ..BlockOptions::default()
    };
    BlockStore::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap()
}

pub(super) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub(super) fn trace(number: u64) -> TraceId {
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

pub(super) fn page(numbers: impl IntoIterator<Item = u64>) -> EncodedPage {
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

pub(super) fn summary(number: u64, bucket: u32, tenant: &TenantId) -> TraceSummary {
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

pub(super) fn tag(value: &str) -> SpanCondition {
    SpanCondition {
        tags: vec![TagCondition {
            key: "n".to_owned(),
            value: value.to_owned(),
        }],
        ..SpanCondition::default()
    }
}

/// All that a scan finds, and the pages that it looked at.
pub(super) fn scan(
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

pub(super) fn pages(scan: Option<BlockScan>) -> Vec<ScannedPage> {
    let mut scan = scan.unwrap();
    std::iter::from_fn(|| scan.next_page().unwrap()).collect()
}

pub(super) fn spans_of(pages: &[ScannedPage]) -> u64 {
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
    let mut read = || {
        let mut written = 0;
        let mut write_new = |context: &RawContext<'_>, id: SpanId, span: &[u8]| {
            if keys.insert((id, xxh3_64(span))) {
                writer.push(context, span);
                written += 1;
            }
        };
        store.visit(location, &mut write_new).unwrap();
        written
    };
    assert_eq!(read(), 3);
    assert_eq!(read(), 0);
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

pub(super) fn located(store: &BlockStore, name: &str, number: u64) -> Vec<FragmentLocation> {
    store
        .fragments(&tenant(name), ShardId(number as u16 % 8), trace(number))
        .unwrap()
}

pub(super) fn span_id(number: u64) -> SpanId {
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
