//! Where the columns of a page lie: prefix, head and compressed groups. docs/formats/page.md.

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use zstd::bulk::Compressor;

use super::error::{PageError, corrupt};
use super::field::{FIRST_ATTRIBUTE, Step, ValueKind};
use super::limits::{
    GROUP_TARGET_BYTES, MAX_ATTRIBUTE_COLUMNS, MAX_COLUMN_KEY_BYTES, MAX_GROUP_RAW_BYTES,
    MAX_HEAD_RAW_BYTES, MAX_PAGE_SPANS,
};
use super::wire::{Wire, put_bytes, put_varint};

/// Bytes of the prefix: magic, version, lengths and checksum of the head.
pub(super) const PREFIX_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"SPPG";
const VERSION: u32 = 1;
/// Part of the prefix that its checksum covers.
const PREFIX_COVERED: usize = 16;

const STORED: u8 = 0;
const ZSTD: u8 = 1;

/// zstd's level: 1 costs 0.5 us per span less than 3 and 1 byte per span more (measured).
const LEVEL: i32 = 1;

/// Counts of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) spans: u32,
    pub(super) fragments: u32,
    pub(super) min_start: u64,
    pub(super) max_start: u64,
}

/// A group of columns that is compressed on its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// From the page's first byte.
    pub(super) offset: usize,
    pub(super) stored_len: usize,
    raw_len: usize,
    method: u8,
    checksum: u64,
}

impl Group {
    /// The raw bytes of the group.
    pub(super) fn open(&self, stored: &[u8]) -> Result<Bytes, PageError> {
        if xxh3_64(stored) != self.checksum {
            return Err(corrupt("checksum of a column group"));
        }
        unpack(self.method, stored, self.raw_len)
            .ok_or_else(|| corrupt("compression of a column group"))
    }
}

fn unpack(method: u8, stored: &[u8], raw_len: usize) -> Option<Bytes> {
    match method {
        STORED => (stored.len() == raw_len).then(|| Bytes::copy_from_slice(stored)),
        ZSTD => {
            let raw = crate::compression::decompress(stored, raw_len).ok()?;
            (raw.len() == raw_len).then(|| Bytes::from(raw))
        }
        _ => None,
    }
}

/// Key and type of an attribute column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AttributeColumn {
    pub(super) key: Box<[u8]>,
    pub(super) kind: ValueKind,
}

/// Where a column lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) group: usize,
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// The directory of a page.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub(super) counts: Counts,
    pub(super) groups: Vec<Group>,
    fixed: [Option<Place>; FIRST_ATTRIBUTE as usize],
    pub(super) attributes: Vec<AttributeColumn>,
    attribute_places: Vec<Place>,
}

impl Head {
    /// Where the column of a step lies; `None` when the page has no such column.
    pub(super) fn place(&self, step: Step) -> Option<Place> {
        match step.checked_sub(FIRST_ATTRIBUTE) {
            Some(index) => self.attribute_places.get(usize::from(index)).copied(),
            None => self.fixed.get(usize::from(step)).copied().flatten(),
        }
    }

    /// Bytes of memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        let columns = self.attributes.iter();
        let columns =
            columns.map(|column| size_of::<(AttributeColumn, Place)>() + column.key.len());
        size_of::<Self>() + self.groups.len() * size_of::<Group>() + columns.sum::<usize>()
    }

    /// Length of the prefix and the head, from the prefix alone.
    pub(super) fn stored_len(prefix: &[u8]) -> Result<usize, PageError> {
        let prefix = Prefix::read(prefix)?;
        Ok(PREFIX_BYTES + prefix.stored_len)
    }

    /// Reads prefix and head.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PageError> {
        let prefix = Prefix::read(bytes)?;
        let stored = bytes
            .get(PREFIX_BYTES..PREFIX_BYTES + prefix.stored_len)
            .ok_or_else(|| corrupt("length of the head"))?;
        let covered = bytes.get(..PREFIX_COVERED).unwrap_or_default();
        if head_checksum(covered, stored) != prefix.checksum {
            return Err(corrupt("checksum of the head"));
        }
        let raw = unpack(ZSTD, stored, prefix.raw_len).ok_or_else(|| corrupt("head"))?;
        Self::parse(&raw, PREFIX_BYTES + prefix.stored_len).ok_or_else(|| corrupt("head"))
    }

    fn parse(raw: &[u8], groups_at: usize) -> Option<Self> {
        let mut wire = Wire::new(raw);
        let mut head = Self {
            counts: Counts {
                spans: u32::try_from(wire.minimal_varint()?).ok()?,
                fragments: u32::try_from(wire.minimal_varint()?).ok()?,
                min_start: wire.u64()?,
                max_start: wire.u64()?,
            },
            ..Self::default()
        };
        if head.counts.spans > MAX_PAGE_SPANS || head.counts.fragments > head.counts.spans {
            return None;
        }
        let groups = wire.minimal_varint()?;
        let mut offset = groups_at;
        for _ in 0..groups {
            let group = Group {
                offset,
                method: wire.byte()?,
                stored_len: usize::try_from(wire.minimal_varint()?).ok()?,
                raw_len: usize::try_from(wire.minimal_varint()?).ok()?,
                checksum: wire.u64()?,
            };
            if group.raw_len > MAX_GROUP_RAW_BYTES {
                return None;
            }
            offset = offset.checked_add(group.stored_len)?;
            head.groups.push(group);
        }
        head.parse_columns(&mut wire)?;
        wire.is_empty().then_some(head)
    }

    fn parse_columns(&mut self, wire: &mut Wire<'_>) -> Option<()> {
        let columns = wire.minimal_varint()?;
        let (mut group, mut offset) = (0usize, 0usize);
        for _ in 0..columns {
            let step = wire.byte()?;
            if u16::from(step) == FIRST_ATTRIBUTE {
                let kind = ValueKind::from_number(wire.byte()?)?;
                let key = Box::from(wire.minimal_bytes()?);
                self.attributes.push(AttributeColumn { key, kind });
            }
            if wire.byte()? == 1 {
                (group, offset) = (group + 1, 0);
            }
            let len = usize::try_from(wire.minimal_varint()?).ok()?;
            let place = Place { group, offset, len };
            offset = offset.checked_add(len)?;
            if offset > self.groups.get(group)?.raw_len {
                return None;
            }
            if u16::from(step) == FIRST_ATTRIBUTE {
                self.attribute_places.push(place);
            } else {
                *self.fixed.get_mut(usize::from(step))? = Some(place);
            }
        }
        let legal = self.attributes.len() <= MAX_ATTRIBUTE_COLUMNS
            && self
                .attributes
                .iter()
                .all(|column| column.key.len() <= MAX_COLUMN_KEY_BYTES);
        legal.then_some(())
    }
}

struct Prefix {
    stored_len: usize,
    raw_len: usize,
    checksum: u64,
}

impl Prefix {
    fn read(bytes: &[u8]) -> Result<Self, PageError> {
        let mut wire = Wire::new(bytes);
        let magic = wire.array();
        let version = wire.array().map(u32::from_le_bytes);
        if magic != Some(MAGIC) {
            return Err(corrupt("magic number"));
        }
        if version != Some(VERSION) {
            return Err(corrupt("version"));
        }
        let stored_len = wire.array().map(u32::from_le_bytes);
        let raw_len = wire.array().map(u32::from_le_bytes);
        let (Some(stored_len), Some(raw_len), Some(checksum)) = (stored_len, raw_len, wire.u64())
        else {
            return Err(corrupt("prefix"));
        };
        let prefix = Self {
            stored_len: stored_len as usize,
            raw_len: raw_len as usize,
            checksum,
        };
        match prefix.raw_len.max(prefix.stored_len) {
            0..=MAX_HEAD_RAW_BYTES => Ok(prefix),
            _ => Err(corrupt("length of the head")),
        }
    }
}

fn head_checksum(covered: &[u8], stored: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(covered);
    hasher.update(stored);
    hasher.digest()
}

/// Writes columns into groups.
pub(super) struct GroupWriter {
    compressor: Option<Compressor<'static>>,
    current: Vec<u8>,
    stored: Vec<u8>,
    groups: Vec<u8>,
    group_count: u64,
    columns: Vec<u8>,
    column_count: u64,
    opens_group: bool,
}

impl Default for GroupWriter {
    fn default() -> Self {
        Self {
            // Without a context there is no compression: groups are then stored as they are.
            compressor: Compressor::new(LEVEL).ok(),
            current: Vec::new(),
            stored: Vec::new(),
            groups: Vec::new(),
            group_count: 0,
            columns: Vec::new(),
            column_count: 0,
            opens_group: false,
        }
    }
}

impl GroupWriter {
    /// Adds the fixed column of a step.
    pub(super) fn fixed(&mut self, step: Step, column: &[u8]) {
        self.begin_column(column.len());
        self.columns.push(u8::try_from(step).unwrap_or(u8::MAX));
        self.end_column(column);
    }

    /// Adds the next attribute column.
    pub(super) fn attribute(&mut self, key: &[u8], kind: ValueKind, column: &[u8]) {
        self.begin_column(column.len());
        self.columns
            .push(u8::try_from(FIRST_ATTRIBUTE).unwrap_or(u8::MAX));
        self.columns.push(kind as u8);
        put_bytes(&mut self.columns, key);
        self.end_column(column);
    }

    fn begin_column(&mut self, len: usize) {
        if !self.current.is_empty() && self.current.len() + len > GROUP_TARGET_BYTES {
            self.close_group();
        }
    }

    fn end_column(&mut self, column: &[u8]) {
        self.columns.push(u8::from(self.opens_group));
        self.opens_group = false;
        put_varint(&mut self.columns, column.len() as u64);
        self.column_count += 1;
        self.current.extend_from_slice(column);
    }

    fn close_group(&mut self) {
        let start = self.stored.len();
        let compressed = self
            .compressor
            .as_mut()
            .and_then(|compressor| compressor.compress(&self.current).ok())
            .filter(|compressed| compressed.len() < self.current.len());
        let method = match compressed {
            Some(compressed) => {
                self.stored.extend_from_slice(&compressed);
                ZSTD
            }
            None => {
                self.stored.extend_from_slice(&self.current);
                STORED
            }
        };
        let stored = self.stored.get(start..).unwrap_or_default();
        self.groups.push(method);
        put_varint(&mut self.groups, stored.len() as u64);
        put_varint(&mut self.groups, self.current.len() as u64);
        self.groups
            .extend_from_slice(&xxh3_64(stored).to_le_bytes());
        self.group_count += 1;
        self.current.clear();
        self.opens_group = true;
    }

    /// The page's bytes; the writer is empty afterwards.
    pub(super) fn finish(&mut self, counts: Counts) -> std::io::Result<Vec<u8>> {
        self.close_group();
        let mut head = Vec::with_capacity(self.groups.len() + self.columns.len() + 64);
        put_varint(&mut head, u64::from(counts.spans));
        put_varint(&mut head, u64::from(counts.fragments));
        head.extend_from_slice(&counts.min_start.to_le_bytes());
        head.extend_from_slice(&counts.max_start.to_le_bytes());
        put_varint(&mut head, self.group_count);
        head.extend_from_slice(&self.groups);
        put_varint(&mut head, self.column_count);
        head.extend_from_slice(&self.columns);
        let compressed = zstd::bulk::compress(&head, LEVEL)?;
        let mut page = Vec::with_capacity(PREFIX_BYTES + compressed.len() + self.stored.len());
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&VERSION.to_le_bytes());
        for len in [compressed.len(), head.len()] {
            let len = u32::try_from(len).map_err(std::io::Error::other)?;
            page.extend_from_slice(&len.to_le_bytes());
        }
        let checksum = head_checksum(&page, &compressed);
        page.extend_from_slice(&checksum.to_le_bytes());
        page.extend_from_slice(&compressed);
        page.extend_from_slice(&self.stored);
        self.clear();
        Ok(page)
    }

    fn clear(&mut self) {
        self.current.clear();
        self.stored.clear();
        self.groups.clear();
        self.columns.clear();
        (self.group_count, self.column_count, self.opens_group) = (0, 0, false);
    }
}
