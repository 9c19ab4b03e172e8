//! The redb file of the log: tables, opening, and errors that name the file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spandrel_storage::disk::{Backend, Disk};
use tokio::sync::watch;

use super::Identity;
use crate::codec::{self, Kind};
use crate::limits::LOG_CACHE_BYTES;
use crate::state::ClusterState;
use crate::types::{Entry, LogId, SnapshotMeta, Vote};

/// Name of the log's file.
const FILE: &str = "raft.redb";
/// Name of the file while it is created.
const NEW_FILE: &str = "raft.redb.new";

/// Entries by index.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Single values by name.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Keys of [`META`].
pub(super) mod key {
    pub(in crate::store) const IDENTITY: &str = "identity";
    pub(in crate::store) const VOTE: &str = "vote";
    pub(in crate::store) const COMMITTED: &str = "committed";
    pub(in crate::store) const PURGED: &str = "purged";
    pub(in crate::store) const SNAPSHOT_META: &str = "snapshot meta";
    pub(in crate::store) const SNAPSHOT_STATE: &str = "snapshot state";
}

/// A file of the node's Raft directory that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`: {source}", path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub operation: &'static str,
    /// True when the bytes were read and are not what they should be.
    pub corrupt: bool,
    /// What the system or the check said.
    pub source: io::Error,
}

impl StoreError {
    pub(crate) fn new(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            operation,
            corrupt: source.kind() == io::ErrorKind::InvalidData,
            source,
        }
    }

    pub(super) fn corrupt(path: &Path, what: impl fmt::Display, why: impl fmt::Display) -> Self {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {why}"));
        Self::new(path, "read", source)
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// The log's redb file, open until the last clone is dropped. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    file: Arc<OpenFile>,
    path: Arc<Path>,
}

/// Fields are dropped in order: when `alive` goes, the file is closed.
struct OpenFile {
    redb: redb::Database,
    alive: watch::Sender<()>,
}

impl Database {
    pub(crate) fn path_in(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Creates the file with its identity: under another name, then renamed, so that a file with the final name is
    /// always whole.
    pub(crate) fn create(
        disk: &dyn Disk,
        dir: &Path,
        identity: Identity,
    ) -> Result<Self, StoreError> {
        Self::create_with(disk, dir, identity, |_| Ok(()))
    }

    /// As [`Database::create`], with a snapshot and nothing after it: in the term after that of the snapshot this node
    /// has voted for itself. Takes the place of a file that is there.
    pub(crate) fn create_from(
        disk: &dyn Disk,
        dir: &Path,
        identity: Identity,
        last: &LogId,
        meta: &SnapshotMeta,
        state: &ClusterState,
    ) -> Result<Self, StoreError> {
        let vote = Vote::new(last.committed_leader_id().term + 1, identity.node);
        Self::create_with(disk, dir, identity, |transaction| {
            put(transaction, key::VOTE, Kind::Vote, &vote)?;
            put(transaction, key::COMMITTED, Kind::LogId, last)?;
            put(transaction, key::PURGED, Kind::LogId, last)?;
            put(transaction, key::SNAPSHOT_META, Kind::SnapshotMeta, meta)?;
            put(transaction, key::SNAPSHOT_STATE, Kind::State, state)
        })
    }

    fn create_with(
        disk: &dyn Disk,
        dir: &Path,
        identity: Identity,
        fill: impl FnOnce(&WriteTransaction) -> io::Result<()>,
    ) -> Result<Self, StoreError> {
        let (path, new_path) = (Self::path_in(dir), dir.join(NEW_FILE));
        let fail = |operation| move |error| StoreError::new(&dir.join(FILE), operation, error);
        disk.create_dir_all(dir).map_err(fail("create"))?;
        let backend = disk.create(&new_path).map_err(fail("create"))?;
        let database = Self::with_backend(&path, backend)?;
        database.write(|transaction| {
            transaction.open_table(LOG).map_err(redb_error)?;
            put(transaction, key::IDENTITY, Kind::Identity, &identity)?;
            fill(transaction)
        })?;
        drop(database);
        disk.rename(&new_path, &path).map_err(fail("rename"))?;
        disk.sync_dir(dir).map_err(fail("sync"))?;
        Self::open(disk, dir)
    }

    /// Opens an existing file and checks all of it.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, StoreError> {
        let path = Self::path_in(dir);
        let backend = disk
            .open(&path)
            .map_err(|error| StoreError::new(&path, "open", error))?;
        // redb makes an empty file a new database: here that would be a lost vote.
        if backend.len().is_ok_and(|length| length == 0) {
            return Err(StoreError::corrupt(&path, "file", "it is empty"));
        }
        let database = Self::with_backend(&path, backend)?;
        database.verify()?;
        Ok(database)
    }

    fn with_backend(
        path: &Path,
        backend: Box<dyn redb::StorageBackend>,
    ) -> Result<Self, StoreError> {
        let redb = redb::Builder::new()
            .set_cache_size(LOG_CACHE_BYTES)
            // Reads the whole file (some MiB): a damaged one is then an error now rather than a panic later.
            .set_check_integrity_on_open(true)
            .create_with_backend(Backend(backend))
            .map_err(|error| StoreError::new(path, "open", redb_error(error)))?;
        Ok(Self {
            file: Arc::new(OpenFile {
                redb,
                alive: watch::Sender::new(()),
            }),
            path: path.into(),
        })
    }

    /// A receiver whose sender is gone once the file is closed.
    pub(crate) fn closed(&self) -> watch::Receiver<()> {
        self.file.alive.subscribe()
    }

    /// The cluster and the node that the file belongs to.
    pub(crate) fn identity(&self) -> Result<Identity, StoreError> {
        self.get(key::IDENTITY, Kind::Identity)?
            .ok_or_else(|| StoreError::corrupt(&self.path, "identity", "it is missing"))
    }

    /// Decodes every stored value once.
    fn verify(&self) -> Result<(), StoreError> {
        self.identity()?;
        self.get::<Vote>(key::VOTE, Kind::Vote)?;
        self.get::<LogId>(key::COMMITTED, Kind::LogId)?;
        self.get::<LogId>(key::PURGED, Kind::LogId)?;
        let mut previous = None;
        self.entries(0..=u64::MAX, usize::MAX, &mut |entry| {
            let index = entry.log_id.index;
            let gap = previous.is_some_and(|previous: u64| previous.checked_add(1) != Some(index));
            previous = Some(index);
            if gap {
                return Err(StoreError::corrupt(
                    &self.path,
                    "log",
                    format!("gap before {index}"),
                ));
            }
            Ok(())
        })
    }

    /// A value of [`META`].
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        key: &'static str,
        kind: Kind,
    ) -> Result<Option<T>, StoreError> {
        self.get_bytes(key)?
            .map(|bytes| codec::unseal(kind, &bytes))
            .transpose()
            .map_err(|error| StoreError::corrupt(&self.path, key, error))
    }

    /// A value of [`META`] as it is stored.
    pub(super) fn get_bytes(&self, key: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let transaction = self.file.redb.begin_read().map_err(redb_error)?;
            let table = transaction.open_table(META).map_err(redb_error)?;
            let value = table.get(key).map_err(redb_error)?;
            Ok(value.map(|value| value.value().to_vec()))
        };
        read().map_err(|error| StoreError::new(&self.path, "read", error))
    }

    /// A value of [`META`] that is not what it should be.
    pub(super) fn corrupt(&self, key: &'static str, why: impl fmt::Display) -> StoreError {
        StoreError::corrupt(&self.path, key, why)
    }

    /// Visits the entries of a range in order, until `most_bytes` of them have been seen.
    pub(super) fn entries(
        &self,
        range: std::ops::RangeInclusive<u64>,
        most_bytes: usize,
        visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let fail = |error| StoreError::new(&self.path, "read", error);
        let transaction = self
            .file
            .redb
            .begin_read()
            .map_err(redb_error)
            .map_err(fail)?;
        let table = transaction
            .open_table(LOG)
            .map_err(redb_error)
            .map_err(fail)?;
        let (mut seen_bytes, mut before) = (0, None);
        for row in table
            .range(range.clone())
            .map_err(redb_error)
            .map_err(fail)?
        {
            let (index, bytes) = row.map_err(redb_error).map_err(fail)?;
            let index = index.value();
            // redb goes by what its branches say: a page in the place of another one has other entries than were asked for.
            let follows = before
                .replace(index)
                .is_none_or(|before| before + 1 == index);
            if !follows || !range.contains(&index) {
                let reason = "the entries are not in their order";
                return Err(StoreError::corrupt(
                    &self.path,
                    format!("entry {index}"),
                    reason,
                ));
            }
            visit(self.entry(index, bytes.value())?)?;
            seen_bytes += bytes.value().len();
            if seen_bytes >= most_bytes {
                break;
            }
        }
        Ok(())
    }

    /// The last entry; `None` when there is none.
    pub(super) fn last_entry(&self) -> Result<Option<Entry>, StoreError> {
        let read = || -> io::Result<Option<(u64, Vec<u8>)>> {
            let transaction = self.file.redb.begin_read().map_err(redb_error)?;
            let table = transaction.open_table(LOG).map_err(redb_error)?;
            let last = table.last().map_err(redb_error)?;
            Ok(last.map(|(index, bytes)| (index.value(), bytes.value().to_vec())))
        };
        let last = read().map_err(|error| StoreError::new(&self.path, "read", error))?;
        last.map(|(index, bytes)| self.entry(index, &bytes))
            .transpose()
    }

    fn entry(&self, index: u64, bytes: &[u8]) -> Result<Entry, StoreError> {
        let what = || format!("entry {index}");
        let entry: Entry = codec::unseal(Kind::Entry, bytes)
            .map_err(|error| StoreError::corrupt(&self.path, what(), error))?;
        if entry.log_id.index == index {
            return Ok(entry);
        }
        let reason = format!("it says that it is entry {}", entry.log_id.index);
        Err(StoreError::corrupt(&self.path, what(), reason))
    }

    /// One durable transaction.
    pub(super) fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let write = || {
            let transaction = self.file.redb.begin_write().map_err(redb_error)?;
            change(&transaction)?;
            // redb's default durability: an fsync before it returns.
            transaction.commit().map_err(redb_error)
        };
        write().map_err(|error| StoreError::new(&self.path, "write", error))
    }
}

/// Sets a value of [`META`].
pub(super) fn put<T: Serialize>(
    transaction: &WriteTransaction,
    key: &'static str,
    kind: Kind,
    value: &T,
) -> io::Result<()> {
    let bytes = codec::seal(kind, value).map_err(io::Error::other)?;
    put_bytes(transaction, key, &bytes)
}

/// Sets a value of [`META`] that is sealed already.
pub(super) fn put_bytes(
    transaction: &WriteTransaction,
    key: &'static str,
    bytes: &[u8],
) -> io::Result<()> {
    let mut table = transaction.open_table(META).map_err(redb_error)?;
    table.insert(key, bytes).map_err(redb_error)?;
    Ok(())
}

/// redb's many errors as one: what its own check found is `InvalidData`.
pub(super) fn redb_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error @ (redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_)) => {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
        error => io::Error::other(error),
    }
}
