//! Summaries of kept traces that the index does not hold yet: search reads them from memory.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use spandrel_model::ids::Bucket;
use spandrel_model::summary::TraceSummary;

/// A summary with its sequence in its block.
type Numbered = (u64, Arc<TraceSummary>);

/// Summaries by bucket, in the order of their sequence in the block.
///
/// Invariant: for each bucket it holds every summary of the block after the index's checkpoint, once replay is done.
#[derive(Debug, Default)]
pub(crate) struct RecentSummaries {
    buckets: RwLock<BTreeMap<Bucket, Vec<Numbered>>>,
}

impl RecentSummaries {
    /// Adds summaries that a block has just made durable.
    pub(crate) fn add(&self, bucket: Bucket, summaries: Vec<(u64, Arc<TraceSummary>)>) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.entry(bucket).or_default().extend(summaries);
    }

    /// The oldest `limit` summaries of a bucket.
    pub(crate) fn oldest(&self, bucket: Bucket, limit: usize) -> Vec<(u64, Arc<TraceSummary>)> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        let summaries = buckets.get(&bucket).map(Vec::as_slice).unwrap_or_default();
        summaries.iter().take(limit).cloned().collect()
    }

    /// How many summaries wait, by bucket.
    pub(crate) fn waiting(&self) -> Vec<(Bucket, usize)> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .iter()
            .map(|(bucket, summaries)| (*bucket, summaries.len()))
            .collect()
    }

    /// The index holds everything of `bucket` up to `sequence` now.
    pub(crate) fn indexed(&self, bucket: Bucket, sequence: u64) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(summaries) = buckets.get_mut(&bucket) {
            summaries.retain(|(number, _)| *number > sequence);
            if summaries.is_empty() {
                buckets.remove(&bucket);
            }
        }
    }

    /// Forgets buckets that have expired.
    pub(crate) fn expire(&self, before: Bucket) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|bucket, _| *bucket >= before);
    }

    /// Visits every waiting summary.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&Arc<TraceSummary>)) {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets
            .values()
            .flatten()
            .for_each(|(_, summary)| visit(summary));
    }
}
