//! The inventories that a node has counted, and the buckets that others wait for.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spandrel_model::ids::Bucket;
use spandrel_storage::block::{BlockInfo, Inventory};

use crate::limits::MAX_INVENTORIES;

/// Which state of a block was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    block_id: u64,
    last_sequence: u64,
    spans: u64,
    sealed: bool,
}

impl Version {
    pub(super) fn of(block: &BlockInfo) -> Self {
        Self {
            block_id: block.block_id,
            last_sequence: block.last_sequence,
            spans: block.spans,
            sealed: block.sealed,
        }
    }
}

/// Shared by who counts and who answers for it.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The newest last.
    counted: VecDeque<Counted>,
    wanted: BTreeSet<Bucket>,
}

#[derive(Debug)]
struct Counted {
    bucket: Bucket,
    version: Version,
    /// Or why there is none.
    inventory: Result<Arc<Inventory>, String>,
}

impl Ledger {
    /// What was counted last of a block, or why it could not be; `None` when it was not counted. Spans may have come since:
    /// whoever asks looks again where something differs.
    pub(super) fn inventory(
        &self,
        bucket: Bucket,
        block_id: u64,
    ) -> Option<Result<Arc<Inventory>, String>> {
        let state = self.state();
        let mut counted = state.counted.iter();
        let known = counted
            .find(|counted| (counted.bucket, counted.version.block_id) == (bucket, block_id));
        known.map(|counted| counted.inventory.clone())
    }

    /// What was counted of a block that has not changed since.
    pub(super) fn newest(&self, bucket: Bucket, version: Version) -> Option<Arc<Inventory>> {
        let state = self.state();
        let mut counted = state.counted.iter();
        let known = counted.find(|counted| (counted.bucket, counted.version) == (bucket, version));
        known?.inventory.clone().ok()
    }

    /// Keeps an inventory, or why there is none, and forgets the oldest ones.
    pub(super) fn put(
        &self,
        bucket: Bucket,
        version: Version,
        inventory: Result<Arc<Inventory>, String>,
    ) {
        let mut state = self.state();
        state.wanted.remove(&bucket);
        state.counted.retain(|counted| counted.bucket != bucket);
        while state.counted.len() >= MAX_INVENTORIES {
            state.counted.pop_front();
        }
        state.counted.push_back(Counted {
            bucket,
            version,
            inventory,
        });
    }

    /// Somebody waits for the inventory of a bucket that this node has.
    pub(super) fn want(&self, bucket: Bucket) {
        self.state().wanted.insert(bucket);
    }

    /// A bucket that somebody waits for, the newest first.
    pub(super) fn next_wanted(&self) -> Option<Bucket> {
        self.state().wanted.pop_last()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_known_until_others_push_it_out() {
        let ledger = Ledger::default();
        let version = |block_id, spans| Version {
            block_id,
            last_sequence: 1,
            spans,
            sealed: true,
        };
        ledger.want(Bucket(1));
        ledger.want(Bucket(2));
        ledger.put(Bucket(2), version(1, 5), Ok(Arc::default()));
        assert_eq!(ledger.next_wanted(), Some(Bucket(1)));
        assert_eq!(ledger.next_wanted(), None);
        assert!(ledger.newest(Bucket(2), version(1, 5)).is_some());
        assert!(ledger.newest(Bucket(2), version(1, 6)).is_none());
        assert!(matches!(ledger.inventory(Bucket(2), 1), Some(Ok(_))));
        assert!(ledger.inventory(Bucket(2), 2).is_none(), "another file");
        ledger.put(Bucket(3), version(1, 5), Err("rot".to_owned()));
        assert!(matches!(ledger.inventory(Bucket(3), 1), Some(Err(_))));
        for bucket in (10u32..).take(MAX_INVENTORIES) {
            ledger.put(Bucket(bucket), version(1, 1), Ok(Arc::default()));
        }
        assert!(ledger.inventory(Bucket(2), 1).is_none());
    }
}
