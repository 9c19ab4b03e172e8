//! The journal on a disk that loses what was not synced, fails, and rots.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::path::Path;

use smallvec::smallvec;
use spandrel_model::ids::{Lsn, ShardId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::disk::{Disk, SimulatedDisk};
use spandrel_storage::journal::{FrameBuilder, FrameId, JournalError};
use support::workload::{
    Acknowledged, DIR, check, find, next_frame, open, open_with_damage, slice_files, work,
};
use support::{NOW, Numbers, all, batch, dropped, tenant};

/// Four power losses, some of them while recovering.
fn crash_run(seed: u64) {
    let disk = SimulatedDisk::new(seed);
    let mut numbers = Numbers(seed ^ 0xabcd);
    let mut known = Acknowledged::default();
    for _ in 0..4 {
        disk.fail_power_after(1 + numbers.below(300));
        if let Ok(journal) = open(&disk) {
            check(&journal, &mut known);
            let _ = work(&journal, &mut numbers, &mut known);
        }
        disk.power_loss();
    }
    let journal = open(&disk).unwrap();
    check(&journal, &mut known);
    // And it goes on from there.
    work(&journal, &mut numbers, &mut known).unwrap();
    drop(journal);
    check(&open(&disk).unwrap(), &mut known);
}

#[test]
fn nothing_acknowledged_is_lost_in_200_runs_of_power_losses() {
    (0..200).for_each(crash_run);
}

#[test]
fn a_failed_sync_ends_all_commits_and_recovery_finds_what_was_acknowledged() {
    let disk = SimulatedDisk::new(5);
    let mut numbers = Numbers(5);
    let mut known = Acknowledged::default();
    let journal = open(&disk).unwrap();
    work(&journal, &mut numbers, &mut known).unwrap();

    // When a sync fails during a commit
    disk.fail_sync(1);
    let (frame, _) = next_frame(&mut numbers, &mut known.last.clone());
    let frame = std::slice::from_ref(&frame);
    assert!(journal.commit(frame, UnixNanos(NOW)).is_err());

    // Then no later commit is tried, although the disk works again
    let again = journal.commit(frame, UnixNanos(NOW));
    assert!(
        matches!(again, Err(JournalError::Poisoned { .. })),
        "{again:?}"
    );
    assert!(journal.maintain(UnixNanos(NOW)).is_err());

    // And the next start is whole
    drop(journal);
    disk.power_loss();
    known.in_flight.clone_from(&known.last);
    for range in frame[0].ranges() {
        known.in_flight.insert(range.shard, range.last);
    }
    check(&open(&disk).unwrap(), &mut known);
}

#[test]
fn a_rotten_frame_is_lost_alone_and_named() {
    let disk = SimulatedDisk::new(6);
    let mut numbers = Numbers(6);
    let journal = open(&disk).unwrap();
    let mut frames = Vec::new();
    for lsn in 1..=5 {
        let mut builder = FrameBuilder::new(1).unwrap();
        let spans = batch(&mut numbers, "default", 60);
        builder
            .push_spans(ShardId(1), Term(1), Lsn(lsn), &spans, &all(&spans))
            .unwrap();
        frames.push(builder.finish().unwrap());
    }
    journal.commit(&frames, UnixNanos(NOW)).unwrap();
    drop(journal);
    let path = slice_files(&disk).remove(0);
    let start = find(&disk.read(&path).unwrap(), &frames[2].bytes()[..64]).unwrap();

    for offset in [0, 1, 5, 13, 20, 63] {
        assert!(disk.flip(&path, start + offset, 0x10));
        let reopened = open(&disk).unwrap();
        let walked: Vec<_> = reopened.walk(None).collect();
        assert_eq!(walked.len(), 5);
        for (index, item) in walked.into_iter().enumerate() {
            match (index, item) {
                (2, Err(JournalError::Corrupt(corruption))) => {
                    assert_eq!(corruption.frame, Some(FrameId(3)));
                    assert_eq!(
                        (corruption.lost[0].first, corruption.lost[0].last),
                        (Lsn(3), Lsn(3))
                    );
                }
                (2, other) => panic!("{other:?}"),
                (_, item) => assert!(item.is_ok()),
            }
        }
        // The record is still located: its loss is known, not silent.
        assert_eq!(
            reopened.locate(ShardId(1), Lsn(3)).unwrap(),
            Some(FrameId(3))
        );
        assert_eq!(reopened.last_lsn(ShardId(1)), Lsn(5));
        drop(reopened);
        assert!(disk.flip(&path, start + offset, 0x10));
    }
}

#[test]
fn a_slice_without_any_frame_left_is_set_aside_and_its_gap_named() {
    let disk = SimulatedDisk::new(7);
    let mut numbers = Numbers(7);
    let journal = open(&disk).unwrap();
    let mut lsn = 0;
    while journal.slices().len() < 3 {
        lsn += 1;
        let mut builder = FrameBuilder::new(1).unwrap();
        let spans = batch(&mut numbers, "default", 60);
        builder
            .push_spans(ShardId(1), Term(1), Lsn(lsn), &spans, &all(&spans))
            .unwrap();
        journal
            .commit(&[builder.finish().unwrap()], UnixNanos(NOW))
            .unwrap();
    }
    let lost = journal.slices()[1].shards[0];
    drop(journal);
    let path = slice_files(&disk).remove(1);
    disk.write_atomically(&path, &[0xa5; 10_000]).unwrap();

    let (journal, corrupt) = open_with_damage(&disk).unwrap();
    assert_eq!(corrupt.len(), 1);
    assert_eq!((corrupt[0].frame, &*corrupt[0].lost), (None, &[lost][..]));
    assert_eq!(journal.last_lsn(ShardId(1)), Lsn(lsn));
    assert_eq!(journal.locate(ShardId(1), lost.first).unwrap(), None);
    assert!(journal.locate(ShardId(1), Lsn(1)).unwrap().is_some());
    drop(journal);
    let set_aside = path.with_extension("redb.corrupt");
    assert!(disk.len_of(&set_aside).is_some() && disk.len_of(&path).is_none());
    // The next start has nothing new to say.
    drop(open(&disk).unwrap());
}

/// Damage in a slice file, wherever it is, costs answers and never the process.
#[test]
fn flipped_bytes_anywhere_never_panic() {
    let disk = SimulatedDisk::new(8);
    let mut numbers = Numbers(8);
    let mut known = Acknowledged::default();
    let journal = open(&disk).unwrap();
    work(&journal, &mut numbers, &mut known).unwrap();
    journal.maintain(UnixNanos(NOW)).unwrap();
    drop(journal);
    let images: Vec<_> = slice_files(&disk)
        .into_iter()
        .map(|path| (path.clone(), disk.read(&path).unwrap()))
        .collect();
    let mut damaged = 0;
    for _ in 0..100 {
        let (path, image) = &images[numbers.below(images.len() as u64) as usize];
        for _ in 0..4 {
            let offset = numbers.below(image.len() as u64);
            assert!(disk.flip(path, offset, numbers.next() as u8 | 1));
        }
        if let Ok((journal, corrupt)) = open_with_damage(&disk) {
            let walked = journal.walk(None).filter(Result::is_err).count();
            damaged += usize::from(walked > 0 || !corrupt.is_empty());
            for (shard, verdict) in &known.verdicts {
                let _ = journal.verdict(*shard, &verdict.tenant, verdict.trace_id);
            }
            for lsn in 1..20 {
                let _ = journal.locate(ShardId(1), Lsn(lsn));
            }
        }
        for (path, image) in &images {
            let set_aside = path.with_extension("redb.corrupt");
            disk.remove(&set_aside).unwrap();
            disk.write_atomically(path, image).unwrap();
        }
    }
    assert!(damaged > 20, "{damaged}");
}

#[test]
fn checkpoints_replace_each_other_and_damage_means_none() {
    let disk = SimulatedDisk::new(9);
    let journal = open(&disk).unwrap();
    assert_eq!(journal.checkpoint(ShardId(1)).unwrap(), None);
    let long = vec![7; 200_000];
    journal.write_checkpoint(ShardId(1), Lsn(5), &long).unwrap();
    journal
        .write_checkpoints(&[(ShardId(1), Lsn(6), b"short"), (ShardId(2), Lsn(9), &long)])
        .unwrap();
    drop(journal);
    disk.power_loss();
    let journal = open(&disk).unwrap();
    assert_eq!(
        journal.checkpoint(ShardId(1)).unwrap(),
        Some((Lsn(6), b"short".to_vec()))
    );
    assert_eq!(
        journal.checkpoint(ShardId(2)).unwrap(),
        Some((Lsn(9), long))
    );
    drop(journal);
    let path = Path::new(DIR).join("checkpoint.redb");
    let at = find(&disk.read(&path).unwrap(), b"short").unwrap();
    assert!(disk.flip(&path, at, 1));
    let journal = open(&disk).unwrap();
    assert_eq!(journal.checkpoint(ShardId(1)).unwrap(), None);
    assert!(journal.checkpoint(ShardId(2)).unwrap().is_some());
}

#[test]
fn a_late_verdict_stands_over_an_early_one() {
    let disk = SimulatedDisk::new(10);
    let mut numbers = Numbers(10);
    let journal = open(&disk).unwrap();
    let mut verdict = dropped(&mut numbers, "default", 1);
    let push = |verdict: &VerdictRecord, lsn| {
        let mut builder = FrameBuilder::new(1).unwrap();
        builder
            .push_verdicts(ShardId(1), Term(1), Lsn(lsn), std::slice::from_ref(verdict))
            .unwrap();
        journal
            .commit(&[builder.finish().unwrap()], UnixNanos(NOW))
            .unwrap();
    };
    push(&verdict, 1);
    verdict.span_count = 99;
    verdict.references = smallvec![Lsn(1), Lsn(2)];
    push(&verdict, 2);
    let found = journal
        .verdict(ShardId(1), &verdict.tenant, verdict.trace_id)
        .unwrap();
    assert_eq!(found.as_ref(), Some(&verdict));
    assert!(!journal.maybe_decided(ShardId(1), &tenant("other"), verdict.trace_id));
    assert!(!journal.maybe_decided(ShardId(2), &verdict.tenant, verdict.trace_id));
    assert!(!journal.maybe_decided(ShardId(1), &verdict.tenant, TraceId([9; 16])));
}
