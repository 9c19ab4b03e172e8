//! Varints and a reader that never runs past its bytes, for the journal's formats.

/// Appends `value` in base 128, least significant group first.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, value: u64) {
    put_varint_wide(out, u128::from(value));
}

/// As [`put_varint`], for 128 bits.
#[inline]
pub(crate) fn put_varint_wide(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push(low_seven_bits(value) | 0x80);
        value >>= 7;
    }
    out.push(low_seven_bits(value));
}

/// Appends a difference so that small ones of either sign are short. Differences wrap, so that every pair of numbers
/// has one.
#[inline]
pub(crate) fn put_difference(out: &mut Vec<u8>, from: u64, to: u64) {
    let difference = to.wrapping_sub(from).cast_signed();
    put_varint(
        out,
        ((difference << 1) ^ (difference >> 63)).cast_unsigned(),
    );
}

#[inline]
fn low_seven_bits(value: u128) -> u8 {
    (value & 0x7f) as u8 // masked to seven bits
}

/// Reads what the functions above wrote. Every method answers `None` at the end of the bytes and for bytes that
/// nobody wrote.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
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
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(crate) fn varint_wide(&mut self) -> Option<u128> {
        let mut value = 0;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            if shift == 126 && byte > 3 {
                return None;
            }
            value |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(crate) fn varint_u32(&mut self) -> Option<u32> {
        u32::try_from(self.varint()?).ok()
    }

    /// A number of things of which each takes at least `min_bytes`: so a false count cannot reserve memory beyond
    /// what the bytes could hold.
    pub(crate) fn count(&mut self, min_bytes: usize) -> Option<usize> {
        let count = usize::try_from(self.varint()?).ok()?;
        (count.checked_mul(min_bytes)? <= self.remaining()).then_some(count)
    }

    pub(crate) fn difference(&mut self, from: u64) -> Option<u64> {
        let coded = self.varint()?;
        let difference = (coded >> 1) ^ (coded & 1).wrapping_neg();
        Some(from.wrapping_add(difference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(a: u64, b: u64, wide: u128) {
            let mut out = Vec::new();
            put_varint(&mut out, a);
            put_difference(&mut out, a, b);
            put_varint_wide(&mut out, wide);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Some(a));
            prop_assert_eq!(reader.difference(a), Some(b));
            prop_assert_eq!(reader.varint_wide(), Some(wide));
            prop_assert_eq!(reader.remaining(), 0);
            prop_assert_eq!(reader.byte(), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.varint().is_some() {}
            let mut reader = Reader::new(&bytes);
            while reader.varint_wide().is_some() {}
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let mut too_long = vec![0xff; 9];
        too_long.push(2);
        assert_eq!(Reader::new(&too_long).varint(), None);
        assert_eq!(Reader::new(&[5]).count(6), None);
    }
}
