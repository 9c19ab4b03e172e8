//! One block file: its database, its counters in memory and its filter.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};
use spandrel_model::ids::{Bucket, TenantId, TraceId};

use super::error::{BlockError, corrupt, guarded};
use super::filter::{Filter, stored_holds, stored_place, tenant_seed, trace_hash};
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
        Ok(tenants.get(tenant.as_str())?.map(|number| number.value()))
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
        guarded(|| {
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
        })
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
                rows.saturating_mul(super::limits::FILTER_ROW_BYTES)
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
        let Some((_, last)) = rows.last()? else {
            return Ok(true);
        };
        let full = super::limits::FILTER_ROW_BYTES / 64;
        let before_last = usize::try_from(meta.filter_rows.saturating_sub(1)).unwrap_or(0);
        let blocks = before_last * full + last.value().len() / 64;
        let (row, offset) = stored_place(hash, blocks);
        let row = rows.get(row)?;
        Ok(row.is_none_or(|row| stored_holds(row.value(), offset, hash)))
    }
}

/// The filter of a block: the stored one of a sealed block, else made from the locator.
fn build_filter(view: &View) -> Result<Filter, BlockError> {
    if view.meta()?.sealed {
        let mut bytes = Vec::new();
        for row in view.table(FILTER)?.iter()? {
            bytes.extend_from_slice(row?.1.value());
        }
        if let Some(filter) = Filter::from_rows(bytes) {
            return Ok(filter);
        }
    }
    let mut filter = Filter::growing();
    let tenants = view.table(TENANTS)?;
    let locator = view.table(LOCATOR)?;
    fill_filter(&mut filter, &tenants, &locator)?;
    Ok(filter)
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
    let mut seeds = std::collections::BTreeMap::new();
    for row in tenants.iter()? {
        let (name, number) = row?;
        let tenant: TenantId = name.value().parse().map_err(|_| corrupt("tenant"))?;
        seeds.insert(number.value(), tenant_seed(&tenant));
    }
    for row in locator.iter()? {
        let (key, _) = row?;
        let (tenant, _, trace, _) =
            split_locator_key(key.value()).ok_or_else(|| corrupt("locator"))?;
        let seed = seeds.get(&tenant).ok_or_else(|| corrupt("tenant"))?;
        filter.add(trace_hash(*seed, trace));
    }
    Ok(())
}
