//! P6: the spans of a request are visible by trace id as soon as its export is acknowledged.
//!
//! Not verified: that they are visible by search at that moment, which nothing promises.

use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::ports::Query;

use super::{Violation, may_be_unreachable, observe, violation};
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
        let id = world.traces()[number].trace_id;
        let observed = match observe(world, query, &request.tenant, id).await {
            Ok(observed) => observed,
            Err(error) if may_be_unreachable(world, &error) => continue,
            Err(error) => {
                let problem = format!("trace {number} ({id}): {error}");
                return Err(violation("answer", problem));
            }
        };
        if !observed.complete && world.scene == Scene::Cluster {
            continue;
        }
        let visible =
            |one: &&Fingerprint| observed.spans.iter().any(|span| span.fingerprint == **one);
        let missing = expected.iter().filter(|one| !visible(one)).count();
        if missing > 0 {
            let problem = format!(
                "trace {number} ({id}): {missing} of {} spans acknowledged just now are not visible, state {:?}, decision {:?}",
                expected.len(),
                observed.state,
                observed.decision,
            );
            return Err(violation("P6", problem));
        }
    }
    Ok(())
}
