//! Where a search looks: live traces, summaries that the index does not hold yet, the index, and the columns of
//! pages for attributes that are not indexed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, ShardId, SpanId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, FoundTrace, SearchFilter, SearchRequest};
use spandrel_model::summary::TraceSummary;
use spandrel_storage::block::{BlockInfo, ScanCost, ScanRequest};
use spandrel_storage::index::{IndexError, IndexQuery};

use super::storage_error;
use crate::shared::Shared;

/// The total order of results: newest start first, then trace id.
pub(super) type Key = (Reverse<UnixNanos>, TraceId);

/// Summaries read from a block at a time where the index is behind.
const SUMMARY_CHUNK: usize = 5_000;

/// A trace that may belong into the result.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) key: Key,
    pub(super) origin: Origin,
    /// False: its spans must be read.
    pub(super) exact: bool,
}

/// Where a candidate was found, best first: of several for one trace the first one counts.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A shard's live entry.
    Live(Box<FoundTrace>),
    /// A summary that is not indexed yet.
    Recent(Arc<TraceSummary>),
    /// The index, or a scan of columns with the spans that it found.
    Stored {
        shard: ShardId,
        fragment: Lsn,
        matched: Option<Vec<SpanId>>,
    },
}

impl Origin {
    pub(super) fn rank(&self) -> (u8, Reverse<Lsn>) {
        match self {
            Self::Live(_) => (0, Reverse(Lsn(0))),
            Self::Recent(summary) => (1, Reverse(summary.fragment)),
            Self::Stored { fragment, .. } => (2, Reverse(*fragment)),
        }
    }
}

pub(super) fn key(start: UnixNanos, trace_id: TraceId) -> Key {
    (Reverse(start), trace_id)
}

pub(super) fn after(cursor: Option<Cursor>, candidate: Key) -> bool {
    cursor.is_none_or(|cursor| candidate > key(cursor.start, cursor.trace_id))
}

/// The best `limit` of what a source found, and whether it had more.
pub(super) struct Batch {
    pub(super) candidates: Vec<Candidate>,
    pub(super) more: bool,
}

impl Batch {
    pub(super) fn of(mut candidates: Vec<Candidate>, limit: usize) -> Self {
        candidates.sort_by_key(|candidate| (candidate.key, candidate.origin.rank()));
        let more = candidates.len() > limit;
        candidates.truncate(limit);
        Self { candidates, more }
    }
}

/// Does a summary meet the filter? `None` no, `Some(false)` its spans must tell, `Some(true)` yes.
pub(super) fn summary_meets(
    summary: &TraceSummary,
    filter: &SearchFilter,
    indexed: &dyn Fn(&str) -> bool,
) -> Option<bool> {
    let duration = summary.duration_nanos();
    if summary.start < filter.from
        || summary.start >= filter.to
        || filter.min_duration.is_some_and(|least| duration < least)
        || filter.max_duration.is_some_and(|most| duration > most)
    {
        return None;
    }
    let has_service = |service: &String| {
        summary
            .classes
            .iter()
            .any(|class| *class.service == **service)
    };
    let has_span = !filter.has_span_conditions()
        || summary.classes.iter().any(|class| {
            filter
                .span_service()
                .is_none_or(|service| *class.service == *service)
                && filter
                    .operation
                    .as_deref()
                    .is_none_or(|name| *class.operation == *name)
                && filter.status.is_none_or(|status| class.status == status)
        });
    let tags_possible = filter.tags.iter().all(|tag| {
        !indexed(&tag.key)
            || summary
                .attributes
                .iter()
                .any(|text| *text.key == *tag.key && *text.value == *tag.value)
    });
    let possible = filter.services.iter().all(has_service) && has_span && tags_possible;
    match (possible, summary.truncated) {
        (true, _) => Some(filter.tags.is_empty()),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

/// Summaries that the index does not hold: from memory, or from blocks where the index was lost.
pub(super) fn recent(
    shared: &Shared,
    request: &SearchRequest,
    cursor: Option<Cursor>,
    limit: usize,
    indexed: &dyn Fn(&str) -> bool,
) -> Result<Batch, PortError> {
    // Of several summaries of one trace the newest fragment's counts, whether it meets the filter or not.
    let mut newest: BTreeMap<TraceId, Arc<TraceSummary>> = BTreeMap::new();
    let mut offer = |summary: &Arc<TraceSummary>| {
        let filter = &request.filter;
        if summary.tenant != request.tenant
            || summary.start < filter.from
            || summary.start >= filter.to
        {
            return;
        }
        let known = newest
            .entry(summary.trace_id)
            .or_insert_with(|| Arc::clone(summary));
        if known.fragment < summary.fragment {
            *known = Arc::clone(summary);
        }
    };
    shared.recent.visit(&mut offer);
    for block in shared.blocks.buckets().map_err(storage_error)? {
        let mut done = shared.index.checkpoint(block.bucket, block.block_id.into());
        let first_in_memory = shared
            .recent
            .oldest(block.bucket, 1)
            .first()
            .map(|(at, _)| *at);
        let end = first_in_memory.map_or(block.last_sequence, |first| first - 1);
        while done < end {
            let chunk = shared.blocks.summaries(block.bucket, done, SUMMARY_CHUNK);
            let chunk = chunk.map_err(storage_error)?;
            let Some((last, _)) = chunk.last() else { break };
            done = *last;
            chunk
                .into_iter()
                .for_each(|(_, summary)| offer(&Arc::new(summary)));
        }
    }
    let candidates = newest.into_values().filter_map(|summary| {
        let key = key(summary.start, summary.trace_id);
        let exact = summary_meets(&summary, &request.filter, indexed)?;
        after(cursor, key).then_some(Candidate {
            key,
            origin: Origin::Recent(summary),
            exact,
        })
    });
    Ok(Batch::of(candidates.collect(), limit))
}

/// Blocks that may hold traces of the range, the youngest start first.
fn blocks_of(shared: &Shared, request: &SearchRequest) -> Result<Vec<BlockInfo>, PortError> {
    let filter = &request.filter;
    let mut blocks = shared.blocks.buckets().map_err(storage_error)?;
    blocks.retain(|block| block.max_start >= filter.from && block.min_start < filter.to);
    blocks.sort_by_key(|block| Reverse(block.max_start));
    Ok(blocks)
}

/// The index; `None` when a damaged one was dropped by this look at it: its summaries are now among [`recent`].
pub(super) fn index(
    shared: &Shared,
    request: &SearchRequest,
    cursor: Option<Cursor>,
    limit: usize,
) -> Result<Option<Batch>, PortError> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for block in blocks_of(shared, request)? {
        let enough = candidates.len() > limit
            && candidates
                .get(limit)
                .is_some_and(|last| last.key.0.0 > block.max_start);
        if enough {
            break;
        }
        let query = IndexQuery {
            tenant: &request.tenant,
            filter: &request.filter,
            cursor,
            limit: limit + 1,
        };
        let answer = shared
            .index
            .search(block.bucket, block.block_id.into(), &query);
        let answer = match answer {
            Err(IndexError::Corrupt { .. }) => return Ok(None),
            answer => answer.map_err(storage_error)?,
        };
        candidates.extend(answer.hits.into_iter().map(|hit| Candidate {
            key: key(hit.start, hit.trace_id),
            origin: Origin::Stored {
                shard: hit.shard,
                fragment: hit.fragment,
                matched: None,
            },
            exact: hit.exact,
        }));
        candidates.sort_by_key(|candidate| candidate.key);
    }
    Ok(Some(Batch::of(candidates, limit)))
}

/// Traces found by scanning the columns of every page in the range: for attributes that are not indexed.
pub(super) fn columns(
    shared: &Shared,
    request: &SearchRequest,
    deadline: tokio::time::Instant,
) -> Result<(Vec<Candidate>, ScanCost, bool), PortError> {
    use std::ops::ControlFlow::{Break, Continue};
    let condition = request.filter.span_condition();
    let mut cost = ScanCost::default();
    let mut found: BTreeMap<(ShardId, TraceId), Vec<SpanId>> = BTreeMap::new();
    let mut in_time = true;
    for block in blocks_of(shared, request)? {
        let mut visit = |fragment: spandrel_storage::block::FoundFragment| {
            let location = fragment.location;
            let matched = found
                .entry((location.shard, location.trace_id))
                .or_default();
            matched.extend(fragment.matched);
            if tokio::time::Instant::now() < deadline {
                Continue(())
            } else {
                Break(())
            }
        };
        let filter = &request.filter;
        let scan = ScanRequest {
            bucket: block.bucket,
            tenant: &request.tenant,
            condition: &condition,
            from: filter.from,
            to: UnixNanos(u64::MAX),
            max_spans: u64::MAX,
        };
        let scanned = shared
            .blocks
            .scan(&scan, &mut visit)
            .map_err(storage_error)?;
        cost.spans += scanned.spans;
        cost.bytes += scanned.bytes;
        cost.corrupt_pages += scanned.corrupt_pages;
        if tokio::time::Instant::now() >= deadline {
            in_time = false;
            break;
        }
    }
    let mut candidates = Vec::new();
    for ((shard, trace_id), matched) in found {
        let summary = shared.blocks.summary_of(&request.tenant, shard, trace_id);
        let Some(summary) = summary.map_err(storage_error)? else {
            continue;
        };
        let trace_level = SearchFilter {
            operation: None,
            status: None,
            tags: Vec::new(),
            ..request.filter.clone()
        };
        if let Some(exact) = summary_meets(&summary, &trace_level, &|_| true) {
            candidates.push(Candidate {
                key: key(summary.start, trace_id),
                origin: Origin::Stored {
                    shard,
                    fragment: summary.fragment,
                    matched: Some(matched),
                },
                exact,
            });
        }
    }
    candidates.sort_by_key(|candidate| candidate.key);
    Ok((candidates, cost, in_time))
}
