//! Damages files of a node that does not run: what a disk does to data over the years.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::limits::ROTTEN_BYTES;

/// Directories of a node's data that rot: not the settings.
const DIRECTORIES: [&str; 2] = ["blocks", "journal"];
/// Bytes at the beginning of a file that stay as they are: one that does not open is another fault.
const HEAD_BYTES: u64 = 4096;

/// Changes some bytes of one file, in one place. Returns what was done; nothing when there is no file that could.
///
/// # Errors
/// When a directory or a file cannot be read or written.
pub(crate) fn rot(data_dir: &Path, seed: u64) -> anyhow::Result<Option<String>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut files = Vec::new();
    for directory in DIRECTORIES {
        collect(&data_dir.join(directory), &mut files)?;
    }
    files.sort();
    if files.is_empty() {
        return Ok(None);
    }
    let (path, len) = files.swap_remove(random.random_range(0..files.len()));
    let at = random.random_range(HEAD_BYTES..len - ROTTEN_BYTES as u64);
    let mut bytes = [0; ROTTEN_BYTES];
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    file.read_exact_at(&mut bytes, at)?;
    for byte in &mut bytes {
        *byte ^= random.random_range(1..=u8::MAX);
    }
    file.write_all_at(&bytes, at)?;
    let name = path.strip_prefix(data_dir).unwrap_or(&path).display();
    Ok(Some(format!(
        "{ROTTEN_BYTES} bytes at {at} of {name} are changed"
    )))
}

/// The files below a directory that are large enough, with their lengths.
fn collect(directory: &Path, files: &mut Vec<(PathBuf, u64)>) -> anyhow::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.metadata()?);
        if kind.is_dir() {
            collect(&path, files)?;
            continue;
        }
        let is_set_aside = path.extension().is_some_and(|it| it == "corrupt");
        if !is_set_aside && kind.len() > HEAD_BYTES + ROTTEN_BYTES as u64 {
            files.push((path, kind.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_bytes_of_one_file_are_others() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(rot(dir.path(), 1).unwrap(), None);

        let blocks = dir.path().join("blocks/7");
        fs::create_dir_all(&blocks).unwrap();
        let before = vec![5; 10_000];
        fs::write(blocks.join("small"), [5; 100]).unwrap();
        fs::write(blocks.join("large"), &before).unwrap();
        let said = rot(dir.path(), 1).unwrap().unwrap();
        assert!(said.contains("blocks/7/large"), "{said}");
        let after = fs::read(blocks.join("large")).unwrap();
        let changed = before.iter().zip(&after).filter(|(a, b)| a != b);
        assert_eq!((changed.count(), after.len()), (ROTTEN_BYTES, 10_000));
        assert_eq!(fs::read(blocks.join("small")).unwrap(), [5; 100]);
    }
}
