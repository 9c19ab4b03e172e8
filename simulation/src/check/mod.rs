//! The checkers: one promise a file. They compare what the node answers with what its clients know.
//!
//! Not verified here: isolation of tenants beyond ids that two of them share (P3), and memory outside the credit pool
//! (P4).

mod accounting;
mod converged;
mod credit;
mod demands;
mod halt;
mod one_owner;
mod p1_durable;
mod p2_one_decision;
mod p2_recomputed;
mod p5_search;
mod p6_visible;
mod p7_retention;
mod waits;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{DecisionView, Query, TraceAbsence, TraceLookup};
use spandrel_model::search::TraceState;
use spandrel_model::verdict::Verdict;

use crate::limits::{LATE_MS, LATE_TRIES};
use crate::model::{ReturnedSpan, Seen, returned_spans};
use crate::world::{Scene, World};

pub(crate) use accounting::everything_sent_is_counted;
pub(crate) use converged::{Said, replicas_say_the_same};
pub(crate) use credit::{credit_is_held_by_entries, credit_within_pool, is_pressed};
pub(crate) use demands::Demands;
pub(crate) use halt::halts_after_failed_sync;
pub(crate) use one_owner::Owners;
pub(crate) use p2_recomputed::verdicts_follow_from_their_records;
pub(crate) use p5_search::search_is_exact;
pub(crate) use p6_visible::visible_once_acknowledged;
pub(crate) use p7_retention::{expired_traces_are_gone, gone_from, retained_until};
pub(crate) use waits::Patience;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one: `P1` and so on, or the name of its checker; `start`, `answer`, `panic`, `liveness`.
    pub invariant: &'static str,
    /// What was seen and what was expected.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

pub(crate) fn violation(invariant: &'static str, detail: impl Into<String>) -> Violation {
    Violation {
        invariant,
        detail: detail.into(),
    }
}

/// How far the run is: what may still change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Spans arrive, traces are open.
    Running,
    /// Every trace is decided.
    Settled,
}

/// The answer to a fetch by id.
#[derive(Debug)]
pub(crate) struct Observation {
    pub(crate) at: UnixNanos,
    pub(crate) state: Option<TraceState>,
    pub(crate) complete: bool,
    /// Why it is not.
    pub(crate) missing: Vec<String>,
    pub(crate) decision: Option<Seen>,
    /// The span count that the answer states.
    pub(crate) span_count: u32,
    pub(crate) spans: Vec<ReturnedSpan>,
}

impl Observation {
    fn nothing(at: UnixNanos) -> Self {
        Self {
            at,
            state: None,
            complete: true,
            missing: Vec::new(),
            decision: None,
            span_count: 0,
            spans: Vec::new(),
        }
    }
}

/// In a cluster with faults, holders may be out of reach, or a disk may fail: a refusal with a hint says so, or an error
/// that names what cannot be read.
pub(crate) fn may_be_unreachable(world: &World, error: &PortError) -> bool {
    let says_so = error.retry_after_ms.is_some() || error.class == ErrorClass::Corrupt;
    world.scene == Scene::Cluster && says_so
}

/// Whether an answer may say that it is not whole.
fn may_have_gaps(world: &World, phase: Phase) -> bool {
    world.scene == Scene::Cluster && (phase == Phase::Running || world.demands().allow_gaps())
}

/// Fetches a trace by its id.
pub(crate) async fn observe(
    world: &World,
    query: &Arc<dyn Query>,
    tenant: &TenantId,
    trace_id: TraceId,
) -> Result<Observation, PortError> {
    let mut observation = Observation::nothing(world.now());
    match query.trace(tenant, trace_id).await? {
        TraceLookup::Absent(TraceAbsence::Unknown { .. }) => {}
        TraceLookup::Absent(TraceAbsence::Dropped(decision)) => {
            observation.decision = Some(seen(&decision))
        }
        TraceLookup::Found(mut answer) => {
            let mut bytes = Vec::new();
            while let Some(piece) = answer.reader.next().await? {
                bytes.extend_from_slice(&piece);
            }
            observation.state = Some(answer.state);
            observation.complete = answer.complete;
            let reasons = answer.missing.iter();
            let reasons = reasons.map(|part| format!("node {}: {}", part.node.0, part.reason));
            observation.missing = reasons.collect();
            observation.decision = answer.decision.as_ref().map(seen);
            observation.span_count = answer.span_count;
            let spans = returned_spans(&bytes);
            observation.spans = spans.map_err(|error| PortError::internal(error.to_string()))?;
        }
    }
    Ok(observation)
}

fn seen(decision: &DecisionView) -> Seen {
    Seen {
        verdict: decision.verdict,
        decided_at: decision.decided_at,
        policy: decision.policy.clone(),
        until: decision.recoverable_until.unwrap_or_default(),
    }
}

/// Remembers that somebody promoted a trace: from now on it is kept.
pub(crate) fn promoted(world: &World, number: usize, decision: &DecisionView) {
    let decision = seen(decision);
    if let Some(trace) = world.traces().get_mut(number)
        && trace
            .seen
            .as_ref()
            .is_none_or(|known| known.verdict == Verdict::Drop)
    {
        trace.seen = Some(decision);
    }
}

/// Fetches the trace of this number and checks P1 and P2 on it; remembers its decision. Where a replica may answer that
/// has not heard yet what counts, since its primary is out of reach (docs/promises.md, P6), it is asked again.
pub(crate) async fn check_trace(
    world: &World,
    query: &Arc<dyn Query>,
    number: usize,
    phase: Phase,
) -> Result<Observation, Violation> {
    let mut tries = 0;
    loop {
        let checked = check_once(world, query, number, phase).await;
        let asks_again = world.scene == Scene::Cluster && phase == Phase::Running;
        match checked {
            Err(wrong) if wrong.may_be_late && asks_again && tries < LATE_TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(LATE_MS)).await;
            }
            checked => return checked.map_err(|wrong| wrong.violation),
        }
    }
}

/// What is wrong with an answer.
struct Wrong {
    violation: Violation,
    /// Whoever answered may not have heard of the newest yet.
    may_be_late: bool,
}

impl From<Violation> for Wrong {
    fn from(violation: Violation) -> Self {
        Self {
            violation,
            may_be_late: false,
        }
    }
}

async fn check_once(
    world: &World,
    query: &Arc<dyn Query>,
    number: usize,
    phase: Phase,
) -> Result<Observation, Wrong> {
    let late = |violation| Wrong {
        violation,
        may_be_late: true,
    };
    let Some(before) = world.traces().get(number).cloned() else {
        return Err(violation("answer", format!("no trace {number}")).into());
    };
    let name = format!("trace {number} ({} of {})", before.trace_id, before.tenant);
    let observed = match observe(world, query, &before.tenant, before.trace_id).await {
        Ok(observed) => observed,
        Err(error) if may_be_unreachable(world, &error) && may_have_gaps(world, phase) => {
            return Ok(Observation::nothing(world.now()));
        }
        Err(error) => return Err(violation("answer", format!("{name}: {error}")).into()),
    };
    let Some(after) = world.traces().get(number).cloned() else {
        return Err(violation("answer", format!("no trace {number}")).into());
    };
    let window = world.plan.window_seconds * UnixNanos::PER_SECOND;
    let told = |problem: String| {
        format!(
            "{name} in phase {phase:?}: {problem}; {}",
            describe(&observed)
        )
    };
    let is_held = world.demands().is_held(&before.tenant, before.trace_id);
    let is_whole = is_held && (observed.complete || !may_have_gaps(world, phase));
    let needed = p1_durable::Needed {
        all: is_whole,
        window_nanos: window,
        retained_until: retained_until(&world.plan, &before),
        may_forget_drops: world.scene == Scene::Cluster,
    };
    p1_durable::nothing_else(&after, &observed)
        .map_err(|problem| violation("P1", told(problem)))?;
    p1_durable::nothing_lost(&before, &observed, needed)
        .map_err(|problem| late(violation("P1", told(problem))))?;
    if !is_whole {
        return Ok(observed);
    }
    if observed.at >= needed.retained_until {
        // A trace of that id is another one now.
        return Ok(observed);
    }
    let decided = p2_one_decision::check(
        &before,
        &after,
        &observed,
        p2_one_decision::Judged {
            is_settled: phase == Phase::Settled,
            clocks_differ: world.demands().clocks_differ,
        },
    );
    decided.map_err(|problem| {
        late(violation(
            "P2",
            format!("{}; seen before: {:?}", told(problem), before.seen),
        ))
    })?;
    if let (Some(decision), Some(trace)) = (&observed.decision, world.traces().get_mut(number)) {
        trace.seen = Some(decision.clone());
    }
    Ok(observed)
}

/// Checks every trace of which something was sent.
pub(crate) async fn check_all(
    world: &World,
    query: &Arc<dyn Query>,
    phase: Phase,
) -> Result<(), Violation> {
    let count = world.traces().len();
    let mut states = [0usize; 4];
    for number in 0..count {
        if !world.traces()[number].spans.values().any(|span| span.sent) {
            continue;
        }
        let observed = check_trace(world, query, number, phase).await?;
        let place = match observed.state {
            None => 0,
            Some(TraceState::Open) => 1,
            Some(TraceState::Kept) => 2,
            Some(TraceState::Dropped) => 3,
        };
        states[place] += 1;
    }
    let [absent, open, kept, dropped] = states;
    world.note(format!(
        "checked: {kept} kept, {dropped} dropped, {open} open, {absent} absent"
    ));
    Ok(())
}

pub(crate) fn describe(observed: &Observation) -> String {
    let names: Vec<&str> = observed
        .spans
        .iter()
        .take(12)
        .map(|span| span.name.as_str())
        .collect();
    format!(
        "answered at {} with state {:?}, complete {} {:?}, decision {:?}, {} spans ({})",
        observed.at.0,
        observed.state,
        observed.complete,
        observed.missing,
        observed.decision,
        observed.spans.len(),
        names.join(", ")
    )
}
