//! Who should hold the same of a bucket. Pure.

use std::collections::{BTreeMap, BTreeSet};

use spandrel_model::ids::{Bucket, NodeId, ShardId};
use spandrel_raft::ClusterState;
use spandrel_raft::state::NodeState;

/// The nodes that `me` can be compared with, and in which shards: both are named for every term of the shard in the
/// bucket. What lies in a block does not say which term it is of, so a node that lacks one of the terms may hold less.
pub(super) fn sharers(
    state: &ClusterState,
    me: NodeId,
    bucket: Bucket,
) -> BTreeMap<NodeId, BTreeSet<ShardId>> {
    let mut of_shards: BTreeMap<ShardId, BTreeSet<NodeId>> = BTreeMap::new();
    for (key, holders) in state
        .holders
        .get(&bucket)
        .into_iter()
        .flat_map(|it| it.iter())
    {
        let holders = holders.iter().copied();
        let of_shard = of_shards
            .entry(key.shard)
            .or_insert_with(|| holders.clone().collect());
        let holders: BTreeSet<NodeId> = holders.collect();
        of_shard.retain(|node| holders.contains(node));
    }
    let mut sharers: BTreeMap<NodeId, BTreeSet<ShardId>> = BTreeMap::new();
    for (shard, nodes) in of_shards {
        if !nodes.contains(&me) {
            continue;
        }
        let answers = |node: &NodeId| {
            let record = state.nodes.get(node);
            *node != me && record.is_some_and(|record| record.state != NodeState::Down)
        };
        for node in nodes.into_iter().filter(answers) {
            sharers.entry(node).or_default().insert(shard);
        }
    }
    sharers
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spandrel_model::ids::Term;
    use spandrel_raft::state::{BucketHolders, HolderKey, NodeAddresses, NodeRecord};

    use super::*;

    fn state(holders: &[(u16, u64, &[u64])], down: u64) -> ClusterState {
        let node = |id| NodeRecord {
            addresses: NodeAddresses::default(),
            zone: String::new(),
            incarnation: 1,
            disk_id: id,
            boot: 1,
            state: if id == down {
                NodeState::Down
            } else {
                NodeState::Up
            },
        };
        let records: BucketHolders = holders
            .iter()
            .map(|(shard, term, nodes)| {
                let key = HolderKey {
                    shard: ShardId(*shard),
                    term: Term(*term),
                };
                (key, nodes.iter().copied().map(NodeId).collect())
            })
            .collect();
        ClusterState {
            nodes: (1..=4).map(|id| (NodeId(id), node(id))).collect(),
            holders: [(Bucket(9), Arc::new(records))].into(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn only_who_holds_every_term_of_a_shard_is_compared() {
        let state = state(
            &[
                (0, 1, &[1, 2, 3]),
                (0, 2, &[1, 3]),
                (1, 1, &[1, 2, 4]),
                (2, 1, &[2, 3]),
                (3, 1, &[1, 9]),
            ],
            4,
        );
        let found = sharers(&state, NodeId(1), Bucket(9));
        let shards = |shards: &[u16]| shards.iter().copied().map(ShardId).collect::<BTreeSet<_>>();
        let wanted = [(NodeId(2), shards(&[1])), (NodeId(3), shards(&[0]))];
        assert_eq!(found, wanted.into());
        assert!(sharers(&state, NodeId(1), Bucket(8)).is_empty());
    }
}
