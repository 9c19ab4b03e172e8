//! Walking the journal, each frame once: forward for replay and for building pages, backward for what is newest.

use std::sync::Arc;

use super::error::JournalError;
use super::frame::Frame;
use super::journal::Journal;
use super::record::{FrameId, RecordKind};

/// Decodes frames in order, without filling the cache. A corrupt one is an `Err` item and the walk goes on behind
/// it; forward it ends at the last frame committed by then, and goes on from there when asked again.
#[derive(Clone)]
pub struct Walk<'a> {
    journal: &'a Journal,
    after: Option<FrameId>,
    ahead: std::vec::IntoIter<FrameId>,
    /// Frames without records of this kind are passed over, unread.
    kind: Option<RecordKind>,
    newest_first: bool,
    /// Frames to pass over, unread, before the next one, and after each.
    pass: usize,
    stride: usize,
}

impl Journal {
    /// Walks from the frame after `after`, or from the oldest.
    #[must_use]
    pub fn walk(&self, after: Option<FrameId>) -> Walk<'_> {
        Walk {
            journal: self,
            after,
            ahead: Vec::new().into_iter(),
            kind: None,
            newest_first: false,
            pass: 0,
            stride: 1,
        }
    }

    /// Walks over the frames that hold verdicts, from the frame after `after`, or from the oldest.
    #[must_use]
    pub fn walk_verdicts(&self, after: Option<FrameId>) -> Walk<'_> {
        Walk {
            kind: Some(RecordKind::Verdicts),
            ..self.walk(after)
        }
    }

    /// Walks over the frames that hold verdicts, from the newest back to the oldest.
    #[must_use]
    pub fn walk_verdicts_back(&self) -> Walk<'_> {
        Walk {
            newest_first: true,
            ..self.walk_verdicts(None)
        }
    }

    /// Whether a frame holds records of a kind. True also when its row in the directory cannot be read: the frame
    /// tells then.
    fn may_hold(&self, id: FrameId, kind: RecordKind) -> bool {
        let row = self.slice_of(id).map(|slice| slice.frame_row(id));
        !matches!(row, Some(Ok(row)) if row.kinds & kind.bit() == 0)
    }
}

impl Walk<'_> {
    /// The last frame that was given or skipped.
    #[must_use]
    pub fn position(&self) -> Option<FrameId> {
        self.after
    }

    /// Of the frames of this walk only the `number`-th of each `of`, counted from 0: so many walkers together read all
    /// of them, each at its own pace. Nothing may be trimmed meanwhile.
    #[must_use]
    pub fn share(self, number: usize, of: usize) -> Self {
        Self {
            pass: number,
            stride: of.max(1),
            ..self
        }
    }

    fn next_id(&mut self) -> Option<FrameId> {
        if let Some(id) = self.ahead.next() {
            return Some(id);
        }
        let ahead = match self.newest_first {
            true => self.journal.frames_before(self.after),
            false => self.journal.frames_after(self.after),
        };
        self.ahead = ahead.into_iter();
        self.ahead.next()
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(FrameId, Arc<Frame>), JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let id = self.next_id()?;
            self.after = Some(id);
            if self
                .kind
                .is_some_and(|kind| !self.journal.may_hold(id, kind))
            {
                continue;
            }
            if self.pass > 0 {
                self.pass -= 1;
                continue;
            }
            self.pass = self.stride - 1;
            match self.journal.read(id, Vec::new()) {
                // Trimmed while we walked: nobody needs it any more.
                Err(JournalError::Gone { .. }) if self.stride == 1 => {}
                read => return Some(read.map(|frame| (id, Arc::new(frame)))),
            }
        }
    }
}
