//! The adaptive share of healthy traces: all of them up to a rate, above it just so many that the rate is met.

use crate::ids::UnixNanos;
use crate::verdict::CERTAIN;

/// Estimates the rate of traces and derives the probability of keeping the next one. The probability depends on what
/// came before alone, never on the trace itself, so weighting by its inverse is unbiased.
///
/// The estimate is the larger of a moving average over whole seconds and the count of the running second. The first
/// answers steady traffic, the second a burst: of a hundredfold burst out of silence the first second keeps about
/// `limit * (1 + ln 100)`, 5.6 times the limit, and the following ones settle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Throughput {
    /// In thousandths of a trace per second.
    limit: u64,
    /// Moving average of the rate, in thousandths of a trace per second.
    average: u64,
    /// Traces of the running second.
    seen: u64,
    /// The running second since the epoch.
    second: Option<u64>,
}

/// The share of the last second in the moving average is one of this many: it follows within about 7 seconds.
const AVERAGE_DIVISOR: u64 = 4;
/// After this many idle seconds the average is 0 for any rate (0.75^150 is below 2^-62).
const MAX_IDLE_SECONDS: u64 = 150;

impl Throughput {
    /// No traffic seen; the limit in traces per second.
    pub(super) fn new(per_second: u64) -> Self {
        Self {
            limit: per_second.saturating_mul(1_000),
            average: 0,
            seen: 0,
            second: None,
        }
    }

    /// The probability of keeping the next trace, in 2^-32.
    pub(super) fn probability(&self) -> u64 {
        let rate = self.average.max(self.seen.saturating_mul(1_000));
        if rate <= self.limit {
            return CERTAIN;
        }
        let probability = u128::from(self.limit) * u128::from(CERTAIN) / u128::from(rate);
        u64::try_from(probability).unwrap_or(CERTAIN)
    }

    /// Closes the seconds before `now`; an earlier `now` than before changes nothing.
    pub(super) fn advance(&mut self, now: UnixNanos) {
        let second = now.0 / UnixNanos::PER_SECOND;
        let running = *self.second.get_or_insert(second);
        let passed = second.saturating_sub(running);
        if passed == 0 {
            return;
        }
        self.second = Some(second);
        self.close_second();
        if passed > MAX_IDLE_SECONDS {
            self.average = 0;
            return;
        }
        for _ in 1..passed {
            self.close_second();
        }
    }

    /// One more trace was asked about.
    pub(super) fn count(&mut self) {
        self.seen = self.seen.saturating_add(1);
    }

    fn close_second(&mut self) {
        let last = self.seen.saturating_mul(1_000);
        let rest = self.average - self.average / AVERAGE_DIVISOR;
        self.average = rest.saturating_add(last / AVERAGE_DIVISOR);
        self.seen = 0;
    }
}
