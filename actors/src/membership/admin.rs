//! What people ask of a cluster's membership.

use spandrel_model::cluster::{ClusterView, NewJoinToken};
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, UnixNanos};
use spandrel_raft::state::{JoinToken, NodeState};
use spandrel_raft::{Command, Conflict, ProposeError};

use super::view::{Known, cluster_view, versions};
use super::{JoinSecret, Member};
use crate::env::Env;
use crate::limits::{JOIN_TOKEN_SECONDS, PRESSURE_RETRY_MS};
use crate::repair::held_alone;

fn unavailable(error: ProposeError) -> PortError {
    PortError::unavailable("settings", error.to_string(), PRESSURE_RETRY_MS)
}

fn refused(code: &'static str, message: String) -> PortError {
    PortError::new(ErrorClass::Invalid, code, message)
}

impl Member {
    /// The cluster as this node sees it.
    pub(crate) async fn view(&self) -> ClusterView {
        let (this, state) = (self.node(), self.settings.state());
        let others = state.nodes.keys().copied();
        let others = others.filter(|id| *id != this).collect();
        let versions = versions(self.link.as_ref(), this, others).await;
        let peers = self.link.peers().borrow().clone();
        let silences = peers.iter();
        let silent_for = silences.map(|(id, peer)| (*id, peer.last_heard.elapsed()));
        cluster_view(&Known {
            this,
            state: &state,
            members: &self.settings.members(),
            leader: self.settings.leader(),
            silent_for: silent_for.collect(),
            versions,
        })
    }

    /// Why this node does not serve now; `None` when it does.
    pub(crate) fn not_ready(&self) -> Option<String> {
        let state = self.settings.state();
        match state.nodes.get(&self.node()).map(|node| node.state) {
            Some(NodeState::Up | NodeState::Draining | NodeState::Full) => None,
            Some(NodeState::Down) => Some("the cluster takes this node for dead".to_owned()),
            None => Some("the cluster's settings have not reached this node".to_owned()),
        }
    }

    /// Lets this node hand over its shards.
    pub(crate) async fn leave(&self) -> Result<(), PortError> {
        let (this, state) = (self.node(), self.settings.state());
        let up = |(id, node): (&NodeId, &spandrel_raft::state::NodeRecord)| {
            *id != this && node.state == NodeState::Up
        };
        if !state.nodes.iter().any(up) {
            let message = "no other node is up that could take the shards of this one";
            return Err(refused("last_node", message.to_owned()));
        }
        let Some(record) = state.nodes.get(&this) else {
            return Err(unknown(this));
        };
        if record.state == NodeState::Draining {
            return Ok(());
        }
        let command = Command::SetNodeState {
            node: this,
            expected_incarnation: record.incarnation,
            expected: record.state,
            state: NodeState::Draining,
        };
        self.settings.propose(command).await.map_err(unavailable)?;
        tracing::info!(node = this.0, "this node leaves: it takes no new shards");
        Ok(())
    }

    /// Takes a node out of the cluster.
    pub(crate) async fn remove(&self, node: NodeId, accepts_loss: bool) -> Result<(), PortError> {
        // What others have just proposed counts: two nodes that hold the same must not be removed at two places.
        let state = self.settings.linearizable().await.map_err(unavailable)?;
        let Some(record) = state.nodes.get(&node) else {
            return Err(unknown(node));
        };
        let id = node.0;
        if node == self.node() {
            let message =
                format!("node {id} is the one that was asked: ask another node to remove it");
            return Err(refused("own_node", message));
        }
        if matches!(record.state, NodeState::Up | NodeState::Full) {
            let message = format!(
                "node {id} is up: let it hand over by `spandrel node leave` there, or stop it for good"
            );
            return Err(refused("node_is_up", message));
        }
        let alone = held_alone(&state, node);
        if alone > 0 && !accepts_loss {
            let message = format!(
                "no other node holds {alone} pieces of older data that node {id} holds: start it again and let it leave, or remove it with --i-accept-loss"
            );
            return Err(refused("only_copy", message));
        }
        let command = Command::RemoveNode {
            node,
            expected_incarnation: record.incarnation,
        };
        match self.settings.propose(command).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Conflict(conflict @ Conflict::NodeInUse { .. })) => {
                let message = format!(
                    "{conflict}: wait until other nodes hold its shards; `spandrel node status` shows how far they are"
                );
                Err(refused("node_in_use", message))
            }
            Err(ProposeError::Conflict(Conflict::UnknownNode { .. })) => Err(unknown(node)),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Creates a join token.
    pub(crate) async fn create_join_token(&self, env: &Env) -> Result<NewJoinToken, PortError> {
        let secret = JoinSecret::from_random((env.secret)());
        let now = env.now();
        let expires = now.plus(JOIN_TOKEN_SECONDS * UnixNanos::PER_SECOND);
        let token = JoinToken {
            hash: secret.hash(),
            expires,
        };
        let command = Command::AddJoinToken { token, now };
        match self.settings.propose(command).await {
            Ok(_) => Ok(NewJoinToken {
                token: secret.reveal().to_owned(),
                expires,
            }),
            Err(ProposeError::Conflict(conflict)) => Err(PortError::new(
                ErrorClass::Invalid,
                "too_many_join_tokens",
                conflict.to_string(),
            )),
            Err(error) => Err(unavailable(error)),
        }
    }
}

fn unknown(node: NodeId) -> PortError {
    let message = format!("node {} is not in the cluster", node.0);
    PortError::new(ErrorClass::NotFound, "unknown_node", message)
}
