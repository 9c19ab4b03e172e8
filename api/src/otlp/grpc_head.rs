//! What the headers of a gRPC export say.

use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::unfold::{ACCEPTED, Encoding};
use crate::error::ApiError;
use crate::limits::{DEFAULT_EXPORT_DEADLINE_MS, MAX_EXPORT_DEADLINE_MS};

/// The headers, parsed.
pub(super) struct GrpcHead {
    pub(super) encoding: Encoding,
}

impl GrpcHead {
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let content_type = headers
            .get(CONTENT_TYPE)
            .map_or(&b""[..], |value| value.as_bytes());
        let (kind, _) = split_once(content_type, b';');
        if !matches!(kind, b"application/grpc" | b"application/grpc+proto") {
            let message = "the content type must be application/grpc";
            return Err(ApiError::unsupported("content-type", message));
        }
        let encoding = Encoding::parse(headers.get("grpc-encoding").map(|value| value.as_bytes()));
        let encoding = encoding.ok_or_else(|| {
            let message = format!("grpc-encoding must be one of {ACCEPTED}");
            ApiError::unsupported("grpc-encoding", message)
        })?;
        Ok(Self { encoding })
    }
}

fn split_once(text: &[u8], at: u8) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|byte| *byte == at)
        .unwrap_or(text.len());
    let (head, tail) = text.split_at(end);
    (head.trim_ascii(), tail)
}

/// The deadline of `grpc-timeout` (at most eight digits and a unit), ours when there is none or it makes no sense.
pub(super) fn deadline(headers: &HeaderMap) -> Duration {
    headers
        .get("grpc-timeout")
        .and_then(|value| parse_timeout(value.to_str().ok()?))
        .unwrap_or(Duration::from_millis(DEFAULT_EXPORT_DEADLINE_MS))
        .min(Duration::from_millis(MAX_EXPORT_DEADLINE_MS))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_a_unit() {
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for bad in ["", "m", "5", "-5m", "123456789m", "5x", "5é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
