//! The counters and histograms of this crate, each written in one place.

use std::time::Duration;

use metrics::{Counter, counter, gauge, histogram};
use spandrel_model::ids::{ShardId, UnixNanos};
use spandrel_model::otlp::{ChangedSpans, RejectedSpans};
use spandrel_model::verdict::{Verdict, VerdictRecord};
use spandrel_storage::page::Cardinality;

use crate::assembler::Applied;
use crate::limits::TOP_ATTRIBUTES;

/// What processor time is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Walking over requests.
    Scan,
    /// Building and compressing journal frames.
    Frame,
    /// Writing and syncing them.
    Commit,
    /// The shards' assemblers, their part of queries included.
    Assemble,
    /// Gathering spans and encoding pages of blocks.
    Page,
    /// Building the index.
    Index,
    /// Rewriting the small pages of a closed bucket.
    Seal,
    /// Reading for queries.
    Query,
    /// Giving and taking copies of older data.
    Copy,
}

/// A counter for each stage, looked up once.
pub(crate) struct StageCounters([Counter; 9]);

impl StageCounters {
    pub(crate) fn new() -> Self {
        let names = [
            "scan", "frame", "commit", "assemble", "page", "index", "seal", "query", "copy",
        ];
        Self(names.map(|stage| counter!("spandrel_stage_cpu_nanoseconds_total", "stage" => stage)))
    }

    pub(crate) fn add(&self, stage: Stage, nanos: u64) {
        self.0[stage as usize].increment(nanos);
    }
}

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

/// Replicas have everything of a shard that is led here: `went_on`, or `filled`.
pub(crate) fn replicas_joined(how: &'static str, replicas: u64) {
    counter!("spandrel_replicas_joined_total", "how" => how).increment(replicas);
}

/// A shard that is led here acknowledged nothing for so long, and why.
pub(crate) fn shard_paused(why: &'static str, pause: Duration) {
    histogram!("spandrel_shard_pause_seconds", "why" => why).record(pause);
}

/// Growth of entries that no credit covered.
pub(crate) fn uncovered(bytes: u64) {
    counter!("spandrel_credit_uncovered_bytes_total").increment(bytes);
}

/// The attribute keys with the most values. A key that left the list keeps its last figure until the node stops; there
/// are at most 256 of them.
#[allow(clippy::cast_precision_loss)] // an estimate for people
pub(crate) fn attributes(cardinality: &Cardinality) {
    for (key, values) in cardinality.top(TOP_ATTRIBUTES) {
        gauge!("spandrel_attribute_values", "key" => key.to_owned()).set(values as f64);
    }
    gauge!("spandrel_attribute_keys_not_counted").set(cardinality.left_out() as f64);
}

#[allow(clippy::cast_precision_loss)] // a duration for people
pub(crate) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A call of another node that was not taken.
pub(crate) fn link_call_refused(reason: &'static str) {
    counter!("spandrel_link_calls_refused_total", "reason" => reason).increment(1);
}

/// A connection of another node that did not become a session.
pub(crate) fn link_connection_refused() {
    counter!("spandrel_link_connections_refused_total").increment(1);
}

/// A session with a member that has ended.
pub(crate) fn link_ended(reason: &'static str) {
    counter!("spandrel_link_sessions_ended_total", "reason" => reason).increment(1);
}

/// Shipments of pages to followers, one for each that was to get it.
pub(crate) fn pages_shipped(outcome: &'static str) {
    counter!("spandrel_page_shipments_total", "outcome" => outcome).increment(1);
}

/// Pages of primaries that a follower has taken.
pub(crate) fn pages_taken(pages: u64) {
    counter!("spandrel_pages_received_total", "outcome" => "taken").increment(pages);
}

/// A page of a primary that a follower builds itself, and why.
pub(crate) fn page_refused(why: &'static str) {
    counter!("spandrel_pages_received_total", "outcome" => why).increment(1);
}

/// Spans of blocks that were counted, to be compared with other nodes.
pub(crate) fn spans_counted(spans: u64) {
    counter!("spandrel_inventory_spans_total").increment(spans);
}

/// A bucket of which every node that should hold the same has been asked.
pub(crate) fn bucket_compared() {
    counter!("spandrel_inventory_buckets_total").increment(1);
}

/// Spans that this node lacked and another one had.
pub(crate) fn spans_mended(spans: u64) {
    counter!("spandrel_inventory_spans_mended_total").increment(spans);
}

/// A page that could not be read and was taken out, since what it held came from another node.
pub(crate) fn page_replaced() {
    counter!("spandrel_inventory_pages_replaced_total").increment(1);
}
