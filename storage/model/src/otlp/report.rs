//! What a scan refused and what it changed, by reason.

use std::fmt;

use super::wire::WireFault;

/// A request that is no `ExportTraceServiceRequest`: nothing of it was taken (400, `INVALID_ARGUMENT`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid otlp request: {part}: {problem}")]
pub struct InvalidRequest {
    /// The message at fault, by its name in OTLP.
    pub part: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl InvalidRequest {
    pub(super) fn new(part: &'static str, problem: impl fmt::Display) -> Self {
        Self {
            part,
            problem: problem.to_string(),
        }
    }

    /// For `map_err`: the fault of a message.
    pub(super) fn within(part: &'static str) -> impl Fn(WireFault) -> Self {
        move |fault| Self::new(part, fault)
    }
}

/// Declares an enum of reasons with its words and the counters over it.
macro_rules! reasons {
    ($(#[$enum_doc:meta])* $name:ident, $(#[$counts_doc:meta])* $counts:ident {
        $($(#[$doc:meta])* $variant:ident => $word:literal, $text:literal;)+
    }) => {
        $(#[$enum_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every reason, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word for metrics and marks.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The words for people.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        $(#[$counts_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $counts([u64; $name::ALL.len()]);

        impl $counts {
            /// The count of a reason.
            #[must_use]
            pub fn count(&self, reason: $name) -> u64 {
                self.0.get(reason as usize).copied().unwrap_or(0)
            }

            /// Adds to the count of a reason.
            pub fn add(&mut self, reason: $name, count: u64) {
                if let Some(total) = self.0.get_mut(reason as usize) {
                    *total = total.saturating_add(count);
                }
            }

            /// Adds all the counts of another scan.
            pub fn merge(&mut self, other: &Self) {
                other.iter().for_each(|(reason, count)| self.add(reason, count));
            }

            /// The reasons that occurred, in order, with their counts.
            pub fn iter(&self) -> impl Iterator<Item = ($name, u64)> + '_ {
                $name::ALL
                    .iter()
                    .map(|&reason| (reason, self.count(reason)))
                    .filter(|&(_, count)| count > 0)
            }

            /// Sum over all reasons.
            #[must_use]
            pub fn total(&self) -> u64 {
                self.0.iter().sum()
            }

            /// True when no reason occurred.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.total() == 0
            }
        }

        impl fmt::Display for $counts {
            /// `2 x one thing, 1 x another`; empty when no reason occurred.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (index, (reason, count)) in self.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{count} x {}", reason.description())?;
                }
                Ok(())
            }
        }
    };
}

reasons! {
    /// Why a span was not taken. A fault of its resource or scope is counted first, then the first one that applies in
    /// this order.
    RejectReason,
    /// Spans that were not taken, by reason. Its text is fit for `partial_success.error_message`.
    RejectedSpans {
        /// The span's bytes are no `Span` message, though their length is right.
        Malformed => "malformed", "span is malformed";
        /// Attribute values or unknown groups are nested too deep.
        NestedTooDeep => "nested_too_deep", "attribute values are nested more than 16 deep";
        /// Not 16 (or 8) bytes, absent, or all zero.
        InvalidTraceId => "invalid_trace_id", "trace_id is not 16 bytes or is zero";
        /// Not 8 bytes, absent, or all zero.
        InvalidSpanId => "invalid_span_id", "span_id is not 8 bytes or is zero";
        /// Neither absent nor 8 bytes.
        InvalidParentSpanId => "invalid_parent_span_id", "parent_span_id is not 8 bytes";
        /// The span's name or its `service.name` is too long.
        NameTooLong => "name_too_long", "name or service.name is longer than 1024 bytes";
        /// Name, `service.name`, `trace_state` or a value of interest.
        InvalidUtf8 => "invalid_utf8", "name, service.name, trace_state or an indexed value is not UTF-8";
        /// As it would be stored, with its resource and scope, it is too large to be copied to another node.
        SpanTooLarge => "span_too_large", "span with its resource and scope is larger than 524288 bytes";
    }
}

reasons! {
    /// What was changed on a span, a resource or a scope.
    ChangeReason,
    /// Changes by reason, each counted as often as it was made: two values cut on one span count twice.
    ChangedSpans {
        /// A value was longer than the limit.
        ValueTruncated => "value_truncated", "attribute value cut to 2048 bytes";
        /// An attribute past the limit of attributes, or with too long a key.
        AttributeDropped => "attribute_dropped", "attribute beyond the limit of 128, or with a key longer than 1024 bytes, dropped";
        /// An event past the limit.
        EventDropped => "event_dropped", "event beyond the limit of 64 dropped";
        /// A link past the limit.
        LinkDropped => "link_dropped", "link beyond the limit of 64 dropped";
        /// The attribute policy says drop.
        PolicyDropped => "policy_dropped", "attribute dropped by policy";
        /// The attribute policy says hash.
        PolicyHashed => "policy_hashed", "attribute hashed by policy";
        /// The attribute policy says truncate.
        PolicyTruncated => "policy_truncated", "attribute value cut by policy";
        /// An id of 8 bytes was padded with zeros on the left.
        TraceIdPadded => "trace_id_padded", "trace_id of 8 bytes padded to 16";
        /// The end was raised to the start, for decisions and search; the span's bytes keep it.
        EndBeforeStart => "end_before_start", "end_time_unix_nano before the start taken as the start";
        /// A time was replaced by the time of receipt, for decisions and search; the span's bytes keep it.
        TimeClamped => "time_clamped", "absurd span time taken as the time of receipt";
    }
}

impl From<WireFault> for RejectReason {
    fn from(fault: WireFault) -> Self {
        match fault {
            WireFault::TooDeep => Self::NestedTooDeep,
            _ => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_as_a_sentence() {
        let mut rejected = RejectedSpans::default();
        assert!(rejected.is_empty());
        assert_eq!(rejected.to_string(), "");
        rejected.add(RejectReason::InvalidSpanId, 2);
        rejected.add(RejectReason::Malformed, 1);
        let mut total = rejected;
        total.merge(&rejected);
        assert_eq!(
            rejected.to_string(),
            "1 x span is malformed, 2 x span_id is not 8 bytes or is zero"
        );
        assert_eq!(total.total(), 6);
    }
}
