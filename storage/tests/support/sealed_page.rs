//! Pages whose checksums are right, whatever they hold. Beside the tests, the fuzz target `page` uses them.
//!
//! An open page is a page without its lengths, checksums and compression: a byte, the number of its groups; for each of
//! them two bytes of length and its columns; a byte of length and the counts of the head; and the head's list of columns.

use bytes::Bytes;
use spandrel_model::batch::StatusCode;
use spandrel_model::search::{SpanCondition, TagCondition};
use spandrel_storage::page::{PageCondition, PageError, PageReader};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Bytes before the head.
const PREFIX_BYTES: usize = 24;

/// Makes a page of an open one; what is missing is empty.
pub fn seal(open: &[u8]) -> Bytes {
    let mut rest = open;
    let [count] = take_array(&mut rest);
    let mut groups = Vec::new();
    for _ in 0..count {
        let len = u16::from_le_bytes(take_array(&mut rest));
        groups.push(take(&mut rest, usize::from(len)));
    }
    let [len] = take_array(&mut rest);
    let mut head = take(&mut rest, usize::from(len)).to_vec();
    put_varint(&mut head, groups.len());
    for group in &groups {
        head.push(0);
        put_varint(&mut head, group.len());
        put_varint(&mut head, group.len());
        head.extend(xxh3_64(group).to_le_bytes());
    }
    head.extend(rest);
    let stored = zstd::bulk::compress(&head, 1).unwrap();
    let mut page = b"SPPG\x01\0\0\0".to_vec();
    page.extend(u32::try_from(stored.len()).unwrap().to_le_bytes());
    page.extend(u32::try_from(head.len()).unwrap().to_le_bytes());
    let mut checksum = Xxh3::new();
    checksum.update(&page);
    checksum.update(&stored);
    page.extend(checksum.digest().to_le_bytes());
    page.extend(stored);
    page.extend(groups.concat());
    page.into()
}

/// Opens a page that this program has written.
pub fn open(page: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let bytes = page[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_le_bytes(bytes)).unwrap()
    };
    let (stored_len, raw_len) = (number(8), number(12));
    let groups_at = PREFIX_BYTES + stored_len;
    let head = zstd::bulk::decompress(&page[PREFIX_BYTES..groups_at], raw_len).unwrap();
    let mut rest = head.as_slice();
    take_varint(&mut rest);
    take_varint(&mut rest);
    let counts_len = head.len() - rest.len() + 16;
    let (counts, mut rest) = head.split_at(counts_len);
    let count = take_varint(&mut rest);
    let mut open = vec![u8::try_from(count).unwrap()];
    let mut at = groups_at;
    for _ in 0..count {
        let [method] = take_array(&mut rest);
        let (stored, raw) = (take_varint(&mut rest), take_varint(&mut rest));
        take(&mut rest, 8);
        let bytes = &page[at..at + stored];
        at += stored;
        let group = match method {
            0 => bytes.to_vec(),
            _ => zstd::bulk::decompress(bytes, raw).unwrap(),
        };
        open.extend(u16::try_from(group.len()).unwrap().to_le_bytes());
        open.extend(group);
    }
    open.push(u8::try_from(counts.len()).unwrap());
    open.extend(counts);
    open.extend(rest);
    open
}

/// Reads all that a page has, as far as it is one. Returns how many spans it has.
///
/// # Errors
/// The first part that is corrupt.
pub fn read_all(page: &Bytes) -> Result<usize, PageError> {
    let mut reader = PageReader::open(page)?;
    let every: Vec<u32> = (0..reader.span_count()).collect();
    // Whatever one part says, the others are read too.
    let ids = reader.span_ids(&every);
    let keys = reader.attribute_keys();
    for key in keys.iter().flatten() {
        let _ = reader.attribute_texts(key, &mut |_, _| true);
    }
    let filter = SpanCondition {
        service: None,
        operation: Some("a".to_owned()),
        status: Some(StatusCode::Error),
        tags: vec![TagCondition {
            key: keys.iter().flatten().next().cloned().unwrap_or_default(),
            value: "1".to_owned(),
        }],
    };
    let condition = PageCondition::new(&filter);
    let resource = condition.match_resource(b"");
    let _ = reader.matching_rows(&condition, &mut |_| Ok(resource.clone()));
    let mut spans = 0;
    for fragment in reader.fragments()? {
        reader.contexts_of(&fragment)?;
        reader.visit(&fragment, &mut |_| spans += 1)?;
    }
    assert_eq!(spans, every.len());
    assert_eq!(ids?.len(), every.len());
    Ok(spans)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(len.min(rest.len()));
    *rest = left;
    taken
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut array = [0; N];
    let taken = take(rest, N);
    array[..taken.len()].copy_from_slice(taken);
    array
}

fn take_varint(rest: &mut &[u8]) -> usize {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let [byte] = take_array(rest);
        value |= usize::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7F).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}
