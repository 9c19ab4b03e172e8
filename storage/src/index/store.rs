//! The index of a node: opening, adding to it, dropping it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spandrel_model::ids::Bucket;
use spandrel_model::summary::TraceSummary;
use xxhash_rust::xxh3::xxh3_64;

use super::blob::owned;
use super::cache::OpenSegments;
use super::error::{Fault, IndexError};
use super::limits::{DEFAULT_OPEN_SEGMENTS, MAX_SEGMENT_DOCUMENTS, MAX_SNAPSHOT_RETRIES};
use super::manifest::{Manifest, SegmentEntry};
use super::schema::DocumentSchema;
use super::segment::OpenSegment;
use super::write::Addition;
use crate::disk::Disk;

const MANIFEST: &str = "manifest";
const SEGMENT: &str = "segment";

/// How an [`IndexStore`] works.
#[derive(Debug, Clone, Copy)]
pub struct IndexOptions {
    /// Segments held open at most; the least recently used one is closed. At least 1.
    pub max_open_segments: usize,
    /// Documents of a segment as it is first built, at most. At least 1.
    pub max_segment_documents: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            max_open_segments: DEFAULT_OPEN_SEGMENTS,
            max_segment_documents: MAX_SEGMENT_DOCUMENTS,
        }
    }
}

/// A bucket whose index was found damaged and was removed; it is to be rebuilt from the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedIndex {
    /// The bucket, when the file's name told it.
    pub bucket: Option<Bucket>,
    /// What was wrong.
    pub reason: String,
}

/// The search index of a node: per bucket some segments over the summaries of the bucket's block.
///
/// Every call blocks. Reads go on while one writer works.
///
/// Invariants: a manifest names only segments that are durable; a segment's number is never used twice while the
/// process lives; only the holder of `writer` changes `manifests` or removes files.
pub struct IndexStore {
    pub(super) disk: Arc<dyn Disk>,
    dir: PathBuf,
    pub(super) options: IndexOptions,
    pub(super) schema: DocumentSchema,
    pub(super) manifests: Mutex<BTreeMap<Bucket, Arc<Manifest>>>,
    open: Mutex<OpenSegments>,
    dropped: Mutex<Vec<DroppedIndex>>,
    writer: Mutex<Writer>,
}

/// What only one thread may do at a time.
pub(super) struct Writer {
    pub(super) next_number: u64,
}

/// No code that holds one of these locks leaves what it guards half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IndexStore {
    /// Opens the index in `dir`, which is made when it is not there. Reads the manifests only; files that none of
    /// them names are removed, and so is the index of a bucket whose manifest is damaged ([`Self::take_dropped`]).
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: IndexOptions,
    ) -> Result<Self, IndexError> {
        let create = IndexError::io("create", dir);
        disk.create_dir_all(dir).map_err(create)?;
        let store = Self {
            disk,
            dir: dir.to_owned(),
            options,
            schema: DocumentSchema::new(),
            manifests: Mutex::default(),
            open: Mutex::new(OpenSegments::new(options.max_open_segments)),
            dropped: Mutex::default(),
            writer: Mutex::new(Writer { next_number: 1 }),
        };
        store.load()?;
        Ok(store)
    }

    /// The summary sequence up to which the index knows the bucket's block; 0 when there is no index, or when it is
    /// of another block: then it must be built from the first summary on.
    #[must_use]
    pub fn checkpoint(&self, bucket: Bucket, block_id: u128) -> u64 {
        match self.manifest(bucket) {
            Some(manifest) if manifest.block_id == block_id => manifest.checkpoint,
            _ => 0,
        }
    }

    /// Adds the summaries of the sequences after the checkpoint up to and including `up_to_sequence`. Durable on
    /// return. Does nothing when the index knows the block that far already; starts afresh when it is of another
    /// block.
    ///
    /// `indexed_keys` are the attributes that all these summaries were built to name: a search narrows down by no
    /// other. Of several versions of a trace only the newest is found; they are recognised by their equal start,
    /// which is fixed at the first verdict.
    ///
    /// Memory: at most about 200 MiB while a segment is built or merged, whatever the summaries hold.
    ///
    /// # Errors
    /// [`IndexError::Io`] and [`IndexError::Build`]: the index is as it was. [`IndexError::Corrupt`]: the bucket's
    /// index is gone.
    pub fn add(
        &self,
        bucket: Bucket,
        block_id: u128,
        up_to_sequence: u64,
        summaries: &[TraceSummary],
        indexed_keys: &[String],
    ) -> Result<(), IndexError> {
        let mut writer = lock(&self.writer);
        let current = self.manifest(bucket);
        let manifest = match current {
            Some(manifest) if manifest.block_id == block_id => Manifest::clone(&manifest),
            Some(_) => {
                self.drop_bucket(&writer, bucket)?;
                Manifest::new(bucket, block_id)
            }
            None => Manifest::new(bucket, block_id),
        };
        if up_to_sequence <= manifest.checkpoint {
            return Ok(());
        }
        let mut written = Vec::new();
        let addition = Addition {
            summaries,
            indexed_keys,
            up_to_sequence,
        };
        let changed = self.write(&mut writer, manifest, &addition, &mut written);
        changed.map_err(|fault| {
            // What no manifest names is removed at the next start if it cannot be removed now.
            for number in written {
                let _ = self.disk.remove(&self.segment_path(bucket, number));
            }
            self.settle(&writer, bucket, fault)
        })
    }

    /// Removes the index of every bucket before `before`, and returns which they were.
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub fn expire(&self, before: Bucket) -> Result<Vec<Bucket>, IndexError> {
        let writer = lock(&self.writer);
        let expired: Vec<Bucket> = lock(&self.manifests)
            .range(..before)
            .map(|(bucket, _)| *bucket)
            .collect();
        for &bucket in &expired {
            self.drop_bucket(&writer, bucket)?;
        }
        Ok(expired)
    }

    /// Bytes of the segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let manifests = lock(&self.manifests);
        manifests.values().map(|manifest| manifest.bytes()).sum()
    }

    /// The buckets that have an index, with the block it is of and its checkpoint.
    #[must_use]
    pub fn buckets(&self) -> Vec<(Bucket, u128, u64)> {
        let manifests = lock(&self.manifests);
        let described = manifests
            .iter()
            .map(|(bucket, manifest)| (*bucket, manifest.block_id, manifest.checkpoint));
        described.collect()
    }

    /// The indexes that were found damaged since the last call.
    #[must_use]
    pub fn take_dropped(&self) -> Vec<DroppedIndex> {
        std::mem::take(&mut *lock(&self.dropped))
    }

    /// Reads a bucket's segments. `None` when there is no index. Starts again when a merge removed a segment under
    /// `read`, and drops the index when its bytes are wrong.
    pub(super) fn read<T>(
        &self,
        bucket: Bucket,
        read: impl Fn(&Manifest) -> Result<T, Fault>,
    ) -> Result<Option<T>, IndexError> {
        for _ in 0..MAX_SNAPSHOT_RETRIES {
            let Some(manifest) = self.manifest(bucket) else {
                return Ok(None);
            };
            let fault = match read(&manifest) {
                Ok(found) => return Ok(Some(found)),
                Err(fault) => fault,
            };
            let writer = lock(&self.writer);
            let unchanged = self
                .manifest(bucket)
                .is_some_and(|now| Arc::ptr_eq(&now, &manifest));
            if unchanged {
                return Err(self.settle(&writer, bucket, fault));
            }
        }
        Err(IndexError::Busy { bucket })
    }

    /// A segment's readers. The blob's checksum is verified when the process first opens it: hashing every blob when
    /// the node starts would read the whole index (gigabytes) first.
    pub(super) fn segment(
        &self,
        bucket: Bucket,
        entry: &SegmentEntry,
    ) -> Result<Arc<OpenSegment>, Fault> {
        let verified = {
            let mut open = lock(&self.open);
            if let Some(segment) = open.get(entry.number) {
                return Ok(segment);
            }
            open.is_verified(entry.number)
        };
        let path = self.segment_path(bucket, entry.number);
        let mapped = self.disk.map(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Fault::Damaged(format!("segment {} is missing", entry.number))
            } else {
                Fault::Other(IndexError::io("map", &path)(error))
            }
        })?;
        let blob = owned(&mapped);
        if blob.len() as u64 != entry.bytes || (!verified && xxh3_64(&blob) != entry.hash) {
            let reason = format!("checksum of segment {} does not fit", entry.number);
            return Err(Fault::Damaged(reason));
        }
        let segment = Arc::new(OpenSegment::open(&blob)?);
        let names = |manifest: Arc<Manifest>| {
            let mut numbers = manifest.segments.iter().map(|segment| segment.number);
            numbers.any(|number| number == entry.number)
        };
        let mut open = lock(&self.open);
        // One that was removed meanwhile must not stay mapped: its bytes would stay on disk.
        if self.manifest(bucket).is_some_and(names) {
            open.insert(entry.number, Arc::clone(&segment));
        }
        Ok(segment)
    }

    fn manifest(&self, bucket: Bucket) -> Option<Arc<Manifest>> {
        lock(&self.manifests).get(&bucket).cloned()
    }

    pub(super) fn segment_path(&self, bucket: Bucket, number: u64) -> PathBuf {
        self.dir
            .join(format!("{:010}-{number:016}.{SEGMENT}", bucket.0))
    }

    pub(super) fn manifest_path(&self, bucket: Bucket) -> PathBuf {
        self.dir.join(format!("{:010}.{MANIFEST}", bucket.0))
    }

    /// Reads the manifests and removes what they do not name.
    fn load(&self) -> Result<(), IndexError> {
        let files = self.disk.list(&self.dir);
        let files = files.map_err(IndexError::io("list", &self.dir))?;
        let mut manifests = BTreeMap::new();
        let mut named = BTreeSet::new();
        let is_manifest = |path: &&PathBuf| path.extension().is_some_and(|end| end == MANIFEST);
        for path in files.iter().filter(is_manifest) {
            let bytes = self.disk.read(path).map_err(IndexError::io("read", path))?;
            let bucket = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let bucket = bucket.map(Bucket);
            match Manifest::decode(&bytes) {
                Ok(manifest) if Some(manifest.bucket) == bucket => {
                    named.insert(self.manifest_path(manifest.bucket));
                    let segments = manifest.segments.iter();
                    named.extend(segments.map(|s| self.segment_path(manifest.bucket, s.number)));
                    manifests.insert(manifest.bucket, Arc::new(manifest));
                }
                Ok(_) => self.report(bucket, "the manifest is of another bucket".to_owned()),
                Err(reason) => self.report(bucket, format!("manifest: {reason}")),
            }
        }
        // Manifests first: a crash in between must not leave one that names what is gone.
        let mut unnamed: Vec<_> = files.iter().filter(|path| !named.contains(*path)).collect();
        unnamed.sort_by_key(|path| !is_manifest(path));
        for path in &unnamed {
            let removed = self.disk.remove(path);
            removed.map_err(IndexError::io("remove", path))?;
        }
        if !unnamed.is_empty() {
            let synced = self.disk.sync_dir(&self.dir);
            synced.map_err(IndexError::io("sync", &self.dir))?;
        }
        let segments = manifests.values().flat_map(|manifest| &manifest.segments);
        let highest = segments.map(|segment| segment.number).max();
        lock(&self.writer).next_number = highest.unwrap_or_default().saturating_add(1);
        *lock(&self.manifests) = manifests;
        Ok(())
    }

    fn report(&self, bucket: Option<Bucket>, reason: String) {
        tracing::warn!(
            bucket = bucket.map(|bucket| bucket.0),
            reason,
            "index dropped"
        );
        lock(&self.dropped).push(DroppedIndex { bucket, reason });
    }

    /// Turns a fault into an error, after dropping the bucket when its bytes are wrong.
    fn settle(&self, writer: &Writer, bucket: Bucket, fault: Fault) -> IndexError {
        let reason = match fault {
            Fault::Other(error) => return error,
            Fault::Damaged(reason) => reason,
        };
        self.report(Some(bucket), reason.clone());
        match self.drop_bucket(writer, bucket) {
            Ok(()) => IndexError::Corrupt { bucket, reason },
            Err(error) => error,
        }
    }

    /// Removes a bucket's index: the manifest first, durably, so that it never names what is gone.
    fn drop_bucket(&self, _: &Writer, bucket: Bucket) -> Result<(), IndexError> {
        let Some(manifest) = lock(&self.manifests).remove(&bucket) else {
            return Ok(());
        };
        let path = self.manifest_path(bucket);
        let removed = self.disk.remove(&path);
        removed.map_err(IndexError::io("remove", &path))?;
        let synced = self.disk.sync_dir(&self.dir);
        synced.map_err(IndexError::io("sync", &self.dir))?;
        let numbers = manifest.segments.iter().map(|segment| segment.number);
        self.remove_segments(bucket, numbers)
    }

    /// Removes the files of segments that no manifest names any more.
    pub(super) fn remove_segments(
        &self,
        bucket: Bucket,
        numbers: impl Iterator<Item = u64>,
    ) -> Result<(), IndexError> {
        for number in numbers {
            lock(&self.open).forget(number);
            let path = self.segment_path(bucket, number);
            let removed = self.disk.remove(&path);
            removed.map_err(IndexError::io("remove", &path))?;
        }
        Ok(())
    }
}
