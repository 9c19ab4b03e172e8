//! The kinds of faults, and how often each of them took effect, or something at a place of the product.

use std::collections::BTreeMap;
use std::fmt;

use spandrel_actors::Site;

/// What may go wrong in a run, or be asked of its nodes while other things go wrong.
#[allow(missing_docs)] // each variant is described by `FaultKind::describe`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    Kill,
    PowerLoss,
    Blackout,
    TornWrite,
    Stop,
    Pause,
    RestartStorm,
    CrashInStart,
    FailedSync,
    FailedWrite,
    FailedRead,
    FullDisk,
    SlowDisk,
    HungDisk,
    Rot,
    Misdirected,
    LostDisk,
    OldDisk,
    LostIndex,
    ClockSkew,
    ClockJump,
    ClockDrift,
    Isolation,
    Partition,
    OneWay,
    Held,
    SlowLink,
    Jitter,
    LossyLink,
    HalfOpen,
    Join,
    Leave,
    PolicyChange,
    MemoryPressure,
}

/// In which runs a kind strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Clusters only: it needs a second node.
    Clusters,
    /// Single nodes, too.
    Everywhere,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::Kill,
        Self::PowerLoss,
        Self::Blackout,
        Self::TornWrite,
        Self::Stop,
        Self::Pause,
        Self::RestartStorm,
        Self::CrashInStart,
        Self::FailedSync,
        Self::FailedWrite,
        Self::FailedRead,
        Self::FullDisk,
        Self::SlowDisk,
        Self::HungDisk,
        Self::Rot,
        Self::Misdirected,
        Self::LostDisk,
        Self::OldDisk,
        Self::LostIndex,
        Self::ClockSkew,
        Self::ClockJump,
        Self::ClockDrift,
        Self::Isolation,
        Self::Partition,
        Self::OneWay,
        Self::Held,
        Self::SlowLink,
        Self::Jitter,
        Self::LossyLink,
        Self::HalfOpen,
        Self::Join,
        Self::Leave,
        Self::PolicyChange,
        Self::MemoryPressure,
    ];

    /// Its name, without spaces, and what happens and when it counts as having happened.
    #[must_use]
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Kill => (
                "kill",
                "a running process is killed; what the system holds for it reaches the disk",
            ),
            Self::PowerLoss => (
                "power-loss",
                "a machine that runs loses its power: unsynced writes are lost, and nobody is told",
            ),
            Self::Blackout => ("blackout", "all machines lose their power at once"),
            Self::TornWrite => (
                "torn-write",
                "a power loss leaves a write in which some sectors are new and some are old",
            ),
            Self::Stop => ("stop", "a running process is asked to stop, and does"),
            Self::Pause => (
                "pause",
                "a running process stands still and goes on; its connections stay",
            ),
            Self::RestartStorm => (
                "restart-storm",
                "a process is killed again and again, shortly after it has begun",
            ),
            Self::CrashInStart => (
                "crash-in-start",
                "a process is killed, or loses its power, before it has started",
            ),
            Self::FailedSync => (
                "failed-sync",
                "a sync fails, and what it should write is lost",
            ),
            Self::FailedWrite => ("failed-write", "a write fails with an input/output error"),
            Self::FailedRead => ("failed-read", "a read fails with an input/output error"),
            Self::FullDisk => (
                "full-disk",
                "a write finds the disk full, or the node finds it below its reserve",
            ),
            Self::SlowDisk => ("slow-disk", "work on the disk takes up to a second each"),
            Self::HungDisk => (
                "hung-disk",
                "work on the disk of a node does not end for many seconds, while its links go on",
            ),
            Self::Rot => (
                "rot",
                "bits of a block or an index flip while the node does not run",
            ),
            Self::Misdirected => (
                "misdirected",
                "a page of a block lies in another page's place, too, since the node did not run",
            ),
            Self::LostDisk => (
                "lost-disk",
                "the disk of a node is empty when it starts again: it joins as a new node",
            ),
            Self::OldDisk => (
                "old-disk",
                "an image of the directory from before the node's last start, or the last life that it began while it ran, comes back, and is refused",
            ),
            Self::LostIndex => (
                "lost-index",
                "the index is deleted while the node does not run",
            ),
            Self::ClockSkew => (
                "clock-skew",
                "the clock of a node runs some seconds off for a while",
            ),
            Self::ClockJump => (
                "clock-jump",
                "the clock of a node jumps by many seconds, and back later",
            ),
            Self::ClockDrift => (
                "clock-drift",
                "the clock of a node runs faster or slower, by up to half, and is set right later",
            ),
            Self::Isolation => ("isolation", "a node and all others do not reach each other"),
            Self::Partition => (
                "partition",
                "two nodes and the others do not reach each other",
            ),
            Self::OneWay => (
                "one-way",
                "what one node sends another is lost; the way back works",
            ),
            Self::Held => (
                "held-link",
                "what two nodes send each other is held back, and comes at once later",
            ),
            Self::SlowLink => ("slow-link", "what two nodes send each other takes long"),
            Self::Jitter => (
                "jitter",
                "what two nodes send each other takes a while, each message another",
            ),
            Self::LossyLink => (
                "lossy-link",
                "some of what two nodes send each other is lost: connections stall",
            ),
            Self::HalfOpen => (
                "half-open",
                "one side of a connection loses it, and the other side is not told",
            ),
            Self::Join => ("join", "one more node joins while spans arrive"),
            Self::Leave => ("leave", "a node leaves while spans arrive, and is removed"),
            Self::PolicyChange => ("policy-change", "the policy is changed while spans arrive"),
            Self::MemoryPressure => (
                "memory-pressure",
                "a node has so little memory that three quarters of it are used",
            ),
        }
    }

    /// Where it strikes.
    #[must_use]
    pub fn setting(self) -> Setting {
        match self {
            Self::Kill
            | Self::PowerLoss
            | Self::TornWrite
            | Self::Stop
            | Self::CrashInStart
            | Self::FailedSync
            | Self::FullDisk
            | Self::LostIndex
            | Self::PolicyChange
            | Self::MemoryPressure => Setting::Everywhere,
            _ => Setting::Clusters,
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe().0)
    }
}

/// What makes a run unusual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A fault of what surrounds the nodes, or something that is asked of them.
    Fault(FaultKind),
    /// Something rare within a node (the product's `buggify`).
    Site(Site),
}

impl Cause {
    /// All of them, faults first.
    pub fn all() -> impl Iterator<Item = Self> {
        let faults = FaultKind::ALL.into_iter().map(Self::Fault);
        faults.chain(Site::ALL.into_iter().map(Self::Site))
    }

    /// Its name, without spaces.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.describe().0
    }

    /// What happens.
    #[must_use]
    pub fn description(self) -> &'static str {
        self.describe().1
    }

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Fault(kind) => kind.describe(),
            Self::Site(site) => site.describe(),
        }
    }

    /// Where it strikes.
    #[must_use]
    pub fn setting(self) -> Setting {
        match self {
            Self::Fault(kind) => kind.setting(),
            Self::Site(_) => Setting::Clusters,
        }
    }
}

impl From<FaultKind> for Cause {
    fn from(kind: FaultKind) -> Self {
        Self::Fault(kind)
    }
}

impl From<Site> for Cause {
    fn from(site: Site) -> Self {
        Self::Site(site)
    }
}

/// How a line begins that [`Fired`] is printed on.
const LINE: &str = "fired:";

/// How often each cause took effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fired(BTreeMap<Cause, u64>);

impl Fired {
    /// Once more.
    pub fn add(&mut self, cause: impl Into<Cause>) {
        *self.0.entry(cause.into()).or_default() += 1;
    }

    /// How often this one did.
    #[must_use]
    pub fn of(&self, cause: impl Into<Cause>) -> u64 {
        self.0.get(&cause.into()).copied().unwrap_or_default()
    }

    /// Adds what a report of a run says, if it says it.
    pub fn add_report(&mut self, report: &str) {
        let line = report.lines().find_map(|line| line.strip_prefix(LINE));
        for part in line.unwrap_or_default().split(',') {
            let Some((name, count)) = part.trim().split_once(' ') else {
                continue;
            };
            let cause = Cause::all().find(|cause| cause.name() == name);
            if let (Some(cause), Ok(count)) = (cause, count.parse::<u64>()) {
                *self.0.entry(cause).or_default() += count;
            }
        }
    }
}

impl fmt::Display for Fired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.iter();
        let counts = counts.map(|(cause, count)| format!("{} {count}", cause.name()));
        write!(f, "{LINE} {}", counts.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_is_listed_once_under_a_name_of_its_own() {
        let causes: BTreeSet<Cause> = Cause::all().collect();
        let names: BTreeSet<&str> = Cause::all().map(Cause::name).collect();
        let listed = FaultKind::ALL.len() + Site::ALL.len();
        assert_eq!([causes.len(), names.len()], [listed; 2]);
        let last = FaultKind::MemoryPressure as usize;
        assert_eq!(last + 1, FaultKind::ALL.len());
    }

    #[test]
    fn what_a_run_prints_is_added_up() {
        let mut one = Fired::default();
        one.add(FaultKind::Kill);
        one.add(FaultKind::Kill);
        one.add(FaultKind::HalfOpen);
        one.add(Site::SmallFrame);
        let report = format!("first\n{one}\nlast");
        let mut sum = one.clone();
        sum.add_report(&report);
        assert_eq!(sum.of(FaultKind::Kill), 4);
        assert_eq!(sum.of(FaultKind::HalfOpen), 2);
        assert_eq!(sum.of(Site::SmallFrame), 2);
        assert_eq!(sum.of(FaultKind::Pause), 0);
    }
}
