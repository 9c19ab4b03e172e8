//! The seam of the disk: every file of a node is opened through [`Disk`], so that the simulation can lose writes,
//! tear them and fail them.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;

mod guarded;
mod real;
mod simulated;
mod simulated_file;

pub use guarded::{GuardError, GuardedDisk};
pub use real::RealDisk;
pub use simulated::{DiskImage, SimulatedDisk};

/// Free and total bytes of the file system under a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that a process without privileges may still write.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
}

/// The bytes of a read-only file. `Any`, so that a reader may take over mapped memory instead of copying it.
pub trait Mapped: AsRef<[u8]> + Any + Send + Sync {}

impl<T: AsRef<[u8]> + Any + Send + Sync> Mapped for T {}

/// A read-only file whose bytes live outside the heap where the system can do that (mapped memory).
pub type MappedFile = Arc<dyn Mapped>;

/// Files and directories. Paths are absolute or relative to the process; every call blocks.
///
/// A file system operation is durable only after [`Disk::sync_dir`] of its directory, as POSIX has it.
pub trait Disk: Debug + Send + Sync {
    /// Creates a new file for random access, emptying one that exists.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens an existing file for random access.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Reads a whole small file.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Replaces a file by `bytes` so that a crash leaves the old or the new one: written under a temporary name,
    /// synced, renamed, directory synced.
    ///
    /// # Errors
    /// Whatever the system says; the old file is then still there.
    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file = self.create(&temporary)?;
        file.write(0, bytes)?;
        file.sync_data()?;
        drop(file);
        self.rename(&temporary, path)?;
        self.sync_dir(parent(path))
    }

    /// Maps a file that will not change any more.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn map(&self, path: &Path) -> io::Result<MappedFile>;

    /// Renames a file, replacing the target.
    ///
    /// # Errors
    /// Whatever the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; no error when there is none.
    ///
    /// # Errors
    /// Whatever else the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all in it; no error when there is none.
    ///
    /// # Errors
    /// Whatever else the system says.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory and its parents.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Files and directories in a directory, sorted by name; empty when the directory does not exist.
    ///
    /// # Errors
    /// Whatever the system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes creations, renames and removals in `dir` durable.
    ///
    /// # Errors
    /// Whatever the system says. Never retry: the state of the directory is unknown then.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that a file takes on disk (allocated, not its length); 0 when there is none.
    ///
    /// # Errors
    /// Whatever the system says.
    fn allocated(&self, path: &Path) -> io::Result<u64>;

    /// Free and total space of the file system that holds `path`.
    ///
    /// # Errors
    /// Whatever the system says.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// The directory of a path.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A boxed backend, for redb's builder, which wants a sized one.
#[derive(Debug)]
pub struct Backend(pub Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
