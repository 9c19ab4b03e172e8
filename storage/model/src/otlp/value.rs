//! Attribute values: `KeyValue` and `AnyValue`, walked without being decoded.

use std::borrow::Cow;

use super::wire::{Field, Reader, WireFault};
use crate::batch::AttributeValue;
use crate::limits::MAX_VALUE_DEPTH;

/// An attribute's value where it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RawValue<'a> {
    /// UTF-8 text.
    Text(&'a str),
    /// A 64-bit integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// Bytes, an array, a map (the content of the field), text that is not UTF-8, or nothing: never compared.
    Other(&'a [u8]),
}

impl<'a> RawValue<'a> {
    /// A value of interest of a batch with this buffer.
    #[must_use]
    pub fn of(value: AttributeValue, buffer: &'a [u8]) -> Self {
        match value {
            AttributeValue::Text(slice) => {
                let bytes = slice.of(buffer);
                std::str::from_utf8(bytes).map_or(Self::Other(bytes), Self::Text)
            }
            AttributeValue::Int(value) => Self::Int(value),
            AttributeValue::Double(value) => Self::Double(value),
            AttributeValue::Bool(value) => Self::Bool(value),
        }
    }

    /// The text that a search compares: text as it is, integers and doubles in decimal (the shortest that reads back
    /// as the same double, without an exponent; `1` for 1.0), booleans as `true` or `false`.
    #[must_use]
    pub fn text(&self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Int(value) => Some(Cow::Owned(value.to_string())),
            Self::Double(value) => Some(Cow::Owned(value.to_string())),
            Self::Bool(true) => Some(Cow::Borrowed("true")),
            Self::Bool(false) => Some(Cow::Borrowed("false")),
            Self::Other(_) => None,
        }
    }
}

/// What a walk found in an `AnyValue`.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    /// No value is set.
    Absent,
    /// `string_value`, not checked.
    Text(Reader<'a>),
    Bool(bool),
    Int(i64),
    Double(f64),
    /// `array_value`: the content of its last occurrence.
    Array(Reader<'a>),
    /// `kvlist_value`: the content of its last occurrence.
    Map(Reader<'a>),
    /// `bytes_value`.
    Bytes(Reader<'a>),
    /// `string_value_strindex`, which has no meaning in traces.
    Index,
}

impl<'a> Value<'a> {
    /// As callers see it.
    pub(super) fn raw(self) -> RawValue<'a> {
        match self {
            Self::Text(text) => std::str::from_utf8(text.rest())
                .map_or(RawValue::Other(text.rest()), RawValue::Text),
            Self::Bool(value) => RawValue::Bool(value),
            Self::Int(value) => RawValue::Int(value),
            Self::Double(value) => RawValue::Double(value),
            Self::Array(content) | Self::Map(content) | Self::Bytes(content) => {
                RawValue::Other(content.rest())
            }
            Self::Absent | Self::Index => RawValue::Other(&[]),
        }
    }
}

/// Walks a `KeyValue` to its end. Of repeated keys the last one counts, repeated values are merged.
#[inline(always)]
pub(super) fn walk_key_value<'a>(
    mut message: Reader<'a>,
    depth: usize,
) -> Result<(Reader<'a>, Value<'a>), WireFault> {
    let mut key = Reader::new(&[], 0);
    let mut value = Value::Absent;
    while !message.is_empty() {
        match message.field()? {
            (1, field) => key = field.bytes()?,
            (2, field) => walk_any_value(field.bytes()?, depth, &mut value)?,
            (3, field) => drop(field.varint()?),
            _ => {}
        }
    }
    Ok((key, value))
}

/// Walks an `AnyValue` to its end; what it sets replaces `value`.
#[inline]
pub(super) fn walk_any_value<'a>(
    mut message: Reader<'a>,
    depth: usize,
    value: &mut Value<'a>,
) -> Result<(), WireFault> {
    while !message.is_empty() {
        let (number, field) = message.field()?;
        *value = match number {
            1 => Value::Text(field.bytes()?),
            2 => Value::Bool(field.varint()? != 0),
            3 => Value::Int(field.varint()?.cast_signed()),
            4 => Value::Double(f64::from_bits(field.fixed64()?)),
            5 => Value::Array(walk_compound(field, depth, Compound::Array)?),
            6 => Value::Map(walk_compound(field, depth, Compound::Map)?),
            7 => Value::Bytes(field.bytes()?),
            8 => {
                field.varint()?;
                Value::Index
            }
            _ => continue,
        };
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Compound {
    Array,
    Map,
}

/// Checks an `ArrayValue` or `KeyValueList`, each with its entries in field 1.
fn walk_compound(field: Field<'_>, depth: usize, kind: Compound) -> Result<Reader<'_>, WireFault> {
    let content = field.bytes()?;
    if depth >= MAX_VALUE_DEPTH {
        return Err(WireFault::TooDeep);
    }
    let mut message = content;
    while !message.is_empty() {
        let (1, entry) = message.field()? else {
            continue;
        };
        match kind {
            Compound::Array => {
                walk_any_value(entry.bytes()?, depth + 1, &mut Value::Absent)?;
            }
            Compound::Map => drop(walk_key_value(entry.bytes()?, depth + 1)?),
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_text_that_searches_compare() {
        for (value, text) in [
            (RawValue::Text("a"), Some("a")),
            (RawValue::Int(-200), Some("-200")),
            (RawValue::Double(1.0), Some("1")),
            (RawValue::Double(0.25), Some("0.25")),
            (RawValue::Bool(true), Some("true")),
            (RawValue::Other(b"x"), None),
        ] {
            assert_eq!(value.text().as_deref(), text);
        }
    }
}
