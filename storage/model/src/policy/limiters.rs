//! The rate limits of a node: token buckets and adaptive throughput, advanced by the time that the caller gives.

use super::bucket::Bucket;
use super::facts::TraceFacts;
use super::set::PolicySet;
use super::throughput::Throughput;
use crate::ids::UnixNanos;
use crate::verdict::CERTAIN;

/// One limit of a policy set. Two that are equal keep their level when the policy changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LimiterSpec {
    /// The path of policy names to it.
    pub(super) name: String,
    pub(super) kind: LimiterKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimiterKind {
    /// Tokens per second, and how many at most.
    Bucket { per_second: u64, capacity: u64 },
    /// Traces per second.
    Throughput { per_second: u64 },
}

/// The levels of a policy set's rate limits.
///
/// One per node, shared by the node's shards: a limit of the policy file is per node, and a cluster of five keeps up
/// to five times as much. Plain data: equal calls in equal order give equal levels, and time that goes backwards
/// counts as standing still. Levels are not persisted: after a restart buckets are full.
///
/// Invariants: one state per limiter of the set with this fingerprint, in its order; `tightening` is at most 2^32.
#[derive(Debug, Clone)]
pub struct Limiters {
    fingerprint: u64,
    tightening: u64,
    states: Vec<(LimiterSpec, State)>,
}

#[derive(Debug, Clone)]
enum State {
    Bucket(Bucket),
    Throughput(Throughput),
}

impl State {
    fn new(kind: LimiterKind) -> Self {
        match kind {
            LimiterKind::Bucket {
                per_second,
                capacity,
            } => Self::Bucket(Bucket::new(per_second, capacity)),
            LimiterKind::Throughput { per_second } => Self::Throughput(Throughput::new(per_second)),
        }
    }
}

impl Limiters {
    /// Full buckets and no traffic seen.
    #[must_use]
    pub fn new(set: &PolicySet) -> Self {
        let mut limiters = Self {
            fingerprint: set.fingerprint(),
            tightening: CERTAIN,
            states: Vec::new(),
        };
        limiters.adopt(set);
        limiters
    }

    /// Follows a change of policy: limits that are the same in both keep their levels, the others start anew.
    pub fn adopt(&mut self, set: &PolicySet) {
        let mut old = std::mem::take(&mut self.states);
        self.fingerprint = set.fingerprint();
        self.states = set
            .limiters()
            .iter()
            .map(
                |spec| match old.iter().position(|(known, _)| known == spec) {
                    Some(index) => old.swap_remove(index),
                    None => (spec.clone(), State::new(spec.kind)),
                },
            )
            .collect();
    }

    /// Scales what healthy traces (those without an error) get of each limit while the node is under pressure: 1 is
    /// all, 0 nothing. Traces with an error always get the limit as written. Not a number counts as 1.
    pub fn set_tightening(&mut self, factor: f64) {
        let factor = if factor.is_nan() {
            1.0
        } else {
            factor.clamp(0.0, 1.0)
        };
        // Within 0 to 2^32 by the clamp.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let scaled = (factor * 4_294_967_296.0).round() as u64;
        self.tightening = scaled;
    }

    /// Follows the time, and the set when it is another than the last one.
    pub(super) fn advance(&mut self, set: &PolicySet, now: UnixNanos) {
        if self.fingerprint != set.fingerprint() {
            self.adopt(set);
        }
        for (_, state) in &mut self.states {
            match state {
                State::Bucket(bucket) => bucket.advance(now),
                State::Throughput(throughput) => throughput.advance(now),
            }
        }
    }

    /// The level as this trace sees it, which is what its verdict records.
    pub(super) fn level(&self, limiter: u8, facts: &TraceFacts<'_>) -> u64 {
        let full = match self.states.get(usize::from(limiter)) {
            Some((_, State::Bucket(bucket))) => bucket.thousandths(),
            Some((_, State::Throughput(throughput))) => throughput.probability(),
            None => 0,
        };
        scale(full, self.factor(facts), CERTAIN)
    }

    /// A trace was decided by this throughput limiter's advice, one way or the other.
    pub(super) fn count(&mut self, limiter: u8) {
        if let Some((_, State::Throughput(throughput))) = self.states.get_mut(usize::from(limiter))
        {
            throughput.count();
        }
    }

    /// A trace was kept at the cost of these thousandths of a token. A healthy one under pressure pays more, so that
    /// the long-run rate of healthy traces is the tightened one.
    pub(super) fn take(&mut self, limiter: u8, thousandths: u64, facts: &TraceFacts<'_>) {
        let factor = self.factor(facts);
        if let Some((_, State::Bucket(bucket))) = self.states.get_mut(usize::from(limiter)) {
            bucket.take(scale(thousandths, CERTAIN, factor.max(1)));
        }
    }

    fn factor(&self, facts: &TraceFacts<'_>) -> u64 {
        if facts.error {
            CERTAIN
        } else {
            self.tightening
        }
    }
}

/// `value * numerator / denominator`, saturating; the denominator is not 0.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(numerator) / u128::from(denominator.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
