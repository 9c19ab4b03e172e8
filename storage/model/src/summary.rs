//! What search knows of a trace without reading its spans.

use std::sync::Arc;

use crate::batch::{SpanKind, StatusCode};
use crate::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use crate::limits::{MAX_SUMMARY_ATTRIBUTES, MAX_SUMMARY_CLASSES};
use crate::verdict::{CERTAIN, Trigger};

/// A distinct combination within a trace: which operation of which service, of what kind, ended how.
/// With it, conditions on service, operation and status of one span are answered exactly, without reading spans.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanClass {
    /// `service.name`; the placeholder `unknown_service` when absent.
    pub service: Arc<str>,
    /// The span's name.
    pub operation: Arc<str>,
    /// The span's kind.
    pub kind: SpanKind,
    /// The span's status.
    pub status: StatusCode,
}

/// A distinct indexed attribute of a trace, from a span or a resource; the value as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeText {
    /// The key.
    pub key: Arc<str>,
    /// The value: text as it is, integers and doubles in decimal, booleans as `true` or `false`.
    pub value: Arc<str>,
}

/// The root of a trace: its span without a parent that starts first, or, without one, the span that starts first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSpan {
    /// Its id.
    pub span_id: SpanId,
    /// Its service.
    pub service: Arc<str>,
    /// Its name.
    pub operation: Arc<str>,
}

/// The verdict that kept a trace, for when the journal does not hold the record any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryDecision {
    /// Name of the policy that decided.
    pub policy: Arc<str>,
    /// Why then.
    pub trigger: Trigger,
    /// Version of the policy set.
    pub policy_version: u32,
    /// Probability in 2^-32.
    pub probability: u64,
    /// By the clock of the primary.
    pub decided_at: UnixNanos,
}

impl Default for SummaryDecision {
    /// A keep of the first policy set that every trace had.
    fn default() -> Self {
        Self {
            policy: Arc::from(""),
            trigger: Trigger::Idle,
            policy_version: 1,
            probability: CERTAIN,
            decided_at: UnixNanos(0),
        }
    }
}

/// The summary of a trace as one of its fragments knew it: cumulative, so that the highest version of a trace
/// stands for all of it.
///
/// Invariants: `earliest <= start <= end`; `error_count <= span_count`; classes and attributes are sorted and distinct and at
/// most [`MAX_SUMMARY_CLASSES`] and
/// [`MAX_SUMMARY_ATTRIBUTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSummary {
    /// Whose trace.
    pub tenant: TenantId,
    /// Its shard.
    pub shard: ShardId,
    /// The trace.
    pub trace_id: TraceId,
    /// The fragment that this summary came with: the lsn of its verdict or late record. Higher is newer.
    pub fragment: Lsn,
    /// The bucket of the fragment's block.
    pub bucket: Bucket,
    /// Earliest span start by the verdict that kept the trace: search sorts by it, and all nodes know the same one.
    pub start: UnixNanos,
    /// Earliest span start so far: the duration counts from it.
    pub earliest: UnixNanos,
    /// Latest span end so far.
    pub end: UnixNanos,
    /// The root, when a span was seen.
    pub root: Option<RootSpan>,
    /// Spans so far, duplicates not counted.
    pub span_count: u32,
    /// Spans with status error so far.
    pub error_count: u32,
    /// Distinct combinations of service, operation, kind and status.
    pub classes: Vec<SpanClass>,
    /// Distinct indexed attributes.
    pub attributes: Vec<AttributeText>,
    /// True when classes or attributes did not all fit: a search must verify such a trace on its spans.
    pub truncated: bool,
    /// The verdict that kept the trace.
    pub decision: SummaryDecision,
}

impl TraceSummary {
    /// Sorts classes and attributes, removes doubles, and cuts them to their bounds: of classes the first one of each
    /// service stays before any other.
    pub fn tidy(&mut self) {
        self.classes.sort_unstable();
        self.classes.dedup();
        self.attributes.sort_unstable();
        self.attributes.dedup();
        self.truncated |= self.classes.len() > MAX_SUMMARY_CLASSES;
        self.truncated |= self.attributes.len() > MAX_SUMMARY_ATTRIBUTES;
        if self.classes.len() > MAX_SUMMARY_CLASSES {
            let classes = std::mem::take(&mut self.classes);
            let mut last: Option<Arc<str>> = None;
            let (first, others): (Vec<_>, Vec<_>) = classes.into_iter().partition(|class| {
                let is_first = last.as_ref() != Some(&class.service);
                last = Some(Arc::clone(&class.service));
                is_first
            });
            self.classes = first.into_iter().chain(others).collect();
            self.classes.truncate(MAX_SUMMARY_CLASSES);
            self.classes.sort_unstable();
        }
        self.attributes.truncate(MAX_SUMMARY_ATTRIBUTES);
    }

    /// What two summaries of one trace say together, with the fragment and bucket of the `later` one. Start and decision
    /// stay, because search sorts by the start; the root is that of the one which has seen more. Spans that both have
    /// seen count twice.
    #[must_use]
    pub fn merged(self, later: Self) -> Self {
        let root = match self.span_count >= later.span_count {
            true => self.root.or(later.root),
            false => later.root.or(self.root),
        };
        let mut merged = Self {
            start: self.start,
            earliest: self.earliest.min(later.earliest),
            end: self.end.max(later.end),
            root,
            span_count: self.span_count.saturating_add(later.span_count),
            error_count: self.error_count.saturating_add(later.error_count),
            classes: self.classes,
            attributes: self.attributes,
            truncated: self.truncated || later.truncated,
            decision: self.decision,
            ..later
        };
        merged.classes.extend(later.classes);
        merged.attributes.extend(later.attributes);
        merged.tidy();
        merged
    }

    /// The trace's duration in nanoseconds.
    #[must_use]
    pub fn duration_nanos(&self) -> u64 {
        self.end.since(self.earliest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The summary of a giant trace was cut in alphabetical order: its last services were missing from results.
    #[test]
    fn cutting_classes_keeps_every_service() {
        let class = |service: &str, number: usize| SpanClass {
            service: service.into(),
            operation: format!("operation {number}").into(),
            kind: SpanKind::Server,
            status: StatusCode::Unset,
        };
        let many = (0..MAX_SUMMARY_CLASSES + 50).map(|number| class("cart", number));
        let mut summary = TraceSummary {
            tenant: TenantId::default(),
            shard: ShardId(0),
            trace_id: TraceId([1; 16]),
            fragment: Lsn(1),
            bucket: Bucket(0),
            start: UnixNanos(1),
            earliest: UnixNanos(1),
            end: UnixNanos(2),
            root: None,
            span_count: 1,
            error_count: 0,
            classes: many.chain([class("shipping", 0)]).collect(),
            attributes: Vec::new(),
            truncated: false,
            decision: SummaryDecision::default(),
        };

        summary.tidy();

        assert!(summary.truncated);
        assert_eq!(summary.classes.len(), MAX_SUMMARY_CLASSES);
        assert!(summary.classes.is_sorted());
        assert!(summary.classes.contains(&class("shipping", 0)));
    }
}
