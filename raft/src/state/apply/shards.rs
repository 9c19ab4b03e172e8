//! Commands about the owners of shards and the holders of old data.

use std::collections::BTreeSet;
use std::sync::Arc;

use spandrel_model::ids::{Bucket, NodeId, ShardId};

use super::too_many;
use crate::limits::{MAX_HOLDER_CHANGES, MAX_HOLDERS, MAX_REPLICATION};
use crate::state::{
    Applied, ClusterState, Conflict, HolderChange, HolderKey, ShardChange, ShardRecord,
};

/// Most holders of one (shard, bucket, term): the replicas and as many copies under way.
const MAX_COPIES: usize = 2 * MAX_REPLICATION as usize;

impl ClusterState {
    pub(super) fn start_shards(&mut self, records: &[ShardRecord]) -> Result<Applied, Conflict> {
        if !self.shard_map.is_empty() {
            return Err(Conflict::invalid("shards", "they are started already"));
        }
        if records.len() != usize::from(self.shards) {
            let reason = format!("{} records for {} shards", records.len(), self.shards);
            return Err(Conflict::invalid("records", reason));
        }
        for (shard, record) in (0..).zip(records) {
            let shard = ShardId(shard);
            self.check_record(shard, record)?;
            if record.term.0 != 1 {
                return Err(bad(shard, "the first term is 1"));
            }
        }
        self.shard_map = records.to_vec();
        Ok(Applied::Done)
    }

    pub(super) fn set_shards(&mut self, changes: &[ShardChange]) -> Result<Applied, Conflict> {
        let mut seen = BTreeSet::new();
        for change in changes {
            let Some(actual) = self.shard(change.shard) else {
                return Err(bad(change.shard, "there is no such shard"));
            };
            if *actual != change.expected {
                return Err(Conflict::ShardChanged {
                    shard: change.shard,
                    actual: Box::new(actual.clone()),
                });
            }
            if !seen.insert(change.shard) {
                return Err(bad(change.shard, "it is changed twice"));
            }
            self.check_record(change.shard, &change.record)?;
            check_succession(change)?;
        }
        for change in changes {
            self.take_from_holders(change);
            if let Some(record) = self.shard_map.get_mut(usize::from(change.shard.0)) {
                record.clone_from(&change.record);
            }
        }
        Ok(Applied::Done)
    }

    /// Who leaves the in-sync set within a term lacks what the term brings from then on: also of the traces that are
    /// open, whose bucket is the newest one or the one before it.
    fn take_from_holders(&mut self, change: &ShardChange) {
        let (old, new) = (&change.expected, &change.record);
        let leaves = |node: &NodeId| old.isr.contains(node) && !new.isr.contains(node);
        if new.term != old.term || !old.isr.iter().any(leaves) {
            return;
        }
        let Some(newest) = self.holders.keys().next_back().copied() else {
            return;
        };
        let key = HolderKey {
            shard: change.shard,
            term: new.term,
        };
        for (_, records) in self.holders.range_mut(Bucket(newest.0.saturating_sub(1))..) {
            if records.contains_key(&key)
                && let Some(holders) = Arc::make_mut(records).get_mut(&key)
            {
                holders.retain(|node| !leaves(node));
            }
        }
    }

    fn check_record(&self, shard: ShardId, record: &ShardRecord) -> Result<(), Conflict> {
        let most = usize::from(MAX_REPLICATION);
        if record.isr.len() > most || record.filling.len() > most {
            return Err(bad(shard, "more replicas than there can be"));
        }
        if !is_ascending(&record.isr) || !is_ascending(&record.filling) {
            return Err(bad(shard, "replicas must be sorted and without repetition"));
        }
        if !record.isr.contains(&record.primary) {
            return Err(bad(shard, "the primary must be in the in-sync set"));
        }
        if record.filling.iter().any(|node| record.isr.contains(node)) {
            return Err(bad(shard, "a filling replica cannot be in the in-sync set"));
        }
        if record.moving_to == Some(record.primary) {
            return Err(bad(shard, "it cannot move to its own primary"));
        }
        match record.nodes().find(|node| !self.nodes.contains_key(node)) {
            Some(node) => Err(Conflict::UnknownNode { node }),
            None => Ok(()),
        }
    }

    pub(super) fn set_holders(&mut self, changes: &[HolderChange]) -> Result<Applied, Conflict> {
        if changes.len() > MAX_HOLDER_CHANGES {
            return Err(too_many("changes of holders", MAX_HOLDER_CHANGES));
        }
        let mut seen = BTreeSet::new();
        let mut count = self.holder_count();
        for change in changes {
            let actual = self.holders_of(change);
            if actual != change.expected.as_slice() {
                return Err(Conflict::HoldersChanged {
                    shard: change.key.shard,
                    term: change.key.term.0,
                    bucket: change.bucket.0,
                    actual: actual.to_vec(),
                });
            }
            if !seen.insert((change.bucket, change.key)) {
                return Err(bad(change.key.shard, "its holders are changed twice"));
            }
            if change.key.shard.0 >= self.shards {
                return Err(bad(change.key.shard, "there is no such shard"));
            }
            // A replica that has just left was in sync when this was proposed.
            let shard = self.shard(change.key.shard);
            let is_current = shard.filter(|shard| shard.term == change.key.term);
            let is_new = actual.is_empty();
            if is_new
                && is_current.is_some_and(|shard| {
                    !change.holders.iter().all(|node| shard.isr.contains(node))
                })
            {
                return Err(bad(
                    change.key.shard,
                    "who is not in sync holds nothing of the term",
                ));
            }
            if change.holders.len() > MAX_COPIES || !is_ascending(&change.holders) {
                return Err(bad(
                    change.key.shard,
                    "holders must be few, sorted and without repetition",
                ));
            }
            count += usize::from(actual.is_empty() && !change.holders.is_empty());
        }
        if count > MAX_HOLDERS {
            return Err(too_many("records of holders", MAX_HOLDERS));
        }
        for change in changes {
            self.put_holders(change);
        }
        Ok(Applied::Done)
    }

    fn holders_of(&self, change: &HolderChange) -> &[NodeId] {
        let bucket = self.holders.get(&change.bucket);
        bucket
            .and_then(|bucket| bucket.get(&change.key))
            .map_or(&[], Vec::as_slice)
    }

    fn put_holders(&mut self, change: &HolderChange) {
        let bucket = Arc::make_mut(self.holders.entry(change.bucket).or_default());
        if change.holders.is_empty() {
            bucket.remove(&change.key);
        } else {
            bucket.insert(change.key, change.holders.clone());
        }
        if bucket.is_empty() {
            self.holders.remove(&change.bucket);
        }
    }

    pub(super) fn forget_buckets(&mut self, before: Bucket) -> Applied {
        let kept = self.holders.split_off(&before);
        let forgotten = std::mem::replace(&mut self.holders, kept);
        if forgotten.is_empty() {
            Applied::Unchanged
        } else {
            Applied::Done
        }
    }
}

/// A new primary is a new term, and so is a new member of the in-sync set: the members of a term hold all that was
/// written in it. A new primary comes from those that hold every acknowledged span: the in-sync set, or the
/// target of the move.
fn check_succession(change: &ShardChange) -> Result<(), Conflict> {
    let (old, new) = (&change.expected, &change.record);
    if new.term == old.term {
        if new.primary != old.primary {
            return Err(bad(change.shard, "a new primary needs a new term"));
        }
        if new.isr.iter().any(|node| !old.isr.contains(node)) {
            let reason = "who joins the in-sync set does so in a new term";
            return Err(bad(change.shard, reason));
        }
        return Ok(());
    }
    if old.term.0.checked_add(1) != Some(new.term.0) {
        return Err(bad(change.shard, "the term grows by one"));
    }
    if old.isr.contains(&new.primary) || old.moving_to == Some(new.primary) {
        return Ok(());
    }
    Err(bad(
        change.shard,
        "a new primary must be in the in-sync set or the target of the move",
    ))
}

fn is_ascending(nodes: &[NodeId]) -> bool {
    nodes.windows(2).all(|pair| pair.first() < pair.last())
}

fn bad(shard: ShardId, reason: &str) -> Conflict {
    Conflict::BadShard {
        shard,
        reason: reason.to_owned(),
    }
}
