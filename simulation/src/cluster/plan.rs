//! What a seed means for a cluster: its size, its settings, which kinds of faults it may meet, and when they strike.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use spandrel_actors::Site;

use crate::check::Patience;
use crate::faults::FaultKind;
use crate::plan::{Canary, Extras, Plan, SHORT_RETENTION_SECONDS};
use crate::random::{Stream, stream};

/// Share of the runs in which something rare happens within nodes: in the others only what surrounds them is unusual.
const SITES_SHARE: f64 = 0.6;
/// Share of the places in such a run.
const SITE_SHARE: f64 = 0.25;
/// How often it happens there, of 1,000 times that a node comes to it.
const SITE_RATES: [u32; 4] = [5, 20, 100, 300];
/// The same where a node comes by without anything to do, once a second or oftener.
const IDLE_SITE_RATES: [u32; 3] = [2, 5, 20];
/// Milliseconds in which nodes join before the first fault.
const QUIET_START_MS: u64 = 4_000;
/// Share of the kinds that a run may meet: each run is another mixture, so that none hides behind another.
const KINDS_SHARE: f64 = 0.3;
/// Most faults of a run.
const MAX_FAULTS: usize = 12;
/// Milliseconds by which a clock jumps at most, either way.
const MAX_JUMP_MS: i64 = 20_000;
/// Milliseconds by which a clock is off at most.
const MAX_SKEW_MS: i64 = 3_000;
/// Milliseconds by which a clock that drifts gains or loses each second at most: six seconds while it lasts.
const MAX_DRIFT_PER_MILLE: i64 = 500;
/// Share of the runs in which one node at a time is at fault, and all is well before the next one is.
const LONE_SHARE: f64 = 0.2;
/// Kinds that may strike then.
const LONE_KINDS: [FaultKind; 9] = [
    FaultKind::Kill,
    FaultKind::PowerLoss,
    FaultKind::Stop,
    FaultKind::Pause,
    FaultKind::HungDisk,
    FaultKind::Isolation,
    FaultKind::HalfOpen,
    FaultKind::Join,
    FaultKind::Leave,
];
/// Milliseconds for which a disk does not answer then: mostly longer than until it is noticed.
const LONE_HANG_MS: std::ops::Range<u64> = 5_000..40_000;
/// Most faults of such a run.
const MAX_LONE_FAULTS: usize = 3;
/// Milliseconds from the end of one of them until all is as it was.
const RECOVERY_MS: u64 = 12_000;
/// Share of the runs in which all that was kept expires at last.
const EXPIRY_SHARE: f64 = 0.25;
/// Seconds of the recovery window: no jump of a clock reaches its end.
const WINDOW_SECONDS: std::ops::Range<u64> = 600..900;

/// A fault with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at_ms: u64,
    /// How long it lasts; of a process that ended: until it starts again.
    pub(crate) for_ms: u64,
    pub(crate) kind: FaultKind,
    /// Where it strikes.
    pub(crate) place: usize,
    /// The other end of a link.
    pub(crate) other: usize,
    /// How much: operations until it strikes, milliseconds, bytes, as the kind has it.
    pub(crate) amount: u64,
}

/// A run of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlan {
    /// Nodes at the beginning.
    pub(crate) nodes: usize,
    /// All that there ever are at one time: with those that join later.
    pub(crate) places: usize,
    pub(crate) replication: u8,
    /// Milliseconds that a message takes at most; at least one.
    pub(crate) latency_ms: u64,
    pub(crate) faults: Vec<Planned>,
    /// One node at a time is at fault.
    pub(crate) is_lone: bool,
    /// Where something rare happens within nodes, and how often of 1,000 times.
    pub(crate) sites: BTreeMap<Site, u32>,
    /// The settings and the spans.
    pub(crate) node: Plan,
}

impl ClusterPlan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = stream(seed, Stream::Cluster);
        let nodes = random.random_range(3..6);
        let replication = random.random_range(2..4);
        let mut node = Plan::of(seed);
        node.shards = *[4, 8, 8, 16].choose(&mut random).unwrap_or(&8);
        // Little memory is a fault of its own.
        node.credit_bytes = 32 << 20;
        node.lives = Vec::new();
        node.window_seconds = random.random_range(WINDOW_SECONDS);
        node.tenants = random.random_range(1..4);
        node.traces = random.random_range(30..60);
        node.span_ms = random.random_range(20_000..40_000);
        node.clients = random.random_range(nodes..2 * nodes + 1);
        node.malformed = random.random_bool(0.3);
        node.extras = Extras {
            giants: usize::from(random.random_bool(0.1)),
            ..Extras::default()
        };
        let faults = faults(&mut random, nodes, replication, node.span_ms);
        let joins = faults.iter().any(|fault| fault.kind == FaultKind::Join);
        let mut expiry = stream(seed, Stream::Retention);
        // Who receives a trace says when it expires: its clock must be right.
        if expiry.random_bool(EXPIRY_SHARE) && !has_wrong_clocks(&faults) {
            node.retention_seconds = expiry.random_range(SHORT_RETENTION_SECONDS);
        }
        let plan = Self {
            nodes,
            places: nodes + usize::from(joins),
            replication,
            latency_ms: random.random_range(1..20),
            faults,
            is_lone: false,
            sites: sites(&mut stream(seed, Stream::SitePlan)),
            node,
        };
        let mut lone = stream(seed, Stream::Lone);
        match lone.random_bool(LONE_SHARE) {
            true => plan.with_lone_faults(&mut lone),
            false => plan,
        }
    }

    /// The same with other faults, one at a time, and nothing else that makes anybody wait.
    fn with_lone_faults(mut self, random: &mut ChaCha8Rng) -> Self {
        self.is_lone = true;
        self.sites.clear();
        self.node.extras.giants = 0;
        self.node.traces = random.random_range(60..120);
        self.faults.clear();
        let mut kinds = LONE_KINDS.to_vec();
        kinds.retain(|kind| can_strike(*kind, self.nodes, self.replication));
        let mut at_ms = QUIET_START_MS;
        for _ in 0..random.random_range(1..=MAX_LONE_FAULTS) {
            at_ms += random.random_range(2_000..6_000);
            let mut one = fault(random, &kinds, self.nodes, at_ms + 1);
            one.at_ms = at_ms;
            match one.kind {
                // At once.
                FaultKind::PowerLoss => one.amount &= !1,
                FaultKind::HungDisk => one.for_ms = random.random_range(LONE_HANG_MS),
                // Once each: there is one place more, and whoever has left does not come back.
                FaultKind::Join | FaultKind::Leave => kinds.retain(|kind| *kind != one.kind),
                _ => {}
            }
            at_ms += one.for_ms + RECOVERY_MS;
            self.faults.push(one);
        }
        let joins = self.faults.iter().any(|one| one.kind == FaultKind::Join);
        self.places = self.nodes + usize::from(joins);
        self.node.span_ms = at_ms;
        self
    }

    /// How long the requests of clients at a place may wait, where that can be said.
    pub(crate) fn patience(&self, place: usize) -> Option<Patience> {
        let span = |one: &Planned| match one.kind {
            // It leaves when nobody else is away, and for good.
            FaultKind::Leave => one.at_ms..u64::MAX,
            _ => one.at_ms..one.at_ms + one.for_ms + RECOVERY_MS,
        };
        // Who joins has a place of its own.
        let faults = self.faults.iter();
        let faults = faults.filter(|one| one.kind != FaultKind::Join);
        let (away, others): (Vec<_>, Vec<_>) = faults.partition(|one| one.place == place);
        let hangs = others.into_iter();
        let hangs = hangs.filter(|one| one.kind == FaultKind::HungDisk);
        self.is_lone.then(|| Patience {
            from_ms: QUIET_START_MS,
            away: away.into_iter().map(span).collect(),
            hangs: hangs.map(span).collect(),
        })
    }

    /// The same plan with a defect of the truth put in.
    #[must_use]
    pub fn with_canary(mut self, canary: Canary) -> Self {
        self.node.canary = Some(canary);
        self
    }

    /// Milliseconds after the last span until every trace is decided.
    pub(crate) fn quiet_ms(&self) -> u64 {
        let behind_ms = if has_wrong_clocks(&self.faults) {
            MAX_JUMP_MS.unsigned_abs()
        } else {
            0
        };
        self.node.quiet_ms() + behind_ms
    }
}

fn has_wrong_clocks(faults: &[Planned]) -> bool {
    faults.iter().any(|planned| {
        matches!(
            planned.kind,
            FaultKind::ClockJump | FaultKind::ClockSkew | FaultKind::ClockDrift
        )
    })
}

/// Kinds that take data along for good.
fn takes_data(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::LostDisk | FaultKind::OldDisk | FaultKind::Leave
    )
}

fn can_strike(kind: FaultKind, nodes: usize, replication: u8) -> bool {
    match kind {
        // A consequence of others.
        FaultKind::TornWrite | FaultKind::Misdirected => false,
        // The others must be able to take the shards, and to vote.
        FaultKind::Leave => nodes > usize::from(replication) && nodes > 3,
        FaultKind::Partition => nodes > 3,
        _ => true,
    }
}

fn faults(random: &mut ChaCha8Rng, nodes: usize, replication: u8, span_ms: u64) -> Vec<Planned> {
    let kinds = FaultKind::ALL.into_iter();
    let kinds = kinds.filter(|kind| can_strike(*kind, nodes, replication));
    let mut allowed: Vec<FaultKind> = kinds.filter(|_| random.random_bool(KINDS_SHARE)).collect();
    if allowed.is_empty() {
        allowed.push(FaultKind::Kill);
    }
    let count = random.random_range(1..=MAX_FAULTS);
    let until_ms = QUIET_START_MS + span_ms;
    let mut planned: Vec<Planned> = Vec::new();
    // What R copies survive: the loss of R - 1 of them, and none where pages rot as well.
    let (mut losses, mut joins) = (usize::from(replication) - 1, 1);
    for _ in 0..count {
        let one = fault(random, &allowed, nodes, until_ms);
        if takes_data(one.kind) {
            let rots = allowed.contains(&FaultKind::Rot);
            let again = planned
                .iter()
                .any(|other| takes_data(other.kind) && other.place == one.place);
            if losses == 0 || rots || again {
                continue;
            }
            losses -= 1;
        }
        if one.kind == FaultKind::Join {
            if joins == 0 {
                continue;
            }
            joins -= 1;
        }
        planned.push(one);
    }
    planned.sort_by_key(|planned| planned.at_ms);
    planned
}

fn fault(random: &mut ChaCha8Rng, allowed: &[FaultKind], nodes: usize, until_ms: u64) -> Planned {
    let kind = *allowed.choose(random).unwrap_or(&FaultKind::Kill);
    let mut place = random.random_range(0..nodes);
    let amount = match kind {
        FaultKind::FailedSync | FaultKind::FailedWrite => random.random_range(1..200),
        FaultKind::FailedRead => random.random_range(1..100),
        // Bytes that are left, up to more than the reserve.
        FaultKind::FullDisk => random.random_range(0..16 << 20),
        FaultKind::SlowDisk => random.random_range(20..1_000),
        FaultKind::SlowLink => random.random_range(20..400),
        FaultKind::Jitter => random.random_range(100..600),
        FaultKind::CrashInStart => random.random_range(1..400),
        FaultKind::RestartStorm => random.random_range(3..7),
        // Per mille.
        FaultKind::LossyLink => random.random_range(1..50),
        FaultKind::MemoryPressure => random.random_range(20_000..80_000),
        FaultKind::ClockSkew => offset(random, MAX_SKEW_MS),
        FaultKind::ClockJump => offset(random, MAX_JUMP_MS),
        FaultKind::ClockDrift => offset(random, MAX_DRIFT_PER_MILLE),
        _ => random.random_range(0..1 << 20),
    };
    // What the founder held before the others joined, nobody else has.
    if place == 0 && matches!(kind, FaultKind::LostDisk | FaultKind::Leave) {
        place = random.random_range(1..nodes);
    }
    let other = (place + random.random_range(1..nodes)) % nodes;
    let for_ms = match kind {
        FaultKind::Pause => random.random_range(100..5_000),
        FaultKind::OldDisk => random.random_range(4_000..10_000),
        FaultKind::HungDisk => random.random_range(1_000..20_000),
        _ => random.random_range(200..12_000),
    };
    let at_ms = random.random_range(QUIET_START_MS..until_ms);
    Planned {
        at_ms: match kind {
            // Before, there are no blocks.
            FaultKind::Rot => at_ms.midpoint(until_ms),
            _ => at_ms,
        },
        for_ms,
        kind,
        place,
        other,
        amount,
    }
}

/// Milliseconds ahead or behind, as two's complement: see [`Planned::offset_ms`].
fn offset(random: &mut ChaCha8Rng, most: i64) -> u64 {
    random.random_range(-most..=most).cast_unsigned()
}

fn sites(random: &mut ChaCha8Rng) -> BTreeMap<Site, u32> {
    let happens = random.random_bool(SITES_SHARE);
    let drawn = Site::ALL.into_iter().filter_map(|site| {
        let rates: &[u32] = match site {
            Site::FalseAlarm | Site::PressureFelt | Site::PagedNow => &IDLE_SITE_RATES,
            _ => &SITE_RATES,
        };
        // Drawn for each, so that one more place changes nothing of those before it.
        let rate = rates.choose(random).copied().unwrap_or_default();
        let is_chosen = random.random_bool(SITE_SHARE);
        (happens && is_chosen).then_some((site, rate))
    });
    drawn.collect()
}

impl Planned {
    /// By how much the clock is off, or gains a second.
    pub(crate) fn offset_ms(&self) -> i64 {
        self.amount.cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn plans_meet_every_kind_and_lose_no_more_than_copies_survive() {
        let (mut met, mut without, mut sites) = (BTreeSet::new(), 0, BTreeSet::new());
        for seed in 0..400 {
            let plan = ClusterPlan::of(seed);
            met.extend(plan.faults.iter().map(|planned| planned.kind));
            sites.extend(plan.sites.keys().copied());
            without += usize::from(plan.sites.is_empty());
            let lost = plan
                .faults
                .iter()
                .filter(|planned| takes_data(planned.kind));
            let places: BTreeSet<usize> = lost.clone().map(|planned| planned.place).collect();
            assert!(lost.count() == places.len() && places.len() < plan.replication.into());
            let mut kinds = plan.faults.iter().map(|planned| planned.kind);
            let rots = kinds.any(|kind| kind == FaultKind::Rot);
            assert!(!rots || places.is_empty());
            assert!(plan.node.window_seconds * 1_000 > plan.quiet_ms() + 60_000);
        }
        let missed = FaultKind::ALL.iter().filter(|kind| !met.contains(kind));
        assert_eq!(
            missed.collect::<Vec<_>>(),
            [&FaultKind::TornWrite, &FaultKind::Misdirected]
        );
        assert_eq!(sites.len(), Site::ALL.len());
        assert!((100..300).contains(&without), "{without}");
    }
}
