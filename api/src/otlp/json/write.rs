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
            write_message(&RESOURCE_SPANS, Message::Whole(message), &mut out, 1);
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

/// The fields of a message in the order of its bytes, without groups, which no message of OTLP has; ends at the first
/// byte that makes no sense.
struct WireFields<'a>(&'a [u8]);

impl<'a> Iterator for WireFields<'a> {
    type Item = (u32, WireValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut groups = 0_usize;
        loop {
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
                3 => {
                    groups += 1;
                    continue;
                }
                4 => {
                    groups = groups.checked_sub(1)?;
                    continue;
                }
                5 => WireValue::Number(u64::from(u32::from_le_bytes(*self.take_array()?))),
                _ => return None,
            };
            if groups == 0 {
                return Some((number, value));
            }
        }
    }
}

impl<'a> WireFields<'a> {
    fn take_array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(value)
    }
}

/// A message that came once, or in parts: protobuf merges them, which is to read them one after the other. They are
/// found again in each walk and never collected, so that many parts cost no memory.
#[derive(Clone, Copy)]
enum Message<'a, 'p> {
    Whole(&'a [u8]),
    Parts {
        of: &'p Message<'a, 'p>,
        number: u32,
        /// Parts before these, which another choice replaced.
        skip: u32,
    },
}

impl<'a> Message<'a, '_> {
    fn walk(&self, visit: &mut dyn FnMut(u32, WireValue<'a>)) {
        match *self {
            Self::Whole(bytes) => {
                WireFields(bytes).for_each(|(number, value)| visit(number, value));
            }
            Self::Parts { of, number, skip } => {
                let mut part = 0;
                of.walk(&mut |found, value| {
                    if found != number {
                        return;
                    }
                    part += 1;
                    if let (true, WireValue::Bytes(bytes)) = (part > skip, value) {
                        WireFields(bytes).for_each(|(number, value)| visit(number, value));
                    }
                });
            }
        }
    }
}

/// How often a field occurs in a message.
#[derive(Clone, Copy, Default)]
struct Occurrences {
    count: u32,
    /// Those that a field which excludes this one replaced.
    replaced: u32,
}

/// Where the numbers of our messages end.
const FIELD_NUMBERS: usize = 32;
/// A choice of `AnyValue` that is not shown: an index into a table that traces do not have. It replaces the others.
const HIDDEN_CHOICE: u32 = 8;

fn write_message(schema: &Schema, message: Message<'_, '_>, out: &mut Vec<u8>, depth: usize) {
    if depth > MAX_RENDER_DEPTH {
        out.extend_from_slice(b"{}");
        return;
    }
    // Each field that occurs costs one walk over the message, so that nothing is collected.
    let mut occurrences = [Occurrences::default(); FIELD_NUMBERS];
    let mut choice = None;
    message.walk(&mut |number, _| {
        let chooses = |number| {
            number == HIDDEN_CHOICE || schema.fields.iter().any(|field| field.number == number)
        };
        if schema.oneof && choice != Some(number) && chooses(number) {
            // Of the fields that exclude each other the last one counts.
            choice = Some(number);
            if let Some(field) = occurrences.get_mut(number as usize) {
                field.replaced = field.count;
            }
        }
        if let Some(field) = occurrences.get_mut(number as usize) {
            field.count = field.count.saturating_add(1);
        }
    });
    out.push(b'{');
    let mut first = true;
    for field in schema.fields {
        let Some(&found) = occurrences.get(field.number as usize) else {
            continue;
        };
        let excluded = schema.oneof && choice != Some(field.number);
        if excluded || !(found.count > 0 || field.always) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write_json(field.name, out);
        out.push(b':');
        if field.repeated {
            write_array(field, message, out, depth);
        } else {
            write_single(field, message, found, out, depth);
        }
    }
    out.push(b'}');
}

fn write_array(field: &Field, message: Message<'_, '_>, out: &mut Vec<u8>, depth: usize) {
    out.push(b'[');
    let mut first = true;
    message.walk(&mut |number, value| {
        if number != field.number {
            return;
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write_value(field, value, out, depth);
    });
    out.push(b']');
}

/// The last of several values counts, and messages are merged (protobuf, "Last One Wins").
fn write_single(
    field: &Field,
    message: Message<'_, '_>,
    found: Occurrences,
    out: &mut Vec<u8>,
    depth: usize,
) {
    if let (Kind::Message(schema), true) = (field.kind, found.count > found.replaced + 1) {
        let parts = Message::Parts {
            of: &message,
            number: field.number,
            skip: found.replaced,
        };
        return write_message(schema, parts, out, depth + 1);
    }
    let mut last = WireValue::Bytes(&[]);
    message.walk(&mut |number, value| {
        if number == field.number {
            last = value;
        }
    });
    write_value(field, last, out, depth);
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
                    out.push(if digit < 10 {
                        b'0' + digit
                    } else {
                        b'a' - 10 + digit
                    });
                }
            }
            out.push(b'"');
        }
        Kind::Base64 => write_json(&STANDARD.encode(bytes), out),
        Kind::Fixed64 => write_json(&number.to_string(), out),
        Kind::Int64 => write_json(&number.cast_signed().to_string(), out),
        Kind::Uint32 | Kind::Fixed32 => write_json(&(number & u64::from(u32::MAX)), out),
        // An enum is an int32: what is above its 32 bits does not count.
        Kind::Enum(_) => {
            let [a, b, c, d, ..] = number.to_le_bytes();
            write_json(&i32::from_le_bytes([a, b, c, d]), out);
        }
        Kind::Bool => write_json(&(number != 0), out),
        Kind::Double => match f64::from_bits(number) {
            value if value.is_nan() => write_json("NaN", out),
            f64::INFINITY => write_json("Infinity", out),
            f64::NEG_INFINITY => write_json("-Infinity", out),
            value => write_json(&value, out),
        },
        Kind::Message(schema) => write_message(schema, Message::Whole(bytes), out, depth + 1),
    }
}

fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Writing to memory cannot fail, and our values are all JSON can hold.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}
