//! What `apply` promises, whatever the commands.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spandrel_model::ids::{Bucket, NodeId, ShardId, TenantId, Term, UnixNanos};
use spandrel_model::limits::MAX_TENANTS;
use spandrel_model::otlp::{AttributeAction, AttributeRule};

use super::*;
use crate::codec::{Kind, seal, unseal};

const SHARDS: u16 = 4;

fn seed() -> ClusterSeed {
    ClusterSeed {
        cluster_id: 5,
        routing_key: 77,
        shards: SHARDS,
        replication: 3,
        retention_seconds: 604_800,
        policy_yaml: "policies: []".to_owned(),
    }
}

fn founded() -> ClusterState {
    let mut state = ClusterState::default();
    state.apply_at(1, &Command::SeedCluster(seed())).unwrap();
    state
}

fn registration(node: u64, disk_id: u64, boot: u64) -> NodeRegistration {
    NodeRegistration {
        node: NodeId(node),
        addresses: NodeAddresses::default(),
        zone: String::new(),
        disk_id,
        boot,
    }
}

fn register(node: u64, disk_id: u64, boot: u64) -> Command {
    Command::RegisterNode(registration(node, disk_id, boot))
}

pub(super) fn record(term: u64, primary: u64, isr: &[u64]) -> ShardRecord {
    ShardRecord {
        term: Term(term),
        primary: NodeId(primary),
        isr: isr.iter().copied().map(NodeId).collect(),
        filling: Vec::new(),
        moving_to: None,
    }
}

/// Three nodes that are up, and shards on them.
pub(super) fn serving() -> ClusterState {
    let mut state = founded();
    for node in 1..=3 {
        state.apply(&register(node, node, 1)).unwrap();
    }
    let records = vec![record(1, 1, &[1, 2]); usize::from(SHARDS)];
    state.apply(&Command::StartShards { records }).unwrap();
    state
}

pub(super) fn change(shard: u16, expected: ShardRecord, record: ShardRecord) -> Command {
    let shard = ShardId(shard);
    Command::SetShards {
        changes: vec![ShardChange {
            shard,
            expected,
            record,
        }],
    }
}

#[test]
fn nothing_is_done_before_the_cluster_is_founded_and_it_is_founded_once() {
    let mut state = ClusterState::default();
    assert_eq!(state.apply(&register(1, 1, 1)), Err(Conflict::NotSeeded));
    let found = Command::SeedCluster(seed());
    assert_eq!(state.apply(&found), Ok(Applied::Done));
    let again = Conflict::AlreadySeeded { cluster_id: 5 };
    assert_eq!(state.apply(&found), Err(again));
    assert!(state.tenants.contains_key(&TenantId::default()));
    assert_eq!(state.attributes.indexed_keys.len(), 6);
}

#[test]
fn a_wiped_node_is_noticed_and_a_repeated_registration_is_not_a_new_life() {
    let mut state = founded();
    assert_eq!(state.apply(&register(1, 8, 3)), Ok(Applied::Incarnation(1)));
    assert_eq!(state.apply(&register(1, 8, 3)), Ok(Applied::Incarnation(1)));
    assert_eq!(state.apply(&register(1, 8, 4)), Ok(Applied::Incarnation(2)));
    let older = state.apply(&register(1, 8, 3));
    assert!(matches!(
        older,
        Err(Conflict::WipedNode { known_boot: 4, .. })
    ));
    let foreign = state.apply(&register(1, 9, 5));
    assert!(matches!(
        foreign,
        Err(Conflict::WipedNode {
            known_disk_id: 8,
            ..
        })
    ));
}

#[test]
fn node_ids_are_given_once_and_never_again() {
    let mut state = founded();
    let admit = |disk_id| Command::AdmitNode {
        disk_id,
        addresses: NodeAddresses::default(),
        zone: String::new(),
    };
    assert_eq!(state.apply(&admit(8)), Ok(Applied::Node(NodeId(1))));
    assert_eq!(state.apply(&admit(8)), Ok(Applied::Node(NodeId(1))));
    assert_eq!(state.apply(&admit(9)), Ok(Applied::Node(NodeId(2))));
    let remove = Command::RemoveNode {
        node: NodeId(2),
        expected_incarnation: 0,
    };
    assert_eq!(state.apply(&remove), Ok(Applied::Done));
    assert_eq!(state.apply(&admit(9)), Ok(Applied::Node(NodeId(3))));
    let removed = state.apply(&register(2, 9, 1));
    assert_eq!(removed, Err(Conflict::UnknownNode { node: NodeId(2) }));
}

#[test]
fn owners_change_by_the_rules_only() {
    let mut state = serving();
    let old = record(1, 1, &[1, 2]);
    let refused = [
        (record(1, 2, &[1, 2]), "a new primary needs a new term"),
        (record(3, 2, &[1, 2]), "the term grows by one"),
        (
            record(2, 3, &[3]),
            "a new primary must be in the in-sync set",
        ),
        (record(1, 1, &[2]), "the primary must be in the in-sync set"),
        (record(1, 1, &[2, 1]), "replicas must be sorted"),
        (record(1, 1, &[1, 1]), "replicas must be sorted"),
        (record(1, 1, &[1, 9]), "node 9 is not in the cluster"),
    ];
    for (new, why) in refused {
        let error = state.apply(&change(0, old.clone(), new)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // failover to a member of the in-sync set
    let new = record(2, 2, &[2]);
    assert_eq!(
        state.apply(&change(0, old.clone(), new.clone())),
        Ok(Applied::Done)
    );
    // a proposal on what is no longer so
    let late = state.apply(&change(0, old.clone(), record(2, 1, &[1])));
    assert!(matches!(late, Err(Conflict::ShardChanged { actual, .. }) if *actual == new));
    // a planned move to a node outside the in-sync set
    let moving = ShardRecord {
        moving_to: Some(NodeId(3)),
        ..old.clone()
    };
    state.apply(&change(1, old, moving.clone())).unwrap();
    state
        .apply(&change(1, moving, record(2, 3, &[2, 3])))
        .unwrap();
    // and the node stays while it owns something
    let remove = Command::RemoveNode {
        node: NodeId(3),
        expected_incarnation: 1,
    };
    let in_use = Conflict::NodeInUse {
        node: NodeId(3),
        shard: ShardId(1),
    };
    assert_eq!(state.apply(&remove), Err(in_use));
}

#[test]
fn a_change_of_many_shards_is_all_or_nothing() {
    let mut state = serving();
    let old = record(1, 1, &[1, 2]);
    let good = |shard| ShardChange {
        shard: ShardId(shard),
        expected: old.clone(),
        record: record(2, 2, &[2]),
    };
    let bad = ShardChange {
        expected: record(7, 1, &[1, 2]),
        ..good(1)
    };
    for changes in [
        vec![good(0), bad],
        vec![good(0), good(0)],
        vec![good(0), good(99)],
    ] {
        let before = state.clone();
        state.apply(&Command::SetShards { changes }).unwrap_err();
        assert_eq!(state, before);
    }
}

#[test]
fn tenants_and_indexed_keys_have_their_limits() {
    let mut state = founded();
    let create = |number: usize| Command::CreateTenant {
        tenant: format!("t{number}").parse().unwrap(),
    };
    for number in 1..MAX_TENANTS {
        assert_eq!(state.apply(&create(number)), Ok(Applied::Done));
    }
    assert_eq!(state.apply(&create(1)), Ok(Applied::Unchanged));
    let full = state.apply(&create(MAX_TENANTS));
    assert!(matches!(full, Err(Conflict::TooMany { limit: 10_000, .. })));

    let keys = |count: usize| Command::SetAttributes {
        expected_version: 1,
        rules: Vec::new(),
        indexed_keys: (0..count).map(|key| key.to_string()).collect(),
    };
    let full = state.apply(&keys(65));
    assert!(matches!(full, Err(Conflict::TooMany { limit: 64, .. })));
    assert_eq!(state.apply(&keys(64)), Ok(Applied::Version(2)));
}

fn token(number: u8, expires: u64, now: u64) -> Command {
    Command::AddJoinToken {
        token: JoinToken {
            hash: TokenHash([number; 32]),
            expires: UnixNanos(expires),
        },
        now: UnixNanos(now),
    }
}

#[test]
fn join_tokens_expire_and_have_a_limit() {
    let mut state = founded();
    for number in 0..64 {
        assert_eq!(state.apply(&token(number, 100, 1)), Ok(Applied::Done));
    }
    let full = state.apply(&token(64, 100, 99));
    assert!(matches!(full, Err(Conflict::TooMany { limit: 64, .. })));
    // a known one is prolonged, an expired one is refused, and the old ones go when they have expired
    assert_eq!(state.apply(&token(3, 200, 99)), Ok(Applied::Done));
    assert!(state.apply(&token(65, 99, 99)).is_err());
    assert_eq!(state.apply(&token(64, 300, 100)), Ok(Applied::Done));
    let left: Vec<u8> = state.join_tokens.keys().map(|hash| hash.0[0]).collect();
    assert_eq!(left, [3, 64]);
}

#[test]
fn a_node_that_was_cut_off_comes_back_by_registering_again() {
    let mut state = founded();
    state.apply(&register(1, 8, 3)).unwrap();
    let down = Command::SetNodeState {
        node: NodeId(1),
        expected_incarnation: 1,
        expected: NodeState::Up,
        state: NodeState::Down,
    };
    state.apply(&down).unwrap();
    assert_eq!(state.apply(&register(1, 8, 3)), Ok(Applied::Incarnation(2)));
    assert_eq!(state.nodes[&NodeId(1)].state, NodeState::Up);
    // what was proposed about its earlier life comes too late
    assert!(state.apply(&down).is_err());
    assert_eq!(state.apply(&register(1, 8, 3)), Ok(Applied::Incarnation(2)));
}

#[test]
fn only_what_places_data_moves_the_epoch() {
    let mut state = serving();
    state.apply_at(7, &register(1, 1, 2)).unwrap();
    assert_eq!((state.epoch, state.applied_index), (7, 7));
    let seconds = 7_200;
    let expected_seconds = state.retention_seconds;
    let retention = Command::SetRetention {
        expected_seconds,
        seconds,
    };
    state.apply_at(8, &retention).unwrap();
    state.apply_at(9, &register(1, 2, 2)).unwrap_err();
    assert_eq!((state.epoch, state.applied_index), (7, 9));
}

/// Numbers small enough for proposals to meet.
fn version() -> impl Strategy<Value = u32> {
    1u32..6
}

fn node() -> impl Strategy<Value = NodeId> {
    (1u64..6).prop_map(NodeId)
}

fn node_state() -> impl Strategy<Value = NodeState> {
    prop_oneof![
        Just(NodeState::Up),
        Just(NodeState::Draining),
        Just(NodeState::Down)
    ]
}

fn any_record() -> impl Strategy<Value = ShardRecord> {
    let nodes = || prop::collection::btree_set(node(), 0..3);
    (1u64..4, node(), nodes(), nodes(), prop::option::of(node())).prop_map(
        |(term, primary, isr, filling, moving_to)| ShardRecord {
            term: Term(term),
            primary,
            isr: isr.into_iter().collect(),
            filling: filling.into_iter().collect(),
            moving_to,
        },
    )
}

/// A record that is often legal.
fn plain_record() -> impl Strategy<Value = ShardRecord> {
    (1u64..4, 1u64..4).prop_map(|(term, primary)| record(term, primary, &[1, 2, 3]))
}

fn holder_change() -> impl Strategy<Value = HolderChange> {
    let nodes = || prop::collection::vec(node(), 0..3);
    (0u32..3, 0u16..5, 1u64..3, nodes(), nodes()).prop_map(
        |(bucket, shard, term, expected, holders)| HolderChange {
            bucket: Bucket(bucket),
            key: HolderKey {
                shard: ShardId(shard),
                term: Term(term),
            },
            expected,
            holders,
        },
    )
}

fn node_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (0u64..6).prop_map(|disk_id| Command::AdmitNode {
            disk_id,
            addresses: NodeAddresses::default(),
            zone: "a".to_owned(),
        }),
        (1u64..6, 0u64..6, 0u64..4).prop_map(|(node, disk_id, boot)| register(node, disk_id, boot)),
        (
            1u64..6,
            0u64..6,
            0u64..4,
            0u64..5,
            prop::collection::vec(0u64..5, 0..3)
        )
            .prop_map(
                |(node, disk_id, boot, life, earlier)| Command::RegisterLife {
                    registration: registration(node, disk_id, boot),
                    life: NodeLife { life, earlier },
                }
            ),
        (node(), 0u64..5, prop::collection::vec(0u64..5, 0..3)).prop_map(
            |(node, life, earlier)| Command::RenewLife {
                node,
                life: NodeLife { life, earlier },
            }
        ),
        (node(), 0u64..4, node_state(), node_state()).prop_map(
            |(node, expected_incarnation, expected, state)| Command::SetNodeState {
                node,
                expected_incarnation,
                expected,
                state,
            }
        ),
        (node(), 0u64..4).prop_map(|(node, expected_incarnation)| Command::RemoveNode {
            node,
            expected_incarnation,
        }),
    ]
}

fn shard_command() -> impl Strategy<Value = Command> {
    let records = || prop_oneof![plain_record(), any_record()];
    prop_oneof![
        prop::collection::vec(records(), usize::from(SHARDS))
            .prop_map(|records| Command::StartShards { records }),
        plain_record().prop_map(|first| Command::StartShards {
            records: vec![first; usize::from(SHARDS)],
        }),
        (0u16..5, records(), records())
            .prop_map(|(shard, expected, record)| change(shard, expected, record)),
        prop::collection::vec(holder_change(), 0..3)
            .prop_map(|changes| Command::SetHolders { changes }),
        (0u32..3).prop_map(|before| Command::ForgetBuckets {
            before: Bucket(before),
        }),
    ]
}

fn settings_command() -> impl Strategy<Value = Command> {
    let seconds = || prop_oneof![Just(604_800u64), Just(7_200), any::<u64>()];
    let tenant = || "[ab]".prop_map(|name| name.parse().unwrap());
    prop_oneof![
        Just(Command::SeedCluster(seed())),
        (version(), ".{0,20}").prop_map(|(expected_version, yaml)| Command::ApplyPolicy {
            expected_version,
            yaml,
        }),
        (seconds(), seconds()).prop_map(|(expected_seconds, seconds)| Command::SetRetention {
            expected_seconds,
            seconds,
        }),
        (1u8..4, 0u8..9).prop_map(|(expected, replication)| Command::SetReplication {
            expected,
            replication,
        }),
        (version(), "[a-c*]{0,4}", 0u32..3).prop_map(|(expected_version, key, max_bytes)| {
            let action = AttributeAction::Truncate { max_bytes };
            Command::SetAttributes {
                expected_version,
                indexed_keys: vec![key.clone(), "http.route".to_owned()],
                rules: vec![AttributeRule { key, action }],
            }
        }),
        (version(), 0u32..3_000).prop_map(|(expected_version, attribute_value_bytes)| {
            Command::SetLimits {
                expected_version,
                limits: SpanLimits {
                    attribute_value_bytes,
                    ..SpanLimits::default()
                },
            }
        }),
        (0u8..4, 0u64..9, 0u64..9).prop_map(|(number, expires, now)| token(number, expires, now)),
        tenant().prop_map(|tenant| Command::CreateTenant { tenant }),
        (tenant(), version(), any::<Option<u64>>()).prop_map(
            |(tenant, expected_version, bytes_per_second)| Command::SetTenant {
                tenant,
                expected_version,
                settings: TenantSettings {
                    bytes_per_second,
                    ..TenantSettings::default()
                },
            }
        ),
    ]
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let any_command = prop_oneof![settings_command(), node_command(), shard_command()];
    prop::collection::vec(any_command, 0..60)
}

/// Everything that may only grow.
fn never_back(before: &ClusterState, after: &ClusterState) {
    assert!(after.policy.version >= before.policy.version);
    assert!(after.attributes.version >= before.attributes.version);
    assert!(after.limits.version >= before.limits.version);
    assert!(after.next_node >= before.next_node);
    assert!(after.epoch >= before.epoch);
    for (id, node) in &after.nodes {
        match before.nodes.get(id) {
            Some(earlier) => {
                assert!(node.incarnation >= earlier.incarnation && node.boot >= earlier.boot);
                assert_eq!(node.disk_id, earlier.disk_id);
            }
            None => assert!(
                id.0 >= before.next_node,
                "node id {} was given before",
                id.0
            ),
        }
    }
    for (earlier, record) in before.shard_map.iter().zip(&after.shard_map) {
        assert!(record.term >= earlier.term);
        assert!(record.term > earlier.term || record.primary == earlier.primary);
    }
    let tenants: BTreeMap<_, _> = before.tenants.iter().collect();
    for (tenant, settings) in tenants {
        assert!(after.tenants[tenant].version >= settings.version);
    }
}

proptest! {
    #[test]
    fn apply_is_deterministic_whole_and_never_goes_back(commands in commands(), begun: bool) {
        let mut state = if begun { serving() } else { ClusterState::default() };
        let mut twin = state.clone();
        for (index, command) in (10u64..).zip(&commands) {
            let before = state.clone();
            let outcome = state.apply_at(index, command);
            prop_assert_eq!(&outcome, &twin.apply_at(index, command));
            prop_assert_eq!(&state, &twin);
            if outcome.is_err() {
                prop_assert_eq!(&state, &ClusterState { applied_index: index, ..before.clone() });
            }
            never_back(&before, &state);
            state.check();
        }
        let bytes = seal(Kind::State, &state).unwrap();
        let decoded: ClusterState = unseal(Kind::State, &bytes).unwrap();
        prop_assert_eq!(&decoded, &state);
        prop_assert_eq!(seal(Kind::State, &twin).unwrap(), bytes);
    }

    #[test]
    fn commands_come_back_from_their_bytes(commands in commands()) {
        for command in commands {
            let bytes = seal(Kind::Entry, &command).unwrap();
            prop_assert_eq!(unseal::<Command>(Kind::Entry, &bytes).unwrap(), command);
        }
    }
}
