//! The verdict of each check. Pure.

use std::fmt;

use spandrel_chaos::examination::violations_of;
use spandrel_chaos::oracle::Violation;

use super::limits::SHOWN_FAILURE;

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It holds.
    Holds,
    /// It does not, and why.
    Broken(String),
    /// Another check broke before this one was judged to its end.
    Unjudged,
}

impl Verdict {
    /// In a word.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Broken(_) => "BROKEN",
            Self::Unjudged => "not judged to its end",
        }
    }
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// The cluster settles after every fault, and a node that comes back is the one that it was.
    Settles,
    /// Every request that is offered again and again is acknowledged in time.
    Clients,
    /// Every node answers what it is asked at the end.
    Answers,
    /// What was acknowledged is there, once, and nothing else.
    Acknowledged,
    /// A trace with an error is kept.
    Errors,
    /// One decision a trace, and every node says the same.
    Decisions,
    /// Searches find exactly what is kept.
    Searches,
}

impl Promise {
    /// Those that the examination at the end judges.
    const EXAMINED: [Self; 5] = [
        Self::Answers,
        Self::Acknowledged,
        Self::Errors,
        Self::Decisions,
        Self::Searches,
    ];

    fn of(violation: &Violation) -> Self {
        match violation {
            Violation::TraceLost { .. }
            | Violation::SpanLost { .. }
            | Violation::Phantom { .. }
            | Violation::Repeated { .. }
            | Violation::Incomplete { .. } => Self::Acknowledged,
            Violation::ErrorNotKept { .. } => Self::Errors,
            Violation::StillOpen { .. }
            | Violation::Split { .. }
            | Violation::Disagreement { .. } => Self::Decisions,
            Violation::NotSearchable { .. }
            | Violation::FoundWrongly { .. }
            | Violation::FoundTwice { .. } => Self::Searches,
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settles => "the cluster settles after every fault",
            Self::Clients => "what clients offer is acknowledged in time",
            Self::Answers => "every node answers at the end",
            Self::Acknowledged => "nothing acknowledged is lost",
            Self::Errors => "traces with errors are kept",
            Self::Decisions => "one decision a trace",
            Self::Searches => "searches find exactly what is kept",
        })
    }
}

/// A promise and whether it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// The promise.
    pub(crate) promise: Promise,
    /// Whether it was kept.
    pub(crate) verdict: Verdict,
}

impl Check {
    /// A check that is a matter of success.
    pub(crate) fn new(promise: Promise, done: &anyhow::Result<()>) -> Self {
        let verdict = match done {
            Ok(()) => Verdict::Holds,
            Err(error) => Verdict::Broken(shown(&format!("{error:#}"))),
        };
        Self { promise, verdict }
    }
}

/// The checks of an examination. It ends at what is broken first: what it had not come to is not judged.
pub(crate) fn examined(done: &anyhow::Result<()>) -> Vec<Check> {
    let violations = done.as_ref().err().map(violations_of).unwrap_or_default();
    let judge = |promise: Promise| {
        let mine: Vec<&Violation> = violations
            .iter()
            .filter(|violation| Promise::of(violation) == promise)
            .collect();
        match (done, mine.first()) {
            (Ok(()), _) => Verdict::Holds,
            (Err(_), Some(first)) => {
                Verdict::Broken(shown(&format!("{} times, first: {first}", mine.len())))
            }
            // Violations are answers; an error without any is none.
            (Err(_), None) if promise == Promise::Answers && !violations.is_empty() => {
                Verdict::Unjudged
            }
            (Err(error), None) if promise == Promise::Answers => {
                Verdict::Broken(shown(&error.root_cause().to_string()))
            }
            (Err(_), None) => Verdict::Unjudged,
        }
    };
    let check = |promise| Check {
        promise,
        verdict: judge(promise),
    };
    Promise::EXAMINED.into_iter().map(check).collect()
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_FAILURE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use spandrel_chaos::examination::ensure_none;
    use spandrel_model::ids::{SpanId, TraceId};

    use super::*;

    fn verdict(checks: &[Check], promise: Promise) -> &Verdict {
        let mut checks = checks.iter();
        &checks.find(|it| it.promise == promise).unwrap().verdict
    }

    #[test]
    fn a_violation_breaks_its_promise_and_leaves_the_others_unjudged() {
        let trace = TraceId([7; 16]);
        let span = SpanId([1; 8]);
        let lost = [Violation::SpanLost { trace, span }];
        let broken = ensure_none("at once", &lost).map_err(|error| error.context("logs"));
        let checks = examined(&broken);
        let Verdict::Broken(why) = verdict(&checks, Promise::Acknowledged) else {
            panic!("it holds: {checks:?}");
        };
        assert!(
            why.starts_with("1 times, first: acknowledged span"),
            "{why}"
        );
        assert_eq!(verdict(&checks, Promise::Searches), &Verdict::Unjudged);
        assert!(checks.iter().all(|it| it.verdict != Verdict::Holds));
    }

    #[test]
    fn an_error_that_is_no_violation_is_a_missing_answer() {
        let checks = examined(&Err(anyhow::anyhow!("timeout").context("logs")));
        let answers = verdict(&checks, Promise::Answers);
        assert_eq!(answers, &Verdict::Broken("timeout".to_owned()));
        let all = examined(&Ok(()));
        assert!(all.iter().all(|it| it.verdict == Verdict::Holds));
    }
}
