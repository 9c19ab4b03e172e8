//! One block file: its database, its counters in memory and its filter.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{
    AccessGuard, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, StorageError,
};
use spandrel_model::ids::{Bucket, TenantId, TraceId};

use super::error::{BlockError, Walk, check_place, corrupt, guarded};
use super::filter::{Filter, open_row, stored_holds, stored_place, tenant_seed, trace_hash};
use super::limits::{FILTER_ROW_BYTES, LEAF_TENANTS};
use super::open_files::{OpenFiles, Purpose};
use super::schema::{FILTER, LOCATOR, META, META_KEY, Meta, TENANTS, split_locator_key};

/// A block file.
#[derive(Debug)]
pub(super) struct BlockFile {
    pub(super) bucket: Bucket,
    pub(super) path: PathBuf,
    meta: RwLock<Meta>,
    filter: Mutex<Option<Filter>>,
    /// Held by the one writer.
    writer: Mutex<()>,
}

/// A consistent view of a block file.
pub(super) struct View {
    transaction: ReadTransaction,
    // Dropped last: a database that is closed while it is read would be opened a second time.
    _database: Arc<Database>,
}

impl View {
    pub(super) fn table<K: redb::Key, V: redb::Value>(
        &self,
        definition: redb::TableDefinition<'_, K, V>,
    ) -> Result<ReadOnlyTable<K, V>, BlockError> {
        Ok(self.transaction.open_table(definition)?)
    }

    /// The number of a tenant; `None` when the block has nothing of it.
    pub(super) fn tenant(&self, tenant: &TenantId) -> Result<Option<u16>, BlockError> {
        let tenants = self.table(TENANTS)?;
        let name = tenant.as_str();
        if let Some(number) = tenants.get(name)? {
            return Ok(Some(number.value()));
        }
        let name_of = |row: Result<(AccessGuard<'_, &str>, _), StorageError>| {
            row.map(|(name, _): (_, AccessGuard<'_, u16>)| name.value().to_owned())
        };
        let before = tenants.range(..name)?.rev().map(name_of);
        let behind = tenants.range(name..)?.map(name_of);
        let rows = (LEAF_TENANTS, tenants.len()?);
        check_place("tenants", &name.to_owned(), (before, behind), rows)?;
        Ok(None)
    }

    pub(super) fn meta(&self) -> Result<Meta, BlockError> {
        let row = self.table(META)?.get(META_KEY)?;
        row.and_then(|row| Meta::decode(row.value()))
            .ok_or_else(|| corrupt("counters"))
    }
}

/// How a trace is looked for in the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residency {
    /// Load the filter into memory if it is not there.
    Keep,
    /// Read one row of a stored filter, and free the memory of a loaded one.
    ReadRow,
}

impl BlockFile {
    /// Reads the counters.
    pub(super) fn open(
        files: &OpenFiles,
        bucket: Bucket,
        path: PathBuf,
    ) -> Result<Self, BlockError> {
        let opened = guarded(|| {
            let file = Self {
                bucket,
                path,
                meta: RwLock::new(Meta::new(0)),
                filter: Mutex::new(None),
                writer: Mutex::new(()),
            };
            let meta = file.view(files)?.meta()?;
            file.set_meta(meta);
            Ok(file)
        });
        // Another file may take its place.
        opened.inspect_err(|_| files.abandon(bucket))
    }

    pub(super) fn view(&self, files: &OpenFiles) -> Result<View, BlockError> {
        let database = files.get(self.bucket, &self.path, Purpose::Read)?;
        Ok(View {
            transaction: database.begin_read()?,
            _database: database,
        })
    }

    pub(super) fn lock_writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_filter(&self) -> MutexGuard<'_, Option<Filter>> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn meta(&self) -> Meta {
        *self.meta.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_meta(&self, meta: Meta) {
        *self.meta.write().unwrap_or_else(PoisonError::into_inner) = meta;
    }

    /// Adds traces whose fragments have been committed. A filter that is not in memory finds them when it is built.
    pub(super) fn add_to_filter(&self, hashes: impl Iterator<Item = u64>) {
        if let Some(filter) = self.lock_filter().as_mut() {
            hashes.for_each(|hash| filter.add(hash));
        }
    }

    /// Replaces the filter in memory.
    pub(super) fn set_filter(&self, filter: Option<Filter>) {
        *self.lock_filter() = filter;
    }

    /// Bytes that the filter takes in memory, or would take.
    pub(super) fn filter_bytes(&self) -> usize {
        match self.lock_filter().as_ref() {
            Some(filter) => filter.bytes(),
            None => {
                let rows = usize::try_from(self.meta().filter_rows).unwrap_or(usize::MAX);
                rows.saturating_mul(FILTER_ROW_BYTES)
            }
        }
    }

    /// False when the block certainly has nothing of the trace.
    pub(super) fn may_hold(
        &self,
        files: &OpenFiles,
        tenant: &TenantId,
        trace: TraceId,
        residency: Residency,
    ) -> Result<bool, BlockError> {
        let hash = trace_hash(tenant_seed(tenant), trace);
        // Held while the filter is built, so that a commit adds to it afterwards or is seen by it.
        let mut filter = self.lock_filter();
        let meta = self.meta();
        if residency == Residency::ReadRow && meta.sealed {
            *filter = None;
            drop(filter);
            return self.stored_filter_holds(files, hash);
        }
        if filter.is_none() {
            let view = self.view(files)?;
            *filter = Some(build_filter(&view)?);
        }
        Ok(filter.as_ref().is_none_or(|filter| filter.holds(hash)))
    }

    fn stored_filter_holds(&self, files: &OpenFiles, hash: u64) -> Result<bool, BlockError> {
        let view = self.view(files)?;
        let meta = view.meta()?;
        if !meta.sealed {
            return Ok(true);
        }
        let rows = view.table(FILTER)?;
        let stored =
            |number: u32| -> Result<Option<Vec<u8>>, BlockError> {
                let row = rows.get(number)?;
                Ok(row.and_then(|row| {
                    open_row(meta.block_id, number, row.value()).map(<[u8]>::to_vec)
                }))
            };
        // What cannot be read cannot say no.
        let last = u32::try_from(meta.filter_rows.saturating_sub(1)).unwrap_or(u32::MAX);
        let Some(last_row) = stored(last)? else {
            return Ok(true);
        };
        let full = FILTER_ROW_BYTES / 64;
        let blocks = last as usize * full + last_row.len() / 64;
        let (row, offset) = stored_place(hash, blocks);
        let row = stored(row)?;
        Ok(row.is_none_or(|row| stored_holds(&row, offset, hash)))
    }
}

/// The filter of a block: the stored one of a sealed block, else made from the locator. Of a locator with a page that does
/// not belong there, one that says no to nothing.
fn build_filter(view: &View) -> Result<Filter, BlockError> {
    if let Some(filter) = stored_filter(view)? {
        return Ok(filter);
    }
    let mut filter = Filter::growing();
    let tenants = view.table(TENANTS)?;
    let locator = view.table(LOCATOR)?;
    match fill_filter(&mut filter, &tenants, &locator) {
        Err(error) if error.is_damage() => {
            tracing::error!(%error, "no filter of a block: each trace is looked for in it");
            Ok(Filter::of_everything())
        }
        filled => filled.map(|()| filter),
    }
}

/// `None` when the block is not sealed, or a row of the filter is not what was written.
fn stored_filter(view: &View) -> Result<Option<Filter>, BlockError> {
    let meta = view.meta()?;
    if !meta.sealed {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let rows = view.table(FILTER)?;
    for number in 0..u32::try_from(meta.filter_rows).unwrap_or(u32::MAX) {
        let row = rows.get(number)?;
        let Some(row) = row
            .as_ref()
            .and_then(|row| open_row(meta.block_id, number, row.value()))
        else {
            return Ok(None);
        };
        bytes.extend_from_slice(row);
    }
    Ok(Filter::from_rows(bytes))
}

/// A filter of one layer over a whole locator.
pub(super) fn exact_filter(
    tenants: &impl ReadableTable<&'static str, u16>,
    locator: &impl ReadableTable<&'static [u8; 28], &'static [u8]>,
) -> Result<Filter, BlockError> {
    let traces = usize::try_from(locator.len()?).unwrap_or(usize::MAX);
    let mut filter = Filter::new(traces);
    fill_filter(&mut filter, tenants, locator)?;
    Ok(filter)
}

fn fill_filter(
    filter: &mut Filter,
    tenants: &impl ReadableTable<&'static str, u16>,
    locator: &impl ReadableTable<&'static [u8; 28], &'static [u8]>,
) -> Result<(), BlockError> {
    let mut seeds = BTreeMap::new();
    let mut walk = Walk::over("tenants");
    for row in tenants.iter()? {
        let (name, number) = row?;
        walk.comes_to(name.value().to_owned(), true)?;
        let tenant: TenantId = name.value().parse().map_err(|_| corrupt("tenant"))?;
        seeds.insert(number.value(), tenant_seed(&tenant));
    }
    if seeds.len() as u64 != tenants.len()? {
        return Err(corrupt("tenant"));
    }
    let (mut found, mut walk) = (0, Walk::over("locator"));
    for row in locator.iter()? {
        let (key, _) = row?;
        let key = *key.value();
        walk.comes_to(key, true)?;
        found += 1;
        let (tenant, _, trace, _) = split_locator_key(&key).ok_or_else(|| corrupt("locator"))?;
        let seed = seeds.get(&tenant).ok_or_else(|| corrupt("tenant"))?;
        filter.add(trace_hash(*seed, trace));
    }
    match found == locator.len()? {
        true => Ok(()),
        false => Err(corrupt("locator")),
    }
}
