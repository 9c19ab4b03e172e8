//! A column of byte strings: a dictionary with an index per value where values repeat, else the values themselves.
//!
//! Every field that is not a time or an id is such a column: texts as their bytes, integers as their varints. The
//! number of values is known from the shapes of the rows.

use hashbrown::HashTable;

use super::cardinality::value_hash;
use super::limits::DICTIONARY_TRIAL_VALUES;
use super::wire::{Wire, put_varint};

/// How the values lie in the column. The numbers are on disk: never reuse one.
const PLAIN: u8 = 0;
const INDEX_1: u8 = 1;
const INDEX_2: u8 = 2;
const CONSTANT: u8 = 3;
const INDEX_4: u8 = 4;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u32,
    len: u32,
    hash: u64,
}

impl Entry {
    fn of(self, arena: &[u8]) -> &[u8] {
        let start = self.offset as usize;
        arena
            .get(start..start + self.len as usize)
            .unwrap_or_default()
    }
}

/// Collects the values of a column; they stay in the arena of the page's spans until they are written.
#[derive(Debug, Default)]
pub(super) struct ValuesBuilder {
    table: HashTable<u32>,
    entries: Vec<Entry>,
    indexes: Vec<u32>,
    last: Option<u32>,
    without_repetition: bool,
}

impl ValuesBuilder {
    /// Forgets the values and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.entries.clear();
        self.indexes.clear();
        self.last = None;
        self.without_repetition = false;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.indexes.is_empty()
    }

    /// Adds the value at `offset` of the arena.
    #[inline]
    pub(super) fn push(&mut self, arena: &[u8], offset: u32, len: u32) {
        let mut entry = Entry {
            offset,
            len,
            hash: 0,
        };
        let value = entry.of(arena);
        if let Some(last) = self.last
            && self
                .entries
                .get(last as usize)
                .is_some_and(|entry| entry.len == len && entry.of(arena) == value)
        {
            self.indexes.push(last);
            return;
        }
        let next = u32::try_from(self.entries.len()).unwrap_or(NONE);
        if self.without_repetition {
            self.entries.push(entry);
            self.indexes.push(next);
            return;
        }
        entry.hash = value_hash(value);
        let entries = &self.entries;
        let found = self.table.find(entry.hash, |&index| {
            entries
                .get(index as usize)
                .is_some_and(|known| known.len == len && known.of(arena) == value)
        });
        let index = match found {
            Some(&index) => index,
            None => {
                self.table.insert_unique(entry.hash, next, |&index| {
                    entries.get(index as usize).map_or(0, |known| known.hash)
                });
                self.entries.push(entry);
                self.give_up_without_repetition();
                next
            }
        };
        self.last = Some(index);
        self.indexes.push(index);
    }

    fn give_up_without_repetition(&mut self) {
        let (distinct, all) = (self.entries.len(), self.indexes.len());
        if all >= DICTIONARY_TRIAL_VALUES && distinct * 8 > all * 7 {
            self.without_repetition = true;
        }
    }

    /// The hashes of its values, each distinct one at least once.
    pub(super) fn hashes<'a>(&'a self, arena: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        self.entries.iter().map(|entry| match entry.hash {
            0 => value_hash(entry.of(arena)),
            hash => hash,
        })
    }

    /// Appends the column. docs/formats/page.md, "values column".
    pub(super) fn write(&self, arena: &[u8], out: &mut Vec<u8>) {
        let (distinct, all) = (self.entries.len(), self.indexes.len());
        if distinct == 1 {
            out.push(CONSTANT);
            self.write_entries(arena, std::iter::once(0), 1, out);
        } else if self.without_repetition || distinct * 2 > all {
            out.push(PLAIN);
            self.write_entries(arena, self.indexes.iter().copied(), all, out);
        } else {
            let mode = index_mode(distinct);
            out.push(mode);
            let order = 0..u32::try_from(distinct).unwrap_or(NONE);
            self.write_entries(arena, order, distinct, out);
            write_indexes(mode, &self.indexes, out);
        }
    }

    fn write_entries(
        &self,
        arena: &[u8],
        order: impl Iterator<Item = u32> + Clone,
        count: usize,
        out: &mut Vec<u8>,
    ) {
        put_varint(out, count as u64);
        let entries = order.filter_map(|index| self.entries.get(index as usize));
        for entry in entries.clone() {
            put_varint(out, u64::from(entry.len));
        }
        for entry in entries {
            out.extend_from_slice(entry.of(arena));
        }
    }
}

/// The narrowest width that holds indexes below `distinct`.
pub(super) fn index_mode(distinct: usize) -> u8 {
    match distinct {
        0..=0x100 => INDEX_1,
        0x101..=0x1_0000 => INDEX_2,
        _ => INDEX_4,
    }
}

/// Appends indexes in bytes planes: all low bytes, then all next bytes, which compress apart.
pub(super) fn write_indexes(mode: u8, indexes: &[u32], out: &mut Vec<u8>) {
    for plane in 0..usize::from(mode) {
        out.extend(
            indexes
                .iter()
                .map(|index| index.to_le_bytes().get(plane).copied().unwrap_or(0)),
        );
    }
}

/// Reads `count` indexes, each of which must be below `distinct`.
pub(super) fn read_indexes(
    mode: u8,
    bytes: &[u8],
    count: usize,
    distinct: usize,
) -> Option<Vec<u32>> {
    if !matches!(mode, INDEX_1 | INDEX_2 | INDEX_4) {
        return None;
    }
    let width = usize::from(mode);
    if bytes.len() != count.checked_mul(width)? {
        return None;
    }
    if count == 0 {
        return Some(Vec::new());
    }
    let mut planes = bytes.chunks_exact(count);
    let mut indexes: Vec<u32> = planes.next()?.iter().map(|&byte| u32::from(byte)).collect();
    for (plane, bytes) in planes.enumerate() {
        let shift = 8 * (plane + 1);
        for (index, &byte) in indexes.iter_mut().zip(bytes) {
            *index |= u32::from(byte) << shift;
        }
    }
    let highest = indexes.iter().copied().max().unwrap_or(0);
    ((highest as usize) < distinct).then_some(indexes)
}

/// A column that was read.
#[derive(Debug)]
pub(super) struct Values {
    bytes: bytes::Bytes,
    /// Offsets of the entries in `bytes`, one more than there are.
    bounds: Vec<u32>,
    indexes: Indexes,
}

#[derive(Debug)]
enum Indexes {
    /// Value `n` is entry `n`.
    Plain,
    /// Every value is entry 0.
    Constant,
    /// Value `n` is entry `indexes[n]`.
    Dictionary(Vec<u32>),
}

impl Values {
    /// Reads a column of `count` values; `None` when the bytes are malformed.
    pub(super) fn read(column: &bytes::Bytes, count: usize) -> Option<Self> {
        let mut wire = Wire::new(column);
        let mode = wire.byte()?;
        let entries = usize::try_from(wire.minimal_varint()?).ok()?;
        if entries > column.len() {
            return None;
        }
        let mut bounds = Vec::with_capacity(entries + 1);
        let mut end = 0u32;
        bounds.push(end);
        for _ in 0..entries {
            let len = u32::try_from(wire.minimal_varint()?).ok()?;
            end = end.checked_add(len)?;
            bounds.push(end);
        }
        let start = wire.position();
        wire.take(end as usize)?;
        let bytes = column.slice(start..wire.position());
        let indexes = match mode {
            PLAIN if entries == count => Indexes::Plain,
            CONSTANT if entries == 1 => Indexes::Constant,
            PLAIN | CONSTANT => return None,
            _ => Indexes::Dictionary(read_indexes(mode, wire.rest(), count, entries)?),
        };
        Some(Self {
            bytes,
            bounds,
            indexes,
        })
    }

    /// Number of entries, of the dictionary or of the plain values.
    pub(super) fn entries(&self) -> usize {
        self.bounds.len() - 1
    }

    /// An entry.
    pub(super) fn entry(&self, index: usize) -> Option<&[u8]> {
        let start = *self.bounds.get(index)?;
        let end = *self.bounds.get(index + 1)?;
        self.bytes.get(start as usize..end as usize)
    }

    /// The value with number `n`.
    pub(super) fn value(&self, n: usize) -> Option<&[u8]> {
        let index = match &self.indexes {
            Indexes::Plain => n,
            Indexes::Constant => 0,
            Indexes::Dictionary(indexes) => *indexes.get(n)? as usize,
        };
        self.entry(index)
    }

    /// Which of the values satisfy `condition`, which is asked once for each entry; `None` when none does.
    pub(super) fn satisfying(&self, condition: &dyn Fn(&[u8]) -> bool) -> Option<Satisfying<'_>> {
        let entries: Vec<bool> = (0..self.entries())
            .map(|index| self.entry(index).is_some_and(condition))
            .collect();
        entries.contains(&true).then_some(Satisfying {
            entries,
            indexes: &self.indexes,
        })
    }
}

/// Whether an entry of a column satisfies, without its indexes and so without the number of its values; `None` when
/// the bytes are malformed.
pub(super) fn any_entry(column: &[u8], condition: &dyn Fn(&[u8]) -> bool) -> Option<bool> {
    let mut wire = Wire::new(column);
    wire.byte()?;
    let entries = usize::try_from(wire.minimal_varint()?).ok()?;
    if entries > column.len() {
        return None;
    }
    let mut lengths = wire;
    for _ in 0..entries {
        wire.minimal_varint()?;
    }
    for _ in 0..entries {
        let len = usize::try_from(lengths.minimal_varint()?).ok()?;
        if condition(wire.take(len)?) {
            return Some(true);
        }
    }
    Some(false)
}

/// The answer of [`Values::satisfying`].
pub(super) struct Satisfying<'a> {
    entries: Vec<bool>,
    indexes: &'a Indexes,
}

impl Satisfying<'_> {
    /// Sets each of `rows` (one for each value, in order) whose value satisfies.
    pub(super) fn mark<'r>(&self, rows: impl Iterator<Item = &'r mut bool>) {
        let holds = |index: u32| self.entries.get(index as usize).copied().unwrap_or(false);
        match self.indexes {
            Indexes::Plain => rows
                .zip(&self.entries)
                .for_each(|(row, &entry)| *row |= entry),
            Indexes::Constant => rows.for_each(|row| *row = true),
            Indexes::Dictionary(indexes) => rows
                .zip(indexes)
                .for_each(|(row, &index)| *row |= holds(index)),
        }
    }
}
