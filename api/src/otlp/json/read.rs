//! JSON to protobuf, written while it is read.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::schema::{Field, Kind, Schema, TRACES};
use crate::limits::{GROWTH_STEP_BYTES, MAX_DECODED_BYTES, MAX_JSON_DEPTH};

/// Why a request was not transcoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TranscodeError {
    /// It is no OTLP JSON.
    #[error("the body is no otlp json: {0}")]
    Invalid(#[from] serde_json::Error),
    /// There is no credit for its protobuf form.
    #[error("no room for the request")]
    NoRoom,
    /// Its protobuf form is larger than a request may be.
    #[error("the request is larger than {MAX_DECODED_BYTES} bytes as protobuf")]
    TooLarge,
}

/// Reads an `ExportTraceServiceRequest` in JSON and writes it as protobuf. Fields that are not known are ignored,
/// 64-bit numbers are read as text and as numbers (OTLP, "JSON Protobuf Encoding"). `admit` is asked before the
/// output grows by that many bytes.
pub(crate) fn transcode_request(
    json: &[u8],
    admit: &mut dyn FnMut(u64) -> bool,
) -> Result<Bytes, TranscodeError> {
    let mut out = Output {
        bytes: Vec::new(),
        admit,
        refused: None,
    };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let seed = MessageSeed {
        schema: &TRACES,
        out: &mut out,
        depth: 1,
    };
    let read = seed.deserialize(&mut reader).and_then(|()| reader.end());
    match (out.refused, read) {
        (Some(refused), _) => Err(refused),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Ok(out.bytes.into()),
    }
}

/// Accepts both alphabets and any padding, as protobuf's JSON mapping demands.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

struct Output<'a> {
    bytes: Vec<u8>,
    admit: &'a mut dyn FnMut(u64) -> bool,
    refused: Option<TranscodeError>,
}

impl Output<'_> {
    /// Makes room for `more` bytes, on credit.
    fn reserve<E: Error>(&mut self, more: usize) -> Result<(), E> {
        if self.bytes.capacity() - self.bytes.len() >= more {
            return Ok(());
        }
        let step = more.max(GROWTH_STEP_BYTES).max(self.bytes.len() / 2);
        if self.bytes.len() + more > MAX_DECODED_BYTES {
            self.refused = Some(TranscodeError::TooLarge);
            return Err(E::custom("too large"));
        }
        let grown = (self.bytes.len() + step).saturating_sub(self.bytes.capacity());
        if !(self.admit)(grown as u64) {
            self.refused = Some(TranscodeError::NoRoom);
            return Err(E::custom("no room"));
        }
        self.bytes.reserve_exact(step);
        Ok(())
    }

    fn scalar<E: Error>(&mut self, number: u32, wire: WireType, value: &[u8]) -> Result<(), E> {
        self.reserve(20 + value.len())?;
        encode_key(number, wire, &mut self.bytes);
        if wire == WireType::LengthDelimited {
            encode_varint(value.len() as u64, &mut self.bytes);
        }
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    fn varint<E: Error>(&mut self, number: u32, value: u64) -> Result<(), E> {
        self.reserve(20)?;
        encode_key(number, WireType::Varint, &mut self.bytes);
        encode_varint(value, &mut self.bytes);
        Ok(())
    }

    /// Puts the length before what was written since `start`.
    fn close<E: Error>(&mut self, start: usize) -> Result<(), E> {
        let end = self.bytes.len();
        let length = (end - start) as u64;
        let width = encoded_len_varint(length);
        self.reserve(width)?;
        self.bytes.resize(end + width, 0);
        self.bytes.copy_within(start..end, start + width);
        let mut place = self.bytes.get_mut(start..start + width).unwrap_or_default();
        encode_varint(length, &mut place);
        Ok(())
    }
}

struct MessageSeed<'o, 'a> {
    schema: &'static Schema,
    out: &'o mut Output<'a>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(FieldSeed(self.schema))? {
            match field {
                Some(field) => map.next_value_seed(ValueSeed {
                    field,
                    oneof: self.schema.oneof,
                    element: false,
                    out: &mut *self.out,
                    depth: self.depth + 1,
                })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct FieldSeed(&'static Schema);

impl<'de> DeserializeSeed<'de> for FieldSeed {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_identifier(self)
    }
}

impl Visitor<'_> for FieldSeed {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.fields.iter().find(|field| field.name == name))
    }
}

struct ValueSeed<'o, 'a> {
    field: &'static Field,
    oneof: bool,
    /// One element of a repeated field.
    element: bool,
    out: &'o mut Output<'a>,
    depth: usize,
}

impl ValueSeed<'_, '_> {
    /// Default values are left out, as protobuf does, except where they are elements or choices.
    fn skips(&self, is_default: bool) -> bool {
        is_default && !self.oneof && !self.element
    }

    fn mismatch<T, E: Error>(&self, got: &str) -> Result<T, E> {
        Err(E::custom(format_args!(
            "`{}` cannot be {got}",
            self.field.name
        )))
    }

    fn integer<E: Error>(self, value: i128) -> Result<(), E> {
        let number = self.field.number;
        let range = |_| {
            E::custom(format_args!(
                "`{}` is out of range: {value}",
                self.field.name
            ))
        };
        if self.field.repeated && !self.element {
            return self.mismatch("a number");
        }
        if self.skips(value == 0) {
            return Ok(());
        }
        match self.field.kind {
            Kind::Fixed64 => {
                let value = u64::try_from(value).map_err(range)?;
                self.out
                    .scalar(number, WireType::SixtyFourBit, &value.to_le_bytes())
            }
            Kind::Fixed32 => {
                let value = u32::try_from(value).map_err(range)?;
                self.out
                    .scalar(number, WireType::ThirtyTwoBit, &value.to_le_bytes())
            }
            Kind::Uint32 => {
                let value = u32::try_from(value).map_err(range)?;
                self.out.varint(number, u64::from(value))
            }
            Kind::Int64 => {
                let value = i64::try_from(value).map_err(range)?;
                self.out.varint(number, value.cast_unsigned())
            }
            Kind::Enum(_) => {
                let value = i64::from(i32::try_from(value).map_err(range)?);
                self.out.varint(number, value.cast_unsigned())
            }
            // Exact up to 2^53, beyond it the nearest double, which is what a JSON reader does.
            #[allow(clippy::cast_precision_loss)]
            Kind::Double => self.double(value as f64),
            _ => self.mismatch("a number"),
        }
    }

    fn double<E: Error>(self, value: f64) -> Result<(), E> {
        if self.skips(value == 0.0) {
            return Ok(());
        }
        self.out.scalar(
            self.field.number,
            WireType::SixtyFourBit,
            &value.to_le_bytes(),
        )
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value for `{}`", self.field.name)
    }

    /// Null stands for "not given".
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        match (self.element, self.field.kind) {
            (true, Kind::Message(_)) => {
                self.out
                    .scalar(self.field.number, WireType::LengthDelimited, &[])
            }
            _ => Ok(()),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.field.kind {
            Kind::Bool if self.skips(!value) => Ok(()),
            Kind::Bool => self.out.varint(self.field.number, u64::from(value)),
            _ => self.mismatch("a boolean"),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.integer(i128::from(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.integer(i128::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if matches!(self.field.kind, Kind::Double) {
            return self.double(value);
        }
        if value.fract() != 0.0 || value.abs() >= 2f64.powi(64) {
            return self.mismatch("a fraction");
        }
        // Whole and below 2^64, as just checked: it fits 128 bits.
        #[allow(clippy::cast_possible_truncation)]
        let whole = value as i128;
        self.integer(whole)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.field.repeated && !self.element {
            return self.mismatch("text");
        }
        let wrong = || E::custom(format_args!("`{}` cannot be read", self.field.name));
        let number = self.field.number;
        match self.field.kind {
            Kind::Text | Kind::Hex | Kind::Base64 if self.skips(text.is_empty()) => Ok(()),
            Kind::Text => self
                .out
                .scalar(number, WireType::LengthDelimited, text.as_bytes()),
            Kind::Hex => {
                // Ids are 16 and 8 bytes; a longer text is no id, and nothing is allocated for it.
                let mut id = [0; 16];
                let bytes = hex_into(text, &mut id).ok_or_else(wrong)?;
                self.out.scalar(number, WireType::LengthDelimited, bytes)
            }
            Kind::Base64 => {
                self.out.reserve(text.len())?;
                let bytes = STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text));
                let bytes = bytes.map_err(|_| wrong())?;
                self.out.scalar(number, WireType::LengthDelimited, &bytes)
            }
            Kind::Double => {
                let value = match text {
                    "NaN" => f64::NAN,
                    "Infinity" => f64::INFINITY,
                    "-Infinity" => f64::NEG_INFINITY,
                    _ => text.parse().map_err(|_| wrong())?,
                };
                self.double(value)
            }
            Kind::Enum(names) => match names.iter().position(|name| *name == text) {
                Some(value) => self.integer(value as i128),
                None => self.integer(text.parse().map_err(|_| wrong())?),
            },
            Kind::Fixed64 | Kind::Int64 | Kind::Uint32 | Kind::Fixed32 => {
                self.integer(text.parse().map_err(|_| wrong())?)
            }
            Kind::Bool | Kind::Message(_) => self.mismatch("text"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if !self.field.repeated || self.element {
            return self.mismatch("an array");
        }
        check_depth(self.depth)?;
        let (field, oneof, depth) = (self.field, self.oneof, self.depth + 1);
        let out = self.out;
        while elements
            .next_element_seed(ValueSeed {
                field,
                oneof,
                element: true,
                out: &mut *out,
                depth,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Kind::Message(schema) = self.field.kind else {
            return self.mismatch("an object");
        };
        if self.field.repeated && !self.element {
            return self.mismatch("an object");
        }
        check_depth(self.depth)?;
        self.out.reserve(20)?;
        encode_key(
            self.field.number,
            WireType::LengthDelimited,
            &mut self.out.bytes,
        );
        let start = self.out.bytes.len();
        MessageSeed {
            schema,
            out: &mut *self.out,
            depth: self.depth,
        }
        .visit_map(map)?;
        self.out.close(start)
    }
}

fn check_depth<E: Error>(depth: usize) -> Result<(), E> {
    if depth > MAX_JSON_DEPTH {
        return Err(E::custom(format_args!(
            "nested deeper than {MAX_JSON_DEPTH} levels"
        )));
    }
    Ok(())
}

fn hex_into<'b>(text: &str, into: &'b mut [u8; 16]) -> Option<&'b [u8]> {
    let length = text.len() / 2;
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let bytes = into.get_mut(..length)?;
    for (pair, byte) in text.as_bytes().chunks_exact(2).zip(bytes.iter_mut()) {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(bytes)
}
