//! Which of the frames that were found in a slice file belong to the journal, and what is missing between them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use redb::StorageBackend;
use spandrel_model::ids::{Lsn, ShardId, UnixNanos};

use super::frame::Frame;
use super::record::LsnRange;
use super::salvage::Scan;
use super::slice_rows::FrameRow;

/// What the journal knows up to a place in it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Known {
    /// Highest number of each shard.
    pub(crate) lsns: BTreeMap<ShardId, Lsn>,
    /// The last frame; `None` when nothing tells.
    pub(crate) last_sequence: Option<u64>,
    pub(crate) last_commit: Option<UnixNanos>,
}

/// The frames that come behind those that are looked for: they were committed after them.
#[derive(Debug)]
pub(crate) struct After {
    pub(crate) first_sequence: u64,
    pub(crate) carried: BTreeMap<ShardId, Lsn>,
    /// No other slice was between, so every frame up to there belongs to this one.
    pub(crate) adjacent: bool,
}

/// Dense frames, ready to be stored: those that were found, and a row that names what is lost for each other.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) frames: Vec<Planned>,
}

/// A frame of the plan.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) sequence: u64,
    /// False: `row` says what is lost with it.
    pub(crate) found: bool,
    pub(crate) row: FrameRow,
}

impl Known {
    /// Takes note of numbers.
    pub(crate) fn raise(&mut self, lsns: impl Iterator<Item = (ShardId, Lsn)>) {
        for (shard, lsn) in lsns {
            let last = self.lsns.entry(shard).or_default();
            *last = lsn.max(*last);
        }
    }

    fn last(&self, shard: ShardId) -> Lsn {
        self.lsns.get(&shard).copied().unwrap_or_default()
    }

    /// The numbers between what is known and `carried`.
    pub(crate) fn gaps(&self, carried: &BTreeMap<ShardId, Lsn>) -> Vec<LsnRange> {
        let gap = |(shard, last): (&ShardId, &Lsn)| gap(*shard, self.last(*shard), last.next());
        carried.iter().filter_map(gap).collect()
    }
}

/// The numbers between two.
fn gap(shard: ShardId, before: Lsn, next: Lsn) -> Option<LsnRange> {
    let last = Lsn(next.0.saturating_sub(1));
    (before < last && !next.can_follow(before)).then(|| LsnRange {
        shard,
        first: before.next(),
        last,
    })
}

/// A frame that was found intact.
struct Intact {
    ranges: Vec<LsnRange>,
    kinds: u8,
    bytes: u64,
    received_at: Option<UnixNanos>,
}

fn read_intact(
    scan: &Scan,
    sequence: u64,
    file: &dyn StorageBackend,
) -> io::Result<Option<Intact>> {
    let bytes = match scan.get(sequence) {
        Some(found) => found.read(file)?,
        None => None,
    };
    let frame = bytes.as_ref().map(|bytes| (bytes, Frame::decode(bytes)));
    let Some((bytes, Ok(frame))) = frame else {
        return Ok(None);
    };
    let records = 0..frame.records().len();
    Ok(Some(Intact {
        ranges: frame.ranges(),
        kinds: frame.kinds(),
        bytes: bytes.len() as u64,
        received_at: records.filter_map(|record| frame.received_at(record)).max(),
    }))
}

impl Plan {
    /// The frames right behind what the directory of a slice knows, as long as nothing is missing: those of a commit
    /// that was durable but whose tree pages are damaged, or of one that nobody was told of, which is harmless, since
    /// duplicates are recognised.
    pub(crate) fn of_tail(
        scan: &Scan,
        file: &dyn StorageBackend,
        known: &Known,
        now: UnixNanos,
    ) -> io::Result<Self> {
        let mut maker = Maker::new(known, now);
        let mut boot = scan.highest_boot_before();
        let first = scan.sequences().next().map(|(sequence, _)| sequence);
        let Some(mut next) = known.last_sequence.map(|last| last + 1).or(first) else {
            return Ok(Self::default());
        };
        while let Some(found) = scan.get(next).filter(|found| found.boot >= boot) {
            let Some(intact) = read_intact(scan, next, file)? else {
                break;
            };
            if !maker.continues_exactly(&intact.ranges) {
                break;
            }
            boot = found.boot;
            maker.add(next, intact);
            next += 1;
        }
        Ok(maker.plan)
    }

    /// Every frame between what is known before and after a damaged slice.
    pub(crate) fn of_all(
        scan: &Scan,
        file: &dyn StorageBackend,
        known: &Known,
        after: Option<&After>,
        now: UnixNanos,
    ) -> io::Result<Self> {
        let mut maker = Maker::new(known, now);
        let mut next = known.last_sequence.map(|last| last + 1);
        let mut boot = scan.highest_boot_before();
        let end = after.map_or(u64::MAX, |after| after.first_sequence);
        let mut damaged_end = 0;
        for (sequence, found) in scan.sequences() {
            if sequence < next.unwrap_or_default() || sequence >= end || found.boot < boot {
                continue;
            }
            match read_intact(scan, sequence, file)? {
                Some(intact) if maker.is_newer(&intact.ranges) => {
                    maker.lose(next.unwrap_or(sequence)..sequence);
                    boot = found.boot;
                    maker.add(sequence, intact);
                    next = Some(sequence + 1);
                }
                Some(_) => {} // of a commit that failed: its numbers were used again
                None => {
                    next.get_or_insert(sequence);
                    damaged_end = sequence + 1;
                }
            }
        }
        let adjacent = after.filter(|after| after.adjacent);
        // What is damaged behind the last intact frame is known by its sequence alone.
        let end = adjacent.map_or(damaged_end, |after| after.first_sequence);
        if let Some(next) = next.filter(|next| *next < end) {
            maker.lose(next..end);
        }
        if let Some(after) = adjacent {
            maker.meet(&after.carried);
        }
        Ok(maker.plan)
    }

    /// True when no frame was found.
    pub(crate) fn finds_nothing(&self) -> bool {
        !self.frames.iter().any(|frame| frame.found)
    }
}

/// Adds frames in their order.
struct Maker {
    plan: Plan,
    known: Known,
    /// Nothing tells which numbers come before the plan.
    starts_anywhere: bool,
    /// Where in the plan each shard was last seen.
    seen: BTreeMap<ShardId, usize>,
    now: UnixNanos,
}

impl Maker {
    fn new(known: &Known, now: UnixNanos) -> Self {
        Self {
            plan: Plan::default(),
            starts_anywhere: known.lsns.is_empty() && known.last_sequence.is_none(),
            known: known.clone(),
            seen: BTreeMap::new(),
            now,
        }
    }

    fn continues_exactly(&self, ranges: &[LsnRange]) -> bool {
        let mut ranges = ranges.iter();
        ranges.all(|range| match self.known.lsns.get(&range.shard) {
            Some(last) => range.first.can_follow(*last),
            None => self.starts_anywhere || range.first.can_follow(Lsn(0)),
        })
    }

    fn is_newer(&self, ranges: &[LsnRange]) -> bool {
        let mut ranges = ranges.iter();
        ranges.all(|range| self.known.last(range.shard) < range.first)
    }

    fn add(&mut self, sequence: u64, intact: Intact) {
        // Spans say when they were received; a frame of verdicts is as old as what stands before it.
        let earlier = self.known.last_commit;
        let committed_at = intact.received_at.max(earlier).unwrap_or(self.now);
        self.known.last_commit = Some(committed_at);
        for range in &intact.ranges {
            self.note_gap(range.shard, range.first);
            self.seen.insert(range.shard, self.plan.frames.len());
        }
        let lasts = intact.ranges.iter().map(|range| (range.shard, range.last));
        self.known.raise(lasts);
        self.plan.frames.push(Planned {
            sequence,
            found: true,
            row: FrameRow {
                committed_at,
                kinds: intact.kinds,
                bytes: intact.bytes,
                ranges: intact.ranges,
            },
        });
    }

    fn lose(&mut self, sequences: Range<u64>) {
        let committed_at = self.known.last_commit.unwrap_or(self.now);
        let lost = sequences.map(|sequence| Planned {
            sequence,
            found: false,
            row: FrameRow {
                committed_at,
                kinds: 0,
                bytes: 0,
                ranges: Vec::new(),
            },
        });
        self.plan.frames.extend(lost);
    }

    /// Notes the numbers that are missing up to those that come behind the plan.
    fn meet(&mut self, carried: &BTreeMap<ShardId, Lsn>) {
        for (shard, last) in carried {
            self.note_gap(*shard, last.next());
        }
    }

    /// Gives the numbers that are missing before `next` to the first lost frame that can have held them.
    fn note_gap(&mut self, shard: ShardId, next: Lsn) {
        if self.starts_anywhere && !self.known.lsns.contains_key(&shard) {
            return;
        }
        let Some(gap) = gap(shard, self.known.last(shard), next) else {
            return;
        };
        let from = self.seen.get(&shard).copied().unwrap_or_default();
        let mut behind = self.plan.frames.iter_mut().skip(from);
        if let Some(lost) = behind.find(|frame| !frame.found) {
            lost.row.ranges.push(gap);
        }
    }
}
