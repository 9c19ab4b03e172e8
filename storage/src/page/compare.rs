//! Comparing values by their text, and reading spans that are stored raw the way a protobuf reader would.

use spandrel_model::batch::StatusCode;

use super::field::ValueKind;
use super::wire::{Field, Wire};

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum AnyScalar<'a> {
    Text(&'a [u8]),
    Int(i64),
    Double(f64),
    Bool(bool),
    /// Arrays, maps, bytes, nothing: not compared.
    Other,
}

impl AnyScalar<'_> {
    /// The text that a [`TagCondition`](spandrel_model::search::TagCondition) is compared with; `None` when there is
    /// none.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).ok().map(str::to_owned),
            Self::Int(value) => Some(value.to_string()),
            Self::Double(value) => Some(value.to_string()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Other => None,
        }
    }

    /// The kind of column that such a value lies in.
    pub(crate) fn kind(&self) -> ValueKind {
        match self {
            Self::Text(_) => ValueKind::Text,
            Self::Int(_) => ValueKind::Int,
            Self::Double(_) => ValueKind::Double,
            Self::Bool(_) => ValueKind::Bool,
            Self::Other => ValueKind::Other,
        }
    }
}

/// The value that the stored form of a column of this kind holds; `None` when it is malformed.
pub(crate) fn stored_scalar(kind: ValueKind, stored: &[u8]) -> Option<AnyScalar<'_>> {
    Some(match kind {
        ValueKind::Text => AnyScalar::Text(stored),
        ValueKind::Int => AnyScalar::Int(Wire::new(stored).varint()?.cast_signed()),
        ValueKind::Double => AnyScalar::Double(f64::from_le_bytes(stored.try_into().ok()?)),
        ValueKind::Bool => AnyScalar::Bool(*stored.first()? != 0),
        ValueKind::Other => AnyScalar::Other,
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

    /// True when the value's text is the wanted one.
    pub(crate) fn is(&self, value: AnyScalar<'_>) -> bool {
        match value {
            AnyScalar::Text(text) => self.text == text,
            AnyScalar::Int(value) => self.int == Some(value),
            // Text and bits determine each other but for NaN, all of which are the text `NaN`.
            AnyScalar::Double(value) => self.double.is_some_and(|wanted| {
                wanted.to_bits() == value.to_bits() || (wanted.is_nan() && value.is_nan())
            }),
            AnyScalar::Bool(value) => self.boolean == Some(value),
            AnyScalar::Other => false,
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

/// Key and value of a `KeyValue` message in any legal form: of repeated fields the last one counts.
pub(crate) fn key_values(pair: &[u8]) -> (&[u8], AnyScalar<'_>) {
    let (mut key, mut value) = (&b""[..], AnyScalar::Other);
    let mut wire = Wire::new(pair);
    while let Some((number, field)) = wire.field() {
        match (number, field) {
            (1, Field::Bytes(bytes)) => key = bytes,
            (2, Field::Bytes(any)) => value = any_scalar(any, value),
            _ => {}
        }
    }
    (key, value)
}

fn any_scalar<'a>(any: &'a [u8], before: AnyScalar<'a>) -> AnyScalar<'a> {
    let mut value = before;
    let mut wire = Wire::new(any);
    while let Some((number, field)) = wire.field() {
        value = match (number, field) {
            (1, Field::Bytes(text)) => AnyScalar::Text(text),
            (2, Field::Varint(number)) => AnyScalar::Bool(number != 0),
            (3, Field::Varint(number)) => AnyScalar::Int(number.cast_signed()),
            (4, Field::Fixed64(bits)) => AnyScalar::Double(f64::from_bits(bits)),
            (5..=8, _) => AnyScalar::Other,
            _ => value,
        };
    }
    value
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

/// Calls `visit` for each attribute of a `Span` message in any legal form.
pub(crate) fn span_attributes<'a>(
    span: &'a [u8],
    visit: &mut dyn FnMut(&'a [u8], AnyScalar<'a>),
) {
    let mut wire = Wire::new(span);
    while let Some((number, field)) = wire.field() {
        if let (9, Field::Bytes(pair)) = (number, field) {
            let (key, value) = key_values(pair);
            visit(key, value);
        }
    }
}
