//! Records that do not count, and looking for the records around a number: in open slices, in sealed ones, and after the
//! journal was opened again.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;

use spandrel_model::ids::{Lsn, ShardId, Term, UnixNanos};
use spandrel_storage::disk::RealDisk;
use spandrel_storage::journal::{EncodedFrame, FrameBuilder, FrameId, Journal, JournalOptions};
use support::{NOW, Numbers, all, batch};

const SHARD: ShardId = ShardId(3);
const OTHER: ShardId = ShardId(4);

fn open(dir: &Path) -> Journal {
    // Each frame fills a slice, which is sealed as soon as the next one is there.
    let options = JournalOptions {
        slice_bytes: 1,
        ..JournalOptions::default()
    };
    let opened = Journal::open(Arc::new(RealDisk), dir, options, UnixNanos(NOW));
    let (journal, corrupt) = opened.unwrap();
    assert_eq!(corrupt, []);
    journal
}

fn frame(records: &[(ShardId, Lsn)]) -> EncodedFrame {
    let mut builder = FrameBuilder::new(1).unwrap();
    let mut numbers = Numbers(7);
    for (shard, lsn) in records {
        let spans = batch(&mut numbers, "default", 2);
        let pushed = builder.push_spans(*shard, lsn.term(), *lsn, &spans, &all(&spans));
        pushed.unwrap();
    }
    builder.finish().unwrap()
}

fn of(term: u64, record: u64) -> Lsn {
    Lsn(Lsn::before_term(Term(term)).0 + record)
}

/// Commits frames of the shard's records in these ranges.
fn commit(journal: &Journal, ranges: &[(Lsn, Lsn)]) {
    for (first, last) in ranges {
        let records: Vec<(ShardId, Lsn)> =
            (first.0..=last.0).map(|lsn| (SHARD, Lsn(lsn))).collect();
        journal.commit(&[frame(&records)], UnixNanos(NOW)).unwrap();
    }
}

/// Runs `check` on a journal while its slices are open, when they are sealed, and after each of these when it was opened
/// again.
fn in_every_state(make: impl Fn(&Journal), check: impl Fn(&Journal)) {
    for maintained in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path());
        make(&journal);
        if maintained {
            journal.maintain(UnixNanos(NOW)).unwrap();
        }
        check(&journal);
        drop(journal);
        check(&open(dir.path()));
    }
}

#[test]
fn the_records_around_a_number_are_found_across_frames_slices_and_terms() {
    let make = |journal: &Journal| {
        commit(
            journal,
            &[
                (of(1, 5), of(1, 7)),
                (of(1, 8), of(1, 8)),
                (of(3, 1), of(3, 2)),
            ],
        );
        journal
            .commit(&[frame(&[(OTHER, of(1, 1))])], UnixNanos(NOW))
            .unwrap();
    };
    in_every_state(make, |journal| {
        let from = |lsn| journal.locate_from(SHARD, lsn).unwrap();
        assert_eq!(from(of(1, 1)), Some((of(1, 5), FrameId(1))));
        assert_eq!(from(of(1, 6)), Some((of(1, 6), FrameId(1))));
        assert_eq!(from(of(1, 8)), Some((of(1, 8), FrameId(2))));
        assert_eq!(
            from(of(1, 9)),
            Some((of(3, 1), FrameId(3))),
            "the next term"
        );
        assert_eq!(from(of(3, 3)), None);
        assert_eq!(journal.locate_from(ShardId(9), of(1, 1)).unwrap(), None);

        let floor = |lsn| journal.floor(SHARD, lsn).unwrap();
        assert_eq!(floor(of(1, 4)), None);
        assert_eq!(floor(of(1, 6)), Some(of(1, 6)));
        assert_eq!(floor(of(2, 9)), Some(of(1, 8)));
        assert_eq!(floor(of(9, 9)), Some(of(3, 2)));
        assert_eq!(journal.last_valid(SHARD), of(3, 2));
        assert_eq!(journal.last_valid(OTHER), of(1, 1));
        assert_eq!(journal.last_valid(ShardId(9)), Lsn(0));
    });
}

#[test]
fn void_records_are_passed_over_for_good_and_later_ones_are_not() {
    let make = |journal: &Journal| {
        commit(journal, &[(of(1, 1), of(1, 9))]);
        journal
            .commit(&[frame(&[(OTHER, of(1, 7))])], UnixNanos(NOW))
            .unwrap();
        journal.void_after(SHARD, of(1, 6), of(1, 9)).unwrap();
        // Nothing lies behind it: nothing is noted.
        journal.void_after(OTHER, of(1, 7), of(1, 7)).unwrap();
        commit(journal, &[(of(2, 1), of(2, 3))]);
        journal.void_after(SHARD, of(2, 2), of(2, 3)).unwrap();
    };
    in_every_state(make, |journal| {
        let void = (1..=9).filter(|record| journal.is_void(SHARD, of(1, *record)));
        assert_eq!(void.collect::<Vec<_>>(), [7, 8, 9]);
        assert!(!journal.is_void(SHARD, of(2, 2)) && journal.is_void(SHARD, of(2, 3)));
        assert!(!journal.is_void(OTHER, of(1, 7)));
        assert_eq!(journal.locate(SHARD, of(1, 7)).unwrap(), None);
        assert_eq!(journal.floor(SHARD, of(1, 9)).unwrap(), Some(of(1, 6)));
        assert_eq!(journal.last_lsn(SHARD), of(2, 3));
        assert_eq!(journal.last_valid(SHARD), of(2, 2));
    });
}

#[test]
fn a_record_that_is_committed_again_counts_again() {
    // A follower had records of a primary that its next one did not have, and they were void; the primary after that one
    // had them, and sent them again: what the follower then answered for as durable was passed over after a restart.
    let make = |journal: &Journal| {
        commit(journal, &[(of(1, 1), of(1, 9))]);
        journal.void_after(SHARD, of(1, 4), of(1, 9)).unwrap();
        commit(journal, &[(of(1, 5), of(1, 6))]);
    };
    in_every_state(make, |journal| {
        let void = (1..=9).filter(|record| journal.is_void(SHARD, of(1, *record)));
        assert_eq!(void.collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(journal.last_valid(SHARD), of(1, 6));
        assert!(journal.locate(SHARD, of(1, 5)).unwrap().is_some());
        assert_eq!(journal.floor(SHARD, of(1, 9)).unwrap(), Some(of(1, 6)));
    });
}

#[test]
fn a_void_ends_where_it_was_declared_to_end() {
    // A node began to void while it became the primary itself: its own first records, which came meanwhile, counted.
    let make = |journal: &Journal| {
        commit(journal, &[(of(1, 1), of(1, 9)), (of(2, 1), of(2, 4))]);
        journal.void_after(SHARD, of(1, 6), of(1, 9)).unwrap();
    };
    in_every_state(make, |journal| {
        assert!(!(1..=4).any(|record| journal.is_void(SHARD, of(2, record))));
        assert_eq!(journal.last_valid(SHARD), of(2, 4));
    });
}
