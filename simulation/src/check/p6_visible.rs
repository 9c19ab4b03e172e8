//! P6: the spans of a request are visible by trace id as soon as its export is acknowledged.
//!
//! In a cluster an answer that lacks them is asked for again for some seconds: a replica whose primary is out of reach
//! does not know yet that they count (docs/promises.md).
//!
//! Not verified: that they are visible by search at that moment, which nothing promises. A trace with many spans is not
//! read after each request, but when it has grown by a quarter: each time all of it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::ports::Query;

use super::{Patience, Violation, may_be_unreachable, observe, violation};
use crate::limits::{ALWAYS_READ_SPANS, LATE_MS, LATE_TRIES};
use crate::model::{Fingerprint, TraceRecord};
use crate::workload::Request;
use crate::world::{Scene, World};

pub(crate) async fn visible_once_acknowledged(
    world: &World,
    query: &Arc<dyn Query>,
    request: &Request,
    patience: Option<&Patience>,
) -> Result<(), Violation> {
    let mut by_trace: BTreeMap<usize, Vec<Fingerprint>> = BTreeMap::new();
    for (trace, fingerprint) in &request.spans {
        by_trace.entry(*trace).or_default().push(*fingerprint);
    }
    for (number, expected) in by_trace {
        if !is_to_be_read(&mut world.traces()[number]) {
            continue;
        }
        let mut tries = 0;
        loop {
            let asked_ms = world.elapsed_ms();
            let seen = visible(world, query, request, number, &expected).await;
            if let Some(patience) = patience {
                patience.check_read(asked_ms, world.elapsed_ms())?;
            }
            let Err(found) = seen else { break };
            // A replica answers whose primary is out of reach.
            if world.scene == Scene::Alone || tries >= LATE_TRIES {
                return Err(found);
            }
            tries += 1;
            tokio::time::sleep(Duration::from_millis(LATE_MS)).await;
        }
    }
    Ok(())
}

/// Whether a trace some of whose spans were just acknowledged is to be read; notes that it is.
fn is_to_be_read(trace: &mut TraceRecord) -> bool {
    let acked = trace.spans.values().filter(|span| span.acked_at.is_some());
    let acked = acked.count();
    let reads = acked <= ALWAYS_READ_SPANS || acked >= trace.read_spans + trace.read_spans / 4;
    if reads {
        trace.read_spans = acked;
    }
    reads
}

async fn visible(
    world: &World,
    query: &Arc<dyn Query>,
    request: &Request,
    number: usize,
    expected: &[Fingerprint],
) -> Result<(), Violation> {
    let id = world.traces()[number].trace_id;
    let observed = match observe(world, query, &request.tenant, id).await {
        Ok(observed) => observed,
        Err(error) if may_be_unreachable(world, &error) => return Ok(()),
        Err(error) => {
            let problem = format!("trace {number} ({id}): {error}");
            return Err(violation("answer", problem));
        }
    };
    if !observed.complete && world.scene == Scene::Cluster {
        return Ok(());
    }
    let seen: BTreeSet<Fingerprint> = observed.spans.iter().map(|span| span.fingerprint).collect();
    let missing = expected.iter().filter(|one| !seen.contains(one)).count();
    if missing > 0 {
        let problem = format!(
            "trace {number} ({id}): {missing} of {} spans acknowledged just now are not visible, state {:?}, decision {:?}",
            expected.len(),
            observed.state,
            observed.decision,
        );
        return Err(violation("P6", problem));
    }
    Ok(())
}
