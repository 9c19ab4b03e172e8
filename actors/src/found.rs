//! A result of a search from what a live entry or a summary says of a trace.

use std::collections::BTreeSet;

use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{SpanId, TraceId, UnixNanos};
use spandrel_model::limits::MAX_MATCHED_SPANS;
use spandrel_model::search::{FoundTrace, TraceState};
use spandrel_model::summary::RootSpan;

/// What is known of a trace.
pub(crate) struct TraceFacts<'a> {
    pub(crate) trace_id: TraceId,
    pub(crate) root: Option<&'a RootSpan>,
    pub(crate) root_status: StatusCode,
    /// Its place in the order of results.
    pub(crate) start: UnixNanos,
    pub(crate) earliest: UnixNanos,
    /// In nanoseconds.
    pub(crate) duration: u64,
    pub(crate) span_count: u32,
    pub(crate) error_count: u32,
    pub(crate) state: TraceState,
}

impl TraceFacts<'_> {
    /// The result; each service and each matched span once, of the spans the first ones.
    pub(crate) fn found<'s>(
        self,
        services: impl Iterator<Item = &'s str>,
        matched: impl Iterator<Item = SpanId>,
    ) -> FoundTrace {
        let services: BTreeSet<&str> = services.collect();
        let text = |of: fn(&RootSpan) -> &str| self.root.map(of).unwrap_or_default().to_owned();
        let mut seen = BTreeSet::new();
        FoundTrace {
            trace_id: self.trace_id,
            root_service: text(|root| &root.service),
            root_operation: text(|root| &root.operation),
            start: self.start,
            earliest: self.earliest,
            duration: self.duration,
            status: match self.error_count {
                0 => self.root_status,
                _ => StatusCode::Error,
            },
            span_count: self.span_count,
            error_count: self.error_count,
            services: services.into_iter().map(str::to_owned).collect(),
            state: self.state,
            matched_spans: matched
                .filter(|span| seen.insert(*span))
                .take(MAX_MATCHED_SPANS)
                .collect(),
        }
    }
}
