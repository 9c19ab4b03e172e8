//! What a restart must know of each shard, in memory as it is now and on disk as it was a moment ago: from where it is
//! replayed, what counts, and whether the replay finds all that there was.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use spandrel_model::ids::{Lsn, ShardId, Term};
use spandrel_storage::journal::{Journal, JournalError};

/// The checkpoints of all shards.
///
/// Invariant: no record after the lower one of a shard's two marks is trimmed.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// As they are now.
    wanted: Vec<Wanted>,
    /// As the journal's checkpoint file holds them; held while it is written and while the journal is trimmed.
    written: Mutex<Vec<Checkpoint>>,
}

/// A checkpoint, as it is now.
#[derive(Debug)]
struct Wanted {
    mark: AtomicU64,
    counted: AtomicU64,
    all_behind: AtomicU64,
    let_go: AtomicU64,
}

/// The checkpoint of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Checkpoint {
    /// The last record before the first one that an entry of the shard needs.
    mark: Lsn,
    /// The last record of which this node knows that it counts.
    counted: Lsn,
    /// The journal was given all records of the shard behind this one.
    all_behind: Lsn,
    /// The term in which the shard's state was let go or begun anew here, until the node is in sync in a later one; 0 when
    /// the state is that of all records.
    let_go: Term,
}

/// The last three, big endian.
type Data = [u8; 24];

impl Checkpoint {
    /// Reads the data of a checkpoint. Before it had 24 bytes it held what counts, or nothing: of the rest the worst is
    /// taken.
    fn read(mark: Lsn, data: &[u8]) -> Self {
        let number = |at: usize| {
            let bytes = data.get(at..at + 8)?;
            bytes.try_into().ok().map(u64::from_be_bytes)
        };
        Self {
            mark,
            counted: Lsn(number(0).unwrap_or_default()),
            all_behind: Lsn(number(8).unwrap_or(u64::MAX)),
            let_go: Term(number(16).unwrap_or(u64::MAX)),
        }
    }

    fn data(&self) -> Data {
        let numbers = [self.counted.0, self.all_behind.0, self.let_go.0];
        let mut data = Data::default();
        for (bytes, number) in data.chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&number.to_be_bytes());
        }
        data
    }
}

impl Wanted {
    fn new(written: &Checkpoint) -> Self {
        Self {
            mark: AtomicU64::new(written.mark.0),
            counted: AtomicU64::new(written.counted.0),
            all_behind: AtomicU64::new(written.all_behind.0),
            let_go: AtomicU64::new(written.let_go.0),
        }
    }

    fn now(&self) -> Checkpoint {
        Checkpoint {
            // First: what was let go before the mark was raised is seen with it.
            mark: Lsn(self.mark.load(Ordering::Acquire)),
            counted: Lsn(self.counted.load(Ordering::Relaxed)),
            all_behind: Lsn(self.all_behind.load(Ordering::Relaxed)),
            let_go: Term(self.let_go.load(Ordering::Relaxed)),
        }
    }
}

impl Checkpoints {
    /// The checkpoints that the journal holds; of a shard of which it holds none everything is needed, and there.
    pub(crate) fn read(journal: &Journal, shards: u16) -> Self {
        let shards = (0..shards).map(ShardId);
        let read = shards.map(|shard| match journal.checkpoint(shard) {
            Ok(Some((lsn, data))) => Checkpoint::read(lsn, &data),
            Ok(None) => Checkpoint::default(),
            Err(_) => Checkpoint::read(Lsn(0), &[]),
        });
        let written: Vec<Checkpoint> = read.collect();
        Self {
            wanted: written.iter().map(Wanted::new).collect(),
            written: Mutex::new(written),
        }
    }

    fn wanted(&self, shard: ShardId) -> &Wanted {
        &self.wanted[usize::from(shard.0)]
    }

    /// The last record of a shard of which this node knows that it counts, or knew when it was last written down.
    pub(crate) fn counted(&self, shard: ShardId) -> Lsn {
        self.wanted(shard).now().counted
    }

    /// The shard's records up to `lsn` count.
    pub(crate) fn count(&self, shard: ShardId, lsn: Lsn) {
        self.wanted(shard)
            .counted
            .fetch_max(lsn.0, Ordering::Relaxed);
    }

    /// The record behind which the journal was given all of a shard. Some may have been trimmed, from the oldest on.
    pub(crate) fn all_behind(&self, shard: ShardId) -> Lsn {
        self.wanted(shard).now().all_behind
    }

    /// Whether the shard's state is that of all its records. Where records were lost it is not before a fill.
    pub(crate) fn is_whole(&self, shard: ShardId) -> bool {
        let now = self.wanted(shard).now();
        now.let_go == Term(0) && now.all_behind != Lsn(u64::MAX)
    }

    /// The term in which this process found the shard: what was let go before was let go by then.
    pub(crate) fn found(&self, shard: ShardId, term: Term) {
        let let_go = &self.wanted(shard).let_go;
        let_go.fetch_min(term.0, Ordering::Relaxed);
    }

    /// The shard's state is let go in this term. To be said first.
    pub(crate) fn let_go(&self, shard: ShardId, term: Term) {
        let let_go = &self.wanted(shard).let_go;
        let_go.store(term.0, Ordering::Relaxed);
    }

    /// The shard begins anew in this term, and gets what comes behind `from`. To be said first.
    pub(crate) fn begin_anew(&self, shard: ShardId, from: Lsn, term: Term) {
        let wanted = self.wanted(shard);
        wanted.all_behind.store(from.0, Ordering::Relaxed);
        self.let_go(shard, term);
    }

    /// The node is in sync with the shard in this term. In a later one than that in which it was let go it has been
    /// filled since.
    pub(crate) fn in_sync(&self, shard: ShardId, term: Term) {
        let let_go = &self.wanted(shard).let_go;
        if term.0 > let_go.load(Ordering::Relaxed) {
            let_go.store(0, Ordering::Relaxed);
        }
    }

    /// Records were lost, of whichever shards.
    pub(crate) fn lose_records(&self) {
        for wanted in &self.wanted {
            wanted.all_behind.store(u64::MAX, Ordering::Relaxed);
            wanted.let_go.store(u64::MAX, Ordering::Relaxed);
        }
    }

    fn written(&self) -> MutexGuard<'_, Vec<Checkpoint>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mark of a shard.
    pub(crate) fn mark(&self, shard: ShardId) -> Lsn {
        self.wanted(shard).now().mark
    }

    /// A shard's entries need nothing up to `lsn` any more.
    pub(crate) fn raise(&self, shard: ShardId, lsn: Lsn) {
        self.wanted(shard).mark.store(lsn.0, Ordering::Release);
    }

    /// A shard needs records again that it had let go. Waits for a trim that is under way.
    pub(crate) fn lower(&self, shard: ShardId, lsn: Lsn) {
        let _no_trim = self.written();
        self.wanted(shard).mark.fetch_min(lsn.0, Ordering::Relaxed);
    }

    /// Writes the checkpoints that have changed, in one transaction.
    pub(crate) fn write(&self, journal: &Journal) -> Result<(), JournalError> {
        let mut written = self.written();
        let shards = (0u16..).map(ShardId).zip(&self.wanted);
        let changed: Vec<(ShardId, Checkpoint, Data)> = shards
            .map(|(shard, wanted)| (shard, wanted.now()))
            .filter(|(shard, now)| written[usize::from(shard.0)] != *now)
            .map(|(shard, now)| (shard, now, now.data()))
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

    #[test]
    fn what_was_let_go_is_whole_again_in_sync_in_a_later_term_also_after_a_restart() {
        // given a shard that has begun anew in term 3
        let disk = SimulatedDisk::new(1);
        let first = journal(&disk);
        let (checkpoints, shard) = (Checkpoints::read(&first, 1), ShardId(0));
        assert!(checkpoints.is_whole(shard));
        checkpoints.begin_anew(shard, Lsn(70), Term(3));
        checkpoints.write(&first).unwrap();
        drop(first);

        // when a restart finds an older map, then it is not whole
        let second = journal(&disk);
        let checkpoints = Checkpoints::read(&second, 1);
        checkpoints.found(shard, Term(3));
        for term in [2, 3] {
            checkpoints.in_sync(shard, Term(term));
            assert!(!checkpoints.is_whole(shard), "term {term}");
        }

        // and it is once it was let in
        checkpoints.in_sync(shard, Term(4));
        assert!(checkpoints.is_whole(shard));
        checkpoints.write(&second).unwrap();
        drop(second);
        let again = Checkpoints::read(&journal(&disk), 1);
        assert!(again.is_whole(shard));
        assert_eq!(again.all_behind(shard), Lsn(70));
    }

    /// A directory of an earlier version does not say.
    #[test]
    fn a_checkpoint_that_says_nothing_more_is_whole_once_it_was_filled() {
        let disk = SimulatedDisk::new(1);
        let journal = journal(&disk);
        let (shard, counted) = (ShardId(0), 9u64.to_be_bytes());
        journal
            .write_checkpoints(&[(shard, Lsn(5), &counted)])
            .unwrap();
        let checkpoints = Checkpoints::read(&journal, 1);
        assert_eq!(
            (checkpoints.mark(shard), checkpoints.counted(shard)),
            (Lsn(5), Lsn(9))
        );
        assert_eq!(checkpoints.all_behind(shard), Lsn(u64::MAX));
        checkpoints.found(shard, Term(7));
        for term in [7, 8] {
            checkpoints.in_sync(shard, Term(term));
            assert!(!checkpoints.is_whole(shard), "term {term}");
        }
        checkpoints.begin_anew(shard, Lsn(20), Term(8));
        checkpoints.in_sync(shard, Term(9));
        assert!(checkpoints.is_whole(shard));
    }

    #[test]
    fn nothing_is_whole_where_records_were_lost() {
        let disk = SimulatedDisk::new(1);
        let (checkpoints, shard) = (Checkpoints::read(&journal(&disk), 1), ShardId(0));
        checkpoints.lose_records();
        checkpoints.found(shard, Term(4));
        for term in [4, 5] {
            checkpoints.in_sync(shard, Term(term));
            assert!(!checkpoints.is_whole(shard), "term {term}");
        }
        assert_eq!(checkpoints.all_behind(shard), Lsn(u64::MAX));
    }
}
