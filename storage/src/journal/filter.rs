//! A blocked Bloom filter: whether a trace may have a verdict in a slice, at the price of one cache line.

use spandrel_model::ids::{ShardId, TenantId, TraceId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bits for each verdict. With [`PROBES`] of them in one block of 512 about 1 unknown trace in 500 is let through.
const BITS_PER_KEY: u64 = 15;
/// Bits of a block that a key sets.
const PROBES: u32 = 7;
/// Words of a block.
const BLOCK_WORDS: usize = 8;
/// Bytes of a block: a cache line.
const BLOCK_BYTES: usize = BLOCK_WORDS * 8;

/// Hash of a trace's key. The seed is a secret of the cluster, so that no client can make traces that collide.
#[inline]
pub(crate) fn trace_hash(seed: u64, shard: ShardId, tenant: &TenantId, trace: TraceId) -> u64 {
    // A tenant's name has 64 bytes at most; the length is implied by that of the whole.
    let mut key = [0; 2 + 16 + 64];
    let tenant = tenant.as_str().as_bytes();
    let len = 18 + tenant.len();
    let (head, rest) = key.split_at_mut(18);
    head[..2].copy_from_slice(&shard.0.to_le_bytes());
    head[2..].copy_from_slice(&trace.0);
    match rest.get_mut(..tenant.len()) {
        Some(place) => place.copy_from_slice(tenant),
        None => return xxh3_64_with_seed(tenant, seed ^ u64::from(shard.0)),
    }
    xxh3_64_with_seed(key.get(..len).unwrap_or(&key), seed)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(align(64))]
struct Block([u64; BLOCK_WORDS]);

/// The filter. Never says no for a hash that was inserted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    blocks: Vec<Block>,
}

impl Filter {
    /// A filter for this many hashes.
    pub(crate) fn with_capacity(keys: usize) -> Self {
        let blocks = (keys as u64 * BITS_PER_KEY).div_ceil(512);
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        Self {
            blocks: vec![Block::default(); blocks],
        }
    }

    pub(crate) fn insert(&mut self, hash: u64) {
        let place = self.place(hash);
        if let Some(block) = self.blocks.get_mut(place) {
            for (word, bit) in bits(hash) {
                block.0[word] |= bit;
            }
        }
    }

    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let block = self.blocks.get(self.place(hash));
        block.is_some_and(|block| bits(hash).all(|(word, bit)| block.0[word] & bit != 0))
    }

    /// The block of a hash: its upper half spread over the blocks.
    #[inline]
    fn place(&self, hash: u64) -> usize {
        let place = (u128::from(hash) * self.blocks.len() as u128) >> 64;
        // Below the number of blocks, so it always fits.
        usize::try_from(place).unwrap_or_default()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let words = self.blocks.iter().flat_map(|block| block.0);
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// Of what [`Self::to_bytes`] gave; `None` when the length is wrong.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let blocks = (0..bytes.len() / BLOCK_BYTES)
            .map(|_| Block(std::array::from_fn(|_| words.next().unwrap_or_default())))
            .collect();
        Some(Self { blocks })
    }
}

/// The bits of a hash in its block: nine bits for each, from a product so that they do not follow the block's choice.
#[inline]
fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..PROBES).map(move |probe| {
        let bit = (mixed >> (probe * 9)) & 511;
        ((bit >> 6) as usize, 1 << (bit & 63)) // below 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_inserted_hash_is_denied(hashes: Vec<u64>) {
            let mut filter = Filter::with_capacity(hashes.len());
            hashes.iter().for_each(|hash| filter.insert(*hash));
            let stored = Filter::from_bytes(&filter.to_bytes()).unwrap();
            prop_assert_eq!(&stored, &filter);
            prop_assert!(hashes.iter().all(|hash| stored.may_contain(*hash)));
        }
    }

    #[test]
    fn few_unknown_traces_pass() {
        let tenant = TenantId::default();
        let hash = |n: u32| {
            let mut id = [7; 16];
            id[..4].copy_from_slice(&n.to_le_bytes());
            trace_hash(1, ShardId(3), &tenant, TraceId(id))
        };
        let mut filter = Filter::with_capacity(100_000);
        (0..100_000).for_each(|n| filter.insert(hash(n)));
        let passed = (100_000..200_000).filter(|n| filter.may_contain(hash(*n)));
        let passed = passed.count();
        assert!(passed < 400, "{passed} of 100000");
        assert!(!Filter::default().may_contain(5));
    }
}
