//! Sealing a block: small pages become full ones, the filter is stored, the file is closed.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};
use spandrel_model::ids::{Bucket, UnixNanos};

use super::commit::{self, Key};
use super::error::{BlockError, Walk, guarded};
use super::file::{BlockFile, exact_filter};
use super::filter::close_row;
use super::open_files::Purpose;
use super::schema::{
    CHUNKS, FILTER, LOCATOR, Located, Meta, PAGES, RESOURCES, TENANTS, locator_key,
};
use super::store::BlockStore;
use super::stored_page::{ReadFragment, StoredPage, page_spans, read_fragments, remove_chunks};
use crate::page::{EncodedPage, PageBuilder};

/// A page of less than this part of a full one is rewritten.
const SMALL_PART: u32 = 2;

impl BlockStore {
    /// Rewrites the small pages of each tenant together into full ones (one transaction a tenant), stores the filter
    /// and closes the file. Corrupt pages stay as they are; a file with damage between its pages is sealed as it is, with no
    /// filter, and one that takes no writes is given up. A later commit opens the block again; then seal it again.
    ///
    /// # Errors
    /// When there is no such block or it cannot be read. After an error of the disk or the database that is no damage the
    /// process must stop.
    pub fn seal(&self, bucket: Bucket) -> Result<(), BlockError> {
        let file = self.file(bucket)?;
        let _writer = file.lock_writer();
        if file.meta().sealed {
            return Ok(());
        }
        let sealed = guarded(|| self.seal_rewritten(&file)).or_else(|error| {
            if !error.is_damage() {
                return Err(error);
            }
            tracing::error!(bucket = bucket.0, %error, "a damaged block is sealed as it is");
            guarded(|| {
                self.seal_with(&file, |_, meta| {
                    meta.filter_rows = 0;
                    Ok(())
                })
            })
        });
        match &sealed {
            Err(error) if error.is_damage() => self.give_up(&file, error),
            _ => self.open.close(bucket),
        }
        sealed
    }

    fn seal_rewritten(&self, file: &BlockFile) -> Result<(), BlockError> {
        let database = self.open.get(file.bucket, &file.path, Purpose::Write)?;
        let mut tenants = Vec::new();
        for row in file.view(&self.open)?.table(TENANTS)?.iter()? {
            tenants.push(row?.1.value());
        }
        for tenant in tenants {
            let transaction = commit::begin(&database)?;
            let mut meta = commit::get_meta(&transaction)?;
            let merged = merge_pages(
                &transaction,
                tenant,
                self.options.full_page_spans,
                &mut meta,
            )?;
            if merged == 0 {
                transaction.abort()?;
                continue;
            }
            commit::put_meta(&transaction, &meta)?;
            transaction.commit()?;
            file.set_meta(meta);
        }
        self.seal_with(file, |transaction, meta| {
            meta.filter_rows = store_filter(transaction, meta.block_id)?;
            Ok(())
        })
    }

    /// Says of a block that it is sealed, in one transaction with what `last` changes.
    fn seal_with(
        &self,
        file: &BlockFile,
        last: impl FnOnce(&WriteTransaction, &mut Meta) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let database = self.open.get(file.bucket, &file.path, Purpose::Write)?;
        let transaction = commit::begin(&database)?;
        let mut meta = commit::get_meta(&transaction)?;
        last(&transaction, &mut meta)?;
        meta.sealed = true;
        commit::put_meta(&transaction, &meta)?;
        transaction.commit()?;
        // What is in memory grew by layers: the stored one is read when it is needed.
        file.set_filter(None);
        file.set_meta(meta);
        Ok(())
    }
}

fn store_filter(transaction: &WriteTransaction, block_id: u64) -> Result<u64, BlockError> {
    let filter = exact_filter(
        &transaction.open_table(TENANTS)?,
        &transaction.open_table(LOCATOR)?,
    )?;
    let mut rows = transaction.open_table(FILTER)?;
    rows.retain(|_, _| false)?;
    let mut count = 0;
    for (row, number) in filter.rows().zip(0u32..) {
        rows.insert(number, close_row(block_id, number, row).as_slice())?;
        count += 1;
    }
    Ok(count)
}

/// Merges runs of small pages; returns how many pages were replaced.
fn merge_pages(
    transaction: &WriteTransaction,
    tenant: u16,
    full_page_spans: u32,
    meta: &mut Meta,
) -> Result<usize, BlockError> {
    let (mut small, mut walk) = (Vec::new(), Walk::over("list of pages"));
    for row in transaction
        .open_table(PAGES)?
        .range((tenant, 0)..=(tenant, u64::MAX))?
    {
        let (key, row) = row?;
        let ((of, page), (spans, ..)) = (key.value(), row.value());
        walk.comes_to(page, of == tenant)?;
        if spans < full_page_spans / SMALL_PART {
            small.push((page, spans));
        }
    }
    let mut replaced = 0;
    let mut run: Vec<u64> = Vec::new();
    let mut run_spans = 0u32;
    let mut builder = PageBuilder::new();
    for (page, spans) in small {
        if run_spans + spans > full_page_spans {
            replaced += merge_run(transaction, tenant, &run, &mut builder, meta)?;
            run.clear();
            run_spans = 0;
        }
        run.push(page);
        run_spans += spans;
    }
    replaced += merge_run(transaction, tenant, &run, &mut builder, meta)?;
    Ok(replaced)
}

/// Replaces pages by one; returns how many.
fn merge_run(
    transaction: &WriteTransaction,
    tenant: u16,
    pages: &[u64],
    builder: &mut PageBuilder,
    meta: &mut Meta,
) -> Result<usize, BlockError> {
    if pages.len() < 2 {
        return Ok(0);
    }
    let mut read = Vec::new();
    for &page in pages {
        let source = StoredPage {
            chunks: transaction.open_table(CHUNKS)?,
            tenant,
            page,
            cache: None,
        };
        let resources = transaction.open_table(RESOURCES)?;
        match read_fragments(&source, &resources, &|_| true) {
            Some(fragments) => read.push((page, fragments)),
            None => tracing::error!(page, "corrupt page left as it is"),
        }
    }
    if read.len() < 2 {
        return Ok(0);
    }
    for (_, fragments) in &read {
        for (fragment, spans) in fragments {
            builder.push(fragment.head, &page_spans(spans)?)?;
        }
    }
    let Some(page) = builder.finish()? else {
        return Ok(0);
    };
    replace(transaction, tenant, &read, &page, meta)?;
    Ok(read.len())
}

fn replace(
    transaction: &WriteTransaction,
    tenant: u16,
    old: &[(u64, Vec<ReadFragment>)],
    page: &EncodedPage,
    meta: &mut Meta,
) -> Result<(), BlockError> {
    let mut sequences: BTreeMap<Key, u64> = BTreeMap::new();
    let mut latest_start = page.max_start;
    {
        let locator = transaction.open_table(LOCATOR)?;
        for fragment in &page.fragments {
            let (shard, trace, lsn) = fragment.head.key();
            let row = locator.get(&locator_key(tenant, shard, trace, lsn))?;
            let located = row.and_then(|row| Located::decode(row.value()));
            let sequence = located.map_or(0, |located| located.sequence);
            sequences.insert((shard, trace, lsn), sequence);
        }
        let mut chunks = transaction.open_table(CHUNKS)?;
        let mut pages = transaction.open_table(PAGES)?;
        for (page, _) in old {
            remove_chunks(&mut chunks, (tenant, *page))?;
            if let Some(row) = pages.remove((tenant, *page))? {
                latest_start = latest_start.max(UnixNanos(row.value().3));
            }
        }
    }
    meta.last_page += 1;
    commit::put_page(transaction, tenant, meta.last_page, page, latest_start)?;
    let sequence_of = |key: &Key| sequences.get(key).copied().unwrap_or(0);
    commit::put_locators(
        transaction,
        tenant,
        meta.last_page,
        &page.fragments,
        &sequence_of,
    )
}
