//! The cluster, for people: the replicated state, the group's members and what the links hear, in one table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use spandrel_model::cluster::{ClusterView, NodeRole, NodeUse, NodeView, ShardLack};
use spandrel_model::ids::{NodeId, ShardId};
use spandrel_raft::state::{NodeRecord, NodeState};
use spandrel_raft::{ClusterState, Members};

use super::handler::describe;
use super::message::{Answer, Request};
use crate::limits::DESCRIBE_MS;
use crate::link::{Link, LinkClass, PeerService};
use crate::repair::{lacking, needed_of};

/// What one node knows.
pub(super) struct Known<'a> {
    pub(super) this: NodeId,
    pub(super) state: &'a ClusterState,
    pub(super) members: &'a Members,
    pub(super) leader: Option<NodeId>,
    pub(super) silent_for: BTreeMap<NodeId, Duration>,
    pub(super) versions: BTreeMap<NodeId, String>,
}

/// The table.
pub(super) fn cluster_view(known: &Known<'_>) -> ClusterView {
    let state = known.state;
    let nodes = state.nodes.iter();
    let nodes: Vec<NodeView> = nodes
        .map(|(id, node)| node_view(known, *id, node))
        .collect();
    let most = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let effective_replication = u32::from(state.replication).min(most);
    let copies = (0..).map(ShardId).zip(&state.shard_map);
    let copies = copies.map(|(shard, record)| ShardLack {
        shard,
        copies: count(record.isr.iter().filter(|node| !is_down(state, **node))),
    });
    ClusterView {
        cluster: format!("{:016x}", state.cluster_id),
        asked: known.this,
        leader: known.leader,
        epoch: state.epoch,
        shards: state.shards,
        replication: state.replication,
        effective_replication,
        nodes,
        lacking: copies
            .filter(|lack| lack.copies < effective_replication)
            .collect(),
        lacking_copies: count(0..lacking(state, &BTreeSet::new())),
    }
}

fn node_view(known: &Known<'_>, id: NodeId, node: &NodeRecord) -> NodeView {
    let shards = &known.state.shard_map;
    let silent_for = known.silent_for.get(&id);
    let milliseconds = |silent: &Duration| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
    NodeView {
        node: id,
        state: match node.state {
            NodeState::Up => NodeUse::Up,
            NodeState::Draining => NodeUse::Draining,
            NodeState::Down => NodeUse::Down,
            NodeState::Full => NodeUse::Full,
        },
        role: role(known, id),
        zone: node.zone.clone(),
        link_address: node.addresses.link.clone(),
        http_address: node.addresses.http.clone(),
        grpc_address: node.addresses.grpc.clone(),
        version: known.versions.get(&id).cloned(),
        boot: node.boot,
        silent_ms: silent_for.map(milliseconds),
        primary_shards: count(shards.iter().filter(|record| record.primary == id)),
        in_sync_shards: count(shards.iter().filter(|record| record.isr.contains(&id))),
        filling_shards: count(shards.iter().filter(|record| record.filling.contains(&id))),
        needed_copies: count(0..needed_of(known.state, id)),
    }
}

fn role(known: &Known<'_>, id: NodeId) -> NodeRole {
    let members = known.members;
    if known.leader == Some(id) {
        NodeRole::Leader
    } else if members.voters.contains(&id) {
        NodeRole::Voter
    } else if members.learners.contains(&id) {
        NodeRole::Learner
    } else {
        NodeRole::None
    }
}

fn count<T>(some: impl Iterator<Item = T>) -> u32 {
    u32::try_from(some.count()).unwrap_or(u32::MAX)
}

fn is_down(state: &ClusterState, node: NodeId) -> bool {
    let record = state.nodes.get(&node);
    record.is_none_or(|record| record.state == NodeState::Down)
}

/// The versions of the nodes that answer in time, this one's among them.
pub(super) async fn versions(
    link: &dyn Link,
    this: NodeId,
    others: BTreeSet<NodeId>,
) -> BTreeMap<NodeId, String> {
    let ask = async |node: NodeId| {
        let request = Request::Describe.encode();
        let deadline = Duration::from_millis(DESCRIBE_MS);
        let (service, class) = (PeerService::Membership, LinkClass::Control);
        let called = link.call(node, service, class, request, deadline);
        let answer = tokio::time::timeout(deadline, called).await.ok()?.ok()?;
        match Answer::decode(answer).ok()? {
            Answer::Described(description) => Some((node, description.program_version)),
            _ => None,
        }
    };
    let answers = join_all(others.into_iter().map(ask)).await;
    let own = (this, describe().program_version);
    answers.into_iter().flatten().chain([own]).collect()
}

#[cfg(test)]
mod tests {
    use spandrel_model::ids::Term;
    use spandrel_raft::state::{NodeAddresses, NodeRegistration, ShardRecord};
    use spandrel_raft::{ClusterSeed, Command};

    use super::*;

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn the_table_counts_copies_and_names_what_lacks_some() {
        let mut state = ClusterState::default();
        let seed = ClusterSeed {
            cluster_id: 0xab,
            routing_key: 7,
            shards: 2,
            replication: 3,
            retention_seconds: 604_800,
            policy_yaml: "policies: []".to_owned(),
        };
        state.apply(&Command::SeedCluster(seed)).unwrap();
        for node in 1..=2 {
            let registration = NodeRegistration {
                node: NodeId(node),
                addresses: NodeAddresses::default(),
                zone: "a".to_owned(),
                disk_id: node,
                boot: 4,
            };
            state.apply(&Command::RegisterNode(registration)).unwrap();
        }
        let record = |primary, isr: &[u64], filling: &[u64]| ShardRecord {
            term: Term(1),
            primary: NodeId(primary),
            isr: ids(isr),
            filling: ids(filling),
            moving_to: None,
        };
        let records = vec![record(1, &[1, 2], &[]), record(2, &[2], &[1])];
        state.apply(&Command::StartShards { records }).unwrap();
        let members = Members {
            voters: ids(&[1]).into_iter().collect(),
            learners: ids(&[2]).into_iter().collect(),
        };
        let mut known = Known {
            this: NodeId(1),
            state: &state,
            members: &members,
            leader: Some(NodeId(1)),
            silent_for: [(NodeId(2), Duration::from_millis(90))].into(),
            versions: [(NodeId(1), "1.0".to_owned())].into(),
        };

        let view = cluster_view(&known);
        assert_eq!((view.replication, view.effective_replication), (3, 2));
        let shown = |node: usize| {
            let node = &view.nodes[node];
            (
                node.role,
                node.silent_ms,
                [
                    node.primary_shards,
                    node.in_sync_shards,
                    node.filling_shards,
                ],
            )
        };
        assert_eq!(shown(0), (NodeRole::Leader, None, [1, 1, 1]));
        assert_eq!(shown(1), (NodeRole::Learner, Some(90), [1, 2, 0]));
        let (shard, copies) = (ShardId(1), 1);
        assert_eq!(view.lacking, [ShardLack { shard, copies }]);

        // and a copy on a node that is down is none
        let mut down = state.clone();
        down.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Down;
        known.state = &down;
        let copies: Vec<u32> = cluster_view(&known)
            .lacking
            .iter()
            .map(|lack| lack.copies)
            .collect();
        assert_eq!(copies, [1, 0]);
    }
}
