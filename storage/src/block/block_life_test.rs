//! Blocks over their life: written twice, sealed, expired, damaged, reopened.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::path::Path;
use std::sync::Arc;

use spandrel_model::ids::{Bucket, NodeId, ShardId, UnixNanos};
use spandrel_model::search::SpanCondition;
use spandrel_model::summary::TraceSummary;

use super::block_test::*;
use super::*;
use crate::disk::{Disk, RealDisk, SimulatedDisk};
use crate::page::ValueKind;
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

/// A block file had rotted. What was kept in its bucket from then on waited for ever for its page, and replicas that were
/// filled waited for that: the shards took no spans any more. (`replay 16`)
#[test]
fn a_damaged_file_is_set_aside_for_a_new_one_and_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        || BlockStore::open(Arc::new(RealDisk), dir.path(), BlockOptions::default()).unwrap();
    open().commit(&write(2, "a", 0..5)).unwrap();
    std::fs::write(dir.path().join("bucket-2.block"), b"not a database").unwrap();
    let store = open();
    assert!(matches!(
        store.view(Bucket(2)),
        Err(BlockError::Unopenable { .. })
    ));

    store.commit(&write(2, "a", 5..9)).unwrap();

    for store in [store, open()] {
        assert_eq!(store.unopenable(), [Bucket(2)]);
        let blocks = store.buckets().unwrap();
        let opens: Vec<bool> = blocks
            .iter()
            .map(|info| info.unopenable.is_none())
            .collect();
        assert_eq!(opens, [true, false]);
        assert_eq!(fetch(&store, "a", 6).len(), 3);
    }
    let expired = open().expire(Bucket(4)).unwrap();
    assert_eq!(expired.len(), 2);
    assert_eq!(RealDisk.list(dir.path()).unwrap().len(), 0);
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

#[test]
fn a_restated_summary_stands_for_its_fragment_from_then_on() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..40)).unwrap();
    store.commit(&write(6, "a", 40..50)).unwrap();
    let name = tenant("a");
    let of = |store: &BlockStore, number: u64| {
        let shard = ShardId(number as u16 % 8);
        store
            .summary_of(&name, shard, trace(number))
            .unwrap()
            .unwrap()
    };
    let restated = |number: u64| TraceSummary {
        span_count: 9,
        ..summary(number, 5, &name)
    };
    // when: two of them are restated, after a seal that stored a filter
    store.seal(Bucket(5)).unwrap();
    let sequences = store
        .restate(Bucket(5), &name, &[restated(3), restated(11)])
        .unwrap();
    // then: they come behind the others, and stand for their traces, whatever happens to the file
    assert_eq!(sequences, 41..43);
    store.commit(&write(5, "a", 50..52)).unwrap();
    store.seal(Bucket(5)).unwrap();
    for store in [store, open(&disk, 2)] {
        assert_eq!(of(&store, 3), restated(3));
        assert_eq!(of(&store, 11), restated(11));
        assert_eq!(of(&store, 4).span_count, 3);
        let last = store.summaries(Bucket(5), 40, 9).unwrap();
        let last: Vec<u64> = last.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(last, [41, 42, 43, 44]);
        assert_eq!(fetch(&store, "a", 3), spans(3));
    }
    // and: nothing is restated that the block does not have
    let store = open(&disk, 3);
    assert!(
        store
            .restate(Bucket(5), &name, &[restated(3), restated(45)])
            .is_err()
    );
    assert_eq!(store.summaries(Bucket(5), 44, 9).unwrap(), []);
}

/// Whatever byte of a file rots, what is asked of the block is answered or refused.
#[test]
fn a_flipped_byte_is_an_error_and_no_panic() {
    let disk = SimulatedDisk::new(1);
    let store = open(&disk, 1);
    store.commit(&write(5, "a", 0..40)).unwrap();
    store.commit(&write(5, "b", 0..10)).unwrap();
    drop(store);
    let image = disk.image();
    let path = Path::new(DIR).join("bucket-5.block");
    let length = disk.len_of(&path).unwrap();
    for offset in (0..length).step_by(41) {
        disk.restore(&image);
        assert!(disk.flip(&path, offset, 1 << (offset % 8)));
        let store = open(&disk, 2);
        for (name, number) in [("a", 0), ("a", 17), ("b", 1)] {
            let (tenant, shard) = (tenant(name), ShardId(number as u16 % 8));
            let found = store.fragments(&tenant, shard, trace(number));
            for location in found.unwrap_or_default() {
                drop(store.visit(&location, &mut |_, _, _| {}));
            }
            drop(store.summary_of(&tenant, shard, trace(number)));
            drop(store.attribute_keys(Bucket(5), &tenant));
        }
        drop(store.summaries(Bucket(5), 0, 100));
        drop(store.export(Bucket(5), &|_| true, NodeId(5), PagePlace::default()));
        // Closing it writes, and a damaged list of free pages ends the process: docs/testing.md.
        std::mem::forget(store);
    }
}
