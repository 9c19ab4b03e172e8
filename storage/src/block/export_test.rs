#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use spandrel_model::ids::{Bucket, Lsn, NodeId, ShardId, SpanId};
use spandrel_model::otlp::RawContext;

use super::block_test::{open, page, summary, tenant, trace};
use super::*;
use crate::disk::SimulatedDisk;
use crate::page::FragmentHead;

const BUCKET: Bucket = Bucket(7);

fn write(name: &str, numbers: std::ops::Range<u64>) -> BlockWrite {
    let tenant = tenant(name);
    BlockWrite {
        bucket: BUCKET,
        pages: vec![page(numbers.clone())],
        summaries: numbers.map(|number| summary(number, 7, &tenant)).collect(),
        tenant,
    }
}

/// Copies the fragments of shards 1 and 3 from one store to another; answers with the number of parts.
fn copy(from: &BlockStore, to: &BlockStore) -> usize {
    let wanted = |head: &FragmentHead| [ShardId(1), ShardId(3)].contains(&head.shard);
    let (mut after, mut parts) = (PagePlace::default(), 0);
    loop {
        let part = from.export(BUCKET, &wanted, NodeId(5), after).unwrap();
        if let Some(write) = part.write {
            let packed = write.pack().unwrap();
            to.commit(&BlockWrite::unpack(&packed).unwrap()).unwrap();
            parts += 1;
        }
        match part.next {
            Some(next) => after = next,
            None => return parts,
        }
    }
}

fn span_ids(store: &BlockStore, name: &str, number: u64) -> BTreeSet<SpanId> {
    let shard = ShardId(u16::try_from(number % 8).unwrap());
    let mut found = BTreeSet::new();
    for location in store
        .fragments(&tenant(name), shard, trace(number))
        .unwrap()
    {
        let mut note = |_: &RawContext<'_>, id, _: &[u8]| {
            found.insert(id);
        };
        store.visit(&location, &mut note).unwrap();
    }
    found
}

#[test]
fn another_block_gets_the_fragments_of_some_shards_with_their_summaries() {
    let (source, target) = (SimulatedDisk::new(1), SimulatedDisk::new(2));
    let (source, target) = (open(&source, 1), open(&target, 1));
    for (name, numbers) in [("a", 0..40), ("b", 40..60), ("a", 60..90)] {
        source.commit(&write(name, numbers)).unwrap();
    }
    target.commit(&write("b", 41..42)).unwrap();
    assert!(copy(&source, &target) >= 2, "one part a tenant at least");
    for number in 0..90 {
        let name = if (40..60).contains(&number) { "b" } else { "a" };
        let copied = [1, 3].contains(&(number % 8));
        let spans = span_ids(&target, name, number);
        assert_eq!(spans.len(), if copied { 3 } else { 0 }, "trace {number}");
        let shard = ShardId(u16::try_from(number % 8).unwrap());
        let found = target
            .summary_of(&tenant(name), shard, trace(number))
            .unwrap();
        assert_eq!(found.map(|found| found.span_count), copied.then_some(3));
    }
    // what was there already under its own number is there beside its copy
    let own = target
        .fragments(&tenant("b"), ShardId(1), trace(41))
        .unwrap();
    assert_eq!(own.len(), 2);
    // copied again, also after a seal of the source, nothing changes
    let before = target.buckets().unwrap()[0].spans;
    copy(&source, &target);
    source.seal(BUCKET).unwrap();
    copy(&source, &target);
    assert_eq!(target.buckets().unwrap()[0].spans, before);
    // and a copy of the copy has the same numbers
    let third = SimulatedDisk::new(3);
    let third = open(&third, 1);
    copy(&target, &third);
    let numbers = |store: &BlockStore| -> Vec<Lsn> {
        let found = store.fragments(&tenant("a"), ShardId(1), trace(1)).unwrap();
        found.iter().map(|found| found.fragment).collect()
    };
    assert_eq!(numbers(&third), numbers(&target));
}

#[test]
fn no_block_has_nothing_to_give() {
    let store = SimulatedDisk::new(1);
    let store = open(&store, 1);
    let first = PagePlace::default();
    let part = store.export(BUCKET, &|_| true, NodeId(5), first).unwrap();
    assert!(part.write.is_none() && part.next.is_none());
    // but one that is gone in the middle of a copy
    let later = PagePlace { tenant: 0, page: 3 };
    assert!(store.export(BUCKET, &|_| true, NodeId(5), later).is_err());
}

proptest! {
    #[test]
    fn what_is_not_a_packed_write_is_refused(at in any::<proptest::sample::Index>(), bit in 0..8u8, cut in any::<bool>()) {
        let packed = write("a", 0..5).pack().unwrap();
        let unpacked = BlockWrite::unpack(&packed).unwrap();
        prop_assert_eq!((unpacked.pages, unpacked.summaries), (write("a", 0..5).pages, write("a", 0..5).summaries));
        let mut bytes = packed.to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at); } else { bytes[at] ^= 1 << bit; }
        prop_assert!(BlockWrite::unpack(&bytes.into()).is_err());
    }
}
