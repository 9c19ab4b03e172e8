//! Who should vote. Pure: the leader asks after each change of the nodes and makes the first change that is missing.

use std::collections::{BTreeMap, BTreeSet};

use spandrel_model::ids::NodeId;

use crate::limits::{FEW_VOTERS, MOST_VOTERS};
use crate::state::{NodeRecord, NodeState};

/// The voters that a cluster of these nodes should have, `voters` being those that it has.
///
/// Never an even number that is larger than it was: a second voter, or a fourth, is one more that is needed and none
/// more that may fail.
///
/// One voter up to two nodes (two would both be needed, which is worse than one), three up to four nodes, then five.
/// A voter that is up stays; one that is down or draining is replaced when another node is up to take its place, and
/// stays otherwise, because a group that shrinks has less to lose before it stops. New voters come from the zones
/// with the fewest of them, lowest id first.
#[must_use]
pub fn choose_voters(
    nodes: &BTreeMap<NodeId, NodeRecord>,
    voters: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let wanted = match nodes.len() {
        ..FEW_VOTERS => 1,
        FEW_VOTERS..MOST_VOTERS => FEW_VOTERS,
        _ => MOST_VOTERS,
    };
    let is_up = |id: &NodeId| {
        nodes
            .get(id)
            .is_some_and(|node| node.state == NodeState::Up)
    };
    let zone = |id: &NodeId| nodes.get(id).map_or("", |node| node.zone.as_str());
    let mut chosen = BTreeSet::new();
    let healthy = voters.iter().copied().filter(is_up);
    add_spread(&mut chosen, healthy.collect(), wanted, &zone);
    let others = nodes.keys().copied().filter(is_up);
    add_spread(&mut chosen, others.collect(), wanted, &zone);
    let absent = voters.iter().copied().filter(|id| nodes.contains_key(id));
    add_spread(&mut chosen, absent.collect(), wanted, &zone);
    if chosen.len() % 2 == 0 {
        let useless = chosen.iter().find(|id| !is_up(id));
        let useless = useless.or_else(|| chosen.iter().rfind(|id| !voters.contains(id)));
        if let Some(useless) = useless.copied() {
            chosen.remove(&useless);
        }
    }
    chosen
}

/// Adds candidates until `wanted` are chosen: each time one from the zone that has the fewest, the lowest id.
fn add_spread<'a>(
    chosen: &mut BTreeSet<NodeId>,
    mut candidates: BTreeSet<NodeId>,
    wanted: usize,
    zone: &dyn Fn(&NodeId) -> &'a str,
) {
    candidates.retain(|id| !chosen.contains(id));
    while chosen.len() < wanted {
        let crowding = |id: &NodeId| {
            let same = chosen.iter().filter(|other| zone(other) == zone(id));
            (same.count(), *id)
        };
        let Some(next) = candidates.iter().copied().min_by_key(crowding) else {
            return;
        };
        candidates.remove(&next);
        chosen.insert(next);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(list: &[(u64, &str, NodeState)]) -> BTreeMap<NodeId, NodeRecord> {
        let record = |zone: &str, state| NodeRecord {
            addresses: Default::default(),
            zone: zone.to_owned(),
            incarnation: 1,
            disk_id: 1,
            boot: 1,
            state,
        };
        list.iter()
            .map(|(id, zone, state)| (NodeId(*id), record(zone, *state)))
            .collect()
    }

    fn ids<const N: usize>(ids: [u64; N]) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    use NodeState::{Down, Draining, Up};

    #[test]
    fn there_are_one_three_or_five() {
        let counts = (1..=7_u64).map(|count| {
            let list: Vec<_> = (1..=count).map(|id| (id, "", Up)).collect();
            choose_voters(&nodes(&list), &ids([1])).len()
        });
        assert_eq!(counts.collect::<Vec<_>>(), [1, 1, 3, 3, 5, 5, 5]);
    }

    #[test]
    fn a_healthy_voter_stays_and_the_others_come_from_other_zones() {
        let list = [(1, "a", Up), (2, "a", Up), (3, "b", Up), (4, "c", Up)];
        assert_eq!(choose_voters(&nodes(&list), &ids([2])), ids([2, 3, 4]));
    }

    #[test]
    fn one_that_is_gone_is_replaced_only_by_somebody() {
        // given three voters, one of which is down, and nobody else: it stays, and the group keeps its size
        let three = [(1, "", Up), (2, "", Down), (3, "", Up)];
        assert_eq!(
            choose_voters(&nodes(&three), &ids([1, 2, 3])),
            ids([1, 2, 3])
        );
        // when a fourth is there, then that one votes instead; the same for one that drains
        for state in [Down, Draining] {
            let four = [(1, "", Up), (2, "", state), (3, "", Up), (4, "", Up)];
            assert_eq!(
                choose_voters(&nodes(&four), &ids([1, 2, 3])),
                ids([1, 3, 4])
            );
        }
        // and a node that is no member any more does not vote
        assert_eq!(choose_voters(&nodes(&three[..1]), &ids([1, 9])), ids([1]));
    }

    #[test]
    fn a_node_that_has_not_started_yet_does_not_make_two_voters_of_one() {
        let three = [(1, "", Up), (2, "", Up), (3, "", Down)];
        assert_eq!(choose_voters(&nodes(&three), &ids([1])), ids([1]));
        let five = [
            (1, "", Up),
            (2, "", Up),
            (3, "", Up),
            (4, "", Up),
            (5, "", Down),
        ];
        assert_eq!(
            choose_voters(&nodes(&five), &ids([1, 2, 3])),
            ids([1, 2, 3])
        );
    }

    fn any_nodes() -> impl Strategy<Value = Vec<(u64, &'static str, NodeState)>> {
        let zone = prop::sample::select(vec!["a", "b", "c"]);
        let state = prop::sample::select(vec![Up, Up, Up, Down, Draining]);
        prop::collection::vec((1..20_u64, zone, state), 1..12)
    }

    proptest! {
        #[test]
        fn choosing_again_changes_nothing(list in any_nodes(), voted in prop::collection::btree_set(1..20_u64, 0..6)) {
            let nodes = nodes(&list);
            let voters = voted.into_iter().map(NodeId).collect();
            let chosen = choose_voters(&nodes, &voters);
            prop_assert_eq!(&choose_voters(&nodes, &chosen), &chosen);
            prop_assert!(chosen.iter().all(|id| nodes.contains_key(id)));
            // nobody who is not up votes while somebody who is up does not, unless there are enough of them
            let up = |id: &&NodeId| nodes[id].state == Up;
            let idle = nodes.keys().filter(up).any(|id| !chosen.contains(id));
            prop_assert!(!idle || chosen.iter().filter(|id| !up(id)).count() == 0);
        }
    }
}
