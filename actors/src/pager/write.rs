//! Writes the pages of a paging job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spandrel_model::ids::{Bucket, NodeId, ShardId, TraceId};
use spandrel_model::summary::TraceSummary;
use spandrel_storage::block::BlockWrite;
use spandrel_storage::page::{EncodedPage, FragmentHead, PageBuilder, PageSpan};

use super::commit::{SpansFrom, commit_pages};
use super::gather::{Gathered, gather};
use super::shipment::{Shipment, pack};
use crate::arena::SpanArena;
use crate::assembler::{KeptTrace, ShippedTrace};
use crate::facts::{TraceSpans, alone};
use crate::limits::PAGE_SPANS;
use crate::shared::Shared;

/// Memory that one job leaves to the next: allocated anew, its pages would be faulted in again (measured: a sixth of
/// the time of a job).
#[derive(Default)]
pub(super) struct Buffers {
    arena: SpanArena,
    builder: PageBuilder,
    frame: Vec<u8>,
    /// The bucket whose attribute values the builder counts.
    counted: Bucket,
}

/// A trace of a job, and who gets its page.
type Directed = (Gathered, Arc<[NodeId]>);

/// Writes pages; `followers`, by shard, get those of its traces that are whole. Returns what goes to them.
pub(super) fn write_pages(
    shared: &Shared,
    buffers: &mut Buffers,
    kept: Vec<(ShardId, KeptTrace)>,
    followers: &[Arc<[NodeId]>],
) -> Result<Vec<Shipment>, String> {
    let Buffers {
        arena,
        builder,
        frame,
        counted,
    } = buffers;
    arena.clear();
    let nobody: Arc<[NodeId]> = Arc::default();
    let traces = gather(shared, arena, frame, kept)?.into_iter();
    let mut traces: Vec<Directed> = traces
        .map(|one| {
            let followers = followers.get(usize::from(one.shard.0));
            // A late part is put together with what each node has of the trace; and what a damaged journal has lost of one
            // is still with the followers.
            let summary = one.kept.summary.as_ref().filter(|_| !one.kept.stored);
            let counted = summary.map(|summary| summary.span_count as usize);
            let followers = followers.filter(|_| counted == Some(one.spans.len()));
            let followers = Arc::clone(followers.unwrap_or(&nobody));
            (one, followers)
        })
        .collect();
    traces.sort_by(|(a, to_a), (b, to_b)| {
        let file = |one: &Gathered| (one.kept.bucket, one.shard, one.kept.trace_id);
        let (tenants, files) = ((&a.kept.tenant, &b.kept.tenant), (file(a), file(b)));
        (tenants.0, files.0.0, to_a, files.0).cmp(&(tenants.1, files.1.0, to_b, files.1))
    });
    let same_pages = |(a, to_a): &Directed, (b, to_b): &Directed| {
        (&a.kept.tenant, a.kept.bucket, to_a) == (&b.kept.tenant, b.kept.bucket, to_b)
    };
    let mut shipments = Vec::new();
    for group in traces.chunk_by_mut(same_pages) {
        shipments.extend(write_group(shared, arena, builder, group)?);
    }
    let buckets = traces.iter().map(|(one, _)| one.kept.bucket);
    let newest = buckets.max().unwrap_or(*counted);
    crate::meters::attributes(builder.cardinality());
    if newest > *counted {
        // The figures are of the bucket that is being written.
        builder.cardinality().clear();
        *counted = newest;
    }
    Ok(shipments)
}

/// Writes the pages of traces of one tenant and bucket that go to the same followers.
fn write_group(
    shared: &Shared,
    arena: &SpanArena,
    builder: &mut PageBuilder,
    group: &mut [Directed],
) -> Result<Vec<Shipment>, String> {
    let Some((first, followers)) = group.first() else {
        return Ok(Vec::new());
    };
    let (tenant, bucket) = (first.kept.tenant.clone(), first.kept.bucket);
    let followers = Arc::clone(followers);
    let mut told: BTreeMap<(ShardId, TraceId), ShippedTrace> = BTreeMap::new();
    let mut pages: Vec<EncodedPage> = Vec::new();
    let mut summaries: Vec<TraceSummary> = Vec::with_capacity(group.len());
    let mut late = BTreeSet::new();
    for (one, _) in group {
        if one.spans.is_empty() {
            continue;
        }
        let head = FragmentHead {
            shard: one.shard,
            trace_id: one.kept.trace_id,
            fragment: one.kept.fragment,
            received_at: one.kept.record.decided_at,
        };
        let (node, trace, stored) = (shared.node.0, &head.trace_id, one.kept.stored);
        let (fragment, references) = (head.fragment.0, &one.kept.references);
        tracing::trace!(node, %trace, fragment, ?references, stored, "a fragment is written");
        let spans = arena.iter(&one.spans);
        let spans: Vec<PageSpan<'_>> = spans
            .map(|(context, span)| PageSpan { context, span })
            .collect();
        builder
            .push(head, &spans)
            .map_err(|error| error.to_string())?;
        if !followers.is_empty() {
            told.insert((one.shard, one.kept.trace_id), one.shipped());
        }
        summaries.extend(summarise(shared, arena, one)?);
        if one.kept.stored {
            late.insert(one.kept.trace_id);
        }
        if builder.span_count() as usize >= PAGE_SPANS {
            pages.extend(builder.finish().map_err(|error| error.to_string())?);
        }
    }
    pages.extend(builder.finish().map_err(|error| error.to_string())?);
    if pages.is_empty() {
        return Ok(Vec::new());
    }
    let mut write = BlockWrite {
        bucket,
        tenant,
        pages,
        summaries: Vec::new(),
    };
    let shipments = match followers.is_empty() {
        true => Vec::new(),
        false => pack(&write, &told, &followers, &shared.pool)?,
    };
    write.summaries = summaries;
    commit_pages(shared, write, &SpansFrom::Journal { late })?;
    Ok(shipments)
}

/// The summary of a fragment, of its own spans.
fn summarise(
    shared: &Shared,
    arena: &SpanArena,
    one: &mut Gathered,
) -> Result<Option<TraceSummary>, String> {
    if let Some(summary) = one.kept.summary.take() {
        return Ok(Some(summary));
    }
    let epoch = shared.epoch();
    let mut copy = TraceSpans::default();
    let spans = arena.iter(&one.spans);
    spans.for_each(|(context, span)| copy.push(&context, span));
    let tenant = &one.kept.tenant;
    let Some(batch) = copy.scan(tenant, one.kept.record.decided_at, &epoch) else {
        return Ok(None);
    };
    let state = alone(shared, &batch, &epoch);
    let record = &one.kept.record;
    let name = shared.policy_name(record);
    let Some(mut summary) = state.only_summary(one.kept.fragment, record.start, record, name)
    else {
        return Ok(None);
    };
    summary.bucket = one.kept.bucket;
    Ok(Some(summary))
}
