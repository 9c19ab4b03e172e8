//! What a block holds, told so that two nodes can compare it without reading each other's pages, and what it takes to mend
//! a difference.

use std::collections::{BTreeMap, BTreeSet};

use redb::ReadableTable;
use spandrel_model::ids::{Bucket, Lsn, NodeId, ShardId, TenantId, TraceId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::commit;
use super::error::{BlockError, Walk, corrupt, guarded};
use super::export::{BlockExport, Filling, PagePlace, tenant_name};
use super::file::View;
use super::limits::{EXPORT_PAGES, INVENTORY_SLICES};
use super::open_files::Purpose;
use super::read::{fragments_of, stored_page};
use super::schema::{CHUNKS, LOCATOR, Located, PAGES, RESOURCES, locator_key, split_locator_key};
use super::store::BlockStore;
use super::stored_page::{of_page, read_resource, remove_chunks};
use crate::page::{CorruptPage, FragmentHead, PageError, PageReader, PlacedFragment};

/// Distinct spans, whatever their order and the pages that they are in: how many there are, and the sum of their hashes
/// over trace id and span (DESIGN.md section 4, point 8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub spans: u64,
    /// The sum, modulo 2^64.
    pub hashes: u64,
}

impl Tally {
    /// Both together; they have no span in common.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            spans: self.spans + other.spans,
            hashes: self.hashes.wrapping_add(other.hashes),
        }
    }
}

/// A tenant's traces of one shard, cut into [`INVENTORY_SLICES`] by their ids: a difference is looked for in a slice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice {
    /// The tenant.
    pub tenant: TenantId,
    /// The shard.
    pub shard: ShardId,
    /// Less than [`INVENTORY_SLICES`].
    pub number: u8,
}

impl Slice {
    /// The number of the slice that a trace is in.
    #[must_use]
    pub fn number_of(trace: TraceId) -> u8 {
        // Ids need not be random: their hash is.
        xxh3_64(&trace.0).to_le_bytes()[0] % INVENTORY_SLICES
    }
}

/// What a block holds of some shards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By slice; empty ones are left out.
    pub tallies: BTreeMap<Slice, Tally>,
    /// Pages of which not everything can be read.
    pub damaged: BTreeSet<PagePlace>,
    /// Spans that were read.
    pub spans_read: u64,
}

impl Inventory {
    fn add(&mut self, tenant: &TenantId, shard: ShardId, trace: TraceId, tally: Tally) {
        self.spans_read += tally.spans;
        let slice = Slice {
            tenant: tenant.clone(),
            shard,
            number: Slice::number_of(trace),
        };
        let known = self.tallies.entry(slice).or_default();
        *known = known.plus(tally);
    }

    /// The numbers of the pages of which not everything can be read: no two pages of a block have the same.
    #[must_use]
    pub fn damaged_pages(&self) -> BTreeSet<u64> {
        self.damaged.iter().map(|place| place.page).collect()
    }
}

impl BlockStore {
    /// Counts on behind `after`: at most [`EXPORT_PAGES`] pages, every byte of which is read and verified. Answers where
    /// to go on; `None`: these were the last.
    ///
    /// # Errors
    /// When the block cannot be read, but for its pages: those are told as damaged, and what of them can be read is
    /// counted at last.
    pub fn count_spans(
        &self,
        bucket: Bucket,
        after: PagePlace,
        inventory: &mut Inventory,
    ) -> Result<Option<PagePlace>, BlockError> {
        guarded(|| {
            let view = match self.view(bucket) {
                Err(BlockError::NoBlock { .. }) => return Ok(None),
                other => other?,
            };
            let first = (after.tenant, after.page.saturating_add(1));
            let mut name = None;
            let (mut last, mut walk) = (after, Walk::over("list of pages"));
            for (row, read) in view.table(PAGES)?.range(first..)?.zip(0..) {
                let (tenant, page) = row?.0.value();
                walk.comes_to((tenant, page), (tenant, page) >= first)?;
                if read >= EXPORT_PAGES {
                    return Ok(Some(last));
                }
                let tenant_id = match name.take() {
                    Some((number, id)) if number == tenant => id,
                    _ => tenant_name(&view, tenant)?,
                };
                last = PagePlace { tenant, page };
                match count_page(&view, bucket, last) {
                    Ok(counted) => {
                        for (shard, trace, tally) in counted {
                            inventory.add(&tenant_id, shard, trace, tally);
                        }
                    }
                    Err(error) if is_rot(&error) => {
                        inventory.damaged.insert(last);
                    }
                    Err(error) => return Err(error),
                }
                name = Some((tenant, tenant_id));
            }
            if !inventory.damaged.is_empty() {
                count_behind_damage(&view, bucket, inventory)?;
            }
            Ok(None)
        })
    }

    /// The traces of a slice behind trace `after`, ascending, with what can be read of each: at most `most`. Fewer: these
    /// were the last.
    ///
    /// # Errors
    /// When the block cannot be read, but for its pages: spans of those do not count.
    pub fn traces_of(
        &self,
        bucket: Bucket,
        slice: &Slice,
        after: Option<TraceId>,
        most: usize,
    ) -> Result<Vec<(TraceId, Tally)>, BlockError> {
        guarded(|| {
            let view = match self.view(bucket) {
                Err(BlockError::NoBlock { .. }) => return Ok(Vec::new()),
                other => other?,
            };
            let Some(tenant) = view.tenant(&slice.tenant)? else {
                return Ok(Vec::new());
            };
            let (trace, fragment) = match after {
                Some(trace) => (trace, Lsn(u64::MAX)),
                None => (TraceId([0; 16]), Lsn(0)),
            };
            let first = locator_key(tenant, slice.shard, trace, fragment);
            let end = TraceId([u8::MAX; 16]);
            let last = locator_key(tenant, slice.shard, end, Lsn(u64::MAX));
            let (mut traces, mut walk): (Vec<TraceId>, _) = (Vec::new(), Walk::over("locator"));
            for row in view.table(LOCATOR)?.range::<&[u8; 28]>(&first..=&last)? {
                let key = *row?.0.value();
                walk.comes_to(key, (first..=last).contains(&key))?;
                let (_, _, trace, _) = split_locator_key(&key).ok_or_else(|| corrupt("locator"))?;
                let is_known = traces.last() == Some(&trace) || after == Some(trace);
                if is_known || Slice::number_of(trace) != slice.number {
                    continue;
                }
                if traces.len() == most {
                    break;
                }
                traces.push(trace);
            }
            let tallies = traces.into_iter().map(|trace| {
                let tally = count_trace(&view, bucket, (tenant, slice.shard, trace), None)?;
                Ok((trace, tally))
            });
            tallies.collect()
        })
    }

    /// What can be read of some traces of a shard, in the order of `traces`.
    ///
    /// # Errors
    /// As [`Self::traces_of`].
    pub fn tallies_of(
        &self,
        bucket: Bucket,
        of: (&TenantId, ShardId),
        traces: &[TraceId],
    ) -> Result<Vec<Tally>, BlockError> {
        guarded(|| {
            let (tenant, shard) = of;
            let none = || Ok(vec![Tally::default(); traces.len()]);
            let view = match self.view(bucket) {
                Err(BlockError::NoBlock { .. }) => return none(),
                other => other?,
            };
            let Some(tenant) = view.tenant(tenant)? else {
                return none();
            };
            let tallies = traces.iter();
            let tallies =
                tallies.map(|&trace| count_trace(&view, bucket, (tenant, shard, trace), None));
            tallies.collect()
        })
    }

    /// Takes a page that cannot be read out of a block, in one durable transaction, if the block has all spans of its
    /// traces on other pages: as many as their newest summaries speak of. False: it stays.
    ///
    /// # Errors
    /// When the block cannot be read. After an error of the disk or the database the process must stop.
    pub fn forget_page(&self, bucket: Bucket, place: PagePlace) -> Result<bool, BlockError> {
        guarded(|| {
            let file = self.file(bucket)?;
            // Before it looks: a seal moves fragments from page to page.
            let _writer = file.lock_writer();
            let database = self.open.get(bucket, &file.path, Purpose::Write)?;
            let view = file.view(&self.open)?;
            match count_page(&view, bucket, place) {
                Ok(_) => return Ok(false),
                Err(error) if !is_rot(&error) => return Err(error),
                Err(_) => {}
            }
            let PagePlace { tenant, page } = place;
            let named = fragments_on(&view, &BTreeSet::from([place]))?;
            for (_, shard, trace, _) in &named {
                if !self.is_elsewhere(&view, bucket, (tenant, *shard, *trace), page)? {
                    return Ok(false);
                }
            }
            drop(view);
            let transaction = commit::begin(&database)?;
            let mut meta = commit::get_meta(&transaction)?;
            {
                let mut locator = transaction.open_table(LOCATOR)?;
                for (tenant, shard, trace, fragment) in named {
                    locator.remove(&locator_key(tenant, shard, trace, fragment))?;
                }
                let mut chunks = transaction.open_table(CHUNKS)?;
                remove_chunks(&mut chunks, (tenant, page))?;
                if let Some(row) = transaction.open_table(PAGES)?.remove((tenant, page))? {
                    meta.spans = meta.spans.saturating_sub(u64::from(row.value().0));
                }
            }
            commit::put_meta(&transaction, &meta)?;
            transaction.commit()?;
            file.set_meta(meta);
            Ok(true)
        })
    }

    /// Whether pages other than `page` have all spans of a trace.
    fn is_elsewhere(
        &self,
        view: &View,
        bucket: Bucket,
        of: (u16, ShardId, TraceId),
        page: u64,
    ) -> Result<bool, BlockError> {
        let fragments = fragments_of(view, of)?.into_iter();
        let with_summary = fragments.filter(|(_, located)| located.sequence > 0);
        let Some((_, newest)) = with_summary.max_by_key(|(fragment, _)| fragment.age()) else {
            return Ok(false);
        };
        match self.summary_at(bucket, newest.sequence) {
            Ok(summary) => {
                let tally = count_trace(view, bucket, of, Some(page))?;
                Ok(tally.spans >= u64::from(summary.span_count))
            }
            Err(error) if !error.is_damage() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// As [`BlockStore::export`], of some traces alone, from pages behind `after`; of what is there, what can be read.
    ///
    /// # Errors
    /// When the block cannot be read, but for its pages and summaries.
    pub fn export_traces(
        &self,
        bucket: Bucket,
        of: (&TenantId, ShardId),
        traces: &BTreeSet<TraceId>,
        from: NodeId,
        after: PagePlace,
    ) -> Result<BlockExport, BlockError> {
        guarded(|| {
            let (tenant_id, shard) = of;
            let view = match self.view(bucket) {
                Err(BlockError::NoBlock { .. }) => return Ok(BlockExport::default()),
                other => other?,
            };
            let Some(tenant) = view.tenant(tenant_id)? else {
                return Ok(BlockExport::default());
            };
            let mut pages = BTreeSet::new();
            for &trace in traces {
                let located = fragments_of(&view, (tenant, shard, trace))?;
                pages.extend(located.into_iter().map(|(_, located)| located.page));
            }
            let wanted =
                |head: &FragmentHead| head.shard == shard && traces.contains(&head.trace_id);
            let mut filling = Filling::new(from);
            let mut last = after;
            let mut next = None;
            let behind = pages.range(after.page.saturating_add(1)..);
            for (page, read) in behind.copied().zip(0..) {
                let place = (tenant, page);
                let is_full = read >= EXPORT_PAGES;
                if is_full || !self.fill(&view, &mut filling, bucket, place, &wanted, is_rot)? {
                    next = Some(last);
                    break;
                }
                last = PagePlace { tenant, page };
            }
            filling.finish(&view, bucket, next)
        })
    }
}

/// The bytes are there and wrong. Another failed read may succeed next time.
fn is_rot(error: &BlockError) -> bool {
    matches!(
        error,
        BlockError::Corrupt { .. }
            | BlockError::Page {
                source: PageError::Corrupt(_),
                ..
            }
    )
}

/// The traces that have their first fragment on a page, with all their spans.
fn count_page(
    view: &View,
    bucket: Bucket,
    place: PagePlace,
) -> Result<Vec<(ShardId, TraceId, Tally)>, BlockError> {
    let failed = of_page(bucket, place.page);
    let source = stored_page(view, place.tenant, place.page)?;
    let mut reader = PageReader::open(&source).map_err(&failed)?;
    let resources = view.table(RESOURCES)?;
    for &hash in reader.contexts().map_err(&failed)? {
        read_resource(&resources, place.tenant, hash)?;
    }
    let mut counted = Vec::new();
    for fragment in reader.fragments().map_err(&failed)? {
        let (shard, trace, number) = fragment.head.key();
        // Every fragment is read, if only to see whether it can be.
        let mut hashes = Vec::new();
        add_hashes(&mut reader, &fragment, &mut hashes).map_err(&failed)?;
        let of = (place.tenant, shard, trace);
        let located = fragments_of(view, of)?;
        if located.first().is_none_or(|(first, _)| *first != number) {
            continue;
        }
        let tally = match located.len() {
            1 => tally_of(trace, hashes),
            _ => count_trace(view, bucket, of, None)?,
        };
        counted.push((shard, trace, tally));
    }
    Ok(counted)
}

/// Adds what can be read of the traces that have their first fragment on a damaged page: no other one has counted them.
fn count_behind_damage(
    view: &View,
    bucket: Bucket,
    inventory: &mut Inventory,
) -> Result<(), BlockError> {
    let mut name: Option<(u16, TenantId)> = None;
    let mut last = None;
    for (tenant, shard, trace, fragment) in fragments_on(view, &inventory.damaged)? {
        let of = (tenant, shard, trace);
        let first = fragments_of(view, of)?.first().map(|(first, _)| *first);
        if last.replace(of) == Some(of) || first != Some(fragment) {
            continue;
        }
        let tally = count_trace(view, bucket, of, None)?;
        if tally.spans == 0 {
            continue;
        }
        let (number, tenant_id) = match name.take() {
            Some((number, id)) if number == tenant => (number, id),
            _ => (tenant, tenant_name(view, tenant)?),
        };
        inventory.add(&tenant_id, shard, trace, tally);
        name = Some((number, tenant_id));
    }
    Ok(())
}

/// What the locator says of some pages, whether or not they can be read.
fn fragments_on(
    view: &View,
    places: &BTreeSet<PagePlace>,
) -> Result<Vec<(u16, ShardId, TraceId, Lsn)>, BlockError> {
    let mut found = Vec::new();
    for row in view.table(LOCATOR)?.iter()? {
        let (key, row) = row?;
        let key = split_locator_key(key.value()).ok_or_else(|| corrupt("locator"))?;
        let located = Located::decode(row.value()).ok_or_else(|| corrupt("locator"))?;
        let place = PagePlace {
            tenant: key.0,
            page: located.page,
        };
        if places.contains(&place) {
            found.push(key);
        }
    }
    Ok(found)
}

/// The spans of a trace in all its fragments that can be read, but for those on one page.
fn count_trace(
    view: &View,
    bucket: Bucket,
    (tenant, shard, trace): (u16, ShardId, TraceId),
    without: Option<u64>,
) -> Result<Tally, BlockError> {
    let mut hashes = Vec::new();
    let resources = view.table(RESOURCES)?;
    for (number, located) in fragments_of(view, (tenant, shard, trace))? {
        if Some(located.page) == without {
            continue;
        }
        let failed = of_page(bucket, located.page);
        let source = stored_page(view, tenant, located.page)?;
        let read = || -> Result<Vec<u64>, BlockError> {
            let mut reader = PageReader::open(&source).map_err(&failed)?;
            let mut fragments = reader.fragments().map_err(&failed)?.into_iter();
            let fragment = fragments.find(|one| one.head.key() == (shard, trace, number));
            let missing = CorruptPage { part: "fragments" };
            let fragment = fragment.ok_or_else(|| failed(missing.into()))?;
            for hash in reader.contexts_of(&fragment).map_err(&failed)? {
                read_resource(&resources, tenant, hash)?;
            }
            let mut hashes = Vec::new();
            add_hashes(&mut reader, &fragment, &mut hashes).map_err(&failed)?;
            Ok(hashes)
        };
        match read() {
            Ok(read) => hashes.extend(read),
            Err(error) if is_rot(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tally_of(trace, hashes))
}

fn add_hashes(
    reader: &mut PageReader<'_>,
    fragment: &PlacedFragment,
    hashes: &mut Vec<u64>,
) -> Result<(), PageError> {
    reader.visit(fragment, &mut |span| hashes.push(xxh3_64(span.span)))
}

fn tally_of(trace: TraceId, mut hashes: Vec<u64>) -> Tally {
    hashes.sort_unstable();
    hashes.dedup();
    let seed = xxh3_64(&trace.0);
    let mixed = hashes
        .iter()
        .map(|hash| xxh3_64_with_seed(&hash.to_le_bytes(), seed));
    Tally {
        spans: hashes.len() as u64,
        hashes: mixed.fold(0, u64::wrapping_add),
    }
}
