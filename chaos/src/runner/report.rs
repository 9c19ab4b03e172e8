//! What a run was, what came of it, and whether it passes. Pure.

use std::fmt::Write;

use spandrel_chaos::attempts::{Attempt, Outcome, millis};
use spandrel_chaos::load::LoadReport;

use super::check::{self, Check, Promise, Verdict};
use super::limits::STRIKE_WINDOW_MS;
use super::measure::{Strike, spans_with, success, success_elsewhere, success_outside};
use super::nemesis::{Nemeses, Nemesis, Stroke};
use super::trial::Ending;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Faults to draw from.
    pub(crate) nemeses: Nemeses,
    /// How long faults are begun.
    pub(crate) minutes: u64,
    /// Nodes at the beginning.
    pub(crate) nodes: usize,
    /// Copies of each shard.
    pub(crate) copies: usize,
    /// What everything is drawn from.
    pub(crate) seed: u64,
    /// The program under test.
    pub(crate) binary: String,
}

impl Setup {
    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self {
            nemeses,
            minutes,
            nodes,
            copies,
            seed,
            binary,
        } = self;
        format!(
            "{nemeses} for {minutes} min, on {nodes} nodes with {copies} copies, seed {seed}, of {binary}"
        )
    }
}

/// A fault that struck. Times are milliseconds from the start of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What struck.
    pub(crate) nemesis: Nemesis,
    /// The place of the node, from 0.
    pub(crate) victim: usize,
    /// The node's number in the cluster; empty when it never had one.
    pub(crate) node: String,
    /// When it struck.
    pub(crate) struck_ms: u64,
    /// When it was over; of a join, when the new node was ready.
    pub(crate) healed_ms: Option<u64>,
    /// When the cluster was well again.
    pub(crate) settled_ms: Option<u64>,
}

impl Fault {
    /// It strikes now.
    pub(crate) fn new(stroke: Stroke, struck_ms: u64) -> Self {
        Self {
            nemesis: stroke.nemesis,
            victim: stroke.victim,
            node: String::new(),
            struck_ms,
            healed_ms: None,
            settled_ms: None,
        }
    }

    /// Who was struck: a node by its number in the cluster and its place among the processes.
    pub(crate) fn whom(&self) -> String {
        match self.node.as_str() {
            "" => format!("place {}", self.victim),
            node => format!("node {node} (place {})", self.victim),
        }
    }

    /// How long it lasted, and how long it took from then until the cluster was well.
    pub(crate) fn periods(&self) -> (String, String) {
        let period = |from: Option<u64>, to: Option<u64>| match (from, to) {
            (Some(from), Some(to)) => seconds(to.saturating_sub(from)),
            _ => "never".to_owned(),
        };
        (
            period(Some(self.struck_ms), self.healed_ms),
            period(self.healed_ms, self.settled_ms),
        )
    }
}

/// A name and a value, to be shown.
pub(crate) type Figure = (&'static str, String);

/// A run and its judgement.
#[derive(Debug)]
pub(crate) struct Report {
    /// What was asked for.
    pub(crate) setup: Setup,
    /// What struck.
    pub(crate) faults: Vec<Fault>,
    /// What the clients did.
    pub(crate) attempts: Vec<Attempt>,
    /// What was judged.
    pub(crate) checks: Vec<Check>,
    acknowledged_spans: usize,
    load: LoadReport,
}

impl Report {
    /// Judges what came of a run.
    pub(crate) fn new(setup: Setup, ending: Ending, attempts: Vec<Attempt>) -> Self {
        let mut checks = vec![
            Check::new(Promise::Settles, &ending.settled),
            Check::new(Promise::Clients, &ending.clients),
        ];
        checks.extend(check::examined(&ending.examined));
        Self {
            setup,
            faults: ending.faults,
            attempts,
            checks,
            acknowledged_spans: ending.acknowledged_spans,
            load: ending.load,
        }
    }

    /// Whether every check holds. One that was not judged to its end does not.
    pub(crate) fn passes(&self) -> bool {
        let mut checks = self.checks.iter();
        checks.all(|check| check.verdict == Verdict::Holds)
    }

    /// In a word.
    pub(crate) fn verdict(&self) -> &'static str {
        if self.passes() { "PASS" } else { "FAIL" }
    }

    /// What is counted, and not judged.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let strikes = self.faults.iter().map(|fault| Strike {
            victim: fault.victim,
            at_ms: fault.struck_ms,
            healed_ms: fault.healed_ms.unwrap_or(u64::MAX),
        });
        let strikes: Vec<Strike> = strikes.collect();
        let all = success(&self.attempts);
        let outside = success_outside(&self.attempts, &strikes);
        let elsewhere = success_elsewhere(&self.attempts, &strikes);
        let of = |outcome| spans_with(&self.attempts, outcome);
        let refused: usize = self.load.refused.values().sum();
        let codes: Vec<String> = self
            .load
            .refused
            .iter()
            .map(|(code, count)| format!("{code} {count}"))
            .collect();
        let codes = match codes.is_empty() {
            true => String::new(),
            false => format!(": {}", codes.join(", ")),
        };
        let unanswered: usize = self.load.unanswered.values().sum();
        let outside_name = "attempts acknowledged outside of strikes";
        vec![
            (
                "spans acknowledged",
                format!(
                    "{} ({} requests)",
                    self.acknowledged_spans, self.load.acknowledged
                ),
            ),
            (
                "spans refused, sent again",
                format!("{} ({refused} attempts{codes})", of(Outcome::Refused)),
            ),
            (
                "spans unanswered",
                format!("{} ({unanswered} attempts)", of(Outcome::Unanswered)),
            ),
            ("requests given up in doubt", self.load.given_up.to_string()),
            (
                "longest wait for a request",
                seconds(millis(self.load.longest_wait)),
            ),
            (
                "attempts acknowledged",
                format!("{} of {}", all.percent(), all.attempts),
            ),
            (
                outside_name,
                format!(
                    "{} of {} (without {} s after each strike)",
                    outside.percent(),
                    outside.attempts,
                    STRIKE_WINDOW_MS / 1000
                ),
            ),
            (
                "the same at nodes that were not struck",
                format!("{} of {}", elsewhere.percent(), elsewhere.attempts),
            ),
        ]
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!("chaos: {}", self.setup.line()), String::new()];
        lines.push("faults".to_owned());
        for fault in &self.faults {
            let (lasted, settled) = fault.periods();
            let (struck, name) = (seconds(fault.struck_ms), fault.nemesis.as_str());
            let whom = fault.whom();
            lines.push(format!(
                "  {struck:>8}  {name:<9}  {whom:<20}  lasted {lasted}, settled after another {settled}"
            ));
        }
        lines.extend([String::new(), "figures".to_owned()]);
        for (name, value) in self.figures() {
            lines.push(format!("  {name:<42}  {value}"));
        }
        lines.extend([String::new(), "checks".to_owned()]);
        for Check { promise, verdict } in &self.checks {
            let name = promise.to_string();
            let mut line = format!("  {name:<42}  {}", verdict.as_str());
            if let Verdict::Broken(why) = verdict {
                let why = why.replace('\n', "\n    ");
                // A String takes everything.
                let _ = write!(line, "\n    {why}");
            }
            lines.push(line);
        }
        lines.extend([String::new(), self.verdict().to_owned(), String::new()]);
        lines.join("\n")
    }
}

/// Milliseconds as seconds.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
pub(crate) mod tests {
    use anyhow::anyhow;
    use spandrel_chaos::examination::ensure_none;
    use spandrel_chaos::oracle::Violation;
    use spandrel_model::ids::TraceId;

    use super::super::nemesis::parse_nemeses;
    use super::*;

    /// A run of one kill.
    pub(crate) fn report(settled: anyhow::Result<()>, examined: anyhow::Result<()>) -> Report {
        let setup = Setup {
            nemeses: parse_nemeses("kill").unwrap(),
            minutes: 1,
            nodes: 3,
            copies: 2,
            seed: 7,
            binary: "/tmp/<spandrel>".to_owned(),
        };
        let ending = Ending {
            faults: vec![Fault {
                nemesis: Nemesis::Kill,
                victim: 1,
                node: "2".to_owned(),
                struck_ms: 2_000,
                healed_ms: Some(6_500),
                settled_ms: None,
            }],
            acknowledged_spans: 10,
            load: LoadReport::default(),
            settled,
            clients: Ok(()),
            examined,
        };
        let attempt = |at_ms, outcome| Attempt {
            at_ms,
            node: 0,
            spans: 10,
            outcome,
            latency_ms: 4,
        };
        let attempts = vec![
            attempt(1_000, Outcome::Acknowledged),
            attempt(2_500, Outcome::Refused),
        ];
        Report::new(setup, ending, attempts)
    }

    #[test]
    fn a_run_without_a_violation_passes_and_says_what_struck() {
        let report = report(Ok(()), Ok(()));
        assert!(report.passes());
        let text = report.text();
        for expected in [
            "2.0 s  kill       node 2 (place 1)      lasted 4.5 s, settled after another never",
            "50.00 % of 2",
            "100.00 % of 1",
            "\nPASS\n",
        ] {
            assert!(text.contains(expected), "no `{expected}` in:\n{text}");
        }
    }

    #[test]
    fn a_violation_fails_and_so_does_a_cluster_that_does_not_settle() {
        let trace = TraceId([7; 16]);
        let lost = ensure_none("at once", &[Violation::TraceLost { trace }]);
        let violated = report(Ok(()), lost);
        assert!(!violated.passes());
        let text = violated.text();
        assert!(
            text.contains("is lost") && text.contains("\nFAIL\n"),
            "{text}"
        );

        let unsettled = report(Err(anyhow!("not settled")), Ok(()));
        assert!(!unsettled.passes());
        assert!(unsettled.text().contains("not settled"));
    }
}
