//! What the leader should do, given what it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spandrel_model::ids::NodeId;
use spandrel_raft::state::{NodeRecord, NodeState};
use spandrel_raft::{ClusterState, Command, Members, choose_voters};

use super::failover::failovers;
use crate::limits::{DOWN_AFTER_MS, LEADER_GRACE_MS, MAX_ROUND_COMMANDS};

/// What the leader sees.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// This node, which leads.
    pub this: NodeId,
    /// For how long it has led: what it has heard of others before that is no measure of their silence.
    pub leading_for: Duration,
    /// The state as this node has applied it.
    pub state: &'a ClusterState,
    /// Who takes part in the group.
    pub members: &'a Members,
    /// For how long each peer has been silent. One that the links do not know of yet is not listed.
    pub silent_for: &'a BTreeMap<NodeId, Duration>,
}

/// Something to be done. A round's duties do not depend on each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Duty {
    /// Propose a command.
    Propose(Command),
    /// Let a node follow.
    AddLearner(NodeId),
    /// Make these nodes voters and no others.
    SetVoters(BTreeSet<NodeId>),
    /// Take nodes out of the group.
    RemoveLearners(BTreeSet<NodeId>),
}

/// The next steps, at most [`MAX_ROUND_COMMANDS`] commands and one change of the group's members: what depends on them
/// follows in the next round.
#[must_use]
pub fn duties(view: &View<'_>) -> Vec<Duty> {
    let grace = Duration::from_millis(LEADER_GRACE_MS);
    if view.leading_for < grace || !view.state.is_seeded() {
        return Vec::new();
    }
    let mut commands: Vec<Command> = silent_nodes(view).collect();
    if commands.is_empty() {
        // Not before it is known who is left: a shard must not go to a node that is set down in the same round.
        commands.extend(failovers(view.state));
    }
    let commands = commands.into_iter().take(MAX_ROUND_COMMANDS);
    commands
        .map(Duty::Propose)
        .chain(change_of_members(view))
        .collect()
}

/// Nodes that are taken for alive and were not heard for too long.
fn silent_nodes<'a>(view: &View<'a>) -> impl Iterator<Item = Command> + use<'a> {
    let (this, silent_for) = (view.this, view.silent_for);
    let limit = Duration::from_millis(DOWN_AFTER_MS);
    let is_silent = move |id: &NodeId, node: &NodeRecord| {
        let silent = silent_for.get(id).is_some_and(|silent| *silent >= limit);
        *id != this && node.state != NodeState::Down && silent
    };
    let nodes = view.state.nodes.iter();
    nodes
        .filter(move |(id, node)| is_silent(id, node))
        .map(|(id, node)| Command::SetNodeState {
            node: *id,
            expected_incarnation: node.incarnation,
            expected: node.state,
            state: NodeState::Down,
        })
}

/// The first change of the group's members that is missing: openraft makes one at a time.
fn change_of_members(view: &View<'_>) -> Option<Duty> {
    let (nodes, members) = (&view.state.nodes, view.members);
    let takes_part = |id: &NodeId| members.voters.contains(id) || members.learners.contains(id);
    if let Some(new) = nodes.keys().find(|id| !takes_part(id)) {
        return Some(Duty::AddLearner(*new));
    }
    let voters = choose_voters(nodes, &members.voters);
    if !voters.is_empty() && voters != members.voters {
        return Some(Duty::SetVoters(voters));
    }
    let removed = members.learners.iter().copied();
    let removed: BTreeSet<NodeId> = removed.filter(|id| !nodes.contains_key(id)).collect();
    // A node that is not in the state yet cannot be a learner: it was admitted before it was added.
    (!removed.is_empty()).then_some(Duty::RemoveLearners(removed))
}
