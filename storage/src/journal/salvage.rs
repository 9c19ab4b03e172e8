//! Finding frames in the raw bytes of a slice file, whatever its tree says.

use std::collections::BTreeMap;
use std::io;

use memchr::memmem::Finder;
use redb::StorageBackend;

use super::piece::{HEADER_BYTES, MARK_BYTES, PieceHead, PieceSeal};
use crate::limits::{FRAME_CHUNK_BYTES, MAX_FRAME_BYTES, SALVAGE_WINDOW_BYTES};

/// Pieces of frames in a file, by sequence and boot.
///
/// A frame of a commit that failed before a restart may still lie in the file, under a sequence that was used again:
/// of one sequence only the highest boot counts.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    frames: BTreeMap<u64, Found>,
    highest_boot_before: u64,
}

/// What was found of one sequence, of its highest boot.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) boot: u64,
    pieces: u16,
    /// Where the payloads of intact pieces stand, and how long they are.
    places: BTreeMap<u16, (u64, usize)>,
}

impl Scan {
    /// Searches a file for frames with a sequence of `from` or more; of those before, only the highest boot is noted.
    pub(crate) fn of(file: &dyn StorageBackend, seal: PieceSeal, from: u64) -> io::Result<Self> {
        let mut scan = Self::default();
        let finder = Finder::new(seal.mark());
        let len = file.len()?;
        let mut window = Vec::new();
        let mut start = 0;
        while start < len {
            // A piece that begins in the window may end behind it.
            let left = usize::try_from(len - start).unwrap_or(usize::MAX);
            window.resize(left.min(SALVAGE_WINDOW_BYTES + FRAME_CHUNK_BYTES), 0);
            file.read(start, &mut window)?;
            let marks = window
                .get(..left.min(SALVAGE_WINDOW_BYTES + MARK_BYTES - 1))
                .unwrap_or_default();
            for at in finder.find_iter(marks) {
                let piece = window.get(at..).unwrap_or_default();
                scan.note(seal, piece, start + at as u64, from);
            }
            start += SALVAGE_WINDOW_BYTES as u64;
        }
        Ok(scan)
    }

    fn note(&mut self, seal: PieceSeal, bytes: &[u8], offset: u64, from: u64) {
        let Some(sealed) = seal.read(bytes) else {
            return;
        };
        let head = sealed.head;
        if head.sequence < from {
            self.highest_boot_before = self.highest_boot_before.max(head.boot);
            return;
        }
        let found = self.frames.entry(head.sequence);
        let found = found.or_insert_with(|| Found::new(head));
        if found.boot < head.boot {
            *found = Found::new(head);
        }
        let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + head.len as usize);
        let same_frame = found.boot == head.boot && found.pieces == head.pieces;
        if same_frame && payload.is_some_and(|payload| sealed.covers(payload)) {
            let place = (offset + HEADER_BYTES as u64, head.len as usize);
            found.places.insert(head.piece, place);
        }
    }

    /// Every sequence of which something was found, ascending.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = (u64, &Found)> {
        self.frames
            .iter()
            .map(|(sequence, found)| (*sequence, found))
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Found> {
        self.frames.get(&sequence)
    }

    /// The highest boot of pieces before the sequences that were asked for; 0 when there are none.
    pub(crate) fn highest_boot_before(&self) -> u64 {
        self.highest_boot_before
    }
}

impl Found {
    fn new(head: PieceHead) -> Self {
        Self {
            boot: head.boot,
            pieces: head.pieces,
            places: BTreeMap::new(),
        }
    }

    /// The bytes of the frame; `None` when a piece is missing. They must still be checked.
    pub(crate) fn read(&self, file: &dyn StorageBackend) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.places.values().map(|(_, len)| len).sum::<usize>();
        if self.places.len() != usize::from(self.pieces) || bytes > MAX_FRAME_BYTES {
            return Ok(None);
        }
        let mut frame = vec![0; bytes];
        let mut rest = frame.as_mut_slice();
        for (offset, len) in self.places.values() {
            let (place, after) = rest.split_at_mut(*len); // `rest` is as long as all pieces together
            file.read(*offset, place)?;
            rest = after;
        }
        Ok(Some(frame))
    }
}
