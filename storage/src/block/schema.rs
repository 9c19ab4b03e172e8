//! The tables of a block file, their keys and their rows. docs/formats/block.md.

use redb::TableDefinition;
use spandrel_model::ids::{Lsn, ShardId, TraceId, UnixNanos};
use xxhash_rust::xxh3::xxh3_64;

use crate::page::ContextHash;
use crate::page::wire::{Wire, put_varint};

/// One row: [`Meta`].
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Name of a tenant to its number in this block.
pub(super) const TENANTS: TableDefinition<'_, &str, u16> = TableDefinition::new("tenants");
/// (tenant, page, chunk) to the chunk's bytes.
pub(super) const CHUNKS: TableDefinition<'_, (u16, u64, u32), &[u8]> =
    TableDefinition::new("chunks");
/// (tenant, page) to (spans, bytes, earliest start, latest start).
pub(super) const PAGES: TableDefinition<'_, (u16, u64), (u32, u32, u64, u64)> =
    TableDefinition::new("pages");
/// Tenant and hash to a resource and scope.
pub(super) const RESOURCES: TableDefinition<'_, &[u8; 18], &[u8]> =
    TableDefinition::new("resources");
/// Tenant, shard, trace and fragment to [`Located`].
pub(super) const LOCATOR: TableDefinition<'_, &[u8; 28], &[u8]> = TableDefinition::new("locator");
/// First sequence of a batch to its summaries.
pub(super) const SUMMARIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("summaries");
/// Number of a row to its piece of the filter; filled at seal.
pub(super) const FILTER: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("filter");

/// The key of the one row of [`META`].
pub(super) const META_KEY: &str = "block";

const VERSION: u8 = 1;
const META_BYTES: usize = 1 + 1 + 8 * 8;

/// What a block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) block_id: u64,
    pub(super) last_sequence: u64,
    pub(super) last_page: u64,
    pub(super) spans: u64,
    /// `u64::MAX` while there are no spans.
    pub(super) min_start: u64,
    pub(super) max_start: u64,
    /// Rows of the stored filter; 0 when there is none.
    pub(super) filter_rows: u64,
    pub(super) sealed: bool,
}

impl Meta {
    pub(super) fn new(block_id: u64) -> Self {
        Self {
            block_id,
            last_sequence: 0,
            last_page: 0,
            spans: 0,
            min_start: u64::MAX,
            max_start: 0,
            filter_rows: 0,
            sealed: false,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(META_BYTES);
        out.push(VERSION);
        out.push(u8::from(self.sealed));
        for number in [
            self.block_id,
            self.last_sequence,
            self.last_page,
            self.spans,
            self.min_start,
            self.max_start,
            self.filter_rows,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, checksum) = bytes.split_last_chunk::<8>()?;
        if bytes.len() != META_BYTES || xxh3_64(covered) != u64::from_le_bytes(*checksum) {
            return None;
        }
        let mut wire = Wire::new(covered);
        if wire.byte()? != VERSION {
            return None;
        }
        let sealed = wire.byte()? != 0;
        Some(Self {
            sealed,
            block_id: wire.u64()?,
            last_sequence: wire.u64()?,
            last_page: wire.u64()?,
            spans: wire.u64()?,
            min_start: wire.u64()?,
            max_start: wire.u64()?,
            filter_rows: wire.u64()?,
        })
    }

    pub(super) fn cover(&mut self, min_start: UnixNanos, max_start: UnixNanos) {
        self.min_start = self.min_start.min(min_start.0);
        self.max_start = self.max_start.max(max_start.0);
    }
}

/// Where a fragment lies, and the sequence of its summary (0 when it has none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) page: u64,
    pub(super) first_row: u32,
    pub(super) rows: u32,
    pub(super) sequence: u64,
}

impl Located {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        put_varint(&mut out, self.page);
        put_varint(&mut out, u64::from(self.first_row));
        put_varint(&mut out, u64::from(self.rows));
        put_varint(&mut out, self.sequence);
        // One byte of checksum, since redb verifies its pages only when it repairs.
        out.push(check_byte(&out));
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&check, covered) = bytes.split_last()?;
        if check != check_byte(covered) {
            return None;
        }
        let mut wire = Wire::new(covered);
        let located = Self {
            page: wire.minimal_varint()?,
            first_row: u32::try_from(wire.minimal_varint()?).ok()?,
            rows: u32::try_from(wire.minimal_varint()?).ok()?,
            sequence: wire.minimal_varint()?,
        };
        wire.is_empty().then_some(located)
    }
}

fn check_byte(bytes: &[u8]) -> u8 {
    xxh3_64(bytes).to_le_bytes()[0]
}

/// Key of a fragment in [`LOCATOR`].
pub(super) fn locator_key(tenant: u16, shard: ShardId, trace: TraceId, fragment: Lsn) -> [u8; 28] {
    let mut key = [0; 28];
    key[..2].copy_from_slice(&tenant.to_be_bytes());
    key[2..4].copy_from_slice(&shard.0.to_be_bytes());
    key[4..20].copy_from_slice(&trace.0);
    key[20..].copy_from_slice(&fragment.0.to_be_bytes());
    key
}

/// Tenant, shard, trace and fragment of a key in [`LOCATOR`].
pub(super) fn split_locator_key(key: &[u8; 28]) -> Option<(u16, ShardId, TraceId, Lsn)> {
    let mut wire = Wire::new(key);
    Some((
        u16::from_be_bytes(wire.array()?),
        ShardId(u16::from_be_bytes(wire.array()?)),
        TraceId(wire.array()?),
        Lsn(u64::from_be_bytes(wire.array()?)),
    ))
}

/// Key of a resource and scope in [`RESOURCES`].
pub(super) fn resource_key(tenant: u16, hash: ContextHash) -> [u8; 18] {
    let mut key = [0; 18];
    key[..2].copy_from_slice(&tenant.to_be_bytes());
    key[2..].copy_from_slice(&hash.0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_round_trip(page in any::<u64>(), first_row in any::<u32>(), rows in any::<u32>(), sequence in any::<u64>()) {
            let located = Located { page, first_row, rows, sequence };
            prop_assert_eq!(Located::decode(&located.encode()), Some(located));
            let meta = Meta {
                last_page: page,
                last_sequence: sequence,
                sealed: rows % 2 == 0,
                ..Meta::new(page ^ sequence)
            };
            prop_assert_eq!(Meta::decode(&meta.encode()), Some(meta));
            let mut changed = meta.encode();
            let at = first_row as usize % changed.len();
            changed[at] ^= 1;
            prop_assert_eq!(Meta::decode(&changed), None);
        }
    }
}
