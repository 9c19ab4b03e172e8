//! The block store: the block files of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{Bucket, TenantId, UnixNanos};
use spandrel_model::summary::TraceSummary;
use xxhash_rust::xxh3::xxh3_64;

use super::batches::BatchCache;
use super::commit::{self, BlockWrite, Present};
use super::error::{BlockError, guarded};
use super::file::{BlockFile, Residency, View};
use super::filter::{tenant_seed, trace_hash};
use super::limits::{COLUMN_CACHE_BYTES, SUMMARY_CACHE_BYTES};
use super::open_files::{OpenFiles, Purpose, TEMPORARY_SUFFIX};
use super::schema::Meta;
use super::stored_page::ColumnCache;
use crate::disk::Disk;

/// How the name of a damaged file ends.
const SET_ASIDE_SUFFIX: &str = ".corrupt";

/// Settings of a block store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockOptions {
    /// Bytes of cache that all open files share. Default 128 MiB.
    pub cache_bytes: usize,
    /// Files that stay open, at least 4. Default 256: a week of hours and some.
    pub max_open_files: usize,
    /// Bytes of filters of sealed blocks that stay in memory, newest first; those of unsealed blocks are there
    /// always. Default 64 MiB.
    pub filter_bytes: usize,
    /// Bytes of opened batches of summaries that stay in memory. Default 8 MiB.
    pub summary_cache_bytes: usize,
    /// Bytes of unpacked page columns that stay in memory for the matching spans of hits. Default 8 MiB.
    pub column_cache_bytes: usize,
    /// Spans of a full page, which sealing makes from small ones. Default 5,000.
    pub full_page_spans: u32,
    /// A number that no earlier run of this node had (its boot counter): block ids come from it. Not a setting.
    #[serde(skip)]
    pub boot: u64,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 128 << 20,
            max_open_files: 256,
            filter_bytes: 64 << 20,
            summary_cache_bytes: SUMMARY_CACHE_BYTES,
            column_cache_bytes: COLUMN_CACHE_BYTES,
            full_page_spans: 5_000,
            boot: 0,
        }
    }
}

/// A block, for those who follow it or expire it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its bucket.
    pub bucket: Bucket,
    /// Different for every file that ever was; 0 for a file that does not open.
    pub block_id: u64,
    /// The sequence of its newest summary; 0 when it has none.
    pub last_sequence: u64,
    /// Bytes that the file takes on disk.
    pub bytes: u64,
    /// Spans in its pages.
    pub spans: u64,
    /// Earliest start of its spans; later than `max_start` when it has none.
    pub min_start: UnixNanos,
    /// Latest start of its spans.
    pub max_start: UnixNanos,
    /// True when it was sealed and not written since.
    pub sealed: bool,
    /// Why it does not open, if it does not.
    pub unopenable: Option<String>,
}

#[derive(Debug, Default)]
struct Blocks {
    files: BTreeMap<Bucket, Arc<BlockFile>>,
    /// By bucket and path: beside a file that was set aside there may be one that opens.
    unopenable: BTreeMap<(Bucket, PathBuf), Unopenable>,
    created: u64,
}

/// A file that did not open.
#[derive(Debug)]
struct Unopenable {
    reason: String,
    /// It never will: its bytes are wrong.
    is_damaged: bool,
}

/// The block files of a directory. All calls block; reads run beside writes, writes to one bucket one after another.
///
/// Invariants: one file per bucket that is written to; a fragment is in a block at most once; a commit that returned is durable.
#[derive(Debug)]
pub struct BlockStore {
    pub(super) disk: Arc<dyn Disk>,
    dir: PathBuf,
    pub(super) options: BlockOptions,
    pub(super) open: OpenFiles,
    pub(super) batches: BatchCache,
    pub(super) columns: ColumnCache,
    blocks: RwLock<Blocks>,
}

impl BlockStore {
    /// Opens the block files in `dir`, making it if need be, and removes what a crash left half created. Files that
    /// do not open are listed by [`Self::buckets`] and can be expired.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: BlockOptions,
    ) -> Result<Self, BlockError> {
        disk.create_dir_all(dir)?;
        let store = Self {
            open: OpenFiles::new(
                Arc::clone(&disk),
                options.max_open_files,
                options.cache_bytes,
            ),
            batches: BatchCache::new(options.summary_cache_bytes),
            columns: ColumnCache::new(options.column_cache_bytes),
            disk,
            dir: dir.to_owned(),
            options,
            blocks: RwLock::default(),
        };
        let mut blocks = Blocks::default();
        for path in store.disk.list(dir)? {
            if path
                .as_os_str()
                .to_string_lossy()
                .ends_with(TEMPORARY_SUFFIX)
            {
                store.disk.remove(&path)?;
                continue;
            }
            if let Some(bucket) = bucket_set_aside(&path) {
                let is_damaged = Unopenable {
                    reason: "it is damaged, and was set aside".to_owned(),
                    is_damaged: true,
                };
                blocks.unopenable.insert((bucket, path), is_damaged);
                continue;
            }
            let Some(bucket) = bucket_of(&path) else {
                continue;
            };
            match BlockFile::open(&store.open, bucket, path.clone()) {
                Ok(file) => drop(blocks.files.insert(bucket, Arc::new(file))),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a block file does not open");
                    let unopenable = Unopenable {
                        reason: error.to_string(),
                        is_damaged: error.is_damage(),
                    };
                    blocks.unopenable.insert((bucket, path), unopenable);
                }
            }
        }
        *store.blocks_mut() = blocks;
        Ok(store)
    }

    fn blocks(&self) -> RwLockReadGuard<'_, Blocks> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks_mut(&self) -> RwLockWriteGuard<'_, Blocks> {
        self.blocks.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks that open, from bucket `oldest` on, newest first.
    pub(super) fn newest_first(&self, oldest: Bucket) -> Vec<Arc<BlockFile>> {
        let blocks = self.blocks();
        let files = blocks.files.range(oldest..).rev();
        files.map(|(_, file)| Arc::clone(file)).collect()
    }

    /// The block of a bucket.
    pub(super) fn file(&self, bucket: Bucket) -> Result<Arc<BlockFile>, BlockError> {
        let blocks = self.blocks();
        if let Some(file) = blocks.files.get(&bucket) {
            return Ok(Arc::clone(file));
        }
        let mut unopenable = blocks.unopenable.iter();
        match unopenable.find(|((of, _), _)| *of == bucket) {
            Some((_, Unopenable { reason, .. })) => Err(BlockError::Unopenable {
                bucket,
                reason: reason.clone(),
            }),
            None => Err(BlockError::NoBlock { bucket }),
        }
    }

    /// Buckets of which some file does not open: nobody knows what is in it.
    #[must_use]
    pub fn unopenable(&self) -> Vec<Bucket> {
        let blocks = self.blocks();
        blocks
            .unopenable
            .keys()
            .map(|(bucket, _)| *bucket)
            .collect()
    }

    /// A view of the block of a bucket.
    pub(super) fn view(&self, bucket: Bucket) -> Result<View, BlockError> {
        self.file(bucket)?.view(&self.open)
    }

    /// The file of a bucket, open for writes; one that turns out to be damaged when it is opened is set aside.
    fn writable(&self, bucket: Bucket) -> Result<Arc<BlockFile>, BlockError> {
        let file = self.file_or_create(bucket)?;
        match self.open.get(bucket, &file.path, Purpose::Write) {
            Err(error) if error.is_damage() => {
                self.give_up(&file, &error);
                self.file_or_create(bucket)
            }
            opened => opened.map(|_| file),
        }
    }

    /// Nothing is written to a file any more: the next commit to its bucket begins a new one.
    pub(super) fn give_up(&self, file: &BlockFile, error: &BlockError) {
        tracing::error!(path = %file.path.display(), %error, "a block file takes no writes any more");
        let unopenable = Unopenable {
            reason: error.to_string(),
            is_damaged: true,
        };
        let mut blocks = self.blocks_mut();
        blocks.files.remove(&file.bucket);
        let key = (file.bucket, file.path.clone());
        blocks.unopenable.insert(key, unopenable);
        self.open.abandon(file.bucket);
    }

    fn file_or_create(&self, bucket: Bucket) -> Result<Arc<BlockFile>, BlockError> {
        match self.file(bucket) {
            Err(BlockError::NoBlock { .. } | BlockError::Unopenable { .. }) => {}
            other => return other,
        }
        let mut blocks = self.blocks_mut();
        if let Some(file) = blocks.files.get(&bucket) {
            return Ok(Arc::clone(file));
        }
        let path = self.dir.join(format!("bucket-{}.block", bucket.0));
        self.set_aside(&mut blocks, bucket, &path)?;
        blocks.created += 1;
        let meta = Meta::new(block_id(self.options.boot, bucket, blocks.created));
        self.open
            .create(&path, |database| commit::initialise(database, &meta))?;
        let file = Arc::new(BlockFile::open(&self.open, bucket, path)?);
        blocks.files.insert(bucket, Arc::clone(&file));
        Ok(file)
    }

    /// Makes room for a new file of a bucket whose file is damaged: traces that are kept now must not wait for ever for
    /// those that are lost. The damaged file is renamed, never deleted before its bucket expires.
    fn set_aside(
        &self,
        blocks: &mut Blocks,
        bucket: Bucket,
        path: &Path,
    ) -> Result<(), BlockError> {
        let key = (bucket, path.to_owned());
        let Some(unopenable) = blocks.unopenable.get(&key) else {
            return Ok(());
        };
        if !unopenable.is_damaged {
            return Err(BlockError::Unopenable {
                bucket,
                reason: unopenable.reason.clone(),
            });
        }
        let aside = self.dir.join(format!(
            "bucket-{}.block.{}{SET_ASIDE_SUFFIX}",
            bucket.0, self.options.boot
        ));
        if blocks.unopenable.contains_key(&(bucket, aside.clone())) {
            // The second one since the node began; its next start has another name for it.
            return Err(BlockError::Unopenable {
                bucket,
                reason: unopenable.reason.clone(),
            });
        }
        self.disk.rename(path, &aside)?;
        self.disk.sync_dir(&self.dir)?;
        // A reader may have opened it again in the meantime.
        self.open.abandon(bucket);
        tracing::error!(path = %aside.display(), "a damaged block file is set aside");
        if let Some(unopenable) = blocks.unopenable.remove(&key) {
            blocks.unopenable.insert((bucket, aside), unopenable);
        }
        Ok(())
    }

    /// Adds pages and summaries of one tenant to a block in one durable transaction. Fragments that the block has
    /// already, and their summaries, are left out, so a repeated commit changes nothing. Returns the sequences that
    /// the summaries were given.
    ///
    /// # Errors
    /// When nothing was written: the bucket's file could not be read when the store was opened, or there are too many tenants. After an error of
    /// the disk or the database the process must stop.
    pub fn commit(&self, write: &BlockWrite) -> Result<Range<u64>, BlockError> {
        self.commit_over(write, &BTreeSet::new())
    }

    /// [`Self::commit`], where fragments on these pages, which cannot be read, count as not there: those of the write take
    /// their places.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_over(
        &self,
        write: &BlockWrite,
        unreadable: &BTreeSet<u64>,
    ) -> Result<Range<u64>, BlockError> {
        let file = self.writable(write.bucket)?;
        match guarded(|| self.commit_to(&file, write, unreadable)) {
            // The node would stop on it each time it starts. What is in the file, others have, or nobody could read it.
            Err(error) if error.is_damage() => {
                self.give_up(&file, &error);
                let file = self.file_or_create(write.bucket)?;
                self.commit_to(&file, write, unreadable)
            }
            committed => committed,
        }
    }

    fn commit_to(
        &self,
        file: &BlockFile,
        write: &BlockWrite,
        unreadable: &BTreeSet<u64>,
    ) -> Result<Range<u64>, BlockError> {
        let _writer = file.lock_writer();
        // The filter tells most traces from those whose fragments must be looked up: an eighth of the time of a commit.
        let mut traces = BTreeSet::new();
        let fragments = write.pages.iter().flat_map(|page| &page.fragments);
        let written = fragments.map(|fragment| fragment.head.trace_id);
        for trace in written.chain(write.summaries.iter().map(|summary| summary.trace_id)) {
            if file.may_hold(&self.open, &write.tenant, trace, Residency::Keep)? {
                traces.insert(trace);
            }
        }
        let database = self.open.get(write.bucket, &file.path, Purpose::Write)?;
        let transaction = commit::begin(&database)?;
        let present = Present {
            traces: &traces,
            unreadable,
        };
        let Some((meta, traces)) = commit::apply(&transaction, write, present)? else {
            transaction.abort().map_err(redb_error)?;
            return Ok(0..0);
        };
        transaction.commit()?;
        let sequences = file.meta().last_sequence + 1..meta.last_sequence + 1;
        let unsealed = file.meta().sealed && !meta.sealed;
        file.set_meta(meta);
        let seed = tenant_seed(&write.tenant);
        file.add_to_filter(traces.iter().map(|&trace| trace_hash(seed, trace)));
        if unsealed {
            // A filter read from the rows of the seal may lack what was committed while it was read.
            file.set_filter(None);
        }
        Ok(sequences)
    }

    /// Gives fragments of one tenant, which the block of `bucket` has, other summaries in one durable transaction: they
    /// come behind all others. Returns their sequences.
    ///
    /// # Errors
    /// When a fragment is not there, and nothing was written. After an error of the disk or the database the process
    /// must stop.
    pub fn restate(
        &self,
        bucket: Bucket,
        tenant: &TenantId,
        restated: &[TraceSummary],
    ) -> Result<Range<u64>, BlockError> {
        guarded(|| {
            let file = self.file(bucket)?;
            let _writer = file.lock_writer();
            let database = self.open.get(bucket, &file.path, Purpose::Write)?;
            let transaction = commit::begin(&database)?;
            let meta = commit::restate(&transaction, tenant, restated)?;
            transaction.commit()?;
            let sequences = file.meta().last_sequence + 1..meta.last_sequence + 1;
            file.set_meta(meta);
            Ok(sequences)
        })
    }

    /// All blocks, oldest bucket first, also those that do not open.
    ///
    /// # Errors
    /// When the size of a file cannot be had.
    pub fn buckets(&self) -> Result<Vec<BlockInfo>, BlockError> {
        let blocks = self.blocks();
        let mut infos = Vec::with_capacity(blocks.files.len() + blocks.unopenable.len());
        for file in blocks.files.values() {
            infos.push(self.info(file)?);
        }
        for ((bucket, path), Unopenable { reason, .. }) in &blocks.unopenable {
            infos.push(self.unopenable_info(*bucket, path, reason)?);
        }
        infos.sort_by_key(|info| info.bucket);
        Ok(infos)
    }

    /// The block of a bucket; `None` when there is none that opens.
    ///
    /// # Errors
    /// When the size of its file cannot be had.
    pub fn block(&self, bucket: Bucket) -> Result<Option<BlockInfo>, BlockError> {
        let file = self.blocks().files.get(&bucket).cloned();
        file.map(|file| self.info(&file)).transpose()
    }

    fn info(&self, file: &BlockFile) -> Result<BlockInfo, BlockError> {
        let meta = file.meta();
        Ok(BlockInfo {
            bucket: file.bucket,
            block_id: meta.block_id,
            last_sequence: meta.last_sequence,
            bytes: self.disk.allocated(&file.path)?,
            spans: meta.spans,
            min_start: UnixNanos(meta.min_start),
            max_start: UnixNanos(meta.max_start),
            sealed: meta.sealed,
            unopenable: None,
        })
    }

    fn unopenable_info(
        &self,
        bucket: Bucket,
        path: &Path,
        reason: &str,
    ) -> Result<BlockInfo, BlockError> {
        Ok(BlockInfo {
            bucket,
            block_id: 0,
            last_sequence: 0,
            bytes: self.disk.allocated(path)?,
            spans: 0,
            min_start: UnixNanos(u64::MAX),
            max_start: UnixNanos(0),
            sealed: false,
            unopenable: Some(reason.to_owned()),
        })
    }

    /// Removes the files of all buckets before `before`, also those that do not open. Who reads one now reads on.
    ///
    /// # Errors
    /// When a file cannot be removed; those before it are gone, a further call goes on.
    pub fn expire(&self, before: Bucket) -> Result<Vec<BlockInfo>, BlockError> {
        let mut blocks = self.blocks_mut();
        let mut expired = Vec::new();
        while let Some((&bucket, file)) = blocks.files.first_key_value() {
            if bucket >= before {
                break;
            }
            let _writer = file.lock_writer();
            expired.push(self.info(file)?);
            self.disk.remove(&file.path)?;
            self.open.retire(bucket);
            self.batches.forget(file.meta().block_id);
            self.columns.forget(file.meta().block_id);
            drop(_writer);
            blocks.files.remove(&bucket);
        }
        while let Some(entry) = blocks.unopenable.first_entry() {
            let (bucket, path) = entry.key();
            if *bucket >= before {
                break;
            }
            expired.push(self.unopenable_info(*bucket, path, &entry.get().reason)?);
            self.disk.remove(path)?;
            entry.remove();
        }
        if !expired.is_empty() {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(expired)
    }
}

fn redb_error(error: redb::StorageError) -> BlockError {
    error.into()
}

/// The bucket in a block file's name: `bucket-<number>.block`.
fn bucket_of(path: &Path) -> Option<Bucket> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix("bucket-")?.strip_suffix(".block")?;
    number.parse().ok().map(Bucket)
}

/// The bucket in the name of a file that was set aside: `bucket-<number>.block.<boot>.corrupt`.
fn bucket_set_aside(path: &Path) -> Option<Bucket> {
    let name = path.file_name()?.to_str()?;
    let name = name
        .strip_prefix("bucket-")?
        .strip_suffix(SET_ASIDE_SUFFIX)?;
    let (number, _boot) = name.split_once(".block.")?;
    number.parse().ok().map(Bucket)
}

/// Never 0, which stands for no block.
fn block_id(boot: u64, bucket: Bucket, created: u64) -> u64 {
    let mut bytes = [0; 20];
    let (numbers, bucket_bytes) = bytes.split_at_mut(16);
    numbers[..8].copy_from_slice(&boot.to_le_bytes());
    numbers[8..].copy_from_slice(&created.to_le_bytes());
    bucket_bytes.copy_from_slice(&bucket.0.to_le_bytes());
    xxh3_64(&bytes).max(1)
}
