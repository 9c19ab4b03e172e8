//! Searching the columns of a block, page by page.

use redb::{ReadOnlyTable, ReadableTable};
use spandrel_model::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::SpanCondition;

use super::error::{BlockError, Walk, corrupt, guarded};
use super::file::View;
use super::matching::ResourceMatches;
use super::read::stored_page;
use super::schema::PAGES;
use super::store::BlockStore;
use super::stored_page::of_page;
use crate::page::{PageBytes, PageCondition, PageError, PageReader, PlacedFragment};

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

/// A page that a scan has inspected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScannedPage {
    /// Fragments with matching spans, in the order of the page.
    pub found: Vec<FoundFragment>,
    /// Spans of the page.
    pub spans: u64,
    /// Stored bytes read.
    pub bytes: u64,
    /// It was passed over because it is corrupt, which is logged.
    pub corrupt: bool,
}

/// A scan under way, over the block as it was when the scan began. What it holds keeps a read transaction open.
pub struct BlockScan {
    bucket: Bucket,
    condition: SpanCondition,
    tenant: u16,
    /// Latest start, number and spans of the pages to be inspected; the last one comes next.
    pages: Vec<(u64, u64, u32)>,
    resources: ResourceMatches,
    view: View,
}

impl std::fmt::Debug for BlockScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockScan")
            .field("bucket", &self.bucket)
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}

impl BlockStore {
    /// Begins to look for the spans of a block that meet a condition; `None` when the block has nothing of the tenant.
    ///
    /// # Errors
    /// When the block cannot be read.
    pub fn scan(&self, request: &ScanRequest<'_>) -> Result<Option<BlockScan>, BlockError> {
        guarded(|| {
            let view = self.view(request.bucket)?;
            let Some(tenant) = view.tenant(request.tenant)? else {
                return Ok(None);
            };
            let table: ReadOnlyTable<_, _> = view.table(PAGES)?;
            let (mut pages, mut all_spans) = (Vec::new(), 0);
            let mut walk = Walk::over("list of pages");
            for row in table.iter()? {
                let (key, row) = row?;
                let (of, page) = key.value();
                walk.comes_to((of, page), true)?;
                let (spans, _, min_start, max_start) = row.value();
                all_spans += u64::from(spans);
                let is_in_range = max_start >= request.from.0 && min_start < request.to.0;
                if of == tenant && is_in_range {
                    pages.push((max_start, page, spans));
                }
            }
            // A page that is not listed any more would be passed over without a word.
            if all_spans != view.meta()?.spans {
                return Err(corrupt("list of pages"));
            }
            pages.sort_unstable();
            Ok(Some(BlockScan {
                bucket: request.bucket,
                condition: request.condition.clone(),
                tenant,
                pages,
                resources: ResourceMatches::new(&view, tenant)?,
                view,
            }))
        })
    }
}

impl BlockScan {
    /// The latest start of a span that was not inspected yet; `None` when all were.
    #[must_use]
    pub fn next_start(&self) -> Option<UnixNanos> {
        self.pages.last().map(|(latest, ..)| UnixNanos(*latest))
    }

    /// Inspects the next page, that with the newest spans first; `None` when there is none. Only columns that the
    /// condition names are read, and keys and dictionaries decide whether the rows are looked at.
    ///
    /// # Errors
    /// When the block cannot be read. A corrupt page is told, not an error.
    pub fn next_page(&mut self) -> Result<Option<ScannedPage>, BlockError> {
        guarded(|| {
            let Some((_, page, spans)) = self.pages.pop() else {
                return Ok(None);
            };
            let mut scanned = ScannedPage {
                spans: u64::from(spans),
                ..ScannedPage::default()
            };
            let source = stored_page(&self.view, self.tenant, page)?;
            let condition = PageCondition::new(&self.condition);
            let found = find(&source, &condition, &mut self.resources, &mut scanned.bytes);
            match found {
                Ok(found) => scanned.found = found,
                Err(PageError::Corrupt(error)) => {
                    tracing::error!(bucket = self.bucket.0, page, %error, "page skipped");
                    scanned.corrupt = true;
                }
                Err(error) => return Err(of_page(self.bucket, page)(error)),
            }
            Ok(Some(scanned))
        })
    }
}

fn find(
    source: &dyn PageBytes,
    condition: &PageCondition<'_>,
    resources: &mut ResourceMatches,
    bytes: &mut u64,
) -> Result<Vec<FoundFragment>, PageError> {
    let mut reader = PageReader::open(source)?;
    let rows = reader.matching_rows(condition, &mut |hash| resources.of(condition, hash))?;
    let mut found = Vec::new();
    if !rows.is_empty() {
        let ids = reader.span_ids(&rows)?;
        let mut matched = rows.into_iter().zip(ids).peekable();
        for placed in reader.fragments()? {
            let PlacedFragment {
                head,
                first_row,
                rows,
            } = placed;
            let end = first_row.saturating_add(rows);
            let mut of_fragment = Vec::new();
            while let Some((_, id)) = matched.next_if(|(row, _)| *row < end) {
                of_fragment.push(id);
            }
            if !of_fragment.is_empty() {
                found.push(FoundFragment {
                    shard: head.shard,
                    trace_id: head.trace_id,
                    fragment: head.fragment,
                    matched: of_fragment,
                });
            }
        }
    }
    *bytes += reader.fetched_bytes() as u64;
    Ok(found)
}
