//! One rotten byte in a slice file costs the frame that it is in, wherever it is.
//!
//! A byte in a page of the tree made redb refuse the file, and the whole slice was set aside; or, after a crash, redb
//! fell back to the commit before, and acknowledged frames vanished without a word.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use spandrel_model::ids::{Lsn, ShardId, Term, UnixNanos};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::disk::{Disk, SimulatedDisk};
use spandrel_storage::journal::{
    Corruption, EncodedFrame, Frame, FrameBuilder, FrameId, Journal, LsnRange,
};
use support::workload::{open, open_with_damage, options, slice_files};
use support::{NOW, Numbers, all, batch, dropped};

/// Bytes before a piece's payload, and most bytes of a payload.
const PIECE_HEADER_BYTES: usize = 40;
const PIECE_PAYLOAD_BYTES: usize = 16_260;

/// A commit of one frame, and where its bytes lie.
struct Stored {
    frame: EncodedFrame,
    verdict: VerdictRecord,
    lsn: Lsn,
    places: Vec<Range<u64>>,
}

impl Stored {
    /// Spans in shard 1 and a verdict in shard 2, each with the same number.
    fn new(numbers: &mut Numbers, lsn: u64, spans: usize) -> Self {
        let mut builder = FrameBuilder::new(1).unwrap();
        let spans = batch(numbers, "default", spans);
        builder
            .push_spans(ShardId(1), Term(1), Lsn(lsn), &spans, &all(&spans))
            .unwrap();
        let verdict = dropped(numbers, "default", lsn);
        builder
            .push_verdicts(
                ShardId(2),
                Term(1),
                Lsn(lsn),
                std::slice::from_ref(&verdict),
            )
            .unwrap();
        Self {
            frame: builder.finish().unwrap(),
            verdict,
            lsn: Lsn(lsn),
            places: Vec::new(),
        }
    }

    /// Finds the pieces, and the older copies of them that redb left behind.
    fn find_places(&mut self, image: &[u8]) {
        for payload in self.frame.bytes().chunks(PIECE_PAYLOAD_BYTES) {
            let copies = memchr::memmem::find_iter(image, payload);
            let copies: Vec<usize> = copies.collect();
            assert!(!copies.is_empty());
            self.places.extend(
                copies
                    .into_iter()
                    .map(|at| (at - PIECE_HEADER_BYTES) as u64..(at + payload.len()) as u64),
            );
        }
    }

    fn is_hit(&self, damaged: &Range<u64>) -> bool {
        let overlaps = |place: &Range<u64>| place.start < damaged.end && damaged.start < place.end;
        self.places.iter().any(overlaps)
    }

    fn is_readable(&self, journal: &Journal) -> bool {
        let Some(id) = journal.locate(ShardId(1), self.lsn).unwrap() else {
            return false;
        };
        let Ok(stored) = journal.frame(id) else {
            return false;
        };
        let sent = Frame::decode(self.frame.bytes()).unwrap();
        assert_eq!(stored.records(), sent.records());
        assert_eq!(id, FrameId(self.lsn.0));
        let verdict = &self.verdict;
        let found = journal.verdict(ShardId(2), &verdict.tenant, verdict.trace_id);
        assert_eq!(found.unwrap().as_ref(), Some(verdict));
        true
    }
}

/// A slice of ten commits, large and small, left open by a crash.
struct Crashed {
    disk: SimulatedDisk,
    path: PathBuf,
    image: Vec<u8>,
    stored: Vec<Stored>,
}

fn crashed(seed: u64) -> Crashed {
    let disk = SimulatedDisk::new(seed);
    let mut numbers = Numbers(seed);
    let journal = {
        let mut options = options(&disk);
        options.slice_bytes = 1 << 20;
        let same = std::sync::Arc::new(disk.clone());
        let dir = std::path::Path::new(support::workload::DIR);
        Journal::open(same, dir, options, UnixNanos(NOW)).unwrap().0
    };
    let mut stored: Vec<Stored> = (1..=10)
        .map(|lsn| {
            let spans = if lsn % 4 == 0 { 300 } else { 3 };
            let stored = Stored::new(&mut numbers, lsn, spans);
            let frames = std::slice::from_ref(&stored.frame);
            journal.commit(frames, UnixNanos(NOW)).unwrap();
            stored
        })
        .collect();
    disk.power_loss();
    drop(journal);
    let path = slice_files(&disk).remove(0);
    let image = disk.read(&path).unwrap();
    stored.iter_mut().for_each(|one| one.find_places(&image));
    Crashed {
        disk,
        path,
        image,
        stored,
    }
}

impl Crashed {
    fn set_aside(&self) -> PathBuf {
        self.path.with_extension("redb.corrupt")
    }

    /// [`Self::open_damaged`], with one byte flipped.
    fn open_with_flip(&self, offset: u64) -> (bool, usize) {
        let mut image = self.image.clone();
        image[usize::try_from(offset).unwrap()] ^= 0x20;
        self.open_damaged(&image, &(offset..offset + 1))
    }

    /// Opens the journal with other bytes in a range. Answers whether the slice was built anew, and how many frames were
    /// lost.
    fn open_damaged(&self, image: &[u8], damaged: &Range<u64>) -> (bool, usize) {
        self.disk.write_atomically(&self.path, image).unwrap();
        self.disk.remove(&self.set_aside()).unwrap();
        let (journal, corrupt) = open_with_damage(&self.disk).unwrap();
        let walked = journal.walk(None).filter_map(Result::err);
        let reported: BTreeSet<Option<FrameId>> = corrupt
            .iter()
            .map(|corruption| corruption.frame)
            .chain(walked.map(|error| match error {
                spandrel_storage::journal::JournalError::Corrupt(corruption) => corruption.frame,
                other => panic!("{other}"),
            }))
            .collect();
        let mut lost = 0;
        for one in &self.stored {
            if one.is_readable(&journal) {
                continue;
            }
            lost += 1;
            let context = format!("frame {} with other bytes at {damaged:?}", one.lsn.0);
            assert!(one.is_hit(damaged), "{context} is lost");
            // Rot in the newest commit looks like a commit that a crash has torn.
            let is_newest = one.lsn.0 == self.stored.len() as u64;
            let is_reported = reported.contains(&Some(FrameId(one.lsn.0)));
            assert!(is_reported || is_newest, "{context} is lost silently");
        }
        assert_eq!(reported.len(), reported.iter().flatten().count().min(lost));
        let rebuilt = self.disk.len_of(&self.set_aside()).is_some();
        drop(journal);
        // The next start finds nothing new.
        if rebuilt {
            drop(open(&self.disk).unwrap());
        }
        (rebuilt, lost)
    }
}

#[test]
fn a_flipped_byte_costs_at_most_the_frame_that_it_is_in() {
    let crashed = crashed(1);
    let (mut rebuilt, mut lost, mut flips) = (0, 0, 0);
    for (page, bytes) in (0u64..).zip(crashed.image.chunks(4_096)) {
        let Some(used) = bytes.iter().rposition(|byte| *byte != 0) else {
            continue;
        };
        // The header of the page, its fields, its middle and the last byte that is used.
        for at in [0, 9, 70, used / 3, used / 2, used] {
            let (built, frames) = crashed.open_with_flip(page * 4_096 + at as u64);
            rebuilt += usize::from(built);
            lost += frames;
            flips += 1;
        }
    }
    println!("{flips} flips, {rebuilt} slices built anew, {lost} frames lost");
    assert!(flips > 100 && rebuilt > 30 && lost > 10);
    assert!(lost <= flips);
}

/// A write that went to another place, of which every checksum is right: some page of the file stands where another one
/// belongs.
#[test]
fn a_misdirected_page_costs_at_most_the_frames_that_were_in_its_place() {
    const PAGE: usize = 4_096;
    let crashed = crashed(5);
    let is_used = |page: &usize| {
        crashed.image[page * PAGE..][..PAGE]
            .iter()
            .any(|byte| *byte != 0)
    };
    let pages: Vec<usize> = (0..crashed.image.len() / PAGE).filter(is_used).collect();
    let (mut rebuilt, mut lost, mut writes) = (0, 0, 0);
    for (number, &to) in pages.iter().enumerate() {
        for distance in [1, 2, 5, pages.len() / 2] {
            let from = pages[(number + distance) % pages.len()];
            let mut image = crashed.image.clone();
            image.copy_within(from * PAGE..(from + 1) * PAGE, to * PAGE);
            let place = (to * PAGE) as u64..((to + 1) * PAGE) as u64;
            let (built, frames) = crashed.open_damaged(&image, &place);
            rebuilt += usize::from(built);
            lost += frames;
            writes += 1;
        }
    }
    println!("{writes} writes, {rebuilt} slices built anew, {lost} frames lost");
    assert!(writes > 100 && rebuilt > 30 && lost > 10);
}

/// The exchange of the damaged file for the built one is interrupted at each of its steps.
#[test]
fn a_power_loss_while_a_slice_is_built_anew_loses_nothing() {
    let crashed = crashed(2);
    let mut interrupted = 0;
    for operations in 1.. {
        crashed
            .disk
            .write_atomically(&crashed.path, &crashed.image)
            .unwrap();
        crashed.disk.remove(&crashed.set_aside()).unwrap();
        assert!(crashed.disk.flip(&crashed.path, 0, 0x20));
        crashed.disk.fail_power_after(operations);
        let opened = open_with_damage(&crashed.disk);
        let is_whole = opened.is_ok();
        // The process dies with the power: nothing that it still does reaches the disk.
        crashed.disk.power_loss();
        drop(opened);

        let journal = open(&crashed.disk).unwrap();
        assert!(crashed.stored.iter().all(|one| one.is_readable(&journal)));
        assert!(crashed.disk.len_of(&crashed.set_aside()).is_some());
        if is_whole {
            break;
        }
        interrupted += 1;
    }
    assert!(interrupted > 20, "{interrupted}");
}

/// Three slices of several frames; the middle one does not open.
#[test]
fn in_a_slice_between_others_only_rotten_frames_are_lost_and_all_their_numbers_named() {
    for is_sealed in [false, true] {
        let disk = SimulatedDisk::new(3);
        let mut numbers = Numbers(3);
        let journal = open(&disk).unwrap();
        let mut stored = Vec::new();
        while journal.slices().len() < 3 {
            let one = Stored::new(&mut numbers, stored.len() as u64 + 1, 20);
            let frames = std::slice::from_ref(&one.frame);
            journal.commit(frames, UnixNanos(NOW)).unwrap();
            stored.push(one);
        }
        if is_sealed {
            journal.maintain(UnixNanos(NOW)).unwrap();
        }
        let range = journal.slices()[1].shards[0];
        drop(journal);
        let path = slice_files(&disk).remove(1);
        let image = disk.read(&path).unwrap();

        // Given a damaged tree, and damage in the first and in the last frame
        assert!(disk.flip(&path, 0, 0x20));
        let rotten = [range.first, range.last];
        for one in stored.iter_mut().filter(|one| rotten.contains(&one.lsn)) {
            one.find_places(&image);
            for place in &one.places {
                assert!(disk.flip(&path, place.start + 100, 0x20));
            }
        }

        // When it is opened
        let (journal, corrupt) = open_with_damage(&disk).unwrap();

        // Then exactly these are lost, by sequence and by number
        let named = |corruption: &Corruption| (corruption.frame.unwrap(), corruption.lost.clone());
        let lost_with = |lsn: Lsn| {
            let lost = [1, 2].map(|shard| LsnRange {
                shard: ShardId(shard),
                first: lsn,
                last: lsn,
            });
            (FrameId(lsn.0), lost.to_vec())
        };
        let expected = rotten.map(lost_with).to_vec();
        assert_eq!(corrupt.iter().map(named).collect::<Vec<_>>(), expected);
        for one in &stored {
            assert_eq!(one.is_readable(&journal), !rotten.contains(&one.lsn));
        }
        for lsn in rotten {
            // Still located: its loss is known, not silent.
            let id = journal.locate(ShardId(1), lsn).unwrap().unwrap();
            let error = journal.frame(id).unwrap_err();
            assert_eq!(error.class(), spandrel_model::error::ErrorClass::Corrupt);
        }
        // And it is sealed like any other
        journal.maintain(UnixNanos(NOW)).unwrap();
        drop(journal);
        let journal = open(&disk).unwrap();
        assert!(
            stored
                .iter()
                .all(|one| one.is_readable(&journal) != rotten.contains(&one.lsn))
        );
        assert_eq!(journal.last_lsn(ShardId(1)), Lsn(stored.len() as u64));
    }
}

/// A commit fails at its sync, the process is started again and uses the numbers anew: whatever lies in the file of
/// the failed one, it never stands in for what was acknowledged, nor is it added behind it.
#[test]
fn frames_of_a_failed_commit_never_replace_acknowledged_ones() {
    for seed in 0..40 {
        let disk = SimulatedDisk::new(seed);
        let mut numbers = Numbers(seed);
        let journal = open(&disk).unwrap();
        let first = Stored::new(&mut numbers, 1, 3);
        journal
            .commit(std::slice::from_ref(&first.frame), UnixNanos(NOW))
            .unwrap();
        // Given a failed commit of two frames, of which the disk has some bytes
        let failed = [
            Stored::new(&mut numbers, 2, 90),
            Stored::new(&mut numbers, 3, 90),
        ];
        let frames = failed.each_ref().map(|one| one.frame.clone());
        disk.fail_sync(1);
        assert!(journal.commit(&frames, UnixNanos(NOW)).is_err());
        disk.power_loss();
        drop(journal);

        // When the next process commits others, unless the failed ones are there as a whole
        let journal = open(&disk).unwrap();
        let next = journal.last_lsn(ShardId(1)).next();
        let second = Stored::new(&mut numbers, next.0, 3);
        journal
            .commit(std::slice::from_ref(&second.frame), UnixNanos(NOW))
            .unwrap();
        disk.power_loss();
        drop(journal);

        // Then these stand, and nothing behind them, with an intact tree and without one
        let path = slice_files(&disk).remove(0);
        for damages_tree in [false, true] {
            if damages_tree {
                assert!(disk.flip(&path, 0, 0x20));
            }
            let journal = open(&disk).unwrap();
            assert!(
                first.is_readable(&journal) && second.is_readable(&journal),
                "seed {seed}"
            );
            assert_eq!(journal.last_lsn(ShardId(1)), next, "seed {seed}");
        }
    }
}
