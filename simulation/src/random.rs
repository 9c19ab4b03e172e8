//! Random numbers of the harness itself, apart from those of the product: one stream per purpose, so that a change
//! of one part of a run leaves the others as they were.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Stream {
    Plan = 1,
    Workload = 2,
    Disk = 3,
    Product = 4,
    Runtime = 5,
    Clients = 6,
    Samples = 7,
    LargePlan = 8,
    Operators = 9,
    Cluster = 10,
    SitePlan = 11,
    Sites = 12,
    Retention = 13,
    Lone = 14,
}

/// The generator of a stream.
pub(crate) fn stream(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream as u64);
    random
}
