//! The databases that are open now: a bounded number, the least recently used is closed first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::Database;
use spandrel_model::ids::Bucket;

use super::error::{BlockError, guarded};
use super::limits::{MIN_FILE_CACHE_BYTES, MIN_OPEN_FILES, WRITER_SHARES};
use crate::disk::{Backend, Disk};

/// What a database is opened for: writers get a larger cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

struct Open {
    database: Arc<Database>,
    purpose: Purpose,
    used_at: u64,
}

#[derive(Default)]
struct State {
    open: BTreeMap<Bucket, Open>,
    /// Databases of expired buckets that somebody still reads.
    retired: Vec<Arc<Database>>,
    clock: u64,
}

/// Opens databases and closes them.
///
/// Invariants: a file is never opened twice at once; every user's handle was cloned from here under the lock, so a
/// database of which only this holds a handle has no user.
pub(super) struct OpenFiles {
    disk: Arc<dyn Disk>,
    max_open: usize,
    cache_bytes: usize,
    state: Mutex<State>,
}

impl std::fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFiles").finish_non_exhaustive()
    }
}

impl OpenFiles {
    pub(super) fn new(disk: Arc<dyn Disk>, max_open: usize, cache_bytes: usize) -> Self {
        Self {
            disk,
            max_open: max_open.max(MIN_OPEN_FILES),
            cache_bytes,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements of this module.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database of a bucket, opened if it is not.
    pub(super) fn get(
        &self,
        bucket: Bucket,
        path: &Path,
        purpose: Purpose,
    ) -> Result<Arc<Database>, BlockError> {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        if let Some(open) = state.open.get_mut(&bucket) {
            open.used_at = now;
            return Ok(Arc::clone(&open.database));
        }
        self.close_unused(&mut state);
        let purpose = match purpose {
            Purpose::Write if state.writers() < WRITER_SHARES => Purpose::Write,
            _ => Purpose::Read,
        };
        let backend = Backend(self.disk.open(path)?);
        let database = Arc::new(open_database(backend, self.share(purpose))?);
        state.open.insert(
            bucket,
            Open {
                database: Arc::clone(&database),
                purpose,
                used_at: now,
            },
        );
        Ok(database)
    }

    /// Writers have a quarter of the budget each, all others an equal part of the rest.
    fn share(&self, purpose: Purpose) -> usize {
        let bytes = match purpose {
            Purpose::Write => self.cache_bytes / (2 * WRITER_SHARES),
            Purpose::Read => self.cache_bytes / 2 / self.max_open,
        };
        bytes.max(MIN_FILE_CACHE_BYTES)
    }

    fn close_unused(&self, state: &mut State) {
        state
            .retired
            .retain(|database| Arc::strong_count(database) > 1);
        while state.open.len() >= self.max_open {
            let unused = state.open.iter();
            let oldest = unused
                .filter(|(_, open)| Arc::strong_count(&open.database) == 1)
                .min_by_key(|(_, open)| open.used_at)
                .map(|(&bucket, _)| bucket);
            match oldest {
                Some(bucket) => state.open.remove(&bucket),
                // All are in use: the bound gives way for as long as they are.
                None => return,
            };
        }
    }

    /// Closes the database of a bucket unless somebody uses it.
    pub(super) fn close(&self, bucket: Bucket) {
        let mut state = self.state();
        let unused = state
            .open
            .get(&bucket)
            .is_some_and(|open| Arc::strong_count(&open.database) == 1);
        if unused {
            state.open.remove(&bucket);
        }
    }

    /// Forgets a bucket whose file is removed.
    pub(super) fn retire(&self, bucket: Bucket) {
        let mut state = self.state();
        if let Some(open) = state.open.remove(&bucket) {
            state.retired.push(open.database);
        }
        state
            .retired
            .retain(|database| Arc::strong_count(database) > 1);
    }

    /// Forgets a bucket whose file is so damaged that the database has panicked over it, perhaps, and would again as it
    /// closes the file: it stays open.
    pub(super) fn abandon(&self, bucket: Bucket) {
        if let Some(open) = self.state().open.remove(&bucket) {
            std::mem::forget(open.database);
        }
    }

    /// Creates the file of a bucket: under a temporary name, since a crash while redb creates a file leaves one that
    /// never opens; then renamed. `fill` writes the first rows.
    pub(super) fn create(
        &self,
        path: &Path,
        fill: impl FnOnce(&Database) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let temporary = temporary_name(path);
        let backend = Backend(self.disk.create(&temporary)?);
        let database = open_database(backend, MIN_FILE_CACHE_BYTES)?;
        fill(&database)?;
        // Closed cleanly, and so synced.
        drop(database);
        self.disk.rename(&temporary, path)?;
        if let Some(dir) = path.parent() {
            self.disk.sync_dir(dir)?;
        }
        Ok(())
    }
}

fn open_database(backend: Backend, cache_bytes: usize) -> Result<Database, BlockError> {
    guarded(|| {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(cache_bytes);
        Ok(builder.create_with_backend(backend)?)
    })
}

impl State {
    fn writers(&self) -> usize {
        let open = self.open.values();
        open.filter(|open| open.purpose == Purpose::Write).count()
    }
}

/// The suffix of files that are being created.
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY_SUFFIX);
    PathBuf::from(name)
}
