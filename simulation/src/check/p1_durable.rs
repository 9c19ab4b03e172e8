//! P1: no acknowledged span is lost inside its retention; and nothing is returned that was not sent, or twice.
//!
//! Not verified: spans of a dropped trace after the recovery window has passed since their acknowledgement (they may
//! be there or not), and the order in which spans come.

use std::collections::BTreeSet;

use spandrel_model::ids::UnixNanos;
use spandrel_model::search::TraceState;
use spandrel_model::verdict::Verdict;

use super::Observation;
use crate::model::{Seen, TraceRecord};

/// How long spans must be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    /// Those of a dropped trace, after their acknowledgement.
    pub(crate) window_nanos: u64,
    /// Those of a kept trace.
    pub(crate) retained_until: UnixNanos,
    /// Shards move, and spans of what was dropped are not brought along (docs/replication.md).
    pub(crate) may_forget_drops: bool,
    /// False where nothing need be there: the answer says that it is not whole, or nobody has it any more.
    pub(crate) all: bool,
}

/// Nothing is returned that was not sent, or twice. `after`: the trace as the clients knew it after the question.
pub(crate) fn nothing_else(after: &TraceRecord, observed: &Observation) -> Result<(), String> {
    let mut returned = BTreeSet::new();
    for span in &observed.spans {
        if span.trace_id != after.trace_id.0 {
            return Err(format!("span `{}` of another trace is returned", span.name));
        }
        if !after
            .spans
            .get(&span.fingerprint)
            .is_some_and(|known| known.sent)
        {
            return Err(format!(
                "span `{}` is returned though it was never sent so",
                span.name
            ));
        }
        if !returned.insert(span.fingerprint) {
            return Err(format!("span `{}` is returned twice", span.name));
        }
    }
    Ok(())
}

/// Everything is returned that must be. `before`: the trace as the clients knew it before the question.
pub(crate) fn nothing_lost(
    before: &TraceRecord,
    observed: &Observation,
    needed: Needed,
) -> Result<(), String> {
    let returned = observed.spans.iter().map(|span| span.fingerprint);
    let returned: BTreeSet<_> = returned.collect();
    if observed.at >= needed.retained_until || !needed.all {
        return Ok(());
    }
    let drop = |decision: &Seen| decision.verdict == Verdict::Drop;
    if needed.may_forget_drops && observed.decision.as_ref().is_some_and(drop) {
        return Ok(());
    }
    let Some(since) = required_since(before, observed, needed.window_nanos) else {
        return Ok(());
    };
    let required: Vec<_> = before.acked_after(since).collect();
    let lost = required
        .iter()
        .filter(|fingerprint| !returned.contains(fingerprint))
        .count();
    match lost {
        0 if !observed.complete => Err("the answer says that it is not complete".to_owned()),
        0 => Ok(()),
        _ => Err(format!(
            "{lost} of {} acknowledged spans are not returned",
            required.len()
        )),
    }
}

/// Spans that were acknowledged after this instant must be there; `None`: none.
fn required_since(
    before: &TraceRecord,
    observed: &Observation,
    window_nanos: u64,
) -> Option<UnixNanos> {
    let kept_at = |at: UnixNanos| Some(at.minus(window_nanos));
    if let Some(seen) = before
        .seen
        .as_ref()
        .filter(|seen| seen.verdict == Verdict::Keep)
    {
        return kept_at(seen.decided_at);
    }
    match (observed.state, &observed.decision) {
        (Some(TraceState::Kept), Some(decision)) => kept_at(decision.decided_at),
        (_, Some(decision))
            if decision.verdict == Verdict::Drop && observed.at >= decision.until =>
        {
            None
        }
        _ => kept_at(observed.at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ReturnedSpan, SpanRecord};

    const SECOND: u64 = UnixNanos::PER_SECOND;

    fn trace(spans: &[(u64, Option<u64>)]) -> TraceRecord {
        let record = |acked: Option<u64>| SpanRecord {
            is_error: false,
            sent: true,
            acked_at: acked.map(|seconds| UnixNanos(seconds * SECOND)),
        };
        TraceRecord {
            tenant: "default".parse().unwrap(),
            trace_id: spandrel_model::ids::TraceId([1; 16]),
            spans: spans
                .iter()
                .map(|(number, acked)| (*number, record(*acked)))
                .collect(),
            seen: None,
            first_sent_at: Some(UnixNanos(SECOND)),
            read_spans: 0,
        }
    }

    fn answer(at: u64, verdict: Option<Verdict>, spans: &[u64]) -> Observation {
        let span = |number: &u64| ReturnedSpan {
            fingerprint: *number,
            trace_id: vec![1; 16],
            service: "cart".to_owned(),
            name: "x".to_owned(),
        };
        let state = match verdict {
            None => TraceState::Open,
            Some(Verdict::Keep) => TraceState::Kept,
            Some(Verdict::Drop) => TraceState::Dropped,
        };
        Observation {
            at: UnixNanos(at * SECOND),
            state: Some(state),
            complete: true,
            missing: Vec::new(),
            decision: verdict.map(|verdict| Seen {
                verdict,
                decided_at: UnixNanos(20 * SECOND),
                policy: String::new(),
                until: UnixNanos(80 * SECOND),
            }),
            span_count: 0,
            spans: spans.iter().map(span).collect(),
        }
    }

    fn verdict(trace: &TraceRecord, observed: &Observation) -> Result<(), String> {
        let needed = Needed {
            window_nanos: 60 * SECOND,
            retained_until: UnixNanos(2_000 * SECOND),
            may_forget_drops: false,
            all: true,
        };
        nothing_else(trace, observed).and_then(|()| nothing_lost(trace, observed, needed))
    }

    #[test]
    fn lost_phantom_and_repeated_spans_are_found() {
        let trace = trace(&[(1, Some(10)), (2, Some(11)), (3, None)]);
        assert!(verdict(&trace, &answer(20, None, &[1, 2])).is_ok());
        assert!(verdict(&trace, &answer(20, None, &[1, 2, 3])).is_ok());
        assert!(verdict(&trace, &answer(20, None, &[1])).is_err());
        assert!(verdict(&trace, &answer(20, None, &[1, 2, 2])).is_err());
        assert!(verdict(&trace, &answer(20, None, &[1, 2, 4])).is_err());
    }

    #[test]
    fn a_dropped_trace_is_demanded_while_the_window_is_open_and_a_kept_one_within_its_retention() {
        let trace = trace(&[(1, Some(10))]);
        assert!(verdict(&trace, &answer(65, Some(Verdict::Drop), &[])).is_err());
        assert!(verdict(&trace, &answer(81, Some(Verdict::Drop), &[])).is_ok());
        assert!(verdict(&trace, &answer(1_999, Some(Verdict::Keep), &[])).is_err());
        assert!(verdict(&trace, &answer(2_000, Some(Verdict::Keep), &[])).is_ok());
    }
}
