//! Which promise do the answers of a node break? Pure: a history and answers in, violations out.
//!
//! The promises are those of DESIGN.md: what was acknowledged is there (P1), a trace with an error is kept (P2), and
//! search agrees with what is fetched by id (P5). Not judged: traces of which nothing was acknowledged, beyond that
//! they hold no span that was never sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use spandrel_model::ids::{SpanId, TraceId};
use spandrel_model::search::TraceState;

use crate::history::{History, TraceHistory};

/// What a node answered about one trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// It is there.
    Found {
        /// Where it stands.
        state: TraceState,
        /// The node says that nothing is missing.
        complete: bool,
        /// The ids of its spans, as they came.
        spans: Vec<SpanId>,
    },
    /// The node knows no such trace.
    Absent,
}

/// What a search says of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The trace.
    pub trace: TraceId,
    /// How many spans were kept.
    pub spans: usize,
}

/// How far the decisions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Traces may still be open.
    Deciding,
    /// Everything had the time to be decided.
    Decided,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// No answer holds any of its spans, and some were acknowledged.
    TraceLost {
        /// The trace.
        trace: TraceId,
    },
    /// An acknowledged span is not in its trace.
    SpanLost {
        /// The trace.
        trace: TraceId,
        /// The span.
        span: SpanId,
    },
    /// A span is there that was never sent.
    Phantom {
        /// The trace.
        trace: TraceId,
        /// The span.
        span: SpanId,
    },
    /// A span is there more than once.
    Repeated {
        /// The trace.
        trace: TraceId,
        /// The span.
        span: SpanId,
    },
    /// The node says itself that its answer is not whole, though nothing was taken from it.
    Incomplete {
        /// The trace.
        trace: TraceId,
    },
    /// A trace with an acknowledged error span was dropped, or is open when all is decided.
    ErrorNotKept {
        /// The trace.
        trace: TraceId,
        /// Where it stands.
        state: TraceState,
    },
    /// A trace is open though all had the time to be decided.
    StillOpen {
        /// The trace.
        trace: TraceId,
    },
    /// A kept trace is not found by a search that it matches.
    NotSearchable {
        /// The trace.
        trace: TraceId,
    },
    /// A search finds a trace that is not kept, or was never sent.
    FoundWrongly {
        /// The trace.
        trace: TraceId,
    },
    /// Paging through a search gave a trace twice.
    FoundTwice {
        /// The trace.
        trace: TraceId,
    },
    /// Some spans of a trace were kept and others were not.
    Split {
        /// The trace.
        trace: TraceId,
        /// Spans that were kept, as a search counts them.
        kept: usize,
        /// Spans that are there.
        spans: usize,
    },
    /// Two answers about a trace of which nothing came in between differ.
    Disagreement {
        /// The trace.
        trace: TraceId,
        /// The first answer.
        first: String,
        /// The second one.
        second: String,
    },
}

impl Violation {
    /// The trace that it is about.
    #[must_use]
    pub fn trace(&self) -> TraceId {
        match self {
            Self::TraceLost { trace }
            | Self::SpanLost { trace, .. }
            | Self::Phantom { trace, .. }
            | Self::Repeated { trace, .. }
            | Self::Incomplete { trace }
            | Self::ErrorNotKept { trace, .. }
            | Self::StillOpen { trace }
            | Self::NotSearchable { trace }
            | Self::FoundWrongly { trace }
            | Self::FoundTwice { trace }
            | Self::Split { trace, .. }
            | Self::Disagreement { trace, .. } => *trace,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TraceLost { trace } => write!(f, "acknowledged trace {trace} is lost"),
            Self::SpanLost { trace, span } => {
                write!(f, "acknowledged span {span} of trace {trace} is lost")
            }
            Self::Phantom { trace, span } => {
                write!(f, "span {span} of trace {trace} was never sent")
            }
            Self::Repeated { trace, span } => {
                write!(f, "span {span} is in trace {trace} more than once")
            }
            Self::Incomplete { trace } => write!(f, "trace {trace} is said to be incomplete"),
            Self::ErrorNotKept { trace, state } => {
                let state = state.as_str();
                write!(f, "trace {trace} has an error and is {state}")
            }
            Self::StillOpen { trace } => write!(f, "trace {trace} is still open"),
            Self::NotSearchable { trace } => write!(f, "kept trace {trace} is not searchable"),
            Self::FoundWrongly { trace } => {
                write!(f, "a search finds trace {trace}, which is not kept")
            }
            Self::FoundTwice { trace } => write!(f, "paging gives trace {trace} twice"),
            Self::Split { trace, kept, spans } => {
                write!(f, "{kept} of {spans} spans of trace {trace} were kept")
            }
            Self::Disagreement {
                trace,
                first,
                second,
            } => write!(f, "trace {trace} is {first}, and then {second}"),
        }
    }
}

/// Judges what a node answers about one trace.
#[must_use]
pub fn judge_trace(
    id: TraceId,
    history: &TraceHistory,
    fetched: &Fetched,
    stage: Stage,
) -> Vec<Violation> {
    let Fetched::Found {
        state,
        complete,
        spans,
    } = fetched
    else {
        let lost = !history.acknowledged.is_empty();
        return lost
            .then_some(Violation::TraceLost { trace: id })
            .into_iter()
            .collect();
    };
    let mut violations = judge_spans(id, history, spans);
    if !complete {
        violations.push(Violation::Incomplete { trace: id });
    }
    match (state, stage) {
        (TraceState::Dropped, _) | (TraceState::Open, Stage::Decided)
            if history.error_acknowledged =>
        {
            violations.push(Violation::ErrorNotKept {
                trace: id,
                state: *state,
            });
        }
        (TraceState::Open, Stage::Decided) => violations.push(Violation::StillOpen { trace: id }),
        _ => {}
    }
    violations
}

fn judge_spans(id: TraceId, history: &TraceHistory, spans: &[SpanId]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut seen = BTreeSet::new();
    for &span in spans {
        if !seen.insert(span) {
            violations.push(Violation::Repeated { trace: id, span });
        }
        if !history.sent.contains(&span) {
            violations.push(Violation::Phantom { trace: id, span });
        }
    }
    let lost = history.acknowledged.difference(&seen);
    violations.extend(lost.map(|&span| Violation::SpanLost { trace: id, span }));
    violations
}

/// Judges what a node answers about all traces of a history. A trace without an answer is judged as absent.
#[must_use]
pub fn judge_traces(
    history: &History,
    answers: &BTreeMap<TraceId, Fetched>,
    stage: Stage,
) -> Vec<Violation> {
    let judge = |(id, trace)| {
        let fetched = answers.get(&id).unwrap_or(&Fetched::Absent);
        judge_trace(id, trace, fetched, stage)
    };
    history.traces().flat_map(judge).collect()
}

/// Judges searches of which every kept trace matches at least one, each paged to its end: together they find exactly
/// those. Each of `searches` has the ids in the order in which they came. Call it when everything is decided, with
/// answers for every trace that was sent.
#[must_use]
pub fn judge_searches(
    answers: &BTreeMap<TraceId, Fetched>,
    searches: &[Vec<TraceId>],
) -> Vec<Violation> {
    let is_kept = |fetched: &Fetched| {
        let state = TraceState::Kept;
        matches!(fetched, Fetched::Found { state: at, .. } if *at == state)
    };
    let kept: BTreeSet<TraceId> = answers
        .iter()
        .filter(|(_, fetched)| is_kept(fetched))
        .map(|(id, _)| *id)
        .collect();
    let mut found = BTreeSet::new();
    let mut violations = Vec::new();
    for search in searches {
        let mut seen = BTreeSet::new();
        for &trace in search {
            if !seen.insert(trace) {
                violations.push(Violation::FoundTwice { trace });
            } else if !kept.contains(&trace) {
                violations.push(Violation::FoundWrongly { trace });
            }
        }
        found.extend(seen);
    }
    let missing = kept.difference(&found);
    violations.extend(missing.map(|&trace| Violation::NotSearchable { trace }));
    violations
}

/// Judges whether each trace was kept as a whole: a search counts what was kept, a fetch by id finds what was dropped
/// too while the recovery window lasts. Call it when everything is decided.
#[must_use]
pub fn judge_splits(
    answers: &BTreeMap<TraceId, Fetched>,
    searches: &[Vec<Summary>],
) -> Vec<Violation> {
    let counted: BTreeSet<(TraceId, usize)> = searches
        .iter()
        .flatten()
        .map(|summary| (summary.trace, summary.spans))
        .collect();
    let judge = |(trace, kept): (TraceId, usize)| {
        let Some(Fetched::Found { spans, .. }) = answers.get(&trace) else {
            return None;
        };
        let spans = spans.iter().collect::<BTreeSet<_>>().len();
        (spans != kept).then_some(Violation::Split { trace, kept, spans })
    };
    counted.into_iter().filter_map(judge).collect()
}

/// Judges two rounds of answers, of two nodes or of two moments, that nothing lies between: one decision a trace, and
/// the same spans. Call it when everything is decided.
#[must_use]
pub fn judge_agreement(
    first: &BTreeMap<TraceId, Fetched>,
    second: &BTreeMap<TraceId, Fetched>,
) -> Vec<Violation> {
    let said = |fetched: &Fetched| match fetched {
        Fetched::Absent => "absent".to_owned(),
        Fetched::Found { state, spans, .. } => {
            let spans: BTreeSet<String> = spans.iter().map(ToString::to_string).collect();
            let spans: Vec<String> = spans.into_iter().collect();
            format!("{} with {}", state.as_str(), spans.join(" "))
        }
    };
    let judge = |(trace, fetched): (&TraceId, &Fetched)| {
        let first = said(fetched);
        let second = said(second.get(trace)?);
        let trace = *trace;
        (first != second).then_some(Violation::Disagreement {
            trace,
            first,
            second,
        })
    };
    first.iter().filter_map(judge).collect()
}

/// Judges two rounds of answers between which more spans may have come: what was kept stays kept.
#[must_use]
pub fn judge_keeps(
    before: &BTreeMap<TraceId, Fetched>,
    after: &BTreeMap<TraceId, Fetched>,
) -> Vec<Violation> {
    let state_of = |fetched: &Fetched| match fetched {
        Fetched::Absent => "absent",
        Fetched::Found { state, .. } => state.as_str(),
    };
    let kept = TraceState::Kept.as_str();
    let judge = |(trace, fetched): (&TraceId, &Fetched)| {
        let (first, second) = (state_of(fetched), state_of(after.get(trace)?));
        (first == kept && second != kept).then(|| Violation::Disagreement {
            trace: *trace,
            first: first.to_owned(),
            second: second.to_owned(),
        })
    };
    before.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: TraceId = TraceId([7; 16]);

    fn span(number: u8) -> SpanId {
        SpanId([number; 8])
    }

    /// Spans 1 and 2 acknowledged, 3 only sent.
    fn history(error: bool) -> TraceHistory {
        TraceHistory {
            sent: [span(1), span(2), span(3)].into(),
            acknowledged: [span(1), span(2)].into(),
            error_acknowledged: error,
        }
    }

    fn found(state: TraceState, spans: &[u8]) -> Fetched {
        Fetched::Found {
            state,
            complete: true,
            spans: spans.iter().copied().map(span).collect(),
        }
    }

    fn judge(error: bool, fetched: &Fetched, stage: Stage) -> Vec<String> {
        let violations = judge_trace(TRACE, &history(error), fetched, stage);
        violations
            .iter()
            .map(|violation| {
                let text = violation.to_string();
                text.replace(&TRACE.to_string(), "T")
            })
            .collect()
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_or_not() {
        for spans in [&[1, 2][..], &[2, 3, 1]] {
            let fetched = found(TraceState::Dropped, spans);
            assert!(judge(false, &fetched, Stage::Decided).is_empty());
        }
        let nothing = TraceHistory {
            acknowledged: BTreeSet::new(),
            ..history(false)
        };
        assert!(judge_trace(TRACE, &nothing, &Fetched::Absent, Stage::Decided).is_empty());
    }

    #[test]
    fn losses_phantoms_and_repetitions_are_named() {
        let fetched = found(TraceState::Kept, &[1, 1, 9]);
        let said = judge(false, &fetched, Stage::Deciding);
        assert_eq!(
            said,
            [
                "span 0101010101010101 is in trace T more than once",
                "span 0909090909090909 of trace T was never sent",
                "acknowledged span 0202020202020202 of trace T is lost",
            ]
        );
        let lost = judge(false, &Fetched::Absent, Stage::Deciding);
        assert_eq!(lost, ["acknowledged trace T is lost"]);
    }

    #[test]
    fn errors_are_kept_at_last_and_never_dropped() {
        let whole = [1, 2];
        let open = found(TraceState::Open, &whole);
        let dropped = found(TraceState::Dropped, &whole);
        assert!(judge(true, &open, Stage::Deciding).is_empty());
        assert_eq!(
            judge(true, &open, Stage::Decided),
            ["trace T has an error and is open"]
        );
        assert_eq!(
            judge(true, &dropped, Stage::Deciding),
            ["trace T has an error and is dropped"]
        );
        assert_eq!(
            judge(false, &open, Stage::Decided),
            ["trace T is still open"]
        );
        assert!(judge(true, &found(TraceState::Kept, &whole), Stage::Decided).is_empty());
    }

    #[test]
    fn a_search_finds_the_kept_traces_and_no_others() {
        let id = |number| TraceId([number; 16]);
        let answers = BTreeMap::from([
            (id(1), found(TraceState::Kept, &[1])),
            (id(2), found(TraceState::Kept, &[1])),
            (id(3), found(TraceState::Dropped, &[1])),
        ]);
        assert!(judge_searches(&answers, &[vec![id(2)], vec![id(2), id(1)]]).is_empty());
        assert_eq!(
            judge_searches(&answers, &[vec![id(1), id(1), id(3), id(4)]]),
            [
                Violation::FoundTwice { trace: id(1) },
                Violation::FoundWrongly { trace: id(3) },
                Violation::FoundWrongly { trace: id(4) },
                Violation::NotSearchable { trace: id(2) },
            ]
        );
    }

    #[test]
    fn a_trace_is_kept_as_a_whole_or_not_at_all() {
        let id = TRACE;
        let answers = BTreeMap::from([(id, found(TraceState::Kept, &[1, 2]))]);
        let summary = |spans| vec![Summary { trace: id, spans }];
        assert!(judge_splits(&answers, &[summary(2), summary(2)]).is_empty());
        assert_eq!(
            judge_splits(&answers, &[summary(2), summary(1)]),
            [Violation::Split {
                trace: id,
                kept: 1,
                spans: 2
            }]
        );
    }

    #[test]
    fn nodes_agree_on_states_and_spans_and_keeps_stay() {
        let answers = |state, spans: &[u8]| BTreeMap::from([(TRACE, found(state, spans))]);
        let kept = answers(TraceState::Kept, &[1, 2]);
        let dropped = answers(TraceState::Dropped, &[1, 2]);
        let reordered = answers(TraceState::Kept, &[2, 1]);
        assert!(judge_agreement(&kept, &reordered).is_empty());
        assert_eq!(judge_agreement(&kept, &dropped).len(), 1);
        assert_eq!(
            judge_agreement(&kept, &answers(TraceState::Kept, &[1])).len(),
            1
        );
        assert!(judge_keeps(&dropped, &kept).is_empty());
        assert_eq!(judge_keeps(&kept, &dropped).len(), 1);
    }
}
