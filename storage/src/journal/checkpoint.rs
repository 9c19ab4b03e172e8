//! The shards' checkpoints: one small redb file beside the slices.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::{Database, ReadableTable, Table, TableDefinition};
use spandrel_model::ids::{Lsn, ShardId};

use super::error::{Corruption, JournalError};
use super::record::LsnRange;
use super::store::{self, Commit, StoreError};
use super::voids::Voids;
use super::wire::Reader;
use crate::disk::Disk;
use crate::limits::{CHECKPOINT_CHUNK_BYTES, MAX_CHECKPOINT_BYTES, MIN_REDB_CACHE_BYTES};
use xxhash_rust::xxh3::xxh3_64;

/// `(shard, chunk)` to a piece of the shard's checkpoint.
const CHECKPOINTS: TableDefinition<'_, (u16, u32), &[u8]> = TableDefinition::new("checkpoints");
/// `(shard, first number)` to the last number of records that do not count.
const VOIDS: TableDefinition<'_, (u16, u64), u64> = TableDefinition::new("voids");
/// Name of the file in the journal's directory.
const FILE: &str = "checkpoint.redb";
/// Version of the row's format.
const VERSION: u8 = 1;
/// A cache for a few shards' rows.
const CACHE_BYTES: usize = 16 * MIN_REDB_CACHE_BYTES;

/// The file. After a failed write it refuses others: what is on disk is unknown then.
pub(crate) struct CheckpointFile {
    database: Database,
    poisoned: Mutex<Option<String>>,
}

impl CheckpointFile {
    /// Opens the file, or makes it. One that does not open is set aside and reported: replay then starts earlier.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        corrupt: &mut Vec<Corruption>,
    ) -> Result<Self, JournalError> {
        let path = dir.join(FILE);
        let exists = disk
            .list(dir)
            .map_err(JournalError::io("list the journal"))?
            .contains(&path);
        let opened = match exists {
            true => store::open_database(disk.open(&path), CACHE_BYTES)
                .and_then(|database| usable(&database).map(|()| database)),
            false => Self::create(disk, &path),
        };
        let database = match opened {
            Ok(database) => database,
            Err(StoreError::Damaged(reason)) => {
                super::set_aside(disk, &path)?;
                corrupt.push(Corruption {
                    slice: 0,
                    frame: None,
                    lost: Vec::new(),
                    reason: format!("the checkpoint file: {reason}"),
                });
                Self::create(disk, &path).map_err(|e| e.during("create the checkpoint file"))?
            }
            Err(error) => return Err(error.during("open the checkpoint file")),
        };
        Ok(Self {
            database,
            poisoned: Mutex::new(None),
        })
    }

    fn create(disk: &dyn Disk, path: &Path) -> Result<Database, StoreError> {
        store::create_database(disk, path, CACHE_BYTES, |transaction| {
            transaction.open_table(CHECKPOINTS)?;
            Ok(())
        })
    }

    /// Replaces the checkpoints of these shards in one durable transaction.
    pub(crate) fn write(&self, checkpoints: &[(ShardId, Lsn, &[u8])]) -> Result<(), JournalError> {
        for (_, _, content) in checkpoints {
            if content.len() > MAX_CHECKPOINT_BYTES {
                return Err(JournalError::TooLarge {
                    what: "a checkpoint",
                    bytes: content.len(),
                    limit_bytes: MAX_CHECKPOINT_BYTES,
                });
            }
        }
        self.write_with(|transaction| {
            let mut table = transaction.open_table(CHECKPOINTS)?;
            for (shard, lsn, content) in checkpoints {
                replace(&mut table, *shard, &encode(*lsn, content))?;
            }
            Ok(())
        })
    }

    fn write_with(
        &self,
        write: impl FnOnce(&redb::WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), JournalError> {
        let mut poisoned = self.poisoned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &*poisoned {
            return Err(JournalError::Poisoned {
                cause: cause.clone(),
            });
        }
        // Quick repair: the file may be large, and a start after a crash waits for it.
        let written = store::write(&self.database, Commit::QuickRepair, write);
        written.map_err(|error| {
            let error = error.during("write checkpoints");
            *poisoned = Some(error.to_string());
            error
        })
    }

    /// Notes records that do not count, durably.
    pub(crate) fn write_void(&self, range: &LsnRange) -> Result<(), JournalError> {
        self.write_with(|transaction| {
            let mut voids = transaction.open_table(VOIDS)?;
            let key = (range.shard.0, range.first.0);
            let known = voids.get(key)?.map_or(0, |known| known.value());
            voids.insert(key, range.last.0.max(known))?;
            Ok(())
        })
    }

    /// Notes that ranges, named by their first numbers, are replaced by what is left of them. Durable when this returns.
    pub(crate) fn replace_voids(
        &self,
        shard: ShardId,
        gone: &[Lsn],
        left: &[LsnRange],
    ) -> Result<(), JournalError> {
        self.write_with(|transaction| {
            let mut voids = transaction.open_table(VOIDS)?;
            for first in gone {
                voids.remove((shard.0, first.0))?;
            }
            for range in left {
                voids.insert((range.shard.0, range.first.0), range.last.0)?;
            }
            Ok(())
        })
    }

    /// The records that do not count.
    pub(crate) fn voids(&self) -> Result<Voids, JournalError> {
        let read = store::read(&self.database, |transaction| {
            let mut voids = Voids::default();
            let table = match transaction.open_table(VOIDS) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(voids),
                Err(error) => return Err(error.into()),
            };
            for row in table.iter()? {
                let (key, last) = row?;
                let (shard, first) = key.value();
                voids.add(LsnRange {
                    shard: ShardId(shard),
                    first: Lsn(first),
                    last: Lsn(last.value()),
                });
            }
            Ok(voids)
        });
        read.map_err(|error| error.during("read what does not count"))
    }

    /// A shard's checkpoint; `None` also when its checksum fails.
    pub(crate) fn read(&self, shard: ShardId) -> Result<Option<(Lsn, Vec<u8>)>, JournalError> {
        let row = store::read(&self.database, |transaction| {
            let table = transaction.open_table(CHECKPOINTS)?;
            let mut row = Vec::new();
            let pieces = table.range((shard.0, 0)..=(shard.0, u32::MAX))?;
            for (piece, expected) in pieces.zip(0..) {
                let (key, piece) = piece?;
                // Of another shard, when a page was written in the place of another one.
                let is_next = key.value() == (shard.0, expected);
                if !is_next || row.len() + piece.value().len() > 2 * MAX_CHECKPOINT_BYTES {
                    return Ok(Vec::new());
                }
                row.extend_from_slice(piece.value());
            }
            Ok(row)
        });
        match row {
            Ok(row) => Ok(decode(&row)),
            Err(StoreError::Damaged(_)) => Ok(None),
            Err(error) => Err(error.during("read a checkpoint")),
        }
    }
}

/// Reads one key: a file of another kind or without its table shows here.
fn usable(database: &Database) -> Result<(), StoreError> {
    store::read(database, |transaction| {
        transaction.open_table(CHECKPOINTS)?.get((0, 0))?;
        Ok(())
    })
}

fn replace(
    table: &mut Table<'_, (u16, u32), &'static [u8]>,
    shard: ShardId,
    row: &[u8],
) -> Result<(), StoreError> {
    let mut next = 0_u32;
    for (chunk, piece) in (0_u32..).zip(row.chunks(CHECKPOINT_CHUNK_BYTES)) {
        table.insert((shard.0, chunk), piece)?;
        next = chunk + 1;
    }
    while table.remove((shard.0, next))?.is_some() {
        next += 1;
    }
    Ok(())
}

/// Version, checksum of what follows, lsn, content.
fn encode(lsn: Lsn, content: &[u8]) -> Vec<u8> {
    let mut checked = lsn.0.to_le_bytes().to_vec();
    checked.extend_from_slice(content);
    let mut row = vec![VERSION];
    row.extend_from_slice(&xxh3_64(&checked).to_le_bytes());
    row.append(&mut checked);
    row
}

fn decode(row: &[u8]) -> Option<(Lsn, Vec<u8>)> {
    let mut reader = Reader::new(row);
    let version = reader.byte()?;
    let checksum = u64::from_le_bytes(reader.array()?);
    let checked = reader.take(reader.remaining())?;
    if version != VERSION || checksum != xxh3_64(checked) {
        return None;
    }
    let (lsn, content) = checked.split_first_chunk::<8>()?;
    Some((Lsn(u64::from_le_bytes(*lsn)), content.to_vec()))
}

/// The checkpoint file's path, for counting its bytes.
pub(crate) fn path(dir: &Path) -> std::path::PathBuf {
    dir.join(FILE)
}
