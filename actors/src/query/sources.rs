//! Where a search looks: live traces, summaries that the index does not hold yet, and the index.

use std::cmp::Reverse;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, ShardId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, FoundTrace, SearchFilter, SearchRequest};
use spandrel_model::shard_set::ShardSet;
use spandrel_model::summary::TraceSummary;
use spandrel_storage::block::{BlockError, BlockInfo};
use spandrel_storage::index::{IndexError, IndexQuery};

use super::{block_error, storage_error};
use crate::assembler::{MemoryHit, MemoryHits, UnverifiedTrace};
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
    /// A shard's live entry, which meets the conditions.
    Live(Box<FoundTrace>),
    /// A shard's live entry, of which only the spans can tell.
    Unverified(UnverifiedTrace),
    /// A summary that is not indexed yet.
    Recent(Arc<TraceSummary>),
    /// The index, or a scan of columns.
    Stored { shard: ShardId, fragment: Lsn },
}

impl Origin {
    pub(super) fn rank(&self) -> (u8, Reverse<(u64, u64)>) {
        match self {
            Self::Live(_) | Self::Unverified(_) => (0, Reverse((0, 0))),
            Self::Recent(summary) => (1, Reverse(summary.fragment.age())),
            Self::Stored { fragment, .. } => (2, Reverse(fragment.age())),
        }
    }
}

pub(super) fn key(start: UnixNanos, trace_id: TraceId) -> Key {
    (Reverse(start), trace_id)
}

pub(super) fn after(cursor: Option<Cursor>, candidate: Key) -> bool {
    cursor.is_none_or(|cursor| candidate > key(cursor.start, cursor.trace_id))
}

/// What a round asks of the stores.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) request: &'a SearchRequest,
    /// `None`: of all shards.
    pub(super) shards: Option<&'a ShardSet>,
    pub(super) blocks: &'a [BlockInfo],
    pub(super) cursor: Option<Cursor>,
    pub(super) limit: usize,
}

/// What a source gives in a round.
pub(super) struct Batch {
    /// In the total order.
    pub(super) candidates: Vec<Candidate>,
    /// Nothing that the source holds besides comes before this; `None` when it holds nothing besides.
    pub(super) bound: Option<Key>,
}

impl Batch {
    /// The best `limit`, at least one, of all that a source found.
    pub(super) fn of(mut candidates: Vec<Candidate>, limit: usize) -> Self {
        let order = |candidate: &Candidate| (candidate.key, candidate.origin.rank());
        let more = candidates.len() > limit;
        if more {
            candidates.select_nth_unstable_by_key(limit, order);
            candidates.truncate(limit);
        }
        candidates.sort_unstable_by_key(order);
        let last = candidates.last().map(|candidate| candidate.key);
        Self {
            bound: last.filter(|_| more),
            candidates,
        }
    }

    /// What a shard found.
    pub(super) fn live(found: MemoryHits) -> Self {
        let candidates = found.hits.into_iter().map(|hit| match hit {
            MemoryHit::Meets(found) => Candidate {
                key: key(found.start, found.trace_id),
                origin: Origin::Live(Box::new(found)),
                exact: true,
            },
            MemoryHit::Unverified(trace) => Candidate {
                key: key(trace.start, trace.trace_id),
                origin: Origin::Unverified(trace),
                exact: false,
            },
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let last = candidates.last().map(|candidate| candidate.key);
        Self {
            bound: last.filter(|_| found.more),
            candidates,
        }
    }
}

/// Does a summary meet the filter? `None` no, `Some(false)` its spans must tell, `Some(true)` yes.
pub(super) fn summary_meets(
    summary: &TraceSummary,
    filter: &SearchFilter,
    indexed: &dyn Fn(&str) -> bool,
) -> Option<bool> {
    if !filter.admits_start(summary.start) || !filter.admits_duration(summary.duration_nanos()) {
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

/// Visits the summaries that the index does not hold: those in memory, and those of blocks where the index was lost.
/// Returns how many blocks have summaries that cannot be read.
pub(super) fn visit_unindexed(
    shared: &Shared,
    blocks: &[BlockInfo],
    visit: &mut dyn FnMut(u64, &Arc<TraceSummary>),
) -> Result<u64, PortError> {
    shared.recent.visit(&mut *visit);
    let mut unreadable = 0;
    for block in blocks {
        if block.unopenable.is_some() {
            unreadable += 1;
            continue;
        }
        let mut done = shared.index.checkpoint(block.bucket, block.block_id.into());
        let first_in_memory = shared.recent.first_sequence(block.bucket);
        let end = first_in_memory.map_or(block.last_sequence, |first| first - 1);
        while done < end {
            let chunk = match shared.blocks.summaries(block.bucket, done, SUMMARY_CHUNK) {
                // It expired while the query went on.
                Err(BlockError::NoBlock { .. }) => break,
                Err(error @ BlockError::Corrupt { .. }) => {
                    tracing::error!(bucket = block.bucket.0, %error, "summaries left out of a query");
                    unreadable += 1;
                    break;
                }
                chunk => chunk.map_err(block_error)?,
            };
            let Some((last, _)) = chunk.last() else { break };
            done = *last;
            for (sequence, summary) in chunk {
                visit(sequence, &Arc::new(summary));
            }
        }
    }
    Ok(unreadable)
}

/// Candidates among the summaries that the index does not hold, and how many blocks have some that cannot be read.
pub(super) fn recent(
    shared: &Shared,
    wanted: &Wanted<'_>,
    indexed: &dyn Fn(&str) -> bool,
) -> Result<(Batch, u64), PortError> {
    let (request, shards) = (wanted.request, wanted.shards);
    // Of several summaries of one trace the last one of the newest fragment counts, whether it meets the filter or not.
    let mut newest: HashMap<TraceId, (u64, Arc<TraceSummary>), FixedState> = HashMap::default();
    let filter = &request.filter;
    let mut offer = |sequence: u64, summary: &Arc<TraceSummary>| {
        if !filter.admits_start(summary.start)
            || summary.tenant != request.tenant
            || shards.is_some_and(|shards| !shards.contains(summary.shard))
        {
            return;
        }
        let known = newest
            .entry(summary.trace_id)
            .or_insert_with(|| (sequence, Arc::clone(summary)));
        if (known.1.fragment.age(), known.0) < (summary.fragment.age(), sequence) {
            *known = (sequence, Arc::clone(summary));
        }
    };
    let unreadable = visit_unindexed(shared, wanted.blocks, &mut offer)?;
    let candidates = newest.into_values().filter_map(|(_, summary)| {
        let key = key(summary.start, summary.trace_id);
        if !after(wanted.cursor, key) {
            return None;
        }
        let exact = summary_meets(&summary, filter, indexed)?;
        Some(Candidate {
            key,
            origin: Origin::Recent(summary),
            exact,
        })
    });
    Ok((Batch::of(candidates.collect(), wanted.limit), unreadable))
}

/// Those of the blocks that may hold traces of the range, the youngest start first.
pub(super) fn of_range(blocks: &[BlockInfo], request: &SearchRequest) -> Vec<BlockInfo> {
    let filter = &request.filter;
    let in_range =
        |block: &&BlockInfo| block.max_start >= filter.from && block.min_start < filter.to;
    let mut blocks: Vec<BlockInfo> = blocks.iter().filter(in_range).cloned().collect();
    blocks.sort_by_key(|block| Reverse(block.max_start));
    blocks
}

/// The index; `None` when a damaged one was dropped by this look at it: its summaries are now among [`recent`].
pub(super) fn index(shared: &Shared, wanted: &Wanted<'_>) -> Result<Option<Batch>, PortError> {
    let Wanted {
        request,
        shards,
        blocks,
        cursor,
        limit,
    } = *wanted;
    let mut candidates: Vec<Candidate> = Vec::new();
    for block in of_range(blocks, request) {
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
            shards,
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
            },
            exact: hit.exact,
        }));
        candidates.sort_by_key(|candidate| candidate.key);
    }
    Ok(Some(Batch::of(candidates, limit)))
}
