//! What a decision reads and what it says.

use smallvec::SmallVec;

use super::leaf::LeafBits;
use crate::ids::{TenantId, TraceId, UnixNanos};
use crate::verdict::{LimiterReading, Verdict};

/// Everything that a policy may know of a trace. All of it is in the verdict's record or in the journal, so that a
/// checker can decide again.
#[derive(Debug, Clone, Copy)]
pub struct TraceFacts<'a> {
    /// Whose trace.
    pub tenant: &'a TenantId,
    /// The trace.
    pub trace_id: TraceId,
    /// The union of what [`BoundPolicy::observe`](super::BoundPolicy::observe) said of its spans.
    pub bits: LeafBits,
    /// Earliest start of its spans.
    pub start: UnixNanos,
    /// Latest end of its spans.
    pub end: UnixNanos,
    /// Its spans, duplicates not counted.
    pub span_count: u32,
    /// The bytes of its spans.
    pub bytes: u64,
    /// Some span has the status `error`. Healthy traces are the others.
    pub error: bool,
    /// The memory pressure level, 0 to 3. Recorded with the verdict; it acts through [`super::Limiters::set_tightening`]
    /// alone, whose effect is in the levels that a decision reads.
    pub pressure: u8,
}

/// The answer to "keep or drop?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Keep or drop.
    pub verdict: Verdict,
    /// The policy that decided, by its ordinal; [`crate::verdict::NO_POLICY`] when none said keep or drop.
    pub policy: u16,
    /// The probability with which such a trace is kept, in 2^-32. Of a trace that a sampler left out: that sampler's;
    /// 0 when a drop policy or no policy at all was concerned.
    pub probability: u64,
    /// The limiters that were asked, in that order, with the levels that they had.
    pub limiters: SmallVec<[LimiterReading; 2]>,
}
