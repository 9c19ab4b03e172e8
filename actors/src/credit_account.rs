//! Who holds of the credit pool: for checkers, which recount it.

use crate::shared::{Gauges, Shared};

/// The credit pool, in bytes, and who holds of it. What the entries do not hold is held by requests and queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditAccount {
    /// Its size.
    pub capacity: u64,
    /// The most that was ever taken at once.
    pub peak: u64,
    /// Taken now.
    pub used: u64,
    /// Held by the shards for their entries.
    pub held_by_entries: u64,
    /// What the entries take.
    pub entry_bytes: u64,
}

impl CreditAccount {
    pub(crate) fn of(shared: &Shared) -> Self {
        let (pool, gauges) = (&shared.pool, &shared.gauges);
        Self {
            capacity: pool.capacity(),
            peak: pool.peak(),
            used: pool.used(),
            held_by_entries: Gauges::total(&gauges.entry_credit),
            entry_bytes: Gauges::total(&gauges.entry_bytes),
        }
    }
}
