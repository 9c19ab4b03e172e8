//! How many values each attribute key has: an estimate in bounded memory, for whoever looks for the key that explodes.

use std::collections::BTreeMap;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use super::limits::{CARDINALITY_KEYS, CARDINALITY_REGISTERS};

/// A HyperLogLog sketch (Flajolet, Fusy, Gandouet and Meunier, 2007) of 256 registers: its standard error is
/// 1.04 / sqrt(256), 6.5 %.
#[derive(Debug, Clone)]
struct Sketch([u8; CARDINALITY_REGISTERS]);

impl Sketch {
    fn add(&mut self, hash: u64) {
        let register = (hash >> 56) as usize;
        // The bits after those that choose the register; the mark ends a run of zeros.
        let rank = ((hash << 8) | 0x80).leading_zeros() + 1;
        if let (Some(most), Ok(rank)) = (self.0.get_mut(register), u8::try_from(rank)) {
            *most = rank.max(*most);
        }
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    // an estimate below 2^60, for people
    fn estimate(&self) -> u64 {
        let registers = CARDINALITY_REGISTERS as f64;
        let sum: f64 = self.0.iter().map(|rank| (-f64::from(*rank)).exp2()).sum();
        let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let empty = self.0.iter().filter(|rank| **rank == 0).count() as f64;
        let estimate = match raw <= 2.5 * registers && empty > 0.0 {
            true => registers * (registers / empty).ln(),
            false => raw,
        };
        estimate.round() as u64
    }
}

/// Sketches of the values of the attribute keys that came first, 256 of them.
#[derive(Debug, Default)]
pub struct Cardinality {
    keys: BTreeMap<Box<[u8]>, Sketch>,
    /// Keys that found no place.
    left_out: u64,
}

impl Cardinality {
    /// Notes values of a key by their hashes.
    pub(super) fn add(&mut self, key: &[u8], hashes: impl Iterator<Item = u64>) {
        if !self.keys.contains_key(key) {
            if self.keys.len() >= CARDINALITY_KEYS {
                self.left_out += 1;
                return;
            }
            let sketch = Sketch([0; CARDINALITY_REGISTERS]);
            self.keys.insert(key.into(), sketch);
        }
        if let Some(sketch) = self.keys.get_mut(key) {
            hashes.for_each(|hash| sketch.add(hash));
        }
    }

    /// The `count` keys with the most values, and about how many each has. Keys that are no text are left out.
    #[must_use]
    pub fn top(&self, count: usize) -> Vec<(&str, u64)> {
        let keys = self.keys.iter().filter_map(|(key, sketch)| {
            let key = std::str::from_utf8(key).ok()?;
            Some((key, sketch.estimate()))
        });
        let mut keys: Vec<(&str, u64)> = keys.collect();
        keys.sort_by_key(|(key, values)| (std::cmp::Reverse(*values), *key));
        keys.truncate(count);
        keys
    }

    /// How often a key found no place: more than 0 says that there are more keys than are watched.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.left_out = 0;
    }
}

/// The hash of a value, as the columns' dictionaries have it.
pub(super) fn value_hash(value: &[u8]) -> u64 {
    FixedState::default().hash_one(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(values: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        values.map(|value| value_hash(&value.to_be_bytes()))
    }

    #[test]
    fn the_key_with_the_most_values_comes_first_and_counts_are_near() {
        let mut cardinality = Cardinality::default();
        for (key, values) in [("few", 3), ("session.id", 100_000), ("some", 900)] {
            cardinality.add(key.as_bytes(), hashes(0..values));
            cardinality.add(key.as_bytes(), hashes(0..values / 2));
        }
        let top = cardinality.top(2);
        assert_eq!([top[0].0, top[1].0], ["session.id", "some"]);
        assert!((80_000..120_000).contains(&top[0].1), "{top:?}");
        assert!((720..1_080).contains(&top[1].1), "{top:?}");
        assert_eq!(cardinality.top(3)[2], ("few", 3));
    }

    #[test]
    fn memory_is_bounded_by_the_number_of_keys() {
        let mut cardinality = Cardinality::default();
        for number in 0..1_000u64 {
            cardinality.add(format!("key-{number}").as_bytes(), hashes(0..1));
        }
        assert_eq!(cardinality.top(usize::MAX).len(), CARDINALITY_KEYS);
        assert_eq!(cardinality.left_out(), 1_000 - CARDINALITY_KEYS as u64);
        cardinality.clear();
        assert_eq!(cardinality.top(1), []);
    }
}
