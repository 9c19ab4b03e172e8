//! Shards at the message level: the cores of replication and of the assembler (`spandrel_actors::replication` and
//! `assembler`) with nothing of what lies around them in production. One loop over a queue of events stands for the
//! network, the disks, the settings and the clients, so a whole cluster with its faults takes milliseconds, and thousands
//! of them find what few runs of whole nodes would not.
//!
//! What is the product's own: numbers, phases and commits (`PrimaryShard`, `FollowerShard`), what a node wants changed
//! (`wishes`), who leads after a failure (`failovers`), the rules of the settings (`ClusterState::apply`), decisions and
//! what replicas do with them (`ShardState`). What is written again here, in short: the writer, feeders, attachments,
//! fills, replay.

mod checks;
mod clients;
pub mod command;
mod copies;
mod dice;
mod fault;
mod fills;
mod followers;
mod keeper;
mod log;
mod node;
mod plan;
mod process;
mod roles;
mod shrink;
mod spans;
mod state;
mod strike;
mod world;
mod writer;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use fault::{Fault, FaultKind, UnknownFault};
pub use plan::{InvalidPlan, MessagePlan, PlannedRequest};
pub use shrink::shrink;
use world::World;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageOutcome {
    /// The invariant that was broken.
    pub broken: Option<&'static str>,
    /// What was seen.
    pub detail: String,
    /// Of the history.
    pub hash: u64,
    /// Events that happened.
    pub events: u64,
    /// Virtual milliseconds that passed.
    pub elapsed_ms: u64,
    /// Requests that were acknowledged.
    pub acknowledged: usize,
    /// Traces that were decided.
    pub decided: usize,
    /// How often which fault has struck.
    pub struck: BTreeMap<FaultKind, u64>,
    /// The last events, when they were asked for.
    pub told: Vec<String>,
}

/// The name under which an assertion of the product's own is reported.
const ASSERTION: &str = "assertions_of_the_cores";

/// Runs a plan; `tells` keeps the last events.
#[must_use]
pub fn run_messages(plan: &MessagePlan, tells: bool) -> MessageOutcome {
    let mut world = World::new(plan.clone(), tells);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let (broken, detail) = match (&ran, world.broken.take()) {
        (_, Some(broken)) => (Some(broken.name), broken.detail),
        (Err(panic), None) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (Some(ASSERTION), text.unwrap_or_default())
        }
        (Ok(_), None) => (None, String::new()),
    };
    MessageOutcome {
        broken,
        detail,
        hash: world.hash,
        events: world.events,
        elapsed_ms: world.now / world::MS,
        acknowledged: world.truth.acknowledged(),
        decided: world.truth.decided(),
        struck: world.struck.clone(),
        told: world.told(),
    }
}
