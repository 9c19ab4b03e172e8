//! The journal through its public face: what was committed is found, read, walked, trimmed, and survives.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use spandrel_model::ids::{Lsn, ShardId, Term, TraceId, UnixNanos};
use spandrel_storage::disk::{Disk, RealDisk, SimulatedDisk};
use spandrel_storage::journal::{
    EncodedFrame, FrameBuilder, FrameId, Journal, JournalError, JournalOptions,
};
use support::{NOW, Numbers, all, batch, dropped, interests, tenant};

const SECOND: u64 = UnixNanos::PER_SECOND;

fn open(dir: &Path, options: JournalOptions) -> Journal {
    let (journal, corrupt) =
        Journal::open(Arc::new(RealDisk), dir, options, UnixNanos(NOW)).unwrap();
    assert_eq!(corrupt, []);
    journal
}

/// One frame with one record of spans for each shard.
fn frame(numbers: &mut Numbers, records: &[(u16, u64)]) -> EncodedFrame {
    let mut builder = FrameBuilder::new(1).unwrap();
    for (shard, lsn) in records {
        let spans = batch(numbers, "default", 5);
        builder
            .push_spans(ShardId(*shard), Term(1), Lsn(*lsn), &spans, &all(&spans))
            .unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn committed_records_are_located_read_and_walked_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(1);
    let interests = interests();
    let first = batch(&mut numbers, "team-a", 40);
    let second = batch(&mut numbers, "team-b", 20);
    let half: Vec<u32> = (0..20).collect();

    // Given a frame of two shards' spans
    let mut builder = FrameBuilder::new(1).unwrap();
    builder
        .push_spans(ShardId(3), Term(2), Lsn(1), &first, &half)
        .unwrap();
    builder
        .push_spans(ShardId(9), Term(5), Lsn(77), &second, &all(&second))
        .unwrap();
    builder
        .push_spans(ShardId(3), Term(2), Lsn(2), &first, &half)
        .unwrap();
    let encoded = builder.finish().unwrap();
    assert!(builder.is_empty());
    let journal = open(dir.path(), JournalOptions::default());
    let ids = journal
        .commit(std::slice::from_ref(&encoded), UnixNanos(NOW))
        .unwrap();
    assert_eq!(ids, [FrameId(1)]);

    for journal in [journal, open(dir.path(), JournalOptions::default())] {
        // Then its records are found by shard and number, and no others
        assert_eq!(
            journal.locate(ShardId(3), Lsn(2)).unwrap(),
            Some(FrameId(1))
        );
        assert_eq!(
            journal.locate(ShardId(9), Lsn(77)).unwrap(),
            Some(FrameId(1))
        );
        assert_eq!(journal.locate(ShardId(9), Lsn(76)).unwrap(), None);
        assert_eq!(journal.locate(ShardId(4), Lsn(1)).unwrap(), None);
        assert_eq!(journal.last_lsn(ShardId(9)), Lsn(77));
        assert_eq!(journal.last_lsn(ShardId(8)), Lsn(0));
        assert_eq!(journal.covered_since(), UnixNanos(NOW));

        // And the spans are what they were
        let frame = journal.frame(FrameId(1)).unwrap();
        let record = frame.find(ShardId(9), Lsn(77)).unwrap();
        assert_eq!(frame.tenant(record), Some(&tenant("team-b")));
        assert_eq!(frame.received_at(record), Some(second.received_at));
        let mut seen = Vec::new();
        frame.visit_spans(record, &mut |context, trace, span| {
            seen.push((trace, span.to_vec(), context.resource.to_vec()));
        });
        let sent: Vec<_> = second
            .spans
            .iter()
            .map(|span| {
                let resource = second.bytes(second.context(span).resource);
                (
                    span.trace_id,
                    second.bytes(span.span).to_vec(),
                    resource.to_vec(),
                )
            })
            .collect();
        assert_eq!(seen, sent);
        let again = frame.batch(record, &interests).unwrap();
        assert_eq!(again.received_at, second.received_at);
        for (a, b) in again.spans.iter().zip(&second.spans) {
            assert_eq!(
                (a.trace_id, a.span_id, a.hash),
                (b.trace_id, b.span_id, b.hash)
            );
            assert_eq!(
                again.text(again.context(a).service),
                second.text(second.context(b).service)
            );
        }

        // And the walk gives the frame once
        let walked: Vec<_> = journal.walk(None).map(|item| item.unwrap().0).collect();
        assert_eq!(walked, [FrameId(1)]);
        assert!(matches!(
            journal.frame(FrameId(2)),
            Err(JournalError::Gone { .. })
        ));
        drop(journal);
    }
}

/// A journal of five slices: shard 1 has number n in slice n, shard 2 number 1 in the second.
fn five_slices(dir: &Path) -> Journal {
    let mut numbers = Numbers(2);
    let options = JournalOptions {
        slice_nanos: SECOND,
        ..JournalOptions::default()
    };
    let journal = open(dir, options);
    for n in 1..=5 {
        let records: &[_] = match n {
            2 => &[(1, n), (2, 1)],
            _ => &[(1, n)],
        };
        let now = UnixNanos(NOW + n * SECOND);
        journal
            .commit(&[frame(&mut numbers, records)], now)
            .unwrap();
        journal.maintain(now).unwrap();
    }
    assert_eq!(journal.slices().len(), 5);
    journal
}

#[test]
fn trimming_takes_whole_old_slices_and_nothing_that_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = five_slices(dir.path());
    let now = UnixNanos(NOW + 100 * SECOND);
    let trim = |journal: &Journal, first: u64, second: u64, window_s: u64, max_bytes: u64| {
        let needed = |shard: ShardId| Lsn(if shard == ShardId(1) { first } else { second });
        let trimmed = journal
            .trim(&needed, window_s * SECOND, max_bytes, now)
            .unwrap();
        trimmed
            .into_iter()
            .map(|slice| slice.id)
            .collect::<Vec<_>>()
    };
    let ids: Vec<u64> = journal.slices().iter().map(|slice| slice.id).collect();

    // Needed from the start, or too young and not too many: nothing goes
    assert_eq!(trim(&journal, 1, 1, 0, 0), [0_u64; 0]);
    assert_eq!(trim(&journal, 9, 9, 1_000, u64::MAX), [0_u64; 0]);
    // Shard 2 still needs its first record: only the slice before it goes, whatever the bound
    assert_eq!(trim(&journal, 9, 1, 1_000, 0), ids[..1]);
    assert_eq!(journal.covered_since(), UnixNanos(NOW + 2 * SECOND));
    // The window keeps what is younger
    assert_eq!(trim(&journal, 9, 9, 97, u64::MAX), ids[1..3]);
    // The bound shortens the window; the open slice stays
    assert_eq!(trim(&journal, 9, 9, 1_000, 0), ids[3..4]);
    assert_eq!(trim(&journal, 9, 9, 0, 0), [0_u64; 0]);

    for journal in [journal, five_slices_again(dir.path())] {
        assert!(matches!(
            journal.frame(FrameId(1)),
            Err(JournalError::Gone { .. })
        ));
        assert_eq!(journal.locate(ShardId(1), Lsn(4)).unwrap(), None);
        assert!(journal.locate(ShardId(1), Lsn(5)).unwrap().is_some());
        // What was trimmed still counts for numbering
        assert_eq!(journal.last_lsn(ShardId(2)), Lsn(1));
        assert_eq!(journal.frames_after(None), [FrameId(5)]);
        assert!(journal.bytes_on_disk() > 0);
        drop(journal);
    }
}

fn five_slices_again(dir: &Path) -> Journal {
    open(dir, JournalOptions::default())
}

#[test]
fn a_bound_takes_only_what_is_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = five_slices(dir.path());
    let slices = journal.slices();
    let bound = journal.bytes_on_disk() - 1;
    let trimmed = journal
        .trim(&|_| Lsn(99), u64::MAX, bound, UnixNanos(NOW))
        .unwrap();
    assert_eq!(trimmed.len(), 1);
    assert_eq!(trimmed[0].id, slices[0].id);
}

#[test]
fn a_reader_keeps_its_slice_while_it_is_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = five_slices(dir.path());
    let mut walk = journal.walk(None);
    assert_eq!(walk.next().unwrap().unwrap().0, FrameId(1));
    journal
        .trim(&|_| Lsn(99), 0, 0, UnixNanos(NOW + 100 * SECOND))
        .unwrap();
    // Trimmed frames are passed over, the rest comes
    let rest: Vec<_> = walk.map(|item| item.unwrap().0).collect();
    assert_eq!(rest, [FrameId(5)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever happens to the slices, no verdict is denied and the newest one is found.
    #[test]
    fn every_verdict_is_found_while_its_slice_is_held(
        steps in vec((0..6_u8, 0..4_u16, 0..12_u8), 1..60),
    ) {
        let disk = SimulatedDisk::new(1);
        let options = JournalOptions { slice_bytes: 600, hash_seed: 5, ..JournalOptions::default() };
        let open = |disk: &SimulatedDisk, seed| {
            let options = JournalOptions { hash_seed: seed, ..options.clone() };
            let disk: Arc<dyn Disk> = Arc::new(disk.clone());
            Journal::open(disk, Path::new("/journal"), options, UnixNanos(NOW)).unwrap().0
        };
        let mut journal = open(&disk, 5);
        let mut numbers = Numbers(4);
        let mut builder = FrameBuilder::new(1).unwrap();
        let mut newest = BTreeMap::new();
        let mut lsns = BTreeMap::<u16, u64>::new();
        for (step, shard, trace) in steps {
            match step {
                0 => journal.maintain(UnixNanos(NOW)).unwrap(),
                1 => {
                    drop(journal);
                    // A changed secret must not hide what older slices hold.
                    journal = open(&disk, u64::from(trace));
                }
                _ => {
                    let lsn = lsns.entry(shard).or_default();
                    *lsn += 1;
                    let mut verdict = dropped(&mut numbers, "default", *lsn);
                    verdict.trace_id = TraceId([trace + 1; 16]);
                    let verdicts = [verdict.clone(), dropped(&mut numbers, "team-b", *lsn)];
                    builder.push_verdicts(ShardId(shard), Term(1), Lsn(*lsn), &verdicts).unwrap();
                    journal.commit(&[builder.finish().unwrap()], UnixNanos(NOW)).unwrap();
                    for verdict in verdicts {
                        newest.insert((shard, verdict.tenant.clone(), verdict.trace_id), verdict);
                    }
                }
            }
        }
        for ((shard, tenant, trace), verdict) in &newest {
            prop_assert!(journal.maybe_decided(ShardId(*shard), tenant, *trace));
            let found = journal.verdict(ShardId(*shard), tenant, *trace).unwrap();
            prop_assert_eq!(found.as_ref(), Some(verdict));
        }
    }
}

#[test]
fn who_share_a_walk_get_every_frame_once_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let journal = five_slices(dir.path());
    let share = |number| {
        let frames = journal.walk(None).share(number, 2);
        frames.map(|item| item.unwrap().0).collect::<Vec<_>>()
    };
    let whole: Vec<_> = journal.walk(None).map(|item| item.unwrap().0).collect();
    let dealt = |number: usize| whole.iter().skip(number).step_by(2).copied();
    assert!(whole.len() > 3);
    assert_eq!(share(0), dealt(0).collect::<Vec<_>>());
    assert_eq!(share(1), dealt(1).collect::<Vec<_>>());
}

#[test]
fn a_walk_over_verdicts_reads_no_other_frames() {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(3);
    let journal = open(dir.path(), JournalOptions::default());
    let mut builder = FrameBuilder::new(1).unwrap();
    let mut decided = |lsn| {
        let verdicts = [dropped(&mut numbers, "default", 1)];
        builder
            .push_verdicts(ShardId(0), Term(1), Lsn(lsn), &verdicts)
            .unwrap();
        builder.finish().unwrap()
    };
    let (second, fourth) = (decided(2), decided(4));
    let frames = [
        frame(&mut numbers, &[(0, 1)]),
        second,
        frame(&mut numbers, &[(0, 3)]),
        fourth,
    ];
    journal.commit(&frames, UnixNanos(NOW)).unwrap();
    let walked: Vec<_> = journal
        .walk_verdicts(None)
        .map(|item| item.unwrap().0)
        .collect();
    assert_eq!(walked, [FrameId(2), FrameId(4)]);
    let back = journal.walk_verdicts_back();
    let back: Vec<_> = back.map(|item| item.unwrap().0).collect();
    assert_eq!(back, [FrameId(4), FrameId(2)]);
}

#[test]
fn a_walk_back_is_a_walk_over_the_slices_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(3);
    let options = JournalOptions {
        slice_nanos: SECOND,
        ..JournalOptions::default()
    };
    let journal = open(dir.path(), options);
    let mut builder = FrameBuilder::new(1).unwrap();
    for lsn in 1..=7 {
        let verdicts = [dropped(&mut numbers, "default", 1)];
        builder
            .push_verdicts(ShardId(0), Term(1), Lsn(lsn), &verdicts)
            .unwrap();
        let now = UnixNanos(NOW + lsn * SECOND / 2);
        journal.commit(&[builder.finish().unwrap()], now).unwrap();
    }
    assert!(journal.slices().len() > 2);
    let mut walked: Vec<_> = journal
        .walk_verdicts(None)
        .map(|item| item.unwrap().0)
        .collect();
    let back = journal.walk_verdicts_back();
    walked.reverse();
    assert_eq!(walked.len(), 7);
    assert_eq!(back.map(|item| item.unwrap().0).collect::<Vec<_>>(), walked);
}
