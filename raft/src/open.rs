//! Opens a node's directory and joins its group.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::{Config, EmptyNode, SnapshotPolicy};
use spandrel_model::ids::NodeId;
use spandrel_storage::disk::Disk;

use crate::error::{OpenError, ProposeError};
use crate::inbox::Inbox;
use crate::limits::{
    ELECTION_MAX_MS, ELECTION_MIN_MS, HEARTBEAT_MS, LOG_KEPT_ENTRIES, MAX_APPEND_ENTRIES,
    PROPOSE_DEADLINE_MS, SNAPSHOT_DEADLINE_MS, SNAPSHOT_EVERY_ENTRIES,
};
use crate::peers::Peers;
use crate::settings::{Inner, Settings};
use crate::state::{ClusterSeed, ClusterState, Command, Conflict};
use crate::store::{Database, Identity, LogStore, StateMachine, StoreError};
use crate::transport::RaftTransport;
use crate::types::{Group, TypeConfig};

/// How a node comes into its group, when its directory is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It founds a cluster.
    Found(ClusterSeed),
    /// It waits until the leader of this cluster adds it.
    Join {
        /// The cluster's id.
        cluster_id: u64,
    },
}

/// What [`Settings::open`] needs.
#[derive(Debug, Clone)]
pub struct RaftOptions {
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
    /// The group's own directory; created when it does not exist.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// What to do with a new directory. Of a used one, only the id of [`Start::Join`] is compared.
    pub start: Start,
}

/// The cluster and the node that a directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryIdentity {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The node's id.
    pub node: NodeId,
}

impl DirectoryIdentity {
    /// Reads the identity of a group's directory without opening it; `None` of a new one.
    ///
    /// # Errors
    /// [`OpenError::Store`] naming the file that cannot be read or is damaged.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, OpenError> {
        let identity = match Identity::read(disk, dir)? {
            Some(identity) => Some(identity),
            // A crash may have come between the log and the file beside it.
            None => open_existing(disk, dir)?
                .map(|database| database.identity())
                .transpose()?,
        };
        Ok(identity.map(|identity| Self {
            cluster_id: identity.cluster_id,
            node: NodeId(identity.node),
        }))
    }
}

impl Settings {
    /// Opens the directory and takes part in its group. In a group of one it returns when the settings are there; in
    /// a larger one at once, with the state as this node last knew it, since the others may be starting too.
    ///
    /// Boxed: else every crate that awaits it compiles openraft again.
    ///
    /// # Errors
    /// [`OpenError`]: each names the file concerned.
    pub fn open(
        options: RaftOptions,
        transport: Arc<dyn RaftTransport>,
    ) -> BoxFuture<'static, Result<Self, OpenError>> {
        async move {
            if let Start::Found(seed) = &options.start {
                let mut fresh = ClusterState::default();
                let tried = fresh.apply(&Command::SeedCluster(seed.clone()));
                tried.map_err(OpenError::Seed)?;
            }
            let (database, identity, created) = open_directory(&options)?;
            let path = Database::path_in(&options.dir);
            let stopped = |reason: String| OpenError::Group {
                path: path.clone(),
                reason,
            };
            let machine = StateMachine::load(database.clone())?;
            let states = machine.subscribe();
            let closed = database.closed();
            let peers = Peers::new(transport, identity);
            let config = config().map_err(stopped)?;
            let log = LogStore::new(database);
            let group = Group::new(identity.node, config, peers.clone(), log, machine)
                .await
                .map_err(|fatal| stopped(fatal.to_string()))?;
            let settings = Self {
                inner: Arc::new(Inner {
                    group,
                    peers,
                    identity,
                    states,
                    inbox: Inbox::default(),
                    closed,
                    created,
                }),
            };
            let ready = settings.become_ready(options.start, &path).await;
            if ready.is_err() {
                settings.shutdown().await;
            }
            ready.map(|()| settings)
        }
        .boxed()
    }

    async fn become_ready(&self, start: Start, path: &Path) -> Result<(), OpenError> {
        let stopped = |reason: String| OpenError::Group {
            path: path.to_owned(),
            reason,
        };
        let identity = self.inner.identity;
        let recovered = self.state().cluster_id;
        if recovered != 0 && recovered != identity.cluster_id {
            return Err(foreign(path, "cluster", identity.cluster_id, recovered));
        }
        let group = &self.inner.group;
        let initialized = group.is_initialized().await;
        let initialized = initialized.map_err(|fatal| stopped(fatal.to_string()))?;
        if !initialized && identity.founder {
            let members = std::collections::BTreeMap::from([(identity.node, EmptyNode {})]);
            let initialized = group.initialize(members).await;
            initialized.map_err(|error| stopped(error.to_string()))?;
        }
        if initialized || identity.founder {
            // The group reports its members a moment after it knows them.
            let reported = group.wait(Some(Duration::from_millis(PROPOSE_DEADLINE_MS)));
            let voters = |metrics: &openraft::RaftMetrics<TypeConfig>| {
                metrics.membership_config.voter_ids().next().is_some()
            };
            let reported = reported.metrics(voters, "members are known").await;
            reported.map_err(|error| stopped(error.to_string()))?;
        }
        if !self.members().voters.iter().eq([&self.node()]) {
            return Ok(());
        }
        // The only voter need not wait for the silence of a leader.
        let elected = group.trigger().elect(false).await;
        elected.map_err(|fatal| stopped(fatal.to_string()))?;
        let state = self.linearizable().await;
        let state = state.map_err(|error| stopped(error.to_string()))?;
        match start {
            Start::Found(seed) if !state.is_seeded() => self.seed(seed, path).await,
            _ => Ok(()),
        }
    }

    /// Founds the cluster, under the id that the directory was created with: a crash may have come in between.
    async fn seed(&self, seed: ClusterSeed, path: &Path) -> Result<(), OpenError> {
        let seed = ClusterSeed {
            cluster_id: self.inner.identity.cluster_id,
            ..seed
        };
        match self.propose(Command::SeedCluster(seed)).await {
            Ok(_) | Err(ProposeError::Conflict(Conflict::AlreadySeeded { .. })) => Ok(()),
            Err(ProposeError::Conflict(conflict)) => Err(OpenError::Seed(conflict)),
            Err(error) => Err(OpenError::Group {
                path: path.to_owned(),
                reason: error.to_string(),
            }),
        }
    }
}

/// Opens or creates the files, and checks that they belong together, to this cluster and to this node.
fn open_directory(options: &RaftOptions) -> Result<(Database, Identity, bool), OpenError> {
    let (disk, dir) = (&*options.disk, options.dir.as_path());
    let beside = Identity::read(disk, dir)?;
    let database = open_existing(disk, dir)?;
    let (database, identity, created) = match (beside, database) {
        (Some(_), None) => {
            return Err(OpenError::LogMissing {
                log: Database::path_in(dir),
                identity: Identity::path(dir),
            });
        }
        (None, None) => {
            let identity = new_identity(options);
            let database = Database::create(disk, dir, identity)?;
            (database, identity, true)
        }
        (_, Some(database)) => {
            let identity = database.identity()?;
            (database, identity, false)
        }
    };
    match beside {
        // New, or a crash has come between the two files.
        None => identity.write(disk, dir)?,
        Some(beside) => check_same(&Database::path_in(dir), beside, identity)?,
    }
    let wanted = match &options.start {
        Start::Found(_) => identity.cluster_id,
        Start::Join { cluster_id } => *cluster_id,
    };
    let expected = Identity {
        cluster_id: wanted,
        node: options.node.0,
        ..identity
    };
    check_same(&Identity::path(dir), expected, identity)?;
    Ok((database, identity, created))
}

pub(crate) fn open_existing(disk: &dyn Disk, dir: &Path) -> Result<Option<Database>, StoreError> {
    match Database::open(disk, dir) {
        Ok(database) => Ok(Some(database)),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn new_identity(options: &RaftOptions) -> Identity {
    let (cluster_id, founder) = match &options.start {
        Start::Found(seed) => (seed.cluster_id, true),
        Start::Join { cluster_id } => (*cluster_id, false),
    };
    Identity {
        cluster_id,
        node: options.node.0,
        founder,
    }
}

fn check_same(path: &Path, expected: Identity, found: Identity) -> Result<(), OpenError> {
    if expected.cluster_id != found.cluster_id {
        return Err(foreign(
            path,
            "cluster",
            expected.cluster_id,
            found.cluster_id,
        ));
    }
    if expected.node != found.node {
        return Err(foreign(path, "node", expected.node, found.node));
    }
    Ok(())
}

fn foreign(path: &Path, what: &'static str, expected: u64, found: u64) -> OpenError {
    OpenError::Foreign {
        path: path.to_owned(),
        what,
        expected,
        found,
    }
}

fn config() -> Result<Arc<Config>, String> {
    let config = Config {
        cluster_name: "settings".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        install_snapshot_timeout: SNAPSHOT_DEADLINE_MS,
        max_payload_entries: MAX_APPEND_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY_ENTRIES),
        max_in_snapshot_log_to_keep: LOG_KEPT_ENTRIES,
        // A node that comes back after a partition must not depose a healthy leader: with it, the simulation ended
        // at term 5 instead of 15.
        enable_pre_vote: Some(true),
        // A leader that comes back from an older image of its directory would go on leading by the vote that it finds
        // there, and nobody would see that its log is behind: it must be elected like any other.
        enable_leader_restore: Some(false),
        // The log of such a node is behind what it has acknowledged before. The leader sends it again what it lacks,
        // instead of panicking; the node is refused by its life when it registers.
        allow_log_reversion: Some(true),
        ..Config::default()
    };
    config
        .validate()
        .map(Arc::new)
        .map_err(|error| error.to_string())
}
