//! Who holds older data.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use spandrel_model::ids::{Bucket, NodeId, ShardId, Term};

use super::apply_test::{change, record, serving};
use super::*;

#[test]
fn holders_are_compared_and_forgotten_with_their_bucket() {
    let mut state = serving();
    let set = |bucket, expected: &[u64], holders: &[u64]| Command::SetHolders {
        changes: vec![HolderChange {
            bucket: Bucket(bucket),
            key: HolderKey::default(),
            expected: expected.iter().copied().map(NodeId).collect(),
            holders: holders.iter().copied().map(NodeId).collect(),
        }],
    };
    state.apply(&set(1, &[], &[1, 2])).unwrap();
    state.apply(&set(2, &[], &[1])).unwrap();
    let late = state.apply(&set(1, &[], &[3]));
    assert!(matches!(
        late,
        Err(Conflict::HoldersChanged { bucket: 1, .. })
    ));
    state.apply(&set(1, &[1, 2], &[1, 2, 3])).unwrap();
    assert_eq!(state.holder_count(), 2);
    let before = Bucket(2);
    assert_eq!(
        state.apply(&Command::ForgetBuckets { before }),
        Ok(Applied::Done)
    );
    assert_eq!(state.holder_count(), 1);
    state.apply(&set(2, &[1], &[])).unwrap();
    assert!(state.holders.is_empty());
}

/// A primary named its replicas as holders at the moment at which one of them left.
#[test]
fn who_is_not_in_sync_is_no_first_holder_of_the_term() {
    let mut state = serving();
    let set = |holders: &[u64]| Command::SetHolders {
        changes: vec![HolderChange {
            bucket: Bucket(9),
            key: HolderKey {
                shard: ShardId(0),
                term: Term(1),
            },
            expected: Vec::new(),
            holders: holders.iter().copied().map(NodeId).collect(),
        }],
    };
    state
        .apply(&change(0, record(1, 1, &[1, 2]), record(1, 1, &[1])))
        .unwrap();
    let refused = state.apply(&set(&[1, 2])).unwrap_err();
    assert!(refused.to_string().contains("not in sync"), "{refused}");
    state.apply(&set(&[1])).unwrap();
}

#[test]
fn who_leaves_a_term_is_no_holder_of_what_comes_in_it() {
    let mut state = serving();
    let old = record(1, 1, &[1, 2]);
    let key = |shard, term| HolderKey {
        shard: ShardId(shard),
        term: Term(term),
    };
    let keys = [(0, 1), (1, 1)];
    let buckets = [7, 8, 9].into_iter();
    let changes = buckets.flat_map(|bucket| {
        keys.map(|(shard, term)| HolderChange {
            bucket: Bucket(bucket),
            key: key(shard, term),
            expected: Vec::new(),
            holders: vec![NodeId(1), NodeId(2)],
        })
    });
    let changes = changes.collect();
    state.apply(&Command::SetHolders { changes }).unwrap();
    let held = |state: &ClusterState, bucket: u32, shard: u16| {
        state.holders[&Bucket(bucket)][&key(shard, 1)].len()
    };

    // when a node leaves within the term, then it is no holder of the traces that may still be open
    state
        .apply(&change(0, old.clone(), record(1, 1, &[1])))
        .unwrap();
    assert_eq!([7, 8, 9].map(|bucket| held(&state, bucket, 0)), [2, 1, 1]);
    assert_eq!([7, 8, 9].map(|bucket| held(&state, bucket, 1)), [2, 2, 2]);
    // and it joins in another term only
    let joins = state.apply(&change(0, record(1, 1, &[1]), old.clone()));
    assert!(joins.unwrap_err().to_string().contains("in a new term"));
    state
        .apply(&change(0, record(1, 1, &[1]), record(2, 1, &[1, 2])))
        .unwrap();

    // when another one leads from the next term on, then the term before is whole on all who were in it
    state.apply(&change(1, old, record(2, 2, &[2]))).unwrap();
    assert_eq!([7, 8, 9].map(|bucket| held(&state, bucket, 1)), [2, 2, 2]);
}
