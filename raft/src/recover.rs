//! Makes a new group of one from the directory of a node whose group has lost its majority for good. Nothing may have
//! the directory open. The new group has another cluster id: the lost nodes cannot speak with it should they come back.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use spandrel_model::ids::NodeId;
use spandrel_storage::disk::Disk;

use crate::error::OpenError;
use crate::open::open_existing;
use crate::state::{ClusterState, Conflict, Losses};
use crate::store::{Database, Identity, StateMachine, StoreError};
use crate::types::{LogId, Membership, SnapshotMeta};

/// How far a node's log goes. The later one has all that the earlier one has, of what the lost majority had agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogEnd {
    /// The term of the last entry.
    pub term: u64,
    /// The node that led then: in openraft a term may have several leaders, the later ones of higher ids.
    pub leader: u64,
    /// Its index.
    pub index: u64,
}

/// What a directory knows of its cluster.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The node that the directory belongs to.
    pub node: NodeId,
    /// How far its log goes.
    pub end: LogEnd,
    /// The state after the last entry of its log, agreed on or not: what it does not know to be so may be so.
    pub state: ClusterState,
}

impl Survey {
    /// The cluster of this id, made from the directory.
    #[must_use]
    pub fn recovered_as(&self, cluster_id: u64) -> RecoveredCluster {
        RecoveredCluster {
            from: self.state.cluster_id,
            cluster_id,
            end: self.end,
        }
    }
}

/// What the other survivors need to follow: the new cluster, and how far the log went that it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveredCluster {
    /// The cluster that was lost.
    pub from: u64,
    /// The new cluster.
    pub cluster_id: u64,
    /// The end of the log that it was made from.
    pub end: LogEnd,
}

impl fmt::Display for RecoveredCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            cluster_id,
            end,
        } = self;
        let LogEnd {
            term,
            leader,
            index,
        } = end;
        write!(f, "{from:016x}-{cluster_id:016x}-{term}-{leader}-{index}")
    }
}

impl FromStr for RecoveredCluster {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || {
            format!("`{text}` is not what `spandrel node recover` has said on the first survivor")
        };
        let parts: Vec<&str> = text.split('-').collect();
        let [from, cluster_id, term, leader, index] = parts[..] else {
            return Err(malformed());
        };
        let id = |text: &str| u64::from_str_radix(text, 16).map_err(|_| malformed());
        let number = |text: &str| text.parse().map_err(|_| malformed());
        Ok(Self {
            from: id(from)?,
            cluster_id: id(cluster_id)?,
            end: LogEnd {
                term: number(term)?,
                leader: number(leader)?,
                index: number(index)?,
            },
        })
    }
}

/// Why a directory cannot be recovered. It is then as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no group in the directory, or it has never known the settings.
    #[error("`{}` holds no settings of a cluster: a node that was just made to follow a recovered cluster gets them when it joins", path.display())]
    Empty {
        /// The group's directory.
        path: PathBuf,
    },
    /// The lost nodes are not such that something could be recovered.
    #[error("the lost nodes: {0}")]
    Lost(#[from] Conflict),
    /// The directory's own node is among the lost ones.
    #[error("node {node} is the one that this directory belongs to: it is not lost")]
    OwnNode {
        /// The node.
        node: u64,
    },
    /// The directory's own node has been removed from the cluster.
    #[error(
        "node {node}, to which this directory belongs, was removed from the cluster: recover from another one"
    )]
    Removed {
        /// The node.
        node: u64,
    },
    /// The directory belongs to another cluster than the lost one.
    #[error("the directory belongs to cluster {found:016x}, and {expected:016x} was recovered")]
    OtherCluster {
        /// The cluster that was recovered.
        expected: u64,
        /// The directory's.
        found: u64,
    },
    /// The node knows more than the one that the cluster was recovered from.
    #[error(
        "this node's log goes to entry {} of term {}, that of the recovered cluster to {} of {}: what was agreed on in between would be lost; recover from this node instead, from copies of all directories",
        own.index, own.term, recovered.index, recovered.term
    )]
    Ahead {
        /// The end of this node's log.
        own: LogEnd,
        /// The end of the log that the cluster was recovered from.
        recovered: LogEnd,
    },
}

impl From<StoreError> for RecoverError {
    fn from(error: StoreError) -> Self {
        Self::Open(OpenError::Store(error))
    }
}

/// Reads what a directory knows of its cluster.
///
/// # Errors
/// [`RecoverError`]: the directory has no settings, or cannot be read.
pub fn survey(disk: &dyn Disk, dir: &Path) -> Result<Survey, RecoverError> {
    let (survey, _) = read(disk, dir)?;
    Ok(survey)
}

/// Makes the node of this directory the only voter of a new cluster, without the lost nodes. The log as it was stays
/// beside the new one.
///
/// # Errors
/// [`RecoverError`]; after an error of the disk, call it again.
pub fn recover(
    disk: &dyn Disk,
    dir: &Path,
    cluster_id: u64,
    lost: &BTreeSet<NodeId>,
) -> Result<(RecoveredCluster, Losses), RecoverError> {
    let (survey, last) = read(disk, dir)?;
    let node = survey.node.0;
    if lost.contains(&survey.node) {
        return Err(RecoverError::OwnNode { node });
    }
    if !survey.state.nodes.contains_key(&survey.node) {
        return Err(RecoverError::Removed { node });
    }
    let (mut state, losses) = survey.state.without(cluster_id, lost)?;
    let entry = LogId::new(*last.committed_leader_id(), last.index + 1);
    state.epoch = entry.index;
    state.applied_index = entry.index;
    state.check();
    let voter = openraft::Membership::new_with_defaults(vec![BTreeSet::from([node])], [node]);
    let meta = SnapshotMeta {
        last_log_id: Some(entry),
        last_membership: Membership::new(Some(entry), voter),
    };
    let identity = Identity {
        cluster_id,
        node,
        founder: false,
    };
    replace(disk, dir, survey.state.cluster_id, |disk, dir| {
        Database::create_from(disk, dir, identity, &entry, &meta, &state)
    })?;
    Ok((survey.recovered_as(cluster_id), losses))
}

/// Makes the node of this directory one of a cluster that was recovered on another node. It gets the settings from
/// there when it joins; what else is in its data directory stays.
///
/// # Errors
/// As [`recover`]; and where this node knows more than the recovered cluster.
pub fn follow(
    disk: &dyn Disk,
    dir: &Path,
    recovered: &RecoveredCluster,
) -> Result<NodeId, RecoverError> {
    // Done before, perhaps in part: what the node stores must not be wiped for it.
    if let Some(database) = open_existing(disk, dir)? {
        let identity = database.identity()?;
        if identity.cluster_id == recovered.cluster_id {
            identity.write(disk, dir)?;
            return Ok(NodeId(identity.node));
        }
    }
    let (survey, _) = read(disk, dir)?;
    let found = survey.state.cluster_id;
    if found != recovered.from {
        let expected = recovered.from;
        return Err(RecoverError::OtherCluster { expected, found });
    }
    if survey.end > recovered.end {
        return Err(RecoverError::Ahead {
            own: survey.end,
            recovered: recovered.end,
        });
    }
    let identity = Identity {
        cluster_id: recovered.cluster_id,
        node: survey.node.0,
        founder: false,
    };
    replace(disk, dir, found, |disk, dir| {
        Database::create(disk, dir, identity)
    })?;
    Ok(survey.node)
}

/// What the directory knows, and the last entry of its log.
fn read(disk: &dyn Disk, dir: &Path) -> Result<(Survey, LogId), RecoverError> {
    let empty = || RecoverError::Empty {
        path: dir.to_owned(),
    };
    let database = open_existing(disk, dir)?.ok_or_else(empty)?;
    let identity = database.identity()?;
    let (state, last) = StateMachine::load(database)?.into_end()?;
    let last = last.filter(|_| state.is_seeded()).ok_or_else(empty)?;
    let survey = Survey {
        node: NodeId(identity.node),
        end: LogEnd {
            term: last.committed_leader_id().term,
            leader: last.committed_leader_id().node_id,
            index: last.index,
        },
        state: (*state).clone(),
    };
    Ok((survey, last))
}

/// Puts another log in the place of the one that is there, which stays under a name of its own. The file beside the log
/// goes first and comes last: whenever this ends, the directory is as it was, or recovered.
fn replace(
    disk: &dyn Disk,
    dir: &Path,
    from: u64,
    create: impl FnOnce(&dyn Disk, &Path) -> Result<Database, StoreError>,
) -> Result<(), StoreError> {
    let (log, beside) = (Database::path_in(dir), Identity::path(dir));
    let fail = |path: &Path, what| {
        let path = path.to_owned();
        move |error| StoreError::new(&path, what, error)
    };
    let backup = dir.join(format!("raft.redb.of-{from:016x}"));
    let bytes = disk.read(&log).map_err(fail(&log, "read"))?;
    disk.write_atomically(&backup, &bytes)
        .map_err(fail(&backup, "write"))?;
    if Identity::read(disk, dir)?.is_some() {
        disk.remove(&beside).map_err(fail(&beside, "remove"))?;
        disk.sync_dir(dir).map_err(fail(dir, "sync"))?;
    }
    create(disk, dir)?.identity()?.write(disk, dir)
}
