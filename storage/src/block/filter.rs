//! A blocked Bloom filter of the traces of a block: an unknown trace is told from memory, or from one row.

use spandrel_model::ids::{TenantId, TraceId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::limits::{FILTER_BITS_PER_TRACE, FILTER_ROW_BYTES, FIRST_FILTER_LAYER_TRACES};

const BLOCK_BYTES: usize = 64;
const BLOCK_BITS: usize = 512;
/// Bits set per trace, all in one block: seven numbers of nine bits come from one hash.
const BITS: u32 = 7;
const LAYER_GROWTH: usize = 4;

/// The part of a trace's hash that its tenant gives.
pub(super) fn tenant_seed(tenant: &TenantId) -> u64 {
    xxh3_64(tenant.as_str().as_bytes())
}

/// The hash of a trace.
pub(super) fn trace_hash(tenant_seed: u64, trace: TraceId) -> u64 {
    xxh3_64_with_seed(&trace.0, tenant_seed)
}

/// The block of a hash, among `blocks`.
fn block_of(hash: u64, blocks: usize) -> usize {
    // The product of two numbers below 2^32 and 2^32, shifted: below `blocks`.
    let product = u128::from(hash) * blocks as u128;
    usize::try_from(product >> 64).unwrap_or(0)
}

fn bits_of(hash: u64) -> impl Iterator<Item = (usize, u8)> {
    let bits = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (hash << 32);
    (0..BITS).map(move |number| {
        // Nine bits.
        let bit = usize::try_from((bits >> (number * 9)) & 0x1ff).unwrap_or(0);
        (bit / 8, 1u8 << (bit % 8))
    })
}

fn block_holds(block: &[u8], hash: u64) -> bool {
    bits_of(hash).all(|(byte, bit)| block.get(byte).is_some_and(|set| set & bit != 0))
}

/// A filter of a size fixed at its creation.
#[derive(Debug, Clone)]
struct Layer {
    bytes: Vec<u8>,
    capacity: usize,
    traces: usize,
}

impl Layer {
    fn new(capacity: usize) -> Self {
        let blocks = (capacity * FILTER_BITS_PER_TRACE)
            .div_ceil(BLOCK_BITS)
            .max(1);
        Self {
            bytes: vec![0; blocks * BLOCK_BYTES],
            capacity,
            traces: 0,
        }
    }

    fn range(&self, hash: u64) -> std::ops::Range<usize> {
        let start = block_of(hash, self.bytes.len() / BLOCK_BYTES) * BLOCK_BYTES;
        start..start + BLOCK_BYTES
    }

    fn holds(&self, hash: u64) -> bool {
        let block = self.bytes.get(self.range(hash));
        block.is_some_and(|block| block_holds(block, hash))
    }

    fn add(&mut self, hash: u64) {
        let range = self.range(hash);
        let block = self.bytes.get_mut(range).unwrap_or_default();
        for (byte, bit) in bits_of(hash) {
            if let Some(set) = block.get_mut(byte) {
                *set |= bit;
            }
        }
        self.traces += 1;
    }
}

/// A filter in memory. It grows by layers, each four times as large as the one before.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    layers: Vec<Layer>,
}

impl Filter {
    /// An empty filter for about `traces` traces.
    pub(super) fn new(traces: usize) -> Self {
        Self {
            layers: vec![Layer::new(traces.max(1))],
        }
    }

    /// An empty filter for a block that has just been created.
    pub(super) fn growing() -> Self {
        Self::new(FIRST_FILTER_LAYER_TRACES)
    }

    /// A filter that says no to nothing, of a block whose traces cannot all be listed.
    pub(super) fn of_everything() -> Self {
        Self {
            layers: vec![Layer {
                bytes: vec![u8::MAX; BLOCK_BYTES],
                capacity: usize::MAX,
                traces: 0,
            }],
        }
    }

    /// False when the trace was certainly never added.
    pub(super) fn holds(&self, hash: u64) -> bool {
        self.layers.iter().any(|layer| layer.holds(hash))
    }

    /// Adds a trace.
    pub(super) fn add(&mut self, hash: u64) {
        if self.holds(hash) {
            return;
        }
        if let Some(last) = self.layers.last()
            && last.traces >= last.capacity
        {
            let capacity = last.capacity.saturating_mul(LAYER_GROWTH);
            self.layers.push(Layer::new(capacity));
        }
        if let Some(last) = self.layers.last_mut() {
            last.add(hash);
        }
    }

    /// Its size in memory.
    pub(super) fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes.len()).sum()
    }

    /// The rows of a filter of one layer, as they are stored.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let layer = self.layers.first();
        layer
            .into_iter()
            .flat_map(|layer| layer.bytes.chunks(FILTER_ROW_BYTES))
    }

    /// A filter from its stored rows, concatenated; `None` when they are no filter.
    pub(super) fn from_rows(bytes: Vec<u8>) -> Option<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        // Sealed filters are full: what is added later goes to a layer of its own.
        let traces = bytes.len() * 8 / FILTER_BITS_PER_TRACE;
        Some(Self {
            layers: vec![Layer {
                bytes,
                capacity: traces,
                traces,
            }],
        })
    }
}

/// A row as it is stored: with a checksum of it, its block and its place, since a bit that is lost hides traces.
pub(super) fn close_row(block_id: u64, number: u32, row: &[u8]) -> Vec<u8> {
    let mut stored = row.to_vec();
    stored.extend_from_slice(&row_checksum(block_id, number, row));
    stored
}

/// A stored row; `None` when it is not what was written.
pub(super) fn open_row(block_id: u64, number: u32, stored: &[u8]) -> Option<&[u8]> {
    let (row, checksum) = stored.split_last_chunk::<8>()?;
    (*checksum == row_checksum(block_id, number, row)).then_some(row)
}

fn row_checksum(block_id: u64, number: u32, row: &[u8]) -> [u8; 8] {
    xxh3_64_with_seed(row, block_id.rotate_left(32) ^ u64::from(number)).to_le_bytes()
}

/// Which row of a stored filter of `blocks` blocks answers for a hash, and where in the row.
pub(super) fn stored_place(hash: u64, blocks: usize) -> (u32, usize) {
    const ROW_BLOCKS: usize = FILTER_ROW_BYTES / BLOCK_BYTES;
    let block = block_of(hash, blocks);
    let row = u32::try_from(block / ROW_BLOCKS).unwrap_or(u32::MAX);
    (row, block % ROW_BLOCKS * BLOCK_BYTES)
}

/// The answer of a stored row.
pub(super) fn stored_holds(row: &[u8], offset: usize, hash: u64) -> bool {
    let block = row.get(offset..offset + BLOCK_BYTES);
    // There is such a block in every row that was written.
    block.is_none_or(|block| block_holds(block, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        range.map(|number| trace_hash(7, TraceId(u128::from(number).to_be_bytes())))
    }

    #[test]
    fn a_growing_filter_knows_its_traces_and_few_others() {
        let mut filter = Filter::growing();
        hashes(0..50_000).for_each(|hash| filter.add(hash));
        assert!(hashes(0..50_000).all(|hash| filter.holds(hash)));
        let false_answers = hashes(1_000_000..1_100_000).filter(|&hash| filter.holds(hash));
        assert!(false_answers.count() < 6_000);
    }

    #[test]
    fn stored_rows_answer_as_the_filter_does() {
        let mut filter = Filter::new(20_000);
        hashes(0..20_000).for_each(|hash| filter.add(hash));
        let rows: Vec<&[u8]> = filter.rows().collect();
        let blocks = filter.bytes() / BLOCK_BYTES;
        let mut found = 0;
        for hash in hashes(0..40_000) {
            let (row, offset) = stored_place(hash, blocks);
            let stored = stored_holds(rows[row as usize], offset, hash);
            assert_eq!(stored, filter.holds(hash));
            found += usize::from(stored);
        }
        assert!((20_000..20_800).contains(&found), "{found}");
        let read = Filter::from_rows(rows.concat()).unwrap();
        assert!(hashes(0..20_000).all(|hash| read.holds(hash)));
    }
}
