//! P2: one current decision per trace within the horizon; it changes only from drop to keep; a trace with an
//! acknowledged error span is kept. A drop may be decided again as a drop: the newer record names the late spans.
//!
//! Not verified: that a healthy trace is dropped (a limiter or an early decision may keep it), traces whose
//! retention has passed, and policies other than the ones of the plan.

use spandrel_model::search::TraceState;
use spandrel_model::verdict::Verdict;

use super::Observation;
use crate::model::{Seen, TraceRecord};

/// What may still change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    /// Every trace is decided.
    pub(crate) is_settled: bool,
    /// Which of two drops is the later one, their times do not say.
    pub(crate) clocks_differ: bool,
}

pub(crate) fn check(
    before: &TraceRecord,
    after: &TraceRecord,
    observed: &Observation,
    judged: Judged,
) -> Result<(), String> {
    if let Some(seen) = &before.seen {
        unchanged(seen, observed, judged.clocks_differ)?;
    }
    if !judged.is_settled || !after.is_acked() {
        return Ok(());
    }
    match observed.state {
        Some(TraceState::Open) => Err("it is still open".to_owned()),
        Some(TraceState::Kept) => Ok(()),
        _ if after.has_acked_error() => Err("it has an error span and is not kept".to_owned()),
        _ => Ok(()),
    }
}

fn unchanged(seen: &Seen, observed: &Observation, clocks_differ: bool) -> Result<(), String> {
    let decision = observed.decision.as_ref();
    let verdict = decision.map(|decision| decision.verdict);
    match seen.verdict {
        Verdict::Keep if observed.state != Some(TraceState::Kept) => {
            Err("it was kept and is not any more".to_owned())
        }
        Verdict::Keep
            if decision.is_some_and(|decision| decision.decided_at != seen.decided_at) =>
        {
            Err("it was kept and is decided a second time".to_owned())
        }
        // What the journal no longer holds may be decided anew.
        Verdict::Drop if observed.at >= seen.until => Ok(()),
        Verdict::Drop if verdict.is_none() => {
            Err("it was dropped and has no decision any more".to_owned())
        }
        Verdict::Drop
            if !clocks_differ
                && decision.is_some_and(|decision| decision.decided_at < seen.decided_at) =>
        {
            Err("it was dropped and shows an older decision".to_owned())
        }
        _ => Ok(()),
    }
}
