//! What a start found, and what it could not find any more.

use std::collections::BTreeMap;

use spandrel_storage::journal::{Corruption, FrameId};

/// What recovery found, for the banner and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// The directory was new.
    pub created: bool,
    /// Frames read.
    pub frames: u64,
    /// Spans of traces that are open or wait for a page.
    pub spans: u64,
    /// Frames of the journal that are damaged: their records are lost.
    pub lost_frames: u64,
    /// Slices of the journal in which not one frame was left.
    pub lost_slices: u64,
}

/// Logs what the journal lost, each thing once, and counts frames and slices: a frame may be found damaged when the
/// journal is opened and again when it is replayed.
pub(crate) fn report_damage(
    opening: Vec<Corruption>,
    mut frames: BTreeMap<FrameId, Corruption>,
) -> (u64, u64) {
    let mut lost_slices = 0;
    for corruption in opening {
        match corruption.frame {
            Some(frame) => {
                frames.insert(frame, corruption);
            }
            None => {
                tracing::error!(%corruption, lost = ?corruption.lost, "the journal lost a file");
                // The file of the checkpoints is rebuilt from the slices.
                lost_slices += u64::from(corruption.slice > 0);
            }
        }
    }
    for corruption in frames.values() {
        tracing::error!(%corruption, lost = ?corruption.lost, "the journal lost a frame");
    }
    (frames.len() as u64, lost_slices)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A skipped frame was logged twice, and a lost slice counted as a frame that was not there.
    #[test]
    fn each_loss_counts_once_as_what_it_is() {
        let loss = |slice, frame: Option<u64>| Corruption {
            slice,
            frame: frame.map(FrameId),
            lost: Vec::new(),
            reason: "rot".to_owned(),
        };
        let checkpoints = loss(0, None);
        let opening = vec![loss(1, Some(7)), loss(2, None), checkpoints];
        let replayed = [7, 8].map(|frame| (FrameId(frame), loss(1, Some(frame))));

        assert_eq!(report_damage(opening, BTreeMap::from(replayed)), (2, 1));
    }
}
