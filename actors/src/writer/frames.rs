//! Packing records into frames: each frame holds shards with the same followers, so that its bytes go to all of them.

use std::sync::Arc;

use spandrel_storage::journal::{EncodedFrame, FrameBuilder, JournalError};

use super::work::{BuildContent, BuildItem};
use crate::limits::FRAME_RAW_BYTES;
use crate::replication::LiveSet;

/// A frame and the followers that get it.
pub(crate) struct BuiltFrame {
    pub(crate) frame: EncodedFrame,
    pub(crate) followers: Arc<LiveSet>,
}

/// Records of shards with the same followers.
pub(crate) struct Group {
    pub(crate) followers: LiveSet,
    pub(crate) items: Vec<BuildItem>,
}

/// Builds the frames of some groups. Verdicts have frames of their own: recovery, which looks for verdicts before
/// anything else, reads no others.
pub(crate) fn build_frames(
    builder: &mut FrameBuilder,
    groups: Vec<Group>,
) -> Result<Vec<BuiltFrame>, JournalError> {
    let mut frames = Vec::new();
    for group in groups {
        let followers = Arc::new(group.followers);
        let close = |builder: &mut FrameBuilder| {
            builder.finish().map(|frame| BuiltFrame {
                frame,
                followers: Arc::clone(&followers),
            })
        };
        for item in group.items {
            match &item.content {
                BuildContent::Spans {
                    batch,
                    rows,
                    start,
                    end,
                    again,
                } => {
                    let rows = rows.get(*start..*end).unwrap_or_default();
                    let place = (item.shard, item.term, item.lsn);
                    if *again {
                        builder.push_spans_again(place, batch, rows)?;
                    } else {
                        builder.push_spans(item.shard, item.term, item.lsn, batch, rows)?;
                    }
                    if builder.raw_bytes() >= FRAME_RAW_BYTES {
                        frames.push(close(builder)?);
                    }
                }
                BuildContent::Verdicts(records, again) => {
                    if builder.holds_spans() {
                        frames.push(close(builder)?);
                    }
                    if *again {
                        let place = (item.shard, item.term, item.lsn);
                        builder.push_verdicts_again(place, records)?;
                    } else {
                        builder.push_verdicts(item.shard, item.term, item.lsn, records)?;
                    }
                    if builder.raw_bytes() >= FRAME_RAW_BYTES {
                        frames.push(close(builder)?);
                    }
                }
            }
        }
        if !builder.is_empty() {
            frames.push(close(builder)?);
        }
    }
    Ok(frames)
}
