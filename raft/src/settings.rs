//! The handle of the replicated settings.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use spandrel_model::ids::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{ProposeError, RequestError};
use crate::inbox::{Inbox, propose_here, read_index_here};
use crate::limits::{LEADER_RETRY_MS, MAX_COMMAND_BYTES, PROPOSE_DEADLINE_MS};
use crate::message::{Answer, Proposed, ReadIndex, Request, RequestBody};
use crate::peers::Peers;
use crate::state::{Applied, ClusterState, Command};
use crate::store::Identity;
use crate::transport::TransportError;
use crate::types::Group;

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Raft index of the command; this node has applied it.
    pub index: u64,
    /// What it has done.
    pub applied: Applied,
}

/// The replicated settings on this node. Cheap to clone; call [`Settings::shutdown`] once at the end.
#[derive(Clone)]
pub struct Settings {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) group: Group,
    pub(crate) peers: Peers,
    pub(crate) identity: Identity,
    pub(crate) states: watch::Receiver<Arc<ClusterState>>,
    pub(crate) inbox: Inbox,
    pub(crate) closed: watch::Receiver<()>,
    pub(crate) created: bool,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("identity", &self.inner.identity)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// True when the directory was new; false when it was used before and the given seed was ignored.
    #[must_use]
    pub fn created(&self) -> bool {
        self.inner.created
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.inner.identity.node)
    }

    /// The cluster that the directory belongs to.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.inner.identity.cluster_id
    }

    /// The state as this node has applied it: perhaps not the newest.
    #[must_use]
    pub fn state(&self) -> Arc<ClusterState> {
        self.inner.states.borrow().clone()
    }

    /// The state after each change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.states.clone()
    }

    /// Changes the state, through the leader wherever it is. Returns when this node has applied the command.
    ///
    /// # Errors
    /// [`ProposeError`]; all but `OutcomeUnknown` mean that nothing has changed. After at most
    /// [`PROPOSE_DEADLINE_MS`].
    pub async fn propose(&self, command: Command) -> Result<Response, ProposeError> {
        check_size(&command)?;
        let deadline = deadline();
        let mut leader = None;
        loop {
            let proposed = self.propose_at(leader, &command, deadline).await?;
            match self.taken(proposed, deadline).await? {
                Ok(response) => return Ok(response),
                Err(hint) => leader = self.next_leader(leader, hint),
            }
            pause_before_retry(leader, deadline).await?;
        }
    }

    /// Changes the state as the leader. What a leader proposes because of what it sees must not come about through
    /// another one that sees something else: a leader that was cut off takes the others for dead.
    ///
    /// # Errors
    /// As [`Settings::propose`]; `NotLeader`, also when this node ceases to lead before the command is committed.
    pub async fn propose_as_leader(&self, command: Command) -> Result<Response, ProposeError> {
        check_size(&command)?;
        let deadline = deadline();
        let proposed = self.propose_at(None, &command, deadline).await?;
        let taken = self.taken(proposed, deadline).await?;
        taken.map_err(|leader| ProposeError::NotLeader {
            leader: leader.map(NodeId),
        })
    }

    /// What became of a proposal: `Err` with the leader, as far as it is known, when it was not taken.
    async fn taken(
        &self,
        proposed: Proposed,
        deadline: Instant,
    ) -> Result<Result<Response, Option<u64>>, ProposeError> {
        match proposed {
            Proposed::Applied { index, outcome } => {
                // Also what a refused command met is here then.
                let is_here = self.applied_to(index, deadline).await;
                let applied = outcome.0?;
                is_here.map_err(in_doubt)?;
                Ok(Ok(Response { index, applied }))
            }
            Proposed::NotLeader { leader } => Ok(Err(leader)),
            Proposed::Unknown { reason } => Err(ProposeError::OutcomeUnknown { reason }),
            Proposed::Stopped { reason } => Err(ProposeError::Stopped { reason }),
        }
    }

    /// The state with every command in it that was acknowledged before the call, anywhere in the cluster.
    ///
    /// # Errors
    /// `Unavailable` when no majority could be reached within [`PROPOSE_DEADLINE_MS`]; `Stopped`.
    pub async fn linearizable(&self) -> Result<Arc<ClusterState>, ProposeError> {
        let deadline = deadline();
        let mut leader = None;
        loop {
            match self.read_index_at(leader, deadline).await {
                ReadIndex::Index(index) => {
                    self.applied_to(index, deadline).await?;
                    return Ok(self.state());
                }
                ReadIndex::NotLeader { leader: hint } => leader = self.next_leader(leader, hint),
                ReadIndex::Stopped { reason } => return Err(ProposeError::Stopped { reason }),
            }
            pause_before_retry(leader, deadline).await?;
        }
    }

    /// The leader, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        let metrics = self.inner.group.metrics();
        let leader = metrics.borrow_watched().current_leader;
        leader.map(NodeId)
    }

    /// True while this node leads, as far as it knows: one that was cut off learns later that it does not.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leader() == Some(self.node())
    }

    /// Waits until this node knows another leader than `known`, and returns it. Never returns once the group has
    /// stopped.
    pub async fn leader_changed(&self, known: Option<NodeId>) -> Option<NodeId> {
        let mut metrics = self.inner.group.metrics();
        loop {
            let leader = metrics.borrow_watched().current_leader.map(NodeId);
            if leader != known {
                return leader;
            }
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the group has stopped on this node and says why: after a failed write or fsync the process must
    /// end and start again, since nobody knows what the disk holds. `None` after [`Settings::shutdown`].
    pub async fn stopped(&self) -> Option<String> {
        let mut metrics = self.inner.group.metrics();
        loop {
            match &metrics.borrow_watched().running_state {
                Ok(()) => {}
                Err(Fatal::Stopped) => return None,
                Err(fatal) => return Some(fatal.to_string()),
            }
            if metrics.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Takes a snapshot of the state now, and forgets the entries that it makes superfluous.
    ///
    /// # Errors
    /// `Stopped`.
    pub async fn compact(&self) -> Result<(), ProposeError> {
        let taken = self.inner.group.trigger().snapshot().await;
        taken.map_err(|fatal| ProposeError::Stopped {
            reason: fatal.to_string(),
        })
    }

    /// Answers a request that a peer's [`RaftTransport`](crate::RaftTransport) carried here. `from` is the peer as
    /// the transport has authenticated it.
    ///
    /// # Errors
    /// [`RequestError`] for bytes that are no request, or one of another cluster or in another node's name.
    pub async fn answer(&self, from: NodeId, request: &[u8]) -> Result<Vec<u8>, RequestError> {
        let refuse = |reason: String| RequestError { reason };
        let request = Request::decode(request).map_err(|error| refuse(error.to_string()))?;
        if request.cluster_id != self.cluster_id() {
            let (theirs, ours) = (request.cluster_id, self.cluster_id());
            return Err(refuse(format!(
                "it is of cluster {theirs:016x}, not {ours:016x}"
            )));
        }
        if NodeId(request.from) != from {
            let (claimed, from) = (request.from, from.0);
            return Err(refuse(format!("node {from} speaks for node {claimed}")));
        }
        let answer = self
            .inner
            .inbox
            .answer(&self.inner.group, request.body)
            .await;
        answer.encode().map_err(|error| refuse(error.to_string()))
    }

    /// Stops taking part and closes the files. The state stays readable.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.group.shutdown().await {
            tracing::warn!(%error, "settings did not stop cleanly");
        }
        // openraft's tasks let go of the log one after the other.
        let mut closed = self.inner.closed.clone();
        let closing = async { while closed.changed().await.is_ok() {} };
        if tokio::time::timeout_at(deadline(), closing).await.is_err() {
            tracing::warn!("the log of the settings is still open after the shutdown");
        }
    }

    async fn propose_at(
        &self,
        leader: Option<u64>,
        command: &Command,
        deadline: Instant,
    ) -> Result<Proposed, ProposeError> {
        let Some(leader) = leader else {
            let proposed = propose_here(&self.inner.group, command.clone());
            return tokio::time::timeout_at(deadline, proposed)
                .await
                .map_err(|_elapsed| ProposeError::OutcomeUnknown {
                    reason: "it was not committed in time".to_owned(),
                });
        };
        let body = RequestBody::Propose(command.clone());
        match self.inner.peers.ask(leader, body, left(deadline)).await {
            // Another node's group has stopped, not this one's. It may have sent the command on before.
            Ok(Answer::Proposed(Proposed::Stopped { reason })) => Ok(Proposed::Unknown { reason }),
            Ok(Answer::Refused { .. }) | Err(TransportError::Unreachable { .. }) => {
                Ok(Proposed::NotLeader { leader: None })
            }
            Ok(Answer::Proposed(proposed)) => Ok(proposed),
            Ok(_) => Ok(Proposed::Unknown {
                reason: format!("node {leader} answered something else"),
            }),
            Err(error @ TransportError::NoAnswer { .. }) => Ok(Proposed::Unknown {
                reason: error.to_string(),
            }),
        }
    }

    async fn read_index_at(&self, leader: Option<u64>, deadline: Instant) -> ReadIndex {
        let nobody = ReadIndex::NotLeader { leader: None };
        let Some(leader) = leader else {
            let read = read_index_here(&self.inner.group);
            return tokio::time::timeout_at(deadline, read)
                .await
                .unwrap_or(nobody);
        };
        match self
            .inner
            .peers
            .ask(leader, RequestBody::ReadIndex, left(deadline))
            .await
        {
            Ok(Answer::ReadIndex(read @ (ReadIndex::Index(_) | ReadIndex::NotLeader { .. }))) => {
                read
            }
            _ => nobody,
        }
    }

    /// Whom to ask next: a peer's hint after asking here, and here again after asking a peer.
    fn next_leader(&self, asked: Option<u64>, hint: Option<u64>) -> Option<u64> {
        match asked {
            None => hint.filter(|leader| *leader != self.inner.identity.node),
            Some(_) => None,
        }
    }

    async fn applied_to(&self, index: u64, deadline: Instant) -> Result<(), ProposeError> {
        let mut states = self.watch();
        let applied = states.wait_for(|state| state.applied_index >= index);
        match tokio::time::timeout_at(deadline, applied).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_closed)) => Err(ProposeError::Stopped {
                reason: "the settings were shut down".to_owned(),
            }),
            Err(_elapsed) => Err(ProposeError::Unavailable {
                reason: format!("index {index} has not reached this node in time"),
            }),
        }
    }
}

fn check_size(command: &Command) -> Result<(), ProposeError> {
    let bytes = command.encoded_bytes();
    if bytes <= MAX_COMMAND_BYTES {
        return Ok(());
    }
    Err(ProposeError::TooLarge {
        bytes,
        limit_bytes: MAX_COMMAND_BYTES,
    })
}

/// When a call that starts now gives up.
pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_millis(PROPOSE_DEADLINE_MS)
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The command is committed, but this node has not seen it applied.
fn in_doubt(error: ProposeError) -> ProposeError {
    ProposeError::OutcomeUnknown {
        reason: format!("it is committed, but {error}"),
    }
}

/// A leader that was just named is asked at once; without one, an election may be under way.
async fn pause_before_retry(leader: Option<u64>, deadline: Instant) -> Result<(), ProposeError> {
    if leader.is_some() {
        return Ok(());
    }
    let pause = Duration::from_millis(LEADER_RETRY_MS);
    if left(deadline) <= pause {
        return Err(ProposeError::Unavailable {
            reason: format!("none was found within {PROPOSE_DEADLINE_MS} ms"),
        });
    }
    tokio::time::sleep(pause).await;
    Ok(())
}
