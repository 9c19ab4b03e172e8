//! Writes the pages of a paging job.

use std::collections::BTreeSet;

use spandrel_model::ids::{Bucket, ShardId};
use spandrel_model::summary::TraceSummary;
use spandrel_storage::block::BlockWrite;
use spandrel_storage::page::{EncodedPage, FragmentHead, PageBuilder, PageSpan};

use super::commit::{SpansFrom, commit_pages};
use super::gather::{Gathered, gather};
use crate::arena::SpanArena;
use crate::assembler::KeptTrace;
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

pub(super) fn write_pages(
    shared: &Shared,
    buffers: &mut Buffers,
    kept: Vec<(ShardId, KeptTrace)>,
) -> Result<(), String> {
    let Buffers {
        arena,
        builder,
        frame,
        counted,
    } = buffers;
    arena.clear();
    let mut traces = gather(shared, arena, frame, kept)?;
    traces.sort_by(|a, b| {
        let key = |one: &Gathered| (one.kept.bucket, one.shard, one.kept.trace_id);
        (&a.kept.tenant, key(a)).cmp(&(&b.kept.tenant, key(b)))
    });
    let same_file = |a: &Gathered, b: &Gathered| {
        a.kept.tenant == b.kept.tenant && a.kept.bucket == b.kept.bucket
    };
    for group in traces.chunk_by_mut(same_file) {
        write_group(shared, arena, builder, group)?;
    }
    let newest = traces.last().map_or(*counted, |one| one.kept.bucket);
    crate::meters::attributes(builder.cardinality());
    if newest > *counted {
        // The figures are of the bucket that is being written.
        builder.cardinality().clear();
        *counted = newest;
    }
    Ok(())
}

/// Writes the pages of traces of one tenant and bucket.
fn write_group(
    shared: &Shared,
    arena: &SpanArena,
    builder: &mut PageBuilder,
    group: &mut [Gathered],
) -> Result<(), String> {
    let Some(first) = group.first() else {
        return Ok(());
    };
    let (tenant, bucket) = (first.kept.tenant.clone(), first.kept.bucket);
    let mut pages: Vec<EncodedPage> = Vec::new();
    let mut summaries: Vec<TraceSummary> = Vec::with_capacity(group.len());
    let mut late = BTreeSet::new();
    for one in group {
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
        return Ok(());
    }
    let write = BlockWrite {
        bucket,
        tenant,
        pages,
        summaries,
    };
    commit_pages(shared, write, &SpansFrom::Journal { late })
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
