//! From where each shard is replayed: its low-water mark, in memory as it is now and on disk as it was a moment ago.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use spandrel_model::ids::{Lsn, ShardId};
use spandrel_storage::journal::{Journal, JournalError};

/// The marks of all shards: the last record before the first one that an entry of the shard needs.
///
/// Invariant: no record after the lower one of a shard's two marks is trimmed.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// As the assemblers say.
    wanted: Vec<AtomicU64>,
    /// The last record of each shard of which this node knows that it counts.
    counted: Vec<AtomicU64>,
    /// The marks as the journal's checkpoint file holds them, and what counts; held while it is written and while the
    /// journal is trimmed.
    written: Mutex<Vec<Written>>,
}

/// What the checkpoint file says of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Written {
    mark: Lsn,
    counted: Lsn,
}

impl Written {
    /// A checkpoint's data is the last record that counts, big endian; it was empty before.
    fn read(mark: Lsn, data: &[u8]) -> Self {
        let counted = <[u8; 8]>::try_from(data).map_or(0, u64::from_be_bytes);
        Self {
            mark,
            counted: Lsn(counted),
        }
    }
}

impl Checkpoints {
    /// The marks that the journal holds; 0, the beginning, where it holds none.
    pub(crate) fn read(journal: &Journal, shards: u16) -> Self {
        let shards = (0..shards).map(ShardId);
        let read = shards.map(|shard| match journal.checkpoint(shard) {
            Ok(Some((lsn, data))) => Written::read(lsn, &data),
            _ => Written::default(),
        });
        let written: Vec<Written> = read.collect();
        let marks = written.iter().map(|one| AtomicU64::new(one.mark.0));
        let counted = written.iter().map(|one| AtomicU64::new(one.counted.0));
        Self {
            wanted: marks.collect(),
            counted: counted.collect(),
            written: Mutex::new(written),
        }
    }

    /// The last record of a shard of which this node knows that it counts, or knew when it was last written down.
    pub(crate) fn counted(&self, shard: ShardId) -> Lsn {
        Lsn(self.counted[usize::from(shard.0)].load(Ordering::Relaxed))
    }

    /// The shard's records up to `lsn` count.
    pub(crate) fn count(&self, shard: ShardId, lsn: Lsn) {
        self.counted[usize::from(shard.0)].fetch_max(lsn.0, Ordering::Relaxed);
    }

    fn written(&self) -> MutexGuard<'_, Vec<Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mark of a shard.
    pub(crate) fn mark(&self, shard: ShardId) -> Lsn {
        Lsn(self.wanted[usize::from(shard.0)].load(Ordering::Relaxed))
    }

    /// A shard's entries need nothing up to `lsn` any more.
    pub(crate) fn raise(&self, shard: ShardId, lsn: Lsn) {
        self.wanted[usize::from(shard.0)].store(lsn.0, Ordering::Relaxed);
    }

    /// A shard needs records again that it had let go. Waits for a trim that is under way.
    pub(crate) fn lower(&self, shard: ShardId, lsn: Lsn) {
        let _no_trim = self.written();
        self.wanted[usize::from(shard.0)].fetch_min(lsn.0, Ordering::Relaxed);
    }

    /// Writes the marks that have changed, in one transaction.
    pub(crate) fn write(&self, journal: &Journal) -> Result<(), JournalError> {
        let mut written = self.written();
        let shards = (0u16..).map(ShardId).take(self.wanted.len());
        let now = shards.map(|shard| {
            let (mark, counted) = (self.mark(shard), self.counted(shard));
            (shard, Written { mark, counted })
        });
        let changed: Vec<(ShardId, Written, [u8; 8])> = now
            .filter(|(shard, now)| written[usize::from(shard.0)] != *now)
            .map(|(shard, now)| (shard, now, now.counted.0.to_be_bytes()))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let rows = changed.iter();
        let rows: Vec<(ShardId, Lsn, &[u8])> = rows
            .map(|(shard, now, data)| (*shard, now.mark, &data[..]))
            .collect();
        journal.write_checkpoints(&rows)?;
        for (shard, now, _) in changed {
            written[usize::from(shard.0)] = now;
        }
        Ok(())
    }

    /// Trims while no mark is lowered; `trim` is told the first record that each shard may still need.
    pub(crate) fn trimming<T>(&self, trim: impl FnOnce(&dyn Fn(ShardId) -> Lsn) -> T) -> T {
        let written = self.written();
        trim(&|shard| {
            let written = written.get(usize::from(shard.0));
            let needed = written.map(|written| written.mark.min(self.mark(shard)).next());
            needed.unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use spandrel_model::ids::UnixNanos;
    use spandrel_storage::disk::SimulatedDisk;
    use spandrel_storage::journal::JournalOptions;

    use super::*;

    fn journal(disk: &SimulatedDisk) -> Journal {
        let options = JournalOptions::default();
        let opened = Journal::open(
            Arc::new(disk.clone()),
            Path::new("/j"),
            options,
            UnixNanos(1),
        );
        opened.unwrap().0
    }

    fn needed(checkpoints: &Checkpoints) -> [Lsn; 2] {
        checkpoints.trimming(|needed| [needed(ShardId(0)), needed(ShardId(1))])
    }

    #[test]
    fn trims_go_by_the_lower_of_what_is_needed_now_and_what_a_restart_would_read() {
        // given a mark that is on disk
        let disk = SimulatedDisk::new(1);
        let first = journal(&disk);
        let checkpoints = Checkpoints::read(&first, 2);
        checkpoints.raise(ShardId(0), Lsn(10));
        assert_eq!(needed(&checkpoints), [Lsn(1), Lsn(1)], "it is not yet");
        checkpoints.write(&first).unwrap();
        assert_eq!(needed(&checkpoints), [Lsn(11), Lsn(1)]);

        // when records before it are needed again, then no trim takes them, written or not
        checkpoints.lower(ShardId(0), Lsn(4));
        assert_eq!(needed(&checkpoints), [Lsn(5), Lsn(1)]);
        checkpoints.lower(ShardId(0), Lsn(7));
        assert_eq!(checkpoints.mark(ShardId(0)), Lsn(4), "lowered, not raised");

        // and a restart finds what was written last
        checkpoints.write(&first).unwrap();
        drop(first);
        let again = Checkpoints::read(&journal(&disk), 2);
        assert_eq!(
            [again.mark(ShardId(0)), again.mark(ShardId(1))],
            [Lsn(4), Lsn(0)]
        );
    }
}
