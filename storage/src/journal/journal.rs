//! The journal itself: committing and reading.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use spandrel_model::ids::{Lsn, ShardId, UnixNanos};

use super::checkpoint::{self, CheckpointFile};
use super::encoded::EncodedFrame;
use super::error::{Corruption, JournalError};
use super::frame::Frame;
use super::options::JournalOptions;
use super::record::{FrameId, LsnRange, SliceInfo};
use super::slice::{NewFrame, Slice, SliceSettings};
use super::slice_rows::FrameRow;
use super::store::{Commit, StoreError};
use super::voids::Voids;
use crate::byte_cache::ByteCache;
use crate::disk::Disk;
use crate::limits::{CACHE_SHARES, MAX_FRAME_IDS, MIN_REDB_CACHE_BYTES};

/// The journal of a node. Every method blocks; reads do not wait for commits, nor commits for reads.
///
/// Invariants: slices are in ascending order of their ids and of the frames in them, and only the last one can be
/// open; the spare one has no frame. Locks are taken in the order `upkeep`, `writer`, `slices`, a slice's own, and
/// none but `writer` and `upkeep` is held during I/O.
pub struct Journal {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) options: JournalOptions,
    pub(super) slices: RwLock<Vec<Arc<Slice>>>,
    pub(super) writer: Mutex<Writer>,
    /// Held by those who seal and trim.
    pub(super) upkeep: Mutex<()>,
    pub(super) last_lsns: RwLock<BTreeMap<ShardId, Lsn>>,
    pub(super) cache: Mutex<ByteCache<FrameId, Arc<Frame>>>,
    pub(super) checkpoints: CheckpointFile,
    /// Records that do not count any more, by shard.
    pub(super) voids: RwLock<Voids>,
    pub(super) opened_at: UnixNanos,
}

/// What only the committing thread changes.
#[derive(Default)]
pub(super) struct Writer {
    /// Why commits are refused.
    pub(super) poisoned: Option<String>,
    pub(super) next_sequence: u64,
    pub(super) next_slice: u64,
    /// An empty slice, made ahead.
    pub(super) spare: Option<Arc<Slice>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks leaves no half-made state: each is changed in its last step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Commits frames in one transaction: durable when this returns, and their records can be located.
    ///
    /// # Errors
    /// Any error is final: what is on disk is unknown, every later commit answers [`JournalError::Poisoned`] and the
    /// process must stop.
    pub fn commit(
        &self,
        frames: &[EncodedFrame],
        now: UnixNanos,
    ) -> Result<Vec<FrameId>, JournalError> {
        let mut writer = lock(&self.writer);
        writer.check()?;
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        let committed = self.commit_with(&mut writer, frames, now);
        let committed = committed.map_err(|error| error.during("commit frames"));
        // Records that were void and come again count again: a new primary may hold what another one did not. Not
        // before they are durable, since those that were here before are not known to be the same until then.
        let counting = committed.and_then(|ids| self.count_again(frames).map(|()| ids));
        counting.inspect_err(|error| writer.poisoned = Some(error.to_string()))
    }

    /// Takes the records of frames out of those that do not count.
    fn count_again(&self, frames: &[EncodedFrame]) -> Result<(), JournalError> {
        for range in frames.iter().flat_map(EncodedFrame::ranges) {
            let met = {
                let voids = self.voids.read().unwrap_or_else(PoisonError::into_inner);
                voids.meets(range)
            };
            if met {
                let (gone, left) = {
                    let mut voids = self.voids.write().unwrap_or_else(PoisonError::into_inner);
                    voids.remove(range)
                };
                self.checkpoints.replace_voids(range.shard, &gone, &left)?;
            }
        }
        Ok(())
    }

    fn commit_with(
        &self,
        writer: &mut Writer,
        frames: &[EncodedFrame],
        now: UnixNanos,
    ) -> Result<Vec<FrameId>, StoreError> {
        let slice = self.writable_slice(writer, frames.len(), now)?;
        let first = writer.next_sequence;
        let carried = self.last_lsns().clone();
        let new: Vec<NewFrame<'_>> = frames
            .iter()
            .map(|frame| NewFrame {
                row: FrameRow {
                    committed_at: now,
                    kinds: frame.kinds(),
                    bytes: frame.bytes().len() as u64,
                    ranges: frame.ranges().to_vec(),
                },
                bytes: frame.bytes(),
                verdict_keys: frame.verdict_keys(),
            })
            .collect();
        slice.commit(first, &new, &carried, self.options.boot)?;
        writer.next_sequence += frames.len() as u64;

        let last_lsns = self.last_lsns.write();
        let mut last_lsns = last_lsns.unwrap_or_else(PoisonError::into_inner);
        for range in frames.iter().flat_map(EncodedFrame::ranges) {
            let last = last_lsns.entry(range.shard).or_default();
            *last = range.last.max(*last);
        }
        Ok((first..writer.next_sequence).map(FrameId).collect())
    }

    /// The open slice, or the next one when it is full or old.
    fn writable_slice(
        &self,
        writer: &mut Writer,
        frames: usize,
        now: UnixNanos,
    ) -> Result<Arc<Slice>, StoreError> {
        let last = self.slice_list().last().map(Arc::clone);
        if let Some(slice) = last {
            let state = slice.state();
            let age = now.since(state.first_commit);
            let room = u32::MAX as usize - state.frames as usize;
            let full = state.bytes >= self.options.slice_bytes
                || age >= self.options.slice_nanos
                || frames > room;
            let writable = !state.closed && !full;
            drop(state);
            if writable {
                return Ok(slice);
            }
            slice.close();
        }
        let next = match writer.spare.take() {
            Some(spare) => spare,
            None => {
                writer.next_slice += 1;
                self.create_slice(writer.next_slice - 1, now)?
            }
        };
        let slices = self.slices.write();
        let mut slices = slices.unwrap_or_else(PoisonError::into_inner);
        slices.push(Arc::clone(&next));
        Ok(next)
    }

    pub(super) fn create_slice(&self, id: u64, now: UnixNanos) -> Result<Arc<Slice>, StoreError> {
        let path = super::open::slice_path(&self.dir, id);
        let settings = slice_settings(&self.options);
        let slice = Slice::create(self.disk.as_ref(), &path, id, settings, now)?;
        Ok(Arc::new(slice))
    }

    /// The highest number of a shard that was ever committed here; 0 when none was. Trimming does not change it.
    #[must_use]
    pub fn last_lsn(&self, shard: ShardId) -> Lsn {
        self.last_lsns().get(&shard).copied().unwrap_or_default()
    }

    /// The frame that holds a record; `None` when none does.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when the store cannot be read.
    pub fn locate(&self, shard: ShardId, lsn: Lsn) -> Result<Option<FrameId>, JournalError> {
        if self.is_void(shard, lsn) {
            return Ok(None);
        }
        for slice in self.held_slices().iter().rev() {
            let found = slice.locate(shard, lsn);
            if let Some(id) = found.map_err(|error| error.during("locate a record"))? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The first record of a shard from `lsn` on that the journal holds, and its frame; `None` when there is none.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when the store cannot be read.
    pub fn locate_from(
        &self,
        shard: ShardId,
        lsn: Lsn,
    ) -> Result<Option<(Lsn, FrameId)>, JournalError> {
        let mut first: Option<(Lsn, FrameId)> = None;
        for slice in self.held_slices() {
            let found = slice.locate_from(shard, lsn);
            let found = found.map_err(|error| error.during("locate a record"))?;
            first = match (first, found) {
                (Some(first), Some(found)) => Some(first.min(found)),
                (first, found) => first.or(found),
            };
        }
        Ok(first)
    }

    /// The last record of a shard up to `lsn` that the journal holds; `None` when there is none.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when the store cannot be read.
    pub fn floor(&self, shard: ShardId, lsn: Lsn) -> Result<Option<Lsn>, JournalError> {
        let mut lsn = lsn;
        loop {
            let mut last = None;
            for slice in self.held_slices() {
                let found = slice.floor(shard, lsn);
                let found = found.map_err(|error| error.during("look for a record"))?;
                last = last.max(found);
            }
            match last.map(|last| (last, self.void_start(shard, last))) {
                Some((_, Some(start))) => lsn = Lsn(start.0.saturating_sub(1)),
                Some((last, None)) => return Ok(Some(last)),
                None => return Ok(None),
            }
        }
    }

    /// The highest number of a shard that was ever committed here and counts; 0 when none was.
    #[must_use]
    pub fn last_valid(&self, shard: ShardId) -> Lsn {
        let mut last = self.last_lsn(shard);
        while let Some(start) = self.void_start(shard, last) {
            let before = Lsn(start.0.saturating_sub(1));
            // Where the records before it were trimmed, nothing tells their numbers; they are below it.
            last = match self.floor(shard, before) {
                Ok(Some(floor)) => floor,
                _ => before,
            };
        }
        last
    }

    /// The first record of those that do not count around this one; `None` when this one counts.
    fn void_start(&self, shard: ShardId, lsn: Lsn) -> Option<Lsn> {
        let voids = self.voids.read().unwrap_or_else(PoisonError::into_inner);
        voids.start(shard, lsn)
    }

    /// Declares that the records of a shard behind `after`, up to `last`, do not count: a primary of an earlier term left
    /// them behind, and nobody was told that they are durable. Durable when this returns. One that is committed again
    /// counts again.
    ///
    /// # Errors
    /// As [`Self::write_checkpoints`].
    pub fn void_after(&self, shard: ShardId, after: Lsn, last: Lsn) -> Result<(), JournalError> {
        if last <= after {
            return Ok(());
        }
        let range = LsnRange {
            shard,
            first: after.next(),
            last,
        };
        self.checkpoints.write_void(&range)?;
        let mut voids = self.voids.write().unwrap_or_else(PoisonError::into_inner);
        voids.add(range);
        Ok(())
    }

    /// Whether a record does not count any more.
    #[must_use]
    pub fn is_void(&self, shard: ShardId, lsn: Lsn) -> bool {
        let voids = self.voids.read().unwrap_or_else(PoisonError::into_inner);
        voids.contains(shard, lsn)
    }

    /// A frame, decoded; recently used ones come from memory.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] when its checksum or format fails, [`JournalError::Gone`] when it was trimmed or
    /// never was, [`JournalError::Disk`] when the store cannot be read.
    pub fn frame(&self, id: FrameId) -> Result<Arc<Frame>, JournalError> {
        if let Some(frame) = lock(&self.cache).get(id) {
            return Ok(frame);
        }
        let frame = Arc::new(self.read(id, Vec::new())?);
        lock(&self.cache).insert(id, Arc::clone(&frame), frame.memory_bytes());
        Ok(frame)
    }

    /// A frame from disk, past the cache, decoded into `buffer`: for those who read many frames, each once.
    ///
    /// # Errors
    /// As [`Self::frame`].
    pub fn read(&self, id: FrameId, buffer: Vec<u8>) -> Result<Frame, JournalError> {
        let slice = self.slice_of(id).ok_or(JournalError::Gone { frame: id })?;
        let bytes = match slice.frame_bytes(id) {
            Ok(bytes) => bytes.ok_or(JournalError::Gone { frame: id })?,
            Err(StoreError::Damaged(reason)) => return Err(corrupt(&slice, id, reason).into()),
            Err(error) => return Err(error.during("read a frame")),
        };
        let frame = Frame::decode_into(&bytes, buffer);
        Ok(frame.map_err(|error| corrupt(&slice, id, error.to_string()))?)
    }

    /// Frames after `after` (all, when `None`) in order, at most 65,536 of them: those that were committed and not
    /// trimmed, readable or not.
    #[must_use]
    pub fn frames_after(&self, after: Option<FrameId>) -> Vec<FrameId> {
        let start = after.map_or(0, |id| id.0.saturating_add(1));
        let slices = self.slice_list();
        let ids = slices.iter().flat_map(|slice| {
            let state = slice.state();
            let first = state.first_sequence.max(start);
            first..state.last_sequence().map_or(first, |last| last + 1)
        });
        ids.take(MAX_FRAME_IDS).map(FrameId).collect()
    }

    /// Frames before `before` (all, when `None`), the newest first, at most 65,536 of them.
    pub(super) fn frames_before(&self, before: Option<FrameId>) -> Vec<FrameId> {
        let end = before.map_or(u64::MAX, |id| id.0);
        let slices = self.slice_list();
        let ids = slices.iter().rev().flat_map(|slice| {
            let state = slice.state();
            let first = state.first_sequence;
            let after = state.last_sequence().map_or(first, |last| last + 1);
            (first..after.min(end).max(first)).rev()
        });
        ids.take(MAX_FRAME_IDS).map(FrameId).collect()
    }

    /// The slice that holds a frame.
    pub(super) fn slice_of(&self, id: FrameId) -> Option<Arc<Slice>> {
        // A slice that was just opened has no frame yet, and so no place in the order of their sequences.
        let slices = self.slice_list();
        let holder = slices
            .iter()
            .rev()
            .find(|slice| slice.state().contains(id.0));
        holder.map(Arc::clone)
    }

    /// The slices that hold frames, oldest first.
    #[must_use]
    pub fn slices(&self) -> Vec<SliceInfo> {
        let slices = self.held_slices();
        let info = slices.iter().map(|slice| slice.info(self.allocated(slice)));
        info.collect()
    }

    /// When the oldest frame that is still held was committed; when the journal was opened, while it holds none.
    #[must_use]
    pub fn covered_since(&self) -> UnixNanos {
        let slices = self.slice_list();
        let oldest = slices.iter().find(|slice| slice.state().frames > 0);
        oldest.map_or(self.opened_at, |slice| slice.state().first_commit)
    }

    /// Bytes that the journal takes on disk: slices, the spare one and the checkpoints.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        let spare = lock(&self.writer).spare.as_ref().map(Arc::clone);
        let slices = self.held_slices();
        let slices = slices.iter().chain(&spare);
        let checkpoints = self.disk.allocated(&checkpoint::path(&self.dir));
        let slices: u64 = slices.map(|slice| self.allocated(slice)).sum();
        slices + checkpoints.unwrap_or_default()
    }

    /// Bytes of memory that the indexes over frames and verdicts take, about.
    #[must_use]
    pub fn index_memory_bytes(&self) -> usize {
        let slices = self.slice_list();
        slices.iter().map(|slice| slice.index_memory_bytes()).sum()
    }

    /// Replaces a shard's checkpoint: what it must remember besides the journal, as of `lsn`. Durable when this
    /// returns.
    ///
    /// # Errors
    /// As [`Self::write_checkpoints`].
    pub fn write_checkpoint(
        &self,
        shard: ShardId,
        lsn: Lsn,
        bytes: &[u8],
    ) -> Result<(), JournalError> {
        self.write_checkpoints(&[(shard, lsn, bytes)])
    }

    /// Replaces the checkpoints of several shards in one transaction. Durable when this returns.
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] over 256 MiB for a shard. Any other error is final, as with [`Self::commit`].
    pub fn write_checkpoints(
        &self,
        checkpoints: &[(ShardId, Lsn, &[u8])],
    ) -> Result<(), JournalError> {
        self.checkpoints.write(checkpoints)
    }

    /// A shard's checkpoint; `None` also when its checksum fails: replay then starts at the beginning.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when the store cannot be read.
    pub fn checkpoint(&self, shard: ShardId) -> Result<Option<(Lsn, Vec<u8>)>, JournalError> {
        self.checkpoints.read(shard)
    }

    pub(super) fn allocated(&self, slice: &Slice) -> u64 {
        // A figure for people and for trimming: a file that was removed meanwhile counts nothing.
        self.disk.allocated(&slice.path).unwrap_or_default()
    }

    /// The slices as they are now, held beyond a trim.
    pub(super) fn held_slices(&self) -> Vec<Arc<Slice>> {
        self.slice_list().clone()
    }

    pub(super) fn slice_list(&self) -> RwLockReadGuard<'_, Vec<Arc<Slice>>> {
        self.slices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_lsns(&self) -> RwLockReadGuard<'_, BTreeMap<ShardId, Lsn>> {
        let last_lsns = self.last_lsns.read();
        last_lsns.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    pub(super) fn check(&self) -> Result<(), JournalError> {
        match &self.poisoned {
            Some(cause) => Err(JournalError::Poisoned {
                cause: cause.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// The report of a frame that cannot be read, with what the directory says was in it.
pub(super) fn corrupt(slice: &Slice, id: FrameId, reason: String) -> Corruption {
    let row = slice.frame_row(id);
    Corruption {
        slice: slice.id,
        frame: Some(id),
        lost: row.map(|row| row.ranges).unwrap_or_default(),
        reason,
    }
}

pub(super) fn slice_settings(options: &JournalOptions) -> SliceSettings {
    SliceSettings {
        cache_bytes: (options.redb_cache_bytes / CACHE_SHARES).max(MIN_REDB_CACHE_BYTES),
        hash_seed: options.hash_seed,
        commit: match options.two_phase {
            true => Commit::TwoPhase,
            false => Commit::OnePhase,
        },
    }
}
