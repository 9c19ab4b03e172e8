//! What a plan could not cover, as an answer names it.

use std::collections::BTreeMap;

use spandrel_model::ids::{Bucket, NodeId, UnixNanos};
use spandrel_model::search::MissingPart;
use spandrel_model::shard_set::ShardSet;

use super::plan::{Demand, Missing, ScatterPlan, Standing};
use crate::limits::MAX_MISSING_PARTS;

/// The parts of a plan that nobody answers; at most [`MAX_MISSING_PARTS`], or one for each node where that is more.
pub(super) fn missing_parts(
    plan: &ScatterPlan,
    demand: &Demand<'_>,
    standing: &Standing,
) -> Vec<MissingPart> {
    let mut parts = Vec::new();
    for (node, missing) in &plan.missing {
        let reason = standing.failed.get(node);
        let reason = reason.map_or("no holder can be reached", String::as_str);
        for ((from, to), shards) in ranges(missing, demand) {
            parts.push(part(*node, &shards, (from, to), reason));
        }
    }
    if parts.len() > MAX_MISSING_PARTS {
        let coarse = plan.missing.iter().map(|(node, missing)| {
            let mut shards = missing.live.clone();
            missing.stored.values().for_each(|set| shards.extend(set));
            let reason = standing.failed.get(node);
            let reason = reason.map_or("no holder can be reached", String::as_str);
            part(*node, &shards, (demand.from, demand.to), reason)
        });
        return coarse.collect();
    }
    parts
}

fn part(
    node: NodeId,
    shards: &ShardSet,
    (from, to): (UnixNanos, UnixNanos),
    reason: &str,
) -> MissingPart {
    MissingPart {
        node,
        shards: shards.iter().collect(),
        from,
        to,
        reason: reason.to_owned(),
    }
}

/// The shards that are missing, by time range: live traces may lie anywhere in it; of buckets those that follow each
/// other and miss the same shards are one.
fn ranges(missing: &Missing, demand: &Demand<'_>) -> BTreeMap<(UnixNanos, UnixNanos), ShardSet> {
    let mut ranges: BTreeMap<(UnixNanos, UnixNanos), ShardSet> = BTreeMap::new();
    let mut add = |range, shards: &ShardSet| ranges.entry(range).or_default().extend(shards);
    if !missing.live.is_empty() {
        add((demand.from, demand.to), &missing.live);
    }
    let mut run: Option<(Bucket, Bucket, ShardSet)> = None;
    for (bucket, shards) in &missing.stored {
        let shards = shards.without(&missing.live);
        if shards.is_empty() {
            continue;
        }
        run = Some(match run.take() {
            Some((first, last, of_run))
                if last.0.checked_add(1) == Some(bucket.0) && of_run == shards =>
            {
                (first, *bucket, of_run)
            }
            ended => {
                if let Some((first, last, of_run)) = ended {
                    add(clipped(first, last, demand), &of_run);
                }
                (*bucket, *bucket, shards)
            }
        });
    }
    if let Some((first, last, of_run)) = run {
        add(clipped(first, last, demand), &of_run);
    }
    ranges
}

/// The range of some buckets within the one that was asked for; all of that when they do not meet, since a bucket is
/// named by when spans arrived.
fn clipped(first: Bucket, last: Bucket, demand: &Demand<'_>) -> (UnixNanos, UnixNanos) {
    let from = first.start(demand.bucket_nanos).max(demand.from);
    let to = last.end(demand.bucket_nanos).min(demand.to);
    if from < to {
        (from, to)
    } else {
        (demand.from, demand.to)
    }
}
