#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;

use spandrel_model::ids::{Bucket, Lsn, NodeId, ShardId, TraceId};

use super::block_test::{DIR, open, page, summary, tenant, trace};
use super::*;
use crate::disk::{Disk, SimulatedDisk};

const BUCKET: Bucket = Bucket(7);
const SHARDS: u64 = 8;

fn write(name: &str, numbers: impl IntoIterator<Item = u64>) -> BlockWrite {
    let tenant = tenant(name);
    let numbers: Vec<u64> = numbers.into_iter().collect();
    BlockWrite {
        bucket: BUCKET,
        pages: vec![page(numbers.iter().copied())],
        summaries: numbers
            .into_iter()
            .map(|number| summary(number, 7, &tenant))
            .collect(),
        tenant,
    }
}

fn inventory(store: &BlockStore) -> Inventory {
    let (mut inventory, mut after) = (Inventory::default(), PagePlace::default());
    loop {
        match store.count_spans(BUCKET, after, &mut inventory) {
            Ok(Some(next)) => after = next,
            done => {
                done.unwrap();
                return inventory;
            }
        }
    }
}

fn shard(number: u64) -> ShardId {
    ShardId(u16::try_from(number % SHARDS).unwrap())
}

/// Slices of the first in which they differ.
fn differing(one: &Inventory, other: &Inventory) -> Vec<Slice> {
    let all: BTreeSet<&Slice> = one.tallies.keys().chain(other.tallies.keys()).collect();
    let differs = |slice: &&Slice| one.tallies.get(slice) != other.tallies.get(slice);
    all.into_iter().filter(differs).cloned().collect()
}

#[test]
fn blocks_with_the_same_spans_have_the_same_inventory_however_they_are_stored() {
    let (first, second) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (first, second) = (open(&first, 1), open(&second, 1));
    for (name, numbers) in [("a", 0..300), ("b", 300..320)] {
        first.commit(&write(name, numbers)).unwrap();
    }
    second.commit(&write("b", (300..320).rev())).unwrap();
    for start in (0..300).rev().step_by(7) {
        let numbers = (start.max(6) - 6..=start).rev();
        second.commit(&write("a", numbers)).unwrap();
    }
    let whole = inventory(&first);
    assert_eq!((whole.spans_read, whole.damaged.len()), (960, 0));
    assert_eq!(whole.tallies, inventory(&second).tallies);
    // A seal changes where they are, not what they are; a copy of some counts once.
    second.seal(BUCKET).unwrap();
    let of_second = (&tenant("a"), shard(9));
    let traces = BTreeSet::from([trace(9), trace(17)]);
    let part = first.export_traces(BUCKET, of_second, &traces, NodeId(5), PagePlace::default());
    second.commit(&part.unwrap().write.unwrap()).unwrap();
    let copied = second.fragments(&tenant("a"), shard(9), trace(9)).unwrap();
    assert_eq!(copied.len(), 2);
    assert_eq!(whole.tallies, inventory(&second).tallies);
}

#[test]
fn a_difference_is_found_in_its_slice_and_mended_by_the_traces_in_it() {
    let (first, second) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (first, second) = (open(&first, 1), open(&second, 1));
    first.commit(&write("a", 0..300)).unwrap();
    let lacks = [13, 78];
    let has = (0..300).filter(|number| !lacks.contains(number));
    second.commit(&write("a", has)).unwrap();
    let slices = differing(&inventory(&first), &inventory(&second));
    assert_eq!(slices.len(), 2);
    for (slice, lacked) in slices.iter().zip(lacks) {
        assert_eq!(
            (slice.shard, slice.number),
            (shard(lacked), Slice::number_of(trace(lacked)))
        );
        // Read in portions, ascending.
        let (mut after, mut theirs) = (None, Vec::new());
        loop {
            let some = first.traces_of(BUCKET, slice, after, 1).unwrap();
            let Some((last, _)) = some.last() else { break };
            after = Some(*last);
            theirs.extend(some);
        }
        let all = first.traces_of(BUCKET, slice, None, 1_000).unwrap();
        assert_eq!(theirs, all);
        let own = second.traces_of(BUCKET, slice, None, 1_000).unwrap();
        let lacking = theirs.iter().filter(|one| !own.contains(one));
        let lacking: BTreeSet<TraceId> = lacking.map(|(trace, _)| *trace).collect();
        assert_eq!(lacking, BTreeSet::from([trace(lacked)]));
        let of = (&slice.tenant, slice.shard);
        let part = first.export_traces(BUCKET, of, &lacking, NodeId(5), PagePlace::default());
        let part = part.unwrap();
        assert!(part.next.is_none());
        second.commit(&part.write.unwrap()).unwrap();
    }
    assert_eq!(inventory(&first).tallies, inventory(&second).tallies);
}

/// Lets the page with these traces rot in the middle, as it is stored.
fn rot(disk: &SimulatedDisk, numbers: std::ops::Range<u64>) {
    let stored = page(numbers).bytes;
    let path = Path::new(DIR).join("bucket-7.block");
    let middle = &stored[stored.len() / 2..][..24];
    let at = offset_of(disk, &path, middle);
    assert!(disk.flip(&path, at, 1));
}

/// What a block has of these traces, for another one.
fn given(store: &BlockStore, numbers: std::ops::Range<u64>) -> Vec<BlockWrite> {
    let mut writes = Vec::new();
    for of in 0..SHARDS {
        let traces = numbers.clone().filter(|number| shard(*number) == shard(of));
        let traces: BTreeSet<TraceId> = traces.map(trace).collect();
        let of = (&tenant("a"), shard(of));
        let part = store.export_traces(BUCKET, of, &traces, NodeId(5), PagePlace::default());
        writes.extend(part.unwrap().write);
    }
    writes
}

#[test]
fn a_rotten_page_is_told_and_goes_when_all_that_was_on_it_is_elsewhere() {
    let (first, disk) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (first, second) = (open(&first, 1), open(&disk, 1));
    for store in [&first, &second] {
        for numbers in [0..100, 100..200, 200..300] {
            store.commit(&write("a", numbers)).unwrap();
        }
    }
    let whole = inventory(&first);
    let place = PagePlace { tenant: 0, page: 2 };
    assert!(
        !second.forget_page(BUCKET, place).unwrap(),
        "it can be read"
    );
    drop(second);
    rot(&disk, 100..200);
    let second = open(&disk, 2);
    let rotten = inventory(&second);
    assert_eq!(rotten.damaged, BTreeSet::from([place]));
    assert_eq!(rotten.spans_read, 600);
    // All but one of its traces: it stays, though the count of that one is not known any more.
    for write in given(&first, 101..200) {
        second.commit(&write).unwrap();
    }
    assert!(!second.forget_page(BUCKET, place).unwrap());
    let nearly = inventory(&second);
    assert_eq!((nearly.spans_read, nearly.damaged.len()), (897, 1));
    for write in given(&first, 100..101) {
        second.commit(&write).unwrap();
    }
    assert_eq!(inventory(&second).tallies, whole.tallies);
    assert!(second.forget_page(BUCKET, place).unwrap());
    assert_eq!(inventory(&second), whole);
    assert_eq!(second.buckets().unwrap()[0].spans, 900);
    // And the block is whole after a start and a seal.
    drop(second);
    let second = open(&disk, 3);
    second.seal(BUCKET).unwrap();
    assert_eq!(inventory(&second), whole);
    let found = second
        .fragments(&tenant("a"), shard(150), trace(150))
        .unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].fragment, Lsn(151).copied_from(NodeId(5)).unwrap());
    let summary = second
        .summary_of(&tenant("a"), shard(150), trace(150))
        .unwrap();
    assert_eq!(summary.unwrap().span_count, 3);
}

/// A copy has the same number each time it comes: it could not take the place of one that has rotted.
#[test]
fn a_copy_takes_the_place_of_one_that_cannot_be_read() {
    let (first, disk) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (first, second) = (open(&first, 1), open(&disk, 1));
    first.commit(&write("a", 0..40)).unwrap();
    let whole = inventory(&first);
    let copies = given(&first, 0..40);
    assert_eq!(copies.len(), 8);
    for write in &copies {
        second.commit(write).unwrap();
    }
    let before = second.buckets().unwrap()[0].spans;
    drop(second);
    let path = Path::new(DIR).join("bucket-7.block");
    let stored = &copies[3].pages[0].bytes;
    let middle = &stored[stored.len() / 2..][..24];
    let at = offset_of(&disk, &path, middle);
    assert!(disk.flip(&path, at, 1));
    let second = open(&disk, 2);
    let rotten = inventory(&second);
    assert_eq!((rotten.damaged.len(), rotten.spans_read), (1, 105));
    second.commit(&copies[3]).unwrap();
    assert_eq!(inventory(&second), rotten, "it is known already");
    second
        .commit_over(&copies[3], &rotten.damaged_pages())
        .unwrap();
    let place = *rotten.damaged.first().unwrap();
    assert!(second.forget_page(BUCKET, place).unwrap());
    assert_eq!(inventory(&second), whole);
    assert_eq!(second.buckets().unwrap()[0].spans, before);
    for number in (3..40).step_by(8) {
        let summary = second.summary_of(&tenant("a"), shard(number), trace(number));
        assert_eq!(summary.unwrap().unwrap().span_count, 3);
    }
}

#[test]
fn a_rotten_resource_is_replaced_by_the_next_page_that_names_it() {
    let (first, disk) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (first, second) = (open(&first, 1), open(&disk, 1));
    for store in [&first, &second] {
        store.commit(&write("a", 0..9)).unwrap();
    }
    let whole = inventory(&first);
    drop(second);
    let path = Path::new(DIR).join("bucket-7.block");
    let resource = &page(0..9).contexts[0].bytes;
    let at = offset_of(&disk, &path, resource) + resource.len() as u64 / 2;
    assert!(disk.flip(&path, at, 1));
    let second = open(&disk, 2);
    let rotten = inventory(&second);
    assert_eq!((rotten.damaged.len(), rotten.spans_read), (1, 18));
    for write in given(&first, 0..9) {
        second.commit(&write).unwrap();
    }
    assert_eq!(inventory(&second), whole);
}

/// Where some bytes are in a file.
fn offset_of(disk: &SimulatedDisk, path: &Path, wanted: &[u8]) -> u64 {
    let bytes = disk.read(path).unwrap();
    let mut found = bytes.windows(wanted.len()).zip(0..);
    found.find(|(window, _)| *window == wanted).unwrap().1
}
