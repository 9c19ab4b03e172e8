//! Searching the columns of a block.

use std::ops::ControlFlow;

use spandrel_model::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::SpanCondition;

use super::error::BlockError;
use super::matching::ResourceMatches;
use super::read::stored_page;
use super::schema::PAGES;
use super::store::BlockStore;
use super::stored_page::of_page;
use crate::page::{PageCondition, PageError, PageReader};

/// What a scan looks for.
#[derive(Debug, Clone)]
pub struct ScanRequest<'a> {
    /// The block.
    pub bucket: Bucket,
    /// Whose spans.
    pub tenant: &'a TenantId,
    /// What a span has to meet.
    pub condition: &'a SpanCondition,
    /// Pages all of whose spans start before this are skipped.
    pub from: UnixNanos,
    /// Pages all of whose spans start at or after this are skipped.
    pub to: UnixNanos,
    /// Stop before the page with which more spans than this would be inspected.
    pub max_spans: u64,
}

/// A fragment with spans that meet the condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFragment {
    /// Its shard.
    pub shard: ShardId,
    /// Its trace.
    pub trace_id: TraceId,
    /// The lsn of its verdict or late record.
    pub fragment: Lsn,
    /// Its matching spans in the order of the page, at least one.
    pub matched: Vec<SpanId>,
}

/// What a scan inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanCost {
    /// Spans of the pages inspected.
    pub spans: u64,
    /// Stored bytes read.
    pub bytes: u64,
    /// Pages passed over because they are corrupt.
    pub corrupt_pages: u64,
    /// Pages not inspected: the visitor stopped the scan, or the budget was used up.
    pub pages_left: u64,
}

impl BlockStore {
    /// Finds the spans of a block that meet a condition, in pages with the newest spans first. Only columns that the
    /// condition names are read, and the dictionary of an attribute decides whether the rows are looked at.
    ///
    /// # Errors
    /// When the block cannot be read. A corrupt page is counted, not an error.
    pub fn scan(
        &self,
        request: &ScanRequest<'_>,
        visit: &mut dyn FnMut(FoundFragment) -> ControlFlow<()>,
    ) -> Result<ScanCost, BlockError> {
        let view = self.view(request.bucket)?;
        let mut cost = ScanCost::default();
        let Some(tenant) = view.tenant(request.tenant)? else {
            return Ok(cost);
        };
        let mut pages = Vec::new();
        for row in view.table(PAGES)?.range((tenant, 0)..=(tenant, u64::MAX))? {
            let (key, row) = row?;
            let (spans, _, min_start, max_start) = row.value();
            if max_start >= request.from.0 && min_start < request.to.0 {
                pages.push((max_start, key.value().1, spans));
            }
        }
        pages.sort_unstable_by(|left, right| right.cmp(left));
        let condition = PageCondition::new(request.condition);
        let mut resources = ResourceMatches::new(&view, tenant, &condition)?;
        let all = pages.len() as u64;
        for ((_, page, spans), inspected) in pages.into_iter().zip(0u64..) {
            let stop = cost.spans + u64::from(spans) > request.max_spans;
            if stop {
                cost.pages_left = all - inspected;
                break;
            }
            cost.spans += u64::from(spans);
            let source = stored_page(&view, tenant, page)?;
            let failed = of_page(request.bucket, page);
            let found = find(&source, &condition, &mut resources, &mut cost.bytes);
            let found = match found {
                Ok(found) => found,
                Err(PageError::Corrupt(error)) => {
                    tracing::error!(bucket = request.bucket.0, page, %error, "page skipped");
                    cost.corrupt_pages += 1;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            for (placed, matched) in found {
                let (shard, trace_id, fragment) = placed.head.key();
                let found = FoundFragment {
                    shard,
                    trace_id,
                    fragment,
                    matched,
                };
                if visit(found).is_break() {
                    cost.pages_left = all - inspected - 1;
                    return Ok(cost);
                }
            }
        }
        Ok(cost)
    }
}

type Found = Vec<(crate::page::PlacedFragment, Vec<SpanId>)>;

fn find(
    source: &dyn crate::page::PageBytes,
    condition: &PageCondition<'_>,
    resources: &mut ResourceMatches<'_>,
    bytes: &mut u64,
) -> Result<Found, PageError> {
    let mut reader = PageReader::open(source)?;
    let rows = reader.matching_rows(condition, &mut |hash| resources.of(hash))?;
    let mut found = Vec::new();
    if !rows.is_empty() {
        let ids = reader.span_ids(&rows)?;
        let mut matched = rows.into_iter().zip(ids).peekable();
        for fragment in reader.fragments()? {
            let end = fragment.first_row + fragment.rows;
            let mut of_fragment = Vec::new();
            while let Some((_, id)) = matched.next_if(|(row, _)| *row < end) {
                of_fragment.push(id);
            }
            if !of_fragment.is_empty() {
                found.push((fragment, of_fragment));
            }
        }
    }
    *bytes += reader.fetched_bytes() as u64;
    Ok(found)
}
