//! The attribute keys that somebody needs: those of the index allowlist and those that a policy reads.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// An immutable set of attribute keys with a number for each; the scanner reports only these.
///
/// The first [`Self::indexed`] keys are the index allowlist, in its order; the rest are read by policies alone.
#[derive(Debug, Clone, Default)]
pub struct Interests {
    keys: Vec<Arc<str>>,
    indexed: u16,
    numbers: HashMap<Arc<str>, u16, FixedState>,
}

impl Interests {
    /// The union of the index allowlist and the keys that policies read. Keys past 65,535 are left out (the
    /// settings' own cap is far below).
    pub fn new<'a>(
        allowlist: impl IntoIterator<Item = &'a str>,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut interests = Self::default();
        allowlist.into_iter().for_each(|key| interests.add(key));
        interests.indexed = u16::try_from(interests.keys.len()).unwrap_or(u16::MAX);
        policies.into_iter().for_each(|key| interests.add(key));
        interests
    }

    fn add(&mut self, key: &str) {
        let Ok(number) = u16::try_from(self.keys.len()) else {
            return;
        };
        if !self.numbers.contains_key(key) {
            let key: Arc<str> = Arc::from(key);
            self.keys.push(Arc::clone(&key));
            self.numbers.insert(key, number);
        }
    }

    /// The number of a key, if anybody needs it. Hot: one fast hash of the key.
    #[inline]
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u16> {
        self.numbers.get(key).copied()
    }

    /// The key of a number.
    #[must_use]
    pub fn key(&self, number: u16) -> Option<&Arc<str>> {
        self.keys.get(usize::from(number))
    }

    /// How many of the keys, from the front, belong to the index allowlist.
    #[must_use]
    pub fn indexed(&self) -> u16 {
        self.indexed
    }

    /// True for a key of the index allowlist.
    #[must_use]
    pub fn is_indexed(&self, key: &str) -> bool {
        self.number(key).is_some_and(|number| number < self.indexed)
    }

    /// All keys in the order of their numbers.
    #[must_use]
    pub fn keys(&self) -> &[Arc<str>] {
        &self.keys
    }
}
