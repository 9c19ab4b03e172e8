//! A row of a frame's bytes: it says what it is, so that frames are found in a file whose tree is damaged.
//!
//! Clients choose the bytes of spans, so the mark and the checksums of a piece depend on a secret: nothing that is
//! sent can look like a piece.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::wire::Reader;
use crate::limits::{FRAME_CHUNK_BYTES, MAX_FRAME_BYTES};

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 40;
/// Most bytes of a frame in a piece; all pieces but the last are full.
pub(crate) const PAYLOAD_BYTES: usize = FRAME_CHUNK_BYTES - HEADER_BYTES;
/// Bytes of the mark that a piece begins with.
pub(crate) const MARK_BYTES: usize = 8;
/// What the mark is a hash of.
const MARK_TEXT: &[u8] = b"spandrel journal piece 1";

/// What a piece says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PieceHead {
    /// How often the node's directory had been opened when it was written.
    pub(crate) boot: u64,
    /// Of its frame.
    pub(crate) sequence: u64,
    /// Its number within the frame.
    pub(crate) piece: u16,
    /// Pieces of the frame.
    pub(crate) pieces: u16,
    /// Bytes of its payload.
    pub(crate) len: u32,
}

/// The secret of a slice, as its pieces use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PieceSeal {
    seed: u64,
    mark: [u8; MARK_BYTES],
}

/// A head whose own checksum holds, and what its payload must hash to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SealedHead {
    pub(crate) head: PieceHead,
    seed: u64,
    checksum: u32,
}

impl PieceSeal {
    pub(crate) fn new(hash_seed: u64) -> Self {
        Self {
            seed: hash_seed,
            mark: xxh3_64_with_seed(MARK_TEXT, hash_seed).to_le_bytes(),
        }
    }

    pub(crate) fn mark(&self) -> &[u8; MARK_BYTES] {
        &self.mark
    }

    /// Fills a row of [`HEADER_BYTES`] and the payload.
    pub(crate) fn write(&self, head: PieceHead, payload: &[u8], row: &mut [u8]) {
        let fields = fields(head);
        let seed = xxh3_64_with_seed(&fields, self.seed);
        let checksum = low_half(xxh3_64_with_seed(payload, seed));
        let (half, checksum) = (low_half(seed).to_le_bytes(), checksum.to_le_bytes());
        let mut rest = row;
        for part in [&self.mark[..], &fields, &half, &checksum, payload] {
            // A row that is too short stays unfilled, which its checksum tells; callers reserve the right length.
            let Some((place, after)) = rest.split_at_mut_checked(part.len()) else {
                return;
            };
            place.copy_from_slice(part);
            rest = after;
        }
    }

    /// Reads a head at the start of `bytes`; `None` when it is none, or damaged.
    pub(crate) fn read(&self, bytes: &[u8]) -> Option<SealedHead> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != self.mark {
            return None;
        }
        let stored: [u8; 24] = reader.array()?;
        let seed = xxh3_64_with_seed(&stored, self.seed);
        let head_checksum = u32::from_le_bytes(reader.array()?);
        let checksum = u32::from_le_bytes(reader.array()?);
        let mut reader = Reader::new(&stored);
        let head = PieceHead {
            boot: u64::from_le_bytes(reader.array()?),
            sequence: u64::from_le_bytes(reader.array()?),
            piece: u16::from_le_bytes(reader.array()?),
            pieces: u16::from_le_bytes(reader.array()?),
            len: u32::from_le_bytes(reader.array()?),
        };
        let is_last = u32::from(head.piece) + 1 == u32::from(head.pieces);
        let fits = match head.len as usize {
            PAYLOAD_BYTES => true,
            len => is_last && (1..PAYLOAD_BYTES).contains(&len),
        };
        let frame_fits = usize::from(head.pieces) <= MAX_FRAME_BYTES.div_ceil(PAYLOAD_BYTES);
        let whole = low_half(seed) == head_checksum && head.piece < head.pieces;
        (whole && fits && frame_fits).then_some(SealedHead {
            head,
            seed,
            checksum,
        })
    }
}

impl SealedHead {
    /// Whether this is the payload that the piece was written with.
    pub(crate) fn covers(&self, payload: &[u8]) -> bool {
        low_half(xxh3_64_with_seed(payload, self.seed)) == self.checksum
    }
}

/// The fields in the order of the format.
fn fields(head: PieceHead) -> [u8; 24] {
    let mut fields = [0; 24];
    let parts: [&[u8]; 5] = [
        &head.boot.to_le_bytes(),
        &head.sequence.to_le_bytes(),
        &head.piece.to_le_bytes(),
        &head.pieces.to_le_bytes(),
        &head.len.to_le_bytes(),
    ];
    for (byte, place) in parts.into_iter().flatten().zip(&mut fields) {
        *place = *byte;
    }
    fields
}

fn low_half(hash: u64) -> u32 {
    (hash & 0xffff_ffff) as u32 // masked to 32 bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(head: PieceHead, payload: &[u8], seed: u64) -> Vec<u8> {
        let mut row = vec![0; HEADER_BYTES + payload.len()];
        PieceSeal::new(seed).write(head, payload, &mut row);
        row
    }

    #[test]
    fn a_piece_tells_what_it_is_and_each_flipped_bit_shows() {
        let head = PieceHead {
            boot: 7,
            sequence: 1 << 40,
            piece: 2,
            pieces: 3,
            len: 5,
        };
        let seal = PieceSeal::new(9);
        let row = piece(head, b"frame", 9);
        let read = |row: &[u8]| {
            let sealed = seal.read(row)?;
            Some((sealed.head, sealed.covers(row.get(HEADER_BYTES..)?)))
        };
        assert_eq!(read(&row), Some((head, true)));
        for bit in 0..row.len() * 8 {
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The checksum of the payload is the last of the header.
            let expected = (bit / 8 >= HEADER_BYTES - 4).then_some((head, false));
            assert_eq!(read(&damaged), expected, "bit {bit}");
        }
        // Who does not know the secret makes no piece.
        assert_eq!(read(&piece(head, b"frame", 8)), None);
    }

    #[test]
    fn heads_that_nobody_writes_are_refused() {
        let head = PieceHead {
            boot: 1,
            sequence: 1,
            piece: 0,
            pieces: 1,
            len: 5,
        };
        let refused = |head| PieceSeal::new(9).read(&piece(head, b"frame", 9)).is_none();
        assert!(!refused(head));
        assert!(refused(PieceHead { piece: 1, ..head }));
        assert!(refused(PieceHead { pieces: 0, ..head }));
        assert!(refused(PieceHead { pieces: 2, ..head }));
        assert!(refused(PieceHead { len: 0, ..head }));
        let full = u32::try_from(PAYLOAD_BYTES).unwrap();
        let too_long = full + 1;
        assert!(refused(PieceHead {
            len: too_long,
            ..head
        }));
        assert!(refused(PieceHead {
            pieces: u16::MAX,
            len: full,
            ..head
        }));
    }
}
