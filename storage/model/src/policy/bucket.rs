//! A token bucket in fixed point.

use crate::ids::UnixNanos;

/// Tokens refill evenly; at most `capacity` wait.
///
/// Invariants: `thousandths` is at most `capacity`; `remainder` is below [`NANOS_PER_THOUSANDTH`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    per_second: u64,
    /// In thousandths of a token.
    capacity: u64,
    thousandths: u64,
    /// What did not yet make up a thousandth, in tokens per second times nanoseconds.
    remainder: u64,
    advanced_to: Option<UnixNanos>,
}

/// One token per second gives a thousandth in this many nanoseconds.
const NANOS_PER_THOUSANDTH: u64 = 1_000_000;

impl Bucket {
    /// A full bucket: tokens per second, and tokens at most.
    pub(super) fn new(per_second: u64, capacity: u64) -> Self {
        let capacity = capacity.saturating_mul(1_000);
        Self {
            per_second,
            capacity,
            thousandths: capacity,
            remainder: 0,
            advanced_to: None,
        }
    }

    /// What waits, in thousandths of a token.
    pub(super) fn thousandths(&self) -> u64 {
        self.thousandths
    }

    /// Refills up to `now`; an earlier `now` than before changes nothing.
    pub(super) fn advance(&mut self, now: UnixNanos) {
        let elapsed = now.since(self.advanced_to.unwrap_or(now));
        if self.advanced_to.is_some_and(|before| now <= before) {
            return;
        }
        self.advanced_to = Some(now);
        let gained = u128::from(elapsed) * u128::from(self.per_second) + u128::from(self.remainder);
        let whole = u64::try_from(gained / u128::from(NANOS_PER_THOUSANDTH)).unwrap_or(u64::MAX);
        // Below the divisor, so it fits.
        self.remainder = u64::try_from(gained % u128::from(NANOS_PER_THOUSANDTH)).unwrap_or(0);
        self.thousandths = self.thousandths.saturating_add(whole).min(self.capacity);
    }

    /// Takes thousandths of a token, all that is left when it is less.
    pub(super) fn take(&mut self, thousandths: u64) {
        self.thousandths = self.thousandths.saturating_sub(thousandths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refills_evenly_without_losing_fractions() {
        // given: 3 tokens a second, emptied
        let mut bucket = Bucket::new(3, 100);
        bucket.advance(UnixNanos(0));
        bucket.take(100_000);
        // when: a second passes in steps that are no multiple of anything
        for step in 1..=1_000_000u64 / 7 {
            bucket.advance(UnixNanos(step * 7_000));
        }
        bucket.advance(UnixNanos(UnixNanos::PER_SECOND));
        // then
        assert_eq!(bucket.thousandths(), 3_000);
    }

    #[test]
    fn time_that_goes_backwards_stands_still() {
        let mut bucket = Bucket::new(1_000, 1_000);
        bucket.advance(UnixNanos(UnixNanos::PER_SECOND));
        bucket.take(1_000_000);
        bucket.advance(UnixNanos(0));
        bucket.advance(UnixNanos(UnixNanos::PER_SECOND));
        assert_eq!(bucket.thousandths(), 0);
        bucket.advance(UnixNanos(2 * UnixNanos::PER_SECOND));
        assert_eq!(bucket.thousandths(), 1_000_000);
        bucket.advance(UnixNanos(u64::MAX));
        assert_eq!(bucket.thousandths(), 1_000_000, "never over its capacity");
    }
}
