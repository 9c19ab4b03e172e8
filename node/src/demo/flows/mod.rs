//! What happens in the shop: one file for each kind of trace.

mod browse;
mod checkout;
mod settlement;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::plan::TracePlan;

/// How a trace goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// Without an error, in less than a second.
    Healthy,
    /// One call takes more than a second.
    Slow,
    /// One call fails, and those that wait for it.
    Failed,
}

/// The kinds of traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flow {
    /// Gateway, auth, order, inventory, payment with its provider, queue; the notification in the same trace or in
    /// one that links to it.
    Checkout,
    /// Gateway, catalog, cache, database, inventory.
    Product,
    /// Gateway, catalog, search engine.
    Search,
    /// Gateway, auth, order, cache.
    Cart,
    /// A worker that takes a batch of messages and links to their producers.
    Settlement,
}

impl Flow {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [
        Self::Checkout,
        Self::Product,
        Self::Search,
        Self::Cart,
        Self::Settlement,
    ];

    /// Share of the traces, in percent.
    pub(super) fn weight(self) -> u32 {
        match self {
            Self::Checkout => 61,
            Self::Product => 19,
            Self::Search => 5,
            Self::Cart => 11,
            Self::Settlement => 4,
        }
    }

    /// Plans one such trace.
    pub(super) fn plan(self, outcome: Outcome, rng: &mut ChaCha8Rng) -> TracePlan {
        match self {
            Self::Checkout => checkout::plan(outcome, rng),
            Self::Product => browse::product(outcome, rng),
            Self::Search => browse::search(outcome, rng),
            Self::Cart => browse::cart(outcome, rng),
            Self::Settlement => settlement::plan(outcome, rng),
        }
    }
}

/// Microseconds around `typical`, between two thirds and four thirds of it.
fn around(rng: &mut ChaCha8Rng, typical: u64) -> u64 {
    rng.random_range(typical * 2 / 3..=typical * 4 / 3)
}

/// Microseconds that a stuck call takes: the generator shortens a trace by at most 40 percent, and a slow trace is to
/// stay over a second.
fn stuck(rng: &mut ChaCha8Rng) -> u64 {
    rng.random_range(1_800_000..4_000_000)
}
