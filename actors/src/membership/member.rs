//! A node as a member of its cluster: its links, its part of the settings' group, its registration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::handler::{MembershipHandler, describe};
use super::join::{ask_to_join, check_membership};
use super::message::Join;
use super::raft_link::{RaftHandler, RaftLink};
use super::register::{Registration, register};
use super::{LinkIdentity, NodeStart, PeerRouter};
use crate::controller::{ControllerArguments, peer_addresses};
use crate::env::Env;
use crate::identity::Lives;
use crate::limits::STEP_DOWN_MS;
use crate::link::{Link, PeerService};
use crate::node::{NodeOptions, StartError, start_error};
use spandrel_model::ids::{NodeId, Term};
use spandrel_raft::state::{NodeRegistration, NodeState, ShardRecord};
use spandrel_raft::{ClusterState, Command, DirectoryIdentity, RaftOptions, Settings, Start};

/// The node that founds a cluster; others get their ids from it.
const FIRST_NODE: NodeId = NodeId(1);

/// Keeps a node in its cluster until [`Member::close`].
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) settings: Settings,
    pub(crate) link: Arc<dyn Link>,
    /// Where those who answer other nodes are put in.
    pub(crate) router: Arc<PeerRouter>,
    /// Counts the node's lives: what it tells others carries it.
    pub(crate) incarnation: u64,
    registration: Registration,
    /// The other nodes as this one knew them when it opened its settings.
    peers: BTreeMap<NodeId, String>,
    /// The node stops, and does not mind being taken for dead.
    stopping: Arc<AtomicBool>,
}

/// Who the node is, before anything is open.
struct Beginning {
    cluster_id: u64,
    node: NodeId,
    start: Start,
    peers: BTreeMap<NodeId, String>,
}

impl Member {
    /// Founds, joins or comes back; returns once the node has registered.
    pub(crate) async fn open(
        options: &NodeOptions,
        env: &Env,
        lives: &Arc<Lives>,
    ) -> Result<Self, StartError> {
        let beginning = begin(options, env, lives).await?;
        let router = Arc::new(PeerRouter::default());
        let link_identity = LinkIdentity {
            cluster_id: beginning.cluster_id,
            node: Some(beginning.node),
            boot: lives.boot(),
        };
        let link = env
            .links
            .start(link_identity, Arc::clone(&router) as _)
            .await
            .map_err(|error| start_error("open the links to other nodes")(&error))?;
        let opened = Self::open_settings(options, env, lives, &beginning, &link, &router);
        match opened.await {
            Ok(member) => Ok(member),
            Err(error) => {
                link.close().await;
                router.close();
                Err(error)
            }
        }
    }

    async fn open_settings(
        options: &NodeOptions,
        env: &Env,
        lives: &Arc<Lives>,
        beginning: &Beginning,
        link: &Arc<dyn Link>,
        router: &Arc<PeerRouter>,
    ) -> Result<Self, StartError> {
        let raft = RaftOptions {
            disk: Arc::clone(&env.disk),
            dir: settings_dir(&options.data_dir),
            node: beginning.node,
            start: beginning.start.clone(),
        };
        let settings = Settings::open(raft, Arc::new(RaftLink(Arc::clone(link))))
            .await
            .map_err(|error| start_error("open the settings")(&error))?;
        router.set(
            PeerService::Raft,
            Arc::new(RaftHandler::new(settings.clone())),
        );
        let handler =
            MembershipHandler::new(env.clone(), settings.clone(), options.require_join_token);
        router.set(PeerService::Membership, Arc::new(handler));
        let peers = peer_addresses(&settings.state(), beginning.node);
        // What a member has just said is newer than what this node knew when it stopped.
        let mut reachable = peers.clone();
        reachable.extend(beginning.peers.clone());
        link.set_peers(reachable);
        let mut member = Self {
            settings,
            link: Arc::clone(link),
            router: Arc::clone(router),
            incarnation: 0,
            registration: Registration {
                node: NodeRegistration {
                    node: beginning.node,
                    addresses: options.addresses.clone(),
                    zone: options.zone.clone(),
                    disk_id: lives.disk_id(),
                    boot: lives.boot(),
                },
                lives: Arc::clone(lives),
            },
            peers,
            stopping: Arc::default(),
        };
        match member
            .enter(matches!(beginning.start, Start::Found(_)), env)
            .await
        {
            Ok(()) => Ok(member),
            Err(error) => {
                member.settings.shutdown().await;
                Err(error)
            }
        }
    }

    async fn enter(&mut self, founds: bool, env: &Env) -> Result<(), StartError> {
        // A crash may have come between any two steps of the founding.
        let alone = self.settings.members().voters.iter().eq([&self.node()]);
        if founds && alone && self.settings.state().nodes.is_empty() {
            let founder = &self.registration.node;
            let admit = Command::AdmitNode {
                disk_id: founder.disk_id,
                addresses: founder.addresses.clone(),
                zone: founder.zone.clone(),
            };
            self.propose(admit).await?;
        }
        self.incarnation = register(&self.settings, &self.registration, env).await?;
        if founds && alone && self.settings.state().shard_map.is_empty() {
            let node = self.node();
            let record = ShardRecord {
                term: Term(1),
                primary: node,
                isr: vec![node],
                filling: Vec::new(),
                moving_to: None,
            };
            let records = vec![record; usize::from(self.settings.state().shards)];
            self.propose(Command::StartShards { records }).await?;
        }
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<(), StartError> {
        let proposed = self.settings.propose(command).await;
        proposed
            .map(drop)
            .map_err(|error| start_error("found the cluster")(&error))
    }

    /// What the controller of this node works with.
    pub(crate) fn controller(&self, env: &Env) -> ControllerArguments {
        ControllerArguments {
            env: env.clone(),
            settings: self.settings.clone(),
            link: Arc::clone(&self.link),
            registration: self.registration.clone(),
            peers: self.peers.clone(),
            stopping: Arc::clone(&self.stopping),
        }
    }

    /// Says that the node stops, and waits until others lead its shards: they need not notice by its silence. Returns
    /// after [`STEP_DOWN_MS`] in any case; what nobody else can lead waits for the node.
    pub(crate) async fn step_down(&self) {
        let me = self.node();
        let state = self.settings.state();
        let Some(record) = state.nodes.get(&me).filter(|_| state.nodes.len() > 1) else {
            return;
        };
        self.stopping.store(true, Ordering::Relaxed);
        let command = Command::SetNodeState {
            node: me,
            expected_incarnation: record.incarnation,
            expected: record.state,
            state: NodeState::Down,
        };
        let mut states = self.settings.watch();
        let handed_over = async {
            if let Err(error) = self.settings.propose(command).await {
                tracing::warn!(%error, "the others are not told that this node stops");
                return;
            }
            let led = |state: &Arc<ClusterState>| {
                let mut records = state.shard_map.iter();
                records.any(|record| {
                    let others = record.isr.iter().any(|node| *node != me);
                    record.primary == me && others
                })
            };
            let _ = states.wait_for(|state| !led(state)).await;
        };
        let deadline = Duration::from_millis(STEP_DOWN_MS);
        if tokio::time::timeout(deadline, handed_over).await.is_err() {
            tracing::warn!("stopping while shards are still led here");
        }
    }

    /// This node.
    pub(crate) fn node(&self) -> NodeId {
        self.registration.node.node
    }

    /// Takes part no more. The others notice by its silence.
    pub(crate) async fn close(&self) {
        self.settings.shutdown().await;
        self.link.close().await;
        self.router.close();
    }
}

/// Where a data directory has the settings and their log.
#[must_use]
pub fn settings_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("raft")
}

/// A used directory is the node that it was; a new one founds or joins.
async fn begin(
    options: &NodeOptions,
    env: &Env,
    lives: &Arc<Lives>,
) -> Result<Beginning, StartError> {
    let (disk, dir) = (Arc::clone(&env.disk), settings_dir(&options.data_dir));
    let known = env
        .block(move || DirectoryIdentity::read(disk.as_ref(), &dir))
        .await
        .map_err(|error| start_error("open the settings")(&error))?;
    let join = |cluster_id, token, expected_shards| Join {
        disk_id: lives.disk_id(),
        addresses: options.addresses.clone(),
        zone: options.zone.clone(),
        program: describe(),
        token,
        expected_shards,
        cluster_id,
    };
    match (known, &options.start) {
        (Some(known), NodeStart::Found) => Ok(Beginning {
            cluster_id: known.cluster_id,
            node: known.node,
            start: Start::Found(options.seed.clone()),
            peers: BTreeMap::new(),
        }),
        (Some(known), NodeStart::Join { addresses, .. }) => {
            let join = join(Some(known.cluster_id), None, None);
            let link = joining_link(env, lives).await?;
            let fits = check_membership(link.as_ref(), addresses, &join).await;
            link.close().await;
            let members = fits?.map(|joined| joined.members).unwrap_or_default();
            Ok(Beginning {
                cluster_id: known.cluster_id,
                node: known.node,
                start: Start::Join {
                    cluster_id: known.cluster_id,
                },
                peers: members.into_iter().collect(),
            })
        }
        (None, NodeStart::Found) => Ok(Beginning {
            cluster_id: options.seed.cluster_id,
            node: FIRST_NODE,
            start: Start::Found(options.seed.clone()),
            peers: BTreeMap::new(),
        }),
        (
            None,
            NodeStart::Join {
                addresses,
                token,
                expected_shards,
            },
        ) => {
            let join = join(None, token.clone(), *expected_shards);
            let link = joining_link(env, lives).await?;
            let joined = ask_to_join(link.as_ref(), addresses, &join).await;
            link.close().await;
            let joined = joined?;
            tracing::info!(
                node = joined.node.0,
                cluster = format!("{:016x}", joined.cluster_id),
                shards = joined.shards,
                "let in"
            );
            Ok(Beginning {
                cluster_id: joined.cluster_id,
                node: joined.node,
                start: Start::Join {
                    cluster_id: joined.cluster_id,
                },
                peers: joined.members.into_iter().collect(),
            })
        }
    }
}

/// Links of a node that has no id yet.
async fn joining_link(env: &Env, lives: &Arc<Lives>) -> Result<Arc<dyn Link>, StartError> {
    let stranger = LinkIdentity {
        cluster_id: 0,
        node: None,
        boot: lives.boot(),
    };
    env.links
        .start(stranger, Arc::new(PeerRouter::default()))
        .await
        .map_err(|error| start_error("open the links to other nodes")(&error))
}
