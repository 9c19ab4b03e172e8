//! Opens and takes connections, and turns them into sessions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha20Rng;
use spandrel_model::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::directory::LinkIdentity;
use super::driver::Driver;
use super::hello::{Accepted, Hello, HelloAnswer, Purpose, Token, common_version, say};
use super::keeper::{Keeper, KeeperArguments, RootMessage};
use super::reasons::End;
use super::session::{Session, SessionFacts};
use super::streams::{Incoming, LinkStream, Streams, host_of};
use super::switchboard::Switchboard;
use crate::limits::{LINK_END_MS, LINK_HANDSHAKE_MS, MAX_LINK_STRANGERS};
use crate::meters;

/// Numbers the sessions of a process: the transport keys its proxies by them, process-wide.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// What the connections of a Hub have in common.
pub(crate) struct Core {
    pub(crate) switchboard: Arc<Switchboard>,
    /// `None` once the links were stopped, so that the listener is closed.
    pub(crate) streams: Mutex<Option<Arc<dyn Streams>>>,
    pub(crate) root: ActorRef<RootMessage>,
    /// Number of the gateway actor.
    pub(crate) gateway: u64,
    /// Where this node takes connections.
    pub(crate) address: String,
    pub(crate) boot: u64,
    /// Oldest and newest version that this node speaks.
    pub(crate) versions: (u16, u16),
    pub(crate) random: Mutex<ChaCha20Rng>,
    pub(crate) sequence: AtomicU64,
    pub(crate) strangers: Arc<Semaphore>,
}

/// A connection that did not become a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// The other side was not reached, or is not who it should be.
    Failed(String),
    /// It has refused.
    Refused(String),
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(reason) => f.write_str(reason),
            Self::Refused(reason) => write!(f, "it refuses: {reason}"),
        }
    }
}

/// A stream behind its handshake.
pub(crate) struct Greeted {
    pub(crate) stream: LinkStream,
    pub(crate) facts: SessionFacts,
    pub(crate) dialled: bool,
    /// What an incoming connection holds while it may be anybody's.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Core {
    /// A place for strangers each.
    pub(crate) fn strangers() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_LINK_STRANGERS))
    }

    pub(crate) fn streams(&self) -> Option<Arc<dyn Streams>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.clone()
    }

    pub(crate) fn identity(&self) -> Option<LinkIdentity> {
        self.switchboard.directory().identity
    }

    fn token(&self) -> Token {
        let mut bytes = [0; 16];
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        random.fill_bytes(&mut bytes);
        Token(bytes)
    }

    /// A pause up to a quarter shorter than the given one, so that nodes do not dial in step.
    pub(crate) fn jittered(&self, pause: Duration) -> Duration {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        pause.mul_f64(random.random_range(0.75..=1.0))
    }

    /// Connects with an address and returns the session once calls can be made by it.
    pub(crate) async fn open(
        self: &Arc<Self>,
        address: &str,
        to: Option<NodeId>,
        purpose: Purpose,
    ) -> Result<Arc<Session>, ConnectError> {
        let limit = Duration::from_millis(LINK_HANDSHAKE_MS);
        let greeted = timeout(limit, self.greet(address, to, purpose)).await;
        let greeted = greeted.map_err(|_| {
            ConnectError::Failed(format!(
                "no connection with {address} within {LINK_HANDSHAKE_MS} ms"
            ))
        })??;
        let (ready, session) = oneshot::channel();
        // A task of its own: the session must end in order even when the caller goes away.
        self.switchboard
            .tasks
            .spawn(Arc::clone(self).run(greeted, Some(ready)));
        let failed = || ConnectError::Failed(format!("the session with {address} did not begin"));
        session.await.map_err(|_| failed())
    }

    async fn greet(
        &self,
        address: &str,
        to: Option<NodeId>,
        purpose: Purpose,
    ) -> Result<Greeted, ConnectError> {
        let failed = |reason: String| ConnectError::Failed(reason);
        let streams = self
            .streams()
            .ok_or_else(|| failed("the links are stopped".to_owned()))?;
        let unreachable = |error: std::io::Error| failed(format!("{address}: {error}"));
        let mut stream = streams.dial(address).await.map_err(unreachable)?;
        let identity = self.identity();
        let own_token = self.token();
        let hello = Hello {
            versions: self.versions,
            purpose,
            cluster_id: identity.map_or(0, |identity| identity.cluster_id),
            node: identity.map(|identity| identity.node),
            to,
            boot: self.boot,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            token: own_token,
            gateway: self.gateway,
            address: self.address.clone(),
        };
        let said = say(&mut stream.writer, &hello.encode()).await;
        said.map_err(unreachable)?;
        let answer = HelloAnswer::read(&mut stream.reader).await;
        let accepted = match answer.map_err(unreachable)? {
            HelloAnswer::Refused { reason } => return Err(ConnectError::Refused(reason)),
            HelloAnswer::Accepted(accepted) => accepted,
        };
        check_accepted(&accepted, &hello).map_err(failed)?;
        Ok(Greeted {
            facts: SessionFacts {
                purpose,
                peer: Some(accepted.node),
                boot: accepted.boot,
                by_lower: hello.node.is_some_and(|own| own < accepted.node),
                sequence: hello.sequence,
                own_token,
                their_token: accepted.token,
                gateway: accepted.gateway,
                version: accepted.version,
            },
            stream,
            dialled: true,
            permit: None,
        })
    }

    /// Takes a connection that another node has opened, and runs its session.
    pub(crate) async fn welcome(self: Arc<Self>, incoming: Incoming, permit: OwnedSemaphorePermit) {
        let limit = Duration::from_millis(LINK_HANDSHAKE_MS);
        match timeout(limit, self.answer(incoming)).await {
            Ok(Ok(mut greeted)) => {
                greeted.permit = Some(permit);
                self.run(greeted, None).await;
            }
            Ok(Err(reason)) => {
                meters::link_connection_refused();
                tracing::warn!(%reason, "a connection of another node was not taken");
            }
            Err(_) => meters::link_connection_refused(),
        }
    }

    async fn answer(&self, incoming: Incoming) -> Result<Greeted, String> {
        let mut stream = incoming.await.map_err(|error| error.to_string())?;
        let from = stream.peer.clone();
        let broken = |error: std::io::Error| format!("{from}: {error}");
        let hello = Hello::read(&mut stream.reader).await.map_err(broken)?;
        let judged = self.judge(&hello, &stream);
        let answer = match &judged {
            Ok(accepted) => HelloAnswer::Accepted(accepted.clone()),
            Err(reason) => HelloAnswer::Refused {
                reason: reason.clone(),
            },
        };
        let said = say(&mut stream.writer, &answer.encode()).await;
        said.map_err(broken)?;
        let accepted = judged.map_err(|reason| format!("{from}: {reason}"))?;
        Ok(Greeted {
            stream,
            facts: SessionFacts {
                purpose: hello.purpose,
                peer: hello.node,
                boot: hello.boot,
                by_lower: hello.node.is_some_and(|node| node < accepted.node),
                sequence: hello.sequence,
                own_token: accepted.token,
                their_token: hello.token,
                gateway: hello.gateway,
                version: accepted.version,
            },
            dialled: false,
            permit: None,
        })
    }

    /// Whether a node that has opened a connection may have it.
    fn judge(&self, hello: &Hello, stream: &LinkStream) -> Result<Accepted, String> {
        let ours = self.versions;
        let version = common_version(ours, hello.versions).ok_or_else(|| {
            let (oldest, newest) = hello.versions;
            format!(
                "this node speaks versions {} to {} of the links, the caller {oldest} to {newest}: upgrade one version at a time",
                ours.0, ours.1
            )
        })?;
        let directory = self.switchboard.directory();
        let identity = directory
            .identity
            .ok_or("this node has not joined a cluster yet")?;
        if let Some(reason) = &directory.apart {
            return Err(format!("node {} keeps apart: {reason}", identity.node.0));
        }
        let joins = hello.node.is_none() && hello.purpose == Purpose::Passing;
        if hello.node.is_none() && !joins {
            return Err("a session of members needs a node id".to_owned());
        }
        if hello.cluster_id != identity.cluster_id && !(joins && hello.cluster_id == 0) {
            let (theirs, ours) = (hello.cluster_id, identity.cluster_id);
            return Err(format!(
                "this node is of cluster {ours:016x}, the caller of {theirs:016x}"
            ));
        }
        if let Some(to) = hello.to.filter(|to| *to != identity.node) {
            let own = identity.node.0;
            return Err(format!("this is node {own}, not node {}", to.0));
        }
        if hello.node == Some(identity.node) {
            return Err(format!("node {} is this node itself", identity.node.0));
        }
        if let Some(node) = hello.node.filter(|node| directory.is_removed(*node)) {
            return Err(format!("node {} was removed from the cluster", node.0));
        }
        if let Some(certificate) = &stream.certificate {
            // A member must show what belongs to its address in the settings, whatever it says of itself.
            let known = hello.node.and_then(|node| directory.address(node));
            let host = host_of(known.unwrap_or(&hello.address));
            if !certificate.names_host(host) {
                return Err(format!("the certificate does not name the host `{host}`"));
            }
        }
        drop(directory);
        Ok(Accepted {
            version,
            cluster_id: identity.cluster_id,
            node: identity.node,
            boot: self.boot,
            token: self.token(),
            gateway: self.gateway,
        })
    }

    /// Runs a session from its handshake to its end.
    async fn run(self: Arc<Self>, greeted: Greeted, ready: Option<oneshot::Sender<Arc<Session>>>) {
        let Greeted {
            stream,
            facts,
            dialled,
            permit,
        } = greeted;
        let from = stream.peer.clone();
        let (session, left_over) = Session::new(facts.clone());
        if !self.switchboard.directory().begin(&session) {
            return;
        }
        let tokens = match dialled {
            true => (facts.own_token, facts.their_token),
            false => (facts.their_token, facts.own_token),
        };
        let (proxy, gateway) = oneshot::channel();
        let arguments = KeeperArguments {
            stream,
            lifeline: Arc::clone(&session.lifeline),
            number: NEXT_SESSION.fetch_add(1, Ordering::Relaxed),
            dialled,
            tokens,
            gateway: facts.gateway,
            ready: proxy,
        };
        let started = Actor::spawn_linked(None, Keeper, arguments, self.root.get_cell()).await;
        let Ok((keeper, mut ended)) = started else {
            self.switchboard.directory().forget(&session);
            return;
        };
        let limit = Duration::from_millis(LINK_HANDSHAKE_MS);
        let reason = match timeout(limit, gateway).await {
            Ok(Ok(gateway)) => {
                session.outbox.open(gateway);
                if self.switchboard.elect(&session) {
                    let driver = Driver {
                        switchboard: &self.switchboard,
                        session: &session,
                        from: &from,
                        dialled,
                    };
                    driver.run(&mut ended, left_over, ready, permit).await
                } else {
                    End::NotPreferred
                }
            }
            Ok(Err(_)) => End::Closed,
            Err(_) => End::NotReady,
        };
        session.end();
        self.switchboard.directory().lose(&session, reason);
        self.switchboard.announce();
        let limit = Duration::from_millis(LINK_END_MS);
        // A handle that the driver has seen finish must not be polled again.
        if !ended.is_finished() && timeout(limit, &mut ended).await.is_err() {
            keeper.kill();
        }
        self.switchboard.directory().forget(&session);
        self.switchboard.announce();
    }
}

/// Whether the other side of a connection that was opened is the one that was meant.
fn check_accepted(accepted: &Accepted, hello: &Hello) -> Result<(), String> {
    if !(hello.versions.0..=hello.versions.1).contains(&accepted.version) {
        return Err(format!(
            "it answers in version {} of the links",
            accepted.version
        ));
    }
    if hello.cluster_id != 0 && accepted.cluster_id != hello.cluster_id {
        return Err(format!("it is of cluster {:016x}", accepted.cluster_id));
    }
    if hello.to.is_some_and(|to| to != accepted.node) {
        return Err(format!("it answers as node {}", accepted.node.0));
    }
    Ok(())
}
