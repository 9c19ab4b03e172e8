//! Decoded frames, bounded by their bytes; the least recently used ones go first.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::frame::Frame;
use super::record::FrameId;

/// Invariants: `uses` and `frames` hold the same frames; `bytes` is the sum of theirs and at most `capacity_bytes`.
#[derive(Debug)]
pub(crate) struct FrameCache {
    capacity_bytes: usize,
    bytes: usize,
    clock: u64,
    frames: BTreeMap<FrameId, (Arc<Frame>, u64)>,
    uses: BTreeMap<u64, FrameId>,
}

impl FrameCache {
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        Self {
            capacity_bytes,
            bytes: 0,
            clock: 0,
            frames: BTreeMap::new(),
            uses: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, id: FrameId) -> Option<Arc<Frame>> {
        let (frame, used) = self.frames.get_mut(&id)?;
        self.clock += 1;
        self.uses.remove(used);
        self.uses.insert(self.clock, id);
        *used = self.clock;
        Some(Arc::clone(frame))
    }

    /// Keeps a frame, unless it alone is larger than the cache.
    pub(crate) fn insert(&mut self, id: FrameId, frame: &Arc<Frame>) {
        let bytes = frame.memory_bytes();
        if bytes > self.capacity_bytes || self.frames.contains_key(&id) {
            return;
        }
        while self.bytes + bytes > self.capacity_bytes {
            let Some((_, oldest)) = self.uses.pop_first() else {
                break;
            };
            self.forget(oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.frames.insert(id, (Arc::clone(frame), self.clock));
        self.uses.insert(self.clock, id);
    }

    /// Drops every frame before `id`.
    pub(crate) fn drop_before(&mut self, id: FrameId) {
        while let Some(oldest) = self
            .frames
            .keys()
            .next()
            .copied()
            .filter(|first| *first < id)
        {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, id: FrameId) {
        if let Some((frame, used)) = self.frames.remove(&id) {
            self.bytes -= frame.memory_bytes();
            self.uses.remove(&used);
        }
    }
}
