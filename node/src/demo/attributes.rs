//! Builds OTLP attributes, and marks the places of values that differ from span to span.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};

/// What a run of marker characters in an attribute's text is filled with: hexadecimal digits that are the same for
/// all spans of a trace, or of their own for each span. The numbers are the marker characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Varying {
    /// One order: of the trace.
    Order = 1,
    /// One user: of the trace.
    User = 2,
    /// One browser session: of the trace.
    Session = 3,
    /// Of its own for each span.
    Span = 4,
}

impl Varying {
    /// Of a marker character.
    pub(super) fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Order),
            2 => Some(Self::User),
            3 => Some(Self::Session),
            4 => Some(Self::Span),
            _ => None,
        }
    }

    /// A place for `digits` hexadecimal digits.
    pub(super) fn digits(self, digits: usize) -> String {
        char::from(self as u8).to_string().repeat(digits)
    }

    /// A place for a UUID.
    pub(super) fn uuid(self) -> String {
        [8, 4, 4, 4, 12].map(|digits| self.digits(digits)).join("-")
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// A text attribute.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// An integer attribute.
pub(super) fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

/// A floating-point attribute.
pub(super) fn double(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

/// A truth attribute.
pub(super) fn truth(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

/// A list of texts.
pub(super) fn texts(key: &str, values: &[&str]) -> KeyValue {
    let values = values
        .iter()
        .map(|value| AnyValue {
            value: Some(Value::StringValue((*value).to_owned())),
        })
        .collect();
    attribute(key, Value::ArrayValue(ArrayValue { values }))
}
