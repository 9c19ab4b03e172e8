//! Traces by id between nodes.

use spandrel_model::ids::UnixNanos;
use spandrel_model::ports::{DecisionView, TraceAbsence};
use spandrel_model::search::{MissingPart, TraceState};
use spandrel_model::verdict::{CERTAIN, Trigger, Verdict};

use super::search::{decode_state, encode_state};
use super::{Malformed, decode_missing, encode_missing, malformed};
use crate::wire::{self, trace_answer::Outcome};

/// What a node answers of a trace.
#[derive(Debug, PartialEq)]
pub(crate) enum OpenedTrace {
    Found(OpenedPart),
    Absent(TraceAbsence),
}

/// What a node has of a trace, and the first bytes of it.
#[derive(Debug, PartialEq)]
pub(crate) struct OpenedPart {
    pub(crate) state: TraceState,
    pub(crate) missing: Vec<MissingPart>,
    pub(crate) decision: Option<DecisionView>,
    pub(crate) span_count: u32,
    /// In 2^-32.
    pub(crate) probability: u64,
    pub(crate) first: wire::TracePiece,
    /// 0: `first` is all.
    pub(crate) reader: u64,
}

pub(crate) fn encode_trace(trace: OpenedTrace) -> wire::TraceAnswer {
    let outcome = match trace {
        OpenedTrace::Absent(TraceAbsence::Dropped(decision)) => {
            Outcome::Dropped(encode_decision(&decision))
        }
        OpenedTrace::Absent(TraceAbsence::Unknown { retained_since }) => {
            Outcome::UnknownSince(retained_since.0)
        }
        OpenedTrace::Found(part) => Outcome::Found(wire::FoundPart {
            state: encode_state(part.state),
            missing: encode_missing(&part.missing),
            decision: part.decision.as_ref().map(encode_decision),
            span_count: part.span_count,
            probability: part.probability,
            first: Some(part.first),
            reader: part.reader,
        }),
    };
    wire::TraceAnswer {
        outcome: Some(outcome),
    }
}

pub(crate) fn decode_trace(answer: wire::TraceAnswer) -> Result<OpenedTrace, Malformed> {
    let outcome = answer.outcome.ok_or_else(malformed("outcome"))?;
    Ok(match outcome {
        Outcome::Dropped(decision) => {
            OpenedTrace::Absent(TraceAbsence::Dropped(decode_decision(&decision)?))
        }
        Outcome::UnknownSince(since) => OpenedTrace::Absent(TraceAbsence::Unknown {
            retained_since: UnixNanos(since),
        }),
        Outcome::Found(part) => {
            let first = part.first.ok_or_else(malformed("first"))?;
            if (part.reader == 0) != first.last {
                return Err(malformed("reader")());
            }
            OpenedTrace::Found(OpenedPart {
                state: decode_state(part.state)?,
                missing: decode_missing(part.missing)?,
                decision: part.decision.as_ref().map(decode_decision).transpose()?,
                span_count: part.span_count,
                probability: part.probability.min(CERTAIN),
                first,
                reader: part.reader,
            })
        }
    })
}

pub(crate) fn encode_decision(decision: &DecisionView) -> wire::TraceDecision {
    wire::TraceDecision {
        verdict: decision.verdict as u32,
        policy: decision.policy.clone(),
        trigger: decision.trigger as u32,
        policy_version: decision.policy_version,
        probability: decision.probability,
        decided_at: decision.decided_at.0,
        recoverable_until: decision.recoverable_until.map(|until| until.0),
    }
}

pub(crate) fn decode_decision(decision: &wire::TraceDecision) -> Result<DecisionView, Malformed> {
    let trigger = u8::try_from(decision.trigger).ok();
    let trigger = trigger.and_then(Trigger::from_number);
    let is_probability = (0.0..=1.0).contains(&decision.probability);
    Ok(DecisionView {
        verdict: match decision.verdict {
            0 => Verdict::Drop,
            1 => Verdict::Keep,
            _ => return Err(malformed("verdict")()),
        },
        policy: decision.policy.clone(),
        trigger: trigger.ok_or_else(malformed("trigger"))?,
        policy_version: decision.policy_version,
        probability: is_probability
            .then_some(decision.probability)
            .ok_or_else(malformed("probability"))?,
        decided_at: UnixNanos(decision.decided_at),
        recoverable_until: decision.recoverable_until.map(UnixNanos),
    })
}
