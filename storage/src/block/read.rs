//! Reading traces, summaries and names from blocks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use redb::{AccessGuard, ReadableTableMetadata, StorageError};
use spandrel_model::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, TraceId};
use spandrel_model::otlp::{RawContext, visit_resource_attributes};

use super::error::{BlockError, Walk, check_place, corrupt, guarded};
use super::file::{Residency, View};
use super::limits::LEAF_LOCATORS;
use super::schema::{
    CHUNKS, LOCATOR, Located, PAGES, RESOURCES, locator_key, resource_key, split_locator_key,
};
use super::store::BlockStore;
use super::stored_page::{StoredPage, of_page, read_resource};
use crate::page::{
    ContextHash, FragmentHead, PageReader, PlacedFragment, RebuiltSpan, ValueKind, read_context,
};

/// Where a fragment lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentLocation {
    /// The bucket of its block.
    pub bucket: Bucket,
    /// Whose trace.
    pub tenant: TenantId,
    /// Its shard.
    pub shard: ShardId,
    /// The trace.
    pub trace_id: TraceId,
    /// The lsn of its verdict or late record.
    pub fragment: Lsn,
    /// Its page in the block.
    pub page: u64,
    /// Its first row in the page.
    pub first_row: u32,
    /// Its spans.
    pub rows: u32,
    /// The sequence of its summary in the block; 0 when it has none.
    pub sequence: u64,
}

impl FragmentLocation {
    fn placed(&self) -> PlacedFragment {
        PlacedFragment {
            head: FragmentHead {
                shard: self.shard,
                trace_id: self.trace_id,
                fragment: self.fragment,
                received_at: spandrel_model::ids::UnixNanos(0),
            },
            first_row: self.first_row,
            rows: self.rows,
        }
    }
}

/// Whether an attribute key was seen on spans or on resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttributeScope {
    /// Of resources.
    Resource,
    /// Of spans.
    Span,
}

impl BlockStore {
    /// True when the block of a bucket has a fragment; false also when there is no such block.
    ///
    /// # Errors
    /// When the block cannot be read.
    pub fn has_fragment(
        &self,
        bucket: Bucket,
        tenant: &TenantId,
        shard: ShardId,
        trace: TraceId,
        fragment: Lsn,
    ) -> Result<bool, BlockError> {
        guarded(|| {
            let view = match self.view(bucket) {
                Err(BlockError::NoBlock { .. }) => return Ok(false),
                other => other?,
            };
            let Some(tenant) = view.tenant(tenant)? else {
                return Ok(false);
            };
            let locator = view.table(LOCATOR)?;
            let key = locator_key(tenant, shard, trace, fragment);
            Ok(locator.get(&key)?.is_some())
        })
    }

    /// The fragments of a trace in all blocks that open, newest bucket first, each bucket's in order. The filters
    /// are asked before any locator.
    ///
    /// # Errors
    /// When a block cannot be read.
    pub fn fragments(
        &self,
        tenant: &TenantId,
        shard: ShardId,
        trace: TraceId,
    ) -> Result<Vec<FragmentLocation>, BlockError> {
        self.fragments_since(Bucket(0), tenant, shard, trace)
    }

    /// [`Self::fragments`], of the blocks from bucket `oldest` on.
    ///
    /// # Errors
    /// When a block cannot be read.
    pub fn fragments_since(
        &self,
        oldest: Bucket,
        tenant: &TenantId,
        shard: ShardId,
        trace: TraceId,
    ) -> Result<Vec<FragmentLocation>, BlockError> {
        guarded(|| {
            let mut found = Vec::new();
            let mut filter_bytes = 0usize;
            for file in self.newest_first(oldest) {
                filter_bytes = filter_bytes.saturating_add(file.filter_bytes());
                let residency = match filter_bytes <= self.options.filter_bytes {
                    true => Residency::Keep,
                    false => Residency::ReadRow,
                };
                if !file.may_hold(&self.open, tenant, trace, residency)? {
                    continue;
                }
                let view = file.view(&self.open)?;
                for (fragment, located) in locate(&view, tenant, shard, trace)? {
                    found.push(FragmentLocation {
                        bucket: file.bucket,
                        tenant: tenant.clone(),
                        shard,
                        trace_id: trace,
                        fragment,
                        page: located.page,
                        first_row: located.first_row,
                        rows: located.rows,
                        sequence: located.sequence,
                    });
                }
            }
            Ok(found)
        })
    }

    /// Calls `visit` with each span of a fragment: its resource and scope, its id and its message.
    ///
    /// # Errors
    /// When the block or the page cannot be read; spans before that were visited.
    pub fn visit(
        &self,
        location: &FragmentLocation,
        visit: &mut dyn FnMut(&RawContext<'_>, SpanId, &[u8]),
    ) -> Result<(), BlockError> {
        guarded(|| {
            let view = self.view(location.bucket)?;
            let tenant = tenant_of(&view, &location.tenant)?;
            let location = &settled(&view, tenant, location)?;
            let source = stored_page(&view, tenant, location.page)?;
            let resources = view.table(RESOURCES)?;
            let failed = of_page(location.bucket, location.page);
            let mut reader = PageReader::open(&source).map_err(&failed)?;
            // Read before the spans: the visitor cannot fail.
            let mut contexts = BTreeMap::new();
            for hash in reader.contexts_of(&location.placed()).map_err(&failed)? {
                contexts.insert(hash, read_resource(&resources, tenant, hash)?);
            }
            let mut malformed = false;
            let mut visit_rebuilt = |span: RebuiltSpan<'_>| {
                let stored = contexts.get(&span.context);
                match stored.and_then(|stored| read_context(stored)) {
                    Some(context) => visit(&context, span.span_id, span.span),
                    None => malformed = true,
                }
            };
            reader
                .visit(&location.placed(), &mut visit_rebuilt)
                .map_err(&failed)?;
            match malformed {
                true => Err(corrupt("resource")),
                false => Ok(()),
            }
        })
    }

    /// The attribute keys of a tenant's spans and resources in a block, from the directories of its pages. Corrupt
    /// pages are passed over.
    ///
    /// # Errors
    /// When the block cannot be read.
    pub fn attribute_keys(
        &self,
        bucket: Bucket,
        tenant: &TenantId,
    ) -> Result<BTreeSet<(String, AttributeScope)>, BlockError> {
        guarded(|| {
            let view = self.view(bucket)?;
            let mut keys = BTreeSet::new();
            let Some(tenant) = view.tenant(tenant)? else {
                return Ok(keys);
            };
            self.visit_resources(&view, tenant, &mut |key, _, _| {
                keys.insert((key.to_owned(), AttributeScope::Resource));
            })?;
            let mut walk = Walk::over("list of pages");
            for row in view.table(PAGES)?.range((tenant, 0)..=(tenant, u64::MAX))? {
                let (of, page) = row?.0.value();
                walk.comes_to(page, of == tenant)?;
                let source = stored_page(&view, tenant, page)?;
                let read = PageReader::open(&source).and_then(|mut reader| reader.attribute_keys());
                match read {
                    Ok(of_page) => {
                        keys.extend(of_page.into_iter().map(|key| (key, AttributeScope::Span)));
                    }
                    Err(error) => tracing::error!(bucket = bucket.0, page, %error, "page skipped"),
                }
            }
            Ok(keys)
        })
    }

    /// At least some, and at most `limit`, of the values that an attribute key has on a tenant's spans and resources
    /// in a block, as text with their kind; newest pages first. Corrupt pages are passed over.
    ///
    /// # Errors
    /// When the block cannot be read.
    pub fn attribute_values(
        &self,
        bucket: Bucket,
        tenant: &TenantId,
        key: &str,
        limit: usize,
    ) -> Result<BTreeSet<(String, ValueKind)>, BlockError> {
        guarded(|| {
            let view = self.view(bucket)?;
            let mut values = BTreeSet::new();
            let Some(tenant) = view.tenant(tenant)? else {
                return Ok(values);
            };
            let mut add = |kind: ValueKind, text: &str| {
                if values.len() < limit {
                    values.insert((text.to_owned(), kind));
                }
                values.len() < limit
            };
            self.visit_resources(&view, tenant, &mut |found, kind, text| {
                if found == key {
                    add(kind, text);
                }
            })?;
            let pages = view.table(PAGES)?;
            let mut walk = Walk::over("list of pages");
            for row in pages.range((tenant, 0)..=(tenant, u64::MAX))?.rev() {
                let (of, page) = row?.0.value();
                walk.comes_to(Reverse(page), of == tenant)?;
                let source = stored_page(&view, tenant, page)?;
                let read = PageReader::open(&source)
                    .and_then(|mut reader| reader.attribute_texts(key, &mut add));
                match read {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => tracing::error!(bucket = bucket.0, page, %error, "page skipped"),
                }
            }
            Ok(values)
        })
    }

    fn visit_resources(
        &self,
        view: &View,
        tenant: u16,
        visit: &mut dyn FnMut(&str, ValueKind, &str),
    ) -> Result<(), BlockError> {
        let first = resource_key(tenant, ContextHash([0; 16]));
        let last = resource_key(tenant, ContextHash([u8::MAX; 16]));
        let mut walk = Walk::over("resource");
        for row in view.table(RESOURCES)?.range::<&[u8; 18]>(&first..=&last)? {
            let (key, stored) = row?;
            let key = *key.value();
            walk.comes_to(key, (first..=last).contains(&key))?;
            let Some(context) = read_context(stored.value()) else {
                continue;
            };
            // What follows a fault in a resource is unknown to everybody.
            let _ = visit_resource_attributes(context.resource, &mut |key, value| {
                if let Some(text) = value.text() {
                    visit(key, ValueKind::of(&value), &text);
                }
            });
        }
        Ok(())
    }
}

pub(super) fn tenant_of(view: &View, tenant: &TenantId) -> Result<u16, BlockError> {
    view.tenant(tenant)?
        .ok_or_else(|| corrupt("tenant of a fragment"))
}

/// Where a fragment lies in this view: a seal may have moved it to another page since it was located.
pub(super) fn settled(
    view: &View,
    tenant: u16,
    location: &FragmentLocation,
) -> Result<FragmentLocation, BlockError> {
    let mut settled = location.clone();
    if view.table(PAGES)?.get((tenant, location.page))?.is_none() {
        let key = locator_key(tenant, location.shard, location.trace_id, location.fragment);
        let row = view.table(LOCATOR)?.get(&key)?;
        let located = row.and_then(|row| Located::decode(row.value()));
        let located = located.ok_or_else(|| corrupt("locator"))?;
        settled.page = located.page;
        settled.first_row = located.first_row;
    }
    Ok(settled)
}

type Chunks = redb::ReadOnlyTable<(u16, u64, u32), &'static [u8]>;

pub(super) fn stored_page(
    view: &View,
    tenant: u16,
    page: u64,
) -> Result<StoredPage<'static, Chunks>, BlockError> {
    Ok(StoredPage {
        chunks: view.table(CHUNKS)?,
        tenant,
        page,
        cache: None,
    })
}

fn locate(
    view: &View,
    tenant: &TenantId,
    shard: ShardId,
    trace: TraceId,
) -> Result<Vec<(Lsn, Located)>, BlockError> {
    let Some(tenant) = view.tenant(tenant)? else {
        return Ok(Vec::new());
    };
    let found = fragments_of(view, (tenant, shard, trace))?;
    check_around(view, locator_key(tenant, shard, trace, Lsn(0)))?;
    Ok(found)
}

/// That all locators behind a key, with which those of a trace begin, are where they are looked for.
fn check_around(view: &View, key: [u8; 28]) -> Result<(), BlockError> {
    let locator = view.table(LOCATOR)?;
    let key_of = |row: Result<(AccessGuard<'_, &[u8; 28]>, _), StorageError>| {
        row.map(|(key, _): (_, AccessGuard<'_, &[u8]>)| *key.value())
    };
    let before = locator.range::<&[u8; 28]>(..&key)?.rev().map(key_of);
    let behind = locator.range::<&[u8; 28]>(&key..)?.map(key_of);
    let rows = (LEAF_LOCATORS, locator.len()?);
    check_place("locator", &key, (before, behind), rows)
}

/// The fragments of a trace, in order; its tenant by the number that it has in the block.
pub(super) fn fragments_of(
    view: &View,
    (tenant, shard, trace): (u16, ShardId, TraceId),
) -> Result<Vec<(Lsn, Located)>, BlockError> {
    let first = locator_key(tenant, shard, trace, Lsn(0));
    let last = locator_key(tenant, shard, trace, Lsn(u64::MAX));
    let (mut found, mut walk) = (Vec::new(), Walk::over("locator"));
    for row in view.table(LOCATOR)?.range::<&[u8; 28]>(&first..=&last)? {
        let (key, located) = row?;
        let key = *key.value();
        walk.comes_to(key, (first..=last).contains(&key))?;
        let (_, _, _, fragment) = split_locator_key(&key).ok_or_else(|| corrupt("locator"))?;
        let located = Located::decode(located.value()).ok_or_else(|| corrupt("locator"))?;
        found.push((fragment, located));
    }
    Ok(found)
}
