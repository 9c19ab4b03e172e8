//! A compiled policy: a boolean expression over leaf bits and facts, with samplers and rate limits in it.

use smallvec::SmallVec;

use super::facts::TraceFacts;
use super::leaf::LeafBits;
use super::probability::{Randomness, product};
use crate::ids::TenantId;
use crate::verdict::{CERTAIN, LimiterReading};

/// An expression.
#[derive(Debug)]
pub(super) enum Expression {
    /// Every trace.
    Always,
    /// Some span satisfied the leaf conditions of this bit.
    Leaf(LeafBits),
    /// From the earliest start to the latest end it took longer than `over_nanos` and at most `up_to_nanos`.
    Duration {
        over_nanos: u64,
        up_to_nanos: Option<u64>,
    },
    /// It has this many spans, both ends included.
    SpanCount { min: u32, max: Option<u32> },
    /// It is of one of these tenants.
    Tenant(Vec<TenantId>),
    /// A fixed share of the traces.
    Sample {
        probability: u64,
        randomness: Randomness,
    },
    /// A token bucket of that ordinal has enough for it.
    Bucket { limiter: u8, cost: Cost },
    /// An adaptive share of the traces, by the throughput limiter of that ordinal.
    Throughput { limiter: u8 },
    /// All of them. Ordered by [`Class`], so that what is read and counted last is asked last.
    All(Vec<Expression>),
    /// Not that condition (neither sampler nor limit is inside).
    Not(Box<Expression>),
    /// The first of them that says keep decides, if its bucket has enough.
    Composite(Vec<Share>),
}

/// One sub-policy of a composite with the bucket of its share.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) expression: Expression,
    pub(super) limiter: u8,
}

/// What a trace takes from a token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    Spans,
    Bytes,
}

impl Cost {
    /// In thousandths of a token.
    pub(super) fn of(self, facts: &TraceFacts<'_>) -> u64 {
        let tokens = match self {
            Self::Spans => u64::from(facts.span_count),
            Self::Bytes => facts.bytes,
        };
        tokens.saturating_mul(1_000)
    }
}

/// How an expression comes to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// By the trace's facts alone.
    Condition,
    /// By its facts and its id.
    Sampled,
    /// By the level of a limiter too.
    Limited,
}

/// What a policy says to a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vote {
    /// Keep it.
    pub(super) keep: bool,
    /// With which probability such a trace is kept, in 2^-32; 0 when the conditions do not hold.
    probability_by_trace_id: u64,
    probability_by_salt: u64,
}

impl Vote {
    const YES: Self = Self {
        keep: true,
        probability_by_trace_id: CERTAIN,
        probability_by_salt: CERTAIN,
    };
    pub(super) const NO: Self = Self {
        keep: false,
        probability_by_trace_id: 0,
        probability_by_salt: 0,
    };

    fn condition(holds: bool) -> Self {
        if holds { Self::YES } else { Self::NO }
    }

    /// The probability with which such a trace is kept, in 2^-32.
    pub(super) fn probability(self) -> u64 {
        product(self.probability_by_trace_id, self.probability_by_salt)
    }

    /// Both must say keep. Samplers that read the same randomness are consistent, so the smaller probability is
    /// that of both; salted ones are independent, so theirs multiply.
    fn and(self, other: Self) -> Self {
        Self {
            keep: self.keep && other.keep,
            probability_by_trace_id: self
                .probability_by_trace_id
                .min(other.probability_by_trace_id),
            probability_by_salt: product(self.probability_by_salt, other.probability_by_salt),
        }
    }
}

/// Asks the limiters for their levels and notes what was read and what a keep would take.
pub(super) struct Levels<'l> {
    source: &'l mut dyn FnMut(u8) -> u64,
    pub(super) readings: SmallVec<[LimiterReading; 2]>,
    /// What the policy under evaluation takes if it decides: limiter and thousandths of a token.
    pub(super) takes: SmallVec<[(u8, u64); 2]>,
}

impl<'l> Levels<'l> {
    pub(super) fn new(source: &'l mut dyn FnMut(u8) -> u64) -> Self {
        Self {
            source,
            readings: SmallVec::new(),
            takes: SmallVec::new(),
        }
    }

    fn read(&mut self, limiter: u8) -> u64 {
        let level = (self.source)(limiter);
        self.readings.push(LimiterReading { limiter, level });
        level
    }

    fn bucket_has(&mut self, limiter: u8, thousandths: u64) -> bool {
        let enough = self.read(limiter) >= thousandths;
        if enough {
            self.takes.push((limiter, thousandths));
        }
        enough
    }
}

impl Expression {
    /// How it comes to its answer.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Always
            | Self::Leaf(_)
            | Self::Duration { .. }
            | Self::SpanCount { .. }
            | Self::Tenant(_)
            | Self::Not(_) => Class::Condition,
            Self::Sample { .. } => Class::Sampled,
            Self::Bucket { .. } | Self::Throughput { .. } | Self::Composite(_) => Class::Limited,
            Self::All(parts) => parts
                .iter()
                .map(Self::class)
                .max()
                .unwrap_or(Class::Condition),
        }
    }

    /// What it says to a trace.
    pub(super) fn vote(&self, facts: &TraceFacts<'_>, levels: &mut Levels<'_>) -> Vote {
        match self {
            Self::Always => Vote::YES,
            Self::Leaf(bit) => Vote::condition(facts.bits & bit != 0),
            Self::Duration {
                over_nanos,
                up_to_nanos,
            } => {
                let nanos = facts.end.since(facts.start);
                Vote::condition(
                    nanos > *over_nanos && up_to_nanos.is_none_or(|bound| nanos <= bound),
                )
            }
            Self::SpanCount { min, max } => Vote::condition(
                facts.span_count >= *min && max.is_none_or(|max| facts.span_count <= max),
            ),
            Self::Tenant(tenants) => Vote::condition(tenants.contains(facts.tenant)),
            Self::Sample {
                probability,
                randomness,
            } => sampled(*randomness, *probability, facts),
            Self::Bucket { limiter, cost } => {
                Vote::condition(levels.bucket_has(*limiter, cost.of(facts)))
            }
            Self::Throughput { limiter } => {
                let probability = levels.read(*limiter).min(CERTAIN);
                sampled(Randomness::TraceId, probability, facts)
            }
            Self::All(parts) => all(parts, facts, levels),
            Self::Not(part) => Vote::condition(!part.vote(facts, levels).keep),
            Self::Composite(shares) => composite(shares, facts, levels),
        }
    }

    /// True when it says keep now and will whatever spans are still to come: bits are only ever set, the end only
    /// moves later and the start earlier, counts only grow. A limit can run dry at any time.
    pub(super) fn holds_for_good(&self, facts: &TraceFacts<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::Leaf(bit) => facts.bits & bit != 0,
            Self::Duration {
                over_nanos,
                up_to_nanos,
            } => up_to_nanos.is_none() && facts.end.since(facts.start) > *over_nanos,
            Self::SpanCount { min, max } => max.is_none() && facts.span_count >= *min,
            Self::Tenant(tenants) => tenants.contains(facts.tenant),
            Self::Sample {
                probability,
                randomness,
            } => randomness.keeps(facts.trace_id, *probability),
            Self::Bucket { .. } | Self::Throughput { .. } | Self::Composite(_) => false,
            Self::All(parts) => parts.iter().all(|part| part.holds_for_good(facts)),
            Self::Not(part) => part.fails_for_good(facts),
        }
    }

    /// True when it does not say keep now and never will, whatever spans are still to come.
    pub(super) fn fails_for_good(&self, facts: &TraceFacts<'_>) -> bool {
        match self {
            Self::Always | Self::Leaf(_) | Self::Bucket { .. } | Self::Throughput { .. } => false,
            Self::Duration { up_to_nanos, .. } => {
                up_to_nanos.is_some_and(|bound| facts.end.since(facts.start) > bound)
            }
            Self::SpanCount { max, .. } => max.is_some_and(|max| facts.span_count > max),
            Self::Tenant(tenants) => !tenants.contains(facts.tenant),
            Self::Sample {
                probability,
                randomness,
            } => !randomness.keeps(facts.trace_id, *probability),
            Self::All(parts) => parts.iter().any(|part| part.fails_for_good(facts)),
            Self::Not(part) => part.holds_for_good(facts),
            Self::Composite(shares) => shares
                .iter()
                .all(|share| share.expression.fails_for_good(facts)),
        }
    }

    /// The greatest probability that it can ever record, in 2^-32.
    pub(super) fn ceiling(&self) -> u64 {
        match self {
            Self::Sample { probability, .. } => *probability,
            Self::All(parts) => parts.iter().map(Self::ceiling).min().unwrap_or(CERTAIN),
            _ => CERTAIN,
        }
    }
}

fn sampled(randomness: Randomness, probability: u64, facts: &TraceFacts<'_>) -> Vote {
    let vote = Vote {
        keep: randomness.keeps(facts.trace_id, probability),
        ..Vote::YES
    };
    match randomness {
        Randomness::TraceId => Vote {
            probability_by_trace_id: probability,
            ..vote
        },
        Randomness::Salted(_) => Vote {
            probability_by_salt: probability,
            ..vote
        },
    }
}

fn all(parts: &[Expression], facts: &TraceFacts<'_>, levels: &mut Levels<'_>) -> Vote {
    let mut vote = Vote::YES;
    for part in parts {
        vote = vote.and(part.vote(facts, levels));
        if !vote.keep {
            break;
        }
    }
    vote
}

fn composite(shares: &[Share], facts: &TraceFacts<'_>, levels: &mut Levels<'_>) -> Vote {
    for share in shares {
        let takes = levels.takes.len();
        let vote = share.expression.vote(facts, levels);
        if !vote.keep {
            levels.takes.truncate(takes);
        } else {
            let enough = levels.bucket_has(share.limiter, Cost::Spans.of(facts));
            return if enough { vote } else { Vote::NO };
        }
    }
    Vote::NO
}
