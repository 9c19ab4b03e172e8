//! The links of one node: our shell around ractor_cluster.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ractor::Actor;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use spandrel_model::ids::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::core::{ConnectError, Core};
use super::dialler::keep_connected;
use super::directory::{Directory, LinkIdentity};
use super::gateway::Gateway;
use super::hello::{OLDEST_VERSION, Purpose};
use super::keeper::Root;
use super::session::{Failure, Session};
use super::streams::Streams;
use super::switchboard::Switchboard;
use super::tasks::Tasks;
use super::{Link, LinkClass, LinkError, MAX_LINK_MESSAGE_BYTES, PeerHandler, PeerService, Peers};
use crate::limits::{LINK_END_MS, LINK_PING_MS, LINK_REDIAL_MIN_MS};
use crate::meters;

/// What a Hub is started with.
pub struct HubOptions {
    /// Which node of which cluster this is; `None` of a node that joins, until [`Hub::set_identity`].
    pub identity: Option<LinkIdentity>,
    /// Which start of the data directory this is: grows with each.
    pub boot: u64,
    /// Where other nodes reach this one, as `host:port`: what the settings hold, and what its certificate names.
    pub advertised: String,
    /// Carries the bytes.
    pub streams: Arc<dyn Streams>,
    /// Newest version of the links that is spoken, from [`OLDEST_VERSION`](super::OLDEST_VERSION) to
    /// [`NEWEST_VERSION`](super::NEWEST_VERSION): an older one to be as a program of the version before.
    pub newest_version: u16,
    /// From the system's entropy: the sessions' secrets and the jitter of redialling follow from it.
    pub seed: [u8; 32],
    /// Stops the process, as [`Env::halt`](crate::Env::halt): called when a part of the Hub has panicked.
    pub halt: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("identity", &self.identity)
            .field("boot", &self.boot)
            .field("advertised", &self.advertised)
            .finish_non_exhaustive()
    }
}

/// The actors of a Hub could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the links between nodes cannot be started: {reason}")]
pub struct HubError {
    /// Why.
    pub reason: String,
}

/// The links of one node. See [`Link`]; a process may hold several.
///
/// A call to a node that is not connected fails at once, as unreachable: who calls decides whether to try again.
/// [`Link::peers`] is published after each change and every [`LINK_PING_MS`](crate::limits::LINK_PING_MS) while
/// somebody is connected, so that `last_heard` is never older than that.
pub struct Hub {
    core: Arc<Core>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("identity", &self.core.identity())
            .field("address", &self.core.address)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Starts the links: takes connections from now on, and dials once [`Link::set_peers`] says whom.
    ///
    /// # Errors
    /// [`HubError`] when the runtime is shutting down.
    pub async fn start(
        options: HubOptions,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Self, HubError> {
        let failed = |error: ractor::SpawnErr| HubError {
            reason: error.to_string(),
        };
        let directory = Directory::new(options.identity);
        let tasks = Tasks::new(Arc::clone(&options.halt));
        let switchboard = Arc::new(Switchboard::new(directory, tasks, handler));
        let (root, _) = Actor::spawn(None, Root(options.halt), ())
            .await
            .map_err(failed)?;
        let gateway = Gateway(Arc::clone(&switchboard));
        let (gateway, _) = Actor::spawn_linked(None, gateway, (), root.get_cell())
            .await
            .map_err(failed)?;
        let core = Arc::new(Core {
            switchboard,
            streams: Mutex::new(Some(options.streams)),
            root,
            gateway: gateway.get_id().pid(),
            address: options.advertised,
            boot: options.boot,
            versions: (OLDEST_VERSION, options.newest_version),
            random: Mutex::new(ChaCha20Rng::from_seed(options.seed)),
            sequence: AtomicU64::new(1),
            strangers: Core::strangers(),
        });
        let tasks = &core.switchboard.tasks;
        tasks.spawn(take_connections(Arc::clone(&core)));
        tasks.spawn(publish_regularly(Arc::clone(&core)));
        Ok(Self { core })
    }

    /// Says which node this is, after it has joined or when it joins again: all sessions end and begin anew in its
    /// name.
    pub fn set_identity(&self, cluster_id: u64, node: NodeId) {
        let identity = LinkIdentity { cluster_id, node };
        let switchboard = &self.core.switchboard;
        let before = switchboard.directory().set_identity(identity);
        if before != Some(identity) {
            switchboard.end_all();
        }
        switchboard.announce();
    }

    /// Ends all sessions and closes the listener. Calls fail from now on.
    pub async fn stop(&self) {
        self.hang_up();
        let switchboard = &self.core.switchboard;
        let mut changes = switchboard.changes();
        let all_ended = async {
            loop {
                changes.mark_unchanged();
                if switchboard.directory().sessions().next().is_none()
                    || changes.changed().await.is_err()
                {
                    return;
                }
            }
        };
        // What has not ended by then is killed with the root.
        let _ = timeout(Duration::from_millis(LINK_END_MS), all_ended).await;
        if let Some(mut tasks) = switchboard.tasks.stop() {
            tasks.shutdown().await;
        }
        let _ = self.core.root.stop_and_wait(None, None).await;
    }

    /// How many sessions there are.
    #[cfg(test)]
    pub(crate) fn sessions_for_tests(&self) -> usize {
        self.core.switchboard.directory().sessions().count()
    }

    /// Cuts every session; nothing begins any more.
    fn hang_up(&self) {
        let core = &self.core;
        core.switchboard.directory().stopped = true;
        core.switchboard.end_all();
        core.switchboard.announce();
        let mut streams = core.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.take();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.hang_up();
        drop(self.core.switchboard.tasks.stop());
        self.core.root.stop(None);
    }
}

#[async_trait]
impl Link for Hub {
    async fn call(
        &self,
        to: NodeId,
        service: PeerService,
        class: LinkClass,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        check_size(&request)?;
        // Nothing is awaited before the request has its place in the session's order.
        let session = self.core.switchboard.route(to, class);
        let session = session.map_err(|reason| LinkError::Unreachable { to, reason })?;
        let answer = session.call(service, request, deadline).await;
        answer.map_err(|failure| named(failure, to))
    }

    async fn call_address(
        &self,
        address: &str,
        service: PeerService,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        let to = NodeId(0);
        check_size(&request)?;
        let end = Instant::now() + deadline;
        let opened = timeout_at(end, self.core.open(address, None, Purpose::Passing)).await;
        let passing = match opened {
            Ok(Ok(session)) => Passing(session),
            Ok(Err(ConnectError::Failed(reason))) => {
                return Err(LinkError::Unreachable { to, reason });
            }
            Ok(Err(ConnectError::Refused(reason))) => {
                return Err(LinkError::Refused { to, reason });
            }
            Err(_) => {
                let reason = format!("no session within {} ms", deadline.as_millis());
                return Err(LinkError::Unreachable { to, reason });
            }
        };
        let rest = end.saturating_duration_since(Instant::now());
        let answer = passing.0.call(service, request, rest).await;
        answer.map_err(|failure| named(failure, to))
    }

    fn peers(&self) -> watch::Receiver<Peers> {
        self.core.switchboard.peers()
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        let switchboard = &self.core.switchboard;
        let diallers = switchboard.directory().set_peers(peers, Instant::now());
        for (node, class) in diallers {
            let core = Arc::clone(&self.core);
            switchboard.tasks.spawn(keep_connected(core, node, class));
        }
        switchboard.announce();
    }

    fn set_apart(&self, reason: Option<String>) {
        let switchboard = &self.core.switchboard;
        let ends = reason.is_some();
        switchboard.directory().apart = reason;
        if ends {
            switchboard.end_all();
        }
        switchboard.announce();
    }

    async fn close(&self) {
        self.stop().await;
    }
}

/// A session for one call: ends with it.
struct Passing(Arc<Session>);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn check_size(request: &Bytes) -> Result<(), LinkError> {
    let bytes = request.len();
    if bytes > MAX_LINK_MESSAGE_BYTES {
        return Err(LinkError::TooLarge { bytes });
    }
    Ok(())
}

fn named(failure: Failure, to: NodeId) -> LinkError {
    match failure {
        Failure::Unsent(reason) => LinkError::Unreachable { to, reason },
        Failure::NoAnswer(reason) => LinkError::NoAnswer { to, reason },
        Failure::Refused(reason) => LinkError::Refused { to, reason },
    }
}

/// Keeps what is published of `last_heard` as new as a ping. Ends with the tasks.
async fn publish_regularly(core: Arc<Core>) {
    loop {
        sleep(Duration::from_millis(LINK_PING_MS)).await;
        core.switchboard.publish();
    }
}

/// Takes connections for as long as there are streams.
async fn take_connections(core: Arc<Core>) {
    while let Some(streams) = core.streams() {
        let incoming = match streams.accept().await {
            Ok(incoming) => incoming,
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken at the moment");
                sleep(Duration::from_millis(LINK_REDIAL_MIN_MS)).await;
                continue;
            }
        };
        match Arc::clone(&core.strangers).try_acquire_owned() {
            Ok(permit) => {
                let welcome = Arc::clone(&core).welcome(incoming, permit);
                core.switchboard.tasks.spawn(welcome);
            }
            Err(_) => meters::link_connection_refused(),
        }
    }
}
