//! P6: the spans of a request are visible by trace id as soon as its export is acknowledged.
//!
//! In a cluster an answer that lacks them is asked for again for some seconds: a replica whose primary is out of reach
//! does not know yet that they count (docs/promises.md).
//!
//! Not verified: that they are visible by search at that moment, which nothing promises.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::ports::Query;

use super::{Violation, may_be_unreachable, observe, violation};
use crate::limits::{LATE_MS, LATE_TRIES};
use crate::model::Fingerprint;
use crate::workload::Request;
use crate::world::{Scene, World};

pub(crate) async fn visible_once_acknowledged(
    world: &World,
    query: &Arc<dyn Query>,
    request: &Request,
) -> Result<(), Violation> {
    let mut by_trace: BTreeMap<usize, Vec<Fingerprint>> = BTreeMap::new();
    for (trace, fingerprint) in &request.spans {
        by_trace.entry(*trace).or_default().push(*fingerprint);
    }
    for (number, expected) in by_trace {
        let mut tries = 0;
        while let Err(found) = visible(world, query, request, number, &expected).await {
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
    let is_there = |one: &&Fingerprint| observed.spans.iter().any(|span| span.fingerprint == **one);
    let missing = expected.iter().filter(|one| !is_there(one)).count();
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
