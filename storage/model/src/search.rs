//! What a search asks and what it answers: the port's own types, parsed at the edge.

use crate::batch::{SpanKind, StatusCode};
use crate::ids::{NodeId, ShardId, SpanId, TenantId, TraceId, UnixNanos};

/// A condition on one attribute, compared by the value's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagCondition {
    /// The attribute's key, of a span or of its resource.
    pub key: String,
    /// The text of its value (`200` matches the integer 200).
    pub value: String,
}

/// Conditions on traces. API.md, `GET /v1/traces/search`.
///
/// A trace matches when each of `services` occurs somewhere in it, and, if `operation`, `status` or `tags` are
/// given, one single span meets them all (with exactly one service: a span of that service), and its duration lies
/// in the range, and `from <= start < to`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SearchFilter {
    /// Each of these occurs in the trace.
    pub services: Vec<String>,
    /// The span's name.
    pub operation: Option<String>,
    /// The span's status.
    pub status: Option<StatusCode>,
    /// The span's or its resource's attributes.
    pub tags: Vec<TagCondition>,
    /// Least duration of the trace in nanoseconds, inclusive.
    pub min_duration: Option<u64>,
    /// Greatest duration of the trace in nanoseconds, inclusive.
    pub max_duration: Option<u64>,
    /// Earliest start, inclusive.
    pub from: UnixNanos,
    /// Latest start, exclusive.
    pub to: UnixNanos,
}

impl SearchFilter {
    /// Whether a trace that starts then lies in the range: from inclusive, to exclusive.
    #[must_use]
    pub fn admits_start(&self, start: UnixNanos) -> bool {
        self.from <= start && start < self.to
    }

    /// Whether a trace of so many nanoseconds is neither too short nor too long; both bounds are inclusive.
    #[must_use]
    pub fn admits_duration(&self, duration: u64) -> bool {
        self.min_duration.is_none_or(|least| duration >= least)
            && self.max_duration.is_none_or(|most| duration <= most)
    }

    /// True when one single span has to meet conditions.
    #[must_use]
    pub fn has_span_conditions(&self) -> bool {
        self.operation.is_some() || self.status.is_some() || !self.tags.is_empty()
    }

    /// What one single span has to meet.
    #[must_use]
    pub fn span_condition(&self) -> SpanCondition {
        SpanCondition {
            service: self.span_service().map(str::to_owned),
            operation: self.operation.clone(),
            status: self.status,
            tags: self.tags.clone(),
        }
    }

    /// The service that the matching span must have, if that is demanded.
    #[must_use]
    pub fn span_service(&self) -> Option<&str> {
        match self.services.as_slice() {
            [only] if self.has_span_conditions() => Some(only),
            _ => None,
        }
    }
}

/// Conditions that one span meets all together; those that are not given hold for every span.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpanCondition {
    /// The `service.name` of its resource.
    pub service: Option<String>,
    /// Its name.
    pub operation: Option<String>,
    /// Its status.
    pub status: Option<StatusCode>,
    /// Attributes of the span or of its resource, compared by text.
    pub tags: Vec<TagCondition>,
}

/// Where a page of results ended: the next one begins after it. The total order is newest start first, then trace id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Start of the last trace of the page.
    pub start: UnixNanos,
    /// Its id.
    pub trace_id: TraceId,
}

/// One search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchRequest {
    /// Whose traces.
    pub tenant: TenantId,
    /// The conditions.
    pub filter: SearchFilter,
    /// Most traces to return, 1 to 1,000.
    pub limit: usize,
    /// Continue after this one.
    pub cursor: Option<Cursor>,
    /// Also traces that were dropped and that the journal still holds.
    pub include_dropped: bool,
    /// Milliseconds after which what was found is returned, with `complete: false`.
    pub timeout_ms: u64,
}

/// Where a trace stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TraceState {
    /// Not decided.
    Open,
    /// Decided and stored, or about to be.
    Kept,
    /// Decided against, the journal still holds it.
    Dropped,
}

impl TraceState {
    /// The word of API.md.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Kept => "kept",
            Self::Dropped => "dropped",
        }
    }
}

/// One trace of a result.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// Service of its root, if one was seen.
    pub root_service: String,
    /// Name of its root.
    pub root_operation: String,
    /// Its place in the order of results: of a kept trace the earliest start that its verdict knew, which spans that come
    /// later do not move. Ranges are of this one too.
    pub start: UnixNanos,
    /// Earliest start of its spans, at most `start`.
    pub earliest: UnixNanos,
    /// Duration in nanoseconds, from `earliest`.
    pub duration: u64,
    /// `Error` when a span has it, else that of the root.
    pub status: StatusCode,
    /// Spans.
    pub span_count: u32,
    /// Spans with status error.
    pub error_count: u32,
    /// Its services, sorted.
    pub services: Vec<String>,
    /// Where it stands.
    pub state: TraceState,
    /// Spans that meet the conditions, at most [`MAX_MATCHED_SPANS`](crate::limits::MAX_MATCHED_SPANS), in order of start.
    pub matched_spans: Vec<SpanId>,
}

/// Part of what was asked that was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingPart {
    /// The node that should have answered.
    pub node: NodeId,
    /// The shards concerned; empty means all of the node's.
    pub shards: Vec<ShardId>,
    /// The time range concerned.
    pub from: UnixNanos,
    /// Its end, exclusive.
    pub to: UnixNanos,
    /// Why, for people.
    pub reason: String,
}

/// What an answer covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receipt {
    /// True when everything that was asked for was inspected.
    pub complete: bool,
    /// The range that was asked for.
    pub from: UnixNanos,
    /// Its end, exclusive.
    pub to: UnixNanos,
    /// Everything kept before this instant is in the index; what is younger was read from memory and blocks.
    pub index_watermark: UnixNanos,
    /// What was not reached.
    pub missing: Vec<MissingPart>,
    /// Spans looked at.
    pub inspected_spans: u64,
    /// Bytes read.
    pub inspected_bytes: u64,
}

/// The answer to a search.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SearchAnswer {
    /// Newest start first, then trace id.
    pub traces: Vec<FoundTrace>,
    /// Where to continue; `None` when there is no more.
    pub next: Option<Cursor>,
    /// What the answer covers.
    pub receipt: Receipt,
}

/// A question for names: services, operations, tags or values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesRequest {
    /// Whose traces.
    pub tenant: TenantId,
    /// Which names.
    pub kind: NamesKind,
    /// Earliest trace start, inclusive.
    pub from: UnixNanos,
    /// Latest trace start, exclusive.
    pub to: UnixNanos,
    /// Most names to return.
    pub limit: usize,
    /// Only names that begin so.
    pub prefix: String,
}

/// What a [`NamesRequest`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamesKind {
    /// Services.
    Services,
    /// Operations of a service.
    Operations {
        /// The service.
        service: String,
    },
    /// Attribute keys.
    Tags,
    /// Values of an attribute.
    TagValues {
        /// The key.
        key: String,
    },
}

/// One name of an answer. Which of the details are set depends on [`NamesKind`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The service, operation, key or value.
    pub name: String,
    /// Of an operation.
    pub kind: Option<SpanKind>,
    /// Of a tag: `resource` or `span`; of a value: its type (`string`, `int`, `double`, `bool`).
    pub scope: Option<&'static str>,
    /// Of a tag: whether the index holds it.
    pub indexed: Option<bool>,
}

/// The answer to a [`NamesRequest`]: sorted, distinct.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamesAnswer {
    /// The names.
    pub names: Vec<Name>,
    /// What the answer covers.
    pub receipt: Receipt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_starts_ends_before_its_end_and_one_of_durations_with_it() {
        let filter = SearchFilter {
            from: UnixNanos(5),
            to: UnixNanos(8),
            min_duration: Some(10),
            max_duration: Some(12),
            ..SearchFilter::default()
        };
        let starts = (0..12).filter(|start| filter.admits_start(UnixNanos(*start)));
        assert_eq!(starts.collect::<Vec<_>>(), [5, 6, 7]);
        let durations = (0..20).filter(|duration| filter.admits_duration(*duration));
        assert_eq!(durations.collect::<Vec<_>>(), [10, 11, 12]);
        let open = SearchFilter::default();
        assert!(open.admits_duration(0) && open.admits_duration(u64::MAX));
    }
}
