//! Attribute keys and the columns of a page that is being encoded.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

use super::field::{FIRST_ATTRIBUTE, Step, ValueKind};
use super::limits::{MAX_ATTRIBUTE_COLUMNS, MAX_COLUMN_KEY_BYTES};

const NONE: u16 = u16::MAX;

#[derive(Debug)]
struct Key {
    /// In the arena.
    offset: usize,
    len: usize,
    hash: u64,
    columns: [u16; ValueKind::COUNT],
    /// The row that had this key last, plus one.
    seen: u32,
    /// The key that followed last time: SDKs write the keys of one operation in one order.
    follower: u16,
}

/// Numbers keys and columns in the order of their appearance.
#[derive(Debug, Default)]
pub(super) struct Keys {
    table: HashTable<u16>,
    keys: Vec<Key>,
    /// Key number and type of each column.
    columns: Vec<(u16, ValueKind)>,
    previous: Option<u16>,
    first: Option<u16>,
}

impl Keys {
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.keys.clear();
        self.columns.clear();
        (self.previous, self.first) = (None, None);
    }

    /// A new span begins.
    pub(super) fn begin_row(&mut self) {
        self.previous = None;
    }

    /// Key and type of each column, in order.
    pub(super) fn columns<'a>(
        &'a self,
        arena: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], ValueKind)> {
        self.columns.iter().map(|&(key, kind)| {
            let key = self.keys.get(usize::from(key));
            let bytes = key.and_then(|key| arena.get(key.offset..key.offset + key.len));
            (bytes.unwrap_or_default(), kind)
        })
    }

    /// The step of the column for an attribute of `row`, whose key lies at `offset` of the arena; `None` when the
    /// span had the key already, or no column is left.
    #[inline]
    pub(super) fn step(
        &mut self,
        arena: &[u8],
        offset: usize,
        bytes: &[u8],
        kind: ValueKind,
        row: u32,
    ) -> Option<Step> {
        let number = self.number(arena, offset, bytes)?;
        self.remember_order(number);
        let key = self.keys.get_mut(usize::from(number))?;
        if key.seen == row + 1 {
            return None;
        }
        key.seen = row + 1;
        let column = key.columns.get_mut(kind as usize)?;
        if *column == NONE {
            if self.columns.len() >= MAX_ATTRIBUTE_COLUMNS {
                return None;
            }
            *column = u16::try_from(self.columns.len()).ok()?;
            self.columns.push((number, kind));
        }
        Some(FIRST_ATTRIBUTE + *column)
    }

    fn remember_order(&mut self, number: u16) {
        match self.previous {
            None => self.first = Some(number),
            Some(previous) => {
                if let Some(key) = self.keys.get_mut(usize::from(previous)) {
                    key.follower = number;
                }
            }
        }
        self.previous = Some(number);
    }

    #[inline]
    fn number(&mut self, arena: &[u8], offset: usize, bytes: &[u8]) -> Option<u16> {
        let is = |key: &Key| {
            key.len == bytes.len() && arena.get(key.offset..key.offset + key.len) == Some(bytes)
        };
        let guess = match self.previous {
            None => self.first,
            Some(previous) => self.keys.get(usize::from(previous)).map(|key| key.follower),
        };
        if let Some(guess) = guess
            && self.keys.get(usize::from(guess)).is_some_and(is)
        {
            return Some(guess);
        }
        if bytes.len() > MAX_COLUMN_KEY_BYTES {
            return None;
        }
        let hash = FixedState::default().hash_one(bytes);
        let keys = &self.keys;
        let found = self.table.find(hash, |&number| {
            keys.get(usize::from(number)).is_some_and(is)
        });
        if let Some(&number) = found {
            return Some(number);
        }
        if keys.len() >= MAX_ATTRIBUTE_COLUMNS {
            return None;
        }
        let number = u16::try_from(keys.len()).ok()?;
        self.table.insert_unique(hash, number, |&number| {
            keys.get(usize::from(number)).map_or(0, |key| key.hash)
        });
        self.keys.push(Key {
            offset,
            len: bytes.len(),
            hash,
            columns: [NONE; ValueKind::COUNT],
            seen: 0,
            follower: NONE,
        });
        Some(number)
    }
}
