//! redb, kept in one place: opening files through the disk's seam, and telling damage from failure.

use std::io;
use std::path::Path;

use redb::{Builder, Database, Durability, ReadTransaction, ReadableDatabase, WriteTransaction};
use xxhash_rust::xxh3::xxh3_64;

use super::error::JournalError;
use crate::disk::{Backend, Disk};
use crate::guard;

/// Version of the small blobs that [`seal_blob`] writes.
const BLOB_VERSION: u8 = 1;
/// Version and checksum before a blob's content.
const BLOB_HEADER_BYTES: usize = 9;

/// Where redb keeps the flags of a file: behind its magic number (redb's docs/design.md).
const REDB_FLAGS: usize = 9;
/// The flag of a file that is open or was left so.
const REDB_RECOVERY_REQUIRED: u8 = 2;

/// Why redb did not do it.
#[derive(Debug, Clone)]
pub(crate) enum StoreError {
    /// What is stored makes no sense.
    Damaged(String),
    /// The system failed; what is stored may be fine.
    Failed(String),
}

impl StoreError {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Damaged(reason) | Self::Failed(reason) => reason,
        }
    }

    pub(crate) fn during(self, what: &'static str) -> JournalError {
        JournalError::Disk {
            what,
            reason: self.reason(),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        let error: redb::Error = error.into();
        let text = error.to_string();
        match error {
            redb::Error::Io(io) => match io.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Damaged(text),
                _ => Self::Failed(text),
            },
            redb::Error::Corrupted(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted => Self::Damaged(text),
            _ => Self::Failed(text),
        }
    }
}

/// Runs redb: what it cannot bear costs a slice.
pub(crate) fn guarded<T>(run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let impossible = || StoreError::Damaged("the store found impossible pages".into());
    guard::guarded(run).unwrap_or_else(|| Err(impossible()))
}

/// Opens a database file, repairing it after a crash, or makes a new one in an empty file.
pub(crate) fn open_database(
    backend: io::Result<Box<dyn redb::StorageBackend>>,
    cache_bytes: usize,
) -> Result<Database, StoreError> {
    let backend = backend.map_err(redb::Error::Io)?;
    guarded(|| {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        Ok(builder.create_with_backend(Backend(backend))?)
    })
}

/// Whether a database file was closed in order, and not left open by a crash: then its newest commit is whole. Asked
/// before the file is opened, which changes it.
pub(crate) fn was_closed(file: &dyn redb::StorageBackend) -> bool {
    let mut header = [0; REDB_FLAGS + 1];
    let read = file.read(0, &mut header);
    let flags = header.last().copied().unwrap_or(REDB_RECOVERY_REQUIRED);
    read.is_ok() && flags & REDB_RECOVERY_REQUIRED == 0
}

/// Makes a database under a temporary name and renames it when `fill` has committed: a crash while redb creates a
/// file leaves one that never opens (measured), so such a file must never have the real name.
pub(crate) fn create_database(
    disk: &dyn Disk,
    path: &Path,
    cache_bytes: usize,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
) -> Result<Database, StoreError> {
    let temporary = path.with_extension("tmp");
    let database = open_database(disk.create(&temporary), cache_bytes)?;
    write(&database, Commit::QuickRepair, fill)?;
    disk.rename(&temporary, path).map_err(redb::Error::Io)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(redb::Error::Io)?;
    Ok(database)
}

/// How a transaction is made durable. Each is on disk when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    /// One fsync.
    OnePhase,
    /// Two.
    TwoPhase,
    /// Two, and the file opens at once after a crash, however large it is.
    QuickRepair,
}

/// One durable write transaction.
pub(crate) fn write(
    database: &Database,
    commit: Commit,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    guarded(|| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_two_phase_commit(commit == Commit::TwoPhase);
        transaction.set_quick_repair(commit == Commit::QuickRepair);
        fill(&transaction)?;
        Ok(transaction.commit()?)
    })
}

/// One read transaction.
pub(crate) fn read<T>(
    database: &Database,
    run: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    guarded(|| run(&database.begin_read()?))
}

/// A blob with its version and checksum before it.
pub(crate) fn seal_blob(content: &[u8]) -> Vec<u8> {
    let mut blob = Vec::with_capacity(BLOB_HEADER_BYTES + content.len());
    blob.push(BLOB_VERSION);
    blob.extend_from_slice(&xxh3_64(content).to_le_bytes());
    blob.extend_from_slice(content);
    blob
}

/// The content of what [`seal_blob`] made.
pub(crate) fn open_blob(blob: &[u8]) -> Result<&[u8], StoreError> {
    let damaged = |reason: &str| StoreError::Damaged(reason.into());
    let (header, content) = blob
        .split_first_chunk::<BLOB_HEADER_BYTES>()
        .ok_or_else(|| damaged("a row is shorter than its header"))?;
    let [version, checksum @ ..] = *header;
    if version != BLOB_VERSION {
        return Err(damaged("a row has an unknown version"));
    }
    if u64::from_le_bytes(checksum) != xxh3_64(content) {
        return Err(damaged("a row's checksum does not match"));
    }
    Ok(content)
}
