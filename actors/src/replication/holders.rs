//! Who holds the data of which (shard, bucket, term): the in-sync set of the term, less who left it meanwhile, whom the
//! change of the set takes from the record too. Pure.

use spandrel_model::ids::{Bucket, NodeId, ShardId};
use spandrel_raft::ClusterState;
use spandrel_raft::limits::MAX_HOLDER_CHANGES;
use spandrel_raft::state::{HolderChange, HolderKey};

/// What node `me` has to say about the shards that it leads, for traces whose first record is of the bucket `now` or of
/// the one before it: those that are open when a term begins may be of that one.
///
/// A set never grows within a term: who joins the in-sync set does so in a new term, and holds what is written from
/// then on.
pub(crate) fn holder_changes(state: &ClusterState, me: NodeId, now: Bucket) -> Vec<HolderChange> {
    let before = Bucket(now.0.saturating_sub(1));
    let shards = (0u16..).map(ShardId).zip(&state.shard_map);
    let mine = shards.filter(|(_, record)| record.primary == me);
    let changes = mine.flat_map(|(shard, record)| {
        [before, now].into_iter().filter_map(move |bucket| {
            let key = HolderKey {
                shard,
                term: record.term,
            };
            let known = state.holders.get(&bucket).and_then(|held| held.get(&key));
            known.is_none().then(|| HolderChange {
                bucket,
                key,
                expected: Vec::new(),
                holders: record.isr.clone(),
            })
        })
    });
    changes.take(MAX_HOLDER_CHANGES).collect()
}

#[cfg(test)]
mod tests {
    use spandrel_model::ids::Term;
    use spandrel_raft::state::ShardRecord;

    use super::*;

    fn state(isr: &[u64], term: u64) -> ClusterState {
        ClusterState {
            shard_map: vec![ShardRecord {
                term: Term(term),
                primary: NodeId(1),
                isr: isr.iter().copied().map(NodeId).collect(),
                filling: Vec::new(),
                moving_to: None,
            }],
            ..ClusterState::default()
        }
    }

    fn apply(state: &mut ClusterState, changes: Vec<HolderChange>) {
        for change in changes {
            let held = state.holders.entry(change.bucket).or_default();
            std::sync::Arc::make_mut(held).insert(change.key, change.holders);
        }
    }

    fn held(state: &ClusterState, bucket: u32, term: u64) -> Vec<u64> {
        let key = HolderKey {
            shard: ShardId(0),
            term: Term(term),
        };
        let nodes = state
            .holders
            .get(&Bucket(bucket))
            .and_then(|held| held.get(&key));
        nodes.into_iter().flatten().map(|node| node.0).collect()
    }

    #[test]
    fn a_term_is_held_by_those_who_were_in_sync_all_along() {
        let mut one = state(&[1, 2, 3], 4);
        let changes = holder_changes(&one, NodeId(1), Bucket(9));
        apply(&mut one, changes);
        assert_eq!(
            (held(&one, 8, 4), held(&one, 9, 4)),
            (vec![1, 2, 3], vec![1, 2, 3])
        );
        assert_eq!(holder_changes(&one, NodeId(1), Bucket(9)), [], "said once");
        assert_eq!(
            holder_changes(&one, NodeId(2), Bucket(9)),
            [],
            "by the primary"
        );

        // when one leaves, then it holds nothing of the next bucket
        one.shard_map[0].isr = vec![NodeId(1), NodeId(2)];
        assert_eq!(holder_changes(&one, NodeId(1), Bucket(9)), []);
        let changes = holder_changes(&one, NodeId(1), Bucket(10));
        apply(&mut one, changes);
        assert_eq!(held(&one, 10, 4), [1, 2]);
    }
}
