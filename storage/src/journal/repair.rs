//! Making a slice whole at start: frames that lie in its file, and that its tree does not show or no longer leads to.
//!
//! One rotten byte in a page of the tree is enough for redb to refuse the file, or, after a crash, to fall back to
//! the commit before without a word. The frames are still there, each with its own checksum.

use std::collections::BTreeMap;
use std::path::Path;

use redb::StorageBackend;
use spandrel_model::ids::{Lsn, ShardId, UnixNanos};

use super::encoded::VerdictKey;
use super::error::{Corruption, JournalError};
use super::frame::Frame;
use super::piece::PieceSeal;
use super::plan::{After, Known, Plan, Planned};
use super::record::FrameId;
use super::salvage::Scan;
use super::slice::{NewFrame, Slice, SliceSettings};
use super::slice_rows::FrameRow;
use super::store::StoreError;
use crate::disk::Disk;
use crate::limits::SALVAGE_COMMIT_BYTES;

/// Suffix of a slice file that is being built; removed at start.
pub(crate) const BUILDING: &str = "salvaging";
/// Suffix of a slice file that is built and waits to take the place of the damaged one.
pub(crate) const BUILT: &str = "salvaged";

/// What repairs need.
pub(crate) struct Repair<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) settings: SliceSettings,
    /// Of this process.
    pub(crate) boot: u64,
    pub(crate) now: UnixNanos,
}

/// A frame on its way from one place to the other.
struct Moved {
    row: FrameRow,
    bytes: Vec<u8>,
    verdict_keys: Vec<VerdictKey>,
}

impl Repair<'_> {
    /// Takes frames back that a slice's tree does not show, behind those that it shows. `known` ends with those; with
    /// `after`, what is missing up to there is lost and reported.
    pub(crate) fn adopt(
        &self,
        slice: &Slice,
        known: &Known,
        after: Option<&After>,
    ) -> Result<Vec<Corruption>, JournalError> {
        let file = self.disk.open(&slice.path);
        let file = file.map_err(JournalError::io("open a slice"))?;
        let from = known.last_sequence.map_or(0, |last| last + 1);
        let scan = Scan::of(file.as_ref(), slice.piece_seal, from);
        let scan = scan.map_err(JournalError::io("search a slice for frames"))?;
        let plan = match after {
            None => Plan::of_tail(&scan, file.as_ref(), known, self.now),
            Some(_) => Plan::of_all(&scan, file.as_ref(), known, after, self.now),
        };
        let plan = plan.map_err(JournalError::io("read frames of a slice"))?;
        if plan.frames.is_empty() {
            return Ok(Vec::new());
        }
        tracing::warn!(
            slice = slice.id,
            frames = plan.frames.iter().filter(|frame| frame.found).count(),
            "frames behind the last commit that the slice's tree shows are taken back"
        );
        // In one commit: it may overwrite the very pages in which they lie.
        self.store(slice, file.as_ref(), &scan, &plan, &known.lsns, usize::MAX)
            .map_err(|error| error.during("take frames of a slice back"))?;
        Ok(lost_frames(slice.id, &plan, "it is missing in the slice"))
    }

    /// Builds a damaged slice anew from the frames that are found in it, and sets the damaged file aside. `None` when
    /// there is no frame in it.
    pub(crate) fn rebuild(
        &self,
        id: u64,
        path: &Path,
        reason: &str,
        known: &Known,
        after: Option<&After>,
    ) -> Result<(Option<Slice>, Vec<Corruption>), JournalError> {
        let file = self.disk.open(path);
        let file = file.map_err(JournalError::io("open a slice"))?;
        let seal = PieceSeal::new(self.settings.hash_seed);
        let scan = Scan::of(file.as_ref(), seal, 0);
        let scan = scan.map_err(JournalError::io("search a slice for frames"))?;
        let plan = Plan::of_all(&scan, file.as_ref(), known, after, self.now);
        let plan = plan.map_err(JournalError::io("read frames of a slice"))?;
        if plan.finds_nothing() {
            super::set_aside(self.disk, path)?;
            let whole = Corruption {
                slice: id,
                frame: None,
                lost: after
                    .map(|after| known.gaps(&after.carried))
                    .unwrap_or_default(),
                reason: reason.to_owned(),
            };
            return Ok((None, vec![whole]));
        }
        let rebuilt = self
            .build(id, path, file.as_ref(), &scan, &plan, known)
            .map_err(|error| error.during("build a damaged slice anew"))?;
        drop(file);
        drop(rebuilt);
        exchange(self.disk, path)?;
        tracing::warn!(
            slice = id,
            reason,
            frames = plan.frames.iter().filter(|frame| frame.found).count(),
            "a damaged slice was built anew from its frames; the file is set aside"
        );
        let slice = Slice::open(self.disk, path, id, self.settings);
        let slice = slice.map_err(|error| error.during("open a slice that was built anew"))?;
        Ok((Some(slice), lost_frames(id, &plan, reason)))
    }

    fn build(
        &self,
        id: u64,
        path: &Path,
        file: &dyn StorageBackend,
        scan: &Scan,
        plan: &Plan,
        known: &Known,
    ) -> Result<Slice, StoreError> {
        let created_at = plan.frames.first().map(|frame| frame.row.committed_at);
        let slice = Slice::create(
            self.disk,
            &path.with_extension(BUILDING),
            id,
            self.settings,
            created_at.unwrap_or(self.now),
        )?;
        let carried = carried(known, plan);
        self.store(&slice, file, scan, plan, &carried, SALVAGE_COMMIT_BYTES)?;
        Ok(slice)
    }

    /// Commits the frames of a plan, about `batch_bytes` at once.
    fn store(
        &self,
        slice: &Slice,
        file: &dyn StorageBackend,
        scan: &Scan,
        plan: &Plan,
        carried: &BTreeMap<ShardId, Lsn>,
        batch_bytes: usize,
    ) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        for planned in &plan.frames {
            let moved = read(planned, file, scan)?;
            if batch.is_empty() {
                first = planned.sequence;
            }
            bytes += moved.bytes.len();
            batch.push(moved);
            if bytes >= batch_bytes {
                self.commit(slice, first, &batch, carried)?;
                batch.clear();
                bytes = 0;
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.commit(slice, first, &batch, carried)
    }

    fn commit(
        &self,
        slice: &Slice,
        first: u64,
        batch: &[Moved],
        carried: &BTreeMap<ShardId, Lsn>,
    ) -> Result<(), StoreError> {
        let frames: Vec<NewFrame<'_>> = batch
            .iter()
            .map(|moved| NewFrame {
                row: moved.row.clone(),
                bytes: &moved.bytes,
                verdict_keys: &moved.verdict_keys,
            })
            .collect();
        slice.commit(first, &frames, carried, self.boot)
    }
}

fn read(planned: &Planned, file: &dyn StorageBackend, scan: &Scan) -> Result<Moved, StoreError> {
    let mut moved = Moved {
        row: planned.row.clone(),
        bytes: Vec::new(),
        verdict_keys: Vec::new(),
    };
    if planned.found {
        // It was read and checked a moment ago: a disk that answers something else now is failing.
        let changed = || StoreError::Failed("a frame reads differently the second time".to_owned());
        let found = scan.get(planned.sequence).ok_or_else(changed)?;
        let bytes = found.read(file).map_err(redb::Error::Io)?;
        moved.bytes = bytes.ok_or_else(changed)?;
        let frame = Frame::decode(&moved.bytes).map_err(|_| changed())?;
        moved.verdict_keys = frame.verdict_keys().map_err(|_| changed())?;
    }
    Ok(moved)
}

/// The highest numbers before the plan: those that are known, and for other shards what their first record implies.
fn carried(known: &Known, plan: &Plan) -> BTreeMap<ShardId, Lsn> {
    let mut carried = known.lsns.clone();
    for range in plan.frames.iter().flat_map(|frame| &frame.row.ranges) {
        let before = Lsn(range.first.0.saturating_sub(1));
        carried.entry(range.shard).or_insert(before);
    }
    carried
}

fn lost_frames(slice: u64, plan: &Plan, reason: &str) -> Vec<Corruption> {
    let lost = plan.frames.iter().filter(|frame| !frame.found);
    let lost = lost.map(|frame| Corruption {
        slice,
        frame: Some(FrameId(frame.sequence)),
        lost: frame.row.ranges.clone(),
        reason: reason.to_owned(),
    });
    lost.collect()
}

/// Puts the built file in the place of the damaged one. Each step is durable before the next, so that after a crash
/// [`finish_exchange`] knows how far it came.
fn exchange(disk: &dyn Disk, path: &Path) -> Result<(), JournalError> {
    let built = path.with_extension(BUILT);
    super::rename(disk, &path.with_extension(BUILDING), &built)?;
    super::set_aside(disk, path)?;
    super::rename(disk, &built, path)
}

/// Goes on with an exchange that a crash has interrupted: the built file takes its place if the damaged one has left
/// it, and is built again otherwise. Answers whether the slice is in its place now.
pub(crate) fn finish_exchange(
    disk: &dyn Disk,
    built: &Path,
    path: &Path,
    damaged_is_there: bool,
) -> Result<bool, JournalError> {
    if damaged_is_there {
        let removed = disk.remove(built);
        removed.map_err(JournalError::io("remove an unfinished file"))?;
        return Ok(false);
    }
    super::rename(disk, built, path)?;
    Ok(true)
}
