//! A page in its chunks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redb::ReadableTable;
use spandrel_model::ids::Bucket;

use super::error::{BlockError, corrupt};
use super::limits::CHUNK_BYTES;
use super::schema::resource_key;
use crate::byte_cache::ByteCache;
use crate::page::{
    ContextHash, CorruptPage, PageBytes, PageError, PagePart, PageReader, PageSpan, PlacedFragment,
    RebuiltSpan, Unpacked, read_context,
};

/// Chunks of one page, read when asked for.
pub(super) struct StoredPage<'a, T> {
    pub(super) chunks: T,
    pub(super) tenant: u16,
    pub(super) page: u64,
    /// Where unpacked parts are kept, if they are.
    pub(super) cache: Option<PageCache<'a>>,
}

/// Unpacked parts of pages: the id of the block, the page, the part. Pages never change and their numbers are never
/// used again, so what is cached cannot be stale.
#[derive(Debug)]
pub(super) struct ColumnCache(Mutex<ByteCache<(u64, u64, PagePart), Unpacked>>);

impl ColumnCache {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Self(Mutex::new(ByteCache::new(capacity_bytes)))
    }

    /// Forgets a block that is gone.
    pub(super) fn forget(&self, block_id: u64) {
        self.lock().retain(|(block, ..)| *block != block_id);
    }

    fn lock(&self) -> MutexGuard<'_, ByteCache<(u64, u64, PagePart), Unpacked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cache of columns for the pages of one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageCache<'a> {
    pub(super) columns: &'a ColumnCache,
    pub(super) block_id: u64,
}

impl<T: ReadableTable<(u16, u64, u32), &'static [u8]>> PageBytes for StoredPage<'_, T> {
    fn read(&self, offset: usize, len: usize) -> Result<Bytes, PageError> {
        let short = || PageError::Corrupt(CorruptPage { part: "length" });
        let end = offset.checked_add(len).ok_or_else(short)?;
        let mut bytes = Vec::new();
        let (mut number, mut at) = (offset / CHUNK_BYTES, offset % CHUNK_BYTES);
        let mut missing = end - offset;
        while missing > 0 {
            let key = (
                self.tenant,
                self.page,
                u32::try_from(number).map_err(|_| short())?,
            );
            let chunk = self
                .chunks
                .get(key)
                .map_err(|error| PageError::Source(Box::new(redb::Error::from(error))))?
                .ok_or_else(short)?;
            let chunk = chunk.value().get(at..).ok_or_else(short)?;
            let piece = chunk.get(..missing.min(chunk.len())).unwrap_or_default();
            if piece.is_empty() {
                return Err(short());
            }
            bytes.extend_from_slice(piece);
            missing -= piece.len();
            (number, at) = (number + 1, 0);
        }
        Ok(Bytes::from(bytes))
    }

    fn cached(&self, part: PagePart) -> Option<Unpacked> {
        let cache = self.cache?;
        cache.columns.lock().get((cache.block_id, self.page, part))
    }

    fn keep(&self, part: PagePart, unpacked: &Unpacked) {
        if let Some(cache) = self.cache {
            let key = (cache.block_id, self.page, part);
            let bytes = unpacked.memory_bytes();
            cache.columns.lock().insert(key, unpacked.clone(), bytes);
        }
    }
}

/// Takes a page's chunks out, and no other ones, whatever the database takes for its neighbours.
pub(super) fn remove_chunks(
    chunks: &mut redb::Table<'_, (u16, u64, u32), &'static [u8]>,
    (tenant, page): (u16, u64),
) -> Result<(), BlockError> {
    let of_page = (tenant, page, 0)..=(tenant, page, u32::MAX);
    Ok(chunks.retain_in(of_page.clone(), |key, _| !of_page.contains(&key))?)
}

/// A resource and scope, verified against its hash.
pub(super) fn read_resource(
    resources: &impl ReadableTable<&'static [u8; 18], &'static [u8]>,
    tenant: u16,
    hash: ContextHash,
) -> Result<Vec<u8>, BlockError> {
    let row = resources.get(&resource_key(tenant, hash))?;
    let row = row.ok_or_else(|| corrupt("missing resource"))?;
    match ContextHash::of(row.value()) == hash {
        true => Ok(row.value().to_vec()),
        false => Err(corrupt("hash of a resource")),
    }
}

/// A fragment with its spans: resource and scope, and the message, of each.
pub(super) type ReadFragment = (PlacedFragment, Vec<(Vec<u8>, Vec<u8>)>);

/// The fragments of a page that are `wanted`; `None` when the page is corrupt.
pub(super) fn read_fragments<T: ReadableTable<(u16, u64, u32), &'static [u8]>>(
    source: &StoredPage<'_, T>,
    resources: &impl ReadableTable<&'static [u8; 18], &'static [u8]>,
    wanted: &dyn Fn(&PlacedFragment) -> bool,
) -> Option<Vec<ReadFragment>> {
    let mut reader = PageReader::open(source).ok()?;
    let fragments = reader.fragments().ok()?;
    let mut contexts = BTreeMap::new();
    let mut read = Vec::new();
    for fragment in fragments.into_iter().filter(wanted) {
        for hash in reader.contexts_of(&fragment).ok()? {
            if let Entry::Vacant(place) = contexts.entry(hash) {
                place.insert(read_resource(resources, source.tenant, hash).ok()?);
            }
        }
        let mut spans = Vec::with_capacity(fragment.rows as usize);
        let mut keep = |span: RebuiltSpan<'_>| {
            let context = contexts.get(&span.context).cloned().unwrap_or_default();
            spans.push((context, span.span.to_vec()));
        };
        reader.visit(&fragment, &mut keep).ok()?;
        read.push((fragment, spans));
    }
    Some(read)
}

/// The spans as a builder takes them.
pub(super) fn page_spans(spans: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<PageSpan<'_>>, BlockError> {
    let spans = spans.iter().map(|(context, span)| {
        let context = read_context(context).ok_or_else(|| corrupt("resource"))?;
        Ok(PageSpan { context, span })
    });
    spans.collect()
}

/// Names the page of an error.
pub(super) fn of_page(bucket: Bucket, page: u64) -> impl Fn(PageError) -> BlockError {
    move |source| BlockError::Page {
        bucket,
        page,
        source,
    }
}
