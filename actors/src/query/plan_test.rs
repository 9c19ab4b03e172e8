//! The planner on hand-made cluster states, and on any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use spandrel_model::ids::{Bucket, NodeId, ShardId, Term, UnixNanos};
use spandrel_model::search::MissingPart;
use spandrel_raft::ClusterState;
use spandrel_raft::state::{HolderKey, NodeAddresses, NodeRecord, NodeState, ShardRecord};

use super::missing::missing_parts;
use super::part::NodePart;
use super::plan::{Demand, ScatterPlan, Standing, first_bucket};

const HOUR: u64 = 3_600 * UnixNanos::PER_SECOND;

fn node(state: NodeState) -> NodeRecord {
    NodeRecord {
        addresses: NodeAddresses::default(),
        zone: String::new(),
        incarnation: 1,
        disk_id: 1,
        boot: 1,
        state,
    }
}

/// `shards`: primary and in-sync set of each; `holders`: bucket, shard, term and who holds it.
fn cluster(
    nodes: &[(u64, NodeState)],
    shards: &[&[u64]],
    holders: &[(u32, u16, u64, &[u64])],
) -> ClusterState {
    let ids = |ids: &[u64]| -> Vec<NodeId> { ids.iter().copied().map(NodeId).collect() };
    let mut state = ClusterState {
        nodes: nodes
            .iter()
            .map(|(id, up)| (NodeId(*id), node(*up)))
            .collect(),
        ..ClusterState::default()
    };
    for isr in shards {
        let mut sorted = ids(isr);
        sorted.sort_unstable();
        state.shard_map.push(ShardRecord {
            term: Term(9),
            primary: NodeId(isr[0]),
            isr: sorted,
            filling: Vec::new(),
            moving_to: None,
        });
    }
    for (bucket, shard, term, nodes) in holders {
        let key = HolderKey {
            shard: ShardId(*shard),
            term: Term(*term),
        };
        let records = state.holders.entry(Bucket(*bucket)).or_default();
        Arc::make_mut(records).insert(key, ids(nodes));
    }
    state
}

fn demand(state: &ClusterState, me: u64) -> Demand<'_> {
    Demand {
        state,
        me: NodeId(me),
        bucket_nanos: HOUR,
        shard: None,
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
        every_holder: false,
    }
}

/// Node, shards of which live traces count, shards of which only stored ones do.
fn asks(plan: &ScatterPlan) -> Vec<(u64, Vec<u16>, Vec<u16>)> {
    let shards = |set: &spandrel_model::shard_set::ShardSet| set.iter().map(|s| s.0).collect();
    let one = |(node, part): (&NodeId, &NodePart)| {
        let stored = part.stored.without(&part.live);
        (node.0, shards(&part.live), shards(&stored))
    };
    plan.asks.iter().map(one).collect()
}

use NodeState::{Down, Up};

#[test]
fn primaries_answer_and_a_node_that_is_down_is_asked_last() {
    let nodes = [(1, Up), (2, Up), (3, Down)];
    let state = cluster(&nodes, &[&[2, 1], &[3, 2], &[3]], &[]);
    let plan = ScatterPlan::new(&demand(&state, 1), &Standing::default());
    assert_eq!(
        asks(&plan),
        [(2, vec![0, 1], vec![]), (3, vec![2], vec![])],
        "the primary, another copy, and the only one though it is down"
    );
    assert!(plan.missing.is_empty());
}

#[test]
fn old_data_is_covered_by_few_nodes() {
    let nodes = [(1, Up), (2, Up), (3, Up), (4, Up)];
    let shards: [&[u64]; 2] = [&[2], &[2]];
    let holders: [(u32, u16, u64, &[u64]); 6] = [
        (7, 0, 9, &[2, 3]), // asked of 2 anyway
        (7, 0, 1, &[1, 3]), // this node first
        (7, 1, 1, &[3, 4]), // 3 and 4 hold two open ones each, 3 is the lower
        (7, 1, 2, &[3, 4]),
        (8, 0, 2, &[2, 4]), // node 2 is asked for shard 0 anyway
        (8, 1, 3, &[4]),    // only 4
    ];
    let state = cluster(&nodes, &shards, &holders);
    let plan = ScatterPlan::new(&demand(&state, 1), &Standing::default());
    assert_eq!(
        asks(&plan),
        [
            (1, vec![], vec![0]),
            (2, vec![0, 1], vec![]),
            (4, vec![], vec![1])
        ],
        "4 covers what 3 would"
    );
}

#[test]
fn late_nodes_are_replaced_where_others_can_answer_and_failed_ones_are_named() {
    let nodes = [(1, Up), (2, Up), (3, Up)];
    let holders: [(u32, u16, u64, &[u64]); 4] = [
        (3, 0, 1, &[3]),
        (4, 0, 1, &[3]),
        (6, 0, 1, &[3]),
        (6, 1, 1, &[1, 3]),
    ];
    let state = cluster(&nodes, &[&[2, 1], &[2]], &holders);
    let mut standing = Standing::default();
    standing.late.insert(NodeId(2));
    standing
        .failed
        .insert(NodeId(3), "it is on fire".to_owned());
    let demand = Demand {
        from: UnixNanos(3 * HOUR + 5),
        ..demand(&state, 3)
    };
    let plan = ScatterPlan::new(&demand, &standing);
    assert_eq!(
        asks(&plan),
        [(1, vec![0], vec![1]), (2, vec![1], vec![])],
        "only the late one holds shard 1"
    );
    let missing = missing_parts(&plan, &demand, &standing);
    let ranges: Vec<_> = missing
        .iter()
        .map(|part| {
            assert_eq!(
                (part.node, part.shards.as_slice()),
                (NodeId(3), [ShardId(0)].as_slice())
            );
            assert_eq!(part.reason, "it is on fire");
            (part.from.0, part.to.0)
        })
        .collect();
    assert_eq!(
        ranges,
        [(3 * HOUR + 5, 5 * HOUR), (6 * HOUR, 7 * HOUR)],
        "buckets that follow each other are one part"
    );
}

/// What a node cannot read.
fn damage(node: NodeId) -> (NodeId, MissingPart) {
    let part = MissingPart {
        node,
        shards: Vec::new(),
        from: UnixNanos(0),
        to: UnixNanos(u64::MAX),
        reason: "2 pages cannot be read".to_owned(),
    };
    (node, part)
}

#[test]
fn what_a_node_cannot_read_another_holder_is_asked_for_unless_there_is_none() {
    let nodes = [(1, Up), (2, Up), (3, Down)];
    let holders: [(u32, u16, u64, &[u64]); 2] = [(3, 0, 1, &[1, 2]), (3, 1, 1, &[1, 3])];
    let state = cluster(&nodes, &[&[1, 2], &[1, 2]], &holders);
    let demand = demand(&state, 1);
    let mut standing = Standing::default();
    let whole = ScatterPlan::new(&demand, &standing);
    assert_eq!(asks(&whole), [(1, vec![0, 1], vec![])]);

    standing.answered = whole.asks;
    standing.damaged.extend([damage(NodeId(1))]);
    let plan = ScatterPlan::new(&demand, &standing);
    assert_eq!(
        asks(&plan),
        [(1, vec![], vec![1]), (2, vec![0, 1], vec![])],
        "of the other holder of shard 1 nothing is heard"
    );
    assert!(plan.missing.is_empty());

    let of_one = MissingPart {
        shards: vec![ShardId(1)],
        ..damage(NodeId(1)).1
    };
    standing.damaged.insert(NodeId(1), of_one);
    let plan = ScatterPlan::new(&demand, &standing);
    assert_eq!(
        asks(&plan),
        [(1, vec![0], vec![1]), (2, vec![1], vec![])],
        "shard 0 is answered for good"
    );
}

#[test]
fn buckets_that_ended_a_day_before_the_range_are_passed_over() {
    let state = cluster(
        &[(1, Up), (2, Up)],
        &[&[1]],
        &[(10, 0, 1, &[2]), (90, 0, 1, &[2])],
    );
    let at = |hour: u64| {
        let demand = Demand {
            from: UnixNanos(hour * HOUR),
            to: UnixNanos((hour + 1) * HOUR),
            ..demand(&state, 1)
        };
        ScatterPlan::new(&demand, &Standing::default()).asks.len()
    };
    assert_eq!(at(115), 1, "received more than a day before the range");
    assert_eq!(at(114), 2, "a clock may run a day ahead");
    assert_eq!(at(50), 2, "spans may come late");
}

/// A primary had copied the older data of its shard, and asked itself alone for the earlier spans of a dropped trace that
/// it kept for a late error: those are in the journals of who was in sync then.
#[test]
fn every_holder_is_asked_where_one_is_not_enough() {
    let state = cluster(
        &[(1, Up), (2, Up), (3, Down), (4, Up)],
        &[&[1, 2], &[4]],
        &[(7, 0, 1, &[1, 2, 3]), (7, 1, 1, &[4])],
    );
    let mut demand = demand(&state, 1);
    demand.shard = Some(ShardId(0));
    let asked = |demand: &Demand<'_>, standing: &Standing| {
        let plan = ScatterPlan::new(demand, standing);
        assert!(plan.missing.is_empty());
        asks(&plan)
            .into_iter()
            .map(|(node, ..)| node)
            .collect::<Vec<_>>()
    };
    let mut standing = Standing::default();
    assert_eq!(asked(&demand, &standing), [1]);
    demand.every_holder = true;
    assert_eq!(asked(&demand, &standing), [1, 2, 3]);
    standing.late.insert(NodeId(2));
    standing.failed.insert(NodeId(3), "it is down".to_owned());
    assert_eq!(asked(&demand, &standing), [1]);
}

fn node_sets() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::btree_set(1u64..7, 1..4).prop_map(|set| set.into_iter().collect())
}

fn clusters() -> impl Strategy<Value = ClusterState> {
    let up = prop_oneof![Just(Up), Just(Down), Just(NodeState::Draining)];
    let nodes = proptest::collection::btree_map(1u64..7, up, 1..7);
    let shards = proptest::collection::vec(node_sets().prop_shuffle(), 1..9);
    let holders = proptest::collection::vec((0u32..60, 0u16..9, 1u64..4, node_sets()), 0..60);
    (nodes, shards, holders).prop_map(|(nodes, shards, holders)| {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let shards: Vec<&[u64]> = shards.iter().map(Vec::as_slice).collect();
        let holders: Vec<_> = holders
            .iter()
            .map(|(b, s, t, nodes)| (*b, *s, *t, nodes.as_slice()))
            .collect();
        cluster(&nodes, &shards, &holders)
    })
}

fn standings() -> impl Strategy<Value = Standing> {
    let some = || proptest::collection::btree_set((1u64..7).prop_map(NodeId), 0..4);
    let all = (some(), some(), some(), some(), some());
    all.prop_map(|(silent, late, damaged, failed, answered)| Standing {
        damaged: damaged.into_iter().map(damage).collect(),
        silent,
        late,
        answered: answered
            .difference(&failed)
            .map(|node| (*node, NodePart::all(4)))
            .collect(),
        failed: failed
            .into_iter()
            .map(|node| (node, format!("{node:?} failed")))
            .collect(),
    })
}

proptest! {
    /// Every piece of data is covered by a holder that can still answer, or all of its holders failed and it is named;
    /// never both.
    #[test]
    fn everything_is_covered_or_named_missing(
        state in clusters(),
        standing in standings(),
        me in 1u64..7,
        from in 0u64..60,
        shard in proptest::option::of((0u16..9).prop_map(ShardId)),
    ) {
        let demand = Demand {
            from: UnixNanos(from * HOUR),
            shard,
            ..demand(&state, me)
        };
        let plan = ScatterPlan::new(&demand, &standing);
        prop_assert_eq!(&plan, &ScatterPlan::new(&demand, &standing));
        let failed = |node: &NodeId| standing.failed.contains_key(node);
        prop_assert!(!plan.asks.keys().any(failed));

        let mut live_missing = BTreeSet::new();
        for (number, record) in (0u16..).zip(&state.shard_map) {
            let one = ShardId(number);
            let asked = plan
                .asks
                .iter()
                .filter(|(node, part)| record.isr.contains(node) && part.live.contains(one));
            let wanted = shard.is_none_or(|shard| shard == one);
            let lost = record.isr.iter().all(failed);
            prop_assert_eq!(asked.count(), usize::from(wanted && !lost));
            if wanted && lost {
                live_missing.insert((record.primary, one));
            }
        }
        let named = plan.missing.iter().flat_map(|(node, missing)| {
            missing.live.iter().map(move |shard| (*node, shard))
        });
        prop_assert_eq!(named.collect::<BTreeSet<_>>(), live_missing);

        let mut stored_missing: BTreeMap<(NodeId, Bucket), BTreeSet<ShardId>> = BTreeMap::new();
        for (bucket, records) in state.holders.range(first_bucket(demand.from, HOUR)..) {
            for (key, holders) in records.iter() {
                if shard.is_some_and(|shard| shard != key.shard) {
                    continue;
                }
                let covered = holders.iter().any(|node| {
                    plan.asks.get(node).is_some_and(|part| part.stored.contains(key.shard))
                });
                prop_assert_eq!(covered, !holders.iter().all(failed));
                if !covered {
                    let missing = stored_missing.entry((holders[0], *bucket)).or_default();
                    missing.insert(key.shard);
                }
            }
        }
        let named = plan.missing.iter().flat_map(|(node, missing)| {
            missing.stored.iter().map(move |(bucket, shards)| {
                ((*node, *bucket), shards.iter().collect::<BTreeSet<_>>())
            })
        });
        prop_assert_eq!(named.collect::<BTreeMap<_, _>>(), stored_missing);
        prop_assert_eq!(
            missing_parts(&plan, &demand, &standing).is_empty(),
            plan.missing.is_empty()
        );
    }

    /// Asking on after an answer or a failure comes to an end: what is answered is not asked again.
    #[test]
    fn answers_end_the_plan(state in clusters(), me in 1u64..7, failing in any::<u64>()) {
        let demand = demand(&state, me);
        let mut standing = Standing::default();
        for _ in 0..16 {
            let plan = ScatterPlan::new(&demand, &standing);
            let mut left = plan.asks.into_iter().filter_map(|(node, part)| {
                let answered = standing.answered.get(&node);
                let left = answered.map_or(part.clone(), |answered| part.without(answered));
                (!left.is_empty()).then_some((node, left))
            });
            let Some((node, part)) = left.next() else {
                return Ok(());
            };
            drop(left);
            if failing >> node.0 & 1 == 1 {
                standing.failed.insert(node, "failed".to_owned());
            } else {
                standing.answered.entry(node).or_default().add(&part);
            }
        }
        prop_assert!(false, "it never ends");
    }
}
