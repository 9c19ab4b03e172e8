//! What a journal record is called.

use spandrel_model::ids::{Lsn, ShardId, Term, UnixNanos};

/// What a record holds. The numbers are on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Spans of one tenant that arrived together.
    Spans = 1,
    /// Verdicts.
    Verdicts = 2,
    /// Reserved: a columnar page.
    Page = 3,
    /// Spans that the shard has already, for a replica that has just joined it.
    SpansAgain = 4,
    /// Verdicts that the shard has already, for the same.
    VerdictsAgain = 5,
}

impl RecordKind {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Spans,
            2 => Self::Verdicts,
            3 => Self::Page,
            4 => Self::SpansAgain,
            5 => Self::VerdictsAgain,
            _ => return None,
        })
    }

    /// Verdicts, said for the first time or again.
    #[must_use]
    pub fn is_verdicts(self) -> bool {
        matches!(self, Self::Verdicts | Self::VerdictsAgain)
    }

    /// Its bit in a frame's set of kinds: spans, verdicts, pages.
    pub(crate) fn bit(self) -> u8 {
        match self {
            Self::Spans | Self::SpansAgain => 1,
            Self::Verdicts | Self::VerdictsAgain => 1 << 1,
            Self::Page => 1 << 2,
        }
    }
}

/// The name of a record. `(shard, lsn)` is the same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordHead {
    /// The shard.
    pub shard: ShardId,
    /// The term of the primary that gave the number.
    pub term: Term,
    /// Its number within the shard: dense, from 1.
    pub lsn: Lsn,
    /// What it holds.
    pub kind: RecordKind,
}

/// A frame's address: its sequence number on this node, ascending over all slices. Means nothing on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub u64);

/// The records of one shard in a frame, or in a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LsnRange {
    /// The shard.
    pub shard: ShardId,
    /// Lowest number.
    pub first: Lsn,
    /// Highest number.
    pub last: Lsn,
}

/// A slice of the journal, for those who look after the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceInfo {
    /// Its number, ascending in time.
    pub id: u64,
    /// Bytes that its file takes on disk.
    pub allocated_bytes: u64,
    /// When its first frame was committed; `None` when it has no frame.
    pub first_commit: Option<UnixNanos>,
    /// When its last frame was committed.
    pub last_commit: Option<UnixNanos>,
    /// Frames in it.
    pub frames: u64,
    /// What it holds of each shard, by shard.
    pub shards: Vec<LsnRange>,
    /// No frame will be added.
    pub closed: bool,
}
