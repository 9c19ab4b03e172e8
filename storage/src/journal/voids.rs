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

    /// Takes the records of a range out. Returns the ranges that were changed, by their first numbers, and what is left
    /// of them; both are empty when none of the records was void.
    pub(crate) fn remove(&mut self, range: &LsnRange) -> (Vec<Lsn>, Vec<LsnRange>) {
        let shard = range.shard;
        let before = self.ranges.range((shard, Lsn(0))..=(shard, range.last));
        let met: Vec<(Lsn, Lsn)> = before
            .filter(|(_, last)| range.first <= **last)
            .map(|((_, first), last)| (*first, *last))
            .collect();
        let mut left = Vec::new();
        for (first, last) in &met {
            self.ranges.remove(&(shard, *first));
            if *first < range.first {
                let last = Lsn(range.first.0.saturating_sub(1));
                left.push(LsnRange {
                    last,
                    first: *first,
                    shard,
                });
            }
            if range.last < *last {
                let first = range.last.next();
                left.push(LsnRange {
                    first,
                    last: *last,
                    shard,
                });
            }
        }
        left.iter().for_each(|range| self.add(*range));
        (met.into_iter().map(|(first, _)| first).collect(), left)
    }

    /// Whether any record of a range is void.
    pub(crate) fn meets(&self, range: &LsnRange) -> bool {
        let mut before = self
            .ranges
            .range((range.shard, Lsn(0))..=(range.shard, range.last));
        before.any(|(_, last)| range.first <= *last)
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

    #[test]
    fn what_is_taken_out_counts_again_and_nothing_else() {
        let range = |first, last| LsnRange {
            shard: ShardId(1),
            first: Lsn(first),
            last: Lsn(last),
        };
        for (first, last) in (1..25).flat_map(|first| (first..25).map(move |last| (first, last))) {
            let mut voids = Voids::default();
            for one in [range(5, 9), range(7, 12), range(20, 20)] {
                voids.add(one);
            }
            let was_void = |lsn: u64| (5..=12).contains(&lsn) || lsn == 20;
            assert_eq!(
                voids.meets(&range(first, last)),
                (first..=last).any(was_void)
            );
            let (gone, left) = voids.remove(&range(first, last));
            assert_eq!(gone.is_empty(), !(first..=last).any(was_void), "{left:?}");
            for lsn in 0..25 {
                let expected = was_void(lsn) && !(first..=last).contains(&lsn);
                assert_eq!(
                    voids.contains(ShardId(1), Lsn(lsn)),
                    expected,
                    "{first} {last} {lsn}"
                );
            }
        }
    }
}
