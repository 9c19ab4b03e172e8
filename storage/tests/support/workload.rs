//! A journal that is used as a node uses it, and what must be found in it afterwards.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spandrel_model::ids::{Lsn, ShardId, Term, UnixNanos};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::disk::{Disk, SimulatedDisk};
use spandrel_storage::journal::{
    Corruption, EncodedFrame, Frame, FrameBuilder, FrameId, Journal, JournalError, JournalOptions,
};

use super::{NOW, Numbers, all, batch, dropped};

pub const DIR: &str = "/data/journal";
pub const SHARDS: u16 = 3;

/// Small slices; the boot is later than any before it on this disk.
pub fn options(disk: &SimulatedDisk) -> JournalOptions {
    JournalOptions {
        slice_bytes: 10_000,
        boot: disk.operations() + 1,
        frame_cache_bytes: 0,
        hash_seed: 99,
        ..JournalOptions::default()
    }
}

pub fn open(disk: &SimulatedDisk) -> Result<Journal, JournalError> {
    let (journal, corrupt) = open_with_damage(disk)?;
    assert_eq!(corrupt, []);
    Ok(journal)
}

pub fn open_with_damage(disk: &SimulatedDisk) -> Result<(Journal, Vec<Corruption>), JournalError> {
    let same: Arc<dyn Disk> = Arc::new(disk.clone());
    Journal::open(same, Path::new(DIR), options(disk), UnixNanos(NOW))
}

/// What the test knows to be durable.
#[derive(Default)]
pub struct Acknowledged {
    pub frames: BTreeMap<FrameId, Vec<u8>>,
    pub last: BTreeMap<ShardId, Lsn>,
    pub checkpoint: Option<(Lsn, Vec<u8>)>,
    pub verdicts: Vec<(ShardId, VerdictRecord)>,
    /// Of the commit that was in flight.
    pub in_flight: BTreeMap<ShardId, Lsn>,
    pub checkpoint_in_flight: Option<(Lsn, Vec<u8>)>,
}

pub fn next_frame(
    numbers: &mut Numbers,
    last: &mut BTreeMap<ShardId, Lsn>,
) -> (EncodedFrame, Vec<(ShardId, VerdictRecord)>) {
    let mut builder = FrameBuilder::new(1).unwrap();
    let mut verdicts = Vec::new();
    for shard in (0..SHARDS).map(ShardId) {
        if numbers.below(3) == 0 {
            continue;
        }
        let lsn = last.entry(shard).or_default();
        *lsn = lsn.next();
        if numbers.below(2) == 0 {
            let count = 1 + numbers.below(8) as usize;
            let spans = batch(numbers, "default", count);
            builder
                .push_spans(shard, Term(1), *lsn, &spans, &all(&spans))
                .unwrap();
        } else {
            let verdict = dropped(numbers, "default", lsn.0);
            builder
                .push_verdicts(shard, Term(1), *lsn, std::slice::from_ref(&verdict))
                .unwrap();
            verdicts.push((shard, verdict));
        }
    }
    (builder.finish().unwrap(), verdicts)
}

/// Works until the power fails.
pub fn work(
    journal: &Journal,
    numbers: &mut Numbers,
    known: &mut Acknowledged,
) -> Result<(), JournalError> {
    for _ in 0..25 {
        let mut last = known.last.clone();
        let (frames, verdicts): (Vec<_>, Vec<_>) = (0..1 + numbers.below(2))
            .map(|_| next_frame(numbers, &mut last))
            .unzip();
        known.in_flight.clone_from(&last);
        let ids = journal.commit(&frames, UnixNanos(NOW))?;
        known.last = last;
        for (id, frame) in ids.into_iter().zip(&frames) {
            known.frames.insert(id, frame.bytes().to_vec());
        }
        known.verdicts.extend(verdicts.into_iter().flatten());
        if numbers.below(4) == 0 {
            journal.maintain(UnixNanos(NOW))?;
        }
        if numbers.below(6) == 0 {
            let content = vec![numbers.next() as u8; numbers.below(80_000) as usize];
            let lsn = Lsn(numbers.next());
            known.checkpoint_in_flight = Some((lsn, content.clone()));
            journal.write_checkpoint(ShardId(1), lsn, &content)?;
            known.checkpoint = Some((lsn, content));
        }
    }
    Ok(())
}

/// Every acknowledged frame is there and intact, numbers are dense, and at most the commit in flight is there too.
pub fn check(journal: &Journal, known: &mut Acknowledged) {
    for (id, bytes) in &known.frames {
        let stored = journal.frame(*id).unwrap();
        let sent = Frame::decode(bytes).unwrap();
        assert_eq!(stored.records(), sent.records());
        for record in 0..sent.records().len() {
            let mut spans = Vec::new();
            stored.visit_spans(record, &mut |_, trace, span| {
                spans.push((trace, span.to_vec()))
            });
            let mut expected = Vec::new();
            sent.visit_spans(record, &mut |_, trace, span| {
                expected.push((trace, span.to_vec()))
            });
            assert_eq!(spans, expected);
        }
    }
    for shard in (0..SHARDS).map(ShardId) {
        let last = journal.last_lsn(shard);
        let acknowledged = known.last.get(&shard).copied().unwrap_or_default();
        let in_flight = known.in_flight.get(&shard).copied().unwrap_or_default();
        // Of a commit that nobody was told of, the first frames may be taken back.
        let possible = acknowledged..=in_flight.max(acknowledged);
        assert!(possible.contains(&last), "{shard:?} {last:?}");
        for lsn in (1..=last.0).map(Lsn) {
            let id = journal.locate(shard, lsn).unwrap().unwrap();
            assert!(journal.frame(id).unwrap().find(shard, lsn).is_some());
        }
        assert_eq!(journal.locate(shard, last.next()).unwrap(), None);
        known.last.insert(shard, last);
    }
    for (shard, verdict) in &known.verdicts {
        assert!(journal.maybe_decided(*shard, &verdict.tenant, verdict.trace_id));
        let found = journal
            .verdict(*shard, &verdict.tenant, verdict.trace_id)
            .unwrap();
        assert_eq!(found.as_ref(), Some(verdict));
    }
    let ids: Vec<_> = journal.walk(None).map(|item| item.unwrap().0).collect();
    assert!(ids.is_sorted() && known.frames.keys().all(|id| ids.contains(id)));
    let checkpoint = journal.checkpoint(ShardId(1)).unwrap();
    assert!(checkpoint == known.checkpoint || checkpoint == known.checkpoint_in_flight);
    known.checkpoint = checkpoint;
}

pub fn slice_files(disk: &SimulatedDisk) -> Vec<PathBuf> {
    let mut files = disk.list(Path::new(DIR)).unwrap();
    files.retain(|path| path.to_string_lossy().contains("slice-"));
    files
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<u64> {
    let mut windows = haystack.windows(needle.len());
    let at = windows.position(|window| window == needle);
    at.map(|at| at as u64)
}
