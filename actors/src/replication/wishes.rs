//! What a node wants changed about the shards that it leads. Pure: the keeper proposes it, one step at a time.

use std::collections::{BTreeMap, BTreeSet};

use spandrel_model::ids::{NodeId, ShardId};
use spandrel_raft::ClusterState;
use spandrel_raft::state::{NodeState, ShardRecord};

use super::keeper::ShardProgress;
use crate::limits::{MAX_FILLS, MAX_HANDOVERS};
use crate::placement::{Replicas, least_copies};

/// A change that a primary wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Which shard.
    pub shard: ShardId,
    /// Its record now.
    pub expected: ShardRecord,
    /// What it should become.
    pub record: ShardRecord,
    /// The change is of a kind that nothing may be on its way during: the shard is held and drained first.
    pub holds: bool,
}

impl Wish {
    /// The joining replicas that it lets into the in-sync set.
    pub fn joining(&self) -> Vec<NodeId> {
        let before = &self.expected.filling;
        let joining = self.record.isr.iter().copied();
        joining.filter(|node| before.contains(node)).collect()
    }
}

/// The changes that node `me` wants now, at most one for each shard. `progress` is of the shards that it leads in a
/// term of its own process, `plan` says where shards should be, by shard.
pub fn wishes(
    state: &ClusterState,
    me: NodeId,
    progress: &BTreeMap<ShardId, ShardProgress>,
    plan: &[Replicas],
) -> Vec<Wish> {
    let shards = (0u16..).map(ShardId).zip(&state.shard_map);
    let mine = shards.filter(|(_, record)| record.primary == me);
    let fills = mine.clone().map(|(_, record)| record.filling.len()).sum();
    let mut budget = Budget {
        fills: MAX_FILLS.saturating_sub(fills),
        handovers: MAX_HANDOVERS,
    };
    let wishes = mine.filter_map(|(shard, record)| {
        let wanted = suited(state, record, plan.get(usize::from(shard.0))?);
        let known = progress
            .get(&shard)
            .filter(|known| known.term == record.term);
        let one = One {
            state,
            me,
            record,
            wanted: &wanted,
        };
        match known {
            None => one.begin_anew(shard),
            Some(known) => one.wish(known, &mut budget),
        }
    });
    wishes.collect()
}

/// The replicas of a shard: the plan's, but that no copy goes to a node whose disk is nearly full while one that has a
/// copy can keep it.
fn suited(state: &ClusterState, record: &ShardRecord, plan: &[NodeId]) -> Replicas {
    let is = |node: &NodeId, wanted| {
        let known = state.nodes.get(node);
        known.is_some_and(|known| known.state == wanted)
    };
    let has = |node: &NodeId| record.isr.contains(node) || record.filling.contains(node);
    let fits = |node: &&NodeId| is(node, NodeState::Up) || has(node);
    let mut suited: Replicas = plan.iter().filter(fits).copied().collect();
    let copies = record.isr.iter().chain(&record.filling);
    let up = copies.clone().filter(|node| is(node, NodeState::Up));
    let full = copies.filter(|node| is(node, NodeState::Full));
    for node in up.chain(full).chain(plan) {
        if suited.len() < plan.len() && !suited.contains(node) {
            suited.push(*node);
        }
    }
    suited
}

/// How much more may be under way at once.
struct Budget {
    fills: usize,
    handovers: usize,
}

struct One<'a> {
    state: &'a ClusterState,
    me: NodeId,
    record: &'a ShardRecord,
    /// The replicas of the plan, the primary first.
    wanted: &'a [NodeId],
}

impl One<'_> {
    fn is(&self, node: NodeId, states: &[NodeState]) -> bool {
        let known = self.state.nodes.get(&node);
        known.is_some_and(|node| states.contains(&node.state))
    }

    fn make(&self, shard: ShardId, record: ShardRecord, holds: bool) -> Wish {
        Wish {
            shard,
            expected: self.record.clone(),
            record,
            holds,
        }
    }

    /// This process found the shard under its lead: it takes a new term, since it does not know which numbers the
    /// process before gave to followers, those included that have left since. Alone in its cluster, it knows.
    fn begin_anew(&self, shard: ShardId) -> Option<Wish> {
        let alone = self.state.nodes.len() < 2;
        (!alone).then(|| {
            let record = ShardRecord {
                term: self.record.term.next(),
                ..self.record.clone()
            };
            self.make(shard, record, false)
        })
    }

    /// The most urgent change.
    fn wish(&self, known: &ShardProgress, budget: &mut Budget) -> Option<Wish> {
        let shard = known.shard;
        self.shrink(shard)
            .or_else(|| self.fill_again(shard, known))
            .or_else(|| self.let_in(shard, known))
            .or_else(|| self.add(shard, budget))
            .or_else(|| self.hand_over(shard, known, budget))
            .or_else(|| self.drop_one(shard, known))
    }

    /// Nodes that are down are not waited for. Nor are those whose disk is nearly full and that the plan can do without,
    /// once there are copies enough on nodes that are well.
    fn shrink(&self, shard: ShardId) -> Option<Wish> {
        let up = self.record.isr.iter();
        let up = up.filter(|node| self.is(**node, &[NodeState::Up])).count();
        let has_enough = up >= least_copies(self.state);
        let stays = |node: &NodeId| {
            *node == self.me
                || self.is(*node, &[NodeState::Up, NodeState::Draining])
                || self.is(*node, &[NodeState::Full]) && (!has_enough || self.wanted.contains(node))
        };
        let mut record = self.record.clone();
        record.isr.retain(stays);
        record.filling.retain(stays);
        (record != *self.record).then(|| self.make(shard, record, false))
    }

    /// A follower that holds what does not count starts anew.
    fn fill_again(&self, shard: ShardId, known: &ShardProgress) -> Option<Wish> {
        let unfit = |node: &NodeId| known.unfit.contains(node);
        let mut record = self.record.clone();
        let (out, stay): (Vec<NodeId>, Vec<NodeId>) =
            record.isr.iter().partition(|node| unfit(node));
        if out.is_empty() {
            return None;
        }
        record.isr = stay;
        record.filling.extend(out);
        record.filling.sort_unstable();
        record.filling.dedup();
        Some(self.make(shard, record, false))
    }

    /// Replicas that have everything become members of the in-sync set, in a new term: so the members of a term hold
    /// all that was written in it.
    fn let_in(&self, shard: ShardId, known: &ShardProgress) -> Option<Wish> {
        let full = |node: &NodeId| known.full.contains(node) && known.level.contains(node);
        let mut record = self.record.clone();
        let (full, rest): (Vec<NodeId>, Vec<NodeId>) =
            record.filling.iter().partition(|node| full(node));
        if full.is_empty() {
            return None;
        }
        record.filling = rest;
        record.isr.extend(full);
        record.isr.sort_unstable();
        record.term = record.term.next();
        Some(self.make(shard, record, true))
    }

    /// Replicas that the plan names and that the shard does not have, or, while it has too few of those, any other.
    fn add(&self, shard: ShardId, budget: &mut Budget) -> Option<Wish> {
        let is_there =
            |node: &NodeId| self.record.isr.contains(node) || self.record.filling.contains(node);
        let mut missing = self.wanted.iter().copied();
        let takes = |node: NodeId| self.is(node, &[NodeState::Up, NodeState::Full]);
        let new = missing.find(|node| !is_there(node) && takes(*node))?;
        budget.fills = budget.fills.checked_sub(1)?;
        let mut record = self.record.clone();
        record.filling.push(new);
        record.filling.sort_unstable();
        Some(self.make(shard, record, false))
    }

    /// The plan has another primary, which is in sync and level.
    fn hand_over(
        &self,
        shard: ShardId,
        known: &ShardProgress,
        budget: &mut Budget,
    ) -> Option<Wish> {
        let to = *self.wanted.first()?;
        // Another primary would not know of these. They come to an end, sooner or later in vain.
        let ready = known.recalls == 0
            && to != self.me
            && self.record.isr.contains(&to)
            && self.record.filling.is_empty()
            && known.level.contains(&to)
            && self.is(to, &[NodeState::Up, NodeState::Full]);
        if !ready {
            return None;
        }
        budget.handovers = budget.handovers.checked_sub(1)?;
        let record = ShardRecord {
            term: self.record.term.next(),
            primary: to,
            ..self.record.clone()
        };
        Some(self.make(shard, record, true))
    }

    /// One replica more than the plan wants leaves, once all that it wants are in sync.
    fn drop_one(&self, shard: ShardId, known: &ShardProgress) -> Option<Wish> {
        let wanted: BTreeSet<NodeId> = self.wanted.iter().copied().collect();
        let in_sync = |node: &NodeId| {
            self.record.isr.contains(node) && (*node == self.me || known.level.contains(node))
        };
        if !wanted.iter().all(in_sync) {
            return None;
        }
        let extra = |node: &&NodeId| !wanted.contains(node) && **node != self.me;
        let extra = *self.record.isr.iter().find(extra)?;
        let mut record = self.record.clone();
        record.isr.retain(|node| *node != extra);
        Some(self.make(shard, record, false))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spandrel_model::ids::Term;
    use spandrel_raft::Command;
    use spandrel_raft::state::{NodeAddresses, NodeRecord, ShardChange};

    use super::*;

    fn ids(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    /// Nodes 1 to 4 and one shard of term 5 whose primary is node 1.
    fn state(isr: &[u64], filling: &[u64], down: &[u64]) -> ClusterState {
        let node = |id| NodeRecord {
            addresses: NodeAddresses::default(),
            zone: String::new(),
            incarnation: 1,
            disk_id: id,
            boot: 1,
            state: if down.contains(&id) {
                NodeState::Down
            } else {
                NodeState::Up
            },
        };
        ClusterState {
            cluster_id: 1,
            shards: 1,
            replication: 2,
            nodes: (1..=4).map(|id| (NodeId(id), node(id))).collect(),
            shard_map: vec![ShardRecord {
                term: Term(5),
                primary: NodeId(1),
                isr: ids(isr),
                filling: ids(filling),
                moving_to: None,
            }],
            ..ClusterState::default()
        }
    }

    fn known(full: &[u64], unfit: &[u64], level: &[u64]) -> Option<ShardProgress> {
        Some(ShardProgress {
            shard: ShardId(0),
            term: Term(5),
            full: ids(full),
            unfit: ids(unfit),
            level: ids(level),
            recalls: 0,
        })
    }

    /// What node 1 wants, as `(term, primary, isr, filling, holds)`.
    #[allow(clippy::type_complexity)]
    fn wanted(
        state: &ClusterState,
        known: Option<ShardProgress>,
        plan: &[u64],
    ) -> Option<(u64, u64, Vec<u64>, Vec<u64>, bool)> {
        let progress = known.into_iter().map(|one| (one.shard, one)).collect();
        let wish = wishes(state, NodeId(1), &progress, &[ids(plan)]).pop()?;
        let raw = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        let record = &wish.record;
        let (isr, filling) = (raw(&record.isr), raw(&record.filling));
        Some((record.term.0, record.primary.0, isr, filling, wish.holds))
    }

    #[test]
    fn a_settled_shard_wants_nothing() {
        let settled = state(&[1, 2], &[], &[]);
        assert_eq!(wanted(&settled, known(&[], &[], &[2]), &[1, 2]), None);
    }

    #[test]
    fn a_process_that_starts_takes_a_new_term_unless_its_node_is_alone() {
        // A replica that has left may hold numbers that this process would give out again, and may come back.
        let mut alone = state(&[1], &[], &[]);
        let begins = Some((6, 1, vec![1], vec![], false));
        assert_eq!(wanted(&alone, None, &[1, 2]), begins);
        alone.nodes.retain(|node, _| *node == NodeId(1));
        assert_eq!(wanted(&alone, None, &[1]), None);
        let stale = known(&[], &[], &[2]).map(|known| ShardProgress {
            term: Term(4),
            ..known
        });
        let others = state(&[1, 2], &[], &[]);
        let begins = Some((6, 1, vec![1, 2], vec![], false));
        assert_eq!(wanted(&others, stale, &[1, 2]), begins);
    }

    #[test]
    fn nodes_that_are_down_leave_before_anything_else() {
        let down = state(&[1, 2], &[3], &[2, 3]);
        let shrunk = Some((5, 1, vec![1], vec![], false));
        assert_eq!(wanted(&down, known(&[3], &[2], &[2]), &[1, 4]), shrunk);
    }

    #[test]
    fn a_node_with_a_full_disk_leaves_once_there_are_copies_enough_without_it() {
        let full = |isr: &[u64], filling: &[u64], node: u64| {
            let mut state = state(isr, filling, &[]);
            state.nodes.get_mut(&NodeId(node)).unwrap().state = NodeState::Full;
            state
        };
        let all = known(&[], &[], &[2, 3]);
        // Of three copies it is the third.
        let left = Some((5, 1, vec![1, 3], vec![], false));
        assert_eq!(
            wanted(&full(&[1, 2, 3], &[], 2), all.clone(), &[1, 3]),
            left
        );
        // Of two it waits for who replaces it.
        let replaced = Some((5, 1, vec![1, 2], vec![3], false));
        assert_eq!(
            wanted(&full(&[1, 2], &[], 2), all.clone(), &[1, 3]),
            replaced
        );
        let waits = full(&[1, 2], &[3], 2);
        assert_eq!(wanted(&waits, known(&[], &[], &[2]), &[1, 3]), None);
        // The primary itself hands over.
        let led = Some((6, 3, vec![1, 3], vec![], true));
        assert_eq!(wanted(&full(&[1, 3], &[], 1), all.clone(), &[3, 1]), led);
        // Where there is nobody else, the plan names it, and it is filled.
        let added = Some((5, 1, vec![1], vec![2], false));
        assert_eq!(wanted(&full(&[1], &[], 2), all.clone(), &[1, 2]), added);
        // One that has been emptied gets nothing back while there are copies enough.
        assert_eq!(wanted(&full(&[1, 3], &[], 2), all, &[1, 2]), None);
    }

    proptest! {
        /// What one wish does, no other one undoes.
        #[test]
        fn wishes_come_to_an_end(
            states in proptest::collection::vec(0..4usize, 4), isr in some(), copies in 1..=3u8,
        ) {
            let all = [NodeState::Up, NodeState::Draining, NodeState::Down, NodeState::Full];
            let mut isr = isr;
            isr.insert(1);
            let isr: Vec<u64> = isr.into_iter().collect();
            let mut state = state(&isr, &[], &[]);
            state.replication = copies;
            for (node, of) in state.nodes.values_mut().zip(states) {
                node.state = all[of];
            }
            let mut steps = 0;
            let is_well = |state: &ClusterState| {
                let me = state.shard_map[0].primary;
                state.nodes[&me].state != NodeState::Down
            };
            while is_well(&state) {
                let record = state.shard_map[0].clone();
                let me = record.primary;
                // Everybody is level, and whoever joins is full.
                let progress = ShardProgress {
                    shard: ShardId(0),
                    term: record.term,
                    full: record.filling.clone(),
                    unfit: Vec::new(),
                    level: record.nodes().filter(|node| *node != me).collect(),
                    recalls: 0,
                };
                let plan = crate::placement::planned(&state);
                if plan.is_empty() {
                    break;
                }
                let progress = [(ShardId(0), progress)].into();
                let Some(wish) = wishes(&state, me, &progress, &plan).pop() else {
                    break;
                };
                let change = ShardChange {
                    shard: wish.shard,
                    expected: wish.expected,
                    record: wish.record,
                };
                state.apply(&Command::SetShards { changes: vec![change] }).unwrap();
                steps += 1;
                prop_assert!(steps < 20, "{:?}", state);
            }
            // Who leaves has left, if there is anybody to stay.
            let plan = crate::placement::planned(&state);
            let stays = plan.first().is_some_and(|nodes| nodes.len() >= least_copies(&state));
            let leaves = |node: &NodeId| state.nodes[node].state == NodeState::Draining;
            if is_well(&state) && stays {
                prop_assert!(!state.shard_map[0].nodes().any(|node| leaves(&node)), "{:?}", state);
            }
        }
    }

    #[test]
    fn a_replica_with_what_does_not_count_is_filled_anew() {
        let unfit = state(&[1, 2, 3], &[], &[]);
        let filled = Some((5, 1, vec![1, 3], vec![2], false));
        assert_eq!(wanted(&unfit, known(&[], &[2], &[3]), &[1, 2]), filled);
    }

    #[test]
    fn a_full_replica_joins_in_a_new_term_while_it_gets_all_records() {
        let joins = state(&[1], &[2], &[]);
        let joined = Some((6, 1, vec![1, 2], vec![], true));
        assert_eq!(wanted(&joins, known(&[2], &[], &[2]), &[1, 2]), joined);
        assert_eq!(wanted(&joins, known(&[2], &[], &[]), &[1, 2]), None);
        assert_eq!(wanted(&joins, known(&[], &[], &[2]), &[1, 2]), None);
    }

    #[test]
    fn what_the_plan_names_is_filled_if_it_is_up() {
        let lacks = state(&[1], &[], &[2]);
        assert_eq!(wanted(&lacks, known(&[], &[], &[]), &[1, 2]), None);
        let added = Some((5, 1, vec![1], vec![3], false));
        assert_eq!(wanted(&lacks, known(&[], &[], &[]), &[1, 3]), added);
    }

    #[test]
    fn the_primary_of_the_plan_leads_once_it_is_level_and_nobody_joins() {
        let ready = state(&[1, 2], &[], &[]);
        let led = Some((6, 2, vec![1, 2], vec![], true));
        assert_eq!(wanted(&ready, known(&[], &[], &[2]), &[2, 1]), led);
        assert_eq!(wanted(&ready, known(&[], &[], &[]), &[2, 1]), None);
        let joins = state(&[1, 2], &[3], &[]);
        assert_eq!(wanted(&joins, known(&[], &[], &[2]), &[2, 1]), None);
    }

    #[test]
    fn one_too_many_leaves_when_all_others_are_level() {
        let extra = state(&[1, 2, 3], &[], &[]);
        let left = Some((5, 1, vec![1, 2], vec![], false));
        assert_eq!(wanted(&extra, known(&[], &[], &[2]), &[1, 2]), left);
        assert_eq!(wanted(&extra, known(&[], &[], &[3]), &[1, 2]), None);
    }

    #[test]
    fn few_are_filled_and_handed_over_at_once() {
        let mut many = state(&[1], &[], &[]);
        many.shards = 64;
        many.shard_map = vec![many.shard_map[0].clone(); 64];
        let progress = (0..64).map(|shard| {
            let known = known(&[], &[], &[2]).unwrap();
            let shard = ShardId(shard);
            (shard, ShardProgress { shard, ..known })
        });
        let progress: BTreeMap<ShardId, ShardProgress> = progress.collect();
        let plan = vec![ids(&[2, 1]); 64];
        let filled = wishes(&many, NodeId(1), &progress, &plan);
        assert_eq!(filled.len(), MAX_FILLS);
        for record in &mut many.shard_map {
            record.isr = ids(&[1, 2]);
        }
        let handed = wishes(&many, NodeId(1), &progress, &plan);
        assert_eq!(handed.len(), MAX_HANDOVERS);
    }

    fn some() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(1..=4u64, 0..=4)
    }

    proptest! {
        #[test]
        fn every_wish_is_accepted_on_the_state_that_it_was_made_for(
            isr in some(), filling in some(), down in some(), full in some(), unfit in some(),
            level in some(), plan in Just(vec![1u64, 2, 3, 4]).prop_shuffle(), copies in 1..=4usize,
            knows in any::<bool>(),
        ) {
            let mut isr = isr;
            isr.insert(1);
            let list = |nodes: BTreeSet<u64>| nodes.into_iter().collect::<Vec<u64>>();
            let filling = list(&filling - &isr);
            let mut state = state(&list(isr), &filling, &list(down));
            // The primary is no copy of its own.
            let (me, unfit) = (BTreeSet::from([1]), unfit);
            let progress = known(&list(full), &list(&unfit - &me), &list(level)).filter(|_| knows);
            let progress = progress.into_iter().map(|one| (one.shard, one)).collect();
            // It comes to an end, and each step is taken.
            for wish in wishes(&state, NodeId(1), &progress, &[ids(&plan[..copies])]) {
                prop_assert_ne!(&wish.expected, &wish.record);
                let before = wish.expected.clone();
                let joins = wish.record.isr.iter().any(|node| !before.isr.contains(node));
                prop_assert!(!joins || wish.record.term > before.term, "joins within a term");
                let change = ShardChange {
                    shard: wish.shard,
                    expected: wish.expected,
                    record: wish.record.clone(),
                };
                let applied = state.apply(&Command::SetShards { changes: vec![change] });
                prop_assert!(applied.is_ok(), "{:?}", applied);
                prop_assert_eq!(&state.shard_map[0], &wish.record);
            }
        }
    }
}
