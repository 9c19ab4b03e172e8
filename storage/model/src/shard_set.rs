//! A set of shards.

use crate::ids::ShardId;

/// Shards in a word.
const WORD_BITS: u16 = 64;

/// A set of shards: a bit each, at most 8 KiB.
///
/// Invariant: the last word is not 0, so that equal sets are equal values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ShardSet {
    words: Vec<u64>,
}

impl ShardSet {
    /// The shards of a cluster with so many.
    #[must_use]
    pub fn all(shards: u16) -> Self {
        (0..shards).map(ShardId).collect()
    }

    /// Adds a shard.
    pub fn insert(&mut self, shard: ShardId) {
        let (word, bit) = place(shard);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    /// Whether a shard is in it.
    #[must_use]
    pub fn contains(&self, shard: ShardId) -> bool {
        let (word, bit) = place(shard);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// True when no shard is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Shards in it.
    #[must_use]
    pub fn len(&self) -> usize {
        // At most 2^16 bits.
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// The shards, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ShardId> {
        (0u16..).zip(&self.words).flat_map(|(number, word)| {
            let bits = (0..WORD_BITS).filter(move |bit| word & (1 << bit) != 0);
            bits.map(move |bit| ShardId(number.saturating_mul(WORD_BITS).saturating_add(bit)))
        })
    }

    /// Adds the shards of another set.
    pub fn extend(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, added) in self.words.iter_mut().zip(&other.words) {
            *word |= added;
        }
    }

    /// The shards that are not in another set.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let left = self.iter().filter(|shard| !other.contains(*shard));
        left.collect()
    }
}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        let mut set = Self::default();
        shards.into_iter().for_each(|shard| set.insert(shard));
        set
    }
}

fn place(shard: ShardId) -> (usize, u64) {
    let word = usize::from(shard.0 / WORD_BITS);
    (word, 1 << (shard.0 % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(shards: &BTreeSet<u16>) -> ShardSet {
        shards.iter().map(|shard| ShardId(*shard)).collect()
    }

    proptest! {
        /// It behaves as the ordered set of the standard library does.
        #[test]
        fn it_is_a_set(
            one in proptest::collection::btree_set(any::<u16>(), 0..40),
            other in proptest::collection::btree_set(0u16..200, 0..40),
        ) {
            let (left, right) = (set(&one), set(&other));
            prop_assert_eq!(left.iter().map(|shard| shard.0).collect::<BTreeSet<_>>(), one.clone());
            prop_assert_eq!(left.len(), one.len());
            prop_assert_eq!(left.is_empty(), one.is_empty());
            prop_assert!(one.iter().all(|shard| left.contains(ShardId(*shard))));
            let difference = one.difference(&other).copied().collect();
            prop_assert_eq!(left.without(&right), set(&difference));
            let mut union = left.clone();
            union.extend(&right);
            prop_assert_eq!(union, set(&one.union(&other).copied().collect()));
        }
    }

    #[test]
    fn all_shards_of_a_cluster() {
        let all = ShardSet::all(65);
        assert_eq!(all.len(), 65);
        assert!(all.contains(ShardId(64)) && !all.contains(ShardId(65)));
    }
}
