//! Opening a journal: which files are slices, what was lost, where numbering goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use spandrel_model::ids::{Lsn, ShardId, UnixNanos};

use super::checkpoint::CheckpointFile;
use super::error::{Corruption, JournalError};
use super::frame::Frame;
use super::journal::{Journal, Writer, corrupt, slice_settings};
use super::options::JournalOptions;
use super::record::{FrameId, LsnRange, RecordKind};
use super::slice::Slice;
use super::store::StoreError;
use crate::byte_cache::ByteCache;
use crate::disk::Disk;

const PREFIX: &str = "slice-";
const SUFFIX: &str = ".redb";

/// The file of a slice.
pub(super) fn slice_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{id:012}{SUFFIX}"))
}

fn slice_id(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    digits.parse().ok()
}

impl Journal {
    /// Opens the journal in `dir`, making it if there is none. Answers also what cannot be read any more: that much
    /// is lost here and must come from a replica.
    ///
    /// Frames with verdicts in slices that are not sealed are read and checked here, other frames when they are
    /// read.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when the system fails; damage is no error.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
        now: UnixNanos,
    ) -> Result<(Self, Vec<Corruption>), JournalError> {
        disk.create_dir_all(dir)
            .map_err(JournalError::io("make the journal's directory"))?;
        let files = disk.list(dir);
        let files = files.map_err(JournalError::io("list the journal"))?;
        let mut found = Found::default();
        for path in &files {
            if path.extension().is_some_and(|suffix| suffix == "tmp") {
                disk.remove(path)
                    .map_err(JournalError::io("remove an unfinished file"))?;
            }
            if let Some(id) = slice_id(path) {
                found.open_slice(disk.as_ref(), path, id, &options)?;
            }
        }
        found.report_lost();
        let checkpoints = CheckpointFile::open(disk.as_ref(), dir, &mut found.corrupt)?;
        let frame_cache_bytes = options.frame_cache_bytes;
        let writer = found.take_writer();
        let journal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            slices: RwLock::new(found.slices),
            writer: Mutex::new(writer),
            upkeep: Mutex::new(()),
            last_lsns: RwLock::new(found.last_lsns),
            cache: Mutex::new(ByteCache::new(frame_cache_bytes)),
            checkpoints,
            opened_at: now,
        };
        journal.make_spare(now)?;
        Ok((journal, found.corrupt))
    }
}

/// What the directory holds.
#[derive(Default)]
struct Found {
    slices: Vec<Arc<Slice>>,
    corrupt: Vec<Corruption>,
    /// Highest numbers of all slices so far, in the order of slices.
    last_lsns: BTreeMap<ShardId, Lsn>,
    highest_id: u64,
}

impl Found {
    fn open_slice(
        &mut self,
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        options: &JournalOptions,
    ) -> Result<(), JournalError> {
        self.highest_id = self.highest_id.max(id);
        let slice = match Slice::open(disk, path, id, slice_settings(options)) {
            Ok(slice) => slice,
            Err(StoreError::Damaged(reason)) => {
                super::set_aside(disk, path)?;
                self.corrupt.push(Corruption {
                    slice: id,
                    frame: None,
                    lost: Vec::new(),
                    reason,
                });
                return Ok(());
            }
            Err(error) => return Err(error.during("open a slice")),
        };
        if !slice.state().is_sealed() {
            restore_verdicts(&slice, &mut self.corrupt)?;
        }
        self.slices.push(Arc::new(slice));
        Ok(())
    }

    /// Of each slice that was set aside: the numbers between its neighbours'. Of the newest one nobody knows.
    fn report_lost(&mut self) {
        let mut known = BTreeMap::new();
        for slice in &self.slices {
            let state = slice.state();
            let previous = |corruption: &&mut Corruption| {
                corruption.frame.is_none()
                    && corruption.slice < slice.id
                    && corruption.lost.is_empty()
            };
            for corruption in self.corrupt.iter_mut().filter(previous) {
                corruption.lost = gaps(&known, &state.carried);
            }
            raise(&mut known, state.carried.iter().map(|(s, l)| (*s, *l)));
            raise(&mut known, state.ranges.values().map(|r| (r.shard, r.last)));
        }
        self.last_lsns = known;
    }

    /// Where numbering goes on. An empty slice at the end is the spare one.
    fn take_writer(&mut self) -> Writer {
        let is_empty = |slice: &Arc<Slice>| slice.state().frames == 0;
        let mut spare = None;
        while self.slices.last().is_some_and(is_empty) {
            spare = self.slices.pop();
        }
        self.slices.retain(|slice| !is_empty(slice));
        let ended = self.slices.split_last().map_or(&[][..], |(_, rest)| rest);
        ended.iter().for_each(|slice| slice.close());
        let last = self.slices.iter().filter_map(|s| s.state().last_sequence());
        Writer {
            poisoned: None,
            next_sequence: last.max().map_or(1, |last| last + 1),
            next_slice: self.highest_id + 1,
            spare,
        }
    }
}

fn raise(known: &mut BTreeMap<ShardId, Lsn>, lsns: impl Iterator<Item = (ShardId, Lsn)>) {
    for (shard, lsn) in lsns {
        let last = known.entry(shard).or_default();
        *last = lsn.max(*last);
    }
}

fn gaps(known: &BTreeMap<ShardId, Lsn>, carried: &BTreeMap<ShardId, Lsn>) -> Vec<LsnRange> {
    let gap = |(shard, last): (&ShardId, &Lsn)| {
        let before = known.get(shard).copied().unwrap_or_default();
        (before < *last).then(|| LsnRange {
            shard: *shard,
            first: before.next(),
            last: *last,
        })
    };
    carried.iter().filter_map(gap).collect()
}

/// Reads the verdicts of a slice that is not sealed.
fn restore_verdicts(
    slice: &Slice,
    corrupt_frames: &mut Vec<Corruption>,
) -> Result<(), JournalError> {
    let (first, last) = {
        let state = slice.state();
        (state.first_sequence, state.last_sequence())
    };
    let Some(last) = last else {
        return Ok(());
    };
    for id in (first..=last).map(FrameId) {
        let keys = match verdict_keys(slice, id) {
            Ok(keys) => keys,
            Err(StoreError::Damaged(reason)) => {
                corrupt_frames.push(corrupt(slice, id, reason));
                continue;
            }
            Err(error) => return Err(error.during("read verdicts")),
        };
        slice.restore_verdicts(id, &keys);
    }
    Ok(())
}

fn verdict_keys(slice: &Slice, id: FrameId) -> Result<Vec<(ShardId, u64)>, StoreError> {
    if slice.frame_row(id)?.kinds & RecordKind::Verdicts.bit() == 0 {
        return Ok(Vec::new());
    }
    let damaged = |reason: &dyn ToString| StoreError::Damaged(reason.to_string());
    let bytes = slice.frame_bytes(id)?;
    let bytes = bytes.ok_or_else(|| damaged(&"its bytes are missing"))?;
    let frame = Frame::decode(&bytes).map_err(|error| damaged(&error))?;
    let keys = frame.verdict_keys().map_err(|error| damaged(&error))?;
    let hashes = keys.iter().map(|key| {
        let hash = slice.hash(key.shard, &key.tenant, key.trace_id);
        (key.shard, hash)
    });
    Ok(hashes.collect())
}
