//! One process a data directory: two would write over each other's files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail};

/// Name of the file whose lock says that a process has the directory; it holds the process's id, for people.
const FILE: &str = "lock";
/// Bytes that are read of it: an id is shorter.
const MAX_ID_BYTES: u64 = 20;

/// A data directory that no other process has, as long as this lives. The system lets go when the process ends,
/// however it ends, so that nothing must be cleaned up after a `kill -9`.
#[derive(Debug)]
pub struct TakenDirectory {
    _locked: File,
}

impl TakenDirectory {
    /// Takes a directory; makes it when it is new.
    ///
    /// # Errors
    /// When another process has it, or it cannot be made or written.
    pub fn take(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        std::fs::create_dir_all(path)
            .with_context(|| format!("the data directory {shown} cannot be made"))?;
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(FILE));
        let mut file =
            opened.with_context(|| format!("the data directory {shown} cannot be written"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut id = String::new();
                // Only for the message, which does without.
                let _ = file.take(MAX_ID_BYTES).read_to_string(&mut id);
                let id = id.trim();
                bail!(
                    "the data directory {shown} is in use by another process (id {}): stop that one, or give this node \
                     a directory of its own with --data-dir",
                    if id.is_empty() { "unknown" } else { id }
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("the data directory {shown} cannot be locked"));
            }
        }
        note_process(&mut file)
            .with_context(|| format!("the data directory {shown} cannot be written"))?;
        Ok(Self { _locked: file })
    }
}

fn note_process(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second `node start` with other ports and the same directory opened the files of the first, replayed its
    /// journal and wrote into it, until an assertion of redb stopped it.
    #[test]
    fn a_directory_is_taken_once_until_its_holder_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new/data");
        let first = TakenDirectory::take(&path).unwrap();

        let refused = TakenDirectory::take(&path).unwrap_err().to_string();
        let named = format!("in use by another process (id {})", std::process::id());
        assert!(refused.contains(&named), "{refused}");
        assert!(refused.contains("--data-dir"), "{refused}");

        drop(first);
        TakenDirectory::take(&path).unwrap();
    }

    #[test]
    fn a_place_that_cannot_hold_one_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = TakenDirectory::take(file.path()).unwrap_err();
        let shown = file.path().display().to_string();
        assert!(refused.to_string().contains(&shown), "{refused:#}");
    }
}
