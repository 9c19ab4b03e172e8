//! Who a data directory is: `identity.json`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spandrel_storage::disk::Disk;
use xxhash_rust::xxh3::xxh3_64;

/// Name of the file in the data directory.
const FILE: &str = "identity.json";

/// The identity of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Random, drawn when the directory was new.
    pub(crate) disk_id: u64,
    /// How often it was opened.
    pub(crate) boot: u64,
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    disk_id: u64,
    boot: u64,
    checksum: u64,
}

/// The identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The system refuses.
    #[error("{what} {}: {source}", path.display())]
    Disk {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file's bytes are not what was written.
    #[error(
        "{} is damaged: {reason}; put a copy from a backup in its place, the settings in raft/ know the directory by it",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
}

impl Identity {
    /// Reads the identity of a directory, or draws one for a new directory, and counts this opening. Durable when
    /// this returns.
    pub(crate) fn open(
        disk: &dyn Disk,
        data_dir: &Path,
        new_disk_id: u64,
    ) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE);
        let failed = |what| {
            let path = path.clone();
            move |source| IdentityError::Disk { what, path, source }
        };
        let before = match disk.read(&path) {
            Ok(bytes) => Self::decode(&bytes).map_err(|reason| IdentityError::Damaged {
                path: path.clone(),
                reason,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self {
                disk_id: new_disk_id,
                boot: 0,
            },
            Err(error) => return Err(failed("read")(error)),
        };
        let identity = Self {
            boot: before.boot.saturating_add(1),
            ..before
        };
        let bytes = identity
            .encode()
            .map_err(|error| failed("write")(io::Error::other(error)))?;
        disk.write_atomically(&path, &bytes)
            .map_err(failed("write"))?;
        Ok(identity)
    }

    fn checksum(self) -> u64 {
        xxh3_64(&[self.disk_id.to_le_bytes(), self.boot.to_le_bytes()].concat())
    }

    fn encode(self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Stored {
            disk_id: self.disk_id,
            boot: self.boot,
            checksum: self.checksum(),
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let identity = Self {
            disk_id: stored.disk_id,
            boot: stored.boot,
        };
        if stored.checksum != identity.checksum() {
            return Err("its checksum does not match".to_owned());
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_storage::disk::SimulatedDisk;

    #[test]
    fn the_id_stays_and_openings_are_counted() {
        let disk = SimulatedDisk::new(1);
        let open = |new_disk_id| Identity::open(&disk, Path::new("/data"), new_disk_id).unwrap();

        assert_eq!((open(7).boot, open(8).boot), (1, 2));

        disk.power_loss();
        let third = open(9);
        assert_eq!((third.disk_id, third.boot), (7, 3));
    }

    #[test]
    fn damage_anywhere_is_told_with_the_file_and_never_a_new_identity() {
        let disk = SimulatedDisk::new(1);
        let data_dir = Path::new("/data");
        Identity::open(&disk, data_dir, 7).unwrap();
        let path = data_dir.join(FILE);
        for offset in 0..disk.len_of(&path).unwrap() {
            assert!(disk.flip(&path, offset, 1));
            let error = Identity::open(&disk, data_dir, 8).unwrap_err();
            assert!(error.to_string().contains("/data/identity.json is damaged"));
            assert!(disk.flip(&path, offset, 1));
        }
        assert_eq!(Identity::open(&disk, data_dir, 8).unwrap().disk_id, 7);
    }
}
