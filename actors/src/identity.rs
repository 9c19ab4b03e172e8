//! Who a data directory is: `identity.json`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use spandrel_raft::limits::MAX_EARLIER_LIVES;
use spandrel_raft::state::NodeLife;
use spandrel_storage::disk::Disk;
use xxhash_rust::xxh3::xxh3_64;

/// Name of the file in the data directory.
const FILE: &str = "identity.json";

/// The identity of a data directory.
///
/// Invariant: `lives` is not empty, and has in it every life of which the cluster may know as the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Random, drawn when the directory was new.
    pub(crate) disk_id: u64,
    /// How often it was opened.
    pub(crate) boot: u64,
    /// The last life that the cluster has confirmed, if any, and those since; this one is the last.
    lives: Vec<u64>,
}

/// What was drawn at random for an opening.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    /// For a directory that is new.
    pub(crate) disk_id: u64,
    /// For this opening.
    pub(crate) life: u64,
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    disk_id: u64,
    boot: u64,
    /// Not in files of the first version.
    #[serde(default)]
    lives: Vec<u64>,
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
    /// Reads the identity of a directory, or makes one for a new directory, counts this opening and gives it its life.
    /// Durable when this returns: the cluster never knows a life that the directory does not.
    pub(crate) fn open(
        disk: &dyn Disk,
        data_dir: &Path,
        drawn: Drawn,
    ) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE);
        let mut identity = match disk.read(&path) {
            Ok(bytes) => Self::decode(&bytes).map_err(|reason| IdentityError::Damaged {
                path: path.clone(),
                reason,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self {
                disk_id: drawn.disk_id,
                boot: 0,
                lives: Vec::new(),
            },
            Err(source) => {
                let what = "read";
                return Err(IdentityError::Disk { what, path, source });
            }
        };
        identity.boot = identity.boot.saturating_add(1);
        identity.begin(drawn.life);
        identity.write(disk, data_dir)?;
        Ok(identity)
    }

    /// Past the bound the last life is used again: to forget one that the cluster knows would lock the node out.
    fn begin(&mut self, life: u64) {
        if self.lives.len() <= MAX_EARLIER_LIVES {
            self.lives.push(life);
        }
    }

    /// The cluster knows this life: it will never ask for an earlier one.
    fn forget_before(&mut self, life: u64) {
        if let Some(at) = self.lives.iter().position(|known| *known == life) {
            self.lives.drain(..at);
        }
    }

    /// Which life this is, for the cluster.
    fn life(&self) -> NodeLife {
        match self.lives.split_last() {
            Some((life, earlier)) => NodeLife {
                life: *life,
                earlier: earlier.to_vec(),
            },
            None => NodeLife::default(),
        }
    }

    fn write(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        let written = self
            .encode()
            .map_err(io::Error::other)
            .and_then(|bytes| disk.write_atomically(&path, &bytes));
        let what = "write";
        written.map_err(|source| IdentityError::Disk { what, path, source })
    }

    /// Of all numbers in their order: of the first two alone in files of the first version, which have no lives.
    fn checksum(&self) -> u64 {
        let numbers = [self.disk_id, self.boot].into_iter();
        let bytes = numbers
            .chain(self.lives.iter().copied())
            .flat_map(u64::to_le_bytes);
        xxh3_64(&bytes.collect::<Vec<u8>>())
    }

    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Stored {
            disk_id: self.disk_id,
            boot: self.boot,
            lives: self.lives.clone(),
            checksum: self.checksum(),
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let identity = Self {
            disk_id: stored.disk_id,
            boot: stored.boot,
            lives: stored.lives,
        };
        if stored.checksum != identity.checksum() {
            return Err("its checksum does not match".to_owned());
        }
        Ok(identity)
    }
}

/// The identity of a node that runs, and its file.
///
/// Invariant: a life that was told is in the file.
pub(crate) struct Lives {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    identity: Mutex<Identity>,
}

impl Lives {
    pub(crate) fn new(disk: Arc<dyn Disk>, data_dir: PathBuf, identity: Identity) -> Self {
        Self {
            disk,
            data_dir,
            identity: Mutex::new(identity),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Identity::disk_id`].
    pub(crate) fn disk_id(&self) -> u64 {
        self.lock().disk_id
    }

    /// As [`Identity::boot`].
    pub(crate) fn boot(&self) -> u64 {
        self.lock().boot
    }

    /// Which life this is, for the cluster.
    pub(crate) fn life(&self) -> NodeLife {
        self.lock().life()
    }

    /// Begins another life, unless the cluster has not confirmed the last one. Durable when this returns: the cluster
    /// never knows a life that the directory does not. Blocks.
    pub(crate) fn renew(&self, life: u64) -> Result<NodeLife, IdentityError> {
        let current = self.life();
        if !current.earlier.is_empty() {
            return Ok(current);
        }
        self.change(|identity| identity.begin(life))
    }

    /// The cluster knows this life: it will never ask for an earlier one. Durable when this returns. Blocks.
    pub(crate) fn confirm(&self, life: u64) -> Result<(), IdentityError> {
        self.change(|identity| identity.forget_before(life))
            .map(drop)
    }

    /// What cannot be written is not so.
    fn change(&self, change: impl FnOnce(&mut Identity)) -> Result<NodeLife, IdentityError> {
        let mut held = self.lock();
        let mut changed = held.clone();
        change(&mut changed);
        changed.write(self.disk.as_ref(), &self.data_dir)?;
        *held = changed;
        Ok(held.life())
    }
}

impl std::fmt::Debug for Lives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lock().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_storage::disk::SimulatedDisk;

    fn open(disk: &SimulatedDisk, disk_id: u64, life: u64) -> Result<Identity, IdentityError> {
        Identity::open(disk, Path::new("/data"), Drawn { disk_id, life })
    }

    fn lives(disk: &SimulatedDisk, identity: Identity) -> Lives {
        Lives::new(Arc::new(disk.clone()), "/data".into(), identity)
    }

    #[test]
    fn the_id_stays_and_openings_are_counted() {
        let disk = SimulatedDisk::new(1);
        let boot = |disk_id| open(&disk, disk_id, 1).unwrap().boot;
        assert_eq!((boot(7), boot(8)), (1, 2));

        disk.power_loss();
        let third = open(&disk, 9, 1).unwrap();
        assert_eq!((third.disk_id, third.boot), (7, 3));
    }

    #[test]
    fn lives_are_told_until_one_is_confirmed() {
        let disk = SimulatedDisk::new(1);
        let earlier = |life| open(&disk, 7, life).unwrap().life().earlier;
        assert!(earlier(11).is_empty());
        assert_eq!(earlier(12), [11]);
        disk.power_loss();
        let third = lives(&disk, open(&disk, 7, 13).unwrap());
        assert_eq!(third.life().earlier, [11, 12]);
        third.confirm(13).unwrap();
        disk.power_loss();
        assert_eq!(earlier(14), [13]);
    }

    #[test]
    fn a_life_that_was_renewed_is_told_with_those_that_the_cluster_may_know() {
        let disk = SimulatedDisk::new(1);
        let earlier = |life| open(&disk, 7, life).unwrap().life().earlier;
        let first = lives(&disk, open(&disk, 7, 11).unwrap());
        first.confirm(11).unwrap();
        let renewed = first.renew(12).unwrap();
        assert_eq!((renewed.life, renewed.earlier.as_slice()), (12, &[11][..]));
        // nobody has heard whether the cluster took it: it is told again
        assert_eq!(first.renew(13).unwrap(), renewed);
        disk.power_loss();
        assert_eq!(earlier(14), [11, 12]);
        let third = lives(&disk, open(&disk, 7, 15).unwrap());
        third.confirm(15).unwrap();
        third.renew(16).unwrap();
        third.confirm(16).unwrap();
        disk.power_loss();
        assert_eq!(earlier(17), [16]);
    }

    #[test]
    fn a_life_that_cannot_be_written_is_not_told() {
        let disk = SimulatedDisk::new(1);
        let first = lives(&disk, open(&disk, 7, 11).unwrap());
        disk.set_capacity(disk.used_bytes());
        first.renew(12).unwrap_err();
        assert_eq!((first.life().life, first.life().earlier.len()), (11, 0));
        disk.set_capacity(u64::MAX);
        assert_eq!(first.renew(13).unwrap().earlier, [11]);
    }

    #[test]
    fn the_life_that_was_confirmed_is_never_forgotten() {
        let disk = SimulatedDisk::new(1);
        lives(&disk, open(&disk, 7, 11).unwrap())
            .confirm(11)
            .unwrap();
        for life in 0..100 {
            let told = open(&disk, 7, life).unwrap().life();
            assert!(told.earlier.len() <= MAX_EARLIER_LIVES);
            assert_eq!(told.earlier.first(), Some(&11));
        }
    }

    #[test]
    fn a_file_of_the_first_version_is_read() {
        let disk = SimulatedDisk::new(1);
        let checksum = xxh3_64(&[7u64.to_le_bytes(), 4u64.to_le_bytes()].concat());
        let first = format!("{{\"disk_id\":7,\"boot\":4,\"checksum\":{checksum}}}");
        disk.write_atomically(&Path::new("/data").join(FILE), first.as_bytes())
            .unwrap();
        let identity = open(&disk, 9, 11).unwrap();
        assert_eq!((identity.disk_id, identity.boot), (7, 5));
        assert!(identity.life().earlier.is_empty());
    }

    #[test]
    fn damage_anywhere_is_told_with_the_file_and_never_a_new_identity() {
        let disk = SimulatedDisk::new(1);
        open(&disk, 7, 11).unwrap();
        let path = Path::new("/data").join(FILE);
        for offset in 0..disk.len_of(&path).unwrap() {
            assert!(disk.flip(&path, offset, 1));
            let error = open(&disk, 8, 12).unwrap_err();
            assert!(error.to_string().contains("/data/identity.json is damaged"));
            assert!(disk.flip(&path, offset, 1));
        }
        assert_eq!(open(&disk, 8, 12).unwrap().disk_id, 7);
    }
}
