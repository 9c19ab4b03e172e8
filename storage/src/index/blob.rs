//! A segment as one file: tantivy's files joined into a blob, and the read-only directory that serves them out of it.
//! docs/formats/index.md.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, Lock, OwnedBytes, RamDirectory, WatchCallback,
    WatchHandle, WritePtr,
};
use tantivy::{Index, TantivyError};

use crate::disk::MappedFile;

const MAGIC: [u8; 8] = *b"SPDRLSEG";
const VERSION: u8 = 1;
/// Longest name of a file inside a blob, in bytes; tantivy's are 42 at most.
const MAX_FILE_NAME_BYTES: usize = 255;
const META: &str = "meta.json";
/// Stands for the random id that tantivy gives a segment, so that equal documents make equal bytes.
const SEGMENT_NAME: &str = "00000000000000000000000000000000";

/// Joins the files of a finished index of one segment. `raw` is the directory below tantivy's own, which would strip
/// the footers that it wants to find again.
pub(super) fn pack(index: &Index, raw: &RamDirectory) -> Result<Vec<u8>, TantivyError> {
    let metas = index.load_metas()?;
    let mut files = BTreeMap::new();
    for segment in &metas.segments {
        let id = segment.id().uuid_string();
        for path in metas.list_segment_files() {
            if !raw.exists(&path)? {
                continue;
            }
            let name = path.to_string_lossy().replace(&id, SEGMENT_NAME);
            files.insert(name, raw.open_read(&path)?.read_bytes()?);
        }
    }
    files.insert(META.to_owned(), OwnedBytes::new(stable_meta(raw)?));
    Ok(join(&files)?)
}

/// `meta.json` without what differs from run to run.
fn stable_meta(raw: &RamDirectory) -> Result<Vec<u8>, TantivyError> {
    let bytes = raw.atomic_read(Path::new(META))?;
    let mut meta: serde_json::Value = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
    if let Some(fields) = meta.as_object_mut() {
        fields.remove("payload");
    }
    if let Some(id) = meta.pointer_mut("/segments/0/segment_id") {
        *id = SEGMENT_NAME.into();
    }
    Ok(serde_json::to_vec(&meta).map_err(io::Error::from)?)
}

fn join(files: &BTreeMap<String, OwnedBytes>) -> io::Result<Vec<u8>> {
    let too_large = |_| io::Error::other("a file of the segment passes the format's limits");
    let total: usize = files.values().map(|bytes| bytes.len() + 64).sum();
    let mut blob = Vec::with_capacity(total + 16);
    blob.extend_from_slice(&MAGIC);
    blob.push(VERSION);
    blob.push(u8::try_from(files.len()).map_err(too_large)?);
    for (name, bytes) in files {
        blob.push(u8::try_from(name.len()).map_err(too_large)?);
        blob.extend_from_slice(name.as_bytes());
        let length = u64::try_from(bytes.len()).map_err(too_large)?;
        blob.extend_from_slice(&length.to_le_bytes());
    }
    for bytes in files.values() {
        blob.extend_from_slice(bytes);
    }
    Ok(blob)
}

/// The bytes of a mapped file as tantivy holds them: taken over where they are mapped, copied where they are not
/// (a simulated disk).
pub(super) fn owned(mapped: &MappedFile) -> OwnedBytes {
    let any: &dyn Any = &**mapped;
    match any.downcast_ref::<OwnedBytes>() {
        Some(bytes) => bytes.clone(),
        None => OwnedBytes::new((**mapped).as_ref().to_vec()),
    }
}

/// A blob's files. Reading only: whatever would write is refused.
#[derive(Clone)]
pub(super) struct BlobDirectory {
    files: Arc<BTreeMap<PathBuf, OwnedBytes>>,
}

impl BlobDirectory {
    /// Finds the files of a blob; `None` when the bytes are no blob of this version.
    pub(super) fn open(blob: &OwnedBytes) -> Option<Self> {
        let mut rest = blob.as_slice();
        if take(&mut rest, MAGIC.len())? != MAGIC || take(&mut rest, 1)? != [VERSION] {
            return None;
        }
        let count = *take(&mut rest, 1)?.first()?;
        let mut sizes = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let length = usize::from(*take(&mut rest, 1)?.first()?).min(MAX_FILE_NAME_BYTES);
            let name = std::str::from_utf8(take(&mut rest, length)?).ok()?;
            let bytes = u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
            sizes.push((PathBuf::from(name), usize::try_from(bytes).ok()?));
        }
        let mut files = BTreeMap::new();
        let mut at = blob.len() - rest.len();
        for (name, size) in sizes {
            let end = at.checked_add(size)?;
            if end > blob.len() {
                return None;
            }
            files.insert(name, blob.slice(at..end));
            at = end;
        }
        (at == blob.len()).then(|| Self {
            files: Arc::new(files),
        })
    }

    fn file(&self, path: &Path) -> Result<&OwnedBytes, OpenReadError> {
        let missing = || OpenReadError::FileDoesNotExist(path.to_owned());
        self.files.get(path).ok_or_else(missing)
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (front, back) = rest.split_at_checked(length)?;
    *rest = back;
    Some(front)
}

impl fmt::Debug for BlobDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files.keys()).finish()
    }
}

fn read_only() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "a stored segment cannot be written",
    )
}

impl Directory for BlobDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        Ok(Arc::new(self.file(path)?.clone()))
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        Err(DeleteError::IoError {
            io_error: Arc::new(read_only()),
            filepath: path.to_owned(),
        })
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        Ok(self.files.contains_key(path))
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        Err(OpenWriteError::IoError {
            io_error: Arc::new(read_only()),
            filepath: path.to_owned(),
        })
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        Ok(self.file(path)?.to_vec())
    }

    fn atomic_write(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        // Nothing changes here, so there is nothing to lock; the default would write a file.
        Ok(DirectoryLock::from(Box::new(())))
    }

    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn files_come_back(files in proptest::collection::btree_map("[a-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..50), 0..6)) {
            let files: BTreeMap<String, OwnedBytes> =
                files.into_iter().map(|(name, bytes)| (name, OwnedBytes::new(bytes))).collect();
            let blob = OwnedBytes::new(join(&files).unwrap());
            let directory = BlobDirectory::open(&blob).unwrap();
            prop_assert_eq!(directory.files.len(), files.len());
            for (name, bytes) in &files {
                prop_assert_eq!(&directory.atomic_read(Path::new(name)).unwrap(), &bytes.to_vec());
            }
        }

        #[test]
        fn any_bytes_are_opened_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = MAGIC.to_vec();
            bytes.push(VERSION);
            bytes.extend(tail);
            let _ = BlobDirectory::open(&OwnedBytes::new(bytes));
        }
    }
}
