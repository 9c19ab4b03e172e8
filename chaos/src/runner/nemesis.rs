//! What strikes, whom, and for how long: drawn from a seed.

use std::fmt;
use std::time::Duration;

use anyhow::{bail, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::limits::{LONGEST_HOLD_MS, MOST_JOINS, SHORTEST_HOLD_MS};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nemesis {
    /// SIGKILL, and the node is started again.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// The node reaches no other one, and then it does.
    Partition,
    /// What the node and the others send each other takes long, and then it does not.
    Slow,
    /// SIGTERM, and the node is started again: as at an upgrade.
    Restart,
    /// SIGKILL, bytes of a block or of the journal change, and the node is started again.
    Rot,
    /// A new node joins.
    Join,
    /// The node's disk has no room, and then it has.
    DiskFull,
    /// The node's wall clock jumps or runs off, and then it is right.
    Clock,
    /// All nodes, one after the other, are stopped by SIGTERM and started as the version before, and then back.
    Upgrade,
    /// The node leaves, its process ends, and a new one joins in its place.
    Leave,
}

impl Nemesis {
    const ALL: [Self; 11] = [
        Self::Kill,
        Self::Pause,
        Self::Partition,
        Self::Slow,
        Self::Restart,
        Self::Rot,
        Self::Join,
        Self::DiskFull,
        Self::Clock,
        Self::Upgrade,
        Self::Leave,
    ];

    /// As on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::Slow => "slow",
            Self::Restart => "restart",
            Self::Rot => "rot",
            Self::Join => "join",
            Self::DiskFull => "disk-full",
            Self::Clock => "clock",
            Self::Upgrade => "upgrade",
            Self::Leave => "leave",
        }
    }
}

/// Faults to draw from.
///
/// Invariant: at least one, and none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nemeses(Vec<Nemesis>);

impl Nemeses {
    /// Whether this one is among them.
    pub(crate) fn contains(&self, nemesis: Nemesis) -> bool {
        self.0.contains(&nemesis)
    }
}

impl fmt::Display for Nemeses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|it| it.as_str()).collect();
        f.write_str(&names.join(", "))
    }
}

/// The list of the command line: names, separated by commas.
///
/// # Errors
/// When a name is unknown or comes twice, or there is none.
pub(crate) fn parse_nemeses(text: &str) -> anyhow::Result<Nemeses> {
    let mut all = Vec::new();
    for name in text.split(',').map(str::trim) {
        let found = Nemesis::ALL.into_iter().find(|it| it.as_str() == name);
        let Some(nemesis) = found else {
            let names: Vec<&str> = Nemesis::ALL.iter().map(|it| it.as_str()).collect();
            bail!("unknown nemesis `{name}`: there are {}", names.join(", "));
        };
        ensure!(!all.contains(&nemesis), "`{name}` is named twice");
        all.push(nemesis);
    }
    Ok(Nemeses(all))
}

/// One fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stroke {
    /// What strikes.
    pub(crate) nemesis: Nemesis,
    /// The place of the node that is struck; of a join, the place that will be the new node's; of an upgrade, where it
    /// begins.
    pub(crate) victim: usize,
    /// How long it lasts.
    pub(crate) hold: Duration,
}

/// Draws faults. Each kind comes once before any comes again: a short run has them all.
#[derive(Debug)]
pub(crate) struct Schedule {
    random: ChaCha8Rng,
    nemeses: Nemeses,
    /// What is left of this round.
    round: Vec<Nemesis>,
    joins: usize,
}

impl Schedule {
    /// The faults of a seed.
    pub(crate) fn new(nemeses: Nemeses, seed: u64) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            nemeses,
            round: Vec::new(),
            joins: 0,
        }
    }

    /// The next fault of a cluster of so many nodes; none when only joins are left, and there were enough of them.
    pub(crate) fn next(&mut self, nodes: usize) -> Option<Stroke> {
        if self.round.is_empty() {
            self.round.clone_from(&self.nemeses.0);
        }
        if self.joins >= MOST_JOINS {
            self.round.retain(|nemesis| *nemesis != Nemesis::Join);
        }
        if self.round.is_empty() {
            self.round.clone_from(&self.nemeses.0);
            self.round.retain(|nemesis| *nemesis != Nemesis::Join);
        }
        if self.round.is_empty() || nodes == 0 {
            return None;
        }
        let drawn = self.random.random_range(0..self.round.len());
        let nemesis = self.round.swap_remove(drawn);
        let victim = self.random.random_range(0..nodes);
        let hold = self.random.random_range(SHORTEST_HOLD_MS..=LONGEST_HOLD_MS);
        let mut stroke = Stroke {
            nemesis,
            victim,
            hold: Duration::from_millis(hold),
        };
        if nemesis == Nemesis::Join {
            self.joins += 1;
            stroke.victim = nodes;
            stroke.hold = Duration::ZERO;
        }
        Some(stroke)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_names_and_nothing_else() {
        let list = parse_nemeses("kill, partition").unwrap();
        assert_eq!(list.to_string(), "kill, partition");
        assert!(list.contains(Nemesis::Kill) && !list.contains(Nemesis::Pause));

        for (text, expected) in [
            ("", "unknown nemesis ``"),
            ("kill,", "unknown nemesis ``"),
            ("Kill", "unknown nemesis `Kill`"),
            ("kill,pause,kill", "`kill` is named twice"),
        ] {
            let error = parse_nemeses(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_seed_repeats_its_faults_and_each_kind_comes_in_each_round() {
        let all = parse_nemeses(
            "kill,pause,partition,slow,restart,rot,join,disk-full,clock,upgrade,leave",
        )
        .unwrap();
        let draw = || {
            let mut schedule = Schedule::new(all.clone(), 7);
            (0..22).map_while(|_| schedule.next(5)).collect::<Vec<_>>()
        };
        let strokes = draw();
        assert_eq!(strokes, draw());
        assert_eq!(strokes.len(), 22);
        for nemesis in Nemesis::ALL {
            let first = &strokes[..Nemesis::ALL.len()];
            assert!(
                first.iter().any(|it| it.nemesis == nemesis),
                "{nemesis:?} is not in {first:?}"
            );
        }
        let joins = strokes.iter().filter(|it| it.nemesis == Nemesis::Join);
        assert_eq!(joins.count(), MOST_JOINS);
    }

    #[test]
    fn joins_alone_end() {
        let mut schedule = Schedule::new(parse_nemeses("join").unwrap(), 7);
        assert_eq!(schedule.next(3).map(|it| it.victim), Some(3));
        assert_eq!(schedule.next(4).map(|it| it.victim), Some(4));
        assert_eq!(schedule.next(5), None);
    }
}
