//! Fragments on their way to the block of another node.

use std::collections::BTreeSet;

use bytes::Bytes;
use redb::ReadableTable;
use spandrel_model::ids::{Bucket, NodeId, TenantId};
use spandrel_model::summary::TraceSummary;
use xxhash_rust::xxh3::xxh3_64;

use super::commit::BlockWrite;
use super::error::{BlockError, Walk, corrupt, guarded};
use super::file::View;
use super::limits::{EXPORT_BYTES, EXPORT_PAGES, SUMMARY_BATCH};
use super::read::stored_page;
use super::schema::{LOCATOR, Located, PAGES, RESOURCES, TENANTS, locator_key};
use super::store::BlockStore;
use super::stored_page::{page_spans, read_fragments};
use super::summaries::{self, Batch};
use crate::page::wire::{Wire, put_bytes, put_varint};
use crate::page::{
    ContextHash, EncodedPage, FragmentHead, PageBuilder, PageReader, PlacedFragment, StoredContext,
};

const VERSION: u8 = 1;

/// How far the pages of a block were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PagePlace {
    /// Number of the tenant in the block.
    pub tenant: u16,
    /// The page.
    pub page: u64,
}

/// Some of the fragments of a block.
#[derive(Debug, Clone, Default)]
pub struct BlockExport {
    /// What the other block is to be given; `None` when the pages that were read have nothing for it.
    pub write: Option<BlockWrite>,
    /// Where to go on; `None`: these were the last pages.
    pub next: Option<PagePlace>,
}

/// Whether a fragment goes into the other block.
pub type Wanted<'a> = &'a dyn Fn(&FragmentHead) -> bool;

/// Fragments of one tenant, up to a full page.
pub(super) struct Filling {
    from: NodeId,
    tenant: Option<u16>,
    builder: PageBuilder,
    summaries: Vec<TraceSummary>,
}

impl Filling {
    pub(super) fn new(from: NodeId) -> Self {
        Self {
            from,
            tenant: None,
            builder: PageBuilder::new(),
            summaries: Vec::new(),
        }
    }

    pub(super) fn finish(
        mut self,
        view: &View,
        bucket: Bucket,
        next: Option<PagePlace>,
    ) -> Result<BlockExport, BlockError> {
        let Some(tenant) = self.tenant else {
            return Ok(BlockExport { write: None, next });
        };
        let page = self.builder.finish()?;
        let write = BlockWrite {
            bucket,
            tenant: tenant_name(view, tenant)?,
            pages: page.into_iter().collect(),
            summaries: self.summaries,
        };
        Ok(BlockExport {
            write: Some(write),
            next,
        })
    }
}

impl BlockStore {
    /// Reads on behind `after`: of one tenant, as many spans as a full page has and [`EXPORT_BYTES`] of them, but at least
    /// one page and at most [`EXPORT_PAGES`]. Fragments have the numbers of copies from node `from`. A seal may move
    /// fragments to later pages: then they come a second time, and are known there.
    ///
    /// # Errors
    /// When a page or a summary cannot be read, or the block is gone meanwhile: a copy with a hole must not pass for a
    /// whole one.
    pub fn export(
        &self,
        bucket: Bucket,
        wanted: Wanted<'_>,
        from: NodeId,
        after: PagePlace,
    ) -> Result<BlockExport, BlockError> {
        guarded(|| {
            let view = match self.view(bucket) {
                Err(BlockError::NoBlock { .. }) if after == PagePlace::default() => {
                    return Ok(BlockExport::default());
                }
                other => other?,
            };
            let mut filling = Filling::new(from);
            let (mut last, mut walk) = (after, Walk::over("list of pages"));
            let mut next = None;
            let first = (after.tenant, after.page.saturating_add(1));
            for (row, read) in view.table(PAGES)?.range(first..)?.zip(0..) {
                let (tenant, page) = row?.0.value();
                walk.comes_to((tenant, page), (tenant, page) >= first)?;
                let is_full = filling.tenant.is_some_and(|of| of != tenant) || read >= EXPORT_PAGES;
                if is_full
                    || !self.fill(&view, &mut filling, bucket, (tenant, page), wanted, |_| {
                        false
                    })?
                {
                    next = Some(last);
                    break;
                }
                last = PagePlace { tenant, page };
            }
            filling.finish(&view, bucket, next)
        })
    }

    /// Adds what is wanted of a page; false when there is no room for it. What fails so that it is `skipped` is left out: a
    /// page, or a fragment whose summary cannot be read.
    pub(super) fn fill(
        &self,
        view: &View,
        filling: &mut Filling,
        bucket: Bucket,
        (tenant, page): (u16, u64),
        wanted: Wanted<'_>,
        skipped: fn(&BlockError) -> bool,
    ) -> Result<bool, BlockError> {
        let wanted = |fragment: &PlacedFragment| wanted(&fragment.head);
        let source = stored_page(view, tenant, page)?;
        let read = read_fragments(&source, &view.table(RESOURCES)?, &wanted);
        let damage = corrupt("page that is to be copied");
        let read = match read {
            Some(read) => read,
            None if skipped(&damage) => return Ok(true),
            None => return Err(damage),
        };
        let spans: usize = read.iter().map(|(_, spans)| spans.len()).sum();
        let has = filling.builder.span_count() as usize;
        let is_large = filling.builder.span_bytes() >= EXPORT_BYTES;
        if has > 0 && (is_large || has + spans > self.options.full_page_spans as usize) {
            return Ok(false);
        }
        for (fragment, spans) in &read {
            let copy = fragment.head.fragment.copied_from(filling.from);
            let copy = copy.ok_or_else(|| corrupt("number of a fragment, too large for a copy"))?;
            let head = FragmentHead {
                fragment: copy,
                ..fragment.head
            };
            // Before its spans: search would not find them without it.
            let summary = match self.summary_of_fragment(view, bucket, tenant, fragment) {
                Err(error) if skipped(&error) => continue,
                summary => summary?,
            };
            filling.builder.push(head, &page_spans(spans)?)?;
            filling.tenant = Some(tenant);
            filling
                .summaries
                .extend(summary.map(|summary| TraceSummary {
                    fragment: copy,
                    ..summary
                }));
        }
        Ok(true)
    }

    fn summary_of_fragment(
        &self,
        view: &View,
        bucket: Bucket,
        tenant: u16,
        fragment: &PlacedFragment,
    ) -> Result<Option<TraceSummary>, BlockError> {
        let (shard, trace, lsn) = fragment.head.key();
        let key = locator_key(tenant, shard, trace, lsn);
        let row = view.table(LOCATOR)?.get(&key)?;
        let located = row.and_then(|row| Located::decode(row.value()));
        let located = located.ok_or_else(|| corrupt("locator"))?;
        if located.sequence == 0 {
            return Ok(None);
        }
        self.summary_at(bucket, located.sequence).map(Some)
    }
}

pub(super) fn tenant_name(view: &View, number: u16) -> Result<TenantId, BlockError> {
    for row in view.table(TENANTS)?.iter()? {
        let (name, found) = row?;
        if found.value() == number {
            return name.value().parse().map_err(|_| corrupt("tenant"));
        }
    }
    Err(corrupt("tenant"))
}

impl BlockWrite {
    /// Its form between nodes: docs/formats/block.md.
    ///
    /// # Errors
    /// When zstd cannot work, which means that memory is short.
    pub fn pack(&self) -> std::io::Result<Bytes> {
        let mut out = vec![VERSION];
        put_varint(&mut out, u64::from(self.bucket.0));
        put_bytes(&mut out, self.tenant.as_str().as_bytes());
        put_varint(&mut out, self.pages.len() as u64);
        for page in &self.pages {
            put_bytes(&mut out, &page.bytes);
            put_varint(&mut out, page.contexts.len() as u64);
            for context in &page.contexts {
                put_bytes(&mut out, &context.bytes);
            }
        }
        let summaries: Vec<&TraceSummary> = self.summaries.iter().collect();
        put_varint(&mut out, summaries.len().div_ceil(SUMMARY_BATCH) as u64);
        for batch in summaries.chunks(SUMMARY_BATCH) {
            put_bytes(&mut out, &summaries::encode(&self.tenant, batch)?);
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        Ok(out.into())
    }

    /// Reads what [`Self::pack`] has written.
    ///
    /// # Errors
    /// When the bytes are nothing of the kind, or something in them is not what it says.
    pub fn unpack(packed: &Bytes) -> Result<Self, BlockError> {
        let (covered, checksum) = packed.split_last_chunk::<8>().ok_or_else(malformed)?;
        if xxh3_64(covered) != u64::from_le_bytes(*checksum) {
            return Err(malformed());
        }
        let mut wire = Wire::new(covered);
        let write = Self::read(&mut wire, packed)?;
        match wire.is_empty() {
            true => Ok(write),
            false => Err(malformed()),
        }
    }

    fn read(wire: &mut Wire<'_>, packed: &Bytes) -> Result<Self, BlockError> {
        if wire.byte() != Some(VERSION) {
            return Err(malformed());
        }
        let bucket = wire.minimal_varint().and_then(|it| u32::try_from(it).ok());
        let bucket = Bucket(bucket.ok_or_else(malformed)?);
        let name = std::str::from_utf8(piece(wire)?).map_err(|_| malformed())?;
        let tenant: TenantId = name.parse().map_err(|_| malformed())?;
        let mut pages = Vec::new();
        for _ in 0..wire.minimal_varint().ok_or_else(malformed)? {
            let bytes = packed.slice_ref(piece(wire)?);
            let mut contexts = Vec::new();
            for _ in 0..wire.minimal_varint().ok_or_else(malformed)? {
                contexts.push(packed.slice_ref(piece(wire)?));
            }
            pages.push(page_of(bytes, contexts)?);
        }
        let mut summaries = Vec::new();
        for _ in 0..wire.minimal_varint().ok_or_else(malformed)? {
            let batch = Batch::open(piece(wire)?, bucket).ok_or_else(malformed)?;
            for number in 0..batch.len() {
                let summary = batch.summary(number).ok_or_else(malformed)?;
                if summary.tenant != tenant {
                    return Err(malformed());
                }
                summaries.push(summary);
            }
        }
        Ok(Self {
            bucket,
            tenant,
            pages,
            summaries,
        })
    }
}

fn malformed() -> BlockError {
    corrupt("fragments of another node")
}

fn piece<'a>(wire: &mut Wire<'a>) -> Result<&'a [u8], BlockError> {
    wire.minimal_bytes().ok_or_else(malformed)
}

/// A page that another node has built, with the resources and scopes that it names.
fn page_of(bytes: Bytes, contexts: Vec<Bytes>) -> Result<EncodedPage, BlockError> {
    let invalid = |_| malformed();
    let contexts = contexts.into_iter().map(|bytes| StoredContext {
        hash: ContextHash::of(&bytes),
        bytes,
    });
    let contexts: Vec<StoredContext> = contexts.collect();
    let known: BTreeSet<_> = contexts.iter().map(|context| context.hash).collect();
    let mut reader = PageReader::open(&bytes).map_err(invalid)?;
    let fragments = reader.fragments().map_err(invalid)?;
    let mut named = reader.contexts().map_err(invalid)?.iter();
    if !named.all(|hash| known.contains(hash)) {
        return Err(malformed());
    }
    let (min_start, max_start) = reader.starts();
    let span_count = reader.span_count();
    drop(reader);
    Ok(EncodedPage {
        bytes,
        fragments,
        contexts,
        min_start,
        max_start,
        span_count,
    })
}
