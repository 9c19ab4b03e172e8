//! Who takes part in the group, and changing that.

use std::collections::BTreeSet;

use openraft::EmptyNode;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use spandrel_model::ids::NodeId;

use crate::error::ProposeError;
use crate::settings::{Settings, deadline};
use crate::types::TypeConfig;

/// The members of the group, as this node knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// They elect the leader and commit.
    pub voters: BTreeSet<NodeId>,
    /// They follow.
    pub learners: BTreeSet<NodeId>,
}

impl Settings {
    /// The members of the group, as this node knows them.
    #[must_use]
    pub fn members(&self) -> Members {
        let metrics = self.inner.group.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
        let nodes = membership.nodes().map(|(id, _)| NodeId(*id));
        Members {
            learners: nodes.filter(|id| !voters.contains(id)).collect(),
            voters,
        }
    }

    /// Adds a node that follows; returns once it has caught up. On the leader only.
    ///
    /// # Errors
    /// `NotLeader`; `OutcomeUnknown` when it has not caught up in time (it goes on doing so); `Stopped`.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ProposeError> {
        let added = self.inner.group.add_learner(node.0, EmptyNode {}, true);
        self.changed_members(added).await
    }

    /// As [`Settings::add_learner`], but returns once the group knows the node: it may be not running yet.
    ///
    /// # Errors
    /// As [`Settings::add_learner`].
    pub async fn announce_learner(&self, node: NodeId) -> Result<(), ProposeError> {
        let added = self.inner.group.add_learner(node.0, EmptyNode {}, false);
        self.changed_members(added).await
    }

    /// Makes exactly these nodes voters; they must be learners or voters already, others stay as learners. On the
    /// leader only.
    ///
    /// # Errors
    /// `NotLeader`; `Unavailable` when a node is not a member or another change is under way; `OutcomeUnknown`;
    /// `Stopped`.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), ProposeError> {
        let voters: BTreeSet<u64> = voters.into_iter().map(|node| node.0).collect();
        let changed = self.inner.group.change_membership(voters, true);
        self.changed_members(changed).await
    }

    /// Takes learners out of the group. On the leader only.
    ///
    /// # Errors
    /// As [`Settings::set_voters`].
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), ProposeError> {
        let nodes = nodes.into_iter().map(|node| node.0).collect();
        let change = openraft::ChangeMembers::RemoveNodes(nodes);
        let changed = self.inner.group.change_membership(change, true);
        self.changed_members(changed).await
    }

    async fn changed_members<T>(
        &self,
        change: impl Future<Output = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
    ) -> Result<(), ProposeError> {
        let Ok(changed) = tokio::time::timeout_at(deadline(), change).await else {
            return Err(ProposeError::OutcomeUnknown {
                reason: "the members were not changed in time".to_owned(),
            });
        };
        changed.map(drop).map_err(|error| match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                ProposeError::NotLeader {
                    leader: forward.leader_id.map(NodeId),
                }
            }
            RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)) => {
                ProposeError::OutcomeUnknown {
                    reason: error.to_string(),
                }
            }
            RaftError::APIError(error) => ProposeError::Unavailable {
                reason: error.to_string(),
            },
            RaftError::Fatal(fatal) => ProposeError::Stopped {
                reason: fatal.to_string(),
            },
        })
    }
}
