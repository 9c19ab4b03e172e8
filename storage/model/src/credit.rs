//! Byte credit: nothing that a client sends is buffered before it was admitted here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A pool of bytes that requests, entries and queries draw from.
///
/// Invariants: `used` never exceeds `capacity`; each credit gives back exactly what it took.
#[derive(Debug)]
pub struct CreditPool {
    capacity: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

impl CreditPool {
    /// A pool of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        })
    }

    /// Takes `bytes` from the pool, or nothing when fewer are left.
    #[must_use]
    pub fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Credit> {
        let mut credit = Credit {
            pool: Arc::clone(self),
            bytes: 0,
        };
        credit.try_grow(bytes).then_some(credit)
    }

    /// Bytes of the pool.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes taken now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever taken at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

/// Bytes taken from a [`CreditPool`]; given back when dropped. Travels with what it pays for.
#[derive(Debug)]
pub struct Credit {
    pool: Arc<CreditPool>,
    bytes: u64,
}

impl Credit {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes, or changes nothing and returns false when they are not there.
    #[must_use]
    pub fn try_grow(&mut self, more: u64) -> bool {
        let taken = self
            .pool
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let wanted = used.checked_add(more)?;
                (wanted <= self.pool.capacity).then_some(wanted)
            });
        let Ok(before) = taken else {
            return false;
        };
        self.pool.peak.fetch_max(before + more, Ordering::Relaxed);
        self.bytes += more;
        true
    }

    /// Takes `bytes` out of this credit into a new one; all of it when it holds fewer.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            pool: Arc::clone(&self.pool),
            bytes,
        }
    }

    /// Adds another credit of the same pool to this one.
    pub fn join(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.pool, &other.pool));
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back all but `bytes`; does nothing when it holds fewer.
    pub fn shrink_to(&mut self, bytes: u64) {
        let excess = self.bytes.saturating_sub(bytes);
        self.pool.used.fetch_sub(excess, Ordering::Relaxed);
        self.bytes -= excess;
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_bounded_and_comes_back() {
        let pool = CreditPool::new(100);
        let mut first = pool.try_take(60).unwrap();
        assert!(pool.try_take(41).is_none());
        assert!(first.try_grow(40));
        assert!(!first.try_grow(1));
        first.shrink_to(10);
        assert_eq!(pool.used(), 10);
        let second = first.split(4);
        first.join(second.pool.try_take(5).unwrap());
        assert_eq!((first.bytes(), second.bytes(), pool.used()), (11, 4, 15));
        drop((first, second));
        assert_eq!((pool.used(), pool.peak()), (0, 100));
    }
}
