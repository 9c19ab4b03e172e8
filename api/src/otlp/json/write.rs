//! Protobuf to JSON: stored spans as OTLP JSON, one `ResourceSpans` after the other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::encoding::decode_varint;
use serde::Serialize;

use super::schema::{Field, Kind, RESOURCE_SPANS, Schema};
use crate::dto::TraceHead;
use crate::limits::MAX_RENDER_DEPTH;

/// Renders the pieces of a `TracesData` as the elements of one JSON array.
#[derive(Debug, Default)]
pub(crate) struct RenderedTraces {
    any: bool,
}

impl RenderedTraces {
    /// The elements of one piece, with the comma that parts them from those before. Bytes that are no protobuf end
    /// the message that they are in; a text that is no UTF-8 is shown with replacement characters.
    pub(crate) fn piece(&mut self, traces_data: &[u8]) -> Vec<u8> {
        // JSON is about twice as long as protobuf.
        let mut out = Vec::with_capacity(traces_data.len() * 2);
        for (number, value) in WireFields(traces_data) {
            let (1, WireValue::Bytes(message)) = (number, value) else {
                continue;
            };
            if self.any {
                out.push(b',');
            }
            self.any = true;
            write_message(&RESOURCE_SPANS, message, &mut out, 1);
        }
        out
    }
}

/// The document of `GET /v1/traces/{traceId}` at once, for the client.
pub(crate) fn trace_document(head: &TraceHead, traces_data: &[u8]) -> String {
    let mut out = trace_document_start(head);
    out.extend_from_slice(&RenderedTraces::default().piece(traces_data));
    out.extend_from_slice(TRACE_DOCUMENT_END);
    // All of it was written by serde_json or from text: nothing is replaced.
    String::from_utf8_lossy(&out).into_owned()
}

/// What comes before the elements of `resourceSpans`.
pub(crate) fn trace_document_start(head: &TraceHead) -> Vec<u8> {
    let mut out = Vec::new();
    write_json(head, &mut out);
    out.pop(); // the closing brace: the spans follow
    out.extend_from_slice(b",\"trace\":{\"resourceSpans\":[");
    out
}

/// What comes after them.
pub(crate) const TRACE_DOCUMENT_END: &[u8] = b"]}}";

#[derive(Clone, Copy)]
enum WireValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message in the order of its bytes; ends at the first byte that makes no sense.
struct WireFields<'a>(&'a [u8]);

impl<'a> Iterator for WireFields<'a> {
    type Item = (u32, WireValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = decode_varint(&mut self.0).ok()?;
        let number = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            0 => WireValue::Number(decode_varint(&mut self.0).ok()?),
            1 => WireValue::Number(u64::from_le_bytes(*self.take_array()?)),
            2 => {
                let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                let (value, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                WireValue::Bytes(value)
            }
            5 => WireValue::Number(u64::from(u32::from_le_bytes(*self.take_array()?))),
            _ => return None,
        };
        Some((number, value))
    }
}

impl<'a> WireFields<'a> {
    fn take_array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(value)
    }
}

fn write_message(schema: &Schema, message: &[u8], out: &mut Vec<u8>, depth: usize) {
    if depth > MAX_RENDER_DEPTH {
        out.extend_from_slice(b"{}");
        return;
    }
    // Which fields occur: each one that does costs one walk over the message, so that nothing is collected.
    let mut present = 0_u32;
    let mut last = None;
    for (number, _) in WireFields(message).filter(|(number, _)| *number < 32) {
        present |= 1 << number;
        last = Some(number);
    }
    out.push(b'{');
    let mut first = true;
    for field in schema.fields {
        let occurs = present & (1 << field.number) != 0;
        // Of the fields that exclude each other the last one counts.
        let excluded = schema.oneof && last != Some(field.number);
        if excluded || !(occurs || field.always) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write_json(field.name, out);
        out.push(b':');
        let mut values = WireFields(message)
            .filter(|(number, _)| *number == field.number)
            .map(|(_, value)| value);
        if field.repeated {
            out.push(b'[');
            for (index, value) in values.enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(field, value, out, depth);
            }
            out.push(b']');
        } else {
            let value = values.next_back_or_empty();
            write_value(field, value, out, depth);
        }
    }
    out.push(b'}');
}

/// The last of several values counts for a single field (protobuf, "Last One Wins").
trait LastValue<'a> {
    fn next_back_or_empty(&mut self) -> WireValue<'a>;
}

impl<'a, I: Iterator<Item = WireValue<'a>>> LastValue<'a> for I {
    fn next_back_or_empty(&mut self) -> WireValue<'a> {
        self.last().unwrap_or(WireValue::Bytes(&[]))
    }
}

fn write_value(field: &Field, value: WireValue<'_>, out: &mut Vec<u8>, depth: usize) {
    let bytes = match value {
        WireValue::Bytes(bytes) => bytes,
        WireValue::Number(_) => &[],
    };
    let number = match value {
        WireValue::Number(number) => number,
        WireValue::Bytes(_) => 0,
    };
    match field.kind {
        Kind::Text => write_json(String::from_utf8_lossy(bytes).as_ref(), out),
        Kind::Hex => {
            out.push(b'"');
            for byte in bytes {
                for digit in [byte >> 4, byte & 15] {
                    out.push(if digit < 10 { b'0' + digit } else { b'a' - 10 + digit });
                }
            }
            out.push(b'"');
        }
        Kind::Base64 => write_json(&STANDARD.encode(bytes), out),
        Kind::Fixed64 => write_json(&number.to_string(), out),
        Kind::Int64 => write_json(&number.cast_signed().to_string(), out),
        Kind::Uint32 | Kind::Fixed32 => write_json(&(number & u64::from(u32::MAX)), out),
        // An enum is an int32, sign-extended to 64 bits on the wire.
        Kind::Enum(_) => write_json(&number.cast_signed(), out),
        Kind::Bool => write_json(&(number != 0), out),
        Kind::Double => match f64::from_bits(number) {
            value if value.is_nan() => write_json("NaN", out),
            f64::INFINITY => write_json("Infinity", out),
            f64::NEG_INFINITY => write_json("-Infinity", out),
            value => write_json(&value, out),
        },
        Kind::Message(schema) => write_message(schema, bytes, out, depth + 1),
    }
}

fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Writing to memory cannot fail, and our values are all JSON can hold.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}
