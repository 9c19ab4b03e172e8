//! Conditions on the contents of one span. Over a trace each is one bit: some span of it satisfied the condition.

use std::collections::BTreeSet;

use regex::Regex;

use crate::batch::{AttributeValue, SpanBatch, StatusCode};

/// Bit `i` is set when leaf condition `i` of the policy set held on some span of the trace.
pub type LeafBits = u128;

/// The resource attribute that the scanner reports as [`crate::batch::Context::service`], never as an attribute.
pub(super) const SERVICE_KEY: &str = "service.name";

/// A condition with the words for it, which are also its identity: equal conditions share a bit.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) text: String,
    pub(super) test: LeafTest,
}

/// What is asked of a span.
#[derive(Debug)]
pub(super) enum LeafTest {
    /// Its status is one of these.
    Status(Vec<StatusCode>),
    /// Its W3C sampled flag is set.
    SampledFlag,
    /// Its service is one of these; a span without one is of [`crate::limits::UNKNOWN_SERVICE`].
    Service(BTreeSet<String>),
    /// Its `trace_state` has the key with one of these values.
    TraceState {
        key: String,
        values: BTreeSet<String>,
    },
    /// It or its resource has the attribute with such a value.
    Attribute { key: String, test: ValueTest },
}

/// What is asked of an attribute's value. A value of another type does not satisfy it.
#[derive(Debug)]
pub(super) enum ValueTest {
    /// Text that equals one of these.
    Equal(BTreeSet<String>),
    /// Text in which one of these matches somewhere (unanchored, as the Collector's `MatchString`).
    Match(Vec<Regex>),
    /// A number within both bounds.
    Range { min: i64, max: i64 },
    /// This boolean.
    Bool(bool),
}

impl ValueTest {
    /// True when text satisfies it.
    pub(super) fn holds_for_text(&self, text: &str) -> bool {
        match self {
            Self::Equal(values) => values.contains(text),
            Self::Match(patterns) => patterns.iter().any(|pattern| pattern.is_match(text)),
            Self::Range { .. } | Self::Bool(_) => false,
        }
    }

    /// True when the value of an attribute satisfies it.
    pub(super) fn holds(&self, batch: &SpanBatch, value: AttributeValue) -> bool {
        match (self, value) {
            (Self::Equal(_) | Self::Match(_), AttributeValue::Text(text)) => {
                self.holds_for_text(batch.text(text))
            }
            (Self::Range { min, max }, AttributeValue::Int(number)) => {
                (*min..=*max).contains(&number)
            }
            // Beyond 2^53 the bounds round to the nearest double, like the values that are compared with them.
            #[allow(clippy::cast_precision_loss)]
            (Self::Range { min, max }, AttributeValue::Double(number)) => {
                number >= *min as f64 && number <= *max as f64
            }
            (Self::Bool(wanted), AttributeValue::Bool(value)) => *wanted == value,
            _ => false,
        }
    }
}

/// True when a W3C `tracestate` has `key` with one of `values`.
pub(super) fn trace_state_has(trace_state: &str, key: &str, values: &BTreeSet<String>) -> bool {
    trace_state
        .split(',')
        .filter_map(|member| member.trim().split_once('='))
        .any(|(name, value)| name == key && values.contains(value))
}
