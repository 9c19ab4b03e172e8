//! What can go wrong with the index.

use std::io;
use std::path::{Path, PathBuf};

use spandrel_model::ids::Bucket;
use tantivy::TantivyError;

/// A failure of the index. None of them loses data: the index is rebuilt from the blocks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The disk refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A bucket's index was damaged; it is gone now, its checkpoint is 0, and it must be rebuilt.
    #[error("index of bucket {} was damaged and is dropped: {reason}", bucket.0)]
    Corrupt {
        /// The bucket.
        bucket: Bucket,
        /// What was found.
        reason: String,
    },
    /// A segment could not be built or merged.
    #[error("cannot build the index of bucket {}: {source}", bucket.0)]
    Build {
        /// The bucket.
        bucket: Bucket,
        /// What the engine said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More was asked for than one answer holds.
    #[error("limit must be at most {max}, got {limit}")]
    LimitTooLarge {
        /// What was asked for.
        limit: usize,
        /// The most that one answer holds.
        max: usize,
    },
    /// Segments kept changing while they were read: try again.
    #[error("index of bucket {} changed too often while it was read", bucket.0)]
    Busy {
        /// The bucket.
        bucket: Bucket,
    },
}

impl IndexError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(super) fn build(bucket: Bucket) -> impl FnOnce(TantivyError) -> Self {
        move |source| Self::Build {
            bucket,
            source: Box::new(source),
        }
    }
}

/// Why a segment could not be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// Its bytes are wrong or missing: the bucket's index must go.
    Damaged(String),
    /// Something else failed, which says nothing about the bytes.
    Other(IndexError),
}

impl From<IndexError> for Fault {
    fn from(error: IndexError) -> Self {
        Self::Other(error)
    }
}

impl From<TantivyError> for Fault {
    fn from(error: TantivyError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<io::Error> for Fault {
    /// Of the engine reading mapped bytes: no system call is behind it.
    fn from(error: io::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}
