//! A disk that remembers failed syncs, so that no later start builds on bytes that never reached the disk.
//!
//! When an fsync fails, Linux marks the pages that it could not write as clean: reads show them, the disk does not
//! have them, and no later fsync writes them. Stopping the process is right and not enough. The next one, on the same
//! boot of the machine, would read those pages, build on them, and lose them with all that refers to them when the
//! power fails later. So the first failed sync of a file writes the file's name down and stops the process, and the
//! next start writes every named file again, byte for byte, and syncs it before anything reads it.
//!
//! Writing in place is right: if the power fails meanwhile, some of the bytes are on the disk and some are not, which
//! is what the failed sync itself might have left, and what every reader of the file is made for.
//!
//! The list is an overwrite of bytes that were allocated at the start, so a full disk does not hinder it. It need not
//! be durable: a restart of the machine empties the cache, and then reads show what the disk has. An error of
//! write-back in the background that nobody saw is kept by the kernel (errseq) and told to the first fsync of the
//! next process, which then writes the name down. What this cannot help against: a process that is killed between
//! the failed fsync and the write of its name, some microseconds later, and a file system that refuses every write
//! after its first error; that one must be mounted anew, which empties the cache.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use redb::StorageBackend;

use super::{Disk, MappedFile, Space};
use crate::limits::{REWRITE_CHUNK_BYTES, SUSPICION_FILE_BYTES};

/// Name of the list in the data directory: lines of paths relative to it, then zeros.
const FILE: &str = "failed-sync";
/// A line that stands for every file.
const EVERYTHING: &str = "*";
/// The data directory itself.
const DATA_DIR: &str = ".";
/// Room at the end of the list for the line of [`EVERYTHING`].
const LAST_LINE_BYTES: usize = EVERYTHING.len() + 1;
/// Made and removed in a directory to make its entries dirty again.
const PROBE: &str = "failed-sync-probe.tmp";

/// The data directory cannot be made safe after an earlier failed sync.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct GuardError {
    /// What was tried.
    pub what: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GuardError {
    move |source| GuardError {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Another disk, of which every sync is watched. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct GuardedDisk {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<dyn Disk>,
    data_dir: PathBuf,
    list: Mutex<List>,
    /// Names of open files: a file that is renamed must be found under its new name.
    names: Mutex<Vec<Weak<Mutex<PathBuf>>>>,
    told: AtomicBool,
    on_failed_sync: Box<dyn Fn(&str) + Send + Sync>,
}

/// The open list of suspects. Bytes up to `used` are written.
#[derive(Debug)]
struct List {
    file: Box<dyn StorageBackend>,
    used: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedDisk")
            .field("inner", &self.inner)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of them is changed in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuardedDisk {
    /// Guards `inner`: makes durable what an earlier process on this directory could not, before anything else of it
    /// is opened. `on_failed_sync` is called once, with the reason, when a sync fails; it should stop the process.
    ///
    /// # Errors
    /// [`GuardError`] when a suspect cannot be written and synced. Then nothing in the directory may be used.
    pub fn open(
        inner: Arc<dyn Disk>,
        data_dir: &Path,
        on_failed_sync: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Self, GuardError> {
        inner
            .create_dir_all(data_dir)
            .map_err(failed("make the data directory", data_dir))?;
        let list_path = data_dir.join(FILE);
        let list = match inner.read(&list_path) {
            Ok(list) => Some(list),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read the list of failed syncs", &list_path)(error)),
        };
        let suspects = suspects(list.as_deref().unwrap_or_default());
        match suspects {
            Suspects::Named(names) => {
                for name in names {
                    write_again(inner.as_ref(), &data_dir.join(name))?;
                }
            }
            Suspects::Everything => write_all_again(inner.as_ref(), data_dir)?,
        }
        let is_blank = |list: &Vec<u8>| {
            list.len() == SUSPICION_FILE_BYTES && list.iter().all(|byte| *byte == 0)
        };
        let file = if list.as_ref().is_some_and(is_blank) {
            inner.open(&list_path)
        } else {
            blank_list(inner.as_ref(), &list_path, list.is_some())
        };
        let file = file.map_err(failed("clear the list of failed syncs", &list_path))?;
        Ok(Self {
            shared: Arc::new(Shared {
                inner,
                data_dir: data_dir.to_owned(),
                list: Mutex::new(List { file, used: 0 }),
                names: Mutex::new(Vec::new()),
                told: AtomicBool::new(false),
                on_failed_sync,
            }),
        })
    }
}

/// Writes an empty list, allocated in full.
fn blank_list(inner: &dyn Disk, path: &Path, exists: bool) -> io::Result<Box<dyn StorageBackend>> {
    let file = if exists {
        inner.open(path)?
    } else {
        inner.create(path)?
    };
    file.set_len(SUSPICION_FILE_BYTES as u64)?;
    file.write(0, &[0; SUSPICION_FILE_BYTES])?;
    file.sync_data()?;
    if !exists {
        inner.sync_dir(super::parent(path))?;
    }
    Ok(file)
}

/// What the list names.
#[derive(Debug, PartialEq, Eq)]
enum Suspects {
    /// Paths relative to the data directory.
    Named(BTreeSet<PathBuf>),
    Everything,
}

fn suspects(list: &[u8]) -> Suspects {
    let written = list.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(written) else {
        return Suspects::Everything;
    };
    let lines: BTreeSet<PathBuf> = text.lines().map(PathBuf::from).collect();
    // A line without an end was cut off: the process died while it wrote the name.
    let whole = text.is_empty() || text.ends_with('\n');
    let stays_inside = |path: &PathBuf| {
        let mut parts = path.components();
        parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    };
    if whole && !lines.contains(Path::new(EVERYTHING)) && lines.iter().all(stays_inside) {
        return Suspects::Named(lines);
    }
    Suspects::Everything
}

/// Makes a file or the entries of a directory dirty again and syncs them. One that is gone needs nothing.
fn write_again(inner: &dyn Disk, path: &Path) -> Result<(), GuardError> {
    tracing::warn!(path = %path.display(), "written again: an earlier sync of it failed");
    let written = match inner.open(path) {
        Ok(file) => rewrite(file.as_ref()),
        Err(error) if error.kind() == ErrorKind::IsADirectory => dirty_dir(inner, path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    written.map_err(failed(
        "write again, since a sync of it failed earlier,",
        path,
    ))
}

fn rewrite(file: &dyn StorageBackend) -> io::Result<()> {
    let len = file.len()?;
    // The length may be what the failed sync did not write.
    file.set_len(len)?;
    let mut chunk = vec![0; REWRITE_CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let left = usize::try_from(len - at).unwrap_or(usize::MAX);
        let (part, _) = chunk.split_at_mut(left.min(REWRITE_CHUNK_BYTES));
        file.read(at, part)?;
        file.write(at, part)?;
        at += part.len() as u64;
    }
    file.sync_data()
}

fn dirty_dir(inner: &dyn Disk, dir: &Path) -> io::Result<()> {
    let probe = dir.join(PROBE);
    drop(inner.create(&probe)?);
    inner.sync_dir(dir)?;
    inner.remove(&probe)?;
    inner.sync_dir(dir)
}

fn write_all_again(inner: &dyn Disk, data_dir: &Path) -> Result<(), GuardError> {
    let mut left = vec![data_dir.to_owned()];
    while let Some(path) = left.pop() {
        write_again(inner, &path)?;
        let is_dir =
            matches!(inner.open(&path), Err(error) if error.kind() == ErrorKind::IsADirectory);
        if is_dir {
            let inside = inner.list(&path);
            left.append(&mut inside.map_err(failed("list", &path))?);
        }
    }
    Ok(())
}

impl List {
    /// Writes a name down; when there is no room or the name does not fit a line, everything is suspicious.
    fn add(&mut self, name: Option<&str>) -> io::Result<()> {
        let line = name.map_or_else(|| format!("{EVERYTHING}\n"), |name| format!("{name}\n"));
        let room = SUSPICION_FILE_BYTES.saturating_sub(self.used);
        let line = match line.len() {
            len if len + LAST_LINE_BYTES <= room => line,
            _ if room >= LAST_LINE_BYTES => format!("{EVERYTHING}\n"),
            _ => return Ok(()), // the last line says everything already
        };
        self.file.write(self.used as u64, line.as_bytes())?;
        self.used += line.len();
        Ok(())
    }
}

impl Shared {
    /// Passes the result of a sync on; a failure is written down first and told.
    fn watch(&self, path: &Path, synced: io::Result<()>) -> io::Result<()> {
        let Err(error) = synced else {
            return Ok(());
        };
        let name = path
            .strip_prefix(&self.data_dir)
            .ok()
            .and_then(Path::to_str);
        let name = name.map(|name| if name.is_empty() { DATA_DIR } else { name });
        let name = name.filter(|name| !name.contains(['\n', '\0']));
        if let Err(unwritten) = lock(&self.list).add(name) {
            tracing::error!(path = %path.display(), error = %unwritten,
                "a failed sync could not be written down: restart the machine before the next start");
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            (self.on_failed_sync)(&format!("a sync of {} failed: {error}", path.display()));
        }
        Err(error)
    }

    fn handle(
        self: &Arc<Self>,
        path: &Path,
        file: Box<dyn StorageBackend>,
    ) -> Box<dyn StorageBackend> {
        let name = Arc::new(Mutex::new(path.to_owned()));
        let mut names = lock(&self.names);
        names.retain(|name| name.strong_count() > 0);
        names.push(Arc::downgrade(&name));
        drop(names);
        Box::new(Handle {
            shared: Arc::clone(self),
            name,
            file,
        })
    }

    fn renamed(&self, from: &Path, to: &Path) {
        for name in lock(&self.names).iter().filter_map(Weak::upgrade) {
            let mut name = lock(&name);
            if *name == from {
                to.clone_into(&mut name);
            }
        }
    }
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    name: Arc<Mutex<PathBuf>>,
    file: Box<dyn StorageBackend>,
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.file.sync_data();
        if synced.is_ok() {
            return synced;
        }
        let name = lock(&self.name).clone();
        self.shared.watch(&name, synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

/// [`Disk::write_atomically`] is made of the calls below, so its syncs are watched too.
impl Disk for GuardedDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let file = self.shared.inner.create(path)?;
        Ok(self.shared.handle(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let file = self.shared.inner.open(path)?;
        Ok(self.shared.handle(path, file))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.shared.inner.read(path)
    }

    fn map(&self, path: &Path) -> io::Result<MappedFile> {
        self.shared.inner.map(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.shared.inner.rename(from, to)?;
        self.shared.renamed(from, to);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.shared.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.shared.inner.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.shared.inner.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.shared.inner.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.shared.watch(dir, self.shared.inner.sync_dir(dir))
    }

    fn allocated(&self, path: &Path) -> io::Result<u64> {
        self.shared.inner.allocated(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.shared.inner.space(path)
    }
}

#[cfg(test)]
#[path = "guarded_test.rs"]
mod tests;
