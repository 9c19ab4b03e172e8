//! Strings that many entries of a shard share, each stored once and counted.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::{FixedState, FoldHasher};
use hashbrown::HashTable;
use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::summary::{AttributeText, SpanClass};

/// Bytes that a symbol takes beside its text: slot, table and two reference-counted headers.
const SYMBOL_OVERHEAD_BYTES: u64 = 112;

/// A value that can be interned: hashed and compared by a borrowed form, so that a known one costs no allocation.
pub(crate) trait Symbol: Sized {
    /// The borrowed form.
    type Borrowed<'a>: Copy;
    fn hash(borrowed: Self::Borrowed<'_>, hasher: &mut FoldHasher<'_>);
    fn matches(&self, borrowed: Self::Borrowed<'_>) -> bool;
    fn own(borrowed: Self::Borrowed<'_>) -> Self;
    fn borrow(&self) -> Self::Borrowed<'_>;
    fn text_bytes(&self) -> usize;
}

/// The symbols of one kind within a shard.
///
/// Invariants: a slot without references is empty and on the free list; `bytes` is the sum over the slots in use.
#[derive(Debug)]
pub(crate) struct Symbols<S> {
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    table: HashTable<u32>,
    seed: FixedState,
    bytes: u64,
}

#[derive(Debug)]
struct Slot<S> {
    value: Option<S>,
    references: u32,
}

impl<S: Symbol> Symbols<S> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            seed: FixedState::with_seed(seed),
            bytes: 0,
        }
    }

    fn hash(seed: &FixedState, borrowed: S::Borrowed<'_>) -> u64 {
        let mut hasher = seed.build_hasher();
        S::hash(borrowed, &mut hasher);
        hasher.finish()
    }

    /// The number of a value that is known.
    pub(crate) fn find(&self, borrowed: S::Borrowed<'_>) -> Option<u32> {
        let found = self
            .table
            .find(Self::hash(&self.seed, borrowed), |&number| {
                self.slots[number as usize]
                    .value
                    .as_ref()
                    .is_some_and(|value| value.matches(borrowed))
            });
        found.copied()
    }

    /// The number of a value, without a reference to it: [`Self::retain`] follows for a new one.
    pub(crate) fn intern(&mut self, borrowed: S::Borrowed<'_>) -> u32 {
        if let Some(number) = self.find(borrowed) {
            return number;
        }
        let hash = Self::hash(&self.seed, borrowed);
        let value = S::own(borrowed);
        self.bytes += value.text_bytes() as u64 + SYMBOL_OVERHEAD_BYTES;
        let slot = Slot {
            value: Some(value),
            references: 0,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                // Four billion symbols do not fit any memory bound.
                #[allow(clippy::cast_possible_truncation)]
                let number = (self.slots.len() - 1) as u32;
                number
            }
        };
        let (slots, seed) = (&self.slots, &self.seed);
        self.table.insert_unique(hash, number, |&other| {
            slots[other as usize]
                .value
                .as_ref()
                .map_or(0, |value| Self::hash(seed, value.borrow()))
        });
        number
    }

    /// Counts one more reference.
    pub(crate) fn retain(&mut self, number: u32) {
        self.slots[number as usize].references += 1;
    }

    /// Counts one reference less and forgets the value with the last.
    pub(crate) fn release(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        debug_assert!(
            slot.references > 0,
            "a symbol is released once per reference"
        );
        slot.references -= 1;
        if slot.references > 0 {
            return;
        }
        if let Some(value) = slot.value.take() {
            let hash = Self::hash(&self.seed, value.borrow());
            if let Ok(entry) = self.table.find_entry(hash, |&other| other == number) {
                entry.remove();
            }
            self.bytes -= value.text_bytes() as u64 + SYMBOL_OVERHEAD_BYTES;
            self.free.push(number);
        }
    }

    /// The value of a number that is in use.
    pub(crate) fn get(&self, number: u32) -> Option<&S> {
        self.slots
            .get(number as usize)
            .and_then(|slot| slot.value.as_ref())
    }

    /// All values in use with their numbers, in the order of the numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &S)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(number, slot)| Some((number, slot.value.as_ref()?)))
    }

    /// One past the highest number.
    pub(crate) fn bound(&self) -> usize {
        self.slots.len()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Text that the scanner has checked; looked up as bytes, because checking it again costs more than finding it.
fn text(bytes: &[u8]) -> Arc<str> {
    Arc::from(String::from_utf8_lossy(bytes))
}

impl Symbol for SpanClass {
    type Borrowed<'a> = (&'a [u8], &'a [u8], SpanKind, StatusCode);

    fn hash((service, operation, kind, status): Self::Borrowed<'_>, hasher: &mut FoldHasher<'_>) {
        hasher.write(service);
        hasher.write(operation);
        hasher.write_u16(u16::from(kind as u8) << 8 | u16::from(status as u8));
    }

    fn matches(&self, (service, operation, kind, status): Self::Borrowed<'_>) -> bool {
        self.kind == kind
            && self.status == status
            && self.operation.as_bytes() == operation
            && self.service.as_bytes() == service
    }

    fn own((service, operation, kind, status): Self::Borrowed<'_>) -> Self {
        Self {
            service: text(service),
            operation: text(operation),
            kind,
            status,
        }
    }

    fn borrow(&self) -> Self::Borrowed<'_> {
        (
            self.service.as_bytes(),
            self.operation.as_bytes(),
            self.kind,
            self.status,
        )
    }

    fn text_bytes(&self) -> usize {
        self.service.len() + self.operation.len()
    }
}

impl Symbol for AttributeText {
    type Borrowed<'a> = (&'a Arc<str>, &'a [u8]);

    fn hash((key, value): Self::Borrowed<'_>, hasher: &mut FoldHasher<'_>) {
        hasher.write(key.as_bytes());
        hasher.write(value);
    }

    fn matches(&self, (key, value): Self::Borrowed<'_>) -> bool {
        self.value.as_bytes() == value && *self.key == **key
    }

    fn own((key, value): Self::Borrowed<'_>) -> Self {
        Self {
            key: Arc::clone(key),
            value: text(value),
        }
    }

    fn borrow(&self) -> Self::Borrowed<'_> {
        (&self.key, self.value.as_bytes())
    }

    fn text_bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_shared_counted_and_forgotten() {
        let mut classes = Symbols::<SpanClass>::new(7);
        let checkout = (
            &b"shop"[..],
            &b"POST /checkout"[..],
            SpanKind::Server,
            StatusCode::Ok,
        );
        let first = classes.intern(checkout);
        assert_eq!(classes.intern(checkout), first);
        let failed = classes.intern((
            b"shop",
            b"POST /checkout",
            SpanKind::Server,
            StatusCode::Error,
        ));
        assert_ne!(first, failed);
        classes.retain(first);
        classes.retain(first);
        classes.retain(failed);
        classes.release(first);
        assert!(classes.get(first).is_some());
        classes.release(first);
        assert!(classes.get(first).is_none());
        assert_eq!(classes.iter().count(), 1);
        classes.release(failed);
        assert_eq!(classes.bytes(), 0);
    }
}
