//! A disk in memory that keeps only what was synced: it loses, tears and reorders the rest when the power fails.
//!
//! What it models: writes and lengths of a file reach the disk only by `sync_data`, names only by `sync_dir`. At a
//! power loss each unsynced write may be kept, dropped, or torn into sectors that are kept one by one, and writes
//! may arrive in another order; each unsynced change of a name is kept or lost by itself. A failed sync loses what it
//! should have written although reads still show it, as on Linux. Not modelled: a sync that lies, rot of synced bytes
//! (see [`SimulatedDisk::flip`]), the loss of directories themselves, sparse files.
//!
//! The same seed and the same calls give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::simulated_file::{Inode, Numbers};
use super::{Disk, MappedFile, Space};

/// Bytes that files are rounded up to.
const PAGE_BYTES: u64 = 4_096;
/// Size of the disk unless it is set: 1 TiB.
const DEFAULT_CAPACITY_BYTES: u64 = 1 << 40;

/// The disk. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

type File = Arc<Mutex<Inode>>;

#[derive(Debug)]
struct State {
    numbers: Numbers,
    /// What programs see.
    names: BTreeMap<PathBuf, File>,
    /// What a power loss leaves.
    durable_names: BTreeMap<PathBuf, File>,
    /// Changes of names that no `sync_dir` has made durable, in order.
    unsynced: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    capacity_bytes: u64,
    /// Counts power losses: files opened before the last one are dead.
    boots: u64,
    /// Operations until the power fails.
    power_left: Option<u64>,
    /// Syncs until one fails.
    syncs_left: Option<u64>,
    operations: u64,
}

/// The files of a [`SimulatedDisk`] at one moment; none by default.
#[derive(Debug, Clone, Default)]
pub struct DiskImage {
    files: BTreeMap<PathBuf, Vec<u8>>,
    dirs: BTreeSet<PathBuf>,
}

impl DiskImage {
    /// The bytes of a file.
    #[must_use]
    pub fn file(&self, path: &Path) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }
}

#[derive(Debug)]
enum NameChange {
    Link(PathBuf, File),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, File),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error() -> io::Error {
    io::Error::other("simulated input/output error")
}

impl SimulatedDisk {
    /// An empty disk of 1 TiB whose faults follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                numbers: Numbers(seed),
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                unsynced: Vec::new(),
                dirs: BTreeSet::new(),
                capacity_bytes: DEFAULT_CAPACITY_BYTES,
                boots: 0,
                power_left: None,
                syncs_left: None,
                operations: 0,
            })),
        }
    }

    /// Lets the power fail at the `operations`-th write, sync or change of a name from now: from then on everything
    /// fails until [`Self::power_loss`].
    pub fn fail_power_after(&self, operations: u64) {
        lock(&self.state).power_left = Some(operations);
    }

    /// Lets the `syncs`-th sync of a file or directory from now fail with an input/output error; 1 is the next.
    pub fn fail_sync(&self, syncs: u64) {
        lock(&self.state).syncs_left = Some(syncs);
    }

    /// Sets the size of the disk in bytes: writes beyond it find the disk full.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.state).capacity_bytes = bytes;
    }

    /// Takes the power away and starts anew: only what was synced remains for certain. Open files are dead. Returns how
    /// many writes were torn: some of their sectors are there and some are not.
    pub fn power_loss(&self) -> u64 {
        let mut state = lock(&self.state);
        let State {
            numbers,
            names,
            durable_names,
            unsynced,
            ..
        } = &mut *state;
        for change in unsynced.drain(..) {
            if numbers.coin() {
                change.apply(durable_names);
            }
        }
        let mut torn = 0;
        // A file under two names would be torn twice; there are no hard links.
        for file in durable_names.values() {
            let mut inode = lock(file);
            torn += inode.lose_unsynced(numbers);
            inode.restart();
        }
        names.clone_from(durable_names);
        state.boots += 1;
        state.power_left = None;
        state.syncs_left = None;
        torn
    }

    /// What programs see now, all of it at one moment.
    #[must_use]
    pub fn image(&self) -> DiskImage {
        let state = lock(&self.state);
        let files = state.names.iter();
        let files = files.map(|(path, file)| (path.clone(), lock(file).bytes().to_vec()));
        DiskImage {
            files: files.collect(),
            dirs: state.dirs.clone(),
        }
    }

    /// Puts what an image holds in the place of everything, durably. Open files are dead.
    pub fn restore(&self, image: &DiskImage) {
        let mut state = lock(&self.state);
        let files = image.files.iter();
        let files = files.map(|(path, bytes)| {
            let inode = Inode::durable(bytes.clone());
            (path.clone(), Arc::new(Mutex::new(inode)))
        });
        state.names = files.collect();
        state.durable_names = state.names.clone();
        state.dirs = image.dirs.clone();
        state.unsynced.clear();
        state.boots += 1;
    }

    /// The files that programs see.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        lock(&self.state).names.keys().cloned().collect()
    }

    /// Bytes that files take.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        lock(&self.state).used_bytes()
    }

    /// Inverts the bits of `mask` in a byte of a file, behind every cache. False when there is no such byte.
    #[must_use]
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> bool {
        let state = lock(&self.state);
        let file = state.names.get(path);
        file.is_some_and(|file| lock(file).flip(offset, mask))
    }

    /// Puts what is at `from` in a file at `to` as well, behind every cache: a write that went to the wrong place. False
    /// when nothing changes.
    #[must_use]
    pub fn misdirect(&self, path: &Path, from: u64, to: u64, len: usize) -> bool {
        let state = lock(&self.state);
        let file = state.names.get(path);
        file.is_some_and(|file| lock(file).misdirect(from, to, len))
    }

    /// Length of a file in bytes; `None` when there is none.
    #[must_use]
    pub fn len_of(&self, path: &Path) -> Option<u64> {
        let state = lock(&self.state);
        state.names.get(path).map(|file| lock(file).len())
    }

    /// Writes, syncs and changes of names so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        lock(&self.state).operations
    }

    /// A hash of every file that programs see, for comparing two runs.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for (path, file) in &lock(&self.state).names {
            hasher.update(path.as_os_str().as_encoded_bytes());
            hasher.update(lock(file).bytes());
        }
        hasher.digest()
    }
}

impl State {
    /// Refuses everything once the power is gone.
    fn check_power(&self) -> io::Result<()> {
        match self.power_left {
            Some(0) => Err(io_error()),
            _ => Ok(()),
        }
    }

    /// One more operation that changes the disk.
    fn spend(&mut self) -> io::Result<()> {
        self.check_power()?;
        self.operations += 1;
        if let Some(left) = &mut self.power_left {
            *left -= 1;
            if *left == 0 {
                return Err(io_error());
            }
        }
        Ok(())
    }

    /// False when this sync is the one to fail.
    fn sync_succeeds(&mut self) -> bool {
        match &mut self.syncs_left {
            Some(left) => {
                *left = left.saturating_sub(1);
                let succeeds = *left > 0;
                if !succeeds {
                    self.syncs_left = None;
                }
                succeeds
            }
            None => true,
        }
    }

    fn file(&self, path: &Path) -> io::Result<File> {
        self.check_power()?;
        let file = self.names.get(path);
        file.map(Arc::clone).ok_or(ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn used_bytes(&self) -> u64 {
        let files = self.names.values();
        files
            .map(|file| lock(file).len().next_multiple_of(PAGE_BYTES))
            .sum()
    }

    fn check_room(&self, more: u64) -> io::Result<()> {
        if more > 0 && self.used_bytes().saturating_add(more) > self.capacity_bytes {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.spend()?;
        if !self.sync_succeeds() {
            return Err(io_error());
        }
        let (synced, left) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|change| change.is_in(dir));
        self.unsynced = left;
        let synced: Vec<NameChange> = synced;
        synced
            .iter()
            .for_each(|change| change.apply(&mut self.durable_names));
        Ok(())
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, File>) {
        match self {
            Self::Link(path, file) => {
                names.insert(path.clone(), Arc::clone(file));
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), Arc::clone(file));
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Link(path, _) | Self::Unlink(path) => path.parent() == Some(dir),
            Self::Rename(from, to, _) => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }
}

/// An open file.
#[derive(Debug)]
struct Handle {
    state: Arc<Mutex<State>>,
    file: File,
    boot: u64,
}

impl Handle {
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        state.check_power()?;
        if state.boots != self.boot {
            return Err(io_error());
        }
        Ok(state)
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        let _state = self.alive()?;
        Ok(lock(&self.file).len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let _state = self.alive()?;
        lock(&self.file).read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.alive()?;
        state.spend()?;
        // Not in one expression: the room is counted under the lock of every file.
        let before = lock(&self.file).len();
        state.check_room(len.saturating_sub(before))?;
        lock(&self.file).set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.alive()?;
        state.spend()?;
        if state.sync_succeeds() {
            lock(&self.file).sync();
            return Ok(());
        }
        lock(&self.file).lose_unsynced(&mut state.numbers);
        Err(io_error())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.alive()?;
        state.spend()?;
        let end = offset.saturating_add(data.len() as u64);
        let before = lock(&self.file).len();
        state.check_room(end.saturating_sub(before))?;
        lock(&self.file).write(offset, data)
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = lock(&self.state);
        state.spend()?;
        let file = match state.names.get(path) {
            Some(file) => {
                let file = Arc::clone(file);
                lock(&file).set_len(0)?;
                file
            }
            None => {
                let file = File::default();
                state.change(NameChange::Link(path.to_owned(), Arc::clone(&file)));
                file
            }
        };
        Ok(Box::new(Handle {
            state: Arc::clone(&self.state),
            file,
            boot: state.boots,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let state = lock(&self.state);
        if state.dirs.contains(path) {
            return Err(ErrorKind::IsADirectory.into());
        }
        Ok(Box::new(Handle {
            state: Arc::clone(&self.state),
            file: state.file(path)?,
            boot: state.boots,
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = lock(&self.state).file(path)?;
        Ok(lock(&file).bytes().to_vec())
    }

    fn map(&self, path: &Path) -> io::Result<MappedFile> {
        Ok(Arc::new(self.read(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = state.file(from)?;
        state.spend()?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check_power()?;
        if state.names.contains_key(path) {
            state.spend()?;
            state.change(NameChange::Unlink(path.to_owned()));
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.spend()?;
        let inside: Vec<_> = state
            .names
            .keys()
            .filter(|p| p.starts_with(path))
            .cloned()
            .collect();
        for file in inside {
            state.change(NameChange::Unlink(file));
        }
        state.dirs.retain(|dir| !dir.starts_with(path));
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check_power()?;
        state.dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = lock(&self.state);
        state.check_power()?;
        let inside = |path: &&PathBuf| path.parent() == Some(dir);
        let mut paths: Vec<PathBuf> = state.names.keys().filter(inside).cloned().collect();
        paths.extend(state.dirs.iter().filter(inside).cloned());
        paths.sort();
        Ok(paths)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        lock(&self.state).sync_dir(dir)
    }

    fn allocated(&self, path: &Path) -> io::Result<u64> {
        let state = lock(&self.state);
        state.check_power()?;
        let file = state.names.get(path);
        Ok(file.map_or(0, |file| lock(file).len().next_multiple_of(PAGE_BYTES)))
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let state = lock(&self.state);
        state.check_power()?;
        Ok(Space {
            free: state.capacity_bytes.saturating_sub(state.used_bytes()),
            total: state.capacity_bytes,
        })
    }
}
