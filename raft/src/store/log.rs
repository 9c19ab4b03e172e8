//! openraft's log storage on the redb file. Invariant: the log is dense, from after `purged` to its last entry.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};

use super::Database;
use super::database::{LOG, key, put, redb_error};
use crate::codec::{self, Kind};
use crate::limits::MAX_APPEND_BYTES;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// The log and the vote. Cheap to clone: readers are clones.
#[derive(Clone)]
pub(crate) struct LogStore {
    database: Database,
}

impl LogStore {
    pub(crate) fn new(database: Database) -> Self {
        Self { database }
    }

    fn read(
        &self,
        range: Option<RangeInclusive<u64>>,
        most_bytes: usize,
    ) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if let Some(range) = range {
            self.database.entries(range, most_bytes, &mut |entry| {
                entries.push(entry);
                Ok(())
            })?;
        }
        Ok(entries)
    }
}

/// The same range with both ends in it; `None` when it is empty.
fn inclusive(range: &impl RangeBounds<u64>) -> Option<RangeInclusive<u64>> {
    let first = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let last = match range.end_bound() {
        Bound::Included(last) => *last,
        Bound::Excluded(after) => after.checked_sub(1)?,
        Bound::Unbounded => u64::MAX,
    };
    (first <= last).then_some(first..=last)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(inclusive(&range), usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.database.get(key::VOTE, Kind::Vote)?)
    }

    /// What one append message carries: a prefix of the range, at least one entry.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(inclusive(&(start..end)), MAX_APPEND_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged: Option<LogId> = self.database.get(key::PURGED, Kind::LogId)?;
        let last = self.database.last_entry()?.map(|entry| entry.log_id);
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.database
            .write(|transaction| put(transaction, key::VOTE, Kind::Vote, vote))?;
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else {
            return Ok(());
        };
        self.database
            .write(|transaction| put(transaction, key::COMMITTED, Kind::LogId, &committed))?;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.database.get(key::COMMITTED, Kind::LogId)?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = <TypeConfig as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.database.write(|transaction| {
            let mut table = transaction.open_table(LOG).map_err(redb_error)?;
            for entry in entries {
                let bytes = codec::seal(Kind::Entry, &entry).map_err(io::Error::other)?;
                table
                    .insert(entry.log_id.index, bytes.as_slice())
                    .map_err(redb_error)?;
            }
            Ok(())
        })?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let first = last.map_or(0, |last| last.index.saturating_add(1));
        self.database.write(|transaction| {
            let mut table = transaction.open_table(LOG).map_err(redb_error)?;
            table.retain_in(first.., |_, _| false).map_err(redb_error)
        })?;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.database.write(|transaction| {
            let mut table = transaction.open_table(LOG).map_err(redb_error)?;
            table
                .retain_in(..=upto.index, |_, _| false)
                .map_err(redb_error)?;
            drop(table);
            put(transaction, key::PURGED, Kind::LogId, &upto)
        })?;
        Ok(())
    }
}
