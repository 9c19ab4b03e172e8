//! Records that do not count: a primary left them behind when its term ended, and the next one never knew of them.

use std::collections::BTreeMap;

use spandrel_model::ids::{Lsn, ShardId};

use super::record::LsnRange;

/// Ranges of records that do not count, by shard and first number.
#[derive(Debug, Default)]
pub(crate) struct Voids {
    ranges: BTreeMap<(ShardId, Lsn), Lsn>,
}

impl Voids {
    pub(crate) fn add(&mut self, range: LsnRange) {
        let last = self.ranges.entry((range.shard, range.first)).or_default();
        *last = range.last.max(*last);
    }

    pub(crate) fn contains(&self, shard: ShardId, lsn: Lsn) -> bool {
        self.start(shard, lsn).is_some()
    }

    /// The first record of a range that holds this one.
    pub(crate) fn start(&self, shard: ShardId, lsn: Lsn) -> Option<Lsn> {
        let mut before = self.ranges.range((shard, Lsn(0))..=(shard, lsn));
        let holds = before.find(|(_, last)| lsn <= **last);
        holds.map(|((_, first), _)| *first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_void_within_a_range_of_its_own_shard_only() {
        let range = |first, last| LsnRange {
            shard: ShardId(1),
            first: Lsn(first),
            last: Lsn(last),
        };
        let mut voids = Voids::default();
        voids.add(range(5, 9));
        voids.add(range(7, 8));
        voids.add(range(20, 20));

        let void = (0..25).filter(|lsn| voids.contains(ShardId(1), Lsn(*lsn)));
        assert_eq!(void.collect::<Vec<_>>(), [5, 6, 7, 8, 9, 20]);
        assert!(!voids.contains(ShardId(0), Lsn(6)) && !voids.contains(ShardId(2), Lsn(6)));
    }
}
