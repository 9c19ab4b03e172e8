//! Which cluster and which node a directory belongs to: in the log database, and in a file of its own beside it, so
//! that neither can be exchanged alone.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spandrel_storage::disk::Disk;

use super::StoreError;
use crate::codec::{self, Kind};

/// Name of the identity's file.
const FILE: &str = "cluster.id";

/// The cluster and the node of a directory. Never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster_id: u64,
    pub(crate) node: u64,
    /// True on the node that founded the cluster: it alone may initialise the group, and only once.
    pub(crate) founder: bool,
}

impl Identity {
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Reads the file; `None` when there is none.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = Self::path(dir);
        match disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::new(&path, "read", error)),
            Ok(bytes) => codec::unseal(Kind::Identity, &bytes)
                .map(Some)
                .map_err(|error| StoreError::corrupt(&path, "identity", error)),
        }
    }

    /// Writes the file, durably.
    pub(crate) fn write(self, disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
        let path = Self::path(dir);
        let bytes = codec::seal(Kind::Identity, &self)
            .map_err(|error| StoreError::corrupt(&path, "identity", error))?;
        disk.write_atomically(&path, &bytes)
            .map_err(|error| StoreError::new(&path, "write", error))
    }
}
