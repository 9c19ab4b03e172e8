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
    /// As the journal's checkpoint file holds them; held while it is written and while the journal is trimmed.
    written: Mutex<Vec<Lsn>>,
}

impl Checkpoints {
    /// The marks that the journal holds; 0, the beginning, where it holds none.
    pub(crate) fn read(journal: &Journal, shards: u16) -> Self {
        let shards = (0..shards).map(ShardId);
        let marks = shards.map(|shard| match journal.checkpoint(shard) {
            Ok(Some((lsn, _))) => lsn,
            _ => Lsn(0),
        });
        let written: Vec<Lsn> = marks.collect();
        Self {
            wanted: written.iter().map(|lsn| AtomicU64::new(lsn.0)).collect(),
            written: Mutex::new(written),
        }
    }

    fn written(&self) -> MutexGuard<'_, Vec<Lsn>> {
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
        let marks = (0u16..).map(ShardId).zip(&self.wanted).zip(&*written);
        let changed: Vec<(ShardId, Lsn)> = marks
            .map(|((shard, wanted), written)| (shard, Lsn(wanted.load(Ordering::Relaxed)), written))
            .filter(|(_, wanted, written)| wanted != *written)
            .map(|(shard, wanted, _)| (shard, wanted))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let rows: Vec<(ShardId, Lsn, &[u8])> = changed
            .iter()
            .map(|(shard, lsn)| (*shard, *lsn, &[][..]))
            .collect();
        journal.write_checkpoints(&rows)?;
        for (shard, lsn) in changed {
            written[usize::from(shard.0)] = lsn;
        }
        Ok(())
    }

    /// Trims while no mark is lowered; `trim` is told the first record that each shard may still need.
    pub(crate) fn trimming<T>(&self, trim: impl FnOnce(&dyn Fn(ShardId) -> Lsn) -> T) -> T {
        let written = self.written();
        trim(&|shard| {
            let written = written.get(usize::from(shard.0)).copied();
            let needed = written.map(|written| written.min(self.mark(shard)).next());
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
