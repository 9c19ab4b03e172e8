//! Summaries of kept traces that the index does not hold yet: search reads them from memory.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use spandrel_model::ids::{Bucket, UnixNanos};
use spandrel_model::summary::TraceSummary;

/// A summary with its sequence in its block.
type Numbered = (u64, Arc<TraceSummary>);

/// The summaries of one bucket, in the order of their sequence in the block.
///
/// Invariant: `oldest_decision` is the earliest decision of `summaries`.
#[derive(Debug)]
struct Waiting {
    summaries: Vec<Numbered>,
    oldest_decision: UnixNanos,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            summaries: Vec::new(),
            oldest_decision: UnixNanos(u64::MAX),
        }
    }
}

impl Waiting {
    fn add(&mut self, summaries: Vec<Numbered>) {
        self.oldest_decision = self.oldest_decision.min(oldest_decision(&summaries));
        self.summaries.extend(summaries);
    }

    fn indexed(&mut self, sequence: u64) {
        self.summaries.retain(|(number, _)| *number > sequence);
        self.oldest_decision = oldest_decision(&self.summaries);
    }
}

fn oldest_decision(summaries: &[Numbered]) -> UnixNanos {
    let decisions = summaries
        .iter()
        .map(|(_, summary)| summary.decision.decided_at);
    decisions.min().unwrap_or(UnixNanos(u64::MAX))
}

/// Summaries by bucket.
///
/// Invariant: for each bucket it holds every summary of the block after the index's checkpoint, once replay is done.
#[derive(Debug, Default)]
pub(crate) struct RecentSummaries {
    buckets: RwLock<BTreeMap<Bucket, Waiting>>,
}

impl RecentSummaries {
    /// Adds summaries that a block has just made durable.
    pub(crate) fn add(&self, bucket: Bucket, summaries: Vec<Numbered>) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.entry(bucket).or_default().add(summaries);
    }

    /// The oldest `limit` summaries of a bucket.
    pub(crate) fn oldest(&self, bucket: Bucket, limit: usize) -> Vec<Numbered> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        let summaries = buckets.get(&bucket).map(|waiting| &*waiting.summaries);
        let summaries = summaries.unwrap_or_default().iter();
        summaries.take(limit).cloned().collect()
    }

    /// The sequence of the oldest summary of a bucket.
    pub(crate) fn first_sequence(&self, bucket: Bucket) -> Option<u64> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        let (sequence, _) = buckets.get(&bucket)?.summaries.first()?;
        Some(*sequence)
    }

    /// When the oldest of all was decided; `None` when none waits.
    pub(crate) fn oldest_decision(&self) -> Option<UnixNanos> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .values()
            .map(|waiting| waiting.oldest_decision)
            .min()
    }

    /// How many summaries wait, by bucket.
    pub(crate) fn waiting(&self) -> Vec<(Bucket, usize)> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .iter()
            .map(|(bucket, waiting)| (*bucket, waiting.summaries.len()))
            .collect()
    }

    /// The index holds everything of `bucket` up to `sequence` now.
    pub(crate) fn indexed(&self, bucket: Bucket, sequence: u64) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = buckets.get_mut(&bucket) {
            waiting.indexed(sequence);
            if waiting.summaries.is_empty() {
                buckets.remove(&bucket);
            }
        }
    }

    /// Forgets buckets that have expired.
    pub(crate) fn expire(&self, before: Bucket) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|bucket, _| *bucket >= before);
    }

    /// Visits every waiting summary, with its sequence in its block.
    pub(crate) fn visit(&self, mut visit: impl FnMut(u64, &Arc<TraceSummary>)) {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .values()
            .flat_map(|waiting| &waiting.summaries)
            .for_each(|(sequence, summary)| visit(*sequence, summary));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
    use spandrel_model::summary::SummaryDecision;

    fn summary(sequence: u64, decided_at: u64) -> Numbered {
        let summary = TraceSummary {
            tenant: TenantId::default(),
            shard: ShardId(0),
            trace_id: TraceId([1; 16]),
            fragment: Lsn(sequence),
            bucket: Bucket(1),
            start: UnixNanos(0),
            earliest: UnixNanos(0),
            end: UnixNanos(0),
            root: None,
            span_count: 1,
            error_count: 0,
            classes: Vec::new(),
            attributes: Vec::new(),
            truncated: false,
            decision: SummaryDecision {
                decided_at: UnixNanos(decided_at),
                ..SummaryDecision::default()
            },
        };
        (sequence, Arc::new(summary))
    }

    #[test]
    fn the_oldest_decision_follows_what_waits() {
        let recent = RecentSummaries::default();
        assert_eq!(recent.oldest_decision(), None);
        recent.add(Bucket(1), vec![summary(1, 50), summary(2, 30)]);
        recent.add(Bucket(1), vec![summary(3, 40)]);
        recent.add(Bucket(2), vec![summary(1, 35)]);
        assert_eq!(recent.oldest_decision(), Some(UnixNanos(30)));
        assert_eq!(recent.first_sequence(Bucket(1)), Some(1));
        recent.indexed(Bucket(1), 2);
        assert_eq!(recent.first_sequence(Bucket(1)), Some(3));
        assert_eq!(recent.oldest_decision(), Some(UnixNanos(35)));
        recent.indexed(Bucket(2), 1);
        assert_eq!(recent.oldest_decision(), Some(UnixNanos(40)));
        recent.expire(Bucket(2));
        assert_eq!(recent.oldest_decision(), None);
    }
}
