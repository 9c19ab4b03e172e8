//! The names of things: traces, spans, tenants, shards, nodes, positions in the journal, points in time.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A W3C trace id: 16 bytes, not all zero. 8-byte ids of older clients are padded on the left at the edge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TraceId(pub [u8; 16]);

/// A W3C span id: 8 bytes. A span's own id is never all zero; a parent of all zeros means "no parent".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct SpanId(pub [u8; 8]);

impl SpanId {
    /// True when every byte is zero: the id of "no span".
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 8]
    }
}

/// An id that is not the hexadecimal text of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {digits} hexadecimal digits and not all zero, got `{text}`")]
pub struct InvalidId {
    /// What the id names: `trace id` or `span id`.
    pub what: &'static str,
    /// The accepted lengths, for people.
    pub digits: &'static str,
    /// What was given, cut to 64 characters.
    pub text: String,
}

fn hex_into(text: &str, out: &mut [u8]) -> Option<()> {
    if text.len() != out.len() * 2 {
        return None;
    }
    for (pair, byte) in text.as_bytes().chunks_exact(2).zip(out) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(())
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl FromStr for TraceId {
    type Err = InvalidId;

    /// Parses 32 hexadecimal digits; 16 are padded with zeros on the left.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut id = [0; 16];
        let parsed = match text.len() {
            16 => hex_into(text, &mut id[8..]),
            _ => hex_into(text, &mut id),
        };
        match parsed {
            Some(()) if id != [0; 16] => Ok(Self(id)),
            _ => Err(InvalidId {
                what: "trace id",
                digits: "32 (or 16)",
                text: text.chars().take(64).collect(),
            }),
        }
    }
}

impl FromStr for SpanId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut id = [0; 8];
        match hex_into(text, &mut id) {
            Some(()) if id != [0; 8] => Ok(Self(id)),
            _ => Err(InvalidId {
                what: "span id",
                digits: "16",
                text: text.chars().take(64).collect(),
            }),
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// A tenant's name: 1 to 64 characters of `[A-Za-z0-9_.-]`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// A tenant's name that the rule of [`TenantId`] refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tenant must be 1 to 64 characters of [A-Za-z0-9_.-], got `{text}`")]
pub struct InvalidTenant {
    /// What was given, cut to 64 characters.
    pub text: String,
}

impl TenantId {
    /// The tenant of requests that name none.
    pub const DEFAULT: &'static str = "default";

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TenantId {
    fn default() -> Self {
        Self(Arc::from(Self::DEFAULT))
    }
}

impl FromStr for TenantId {
    type Err = InvalidTenant;

    fn from_str(text: &str) -> Result<Self, InvalidTenant> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if (1..=64).contains(&text.len()) && text.chars().all(legal) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(InvalidTenant {
                text: text.chars().take(64).collect(),
            })
        }
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenant;

    fn try_from(text: String) -> Result<Self, InvalidTenant> {
        text.parse()
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.0.as_ref().to_owned()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of the cluster's shards, 0 to 4095. A shard owns the traces whose keyed hash falls on it.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct ShardId(pub u16);

/// A node of the cluster. Ids are given by the cluster and never reused.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct NodeId(pub u64);

/// The term of a shard: counts its primaries. Starts at 1.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Term(pub u64);

impl Term {
    /// The last term of a shard: a term begins with a primary, and a million primaries are more than a cluster sees.
    pub const LAST: Self = Self(1 << 20);

    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Log sequence number of a record within its shard, given by the shard's primary. The upper 20 bits count the terms
/// before the primary's own, the lower 44 its records from 1 on: dense within a term, ascending over terms. So a record
/// that a primary of an earlier term left behind never has the number of another one (decision 11).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bits of a number that count the records of one term: 55 years at 10,000 records a second.
    const RECORD_BITS: u32 = 44;

    /// Marks the number of a fragment that was copied from another node.
    const COPIED: u64 = 1 << 43;
    /// Bits of a number that count the records of one term as far as fragments of it can be copied: four centuries at
    /// ten records a second, five months at 10,000.
    const COPYABLE_BITS: u32 = 37;
    /// Which node a copy is from: its id, as far as six bits tell.
    const SOURCES: u64 = 0x3f;

    /// The number under which a fragment of node `from` stands in the block of another one: nodes give the same number
    /// to fragments with different spans, since each builds its own pages. A copy of a copy keeps its number. `None`
    /// when the term has too many records.
    #[must_use]
    pub fn copied_from(self, from: NodeId) -> Option<Self> {
        let count = self.0 & ((1 << Self::RECORD_BITS) - 1);
        if self.is_copied() {
            return Some(self);
        }
        let source = (from.0 & Self::SOURCES) << Self::COPYABLE_BITS;
        (count >> Self::COPYABLE_BITS == 0).then_some(Self(self.0 | Self::COPIED | source))
    }

    /// Whether it stands for a fragment that was copied from another node.
    #[must_use]
    pub fn is_copied(self) -> bool {
        self.0 & Self::COPIED != 0
    }

    /// Of two fragments of one trace, the one with the greater age is the newer one, whether they were written here or
    /// copied.
    #[must_use]
    pub fn age(self) -> (u64, u64) {
        let marks = Self::COPIED | (Self::SOURCES << Self::COPYABLE_BITS);
        let plain = if self.is_copied() {
            self.0 & !marks
        } else {
            self.0
        };
        (plain, self.0)
    }

    /// How many records lie behind `earlier` up to this one, at least: of earlier terms it is not known how many they had.
    #[must_use]
    pub fn records_since(self, earlier: Self) -> u64 {
        self.0
            .saturating_sub(earlier.max(Self::before_term(self.term())).0)
    }

    /// The number after this one, of the same term.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number before the first one of a term.
    #[must_use]
    pub fn before_term(term: Term) -> Self {
        Self(term.0.saturating_sub(1).min(Term::LAST.0 - 1) << Self::RECORD_BITS)
    }

    /// The term whose primary gave it.
    #[must_use]
    pub fn term(self) -> Term {
        Term((self.0 >> Self::RECORD_BITS) + 1)
    }

    /// Whether a record of this number can stand right behind `before` in a log: the next one, or the first one of a
    /// later term.
    #[must_use]
    pub fn can_follow(self, before: Self) -> bool {
        self == before.next() || (self > before && self == Self::before_term(self.term()).next())
    }
}

/// Nanoseconds since the Unix epoch, UTC, as OTLP counts them.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    /// Nanoseconds in a millisecond.
    pub const PER_MILLI: u64 = 1_000_000;
    /// Nanoseconds in a second.
    pub const PER_SECOND: u64 = 1_000_000_000;

    /// Nanoseconds from `earlier` to `self`, 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This instant plus `nanos`, saturating.
    #[must_use]
    pub fn plus(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// This instant minus `nanos`, saturating at the epoch.
    #[must_use]
    pub fn minus(self, nanos: u64) -> Self {
        Self(self.0.saturating_sub(nanos))
    }
}

/// A time bucket of block files: the whole periods (1 h by default) since the Unix epoch, by the clock of the
/// shard's primary at the trace's first record. Client clocks cannot open or expire a bucket.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Bucket(pub u32);

impl Bucket {
    /// The bucket that `at` falls into when each is `period_nanos` long. Saturates at the last bucket.
    #[must_use]
    pub fn containing(at: UnixNanos, period_nanos: u64) -> Self {
        Self(u32::try_from(at.0 / period_nanos.max(1)).unwrap_or(u32::MAX))
    }

    /// First instant of the bucket.
    #[must_use]
    pub fn start(self, period_nanos: u64) -> UnixNanos {
        UnixNanos(u64::from(self.0).saturating_mul(period_nanos))
    }

    /// First instant after the bucket.
    #[must_use]
    pub fn end(self, period_nanos: u64) -> UnixNanos {
        self.start(period_nanos).plus(period_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids_parse_pad_and_refuse() {
        let id: TraceId = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
        let padded: TraceId = "08090a0b0c0d0e0f".parse().unwrap();
        assert_eq!(padded.to_string(), "000000000000000008090a0b0c0d0e0f");
        for bad in [
            "",
            "0",
            "zz",
            &"0".repeat(32),
            &"1".repeat(31),
            "+1020304050607ff",
        ] {
            assert!(bad.parse::<TraceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_copy_is_as_old_as_its_original() {
        let term = Lsn::before_term(Term(7));
        let (early, late) = (Lsn(term.0 + 3), Lsn(term.0 + 4));
        let copy = early.copied_from(NodeId(2)).unwrap();
        assert_ne!(copy, early.copied_from(NodeId(3)).unwrap());
        assert_eq!(copy.copied_from(NodeId(3)), Some(copy), "of a copy");
        assert_eq!(copy.term(), Term(7));
        assert!(copy > late, "by its number");
        assert!(early.age() < copy.age() && copy.age() < late.age());
        assert_eq!(Lsn(term.0 + (1 << 37)).copied_from(NodeId(2)), None);
    }

    #[test]
    fn records_of_earlier_terms_are_not_counted() {
        let before = Lsn::before_term(Term(7));
        let at = |number| Lsn(before.0 + number);
        assert_eq!(at(9).records_since(at(2)), 7);
        assert_eq!(at(9).records_since(Lsn::before_term(Term(3))), 9);
        assert_eq!(at(2).records_since(at(9)), 0);
    }

    #[test]
    fn tenants_keep_to_their_alphabet() {
        assert!("team-a_1.x".parse::<TenantId>().is_ok());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }
}
