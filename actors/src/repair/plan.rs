//! Which older data this node copies from whom. Pure.

use std::collections::BTreeSet;

use spandrel_model::ids::{Bucket, NodeId};
use spandrel_raft::ClusterState;
use spandrel_raft::limits::MAX_HOLDER_CHANGES;
use spandrel_raft::state::{HolderKey, NodeState};
use xxhash_rust::xxh3::xxh3_64;

/// Data of one bucket that a node is to get from another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyJob {
    pub(crate) bucket: Bucket,
    pub(crate) from: NodeId,
    /// At most [`MAX_HOLDER_CHANGES`], so that one command names the copies.
    pub(crate) keys: BTreeSet<HolderKey>,
}

/// What the plan is made of.
#[derive(Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) state: &'a ClusterState,
    /// Nodes that have been down for so long that they count for lost.
    pub(crate) lost: &'a BTreeSet<NodeId>,
    /// What lies before is about to expire.
    pub(crate) oldest: Bucket,
}

/// A node whose data counts: it is a member, is not leaving, and is not lost. It may be down.
fn stays(state: &ClusterState, lost: &BTreeSet<NodeId>, node: NodeId) -> bool {
    let record = state.nodes.get(&node);
    record.is_some_and(|record| record.state != NodeState::Draining)
        && !state.leaving.contains(&node)
        && !lost.contains(&node)
}

/// Copies that there should be: as many as the cluster wants, but no more than nodes that stay.
fn wanted(state: &ClusterState, lost: &BTreeSet<NodeId>) -> usize {
    let nodes = state.nodes.keys();
    let staying = nodes.filter(|node| stays(state, lost, **node)).count();
    usize::from(state.replication).min(staying)
}

impl Situation<'_> {
    /// Records of holders with the copies that they lack, newest bucket first.
    fn lacks(&self) -> impl Iterator<Item = (Bucket, HolderKey, &[NodeId], usize)> {
        let wanted = wanted(self.state, self.lost);
        let buckets = self.state.holders.range(self.oldest..).rev();
        let records = buckets.flat_map(|(bucket, records)| {
            let records = records.iter();
            records.map(move |(key, holders)| (*bucket, *key, holders.as_slice()))
        });
        records.filter_map(move |(bucket, key, holders)| {
            let staying = holders.iter();
            let staying = staying.filter(|node| stays(self.state, self.lost, **node));
            let lacks = wanted.saturating_sub(staying.count());
            (lacks > 0).then_some((bucket, key, holders, lacks))
        })
    }

    fn is_up(&self, node: NodeId) -> bool {
        let record = self.state.nodes.get(&node);
        record.is_some_and(|record| record.state == NodeState::Up)
    }

    /// Whether `me` is one of the `lacks` nodes that are to hold a record: those in sync with the shard come first, since
    /// queries ask them anyway, then in an order that differs from record to record.
    fn takes(
        &self,
        me: NodeId,
        bucket: Bucket,
        key: HolderKey,
        holders: &[NodeId],
        lacks: usize,
    ) -> bool {
        if holders.contains(&me) {
            return false;
        }
        let in_sync = |node: NodeId| {
            let shard = self.state.shard(key.shard);
            shard.is_some_and(|shard| shard.isr.contains(&node))
        };
        let rank = |node: NodeId| (!in_sync(node), mixed(bucket, key, node), node);
        let mine = rank(me);
        let may = |node: &NodeId| {
            self.is_up(*node) && stays(self.state, self.lost, *node) && !holders.contains(node)
        };
        let nodes = self.state.nodes.keys();
        let before = nodes.filter(|node| may(node) && rank(**node) < mine);
        may(&me) && before.count() < lacks
    }

    /// What node `me` copies next; `avoided` are the holders that have refused lately. Only of terms that are over: of the
    /// current one more may come.
    pub(crate) fn next_job(
        &self,
        me: NodeId,
        avoided: &dyn Fn(Bucket, NodeId) -> bool,
    ) -> Option<CopyJob> {
        let mut job: Option<CopyJob> = None;
        for (bucket, key, holders, lacks) in self.lacks() {
            if job
                .as_ref()
                .is_some_and(|job| job.bucket != bucket || job.keys.len() >= MAX_HOLDER_CHANGES)
            {
                break;
            }
            let shard = self.state.shard(key.shard);
            let is_over = shard.is_some_and(|shard| key.term < shard.term);
            if !is_over || !self.takes(me, bucket, key, holders, lacks) {
                continue;
            }
            match &mut job {
                Some(job) if holders.contains(&job.from) => {
                    job.keys.insert(key);
                }
                Some(_) => {}
                None => {
                    let gives = |node: &NodeId| {
                        let record = self.state.nodes.get(node);
                        let answers = record.is_some_and(|it| it.state != NodeState::Down);
                        answers && !avoided(bucket, *node)
                    };
                    job = holders.iter().copied().find(gives).map(|from| CopyJob {
                        bucket,
                        from,
                        keys: BTreeSet::from([key]),
                    });
                }
            }
        }
        job
    }
}

/// Spreads the copies of one node's data over the others.
fn mixed(bucket: Bucket, key: HolderKey, node: NodeId) -> u64 {
    let mut bytes = [0; 22];
    bytes[..4].copy_from_slice(&bucket.0.to_le_bytes());
    bytes[4..6].copy_from_slice(&key.shard.0.to_le_bytes());
    bytes[6..14].copy_from_slice(&key.term.0.to_le_bytes());
    bytes[14..].copy_from_slice(&node.0.to_le_bytes());
    xxh3_64(&bytes)
}

/// The nodes that are down.
pub(super) fn down(state: &ClusterState) -> BTreeSet<NodeId> {
    let nodes = state.nodes.iter();
    let down = nodes.filter(|(_, node)| node.state == NodeState::Down);
    down.map(|(id, _)| *id).collect()
}

/// Records of older data that have fewer copies than there can be.
pub(crate) fn lacking(state: &ClusterState, lost: &BTreeSet<NodeId>) -> usize {
    let situation = Situation {
        state,
        lost,
        oldest: Bucket::default(),
    };
    situation.lacks().count()
}

/// Records that node `node` holds and that have too few copies without it. Who is down may never come back.
pub(crate) fn needed_of(state: &ClusterState, node: NodeId) -> usize {
    let mut without = down(state);
    without.insert(node);
    let situation = Situation {
        state,
        lost: &without,
        oldest: Bucket::default(),
    };
    let lacks = situation.lacks();
    lacks
        .filter(|(_, _, holders, _)| holders.contains(&node))
        .count()
}

/// Records that no other member holds than `node` and those that are down: they may be lost with it.
pub(crate) fn held_alone(state: &ClusterState, node: NodeId) -> usize {
    let down = down(state);
    let is_there = |node: &NodeId| state.nodes.contains_key(node) && !down.contains(node);
    let records = state.holders.values().flat_map(|records| records.values());
    let alone = records.filter(|holders| {
        let mut others = holders.iter().filter(|other| **other != node);
        holders.contains(&node) && !others.any(is_there)
    });
    alone.count()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use spandrel_model::ids::{ShardId, Term};
    use spandrel_raft::state::{BucketHolders, NodeAddresses, NodeRecord, ShardRecord};

    use super::*;

    const NOW: Bucket = Bucket(9);

    fn ids(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn key(shard: u16, term: u64) -> HolderKey {
        HolderKey {
            shard: ShardId(shard),
            term: Term(term),
        }
    }

    /// Nodes 1 to 4 and shards of term 5 on nodes 1 and 2; `held` are the holders in term 4 of the shards in order.
    fn state(states: &[NodeState], held: &[&[u64]]) -> ClusterState {
        let node = |state| NodeRecord {
            addresses: NodeAddresses::default(),
            zone: String::new(),
            incarnation: 1,
            disk_id: 1,
            boot: 1,
            state,
        };
        let shard = ShardRecord {
            term: Term(5),
            primary: NodeId(1),
            isr: ids(&[1, 2]),
            filling: Vec::new(),
            moving_to: None,
        };
        let holders: BucketHolders = (0..)
            .zip(held)
            .map(|(shard, held)| (key(shard, 4), ids(held)))
            .collect();
        ClusterState {
            cluster_id: 1,
            shards: 4,
            replication: 2,
            nodes: (1..)
                .map(NodeId)
                .zip(states.iter().map(|it| node(*it)))
                .collect(),
            shard_map: vec![shard; 4],
            holders: [(NOW, Arc::new(holders))].into(),
            ..ClusterState::default()
        }
    }

    const UP: [NodeState; 4] = [NodeState::Up; 4];

    fn job(state: &ClusterState, me: u64) -> Option<CopyJob> {
        let lost = BTreeSet::new();
        let situation = Situation {
            state,
            lost: &lost,
            oldest: Bucket(0),
        };
        situation.next_job(NodeId(me), &|_, _| false)
    }

    #[test]
    fn what_has_enough_holders_is_left_alone() {
        assert!((1..=4).all(|me| job(&state(&UP, &[&[1, 3]]), me).is_none()));
    }

    #[test]
    fn what_one_node_holds_alone_is_copied_by_one_in_sync() {
        let state = state(&UP, &[&[1], &[1], &[4]]);
        let copied = job(&state, 2).unwrap();
        assert_eq!((copied.from, copied.bucket), (NodeId(1), NOW));
        assert!(copied.keys.contains(&key(0, 4)) && copied.keys.contains(&key(1, 4)));
        assert!(job(&state, 3).is_none(), "one copy is enough");
        assert_eq!(
            (
                lacking(&state, &BTreeSet::new()),
                needed_of(&state, NodeId(1))
            ),
            (3, 2)
        );
        assert_eq!(held_alone(&state, NodeId(1)), 2);
    }

    #[test]
    fn what_a_node_holds_that_leaves_or_is_gone_is_copied() {
        let mut states = UP;
        states[2] = NodeState::Draining;
        let leaves = state(&states, &[&[1, 3]]);
        assert_eq!(job(&leaves, 2).map(|job| job.from), Some(NodeId(1)));
        states[2] = NodeState::Down;
        let down = state(&states, &[&[1, 3]]);
        assert!(job(&down, 2).is_none(), "it comes back");
        let lost = BTreeSet::from([NodeId(3)]);
        let situation = Situation {
            state: &down,
            lost: &lost,
            oldest: Bucket(0),
        };
        assert!(situation.next_job(NodeId(2), &|_, _| false).is_some());
        let mut gone = state(&UP, &[&[1, 3]]);
        gone.nodes.remove(&NodeId(3));
        assert!(job(&gone, 2).is_some());
        // the one that leaves gives what nobody else has
        states[2] = NodeState::Draining;
        assert_eq!(
            job(&state(&states, &[&[3]]), 1).map(|job| job.from),
            Some(NodeId(3))
        );
    }

    #[test]
    fn neither_the_current_term_nor_what_expires_is_copied() {
        let mut open = state(&UP, &[&[1]]);
        open.shard_map[0].term = Term(4);
        assert!((1..=4).all(|me| job(&open, me).is_none()));
        let old = state(&UP, &[&[1]]);
        let lost = BTreeSet::new();
        let situation = Situation {
            state: &old,
            lost: &lost,
            oldest: Bucket(10),
        };
        assert!(situation.next_job(NodeId(2), &|_, _| false).is_none());
    }

    fn some() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::btree_set(1..=4u64, 1..=3).prop_map(|it| it.into_iter().collect())
    }

    proptest! {
        #[test]
        fn copying_comes_to_an_end_with_enough_copies_and_no_more(
            held in proptest::collection::vec(some(), 1..=4), draining in 0..=4usize, copies in 1..=4u8,
        ) {
            let mut states = UP;
            if let Some(state) = draining.checked_sub(1) { states[state] = NodeState::Draining; }
            let held: Vec<&[u64]> = held.iter().map(Vec::as_slice).collect();
            let mut state = state(&states, &held);
            state.replication = copies;
            let before = state.holders.clone();
            for _ in 0..64 {
                for me in 1..=4 {
                    let Some(job) = job(&state, me) else { continue };
                    prop_assert!(states[usize::try_from(me - 1).unwrap()] == NodeState::Up);
                    let records = Arc::make_mut(state.holders.get_mut(&job.bucket).unwrap());
                    for key in job.keys {
                        let holders = records.get_mut(&key).unwrap();
                        prop_assert!(holders.contains(&job.from) && !holders.contains(&NodeId(me)));
                        holders.push(NodeId(me));
                    }
                }
            }
            let lost = BTreeSet::new();
            prop_assert_eq!(lacking(&state, &lost), 0);
            for (key, holders) in state.holders[&NOW].iter() {
                let staying = |it: &[NodeId]| it.iter().filter(|node| stays(&state, &lost, **node)).count();
                let most = wanted(&state, &lost).max(staying(&before[&NOW][key]));
                prop_assert!(staying(holders) <= most);
            }
        }
    }
}
