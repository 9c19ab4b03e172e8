//! What can go wrong with blocks.

use std::cmp::Reverse;
use std::io::{self, ErrorKind};

use spandrel_model::ids::Bucket;

use crate::guard;
use crate::page::{PageError, PageFull};

/// A failed call of a block store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// There is no block of this bucket (any more).
    #[error("there is no block of bucket {}", bucket.0)]
    NoBlock {
        /// The bucket.
        bucket: Bucket,
    },
    /// The file of the bucket did not open when the store was opened. What is damaged is set aside by the next commit;
    /// what could not be read may open next time.
    #[error("the block of bucket {} does not open: {reason}", bucket.0)]
    Unopenable {
        /// The bucket.
        bucket: Bucket,
        /// Why, for people.
        reason: String,
    },
    /// A row of the block is not what was written.
    #[error("the block is corrupt: {part}")]
    Corrupt {
        /// Which part, for people.
        part: &'static str,
    },
    /// A page of the block is not what was written; all others can still be read.
    #[error("page {page} of bucket {}: {source}", bucket.0)]
    Page {
        /// The bucket.
        bucket: Bucket,
        /// The page.
        page: u64,
        /// What is wrong.
        source: PageError,
    },
    /// What is to be written is not what its writer says that it is; the block is as it was.
    #[error("a {part} that is to be written is malformed")]
    Invalid {
        /// Which part, for people.
        part: &'static str,
    },
    /// What is to be written does not fit.
    #[error(transparent)]
    Full(#[from] PageFull),
    /// The block has as many tenants as it can number.
    #[error("a block holds at most {limit} tenants")]
    TooManyTenants {
        /// The limit.
        limit: usize,
    },
    /// The file system failed. After a failed commit the process must stop: what is on disk is unknown.
    #[error("i/o on a block: {0}")]
    Io(#[from] std::io::Error),
    /// The database failed. After a failed commit the process must stop: what is on disk is unknown.
    #[error("database of a block: {0}")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BlockError {
    /// The bytes are not what was written: another try finds the same.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let wrong = |error: &io::Error| {
            matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            )
        };
        match self {
            Self::Corrupt { .. } | Self::Page { .. } => true,
            Self::Io(error) => wrong(error),
            Self::Database(error) => match error.downcast_ref() {
                Some(redb::Error::Io(error)) => wrong(error),
                Some(redb::Error::Corrupted(_)) => true,
                _ => false,
            },
            _ => false,
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),+) => {
        $(impl From<$error> for BlockError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(redb::Error::from(error)))
            }
        })+
    };
}

from_redb!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    redb::SetDurabilityError
);

/// Runs something over a database: what it cannot bear is damage of a block.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, BlockError>) -> Result<T, BlockError> {
    guard::guarded(run).unwrap_or_else(|| Err(corrupt("pages of the database")))
}

/// The keys of a walk over a table. redb goes by what its branches say: a page that was written in the place of another
/// one yields rows that nobody asked for, or the same again, with keys that are right for themselves.
#[derive(Debug)]
pub(super) struct Walk<K> {
    part: &'static str,
    last: Option<K>,
}

impl<K: Ord> Walk<K> {
    /// Of a part of a block, as errors name it.
    pub(super) fn over(part: &'static str) -> Self {
        Self { part, last: None }
    }

    /// A row has this key; it is one of those that were asked for.
    pub(super) fn comes_to(&mut self, key: K, is_asked: bool) -> Result<(), BlockError> {
        let ascends = self.last.as_ref().is_none_or(|last| *last < key);
        self.last = Some(key);
        (is_asked && ascends)
            .then_some(())
            .ok_or_else(|| corrupt(self.part))
    }
}

/// What is on both sides of the place of a key in a table of so many rows, more rows than a leaf of redb holds, shows
/// whether the leaf that was looked at is the one that belongs there, and so whether what was not found is not there. The
/// rows before it are walked towards the front.
///
/// Not found: a page above the leaves that is not the one that belongs there, when what is below it is ordered.
pub(super) fn check_place<K: Ord, E: Into<BlockError>>(
    part: &'static str,
    key: &K,
    (before, behind): (
        impl Iterator<Item = Result<K, E>>,
        impl Iterator<Item = Result<K, E>>,
    ),
    (leaf_rows, rows): (usize, u64),
) -> Result<(), BlockError> {
    let (mut seen_before, mut seen_behind) = (0, 0);
    let mut walk = Walk::over(part);
    for row in before.take(leaf_rows + 1) {
        let row = row.map_err(Into::into)?;
        let is_before = row < *key;
        walk.comes_to(Reverse(row), is_before)?;
        seen_before += 1;
    }
    let mut walk = Walk::over(part);
    for row in behind.take(leaf_rows + 1) {
        let row = row.map_err(Into::into)?;
        let is_behind = row >= *key;
        walk.comes_to(row, is_behind)?;
        seen_behind += 1;
    }
    let is_all = seen_before.max(seen_behind) <= leaf_rows;
    match is_all && (seen_before + seen_behind) as u64 != rows {
        true => Err(corrupt(part)),
        false => Ok(()),
    }
}

pub(super) fn corrupt(part: &'static str) -> BlockError {
    BlockError::Corrupt { part }
}
