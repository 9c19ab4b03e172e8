//! Protobuf's wire format and the varints of our own formats, read without trust.

/// Wire types of protobuf.
pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const BYTES: u8 = 2;
pub(crate) const START_GROUP: u8 = 3;
pub(crate) const END_GROUP: u8 = 4;
pub(crate) const FIXED32: u8 = 5;

/// Deepest nesting of unknown groups that is skipped; prost's own limit.
const MAX_GROUP_DEPTH: u32 = 100;

/// A position in bytes. Every read gives `None` where the bytes end or are malformed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wire<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    /// A group, skipped.
    Group,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A varint in its shortest form; another form is `None`.
    #[inline]
    pub(crate) fn minimal_varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let before = self.at - 1;
        self.at = before;
        let value = self.varint()?;
        let last = *self.bytes.get(self.at - 1)?;
        // A last byte of zero adds nothing; ten bytes carry 70 bits, of which only 64 exist.
        (last != 0 && (self.at - before < 10 || last == 1)).then_some(value)
    }

    /// A varint in any form, as protobuf readers accept it: bits past the 64th are lost.
    #[inline]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A length in its shortest form and so many bytes.
    #[inline]
    pub(crate) fn minimal_bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.minimal_varint()?).ok()?;
        self.take(len)
    }

    /// A length and so many bytes.
    #[inline]
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        self.take(len)
    }

    /// The next field of a message, in any legal form.
    pub(crate) fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let number = tag >> 3;
        let value = match u8::try_from(tag & 7).ok()? {
            VARINT => Field::Varint(self.varint()?),
            FIXED64 => Field::Fixed64(self.u64()?),
            BYTES => Field::Bytes(self.bytes()?),
            FIXED32 => Field::Fixed32(self.array().map(u32::from_le_bytes)?),
            START_GROUP => {
                self.skip_group(number, MAX_GROUP_DEPTH)?;
                Field::Group
            }
            _ => return None,
        };
        Some((number, value))
    }

    fn skip_group(&mut self, number: u64, depth: u32) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        loop {
            let tag = self.varint()?;
            match u8::try_from(tag & 7).ok()? {
                END_GROUP => return (tag >> 3 == number).then_some(()),
                VARINT => drop(self.varint()?),
                FIXED64 => drop(self.take(8)?),
                BYTES => drop(self.bytes()?),
                FIXED32 => drop(self.take(4)?),
                START_GROUP => self.skip_group(tag >> 3, depth)?,
                _ => return None,
            }
        }
    }
}

/// Appends a varint.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // The mask leaves seven bits.
        #[allow(clippy::cast_possible_truncation)]
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    // The loop left seven bits.
    #[allow(clippy::cast_possible_truncation)]
    out.push(value as u8);
}

/// Appends the length of `bytes` and `bytes`.
#[inline]
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes of a varint.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Maps small numbers of either sign to small unsigned ones.
#[inline]
pub(crate) fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[inline]
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_and_long_forms_are_told_apart() {
        for value in [0, 1, 127, 128, 300, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_len(value));
            assert_eq!(Wire::new(&bytes).minimal_varint(), Some(value));
        }
        let long = [0x81, 0x80, 0x00];
        assert_eq!(Wire::new(&long).varint(), Some(1));
        assert_eq!(Wire::new(&long).minimal_varint(), None);
        assert_eq!(Wire::new(&[0xff; 11]).varint(), None);
        let mut overflowing = [0xff; 10];
        overflowing[9] = 0x03;
        assert_eq!(Wire::new(&overflowing).minimal_varint(), None);
    }

    #[test]
    fn zigzag_round_trips() {
        for value in [0, 1, -1, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
