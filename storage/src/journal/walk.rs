//! Walking the journal forward, each frame once: for replay and for building pages.

use std::sync::Arc;

use super::error::JournalError;
use super::frame::Frame;
use super::journal::Journal;
use super::record::FrameId;

/// Decodes frames in order, without filling the cache. A corrupt one is an `Err` item and the walk goes on behind
/// it; it ends at the last frame committed by then, and goes on from there when asked again.
pub struct Walk<'a> {
    journal: &'a Journal,
    after: Option<FrameId>,
    ahead: std::vec::IntoIter<FrameId>,
}

impl Journal {
    /// Walks from the frame after `after`, or from the oldest.
    #[must_use]
    pub fn walk(&self, after: Option<FrameId>) -> Walk<'_> {
        Walk {
            journal: self,
            after,
            ahead: Vec::new().into_iter(),
        }
    }
}

impl Walk<'_> {
    /// The last frame that was given or skipped.
    #[must_use]
    pub fn position(&self) -> Option<FrameId> {
        self.after
    }

    fn next_id(&mut self) -> Option<FrameId> {
        if let Some(id) = self.ahead.next() {
            return Some(id);
        }
        self.ahead = self.journal.frames_after(self.after).into_iter();
        self.ahead.next()
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(FrameId, Arc<Frame>), JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let id = self.next_id()?;
            self.after = Some(id);
            match self.journal.read_frame(id) {
                // Trimmed while we walked: nobody needs it any more.
                Err(JournalError::Gone { .. }) => {}
                read => return Some(read.map(|frame| (id, frame))),
            }
        }
    }
}
