//! A disk that one node has for itself, so that it can be full: a tmpfs of its own, and a file that takes what room there
//! is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::limits::FILL_ATTEMPTS;

/// A mounted tmpfs. Dropping it unmounts it: its files are gone.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    is_kept: bool,
}

impl SmallDisk {
    /// Mounts one of so many bytes on a new directory.
    ///
    /// # Errors
    /// When this process may not mount, with what to do about it.
    pub fn mount(at: PathBuf, bytes: u64) -> anyhow::Result<Self> {
        fs::create_dir(&at)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700")]);
        let output = mount.arg("spandrel-chaos").arg(&at).output();
        let output = output.context("`mount` cannot be run")?;
        ensure!(
            output.status.success(),
            "a disk that can be full is a tmpfs of its own, and this process may not mount one ({}): run it as root, or \
             by `unshare --map-root-user --mount COMMAND`",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self { at, is_kept: false })
    }

    /// Where its root is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// It stays mounted when this is dropped.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        let space = statvfs(&self.at)?;
        Ok(space.f_bavail * space.f_frsize)
    }

    /// Takes all but so many bytes. Whoever uses the disk meanwhile may take of them.
    ///
    /// # Errors
    /// When somebody makes room faster than it is taken, or the file cannot be written.
    pub fn fill(&self, room_bytes: u64) -> anyhow::Result<()> {
        let file = File::create(self.filler())?;
        for _ in 0..FILL_ATTEMPTS {
            let excess = self.free_bytes()?.saturating_sub(room_bytes);
            if excess == 0 {
                return Ok(());
            }
            let len = file.metadata()?.len();
            match fallocate(&file, FallocateFlags::empty(), len, excess) {
                // Somebody else was faster: there is less room now.
                Ok(()) | Err(Errno::NOSPC) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        bail!(
            "{} was not full after {FILL_ATTEMPTS} attempts",
            self.at.display()
        )
    }

    /// Gives all of it back.
    ///
    /// # Errors
    /// When the file that takes the room cannot be removed.
    pub fn clear(&self) -> anyhow::Result<()> {
        let filler = self.filler();
        fs::remove_file(&filler).with_context(|| filler.display().to_string())
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let unmounted = Command::new("umount").arg(&self.at).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.at.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nobody may mount, the message is what there is to test.
    #[test]
    fn a_full_disk_takes_nothing_until_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let disk = match SmallDisk::mount(directory.path().join("disk"), 4 << 20) {
            Ok(disk) => disk,
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("unshare --map-root-user"), "{error}");
                return;
            }
        };
        let file = disk.path().join("file");
        fs::write(&file, [1; 4096]).unwrap();
        disk.fill(1 << 20).unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 1 << 20);
        disk.fill(0).unwrap();
        let full = fs::write(disk.path().join("more"), [1; 4096]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.clear().unwrap();
        fs::write(disk.path().join("more"), [1; 4096]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), [1; 4096]);
        let path = disk.path().to_owned();
        drop(disk);
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }
}
