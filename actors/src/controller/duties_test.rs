//! Each rule of the leader's duties, and that they lead somewhere whatever the cluster looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_raft::limits::MAX_COMMAND_BYTES;
use spandrel_raft::state::{NodeAddresses, NodeRegistration, NodeState, ShardChange, ShardRecord};
use spandrel_raft::{ClusterSeed, ClusterState, Command, Members};

use super::{Duty, View, duties, waiting_shards};
use crate::limits::{DOWN_AFTER_MS, LEADER_GRACE_MS, MAX_ROUND_COMMANDS, MAX_SHARD_CHANGES};

const SHARDS: u16 = 4;
const THIS: NodeId = NodeId(1);

/// A cluster and what its leader, node 1, sees.
#[derive(Debug, Clone)]
struct World {
    state: ClusterState,
    members: Members,
    silent_for: BTreeMap<NodeId, Duration>,
    leading_for: Duration,
}

fn ids(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn set(numbers: &[u64]) -> BTreeSet<NodeId> {
    ids(numbers).into_iter().collect()
}

fn record(primary: u64, isr: &[u64], filling: &[u64]) -> ShardRecord {
    ShardRecord {
        term: Term(1),
        primary: NodeId(primary),
        isr: ids(isr),
        filling: ids(filling),
        moving_to: None,
    }
}

impl World {
    /// Nodes 1 to `nodes`, all up, heard just now and voting as they should.
    fn new(nodes: u64, records: Vec<ShardRecord>) -> Self {
        let mut state = ClusterState::default();
        let seed = ClusterSeed {
            cluster_id: 5,
            routing_key: 7,
            shards: SHARDS,
            replication: 3,
            retention_seconds: 604_800,
            policy_yaml: "policies: []".to_owned(),
        };
        state.apply(&Command::SeedCluster(seed)).unwrap();
        for node in 1..=nodes {
            let registration = NodeRegistration {
                node: NodeId(node),
                addresses: NodeAddresses::default(),
                zone: String::new(),
                disk_id: node,
                boot: 1,
            };
            state.apply(&Command::RegisterNode(registration)).unwrap();
        }
        state.apply(&Command::StartShards { records }).unwrap();
        let all: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let voters = spandrel_raft::choose_voters(&state.nodes, &set(&[1]));
        let members = Members {
            learners: all.difference(&voters).copied().collect(),
            voters,
        };
        Self {
            state,
            members,
            silent_for: all.into_iter().map(|node| (node, Duration::ZERO)).collect(),
            leading_for: Duration::from_secs(60),
        }
    }

    fn silence(&mut self, node: u64, milliseconds: u64) {
        let silence = Duration::from_millis(milliseconds);
        self.silent_for.insert(NodeId(node), silence);
    }

    fn turn(&mut self, node: u64, state: NodeState) {
        let record = self.state.nodes.get_mut(&NodeId(node)).unwrap();
        record.state = state;
    }

    fn duties(&self) -> Vec<Duty> {
        duties(&View {
            this: THIS,
            leading_for: self.leading_for,
            state: &self.state,
            members: &self.members,
            silent_for: &self.silent_for,
        })
    }

    /// Does what is to be done, as the group would.
    fn perform(&mut self, duty: Duty) {
        match duty {
            Duty::Propose(command) => {
                let applied = self.state.apply(&command);
                assert!(applied.is_ok(), "{command:?}: {applied:?}");
            }
            Duty::AddLearner(node) => {
                assert!(self.state.nodes.contains_key(&node));
                assert!(self.members.learners.insert(node));
            }
            Duty::SetVoters(voters) => {
                let all: BTreeSet<NodeId> = self
                    .members
                    .voters
                    .union(&self.members.learners)
                    .copied()
                    .collect();
                assert!(voters.is_subset(&all) && !voters.is_empty());
                self.members.learners = all.difference(&voters).copied().collect();
                self.members.voters = voters;
            }
            Duty::RemoveLearners(gone) => {
                assert!(gone.is_subset(&self.members.learners));
                self.members.learners.retain(|node| !gone.contains(node));
            }
        }
    }

    /// Does everything until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..40 {
            let duties = self.duties();
            if duties.is_empty() {
                return;
            }
            for duty in duties {
                self.perform(duty);
            }
        }
        panic!("there is always something to do: {:?}", self.duties());
    }
}

fn four(record: ShardRecord) -> Vec<ShardRecord> {
    vec![record; usize::from(SHARDS)]
}

#[test]
fn a_quiet_cluster_gives_nothing_to_do() {
    let world = World::new(3, four(record(1, &[1, 2], &[3])));
    assert_eq!(world.duties(), []);
}

#[test]
fn a_silent_node_is_set_down_but_not_by_a_leader_that_is_new() {
    let mut world = World::new(3, four(record(1, &[1, 2], &[])));
    world.silence(2, DOWN_AFTER_MS - 1);
    world.silence(1, DOWN_AFTER_MS);
    assert_eq!(world.duties(), [], "not yet, and never the leader itself");
    world.silence(2, DOWN_AFTER_MS);
    let down = Duty::Propose(Command::SetNodeState {
        node: NodeId(2),
        expected_incarnation: 1,
        expected: NodeState::Up,
        state: NodeState::Down,
    });
    assert_eq!(world.duties(), std::slice::from_ref(&down));
    world.leading_for = Duration::from_millis(LEADER_GRACE_MS - 1);
    assert_eq!(world.duties(), []);
    world.leading_for = Duration::from_millis(LEADER_GRACE_MS);
    assert_eq!(world.duties(), [down]);
    // and a node that the links do not know yet is not judged
    world.silent_for.clear();
    assert_eq!(world.duties(), []);
}

#[test]
fn only_its_own_registration_brings_a_node_back() {
    let mut world = World::new(3, four(record(1, &[1], &[])));
    world.turn(2, NodeState::Down);
    world.silence(2, 0);
    assert_eq!(world.duties(), []);
}

#[test]
fn a_shard_fails_over_to_an_in_sync_copy_and_leaves_the_dead_behind() {
    let mut records = four(record(2, &[2, 3, 4], &[1, 5]));
    records[1] = record(1, &[1, 2], &[]);
    records[2].moving_to = Some(NodeId(2 + 3));
    let mut world = World::new(5, records.clone());
    world.turn(2, NodeState::Down);
    world.turn(3, NodeState::Draining);
    world.turn(5, NodeState::Down);
    let all = world.duties();
    let [Duty::Propose(Command::SetShards { changes }), ..] = all.as_slice() else {
        panic!("{all:?}");
    };
    let expected: Vec<ShardChange> = [0, 2, 3]
        .map(|shard| ShardChange {
            shard: ShardId(shard),
            expected: records[usize::from(shard)].clone(),
            record: ShardRecord {
                term: Term(2),
                ..record(4, &[3, 4], &[1])
            },
        })
        .to_vec();
    assert_eq!(*changes, expected, "not to a node that is about to leave");
}

#[test]
fn the_plan_decides_between_in_sync_copies() {
    let mut world = World::new(4, four(record(4, &[1, 2, 3, 4], &[])));
    world.turn(4, NodeState::Down);
    world.settle();
    let primaries: BTreeSet<NodeId> = world
        .state
        .shard_map
        .iter()
        .map(|one| one.primary)
        .collect();
    assert!(primaries.len() > 1, "{primaries:?}");
}

#[test]
fn a_shard_without_an_in_sync_copy_waits() {
    let mut records = four(record(1, &[1, 2], &[]));
    records[2] = record(2, &[2], &[1, 3]);
    let mut world = World::new(3, records.clone());
    world.turn(2, NodeState::Down);
    let proposes = |duty: &Duty| matches!(duty, Duty::Propose(_));
    assert!(!world.duties().iter().any(proposes));
    assert_eq!(waiting_shards(&world.state), [ShardId(2)]);
    world.turn(2, NodeState::Up);
    assert_eq!(waiting_shards(&world.state), []);
}

#[test]
fn new_nodes_follow_then_vote_and_removed_ones_go() {
    let mut world = World::new(1, four(record(1, &[1], &[])));
    for disk_id in [2, 3] {
        let admit = Command::AdmitNode {
            disk_id,
            addresses: NodeAddresses::default(),
            zone: String::new(),
        };
        world.state.apply(&admit).unwrap();
    }
    assert_eq!(world.duties(), [Duty::AddLearner(NodeId(2))]);
    world.settle();
    assert_eq!(world.members.learners, set(&[2, 3]));
    assert_eq!(world.members.voters, set(&[1]), "they have not started yet");
    world.turn(2, NodeState::Up);
    world.turn(3, NodeState::Up);
    world.settle();
    assert_eq!(world.members.voters, set(&[1, 2, 3]));
    let remove = Command::RemoveNode {
        node: NodeId(3),
        expected_incarnation: 0,
    };
    world.state.apply(&remove).unwrap();
    world.settle();
    let members = (&world.members.voters, &world.members.learners);
    assert_eq!(members, (&set(&[1]), &set(&[2])));
}

#[test]
fn the_largest_batch_of_shards_fits_a_command() {
    let high = |count: u64| (0..count).map(|node| NodeId(u64::MAX - 20 + node));
    let largest = ShardRecord {
        term: Term(u64::MAX),
        primary: NodeId(u64::MAX),
        isr: high(7).collect(),
        filling: high(7).collect(),
        moving_to: Some(NodeId(u64::MAX)),
    };
    let change = |shard: u16| ShardChange {
        shard: ShardId(shard),
        expected: largest.clone(),
        record: largest.clone(),
    };
    let count = u16::try_from(MAX_SHARD_CHANGES).unwrap();
    let changes = (0..count).map(|shard| change(4_095 - shard)).collect();
    let bytes = Command::SetShards { changes }.encoded_bytes();
    assert!(bytes < MAX_COMMAND_BYTES * 7 / 10, "{bytes}");
}

fn any_state() -> impl Strategy<Value = NodeState> {
    use NodeState::{Down, Draining, Up};
    prop::sample::select(vec![Up, Up, Down, Draining])
}

/// Of `nodes` nodes some copies that are in sync, the primary among them, and some that fill.
fn any_record(nodes: u64) -> impl Strategy<Value = ShardRecord> {
    let some = |least: usize| prop::collection::btree_set(1..=nodes, least..=(least + 2));
    let target = prop::option::of(1..=nodes);
    (some(1), some(0), any::<prop::sample::Index>(), target).prop_map(
        |(isr, filling, primary, target)| {
            let isr: Vec<u64> = isr.into_iter().collect();
            let filling: Vec<u64> = filling
                .into_iter()
                .filter(|node| !isr.contains(node))
                .collect();
            let primary = isr[primary.index(isr.len())];
            ShardRecord {
                moving_to: target.filter(|node| *node != primary).map(NodeId),
                ..record(primary, &isr, &filling)
            }
        },
    )
}

fn any_world() -> impl Strategy<Value = World> {
    (4u64..8).prop_flat_map(|nodes| {
        let count = usize::try_from(nodes).unwrap();
        let records = prop::collection::vec(any_record(nodes), usize::from(SHARDS));
        let states = prop::collection::vec(any_state(), count);
        let silences = prop::collection::vec(prop::option::of(0u64..2_000), count);
        let voters = prop::collection::btree_set(1..=nodes + 2, 0..5);
        let learners = prop::collection::btree_set(1..=nodes + 2, 0..6);
        (records, states, silences, voters, learners).prop_map(
            move |(records, states, silences, voters, learners)| {
                let mut world = World::new(nodes, records);
                for (node, state) in (1..).zip(states) {
                    // Whoever leads is not down.
                    if NodeId(node) != THIS {
                        world.turn(node, state);
                    }
                }
                world.silent_for.clear();
                for (node, silence) in (1..).zip(silences) {
                    if let Some(silence) = silence {
                        world.silence(node, silence);
                    }
                }
                let mut voters: BTreeSet<NodeId> = voters.into_iter().map(NodeId).collect();
                voters.insert(THIS);
                let learners = learners.into_iter().map(NodeId);
                world.members = Members {
                    learners: learners.filter(|id| !voters.contains(id)).collect(),
                    voters,
                };
                world
            },
        )
    })
}

proptest! {
    #[test]
    fn the_duties_lead_to_rest_and_no_command_is_refused(world in any_world()) {
        let mut world = world;
        let before = world.state.clone();
        prop_assert!(world.duties().len() <= MAX_ROUND_COMMANDS + 1);
        world.settle();
        let state = &world.state;
        state.check();
        let down = |node: &NodeId| state.nodes[node].state == NodeState::Down;
        // who is silent is down, who was down stays down
        for (node, record) in &state.nodes {
            let silence = world.silent_for.get(node).copied().unwrap_or_default();
            let silent = silence >= Duration::from_millis(DOWN_AFTER_MS) && *node != THIS;
            let was_down = before.nodes[node].state == NodeState::Down;
            prop_assert_eq!(record.state == NodeState::Down, silent || was_down);
        }
        // a primary that is down has nobody to take over, and nobody leads but from the in-sync set
        for (old, new) in before.shard_map.iter().zip(&state.shard_map) {
            prop_assert!(!down(&new.primary) || new.isr.iter().all(down));
            prop_assert!(new.isr.iter().all(|node| old.isr.contains(node)));
            prop_assert!(new == old || !new.nodes().any(|node| down(&node)));
        }
        // the group is the cluster
        let all: BTreeSet<NodeId> = world.members.voters.union(&world.members.learners).copied().collect();
        prop_assert_eq!(all, state.nodes.keys().copied().collect::<BTreeSet<_>>());
    }
}
