//! What a seed makes of a run at the message level, and the same as text: the regression files.

use std::fmt;

use super::dice::Dice;
use super::fault::{Fault, FaultKind, KINDS};

/// Virtual milliseconds in which clients send and faults strike.
const ACTIVE_MS: u64 = 4_000;
/// Most faults of a run.
const MOST_FAULTS: u64 = 14;
/// Most requests of a run.
const MOST_REQUESTS: u64 = 160;

/// One request of a client: spans of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Virtual milliseconds after the start.
    pub at_ms: u64,
    /// The trace, by number.
    pub trace: u32,
    /// How many spans, 1 to 4.
    pub spans: u32,
    /// One of them failed.
    pub error: bool,
}

/// A run: everything but the order of what happens at one moment, which follows from the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessagePlan {
    /// Of delays and choices.
    pub seed: u64,
    /// Nodes at the start, 1 to 7.
    pub nodes: usize,
    /// Shards, a power of two.
    pub shards: u16,
    /// Copies of each shard that are wanted at first.
    pub replication: u8,
    /// What clients send, in the order of time.
    pub requests: Vec<PlannedRequest>,
    /// What goes wrong, in the order of time.
    pub faults: Vec<Fault>,
}

impl MessagePlan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 1);
        let nodes = 3 + dice.index(3);
        let shards = 1 << dice.roll(3);
        let replication = match dice.roll(8) {
            0 => 1,
            1..4 => 2,
            _ => 3,
        };
        // A run has a handful of kinds, so that rare ones meet often enough.
        let kinds: Vec<FaultKind> = (0..dice.between(2, 7))
            .map(|_| KINDS[dice.index(KINDS.len())].0)
            .collect();
        let count = dice.between(1, MOST_FAULTS);
        let mut faults: Vec<Fault> = Vec::new();
        for _ in 0..count {
            // Some strike a node in which something is under way because of the one before.
            let before = faults.last().copied().filter(|_| dice.roll(3) == 0);
            let (at_ms, node) = match before {
                Some(before) => (before.at_ms + dice.between(5, 250), before.node),
                None => (dice.between(200, ACTIVE_MS), dice.index(nodes)),
            };
            faults.push(Fault {
                at_ms,
                kind: kinds[dice.index(kinds.len())],
                node,
                other: dice.index(nodes),
                for_ms: match dice.roll(4) {
                    0 => dice.between(1, 40),
                    1..3 => dice.between(40, 600),
                    _ => dice.between(600, 1_500),
                },
            });
        }
        faults.sort_by_key(|fault| fault.at_ms);
        let traces = dice.between(4, 60);
        let count = dice.between(20, MOST_REQUESTS);
        let errors = dice.between(0, 150);
        let mut requests: Vec<PlannedRequest> = (0..count)
            .map(|_| PlannedRequest {
                at_ms: dice.between(0, ACTIVE_MS),
                // Below 60, so it fits.
                trace: u32::try_from(dice.roll(traces)).unwrap_or(0),
                spans: 1 + u32::try_from(dice.roll(4)).unwrap_or(0),
                error: dice.chance(errors),
            })
            .collect();
        requests.sort_by_key(|request| request.at_ms);
        Self {
            seed,
            nodes,
            shards,
            replication,
            requests,
            faults,
        }
    }

    /// When the last fault has ended, in virtual milliseconds.
    #[must_use]
    pub fn ends_ms(&self) -> u64 {
        let ends = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms);
        let sent = self.requests.iter().map(|request| request.at_ms);
        ends.chain(sent).max().unwrap_or(0)
    }
}

impl fmt::Display for MessagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(f, "nodes {}", self.nodes)?;
        writeln!(f, "shards {}", self.shards)?;
        writeln!(f, "replication {}", self.replication)?;
        for request in &self.requests {
            let PlannedRequest {
                at_ms,
                trace,
                spans,
                error,
            } = request;
            writeln!(f, "request {at_ms} {trace} {spans} {}", u8::from(*error))?;
        }
        for fault in &self.faults {
            let Fault {
                at_ms,
                kind,
                node,
                other,
                for_ms,
            } = fault;
            writeln!(f, "fault {at_ms} {kind} {node} {other} {for_ms}")?;
        }
        Ok(())
    }
}

/// A line of a regression file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPlan {
    /// Counted from 1; 0: something is missing.
    pub line: usize,
    /// Its text.
    pub text: String,
}

impl fmt::Display for InvalidPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: `{}` is not understood", self.line, self.text)
    }
}

impl std::error::Error for InvalidPlan {}

impl MessagePlan {
    /// A plan from the text of a regression file: what [`MessagePlan`] displays, with comments that begin with `#`.
    ///
    /// # Errors
    /// [`InvalidPlan`] for the first line that is not understood, and when nodes, shards or copies are out of range.
    pub fn parse(text: &str) -> Result<Self, InvalidPlan> {
        let mut plan = Self {
            seed: 0,
            nodes: 0,
            shards: 0,
            replication: 0,
            requests: Vec::new(),
            faults: Vec::new(),
        };
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let read = match words.as_slice() {
                [] => Some(()),
                [first, ..] if first.starts_with('#') => Some(()),
                [word, rest @ ..] => plan.read(word, rest),
            };
            read.ok_or_else(|| InvalidPlan {
                line: number,
                text: line.to_owned(),
            })?;
        }
        let in_range = (1..=7).contains(&plan.nodes)
            && plan.shards.is_power_of_two()
            && (1..=7).contains(&plan.replication);
        if in_range {
            Ok(plan)
        } else {
            Err(InvalidPlan {
                line: 0,
                text: "nodes, shards or replication".to_owned(),
            })
        }
    }

    fn read(&mut self, word: &str, rest: &[&str]) -> Option<()> {
        match (word, rest) {
            ("seed", [seed]) => self.seed = seed.parse().ok()?,
            ("nodes", [nodes]) => self.nodes = nodes.parse().ok()?,
            ("shards", [shards]) => self.shards = shards.parse().ok()?,
            ("replication", [copies]) => self.replication = copies.parse().ok()?,
            ("request", [at_ms, trace, spans, error]) => self.requests.push(PlannedRequest {
                at_ms: at_ms.parse().ok()?,
                trace: trace.parse().ok()?,
                spans: spans.parse().ok()?,
                error: *error == "1",
            }),
            ("fault", [at_ms, kind, node, other, for_ms]) => self.faults.push(Fault {
                at_ms: at_ms.parse().ok()?,
                kind: kind.parse().ok()?,
                node: node.parse().ok()?,
                other: other.parse().ok()?,
                for_ms: for_ms.parse().ok()?,
            }),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        for seed in 0..50 {
            let plan = MessagePlan::of(seed);
            let text = format!("# a comment\n\n{plan}");
            assert_eq!(MessagePlan::parse(&text).unwrap(), plan);
        }
        let wrong = MessagePlan::parse("seed 1\nfault 3 rain 0 0 0\n").unwrap_err();
        assert_eq!((wrong.line, wrong.text.as_str()), (2, "fault 3 rain 0 0 0"));
    }
}
