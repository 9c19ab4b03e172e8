//! Comparing values by their text, and reading spans that are stored raw the way a protobuf reader would.

use std::borrow::Cow;

use spandrel_model::batch::StatusCode;
use spandrel_model::otlp::RawValue;

use super::field::ValueKind;
use super::wire::{Field, Wire};

/// The text of a value as a column stores it; `None` for values that are not compared, and malformed ones.
pub(crate) fn stored_text(kind: ValueKind, stored: &[u8]) -> Option<Cow<'_, str>> {
    match stored_value(kind, stored)? {
        RawValue::Other(_) => None,
        value => value.text(),
    }
}

fn stored_value(kind: ValueKind, stored: &[u8]) -> Option<RawValue<'_>> {
    Some(match kind {
        ValueKind::Text => RawValue::Text(std::str::from_utf8(stored).ok()?),
        ValueKind::Int => RawValue::Int(Wire::new(stored).varint()?.cast_signed()),
        ValueKind::Double => RawValue::Double(f64::from_le_bytes(stored.try_into().ok()?)),
        ValueKind::Bool => RawValue::Bool(*stored.first()? != 0),
        ValueKind::Other => RawValue::Other(stored),
    })
}

/// A text that values are compared with, parsed once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted<'a> {
    text: &'a [u8],
    int: Option<i64>,
    double: Option<f64>,
    boolean: Option<bool>,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        // Only the text that a value is rendered as counts: `0200` is not the integer 200.
        let int = text.parse::<i64>().ok();
        let double = text.parse::<f64>().ok();
        Self {
            text: text.as_bytes(),
            int: int.filter(|value| value.to_string() == text),
            double: double.filter(|value| value.to_string() == text),
            boolean: text.parse().ok(),
        }
    }

    /// True when only a text can be the wanted value.
    pub(crate) fn is_text(&self) -> bool {
        self.int.is_none() && self.double.is_none() && self.boolean.is_none()
    }

    /// True when the value's text is the wanted one.
    pub(crate) fn is(&self, value: RawValue<'_>) -> bool {
        match value {
            RawValue::Text(text) => self.text == text.as_bytes(),
            RawValue::Int(value) => self.int == Some(value),
            // Text and bits determine each other but for NaN, all of which are the text `NaN`.
            RawValue::Double(value) => self.double.is_some_and(|wanted| {
                wanted.to_bits() == value.to_bits() || (wanted.is_nan() && value.is_nan())
            }),
            RawValue::Bool(value) => self.boolean == Some(value),
            RawValue::Other(_) => false,
        }
    }

    /// True when the text of a value as a column stores it is the wanted one.
    pub(crate) fn is_stored(&self, kind: ValueKind, stored: &[u8]) -> bool {
        match kind {
            // Compared as bytes: what equals the wanted text is UTF-8.
            ValueKind::Text => self.text == stored,
            _ => stored_value(kind, stored).is_some_and(|value| self.is(value)),
        }
    }

    /// True when a value of this kind can be the wanted one.
    pub(crate) fn can_be(&self, kind: ValueKind) -> bool {
        match kind {
            ValueKind::Text => true,
            ValueKind::Int => self.int.is_some(),
            ValueKind::Double => self.double.is_some(),
            ValueKind::Bool => self.boolean.is_some(),
            ValueKind::Other => false,
        }
    }
}

/// The fields of a raw span that conditions and columns need; of repeated scalars the last one counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RawSpan<'a> {
    pub(crate) span_id: &'a [u8],
    pub(crate) name: &'a [u8],
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) status: StatusCode,
}

impl<'a> RawSpan<'a> {
    /// Reads what there is; stops at the first malformed field.
    pub(crate) fn read(span: &'a [u8]) -> Self {
        let mut raw = Self::default();
        let mut wire = Wire::new(span);
        while let Some((number, field)) = wire.field() {
            match (number, field) {
                (2, Field::Bytes(id)) => raw.span_id = id,
                (5, Field::Bytes(name)) => raw.name = name,
                (7, Field::Fixed64(start)) => raw.start = start,
                (8, Field::Fixed64(end)) => raw.end = end,
                (15, Field::Bytes(status)) => raw.status = status_code(status, raw.status),
                _ => {}
            }
        }
        raw
    }
}

fn status_code(status: &[u8], before: StatusCode) -> StatusCode {
    let mut code = before;
    let mut wire = Wire::new(status);
    while let Some((number, field)) = wire.field() {
        if let (3, Field::Varint(number)) = (number, field) {
            code = status_from_varint(number);
        }
    }
    code
}

/// The status of a code on the wire: protobuf cuts enums to 32 bits.
pub(crate) fn status_from_varint(number: u64) -> StatusCode {
    #[allow(clippy::cast_possible_truncation)]
    let number = (number as u32).cast_signed();
    StatusCode::from_wire(number)
}
