//! Latencies in a histogram of constant size.

/// Buckets of a power of two: a value is known to within 1/32 of itself.
const STEPS: u64 = 32;
/// Powers of two above the first `STEPS` values.
const POWERS: usize = 60;

/// Counts of nanosecond values. Invariant: `count` is the sum of the buckets.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            buckets: vec![0; 32 * POWERS],
            count: 0,
            max: 0,
        }
    }

    pub(super) fn record(&mut self, nanos: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(nanos)) {
            *bucket += 1;
            self.count += 1;
            self.max = self.max.max(nanos);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The upper edge of the bucket of the value at `thousandths` of the count; 0 when there are none.
    pub(super) fn quantile(&self, thousandths: u64) -> u64 {
        let rank = (self.count * thousandths).div_ceil(1_000).max(1);
        let mut seen = 0;
        for (number, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return upper_edge(number as u64).min(self.max);
            }
        }
        self.max
    }
}

fn bucket_of(value: u64) -> usize {
    if value < STEPS {
        return usize::try_from(value).unwrap_or(0);
    }
    let power = u64::from(value.ilog2()) - 5;
    usize::try_from((power + 1) * STEPS + (value >> power) - STEPS).unwrap_or(usize::MAX)
}

fn upper_edge(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let power = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_thirty_second_part() {
        let mut histogram = Histogram::new();
        for value in 1..=100_000_u64 {
            histogram.record(value * 1_000);
        }
        for (thousandths, exact) in [(500, 50_000_000), (990, 99_000_000), (1_000, 100_000_000)] {
            let found = histogram.quantile(thousandths);
            assert!(
                found >= exact && found <= exact + exact / 32,
                "{found} {exact}"
            );
        }
        assert_eq!(histogram.max(), 100_000_000);
        assert_eq!(Histogram::new().quantile(500), 0);
        histogram.record(u64::MAX);
        assert_eq!(histogram.max(), u64::MAX);
    }
}
