//! What was decoded and may be asked for again, bounded by its bytes; the least recently used goes first.

use std::collections::BTreeMap;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    used: u64,
}

/// Invariants: `uses` and `entries` hold the same keys; `bytes` is the sum of theirs and at most `capacity_bytes`.
#[derive(Debug)]
pub(crate) struct ByteCache<K, V> {
    capacity_bytes: usize,
    bytes: usize,
    clock: u64,
    entries: BTreeMap<K, Entry<V>>,
    uses: BTreeMap<u64, K>,
}

impl<K: Ord + Copy, V: Clone> ByteCache<K, V> {
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        Self {
            capacity_bytes,
            bytes: 0,
            clock: 0,
            entries: BTreeMap::new(),
            uses: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        let entry = self.entries.get_mut(&key)?;
        self.clock += 1;
        self.uses.remove(&entry.used);
        self.uses.insert(self.clock, key);
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// The entry with the highest key that is not above `key`.
    pub(crate) fn get_at_or_before(&mut self, key: K) -> Option<(K, V)> {
        let (&found, _) = self.entries.range(..=key).next_back()?;
        self.get(found).map(|value| (found, value))
    }

    /// Keeps a value, unless it alone is larger than the cache or there is one already.
    pub(crate) fn insert(&mut self, key: K, value: V, bytes: usize) {
        if bytes > self.capacity_bytes || self.entries.contains_key(&key) {
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
        let used = self.clock;
        self.entries.insert(key, Entry { value, bytes, used });
        self.uses.insert(used, key);
    }

    /// Drops what `keep` does not name.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let gone: Vec<K> = self
            .entries
            .keys()
            .filter(|key| !keep(key))
            .copied()
            .collect();
        gone.into_iter().for_each(|key| self.forget(key));
    }

    fn forget(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= entry.bytes;
            self.uses.remove(&entry.used);
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let mut cache = ByteCache::new(100);
        for key in 0..5u64 {
            cache.insert(key, key * 10, 25);
            assert!(cache.bytes() <= 100);
            assert_eq!(cache.get(0), Some(0), "used, so it stays");
        }
        assert_eq!((cache.get(1), cache.get(4)), (None, Some(40)));
        assert_eq!(cache.get_at_or_before(1), Some((0, 0)));
        cache.insert(9, 90, 101);
        assert_eq!(cache.get(9), None, "larger than the cache");
        cache.retain(|key| *key < 3);
        assert_eq!((cache.get(4), cache.get(2)), (None, Some(20)));
        assert_eq!(cache.bytes(), 50);
    }
}
