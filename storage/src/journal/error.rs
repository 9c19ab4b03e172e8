//! What goes wrong in the journal.

use std::fmt::Display;
use std::io;

use spandrel_model::error::ErrorClass;

use super::record::{FrameId, LsnRange};

/// Stored bytes that cannot be trusted, and what was lost with them. The rest of the journal is unharmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "journal slice {slice}{} is corrupt: {reason}",
    frame.map_or_else(String::new, |frame| format!(", frame {}", frame.0))
)]
pub struct Corruption {
    /// The slice.
    pub slice: u64,
    /// The frame; `None` when the whole slice is lost. Its file is then set aside as `.corrupt`.
    pub frame: Option<FrameId>,
    /// The records that were in it, as far as that is known.
    pub lost: Vec<LsnRange>,
    /// What is wrong with it, for people.
    pub reason: String,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidFrame {
    /// What is wrong with them.
    pub reason: &'static str,
}

/// The journal could not do it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The disk or the store on it failed.
    #[error("journal: {what}: {reason}")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// An earlier commit failed, so what is on disk is unknown: the process must stop and recover. A failed fsync is
    /// never retried.
    #[error("journal refuses commits since one failed: {cause}")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// Stored bytes fail their checksum or their format.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The frame was trimmed, or never was.
    #[error("journal frame {} is not held", frame.0)]
    Gone {
        /// The frame.
        frame: FrameId,
    },
    /// The record is not of the kind that was asked for, or is none of the frame's.
    #[error("journal frame has no {wanted} record at index {record}")]
    NoSuchRecord {
        /// What was asked for.
        wanted: &'static str,
        /// Its index.
        record: usize,
    },
    /// Bytes from elsewhere are no frame.
    #[error("not a journal frame: {0}")]
    Invalid(#[from] InvalidFrame),
    /// A frame or a checkpoint is larger than its limit.
    #[error("journal: {what} of {bytes} bytes is over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

impl JournalError {
    pub(crate) fn disk(what: &'static str, error: &dyn Display) -> Self {
        Self::Disk {
            what,
            reason: error.to_string(),
        }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::disk(what, &error)
    }

    /// What the caller may do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Disk { .. } | Self::Poisoned { .. } => ErrorClass::Unavailable,
            Self::Corrupt(_) => ErrorClass::Corrupt,
            Self::Gone { .. } => ErrorClass::NotFound,
            Self::NoSuchRecord { .. } => ErrorClass::Internal,
            Self::Invalid(_) => ErrorClass::Invalid,
            Self::TooLarge { .. } => ErrorClass::TooLarge,
        }
    }
}
