//! What was sent and what was acknowledged: all that a client can hold a node to.

use std::collections::{BTreeMap, BTreeSet};

use spandrel_model::ids::{SpanId, TraceId};

use crate::workload::{Export, SentSpan};

/// What is known of one trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceHistory {
    /// Spans of requests that went out, whatever became of them: such a span may be there.
    pub sent: BTreeSet<SpanId>,
    /// Spans of requests that were acknowledged: such a span must be there.
    pub acknowledged: BTreeSet<SpanId>,
    /// A span with status error was acknowledged: the trace must be kept.
    pub error_acknowledged: bool,
}

/// Everything that was sent to a node.
///
/// Invariant: what was acknowledged was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    traces: BTreeMap<TraceId, TraceHistory>,
}

impl History {
    /// Notes a request. Call it before the request goes out.
    pub fn sent(&mut self, export: &Export) {
        for SentSpan { trace, span, .. } in &export.spans {
            self.traces.entry(*trace).or_default().sent.insert(*span);
        }
    }

    /// Notes the acknowledgement of a request that was noted as sent.
    pub fn acknowledged(&mut self, export: &Export) {
        for sent in &export.spans {
            let trace = self.traces.entry(sent.trace).or_default();
            trace.acknowledged.insert(sent.span);
            trace.error_acknowledged |= sent.error;
        }
        self.check(export);
    }

    /// All that another history knows.
    pub fn merge(&mut self, other: Self) {
        for (id, theirs) in other.traces {
            let ours = self.traces.entry(id).or_default();
            ours.sent.extend(theirs.sent);
            ours.acknowledged.extend(theirs.acknowledged);
            ours.error_acknowledged |= theirs.error_acknowledged;
        }
    }

    /// The traces of which something was sent, by id.
    pub fn traces(&self) -> impl Iterator<Item = (TraceId, &TraceHistory)> {
        self.traces.iter().map(|(id, trace)| (*id, trace))
    }

    /// One trace.
    #[must_use]
    pub fn trace(&self, id: TraceId) -> Option<&TraceHistory> {
        self.traces.get(&id)
    }

    /// Spans that were acknowledged.
    #[must_use]
    pub fn acknowledged_spans(&self) -> usize {
        self.traces
            .values()
            .map(|trace| trace.acknowledged.len())
            .sum()
    }

    fn check(&self, export: &Export) {
        for SentSpan { trace, .. } in &export.spans {
            let trace = self.traces.get(trace);
            let holds = trace.is_some_and(|trace| trace.acknowledged.is_subset(&trace.sent));
            debug_assert!(
                holds,
                "a span was acknowledged that was never noted as sent"
            );
        }
    }
}
