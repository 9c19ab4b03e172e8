//! What a seed means: the settings of the node, the lives it leads and how each of them ends.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use spandrel_model::policy::DEFAULT_POLICY;

use crate::random::{Stream, stream};

/// A retention that no run reaches: 30 days.
const LONG_RETENTION_SECONDS: u64 = 30 * 86_400;
/// Retentions that a run reaches: an hour is the least that the settings allow.
pub(crate) const SHORT_RETENTION_SECONDS: std::ops::Range<u64> = 3_600..3_700;
/// Sizes of a disk whose reserve a large run reaches.
const SMALL_DISK_BYTES: std::ops::Range<u64> = (18 << 20)..(26 << 20);

/// A defect that is put in on purpose: a checker must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// Syncs of the journal's files do nothing once the files are made: acknowledged spans vanish at a power loss.
    JournalSyncsLie,
    /// Of a cluster: a span is claimed to be acknowledged that nobody sent.
    ClaimedSpan,
    /// Of a cluster: an acknowledged span of a kept trace is claimed never to have been sent.
    DeniedSpan,
}

/// How a life of the node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power fails at so many operations of the disk after the start.
    PowerAfter(u64),
    /// The power fails at so many operations of the disk, counted from before the start.
    PowerInRecovery(u64),
    /// The so-manieth sync after the start fails; then the power is lost too, or the process only starts again.
    FailedSync { syncs: u64, then_power: bool },
    /// The process is killed at the end of the life; what the system holds for it reaches the disk.
    Kill,
    /// The process is asked to stop.
    Stop,
}

/// One life of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LifePlan {
    /// Milliseconds after which it ends if no fault has ended it.
    pub(crate) length_ms: u64,
    pub(crate) fault: Fault,
    /// Milliseconds until the next one begins.
    pub(crate) pause_ms: u64,
}

/// The policy in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PolicyChoice {
    /// Errors and slow traces, nothing else.
    ErrorsAndSlow,
    /// What a new cluster starts with.
    Default,
}

/// How much a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// What every build can afford.
    Small,
    /// Many more traces over a longer time, and what only shows then.
    Large,
}

/// What a large plan adds; a small one has none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extras {
    /// Traces of thousands of spans.
    pub(crate) giants: usize,
    /// Milliseconds between two changes of the policy, if it changes while spans arrive.
    pub(crate) reload_every_ms: Option<u64>,
    /// Milliseconds between two promotions of any trace, if somebody promotes.
    pub(crate) promote_every_ms: Option<u64>,
    /// Size of the disk in bytes, if it is so small that its reserve is reached.
    pub(crate) disk_bytes: Option<u64>,
}

/// Everything that a run does, but for its spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(crate) seed: u64,
    pub(crate) size: Size,
    pub(crate) shards: u16,
    pub(crate) policy: PolicyChoice,
    pub(crate) idle_ms: u64,
    pub(crate) max_age_ms: u64,
    pub(crate) credit_bytes: u64,
    pub(crate) bucket_seconds: u64,
    pub(crate) window_seconds: u64,
    pub(crate) tenants: usize,
    pub(crate) traces: usize,
    /// Milliseconds over which the traces begin.
    pub(crate) span_ms: u64,
    pub(crate) clients: usize,
    /// The lives with faults; the ones after them are checked to the end.
    pub(crate) lives: Vec<LifePlan>,
    /// Seconds that the node idles after all is decided: beyond the recovery window the journal is trimmed.
    pub(crate) idle_seconds: u64,
    /// The index is deleted before the last start.
    pub(crate) loses_index: bool,
    pub(crate) retention_seconds: u64,
    pub(crate) extras: Extras,
    /// Some requests are no protobuf.
    pub(crate) malformed: bool,
    pub(crate) canary: Option<Canary>,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = stream(seed, Stream::Plan);
        let window_seconds = random.random_range(120..200);
        let small_pool = random.random_bool(0.4);
        Self {
            seed,
            size: Size::Small,
            shards: 16,
            policy: if random.random_bool(0.7) {
                PolicyChoice::ErrorsAndSlow
            } else {
                PolicyChoice::Default
            },
            idle_ms: random.random_range(1_000..4_000),
            max_age_ms: random.random_range(8_000..20_000),
            credit_bytes: if small_pool {
                random.random_range(80_000..400_000)
            } else {
                32 << 20
            },
            bucket_seconds: random.random_range(20..120),
            window_seconds,
            tenants: random.random_range(1..3),
            traces: random.random_range(40..90),
            span_ms: random.random_range(20_000..60_000),
            clients: random.random_range(2..6),
            lives: (0..random.random_range(1..5))
                .map(|_| life(&mut random))
                .collect(),
            idle_seconds: if random.random_bool(0.2) {
                window_seconds + 400
            } else {
                5
            },
            loses_index: random.random_bool(0.5),
            retention_seconds: LONG_RETENTION_SECONDS,
            extras: Extras::default(),
            malformed: false,
            canary: None,
        }
    }

    /// The large plan of a seed, for soaks.
    #[must_use]
    pub fn large(seed: u64) -> Self {
        let small = Self::of(seed);
        let mut random = stream(seed, Stream::LargePlan);
        let mut some = |share: f64, range: std::ops::Range<u64>| {
            let value = random.random_range(range);
            random.random_bool(share).then_some(value)
        };
        let retention = some(0.08, SHORT_RETENTION_SECONDS);
        let extras = Extras {
            giants: usize::try_from(some(0.4, 1..4).unwrap_or_default()).unwrap_or_default(),
            reload_every_ms: some(0.5, 4_000..20_000),
            promote_every_ms: some(0.5, 1_000..5_000),
            disk_bytes: some(0.25, SMALL_DISK_BYTES),
        };
        let idle_seconds = retention
            .map(|retention| retention + small.bucket_seconds + 30)
            .or(some(0.3, 400..900))
            .unwrap_or(5);
        Self {
            size: Size::Large,
            tenants: random.random_range(1..5),
            traces: random.random_range(100..300),
            span_ms: random.random_range(60_000..180_000),
            clients: random.random_range(5..12),
            lives: (0..random.random_range(3..10))
                .map(|_| life(&mut random))
                .collect(),
            credit_bytes: if random.random_bool(0.3) {
                random.random_range(200_000..1_500_000)
            } else {
                32 << 20
            },
            retention_seconds: retention.unwrap_or(LONG_RETENTION_SECONDS),
            idle_seconds,
            extras,
            ..small
        }
    }

    /// The same plan with a defect put in, and with ends of lives that show it.
    #[must_use]
    pub fn with_canary(mut self, canary: Canary) -> Self {
        self.canary = Some(canary);
        for life in &mut self.lives {
            life.fault = Fault::PowerAfter(400);
        }
        self
    }

    /// Whether the run lasts until what was kept has expired.
    pub(crate) fn outlives_retention(&self) -> bool {
        self.retention_seconds < LONG_RETENTION_SECONDS
    }

    /// The policy file at the start.
    pub(crate) fn policy_yaml(&self) -> String {
        self.policy_yaml_of(0)
    }

    /// The policy file after so many changes: each keeps errors, what else it keeps differs.
    pub(crate) fn policy_yaml_of(&self, changes: u64) -> String {
        let times = format!(
            "decision: {{idle: {}ms, max_age: {}ms}}\n",
            self.idle_ms, self.max_age_ms
        );
        let threshold_ms = 1_000 + changes % 3 * 500;
        match (self.policy, changes % 2) {
            (PolicyChoice::Default, 0) => DEFAULT_POLICY.to_owned(),
            (PolicyChoice::Default, _) | (PolicyChoice::ErrorsAndSlow, 0) => {
                times
                    + &format!(
                        "policies:\n\
                   \x20 - {{name: errors, type: status_code, status_codes: [ERROR]}}\n\
                   \x20 - {{name: slow, type: latency, threshold_ms: {threshold_ms}}}\n"
                    )
            }
            (PolicyChoice::ErrorsAndSlow, _) => {
                times
                    + &format!(
                        "policies:\n\
                   \x20 - {{name: many, type: span_count, min_spans: 7}}\n\
                   \x20 - {{name: slow, type: latency, threshold_ms: {threshold_ms}}}\n\
                   \x20 - {{name: errors, type: status_code, status_codes: [ERROR]}}\n\
                   \x20 - {{name: some, type: probabilistic, sampling_percentage: 20}}\n"
                    )
            }
        }
    }

    /// Milliseconds after the last span until every trace is decided.
    pub(crate) fn quiet_ms(&self) -> u64 {
        let max_age_ms = match self.policy {
            PolicyChoice::Default => 60_000,
            PolicyChoice::ErrorsAndSlow => self.max_age_ms,
        };
        max_age_ms + 5_000
    }
}

fn life(random: &mut ChaCha8Rng) -> LifePlan {
    let fault = match random.random_range(0..10) {
        0..4 => Fault::PowerAfter(random.random_range(1..6_000)),
        4..6 => Fault::PowerInRecovery(random.random_range(1..400)),
        6..8 => Fault::FailedSync {
            syncs: random.random_range(1..400),
            then_power: random.random_bool(0.4),
        },
        8 => Fault::Kill,
        _ => Fault::Stop,
    };
    LifePlan {
        length_ms: random.random_range(3_000..25_000),
        fault,
        pause_ms: random.random_range(1..4_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_model::policy::PolicySet;

    #[test]
    fn every_plan_has_a_valid_policy() {
        for (seed, plan) in
            (0..50).flat_map(|seed| [(seed, Plan::of(seed)), (seed, Plan::large(seed))])
        {
            for changes in 0..4 {
                PolicySet::parse(&plan.policy_yaml_of(changes), 1).unwrap();
            }
            assert!(
                plan.window_seconds * 1_000 > plan.quiet_ms() + 20_000,
                "seed {seed}"
            );
        }
    }
}
