//! What a span's message consists of, as numbers: the alphabet of shapes and the fixed columns.

use spandrel_model::otlp::RawValue;

/// One step of rebuilding a span: which field comes next, and so which column its value is taken from.
pub(super) type Step = u16;

/// The numbers are on disk: never reuse one.
pub(super) const TRACE_ID: Step = 0;
pub(super) const SPAN_ID: Step = 1;
pub(super) const PARENT: Step = 2;
/// `parent_span_id` that is present and empty, as the Collector writes it.
pub(super) const PARENT_EMPTY: Step = 3;
pub(super) const START: Step = 4;
pub(super) const END: Step = 5;
pub(super) const TRACE_STATE: Step = 6;
pub(super) const NAME: Step = 7;
pub(super) const KIND: Step = 8;
pub(super) const FLAGS: Step = 9;
pub(super) const DROPPED_ATTRIBUTES: Step = 10;
pub(super) const DROPPED_EVENTS: Step = 11;
pub(super) const DROPPED_LINKS: Step = 12;
pub(super) const EVENT: Step = 13;
pub(super) const LINK: Step = 14;
/// `status` that is present and empty, as the Collector writes it.
pub(super) const STATUS_EMPTY: Step = 15;
pub(super) const STATUS_CODE: Step = 16;
/// `status` with a message alone.
pub(super) const STATUS_MESSAGE: Step = 17;
/// `status` with a message, then a code.
pub(super) const STATUS_MESSAGE_CODE: Step = 18;
/// The whole message as it came: a form that the other steps cannot rebuild byte for byte.
pub(super) const RAW: Step = 19;
/// Columns that are no step of a shape.
pub(super) const FRAGMENTS: Step = 20;
pub(super) const CONTEXT_HASHES: Step = 21;
pub(super) const CONTEXT: Step = 22;
pub(super) const SHAPES: Step = 23;
pub(super) const SHAPE: Step = 24;
pub(super) const PARENT_IDS: Step = 25;
/// The attribute column `n` is the step `FIRST_ATTRIBUTE + n`.
pub(super) const FIRST_ATTRIBUTE: Step = 32;

/// Steps whose values lie in a [`values`](super::values) column of the same number, in the order of the page.
pub(super) const VALUE_COLUMNS: [Step; 12] = [
    NAME,
    KIND,
    STATUS_CODE,
    STATUS_MESSAGE,
    FLAGS,
    TRACE_STATE,
    DROPPED_ATTRIBUTES,
    DROPPED_EVENTS,
    DROPPED_LINKS,
    EVENT,
    LINK,
    RAW,
];

/// The type of an attribute's value. The numbers are on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ValueKind {
    /// `string_value`; stored as its bytes.
    Text = 0,
    /// `int_value`; stored as its varint.
    Int = 1,
    /// `double_value`; stored as its 8 bytes.
    Double = 2,
    /// `bool_value`; stored as its byte.
    Bool = 3,
    /// Any other value; the bytes of the `AnyValue` message.
    Other = 4,
}

impl ValueKind {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 5;

    /// The kind of a value.
    pub(crate) fn of(value: &RawValue<'_>) -> Self {
        match value {
            RawValue::Text(_) => Self::Text,
            RawValue::Int(_) => Self::Int,
            RawValue::Double(_) => Self::Double,
            RawValue::Bool(_) => Self::Bool,
            RawValue::Other(_) => Self::Other,
        }
    }

    /// From the number on disk.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Text,
            1 => Self::Int,
            2 => Self::Double,
            3 => Self::Bool,
            4 => Self::Other,
            _ => return None,
        })
    }

    /// The word of API.md; `None` for values that are not compared.
    #[must_use]
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Text => Some("string"),
            Self::Int => Some("int"),
            Self::Double => Some("double"),
            Self::Bool => Some("bool"),
            Self::Other => None,
        }
    }
}
