//! What is done beside commits: the next slice ahead of time, sealing, trimming.

use std::sync::{Arc, PoisonError};

use spandrel_model::ids::{Lsn, ShardId, UnixNanos};

use super::error::JournalError;
use super::journal::{Journal, lock};
use super::record::SliceInfo;
use super::slice::Slice;

impl Journal {
    /// Makes the next slice ahead of time and seals closed ones. Call it about once a second, off the commit path.
    ///
    /// # Errors
    /// [`JournalError::Disk`]. When sealing failed, commits are refused from then on, as after a failed commit.
    pub fn maintain(&self, now: UnixNanos) -> Result<(), JournalError> {
        let _upkeep = lock(&self.upkeep);
        lock(&self.writer).check()?;
        self.make_spare(now)?;
        for slice in self.held_slices() {
            let due = {
                let state = slice.state();
                state.closed && !state.is_sealed()
            };
            if due {
                slice.seal().map_err(|error| {
                    let error = error.during("seal a slice");
                    lock(&self.writer).poisoned = Some(error.to_string());
                    error
                })?;
            }
        }
        Ok(())
    }

    /// Not under the writer's lock: commits go on meanwhile.
    pub(super) fn make_spare(&self, now: UnixNanos) -> Result<(), JournalError> {
        let id = {
            let mut writer = lock(&self.writer);
            if writer.spare.is_some() {
                return Ok(());
            }
            writer.next_slice += 1;
            writer.next_slice - 1
        };
        let made = self.create_slice(id, now);
        let made = made.map_err(|error| error.during("make the next slice"))?;
        let mut writer = lock(&self.writer);
        // A commit that could not wait has made a later one: slices must ascend, so this one is not used.
        let newest = self.slice_list().last().map_or(0, |slice| slice.id);
        if newest < made.id {
            writer.spare = Some(made);
            return Ok(());
        }
        drop(writer);
        self.remove(&made)
    }

    /// Deletes whole slices from the oldest on, while each of their shards has passed (its highest number is below
    /// `needed_from(shard)`) and they are older than `recovery_window_nanos`, or the journal is over `max_bytes`: the
    /// window gives way to the bound, what is needed does not. The open slice stays. Returns what was deleted.
    ///
    /// # Errors
    /// [`JournalError::Disk`] when a file cannot be removed.
    pub fn trim(
        &self,
        needed_from: &dyn Fn(ShardId) -> Lsn,
        recovery_window_nanos: u64,
        max_bytes: u64,
        now: UnixNanos,
    ) -> Result<Vec<SliceInfo>, JournalError> {
        let _upkeep = lock(&self.upkeep);
        let mut bytes = self.bytes_on_disk();
        let mut trimmed = Vec::new();
        for slice in self.held_slices() {
            let info = slice.info(self.allocated(&slice));
            let needed = |shard: &super::record::LsnRange| shard.last >= needed_from(shard.shard);
            let last_commit = info.last_commit.unwrap_or_default();
            let old = last_commit.plus(recovery_window_nanos) <= now;
            if !info.closed || info.shards.iter().any(needed) || !(old || bytes > max_bytes) {
                break;
            }
            self.forget(&slice);
            self.remove(&slice)?;
            bytes = bytes.saturating_sub(info.allocated_bytes);
            trimmed.push(info);
        }
        Ok(trimmed)
    }

    /// Takes the slice out of the list: new readers do not find it, those at work keep its file open.
    fn forget(&self, slice: &Arc<Slice>) {
        let slices = self.slices.write();
        let mut slices = slices.unwrap_or_else(PoisonError::into_inner);
        slices.retain(|other| other.id != slice.id);
        drop(slices);
        if let Some(last) = slice.state().last_sequence() {
            lock(&self.cache).retain(|id| id.0 > last);
        }
    }

    fn remove(&self, slice: &Slice) -> Result<(), JournalError> {
        self.disk
            .remove(&slice.path)
            .map_err(JournalError::io("remove a slice"))?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(JournalError::io("sync the journal's directory"))
    }
}
