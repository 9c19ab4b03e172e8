//! What each node alone says of a trace: to compare replicas, and to explain a violation.

use std::sync::Arc;

use spandrel_model::ids::{NodeId, TenantId, TraceId};
use spandrel_model::ports::Query;

use super::fleet::Fleet;
use crate::check::{Said, Violation, describe, observe, replicas_say_the_same};

/// Asks the in-sync nodes of each shard what they alone say of its traces.
pub(super) async fn compare_replicas(fleet: &Fleet) -> Result<(), Violation> {
    let world = &fleet.world;
    let (alone, Some(state)) = (fleet.alone(), fleet.newest()) else {
        return Ok(());
    };
    let traces = world.traces().clone();
    let sent = traces
        .iter()
        .filter(|trace| trace.spans.values().any(|span| span.sent));
    for trace in sent {
        let shard = world.demands().shard(&trace.tenant, trace.trace_id);
        let members = state.shard(shard).map(|record| record.isr.as_slice());
        let members = members.unwrap_or_default();
        let mut said = Vec::new();
        for (node, query) in alone.iter().filter(|(node, _)| members.contains(node)) {
            said.push(ask(fleet, *node, query, &trace.tenant, trace.trace_id).await);
        }
        replicas_say_the_same(trace.trace_id, &said)?;
    }
    world.note("replicas say the same");
    Ok(())
}

async fn ask(
    fleet: &Fleet,
    node: NodeId,
    query: &Arc<dyn Query>,
    tenant: &TenantId,
    trace_id: TraceId,
) -> Said {
    let observed = observe(&fleet.world, query, tenant, trace_id).await;
    Said {
        node,
        decision: observed.ok().and_then(|observed| observed.decision),
    }
}

/// What each node alone says about the traces that a violation names, and who holds their shards.
pub(super) async fn explain(fleet: &Fleet, found: &Violation) {
    let named = fleet.world.traces().clone().into_iter();
    let named = named.filter(|trace| found.detail.contains(&trace.trace_id.to_string()));
    for trace in named {
        for (node, query) in fleet.alone() {
            let seen = observe(&fleet.world, &query, &trace.tenant, trace.trace_id).await;
            let said = seen.map_or_else(|error| error.to_string(), |seen| describe(&seen));
            fleet.world.note(format!(
                "node with id {} alone, of {}: {said}",
                node.0, trace.trace_id
            ));
        }
        let Some(state) = fleet.newest() else {
            continue;
        };
        let Some(router) = state.router() else {
            continue;
        };
        let seed = router.tenant_seed(&trace.tenant);
        let shard = router.shard(router.hash(seed, trace.trace_id));
        let holders = state.holders.iter().flat_map(|(bucket, records)| {
            let records = records.iter().filter(|(key, _)| key.shard == shard);
            records.map(|(key, held)| (bucket.0, key.term.0, held.clone()))
        });
        let holders: Vec<_> = holders.collect();
        fleet.world.note(format!(
            "shard {}: {:?}; holders by bucket and term: {holders:?}",
            shard.0,
            state.shard(shard)
        ));
    }
}
