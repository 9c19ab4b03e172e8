//! Which spans of some fragments meet a condition, each page opened once.

use std::collections::BTreeMap;
use std::ops::Range;

use redb::ReadOnlyTable;
use spandrel_model::ids::SpanId;
use spandrel_model::search::SpanCondition;

use super::error::{BlockError, guarded};
use super::file::View;
use super::read::{FragmentLocation, settled, stored_page, tenant_of};
use super::schema::RESOURCES;
use super::store::BlockStore;
use super::stored_page::{PageCache, StoredPage, of_page, read_resource};
use crate::page::{ContextHash, ContextMatch, PageCondition, PageError, PageReader, read_context};

/// What the resources of a tenant in a block say about a condition, each asked once.
pub(super) struct ResourceMatches {
    resources: ReadOnlyTable<&'static [u8; 18], &'static [u8]>,
    tenant: u16,
    known: BTreeMap<ContextHash, ContextMatch>,
}

impl ResourceMatches {
    pub(super) fn new(view: &View, tenant: u16) -> Result<Self, BlockError> {
        Ok(Self {
            resources: view.table(RESOURCES)?,
            tenant,
            known: BTreeMap::new(),
        })
    }

    /// The answer of the resource with a hash; the condition is the same in every call.
    pub(super) fn of(
        &mut self,
        condition: &PageCondition<'_>,
        hash: ContextHash,
    ) -> Result<ContextMatch, PageError> {
        if let Some(known) = self.known.get(&hash) {
            return Ok(known.clone());
        }
        let stored = read_resource(&self.resources, self.tenant, hash);
        let stored = stored.map_err(|error| PageError::Source(Box::new(error)))?;
        let resource = read_context(&stored).map_or(&[][..], |context| context.resource);
        let matched = condition.match_resource(resource);
        self.known.insert(hash, matched.clone());
        Ok(matched)
    }
}

impl BlockStore {
    /// For each fragment its first `limit` spans that meet a condition, in the order of the page; `None` where its
    /// page or block cannot be read, which is logged. Fragments of one page are read together.
    ///
    /// # Errors
    /// When a disk or a database fails.
    pub fn matching_spans(
        &self,
        locations: &[FragmentLocation],
        condition: &SpanCondition,
        limit: usize,
    ) -> Result<Vec<Option<Vec<SpanId>>>, BlockError> {
        guarded(|| {
            let condition = PageCondition::new(condition);
            let mut order: Vec<(usize, &FragmentLocation)> = locations.iter().enumerate().collect();
            order.sort_by_key(|(_, location)| (location.bucket, &location.tenant));
            let mut found: Vec<Option<Vec<SpanId>>> = vec![None; locations.len()];
            for block in order.chunk_by(|(_, left), (_, right)| {
                left.bucket == right.bucket && left.tenant == right.tenant
            }) {
                match self.matching_in_block(block, &condition, limit, &mut found) {
                    Ok(()) => {}
                    Err(error) if is_damage(&error) => {
                        tracing::error!(%error, "fragments left out of a search");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        })
    }

    fn matching_in_block(
        &self,
        block: &[(usize, &FragmentLocation)],
        condition: &PageCondition<'_>,
        limit: usize,
        found: &mut [Option<Vec<SpanId>>],
    ) -> Result<(), BlockError> {
        let Some((_, first)) = block.first() else {
            return Ok(());
        };
        let file = self.file(first.bucket)?;
        let view = file.view(&self.open)?;
        let cache = PageCache {
            columns: &self.columns,
            block_id: file.meta().block_id,
        };
        let tenant = tenant_of(&view, &first.tenant)?;
        let mut resources = ResourceMatches::new(&view, tenant)?;
        let mut pages: BTreeMap<u64, Vec<(usize, Range<u32>)>> = BTreeMap::new();
        for (index, location) in block {
            let place = match settled(&view, tenant, location) {
                Err(error) if is_damage(&error) => {
                    tracing::error!(%error, "fragment left out of a search");
                    continue;
                }
                place => place?,
            };
            let rows = place.first_row..place.first_row.saturating_add(place.rows);
            pages.entry(place.page).or_default().push((*index, rows));
        }
        for (page, fragments) in pages {
            let source = StoredPage {
                cache: Some(cache),
                ..stored_page(&view, tenant, page)?
            };
            let of_page = of_page(first.bucket, page);
            let matched = PageReader::open(&source)
                .and_then(|mut reader| in_page(&mut reader, condition, &mut resources, &fragments));
            match matched.map_err(of_page) {
                Ok(matched) => {
                    for ((index, _), mut spans) in fragments.into_iter().zip(matched) {
                        spans.truncate(limit);
                        if let Some(place) = found.get_mut(index) {
                            *place = Some(spans);
                        }
                    }
                }
                Err(error) if is_damage(&error) => {
                    tracing::error!(%error, "page left out of a search");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The matching spans of each fragment of a page.
fn in_page(
    reader: &mut PageReader<'_>,
    condition: &PageCondition<'_>,
    resources: &mut ResourceMatches,
    fragments: &[(usize, Range<u32>)],
) -> Result<Vec<Vec<SpanId>>, PageError> {
    let within: Vec<Range<u32>> = fragments.iter().map(|(_, rows)| rows.clone()).collect();
    let rows = reader.matching_rows_within(condition, &within, &mut |hash| {
        resources.of(condition, hash)
    })?;
    if rows.is_empty() {
        return Ok(vec![Vec::new(); fragments.len()]);
    }
    let ids = reader.span_ids(&rows)?;
    let of_fragment = |range: &Range<u32>| {
        let matched = rows.iter().zip(&ids);
        matched
            .filter(|(row, _)| range.contains(row))
            .map(|(_, id)| *id)
            .collect()
    };
    Ok(within.iter().map(of_fragment).collect())
}

/// True when what is stored is at fault, or gone, and not the machine.
fn is_damage(error: &BlockError) -> bool {
    match error {
        BlockError::Page { source, .. } => match source {
            PageError::Corrupt(_) => true,
            PageError::Source(source) => source.downcast_ref().is_some_and(is_damage),
        },
        BlockError::NoBlock { .. } | BlockError::Corrupt { .. } => true,
        _ => false,
    }
}
