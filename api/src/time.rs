//! Instants as the API writes and reads them.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use spandrel_model::ids::UnixNanos;

/// An instant that is written as RFC 3339 UTC with nine fractional digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub UnixNanos);

/// A text that is no instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 time or unix nanoseconds, got `{text}`")]
pub struct InvalidInstant {
    /// What was given, cut to 64 characters.
    pub text: String,
}

/// Parses RFC 3339, or unix nanoseconds in decimal.
///
/// # Errors
/// [`InvalidInstant`] for other text and for instants before 1970 or after 2554 (64 bits of nanoseconds).
pub fn parse_instant(text: &str) -> Result<UnixNanos, InvalidInstant> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let nanos = if digits {
        text.parse().ok()
    } else {
        text.parse::<Timestamp>()
            .ok()
            .and_then(|at| u64::try_from(at.as_nanosecond()).ok())
    };
    nanos.map(UnixNanos).ok_or_else(|| InvalidInstant {
        text: text.chars().take(64).collect(),
    })
}

/// RFC 3339 UTC with nine fractional digits.
#[must_use]
pub fn format_instant(at: UnixNanos) -> String {
    match Timestamp::from_nanosecond(i128::from(at.0)) {
        Ok(timestamp) => format!("{timestamp:.9}"),
        // Every u64 of nanoseconds lies in jiff's range (it ends in 9999); kept total all the same.
        Err(_) => at.0.to_string(),
    }
}

/// Now, by the machine's clock.
#[must_use]
#[allow(clippy::disallowed_methods)] // the edge's clock: default time ranges of questions; what is stored has the node's
pub fn now() -> UnixNanos {
    UnixNanos(u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0))
}

/// Nanoseconds as milliseconds with a fraction.
#[must_use]
pub fn nanos_to_ms(nanos: u64) -> f64 {
    // Exact up to 2^53 ns (104 days); beyond it the fraction of a millisecond is meaningless anyway.
    #[allow(clippy::cast_precision_loss)]
    let nanos = nanos as f64;
    nanos / 1e6
}

/// Milliseconds with a fraction as nanoseconds; `None` when negative, not finite, or past 64 bits.
#[must_use]
pub fn ms_to_nanos(ms: f64) -> Option<u64> {
    let nanos = (ms * 1e6).round();
    let legal = (0.0..1.8e19).contains(&nanos);
    // The range check above is the proof: within it the cast neither cuts nor changes the sign.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    legal.then_some(nanos as u64)
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_instant(self.0))
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_instant(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A duration with three significant digits.
#[must_use]
pub fn format_duration(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    if nanos < 1_000 {
        return format!("{sign}{nanos} ns");
    }
    let (unit, per) = match nanos {
        0..1_000_000 => ("µs", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        1_000_000_000..3_600_000_000_000 => ("s", 1_000_000_000),
        _ => ("h", 3_600_000_000_000),
    };
    let (whole, rest) = (nanos / per, nanos % per * 100 / per);
    match whole {
        0..10 => format!("{sign}{whole}.{rest:02} {unit}"),
        10..100 => format!("{sign}{whole}.{} {unit}", rest / 10),
        _ => format!("{sign}{whole} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_one_is_written() {
        let at = UnixNanos(1_700_000_000_123_456_789);
        assert_eq!(format_instant(at), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(parse_instant("1700000000123456789"), Ok(at));
        assert_eq!(parse_instant("2023-11-14T23:13:20.123456789+01:00"), Ok(at));
        for bad in [
            "",
            "now",
            "-1",
            "+5",
            "1960-01-01T00:00:00Z",
            "99999999999999999999",
            "2023-11-14",
        ] {
            assert!(parse_instant(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nanos: u64) {
            prop_assert_eq!(parse_instant(&format_instant(UnixNanos(nanos))), Ok(UnixNanos(nanos)));
        }

        #[test]
        fn milliseconds_come_back(nanos in 0..1u64 << 50) {
            prop_assert_eq!(ms_to_nanos(nanos_to_ms(nanos)), Some(nanos));
        }
    }

    #[test]
    fn durations_have_three_digits() {
        for (nanos, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_234, "1.23 µs"),
            (45_678_000, "45.6 ms"),
            (1_200_000_000, "1.20 s"),
            (-3_000_000, "-3.00 ms"),
            (7_200_000_000_000, "2.00 h"),
        ] {
            assert_eq!(format_duration(nanos), text);
        }
    }
}
