//! Frames whose checksum is right, whatever they hold: a replica of a later version may send them, or one gone mad.
//! Beside the tests, the fuzz target `journal_frame` uses them.

use bytes::Bytes;
use spandrel_storage::journal::{EncodedFrame, Frame, RecordKind};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of the header before its checksum.
const CHECKED_HEADER_BYTES: usize = 12;
/// All bytes of the header.
const HEADER_BYTES: usize = 20;

/// A frame of these kinds and this content, whose tables begin at `tail`.
pub fn seal(kinds: u8, tail: u32, raw: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, kinds, 1, 0];
    bytes.extend(u32::try_from(raw.len()).unwrap().to_le_bytes());
    bytes.extend(tail.to_le_bytes());
    let compressed = zstd::bulk::compress(raw, 1).unwrap();
    let checksum = xxh3_64_with_seed(&compressed, xxh3_64(&bytes));
    bytes.extend(checksum.to_le_bytes());
    bytes.extend(compressed);
    bytes
}

/// Kinds, beginning of the tables and content of a frame: what [`seal`] takes.
pub fn unseal(frame: &EncodedFrame) -> (u8, u32, Vec<u8>) {
    let (header, compressed) = frame.bytes().split_at(HEADER_BYTES);
    let tail = header[CHECKED_HEADER_BYTES - 4..CHECKED_HEADER_BYTES].try_into();
    let raw = zstd::bulk::decompress(compressed, frame.raw_bytes()).unwrap();
    (header[1], u32::from_le_bytes(tail.unwrap()), raw)
}

/// Reads all that a frame has, if it is one. Whoever receives it takes only what can be read to its end.
pub fn read_all(bytes: &[u8]) {
    let decoded = Frame::decode(bytes);
    let received = EncodedFrame::parse_both(Bytes::copy_from_slice(bytes));
    if let (Ok(frame), Ok((encoded, again))) = (&decoded, &received) {
        assert_eq!(frame.records(), again.records());
        assert_eq!(encoded.bytes(), bytes);
    }
    assert!(decoded.is_ok() || received.is_err());
    let Ok(frame) = decoded else { return };
    for (record, head) in frame.records().iter().enumerate() {
        let mut spans = 0;
        frame.visit_spans(record, &mut |_, _, _| spans += 1);
        assert_eq!(spans, frame.span_count(record));
        let is_read = !is_of_verdicts(head.kind) || frame.verdicts(record).is_ok();
        assert!(is_read || received.is_err());
        assert!(frame.find(head.shard, head.lsn).is_some());
    }
}

fn is_of_verdicts(kind: RecordKind) -> bool {
    matches!(kind, RecordKind::Verdicts | RecordKind::VerdictsAgain)
}
