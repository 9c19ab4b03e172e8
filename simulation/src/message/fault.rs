//! What goes wrong in a run at the message level.

use std::fmt;
use std::str::FromStr;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A process ends at once; what its disk has not synced is lost. It is started again after a while.
    Crash,
    /// All processes end at once.
    PowerLoss,
    /// The next commit of a node fails, and its process ends.
    FailedSync,
    /// A process ends, its disk is lost with it, and a new node takes its place.
    LostDisk,
    /// A process stands still for a while: everything that reaches it waits.
    Pause,
    /// The commits of a node take long.
    SlowDisk,
    /// Messages between two nodes are lost, one way or both.
    Loss,
    /// Messages between two nodes come twice, the second time much later.
    Duplicates,
    /// Messages between two nodes overtake each other.
    Reorder,
    /// Messages between two nodes take long.
    SlowLink,
    /// What one node sends to another one does not arrive.
    OneWayCut,
    /// Neither of two nodes hears the other.
    TwoWayCut,
    /// A node hears neither the others nor the settings.
    Isolation,
    /// A node hears nothing of the settings and can change none.
    SettingsCut,
    /// A node hears of each change of the settings late.
    LateMaps,
    /// The outcome of what a node proposes is not known to it, and it takes place late or never.
    LostProposals,
    /// A node that is well is taken for dead.
    FalseAlarm,
    /// The plan wants the shards elsewhere.
    Moves,
    /// Another number of copies is wanted.
    Replication,
    /// A node joins.
    Join,
    /// A node hands over what it has.
    Drain,
    /// Little of a node's disk is left: the others take its shards, as long as they are enough.
    FullDisk,
    /// A node has no memory left and decides early.
    Pressure,
    /// Somebody asks that dropped and open traces are kept.
    Promote,
}

/// All kinds with their names in regression files.
pub(crate) const KINDS: [(FaultKind, &str); 24] = [
    (FaultKind::Crash, "crash"),
    (FaultKind::PowerLoss, "power-loss"),
    (FaultKind::FailedSync, "failed-sync"),
    (FaultKind::LostDisk, "lost-disk"),
    (FaultKind::Pause, "pause"),
    (FaultKind::SlowDisk, "slow-disk"),
    (FaultKind::Loss, "loss"),
    (FaultKind::Duplicates, "duplicates"),
    (FaultKind::Reorder, "reorder"),
    (FaultKind::SlowLink, "slow-link"),
    (FaultKind::OneWayCut, "one-way-cut"),
    (FaultKind::TwoWayCut, "two-way-cut"),
    (FaultKind::Isolation, "isolation"),
    (FaultKind::SettingsCut, "settings-cut"),
    (FaultKind::LateMaps, "late-maps"),
    (FaultKind::LostProposals, "lost-proposals"),
    (FaultKind::FalseAlarm, "false-alarm"),
    (FaultKind::Moves, "moves"),
    (FaultKind::Replication, "replication"),
    (FaultKind::Join, "join"),
    (FaultKind::Drain, "drain"),
    (FaultKind::FullDisk, "full-disk"),
    (FaultKind::Pressure, "pressure"),
    (FaultKind::Promote, "promote"),
];

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; KINDS.len()] = {
        let mut all = [Self::Crash; KINDS.len()];
        let mut at = 0;
        while at < KINDS.len() {
            all[at] = KINDS[at].0;
            at += 1;
        }
        all
    };
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = KINDS.iter().find(|(kind, _)| kind == self);
        f.write_str(known.map_or("", |(_, name)| name))
    }
}

/// A word that names no fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFault(pub String);

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no fault", self.0)
    }
}

impl std::error::Error for UnknownFault {}

impl FromStr for FaultKind {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, UnknownFault> {
        let known = KINDS.iter().find(|(_, known)| *known == name);
        known
            .map(|(kind, _)| *kind)
            .ok_or_else(|| UnknownFault(name.to_owned()))
    }
}

/// One fault of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Virtual milliseconds after the start.
    pub at_ms: u64,
    /// What happens.
    pub kind: FaultKind,
    /// The node that it strikes, counted from 0 among those that there are then.
    pub node: usize,
    /// The other one, of faults between two.
    pub other: usize,
    /// How long it lasts, in virtual milliseconds.
    pub for_ms: u64,
}
