//! Tail-sampling policies: parsed, compiled, observed span by span, decided on compact facts.
//!
//! A policy file (`docs/policy.md`) becomes a [`PolicySet`]: boolean expressions over *leaf conditions* ("some span of
//! the trace satisfies X", one bit each), facts of the trace (duration, span count, tenant), samplers on the trace id
//! and rate limits. A [`BoundPolicy`] notes the bits of each span as it passes; when the trace is due,
//! [`PolicySet::decide`] needs the [`TraceFacts`] and the node's [`Limiters`] and no span.
//!
//! Every decision can be made again by [`PolicySet::recompute`] from what its verdict records.

mod bound;
mod bucket;
mod compile;
mod emit;
mod error;
mod expression;
mod facts;
mod fields;
mod import;
mod import_policy;
mod leaf;
mod limiters;
mod priority;
mod probability;
mod set;
mod throughput;
mod tree;
mod values;

pub use bound::BoundPolicy;
pub use error::PolicyError;
pub use facts::{Decision, TraceFacts};
pub use import::{Import, import_collector};
pub use leaf::LeafBits;
pub use limiters::Limiters;
pub use set::PolicySet;

/// The policy of a new cluster: keep errors; keep slower than 1 s; keep healthy traces up to 100 a second per node,
/// above that sample down to it.
pub const DEFAULT_POLICY: &str = include_str!("default.yaml");
/// The policy of `--keep-all`: keep every trace.
pub const KEEP_ALL_POLICY: &str = include_str!("keep_all.yaml");
