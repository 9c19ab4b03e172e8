//! Traces found by scanning the columns of pages: for attributes that are not indexed. Pages with the newest spans
//! come first, and no more of them are read than a page of results needs.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use spandrel_model::error::PortError;
use spandrel_model::ids::{ShardId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, SearchFilter, SearchRequest};
use spandrel_model::shard_set::ShardSet;
use spandrel_storage::block::{BlockError, BlockInfo, BlockScan, FoundFragment, ScanRequest};
use tokio::time::Instant;

use super::block_error;
use super::sources::{Batch, Candidate, Key, Origin, after, key, of_range, summary_meets};
use super::verify::Inspected;
use crate::shared::Shared;

/// A scan under way.
///
/// Invariant: every trace with a match that is not among `candidates` starts at or before the next page's latest
/// start, since a trace starts no later than its spans.
#[derive(Debug)]
pub(super) struct ColumnScan {
    /// Blocks to be scanned; the last one comes next.
    blocks: Vec<BlockInfo>,
    /// The block that is being scanned.
    block: Option<BlockScan>,
    seen: BTreeSet<(ShardId, TraceId)>,
    /// Only traces of these shards count; `None`: of all.
    shards: Option<Arc<ShardSet>>,
    candidates: Vec<Candidate>,
    /// Conditions on traces alone: those on spans were asked of the columns.
    trace_filter: SearchFilter,
}

impl ColumnScan {
    pub(super) fn new(
        request: &SearchRequest,
        shards: Option<Arc<ShardSet>>,
        blocks: &[BlockInfo],
    ) -> Self {
        let mut blocks = of_range(blocks, request);
        blocks.reverse();
        Self {
            blocks,
            block: None,
            seen: BTreeSet::new(),
            shards,
            candidates: Vec::new(),
            trace_filter: SearchFilter {
                operation: None,
                status: None,
                tags: Vec::new(),
                ..request.filter.clone()
            },
        }
    }

    /// The next `limit` candidates, and false when the time was over before they were found.
    pub(super) fn next(
        &mut self,
        shared: &Shared,
        request: &SearchRequest,
        cursor: Option<Cursor>,
        limit: usize,
        deadline: Instant,
        inspected: &mut Inspected,
    ) -> Result<(Batch, bool), PortError> {
        let mut in_time = true;
        while in_time && self.ready(cursor) <= limit && self.bound().is_some() {
            self.page(shared, request, inspected)?;
            in_time = Instant::now() < deadline;
        }
        let bound = self.bound();
        let rest = self.candidates.iter();
        let rest = rest.filter(|candidate| is_ready(candidate, cursor, bound));
        let mut batch = Batch::of(rest.cloned().collect(), limit);
        batch.bound = batch.bound.or(bound);
        Ok((batch, in_time || bound.is_none()))
    }

    /// Nothing that was not found yet comes before this key; `None` when everything was found.
    fn bound(&self) -> Option<Key> {
        let in_block = self.block.as_ref().and_then(BlockScan::next_start);
        let later = self.blocks.iter().map(|block| block.max_start);
        let latest = in_block.into_iter().chain(later).max()?;
        Some((Reverse(latest), TraceId([0; 16])))
    }

    fn ready(&self, cursor: Option<Cursor>) -> usize {
        let bound = self.bound();
        let ready = self.candidates.iter();
        ready
            .filter(|candidate| is_ready(candidate, cursor, bound))
            .count()
    }

    /// Scans one page, of the next block when this one is done.
    fn page(
        &mut self,
        shared: &Shared,
        request: &SearchRequest,
        inspected: &mut Inspected,
    ) -> Result<(), PortError> {
        if self
            .block
            .as_ref()
            .is_none_or(|block| block.next_start().is_none())
        {
            self.block = match self.blocks.pop() {
                Some(block) => self.open(shared, request, &block, inspected)?,
                None => None,
            };
        }
        let Some(block) = &mut self.block else {
            return Ok(());
        };
        if let Some(page) = block.next_page().map_err(block_error)? {
            inspected.spans += page.spans;
            inspected.bytes += page.bytes;
            inspected.unreadable.somewhere(page.corrupt.into());
            self.add(shared, request, page.found, inspected)?;
        }
        Ok(())
    }

    fn open(
        &self,
        shared: &Shared,
        request: &SearchRequest,
        block: &BlockInfo,
        inspected: &mut Inspected,
    ) -> Result<Option<BlockScan>, PortError> {
        let scan = shared.blocks.scan(&ScanRequest {
            bucket: block.bucket,
            tenant: &request.tenant,
            condition: &request.filter.span_condition(),
            from: request.filter.from,
            // A trace of the range may have spans after it.
            to: UnixNanos(u64::MAX),
        });
        match scan {
            // It expired while the search went on.
            Err(BlockError::NoBlock { .. }) => Ok(None),
            Err(BlockError::Unopenable { .. } | BlockError::Corrupt { .. }) => {
                inspected.unreadable.somewhere(1);
                Ok(None)
            }
            scan => scan.map_err(block_error),
        }
    }

    /// Makes candidates of the traces that were not found before.
    fn add(
        &mut self,
        shared: &Shared,
        request: &SearchRequest,
        found: Vec<FoundFragment>,
        inspected: &mut Inspected,
    ) -> Result<(), PortError> {
        let mut traces = Vec::new();
        let shards = self.shards.clone();
        let asked = |shard| {
            let shards = shards.as_ref();
            shards.is_none_or(|shards| shards.contains(shard))
        };
        for fragment in found {
            if asked(fragment.shard) && self.seen.insert((fragment.shard, fragment.trace_id)) {
                let fragments = shared
                    .blocks
                    .fragments(&request.tenant, fragment.shard, fragment.trace_id)
                    .map_err(block_error)?;
                traces.push(fragments);
            }
        }
        for summary in shared.blocks.newest_summaries(&traces) {
            let summary = match summary {
                Err(BlockError::Corrupt { .. }) => {
                    inspected.unreadable.somewhere(1);
                    continue;
                }
                summary => summary.map_err(block_error)?,
            };
            let Some(summary) = summary else { continue };
            if let Some(exact) = summary_meets(&summary, &self.trace_filter, &|_| true) {
                self.candidates.push(Candidate {
                    key: key(summary.start, summary.trace_id),
                    origin: Origin::Stored {
                        shard: summary.shard,
                        fragment: summary.fragment,
                    },
                    exact,
                });
            }
        }
        Ok(())
    }
}

fn is_ready(candidate: &Candidate, cursor: Option<Cursor>, bound: Option<Key>) -> bool {
    after(cursor, candidate.key) && bound.is_none_or(|bound| candidate.key < bound)
}
