//! The protobuf wire format, read from untrusted bytes: keys, varints, lengths, groups. Written like prost's own
//! decoder, so that both accept and refuse the same bytes.

use crate::batch::Slice;

/// Deepest nesting of unknown groups that is skipped. prost stops at 100 levels of messages and groups together;
/// with values at their deepest this stays below that.
pub(super) const MAX_GROUP_DEPTH: usize = 16;

/// Why bytes are no protobuf message of the expected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireFault {
    /// A field ends after its message does.
    #[error("a field is cut off")]
    Truncated,
    /// A varint is longer than 10 bytes or larger than 64 bits.
    #[error("a varint is longer than 64 bits")]
    InvalidVarint,
    /// A field key has number 0, more than 32 bits or a wire type that does not exist.
    #[error("a field key is invalid")]
    InvalidKey,
    /// A field that OTLP defines has another wire type.
    #[error("a field has the wrong wire type")]
    WrongWireType,
    /// A group ends that did not begin, or under another number.
    #[error("a group does not end where it should")]
    UnmatchedGroup,
    /// Groups or attribute values are nested deeper than their limit.
    #[error("values or groups are nested too deep")]
    TooDeep,
}

/// The content of one field.
#[derive(Clone, Copy)]
pub(super) enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(Reader<'a>),
    /// Wire types 3 and 4, skipped as a whole: no OTLP message has a group.
    Group,
    /// Wire type 5.
    Fixed32(u32),
}

impl<'a> Field<'a> {
    /// The content of a string, bytes or message field.
    #[inline(always)]
    pub(super) fn bytes(self) -> Result<Reader<'a>, WireFault> {
        match self {
            Self::Bytes(content) => Ok(content),
            _ => Err(WireFault::WrongWireType),
        }
    }

    /// The content of an integer, boolean or enum field.
    #[inline(always)]
    pub(super) fn varint(self) -> Result<u64, WireFault> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(WireFault::WrongWireType),
        }
    }

    /// The content of a `fixed64` or `double` field.
    #[inline(always)]
    pub(super) fn fixed64(self) -> Result<u64, WireFault> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err(WireFault::WrongWireType),
        }
    }

    /// The content of a `fixed32` field.
    #[inline(always)]
    pub(super) fn fixed32(self) -> Result<u32, WireFault> {
        match self {
            Self::Fixed32(value) => Ok(value),
            _ => Err(WireFault::WrongWireType),
        }
    }
}

/// The unread rest of a message, which knows where in the whole buffer it lies.
///
/// Invariant: `rest` ends at offset `end` of the buffer.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    end: usize,
}

impl<'a> Reader<'a> {
    /// A reader of `message`, whose first byte has the offset `offset` in its buffer.
    #[inline]
    pub(super) fn new(message: &'a [u8], offset: usize) -> Self {
        Self {
            rest: message,
            end: offset.saturating_add(message.len()),
        }
    }

    /// What is not read yet.
    #[inline(always)]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Bytes that are not read yet.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    /// True when everything is read.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Where the rest lies in the buffer. Buffers are smaller than 4 GiB, which each entry point checks.
    #[inline]
    pub(super) fn slice(&self) -> Slice {
        let offset = self.end.saturating_sub(self.rest.len());
        Slice {
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            len: u32::try_from(self.rest.len()).unwrap_or(0),
        }
    }

    /// Reads the next field.
    #[inline(always)]
    pub(super) fn field(&mut self) -> Result<(u32, Field<'a>), WireFault> {
        let key = self.varint()?;
        let number = u32::try_from(key).map_err(|_| WireFault::InvalidKey)? >> 3;
        if number == 0 {
            return Err(WireFault::InvalidKey);
        }
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => Field::Bytes(self.delimited()?),
            5 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
            3 => {
                self.skip_group(number)?;
                Field::Group
            }
            4 => return Err(WireFault::UnmatchedGroup),
            _ => return Err(WireFault::InvalidKey),
        };
        Ok((number, field))
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, WireFault> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, WireFault> {
        let mut value = 0_u64;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            // The tenth byte holds the 64th bit only.
            if index == 9 && byte > 1 {
                return Err(WireFault::InvalidVarint);
            }
            value |= u64::from(byte & 0x7f) << (index * 7);
            if byte < 0x80 {
                self.rest = self.rest.get(index + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(WireFault::Truncated)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireFault> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(WireFault::Truncated)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline(always)]
    fn delimited(&mut self) -> Result<Reader<'a>, WireFault> {
        let len = usize::try_from(self.varint()?).map_err(|_| WireFault::Truncated)?;
        let (content, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(WireFault::Truncated)?;
        self.rest = rest;
        Ok(Reader {
            rest: content,
            end: self.end.saturating_sub(rest.len()),
        })
    }

    /// Skips the rest of a group. The numbers of the groups that are open are kept here, not on the call stack.
    #[cold]
    fn skip_group(&mut self, number: u32) -> Result<(), WireFault> {
        let mut open = [0_u32; MAX_GROUP_DEPTH];
        open[0] = number;
        let mut depth = 1_usize;
        while let Some(innermost) = depth.checked_sub(1) {
            let key = self.varint()?;
            let number = u32::try_from(key).map_err(|_| WireFault::InvalidKey)? >> 3;
            if number == 0 {
                return Err(WireFault::InvalidKey);
            }
            match key & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.array::<8>()?),
                2 => drop(self.delimited()?),
                5 => drop(self.array::<4>()?),
                3 => {
                    *open.get_mut(depth).ok_or(WireFault::TooDeep)? = number;
                    depth += 1;
                }
                4 if open.get(innermost) == Some(&number) => depth = innermost,
                4 => return Err(WireFault::UnmatchedGroup),
                _ => return Err(WireFault::InvalidKey),
            }
        }
        Ok(())
    }
}

/// The lower 32 bits as a signed number: what protobuf makes of an `int32` or enum varint.
#[inline]
pub(super) fn low_i32(value: u64) -> i32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

/// The lower 32 bits: what protobuf makes of a `uint32` varint.
#[inline]
pub(super) fn low_u32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.push(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.push(low);
}

/// Appends a varint field.
pub(super) fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

/// Appends a string, bytes or message field.
pub(super) fn put_bytes_field(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// Bytes that a string, bytes or message field with a number below 16 takes.
pub(super) fn bytes_field_len(content_len: usize) -> usize {
    let bits = usize::BITS - (content_len | 1).leading_zeros();
    1 + bits.div_ceil(7) as usize + content_len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_varint(bytes: &[u8]) -> Result<u64, WireFault> {
        Reader::new(bytes, 0).varint()
    }

    proptest! {
        #[test]
        fn varints_are_read_as_prost_reads_them(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let ours = read_varint(&bytes).ok();
            let theirs = prost::encoding::decode_varint(&mut bytes.as_slice()).ok();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn varints_round_trip(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(read_varint(&bytes), Ok(value));
        }

        #[test]
        fn field_lengths_are_foretold(len in 0_usize..40_000) {
            let mut bytes = Vec::new();
            put_bytes_field(&mut bytes, 2, &vec![0; len]);
            prop_assert_eq!(bytes.len(), bytes_field_len(len));
        }
    }

    #[test]
    fn groups_are_skipped_to_their_limit() {
        for (depth, expected) in [
            (1, Ok(())),
            (MAX_GROUP_DEPTH, Ok(())),
            (MAX_GROUP_DEPTH + 1, Err(WireFault::TooDeep)),
        ] {
            let mut bytes = vec![0x13; depth];
            bytes.extend(vec![0x14; depth]);
            let mut reader = Reader::new(&bytes, 0);
            assert_eq!(reader.field().map(drop), expected, "{depth}");
        }
        assert_eq!(
            Reader::new(&[0x13, 0x1c], 0).field().map(drop),
            Err(WireFault::UnmatchedGroup)
        );
    }
}
