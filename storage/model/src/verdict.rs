//! Verdicts: what the cluster decided about a trace, with every input, so that a checker can decide again.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::ids::{Bucket, Lsn, ShardId, TenantId, TraceId, UnixNanos};
use crate::policy::TraceFacts;

/// Keep or drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Verdict {
    /// The spans stay in the journal until the recovery window has passed, and nowhere else.
    Drop = 0,
    /// The spans go to a block.
    Keep = 1,
}

/// Why a trace was decided at that moment. The numbers are on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Trigger {
    /// The root had ended and no span came for `decision_idle`.
    Idle = 0,
    /// The trace was open for `decision_max_age`.
    MaxAge = 1,
    /// The trace reached its cap of spans or bytes.
    Cap = 2,
    /// No later span could change a keep.
    EarlyKeep = 3,
    /// The node needed the memory.
    Pressure = 4,
    /// A late span made the policy say keep.
    LateSpan = 5,
    /// Somebody asked for it.
    Promoted = 6,
}

impl Trigger {
    /// The word of API.md.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::MaxAge => "max_age",
            Self::Cap => "cap",
            Self::EarlyKeep => "early_keep",
            Self::Pressure => "pressure",
            Self::LateSpan => "late_span",
            Self::Promoted => "promoted",
        }
    }

    /// From the number on disk.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Idle,
            1 => Self::MaxAge,
            2 => Self::Cap,
            3 => Self::EarlyKeep,
            4 => Self::Pressure,
            5 => Self::LateSpan,
            6 => Self::Promoted,
            _ => return None,
        })
    }
}

/// The levels of the limiters that a decision read, in fixed point so that a recomputation is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LimiterReading {
    /// Which limiter of the policy, by its ordinal in the compiled policy.
    pub limiter: u8,
    /// Its level before the decision: tokens in thousandths for buckets, keep probability in 2^-32 for throughput.
    pub level: u64,
}

/// One decision, as the journal holds it.
///
/// A trace can have several: the newest one in its shard's order stands, and it changes only from drop to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictRecord {
    /// Whose trace.
    pub tenant: TenantId,
    /// The trace.
    pub trace_id: TraceId,
    /// What was decided.
    pub verdict: Verdict,
    /// Why then.
    pub trigger: Trigger,
    /// The memory pressure level at that time, 0 to 3.
    pub pressure: u8,
    /// Version of the policy set.
    pub policy_version: u32,
    /// The policy that decided, by its ordinal in that version; `NO_POLICY` when none said keep or drop.
    pub policy: u16,
    /// Which leaf conditions of the policy set held (see `policy::LeafBits`), and so how each policy voted.
    pub votes: u128,
    /// The probability with which such a trace is kept, in 2^-32; 2^32 means 1.
    pub probability: u64,
    /// What the limiters said, for those that the policies asked.
    pub limiters: SmallVec<[LimiterReading; 2]>,
    /// By the clock of the primary.
    pub decided_at: UnixNanos,
    /// The bucket of the trace's blocks: the primary's clock at its first record.
    pub bucket: Bucket,
    /// The decision read the shard's records up to this one.
    pub input_lsn: Lsn,
    /// Earliest start of its spans.
    pub start: UnixNanos,
    /// Latest end of its spans.
    pub end: UnixNanos,
    /// Its spans, duplicates not counted.
    pub span_count: u32,
    /// The records of its shard that hold its spans, ascending.
    pub references: SmallVec<[Lsn; 4]>,
}

impl VerdictRecord {
    /// The facts that were decided on, so that [`crate::policy::PolicySet::recompute`] decides again: policies read
    /// nothing else of a trace.
    #[must_use]
    pub fn facts(&self) -> TraceFacts<'_> {
        TraceFacts {
            tenant: &self.tenant,
            trace_id: self.trace_id,
            bits: self.votes,
            start: self.start,
            end: self.end,
            span_count: self.span_count,
            bytes: 0,
            error: false,
            pressure: self.pressure,
        }
    }
}

/// [`VerdictRecord::policy`] when no policy of the set voted and the trace is dropped for that.
pub const NO_POLICY: u16 = u16::MAX;
/// [`VerdictRecord::policy`] of a trace that somebody promoted.
pub const PROMOTED_POLICY: u16 = u16::MAX - 1;
/// [`VerdictRecord::probability`] of certainty.
pub const CERTAIN: u64 = 1 << 32;

/// A trace within a node: what its entries, verdicts and fragments are found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceKey {
    /// Its shard.
    pub shard: ShardId,
    /// Whose trace.
    pub tenant: TenantId,
    /// The trace.
    pub trace_id: TraceId,
}
