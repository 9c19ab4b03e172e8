//! By how much the wall clock of one node is wrong: a file that `spandrel`'s example `shifted_clock` reads whenever it
//! looks at its clock.

use std::fs;
use std::path::{Path, PathBuf};

/// The file.
///
/// Invariant: whenever it is read it holds one number.
#[derive(Debug)]
pub struct ShiftFile {
    path: PathBuf,
}

impl ShiftFile {
    /// A new file: the clock is right.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: PathBuf) -> anyhow::Result<Self> {
        let file = Self { path };
        file.set(0)?;
        Ok(file)
    }

    /// The clock is ahead by so many milliseconds from now on; behind, when that is negative.
    ///
    /// # Errors
    /// When the file cannot be replaced.
    pub fn set(&self, ahead_ms: i64) -> anyhow::Result<()> {
        let next = self.path.with_extension("next");
        fs::write(&next, ahead_ms.to_string())?;
        fs::rename(&next, &self.path)?;
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_last_number() {
        let directory = tempfile::tempdir().unwrap();
        let file = ShiftFile::create(directory.path().join("shift")).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "0");
        file.set(-40_000).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "-40000");
    }
}
