//! Which shard a trace belongs to.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::{ShardId, TenantId, TraceId};

/// Routes traces to shards by a keyed hash, so that chosen trace ids cannot aim at one shard.
///
/// Invariants: the key and the shard count are fixed when the cluster is created; the count is a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardRouter {
    key: u64,
    mask: u16,
}

impl ShardRouter {
    /// A router over `shards` shards (a power of two, 1 to 4096) with the cluster's secret `key`; `None` when the
    /// count is not such a number.
    #[must_use]
    pub fn new(key: u64, shards: u16) -> Option<Self> {
        let legal = shards.is_power_of_two() && shards <= 4096;
        legal.then(|| Self {
            key,
            mask: shards - 1,
        })
    }

    /// The number of shards.
    #[must_use]
    pub fn shards(self) -> u16 {
        self.mask + 1
    }

    /// The seed that makes traces of one tenant hash apart from another's: compute once per batch.
    #[must_use]
    pub fn tenant_seed(self, tenant: &TenantId) -> u64 {
        xxh3_64_with_seed(tenant.as_str().as_bytes(), self.key)
    }

    /// The keyed hash of a trace. `tenant_seed` is what [`Self::tenant_seed`] gave for the trace's tenant.
    #[must_use]
    pub fn hash(self, tenant_seed: u64, trace_id: TraceId) -> u64 {
        xxh3_64_with_seed(&trace_id.0, tenant_seed)
    }

    /// The shard of a trace, from [`Self::hash`].
    #[must_use]
    pub fn shard(self, hash: u64) -> ShardId {
        // The low 16 bits of the hash, masked: the cast cannot lose what the mask keeps.
        #[allow(clippy::cast_possible_truncation)]
        ShardId(hash as u16 & self.mask)
    }
}
