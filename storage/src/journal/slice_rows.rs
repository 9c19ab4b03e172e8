//! The rows of a slice file besides the frames' own bytes.

use std::collections::BTreeMap;

use redb::TableDefinition;
use spandrel_model::ids::{Lsn, ShardId, UnixNanos};

use super::record::LsnRange;
use super::wire::{Reader, put_varint};

/// `(sequence, chunk)` to a piece of a frame.
pub(crate) const FRAMES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("frames");
/// Sequence to [`FrameRow`].
pub(crate) const DIRECTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("directory");
/// Name to one of the slice's own rows.
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// First stored hash of a chunk to the chunk.
pub(crate) const VERDICTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("verdicts");
/// `(shard, first lsn)` of a chunk to the chunk.
pub(crate) const LOCATIONS: TableDefinition<'_, (u16, u64), &[u8]> =
    TableDefinition::new("locations");
/// Number of a piece to a piece of the filter.
pub(crate) const FILTER: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("filter");

/// Key in [`META`] of [`Created`].
pub(crate) const CREATED: &str = "created";
/// Key in [`META`] of the highest numbers of each shard before the slice's first frame.
pub(crate) const CARRIED: &str = "carried";
/// Key in [`META`] of [`Sealed`].
pub(crate) const SEALED: &str = "sealed";

/// Written when the file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) at: UnixNanos,
    /// Of the hashes of trace keys.
    pub(crate) hash_seed: u64,
}

impl Created {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.at.0.to_le_bytes(), self.hash_seed.to_le_bytes()].concat()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        Some(Self {
            at: UnixNanos(u64::from_le_bytes(reader.array()?)),
            hash_seed: u64::from_le_bytes(reader.array()?),
        })
    }
}

/// What a commit notes of a frame: enough to find its records and to know what is lost with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameRow {
    pub(crate) committed_at: UnixNanos,
    pub(crate) kinds: u8,
    pub(crate) bytes: u64,
    pub(crate) ranges: Vec<LsnRange>,
}

impl FrameRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.committed_at.0.to_le_bytes().to_vec();
        out.push(self.kinds);
        put_varint(&mut out, self.bytes);
        put_ranges(&mut out, self.ranges.iter());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        Some(Self {
            committed_at: UnixNanos(u64::from_le_bytes(reader.array()?)),
            kinds: reader.byte()?,
            bytes: reader.varint()?,
            ranges: read_ranges(&mut reader)?,
        })
    }
}

/// The sums of a slice that will not change any more: it opens without reading its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) first_sequence: u64,
    pub(crate) frames: u32,
    pub(crate) bytes: u64,
    pub(crate) first_commit: UnixNanos,
    pub(crate) last_commit: UnixNanos,
    pub(crate) ranges: BTreeMap<ShardId, LsnRange>,
}

impl Sealed {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.first_sequence);
        put_varint(&mut out, u64::from(self.frames));
        put_varint(&mut out, self.bytes);
        put_varint(&mut out, self.first_commit.0);
        put_varint(&mut out, self.last_commit.0);
        put_ranges(&mut out, self.ranges.values());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        Some(Self {
            first_sequence: reader.varint()?,
            frames: reader.varint_u32()?,
            bytes: reader.varint()?,
            first_commit: UnixNanos(reader.varint()?),
            last_commit: UnixNanos(reader.varint()?),
            ranges: read_ranges(&mut reader)?
                .into_iter()
                .map(|range| (range.shard, range))
                .collect(),
        })
    }
}

/// The row under [`CARRIED`].
pub(crate) fn encode_carried(carried: &BTreeMap<ShardId, Lsn>) -> Vec<u8> {
    let ranges: Vec<_> = carried
        .iter()
        .map(|(shard, last)| LsnRange {
            shard: *shard,
            first: *last,
            last: *last,
        })
        .collect();
    let mut out = Vec::new();
    put_ranges(&mut out, ranges.iter());
    out
}

/// Reads what [`encode_carried`] wrote.
pub(crate) fn decode_carried(bytes: &[u8]) -> Option<BTreeMap<ShardId, Lsn>> {
    let ranges = read_ranges(&mut Reader::new(bytes))?;
    Some(ranges.into_iter().map(|r| (r.shard, r.last)).collect())
}

fn put_ranges<'a>(out: &mut Vec<u8>, ranges: impl ExactSizeIterator<Item = &'a LsnRange>) {
    put_varint(out, ranges.len() as u64);
    for range in ranges {
        put_varint(out, u64::from(range.shard.0));
        put_varint(out, range.first.0);
        put_varint(out, range.last.0.saturating_sub(range.first.0));
    }
}

fn read_ranges(reader: &mut Reader<'_>) -> Option<Vec<LsnRange>> {
    let count = reader.count(3)?;
    (0..count)
        .map(|_| {
            let shard = ShardId(u16::try_from(reader.varint()?).ok()?);
            let first = reader.varint()?;
            let last = first.checked_add(reader.varint()?)?;
            Some(LsnRange {
                shard,
                first: Lsn(first),
                last: Lsn(last),
            })
        })
        .collect()
}
