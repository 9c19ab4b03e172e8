//! The disk of one life of the node: a [`SimulatedDisk`] that outlives it, seen through handles that die with it.
//!
//! It hashes every operation, notices when an injected fault has struck, and can lie about syncs (the canary).

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;
use spandrel_storage::disk::{Disk, MappedFile, SimulatedDisk, Space};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::SimulatedClock;
use crate::events::EventLog;
use crate::limits::DISK_RESERVE_BYTES;
use crate::plan::Canary;

/// What an injected fault has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Struck {
    /// The power is gone.
    Power,
    /// A sync of this file or directory has failed.
    Sync(PathBuf),
    /// A write to this file, or a change of its name or length, has failed.
    Write(PathBuf),
    /// What had failed to be written to this file was written after all: the database writes some pages before it has
    /// to, and again when they must be there.
    Rewritten(PathBuf),
    /// A read of this file has failed.
    Read(PathBuf),
    /// There is no more room, or less than the reserve.
    Full,
}

impl Struck {
    /// Whether the node must stop because of it: what is durable is in doubt.
    pub(crate) fn must_halt(&self) -> bool {
        let holds_log = |path: &Path| {
            let name = |part: &OsStr| part.to_str().map(str::to_owned).unwrap_or_default();
            let dir = |part: &Path| part.file_name().map(name).unwrap_or_default();
            let log = path.parent().map(dir).unwrap_or_default();
            // What is being prepared is prepared again.
            let is_temporary = dir(path).ends_with(".tmp");
            log == "raft" || (log == "journal" && !is_temporary)
        };
        match self {
            Self::Sync(_) => true,
            Self::Write(path) => holds_log(path),
            Self::Power | Self::Rewritten(_) | Self::Read(_) | Self::Full => false,
        }
    }
}

/// Calls until one fails; none does at `u64::MAX`.
#[derive(Debug)]
struct Countdown(AtomicU64);

impl Default for Countdown {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Countdown {
    fn set(&self, calls: u64) {
        self.0.store(calls, Ordering::Relaxed);
    }

    /// Counts a call: true when it is the one that fails.
    fn strikes(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        match left {
            u64::MAX => false,
            0 | 1 => {
                self.set(u64::MAX);
                true
            }
            _ => {
                self.set(left - 1);
                false
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct LifeDisk {
    shared: Arc<LifeShared>,
}

struct LifeShared {
    inner: SimulatedDisk,
    clock: Arc<SimulatedClock>,
    log: Arc<EventLog>,
    canary: Option<Canary>,
    /// The process is dead: nothing that it still holds reaches the disk.
    dead: AtomicBool,
    /// The count of operations at which the power fails.
    power_at: AtomicU64,
    sync_armed: AtomicBool,
    writes: Countdown,
    /// The file and offset of the write that has failed and was not repeated.
    failed_write: Mutex<Option<(PathBuf, u64)>>,
    reads: Countdown,
    /// The node was told that there is no room.
    told_full: AtomicBool,
    on_strike: Box<dyn Fn(Struck) + Send + Sync>,
}

impl std::fmt::Debug for LifeShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LifeShared")
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

/// What [`LifeDisk::new`] takes.
pub(crate) struct LifeDiskParts {
    pub(crate) inner: SimulatedDisk,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) log: Arc<EventLog>,
    pub(crate) canary: Option<Canary>,
    pub(crate) on_strike: Box<dyn Fn(Struck) + Send + Sync>,
}

impl LifeDisk {
    pub(crate) fn new(parts: LifeDiskParts) -> Self {
        let shared = LifeShared {
            inner: parts.inner,
            clock: parts.clock,
            log: parts.log,
            canary: parts.canary,
            dead: AtomicBool::new(false),
            power_at: AtomicU64::new(u64::MAX),
            sync_armed: AtomicBool::new(false),
            writes: Countdown::default(),
            failed_write: Mutex::new(None),
            reads: Countdown::default(),
            told_full: AtomicBool::new(false),
            on_strike: parts.on_strike,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Lets the power fail at the `operations`-th operation from now.
    pub(crate) fn fail_power_after(&self, operations: u64) {
        let at = self.shared.inner.operations() + operations;
        self.shared.power_at.store(at, Ordering::Relaxed);
        self.shared.inner.fail_power_after(operations);
    }

    /// Lets the `syncs`-th sync from now fail.
    pub(crate) fn fail_sync(&self, syncs: u64) {
        self.shared.sync_armed.store(true, Ordering::Relaxed);
        self.shared.inner.fail_sync(syncs);
    }

    /// Lets the `writes`-th write, or change of a length or name, from now fail.
    pub(crate) fn fail_write(&self, writes: u64) {
        self.shared.writes.set(writes);
    }

    /// Lets the `reads`-th read from now fail.
    pub(crate) fn fail_read(&self, reads: u64) {
        self.shared.reads.set(reads);
    }

    /// Faults that have not struck will not.
    pub(crate) fn disarm(&self) {
        self.shared.inner.fail_power_after(u64::MAX);
        self.shared.inner.fail_sync(u64::MAX);
        self.shared.sync_armed.store(false, Ordering::Relaxed);
        self.shared.writes.set(u64::MAX);
        self.shared.reads.set(u64::MAX);
    }

    /// Whether the process has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Relaxed)
    }

    /// The process ends here: its handles are dead, whatever its destructors try.
    pub(crate) fn kill(&self) {
        self.shared.dead.store(true, Ordering::Relaxed);
        // What has not struck is not for the next life.
        self.disarm();
    }
}

impl LifeShared {
    fn alive(&self) -> io::Result<()> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(io::Error::other("the simulated process is dead"));
        }
        Ok(())
    }

    /// Performs and records an operation that changes the disk.
    fn change<T>(
        &self,
        what: &'static str,
        path: &Path,
        detail: [u64; 3],
        operation: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.alive()?;
        let fails = what != "sync" && self.writes.strikes();
        let result = if fails {
            Err(io::Error::other("simulated write error"))
        } else {
            operation()
        };
        let [first, second, third] = detail.map(u64::to_le_bytes);
        let outcome = [u8::from(result.is_ok())];
        let path_bytes = path.as_os_str().as_encoded_bytes();
        let parts: [&[u8]; 6] = [
            what.as_bytes(),
            path_bytes,
            &first,
            &second,
            &third,
            &outcome,
        ];
        self.log.fold(self.clock.elapsed_nanos(), &parts);
        if fails {
            (self.on_strike)(Struck::Write(path.to_owned()));
        }
        if what == "write" && (fails || result.is_ok()) {
            self.wrote(path, detail[0], fails);
        }
        if let Err(error) = &result {
            self.notice();
            if error.kind() == io::ErrorKind::StorageFull {
                self.tell_full();
            }
        }
        result
    }

    /// Remembers a write that has failed, and tells of the one that makes up for it.
    fn wrote(&self, path: &Path, offset: u64, failed: bool) {
        let mut remembered = self
            .failed_write
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if failed {
            *remembered = Some((path.to_owned(), offset));
        } else if remembered
            .as_ref()
            .is_some_and(|(file, at)| file == path && *at == offset)
        {
            *remembered = None;
            drop(remembered);
            (self.on_strike)(Struck::Rewritten(path.to_owned()));
        }
    }

    fn tell_full(&self) {
        if !self.told_full.swap(true, Ordering::Relaxed) {
            (self.on_strike)(Struck::Full);
        }
    }

    /// Performs a read.
    fn read<T>(&self, path: &Path, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.alive()?;
        if self.reads.strikes() {
            (self.on_strike)(Struck::Read(path.to_owned()));
            return Err(io::Error::other("simulated read error"));
        }
        read()
    }

    fn notice(&self) {
        if self.inner.operations() >= self.power_at.load(Ordering::Relaxed) {
            self.power_at.store(u64::MAX, Ordering::Relaxed);
            (self.on_strike)(Struck::Power);
        }
    }

    fn sync(&self, path: &Path, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let result = self.change("sync", path, [0; 3], sync);
        let powered = self.inner.space(path).is_ok();
        if result.is_err() && powered && self.sync_armed.swap(false, Ordering::Relaxed) {
            (self.on_strike)(Struck::Sync(path.to_owned()));
        }
        result
    }

    /// Whether the canary makes this sync a lie.
    fn lies(&self, path: &Path) -> bool {
        let in_journal = path.components().any(|part| part.as_os_str() == "journal");
        self.canary == Some(Canary::JournalSyncsLie) && in_journal
    }

    fn handle(
        self: &Arc<Self>,
        path: &Path,
        file: Box<dyn StorageBackend>,
    ) -> Box<dyn StorageBackend> {
        Box::new(Handle {
            shared: Arc::clone(self),
            path: path.to_owned(),
            file,
            honest_syncs: AtomicU64::new(0),
        })
    }
}

/// Syncs of a file that even the canary makes: those of its creation, without which it could not be opened again.
const CREATION_SYNCS: u64 = 12;

#[derive(Debug)]
struct Handle {
    shared: Arc<LifeShared>,
    path: PathBuf,
    file: Box<dyn StorageBackend>,
    honest_syncs: AtomicU64,
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.shared.alive()?;
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.shared.read(&self.path, || self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.shared
            .change("length", &self.path, [len, 0, 0], || self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.shared.alive()?;
        if self.shared.lies(&self.path)
            && self.honest_syncs.fetch_add(1, Ordering::Relaxed) >= CREATION_SYNCS
        {
            return Ok(());
        }
        self.shared.sync(&self.path, || self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let detail = [offset, data.len() as u64, xxh3_64(data)];
        self.shared.change("write", &self.path, detail, || {
            self.file.write(offset, data)
        })
    }
}

impl Disk for LifeDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let shared = &self.shared;
        let file = shared.change("create", path, [0; 3], || shared.inner.create(path))?;
        Ok(shared.handle(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.shared.alive()?;
        let file = self.shared.inner.open(path)?;
        Ok(self.shared.handle(path, file))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let shared = &self.shared;
        shared.read(path, || shared.inner.read(path))
    }

    fn map(&self, path: &Path) -> io::Result<MappedFile> {
        let shared = &self.shared;
        shared.read(path, || shared.inner.map(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let shared = &self.shared;
        shared.change("rename", to, [0; 3], || shared.inner.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let shared = &self.shared;
        shared.change("remove", path, [0; 3], || shared.inner.remove(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let shared = &self.shared;
        shared.change("remove all", path, [0; 3], || {
            shared.inner.remove_dir_all(path)
        })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let shared = &self.shared;
        shared.change("directory", path, [0; 3], || {
            shared.inner.create_dir_all(path)
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.shared.alive()?;
        self.shared.inner.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let shared = &self.shared;
        shared.sync(dir, || shared.inner.sync_dir(dir))
    }

    fn allocated(&self, path: &Path) -> io::Result<u64> {
        self.shared.alive()?;
        self.shared.inner.allocated(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.shared.alive()?;
        let space = self.shared.inner.space(path)?;
        if space.free < DISK_RESERVE_BYTES {
            self.shared.tell_full();
        }
        Ok(space)
    }
}
