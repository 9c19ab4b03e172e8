//! P7: a kept trace is not deleted before its retention has passed since the node received its first record (P1
//! demands it until then), and it is gone one bucket and some seconds after it has passed for its last one.
//!
//! Not verified: dropped traces, which last as long as their journal slice, clocks that are wrong, and a node that was
//! down when the time came.

use std::sync::Arc;

use spandrel_model::ids::UnixNanos;
use spandrel_model::ports::Query;
use spandrel_model::search::TraceState;

use super::{Violation, observe, violation};
use crate::limits::EXPIRY_SLACK_SECONDS;
use crate::model::TraceRecord;
use crate::plan::Plan;
use crate::world::World;

/// Until then what is kept of the trace must be there.
pub(crate) fn retained_until(plan: &Plan, trace: &TraceRecord) -> UnixNanos {
    let first = trace.first_sent_at.unwrap_or(UnixNanos(u64::MAX / 2));
    first.plus(plan.retention_seconds * UnixNanos::PER_SECOND)
}

/// From then on nothing of the trace is served; `None`: nothing of it was ever acknowledged.
pub(crate) fn gone_from(plan: &Plan, trace: &TraceRecord) -> Option<UnixNanos> {
    let late_seconds = plan.retention_seconds + plan.bucket_seconds + EXPIRY_SLACK_SECONDS;
    let acked = trace.spans.values().filter_map(|span| span.acked_at);
    Some(acked.max()?.plus(late_seconds * UnixNanos::PER_SECOND))
}

/// No trace is served whose retention has passed. The node has run for a while.
pub(crate) async fn expired_traces_are_gone(
    world: &World,
    query: &Arc<dyn Query>,
) -> Result<(), Violation> {
    let plan = &world.plan;
    let mut gone = 0;
    let traces = world.traces().clone();
    let due = |trace: &TraceRecord| gone_from(plan, trace).is_some_and(|at| at <= world.now());
    for trace in traces.into_iter().filter(due) {
        let id = trace.trace_id;
        let observed = observe(world, query, &trace.tenant, id).await;
        let observed =
            observed.map_err(|error| violation("answer", format!("trace {id}: {error}")))?;
        if observed.state == Some(TraceState::Kept) {
            let problem = format!(
                "{} spans of trace {id} are served though its retention of {} s has passed",
                observed.spans.len(),
                plan.retention_seconds,
            );
            return Err(violation("P7", problem));
        }
        gone += 1;
    }
    world.note(format!("{gone} traces have expired"));
    Ok(())
}
