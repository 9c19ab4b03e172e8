//! What a seed means: the settings of the node, the lives it leads and how each of them ends.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use spandrel_model::policy::DEFAULT_POLICY;

use crate::random::{Stream, stream};

/// A defect that is put in on purpose: a checker must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// Syncs of the journal's files do nothing once the files are made: acknowledged spans vanish at a power loss.
    JournalSyncsLie,
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

/// Everything that a run does, but for its spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(crate) seed: u64,
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
            canary: None,
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

    /// The policy file.
    pub(crate) fn policy_yaml(&self) -> String {
        let times = format!(
            "decision: {{idle: {}ms, max_age: {}ms}}\n",
            self.idle_ms, self.max_age_ms
        );
        match self.policy {
            PolicyChoice::Default => DEFAULT_POLICY.to_owned(),
            PolicyChoice::ErrorsAndSlow => {
                times
                    + "policies:\n\
                   \x20 - {name: errors, type: status_code, status_codes: [ERROR]}\n\
                   \x20 - {name: slow, type: latency, threshold_ms: 1000}\n"
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
        for seed in 0..50 {
            let plan = Plan::of(seed);
            PolicySet::parse(&plan.policy_yaml(), 1).unwrap();
            assert!(
                plan.window_seconds * 1_000 > plan.quiet_ms() + 20_000,
                "seed {seed}"
            );
        }
    }
}
