//! The journal: every acknowledged span and every verdict, in durable, compressed frames.
//!
//! A [`FrameBuilder`] packs records of many shards into frames, off the thread that commits. [`Journal::commit`]
//! makes frames durable in the open slice, one redb file; a slice is closed by size or age, sealed by
//! [`Journal::maintain`] and deleted whole by [`Journal::trim`]. Records are found by `(shard, lsn)`, verdicts by
//! trace. The format is described in `docs/formats/journal.md`.
//!
//! A frame's checksum is verified on every read from disk. A frame that fails is reported and skipped alone. A slice
//! whose tree is damaged is built anew from the frames that lie in its file, which is set aside under the name
//! `.corrupt`. Not verified: the bytes in redb's own cache and in the cache of decoded frames.

use std::path::{Path, PathBuf};

use crate::disk::Disk;

mod builder;
mod checkpoint;
mod encoded;
mod error;
mod filter;
mod frame;
mod frame_batch;
mod horizon;
#[allow(clippy::module_inception)] // the type of the same name is the module's main one
mod journal;
mod location;
mod open;
mod options;
mod piece;
mod plan;
mod record;
mod repair;
mod salvage;
mod slice;
mod slice_rows;
mod slice_seal;
mod store;
mod upkeep;
mod verdict_codec;
mod verdict_index;
mod voids;
mod walk;
mod wire;

/// Ends the name of a file that is set aside.
const SET_ASIDE: &str = ".corrupt";

pub use builder::FrameBuilder;
pub use encoded::EncodedFrame;
pub use error::{Corruption, InvalidFrame, JournalError};
pub use frame::Frame;
pub use frame_batch::FrameBatch;
pub use journal::Journal;
pub use options::JournalOptions;
pub use record::{FrameId, LsnRange, RecordHead, RecordKind, SliceInfo};
pub use walk::Walk;

/// Gives a file that cannot be used a name that nothing opens; somebody may want to look at it.
fn set_aside(disk: &dyn Disk, path: &Path) -> Result<(), JournalError> {
    let mut name = path.as_os_str().to_owned();
    name.push(SET_ASIDE);
    rename(disk, path, &PathBuf::from(name))
}

/// Renames a file in the journal's directory, durably.
fn rename(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), JournalError> {
    disk.rename(from, to)
        .map_err(JournalError::io("rename a file of the journal"))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir)
        .map_err(JournalError::io("sync the journal's directory"))
}
