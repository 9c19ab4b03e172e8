//! The sampling threshold of OTEP 235: how a span tells its adjusted count.

use std::borrow::Cow;

use super::number;
use super::wire::{Reader, WireFault, put_bytes_field};

/// Sampling thresholds count in 2^-56.
const THRESHOLD_BITS: u32 = 56;
/// Probabilities come in 2^-32.
const CERTAIN: u64 = crate::verdict::CERTAIN;

/// The span as it is rendered: with `th` of the `ot` member of its `trace_state` set to the threshold for a trace that
/// was kept with this probability (in 2^-32). Unchanged when the probability is 1 (or more), or when the span is no
/// `Span` message or its `trace_state` no text.
///
/// A threshold that the client had set is kept in force: our decision does not depend on its randomness, so the
/// probabilities multiply, and with them the adjusted counts. Other members and subkeys stay; as W3C Trace Context
/// demands, the changed member moves to the front.
#[must_use]
pub fn with_sampling_threshold(span: &[u8], probability_2_32: u64) -> Cow<'_, [u8]> {
    if probability_2_32 >= CERTAIN {
        return Cow::Borrowed(span);
    }
    match rewritten(span, probability_2_32.max(1)) {
        Ok(Some(bytes)) => Cow::Owned(bytes),
        Ok(None) | Err(_) => Cow::Borrowed(span),
    }
}

fn rewritten(span: &[u8], probability: u64) -> Result<Option<Vec<u8>>, WireFault> {
    let mut out = Vec::with_capacity(span.len() + 32);
    let mut trace_state: &[u8] = &[];
    let mut rest = Reader::new(span, 0);
    while !rest.is_empty() {
        let before = rest.rest();
        match rest.field()? {
            (number::TRACE_STATE, field) => trace_state = field.bytes()?.rest(),
            _ => out.extend_from_slice(before.get(..before.len() - rest.len()).unwrap_or_default()),
        }
    }
    let Ok(trace_state) = std::str::from_utf8(trace_state) else {
        return Ok(None);
    };
    let trace_state = with_threshold(trace_state, probability);
    put_bytes_field(&mut out, number::TRACE_STATE, trace_state.as_bytes());
    Ok(Some(out))
}

/// `probability` is 1 to 2^32 - 1.
fn with_threshold(trace_state: &str, probability: u64) -> String {
    let member_value = |member: &str| {
        let (key, value) = member.split_once('=')?;
        (key.trim() == "ot").then(|| value.trim().to_owned())
    };
    let members = || {
        trace_state
            .split(',')
            .filter(|member| !member.trim().is_empty())
    };
    let ours = members().find_map(member_value).unwrap_or_default();
    let subkeys = || ours.split(';').filter(|subkey| !subkey.is_empty());
    let earlier = subkeys()
        .find_map(|subkey| parse_threshold(subkey.strip_prefix("th:")?))
        .unwrap_or(0);

    let mut text = format!("ot=th:{}", threshold_text(combined(earlier, probability)));
    for subkey in subkeys().filter(|subkey| !subkey.starts_with("th:")) {
        text.push(';');
        text.push_str(subkey);
    }
    for member in members().filter(|member| member_value(member).is_none()) {
        text.push(',');
        text.push_str(member.trim());
    }
    text
}

/// The threshold of two independent decisions in a row.
fn combined(earlier: u64, probability: u64) -> u64 {
    let all = 1_u64 << THRESHOLD_BITS;
    let accepted = u128::from(all - earlier.min(all - 1)) * u128::from(probability) >> 32;
    // Less than 2^56, as both factors are at most 1; at least 1, so that the threshold stays below 2^56.
    all - u64::try_from(accepted).unwrap_or(all).clamp(1, all)
}

/// 1 to 14 hexadecimal digits, zeros on the right left out.
fn parse_threshold(text: &str) -> Option<u64> {
    if !(1..=14).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(&format!("{text:0<14}"), 16).ok()
}

fn threshold_text(threshold: u64) -> String {
    let text = format!("{threshold:014x}");
    match text.trim_end_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message;

    const HALF: u64 = CERTAIN / 2;

    #[test]
    fn thresholds_are_set_and_multiplied() {
        for (before, probability, after) in [
            ("", HALF, "ot=th:8"),
            ("", CERTAIN / 100, "ot=th:fd70a3d8"),
            ("a=1, b=2", CERTAIN / 4, "ot=th:c,a=1,b=2"),
            (
                "a=1,ot=rv:abcdef;th:8,b=2",
                HALF,
                "ot=th:c;rv:abcdef,a=1,b=2",
            ),
            ("ot=th:zz", HALF, "ot=th:8"),
            ("ot=th:0", HALF, "ot=th:8"),
            ("other=th:8", HALF, "ot=th:8,other=th:8"),
            ("", 1, "ot=th:ffffffff"),
            ("ot=th:ffffffffffffff", 1, "ot=th:ffffffffffffff"),
        ] {
            assert_eq!(with_threshold(before, probability), after, "{before}");
        }
    }

    #[test]
    fn only_the_trace_state_of_a_span_changes() {
        let span = Span {
            trace_state: "a=1".to_owned(),
            name: "checkout".to_owned(),
            span_id: vec![1; 8],
            ..Span::default()
        };
        let bytes = span.encode_to_vec();
        let rendered = Span::decode(with_sampling_threshold(&bytes, HALF).as_ref()).unwrap();
        assert_eq!(
            rendered,
            Span {
                trace_state: "ot=th:8,a=1".to_owned(),
                ..span
            }
        );
        assert_eq!(with_sampling_threshold(&bytes, CERTAIN), bytes);
        assert_eq!(with_sampling_threshold(&[0xff], HALF).as_ref(), [0xff]);
    }
}
