//! Cuts the spans of a trace into pieces.

use std::collections::VecDeque;

use bytes::Bytes;
use spandrel_model::otlp::{RawContext, TracesDataWriter};

use crate::limits::TRACE_PIECE_BYTES;

/// Takes spans and gives pieces of about [`TRACE_PIECE_BYTES`], each longer than that by less than one span.
///
/// Invariant: what is in `ready` is older than what `writer` holds, and no piece is empty.
#[derive(Default)]
pub(super) struct PieceWriter {
    ready: VecDeque<Bytes>,
    writer: TracesDataWriter,
}

impl PieceWriter {
    pub(super) fn push(&mut self, context: &RawContext<'_>, span: &[u8]) {
        self.writer.push(context, span);
        if self.writer.len() >= TRACE_PIECE_BYTES {
            self.cut();
        }
    }

    pub(super) fn has_piece(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next full piece.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// The next piece when no span comes any more.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        if !self.writer.is_empty() {
            self.cut();
        }
        self.next()
    }

    fn cut(&mut self) {
        let writer = std::mem::take(&mut self.writer);
        self.ready.push_back(writer.finish());
    }
}
