//! Opening a journal: which files are slices, what was lost, where numbering goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use spandrel_model::ids::UnixNanos;

use super::checkpoint::CheckpointFile;
use super::encoded::VerdictKey;
use super::error::{Corruption, JournalError};
use super::frame::Frame;
use super::journal::{Journal, Writer, corrupt, slice_settings};
use super::options::JournalOptions;
use super::plan::{After, Known};
use super::record::{FrameId, RecordKind};
use super::repair::{self, Repair};
use super::slice::Slice;
use super::store::{StoreError, guarded};
use crate::byte_cache::ByteCache;
use crate::disk::Disk;

const PREFIX: &str = "slice-";
const SUFFIX: &str = ".redb";
/// The id of the first slice of a journal: its first frame has the sequence 1.
const FIRST_SLICE: u64 = 1;

/// The file of a slice.
pub(super) fn slice_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{id:012}{SUFFIX}"))
}

/// The id in the name of a slice's file.
fn slice_id(name: &str) -> Option<u64> {
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
        mut options: JournalOptions,
        now: UnixNanos,
    ) -> Result<(Self, Vec<Corruption>), JournalError> {
        disk.create_dir_all(dir)
            .map_err(JournalError::io("make the journal's directory"))?;
        let files = Files::of(disk.as_ref(), dir)?;
        let mut found = Found::default();
        for (id, path) in &files.slices {
            found.open_slice(disk.as_ref(), path, *id, &options)?;
        }
        let repair = Repair {
            disk: disk.as_ref(),
            settings: slice_settings(&options),
            boot: options.boot,
            now,
        };
        found.repair(&repair, &files.set_aside)?;
        let checkpoints = CheckpointFile::open(disk.as_ref(), dir, &mut found.corrupt)?;
        let frame_cache_bytes = options.frame_cache_bytes;
        let writer = found.take_writer();
        options.boot = options.boot.max(found.last_boot()? + 1);
        let journal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            slices: RwLock::new(found.slices),
            writer: Mutex::new(writer),
            upkeep: Mutex::new(()),
            last_lsns: RwLock::new(found.known.lsns),
            cache: Mutex::new(ByteCache::new(frame_cache_bytes)),
            voids: RwLock::new(checkpoints.voids()?),
            checkpoints,
            opened_at: now,
        };
        journal.make_spare(now)?;
        Ok((journal, found.corrupt))
    }
}

/// The files of the directory, by what they are for.
#[derive(Default)]
struct Files {
    slices: BTreeMap<u64, PathBuf>,
    /// Ids of slices whose file was set aside, at an earlier start.
    set_aside: BTreeSet<u64>,
}

impl Files {
    /// Lists the directory, removes what is unfinished and finishes what a crash has interrupted.
    fn of(disk: &dyn Disk, dir: &Path) -> Result<Self, JournalError> {
        let mut files = Self::default();
        let mut built = Vec::new();
        for path in disk
            .list(dir)
            .map_err(JournalError::io("list the journal"))?
        {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.unwrap_or_default();
            match path.extension().and_then(|suffix| suffix.to_str()) {
                Some("tmp" | repair::BUILDING) => disk
                    .remove(&path)
                    .map_err(JournalError::io("remove an unfinished file"))?,
                Some(repair::BUILT) => built.push(path),
                _ => match name.strip_suffix(super::SET_ASIDE) {
                    Some(slice) => files.set_aside.extend(slice_id(slice)),
                    None => files.slices.extend(slice_id(name).map(|id| (id, path))),
                },
            }
        }
        for built in built {
            let path = built.with_extension("redb");
            let id = path.file_name().and_then(|name| slice_id(name.to_str()?));
            let Some(id) = id else { continue };
            let damaged_is_there = files.slices.contains_key(&id);
            if repair::finish_exchange(disk, &built, &path, damaged_is_there)? {
                files.slices.insert(id, path);
            }
        }
        Ok(files)
    }
}

/// A slice file after a first look at it.
enum Opened {
    Slice(Arc<Slice>),
    Damaged {
        id: u64,
        path: PathBuf,
        reason: String,
    },
}

/// What the directory holds.
#[derive(Default)]
struct Found {
    opened: Vec<Opened>,
    slices: Vec<Arc<Slice>>,
    corrupt: Vec<Corruption>,
    /// Highest numbers of all slices so far, in the order of slices.
    known: Known,
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
        let settings = slice_settings(options);
        let opened = Slice::open(disk, path, id, settings)
            .and_then(|slice| with_verdicts(slice, &mut self.corrupt));
        self.opened.push(match opened {
            Ok(slice) => Opened::Slice(Arc::new(slice)),
            Err(StoreError::Damaged(reason)) => Opened::Damaged {
                id,
                path: path.to_owned(),
                reason,
            },
            Err(error) => return Err(error.during("open a slice")),
        });
        Ok(())
    }

    /// Takes back what lies in slice files and is not shown, slice by slice: each knows what came before it.
    fn repair(
        &mut self,
        repair: &Repair<'_>,
        set_aside: &BTreeSet<u64>,
    ) -> Result<(), JournalError> {
        let mut opened = std::mem::take(&mut self.opened).into_iter();
        if opened
            .as_slice()
            .first()
            .is_some_and(|first| first.id() == FIRST_SLICE)
        {
            self.known.last_sequence = Some(0);
        }
        while let Some(one) = opened.next() {
            let after = after(one.id(), opened.as_slice(), set_aside);
            let slice = match one {
                Opened::Slice(slice) => {
                    self.known.raise_to(&slice);
                    let is_whole = slice.was_closed || slice.state().is_sealed();
                    if !is_whole {
                        let after = after.filter(|after| after.adjacent);
                        let lost = repair.adopt(&slice, &self.known, after.as_ref())?;
                        self.corrupt.extend(lost);
                    }
                    slice
                }
                Opened::Damaged { id, path, reason } => {
                    let (slice, lost) =
                        repair.rebuild(id, &path, &reason, &self.known, after.as_ref())?;
                    self.corrupt.extend(lost);
                    let Some(slice) = slice else { continue };
                    let slice = with_verdicts(slice, &mut self.corrupt);
                    Arc::new(slice.map_err(|error| error.during("read verdicts"))?)
                }
            };
            self.known.raise_to(&slice);
            self.slices.push(slice);
        }
        Ok(())
    }

    /// The boot in which the newest frame was written; 0 when nothing tells.
    fn last_boot(&self) -> Result<u64, JournalError> {
        let Some(slice) = self.slices.last() else {
            return Ok(0);
        };
        let last = slice.state().last_sequence().unwrap_or_default();
        match slice.boot_of(FrameId(last)) {
            Ok(boot) => Ok(boot.unwrap_or_default()),
            Err(StoreError::Damaged(_)) => Ok(0),
            Err(error) => Err(error.during("read the newest frame")),
        }
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

impl Opened {
    fn id(&self) -> u64 {
        match self {
            Self::Slice(slice) => slice.id,
            Self::Damaged { id, .. } => *id,
        }
    }
}

impl Known {
    /// Takes note of a slice's frames, and of what it says of those before it.
    fn raise_to(&mut self, slice: &Slice) {
        let state = slice.state();
        self.raise(state.carried.iter().map(|(shard, last)| (*shard, *last)));
        self.raise(state.ranges.values().map(|range| (range.shard, range.last)));
        if let Some(last) = state.last_sequence() {
            self.last_sequence = Some(last);
            self.last_commit = Some(state.last_commit);
        }
    }
}

/// The next frames behind a slice that some other slice holds.
fn after(id: u64, later: &[Opened], set_aside: &BTreeSet<u64>) -> Option<After> {
    let holder = later.iter().enumerate().find_map(|(place, one)| match one {
        Opened::Slice(slice) if slice.state().frames > 0 => Some((place, slice)),
        _ => None,
    });
    let (place, holder) = holder?;
    let state = holder.state();
    let aside = set_aside.range(id + 1..holder.id).next();
    Some(After {
        first_sequence: state.first_sequence,
        carried: state.carried.clone(),
        adjacent: place == 0 && aside.is_none(),
    })
}

/// Completes a slice that is not sealed by its verdicts.
fn with_verdicts(slice: Slice, corrupt: &mut Vec<Corruption>) -> Result<Slice, StoreError> {
    if slice.state().is_sealed() {
        return Ok(slice);
    }
    let mut lost = Vec::new();
    let restored = restore_verdicts(&slice, &mut lost);
    if let Err(error) = restored {
        // A damaged database may assert while it is closed.
        let _ = guarded(|| {
            drop(slice);
            Ok(())
        });
        return Err(error);
    }
    corrupt.append(&mut lost);
    Ok(slice)
}

/// Reads the verdicts of a slice that is not sealed. A frame whose bytes are rotten is reported and skipped; damage of
/// the tree is an error.
fn restore_verdicts(slice: &Slice, lost: &mut Vec<Corruption>) -> Result<(), StoreError> {
    let (first, last) = {
        let state = slice.state();
        (state.first_sequence, state.last_sequence())
    };
    let Some(last) = last else {
        return Ok(());
    };
    for id in (first..=last).map(FrameId) {
        if slice.frame_row(id)?.kinds & RecordKind::Verdicts.bit() == 0 {
            continue;
        }
        let bytes = slice.frame_bytes(id)?.unwrap_or_default();
        let keys = Frame::decode(&bytes).and_then(|frame| frame.verdict_keys());
        match keys {
            Ok(keys) => {
                let hash = |key: &VerdictKey| slice.hash(key.shard, &key.tenant, key.trace_id);
                let hashes: Vec<_> = keys.iter().map(|key| (key.shard, hash(key))).collect();
                slice.restore_verdicts(id, &hashes);
            }
            Err(error) => lost.push(corrupt(slice, id, error.to_string())),
        }
    }
    Ok(())
}
