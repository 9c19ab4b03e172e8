//! Writes protobuf by hand, because only a hand knows at which byte an id or a time ended up.

/// Wire type of a varint.
const VARINT: u64 = 0;
/// Wire type of eight bytes.
const FIXED64: u64 = 1;
/// Wire type of bytes with a length before them.
const DELIMITED: u64 = 2;
/// Wire type of four bytes.
const FIXED32: u64 = 5;

/// Bytes that a varint takes.
pub(super) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // The mask leaves seven bits, so that the cast loses nothing.
        #[allow(clippy::cast_possible_truncation)]
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    #[allow(clippy::cast_possible_truncation)]
    out.push(value as u8);
}

/// Appends a varint field.
pub(super) fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3 | VARINT);
    put_varint(out, value);
}

/// Appends a `fixed64` field and returns the position of its eight bytes.
pub(super) fn put_fixed64(out: &mut Vec<u8>, field: u64, value: u64) -> usize {
    put_varint(out, field << 3 | FIXED64);
    let at = out.len();
    out.extend_from_slice(&value.to_le_bytes());
    at
}

/// Appends a `fixed32` field.
pub(super) fn put_fixed32(out: &mut Vec<u8>, field: u64, value: u32) {
    put_varint(out, field << 3 | FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends tag and length of a field whose `length` bytes follow.
pub(super) fn put_head(out: &mut Vec<u8>, field: u64, length: usize) {
    put_varint(out, field << 3 | DELIMITED);
    put_varint(out, length as u64);
}

/// Appends a bytes, text or message field and returns the position of its first byte.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) -> usize {
    put_head(out, field, bytes.len());
    let at = out.len();
    out.extend_from_slice(bytes);
    at
}

/// Bytes that a delimited field of `length` bytes takes, for fields 1 to 15.
pub(super) fn delimited_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_predicted_length_of_a_varint_is_the_written_one() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(prost::encoding::encoded_len_varint(value), out.len());
        }
    }
}
