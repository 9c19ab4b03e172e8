//! The segments that are held open, and which blobs were verified.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::segment::OpenSegment;

/// Open segments by number, the least recently used leaving first.
///
/// Invariants: `used` and `open` name each other; at most `capacity` are open.
pub(super) struct OpenSegments {
    capacity: usize,
    clock: u64,
    open: BTreeMap<u64, (u64, Arc<OpenSegment>)>,
    used: BTreeMap<u64, u64>,
    /// Blobs whose checksum was found right since the process started: reopening one does not read it all again.
    verified: BTreeSet<u64>,
}

impl OpenSegments {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            clock: 0,
            open: BTreeMap::new(),
            used: BTreeMap::new(),
            verified: BTreeSet::new(),
        }
    }

    pub(super) fn get(&mut self, number: u64) -> Option<Arc<OpenSegment>> {
        self.clock += 1;
        let (tick, segment) = self.open.get_mut(&number)?;
        self.used.remove(tick);
        *tick = self.clock;
        self.used.insert(self.clock, number);
        Some(Arc::clone(segment))
    }

    pub(super) fn is_verified(&self, number: u64) -> bool {
        self.verified.contains(&number)
    }

    /// Holds a segment whose checksum was right.
    pub(super) fn insert(&mut self, number: u64, segment: Arc<OpenSegment>) {
        self.close(number);
        while self.open.len() >= self.capacity {
            let Some((_, oldest)) = self.used.pop_first() else {
                break;
            };
            self.open.remove(&oldest);
        }
        self.clock += 1;
        self.used.insert(self.clock, number);
        self.open.insert(number, (self.clock, segment));
        self.verified.insert(number);
    }

    /// Forgets a segment that is gone.
    pub(super) fn forget(&mut self, number: u64) {
        self.close(number);
        self.verified.remove(&number);
    }

    fn close(&mut self, number: u64) {
        if let Some((tick, _)) = self.open.remove(&number) {
            self.used.remove(&tick);
        }
    }
}
