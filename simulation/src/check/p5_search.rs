//! P5: search returns exactly the kept traces, says that it is complete, and pages without gaps or repeats, also
//! when the index was deleted before. A search that may have gaps finds all of the shards that it does not name.
//!
//! Not verified: traces whose retention has passed, conditions other than one service, open and dropped traces in results, and the figures of the
//! receipt. The truth is what a fetch by id returns, which P1 is checked on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spandrel_model::ids::{ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::Query;
use spandrel_model::search::{FoundTrace, MissingPart, SearchFilter, SearchRequest, TraceState};

use super::{
    Phase, Violation, may_be_unreachable, may_have_gaps, observe, retained_until, violation,
};
use crate::limits::{MAX_SEARCH_PAGES, SEARCH_PAGE, SEARCH_TIMEOUT_MS};
use crate::workload::SERVICES;
use crate::world::World;

/// Seconds after now that a search still covers: spans begin in the past.
const AHEAD_SECONDS: u64 = 86_400;

/// Searches each service of each tenant, and everything.
pub(crate) async fn search_is_exact(
    world: &World,
    query: &Arc<dyn Query>,
) -> Result<(), Violation> {
    for tenant in &world.tenants {
        let (mut kept, unsure) = kept_traces(world, query, tenant).await?;
        let mut passed_over = expired(world, tenant);
        passed_over.extend(unsure);
        kept.retain(|id, _| !passed_over.contains(id));
        for service in SERVICES.iter().map(|service| Some(*service)).chain([None]) {
            let Some(mut answer) = search(world, query, tenant, service).await? else {
                continue;
            };
            let found = &mut answer.traces;
            found.retain(|trace| !passed_over.contains(&trace.trace_id));
            let reached = |id: TraceId| answer.reached(world.demands().shard(tenant, id));
            compare(tenant, service, &kept, &answer.traces, &reached)?;
        }
    }
    world.note("searched");
    Ok(())
}

/// Traces that may be gone, some of their fragments before others.
fn expired(world: &World, tenant: &TenantId) -> BTreeSet<TraceId> {
    let (now, traces) = (world.now(), world.traces());
    let expired = traces
        .iter()
        .filter(|trace| trace.tenant == *tenant && retained_until(&world.plan, trace) <= now);
    expired.map(|trace| trace.trace_id).collect()
}

/// What all pages of a search say together.
#[derive(Default)]
struct Found {
    traces: Vec<FoundTrace>,
    missing: Vec<MissingPart>,
    /// It says that it is not complete.
    has_gaps: bool,
}

impl Found {
    /// Whether the search has reached this shard, as far as it says.
    fn reached(&self, shard: ShardId) -> bool {
        // What cannot be read is of no shard in particular.
        !self.has_gaps
            || !self.missing.is_empty()
                && self
                    .missing
                    .iter()
                    .all(|part| !part.shards.is_empty() && !part.shards.contains(&shard))
    }
}

/// Services and span count of each kept trace, by a fetch.
struct Kept {
    services: Vec<String>,
    span_count: usize,
}

async fn kept_traces(
    world: &World,
    query: &Arc<dyn Query>,
    tenant: &TenantId,
) -> Result<(BTreeMap<TraceId, Kept>, Vec<TraceId>), Violation> {
    let ids: Vec<TraceId> = world
        .traces()
        .iter()
        .filter(|trace| trace.tenant == *tenant)
        .map(|trace| trace.trace_id)
        .collect();
    let (mut kept, mut unsure) = (BTreeMap::new(), Vec::new());
    let has_gaps = may_have_gaps(world, Phase::Settled);
    for id in ids {
        let observed = match observe(world, query, tenant, id).await {
            Ok(observed) if observed.complete || !has_gaps => observed,
            Err(error) if !has_gaps || !may_be_unreachable(world, &error) => {
                return Err(violation("answer", format!("trace {id}: {error}")));
            }
            _ => {
                unsure.push(id);
                continue;
            }
        };
        if observed.state == Some(TraceState::Kept) {
            let mut services: Vec<String> = observed
                .spans
                .iter()
                .map(|span| span.service.clone())
                .collect();
            services.sort();
            services.dedup();
            let span_count = observed.spans.len();
            kept.insert(
                id,
                Kept {
                    services,
                    span_count,
                },
            );
        }
    }
    Ok((kept, unsure))
}

/// `None` when the search is refused, as it may be.
async fn search(
    world: &World,
    query: &Arc<dyn Query>,
    tenant: &TenantId,
    service: Option<&str>,
) -> Result<Option<Found>, Violation> {
    let has_gaps = may_have_gaps(world, Phase::Settled);
    let what = format!("search of {service:?} of tenant {tenant}");
    let mut request = SearchRequest {
        tenant: tenant.clone(),
        filter: SearchFilter {
            services: service.map(str::to_owned).into_iter().collect(),
            from: UnixNanos(0),
            to: world.now().plus(AHEAD_SECONDS * UnixNanos::PER_SECOND),
            ..SearchFilter::default()
        },
        limit: SEARCH_PAGE,
        cursor: None,
        include_dropped: false,
        timeout_ms: SEARCH_TIMEOUT_MS,
    };
    let mut found = Found::default();
    for _ in 0..MAX_SEARCH_PAGES {
        let answer = match query.search(request.clone()).await {
            Ok(answer) => answer,
            Err(error) if has_gaps && may_be_unreachable(world, &error) => return Ok(None),
            Err(error) => return Err(violation("answer", format!("{what}: {error}"))),
        };
        found.has_gaps |= !answer.receipt.complete;
        if !answer.receipt.complete && !has_gaps {
            return Err(violation(
                "P5",
                format!("{what} is not complete: {:?}", answer.receipt.missing),
            ));
        }
        found.missing.extend(answer.receipt.missing);
        found.traces.extend(answer.traces);
        match answer.next {
            Some(cursor) => request.cursor = Some(cursor),
            None => return Ok(Some(found)),
        }
    }
    Err(violation("P5", format!("{what} has no last page")))
}

fn compare(
    tenant: &TenantId,
    service: Option<&str>,
    kept: &BTreeMap<TraceId, Kept>,
    found: &[FoundTrace],
    reached: &dyn Fn(TraceId) -> bool,
) -> Result<(), Violation> {
    let wrong = |problem: String| {
        let problem = format!("search of {service:?} of tenant {tenant}: {problem}");
        Err(violation("P5", problem))
    };
    let unordered = found.windows(2).find_map(|pair| match pair {
        [a, b] if (b.start, a.trace_id) >= (a.start, b.trace_id) => Some((a, b)),
        _ => None,
    });
    if let Some((a, b)) = unordered {
        let place = |trace: &FoundTrace| format!("{} at {}", trace.trace_id, trace.start.0);
        return wrong(format!(
            "results are out of order or repeated: {}, then {}",
            place(a),
            place(b)
        ));
    }
    for trace in found {
        let id = trace.trace_id;
        let Some(known) = kept.get(&id) else {
            return wrong(format!(
                "{id} is found as {:?} and is not kept",
                trace.state
            ));
        };
        if trace.state != TraceState::Kept {
            return wrong(format!("{id} is found as {:?} and is kept", trace.state));
        }
        if trace.services != known.services {
            return wrong(format!(
                "{id} has services {:?}, not {:?}",
                known.services, trace.services
            ));
        }
        if usize::try_from(trace.span_count) != Ok(known.span_count) {
            return wrong(format!(
                "{id} has {} spans, not {}",
                known.span_count, trace.span_count
            ));
        }
    }
    let expected = kept.iter().filter(|(id, trace)| {
        reached(**id)
            && service.is_none_or(|service| trace.services.iter().any(|name| name == service))
    });
    for (id, _) in expected {
        if !found.iter().any(|trace| trace.trace_id == *id) {
            return wrong(format!("{id} is kept and not found"));
        }
    }
    Ok(())
}
