//! The counters and histograms of this crate, each written in one place.

use metrics::{counter, histogram};
use spandrel_model::ids::{ShardId, UnixNanos};
use spandrel_model::otlp::{ChangedSpans, RejectedSpans};
use spandrel_model::verdict::{Verdict, VerdictRecord};

use crate::assembler::Applied;

/// Spans that a request brought, by what became of them at the edge.
pub(crate) fn received(
    accepted: u64,
    rejected: &RejectedSpans,
    changed: &ChangedSpans,
    bytes: u64,
) {
    counter!("spandrel_spans_received_total").increment(accepted + rejected.total());
    counter!("spandrel_span_bytes_received_total").increment(bytes);
    for (reason, count) in rejected.iter() {
        counter!("spandrel_spans_rejected_total", "reason" => reason.as_str()).increment(count);
    }
    for (reason, count) in changed.iter() {
        counter!("spandrel_spans_changed_total", "reason" => reason.as_str()).increment(count);
    }
}

/// A request that was refused whole, by its size: how many spans it has is not known before it is read.
pub(crate) fn refused(reason: &'static str, bytes: u64) {
    counter!("spandrel_requests_refused_total", "reason" => reason).increment(1);
    counter!("spandrel_request_bytes_refused_total", "reason" => reason).increment(bytes);
}

/// Spans that a shard applied.
pub(crate) fn applied(applied: &Applied, _: ShardId) {
    counter!("spandrel_spans_applied_total").increment(applied.spans);
    if applied.duplicates > 0 {
        counter!("spandrel_spans_duplicate_total").increment(applied.duplicates);
    }
    if applied.conflicts > 0 {
        counter!("spandrel_spans_conflicting_total").increment(applied.conflicts);
    }
    if applied.late > 0 {
        counter!("spandrel_spans_late_total").increment(applied.late);
    }
}

/// Verdicts that became durable.
pub(crate) fn decided(records: &[VerdictRecord], now: UnixNanos) {
    for record in records {
        let verdict = match record.verdict {
            Verdict::Keep => "keep",
            Verdict::Drop => "drop",
        };
        let trigger = record.trigger.as_str();
        counter!("spandrel_traces_decided_total", "verdict" => verdict, "trigger" => trigger)
            .increment(1);
        counter!("spandrel_spans_decided_total", "verdict" => verdict, "trigger" => trigger)
            .increment(u64::from(record.span_count));
    }
    if let Some(first) = records.first() {
        histogram!("spandrel_verdict_commit_seconds").record(seconds(now.since(first.decided_at)));
    }
}

/// Growth of entries that no credit covered.
pub(crate) fn uncovered(bytes: u64) {
    counter!("spandrel_credit_uncovered_bytes_total").increment(bytes);
}

#[allow(clippy::cast_precision_loss)] // a duration for people
pub(crate) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
