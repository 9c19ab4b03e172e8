//! Summaries of a block by their sequence, through a cache of opened batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spandrel_model::ids::{Bucket, ShardId, TenantId, TraceId};
use spandrel_model::summary::TraceSummary;

use super::error::{BlockError, corrupt, guarded};
use super::limits::MAX_SUMMARIES;
use super::read::FragmentLocation;
use super::schema::SUMMARIES;
use super::store::BlockStore;
use super::summaries::Batch;
use crate::byte_cache::ByteCache;

/// A batch: the id of its block and the sequence of its first summary. Neither is ever used again for another one,
/// and a batch never changes, so what is cached cannot be stale.
type BatchKey = (u64, u64);

/// Opened batches of all blocks.
#[derive(Debug)]
pub(super) struct BatchCache(Mutex<ByteCache<BatchKey, Arc<Batch>>>);

impl BatchCache {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Self(Mutex::new(ByteCache::new(capacity_bytes)))
    }

    /// Forgets a block that is gone.
    pub(super) fn forget(&self, block_id: u64) {
        self.lock().retain(|(block, _)| *block != block_id);
    }

    /// The batch that holds a sequence, with its first one.
    fn get(&self, block_id: u64, sequence: u64) -> Option<(u64, Arc<Batch>)> {
        let ((block, first), batch) = self.lock().get_at_or_before((block_id, sequence))?;
        let holds = block == block_id && sequence - first < batch.len() as u64;
        holds.then_some((first, batch))
    }

    fn insert(&self, block_id: u64, first: u64, batch: &Arc<Batch>) {
        let bytes = batch.memory_bytes();
        self.lock()
            .insert((block_id, first), Arc::clone(batch), bytes);
    }

    fn lock(&self) -> MutexGuard<'_, ByteCache<BatchKey, Arc<Batch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockStore {
    /// The summaries of a block after a sequence, in order, at most `limit` and 100,000.
    ///
    /// # Errors
    /// When the block cannot be read, or a batch is corrupt or not in its place.
    pub fn summaries(
        &self,
        bucket: Bucket,
        after_sequence: u64,
        limit: usize,
    ) -> Result<Vec<(u64, TraceSummary)>, BlockError> {
        guarded(|| {
            let limit = limit.min(MAX_SUMMARIES);
            let view = self.view(bucket)?;
            let batches = view.table(SUMMARIES)?;
            let next = after_sequence.saturating_add(1);
            let last = view.meta()?.last_sequence;
            let mut found = Vec::new();
            if next > last {
                return Ok(found);
            }
            let holds_next = batches.range(..=next)?.next_back();
            let mut first = holds_next.ok_or_else(lost_batch)??.0.value();
            // Read past the cache: a walk over all batches would push out those that searches come back to.
            for row in batches.range(first..)? {
                let (key, stored) = row?;
                let batch = open_batch(stored.value(), bucket)?;
                let end = first.saturating_add(batch.len() as u64);
                // Sequences have no gaps: what is not in its place was lost, whatever the checksums say.
                if key.value() != first || end <= next {
                    return Err(lost_batch());
                }
                for (sequence, number) in (first..end).zip(0..) {
                    if sequence >= next && found.len() < limit {
                        found.push((sequence, summary_in(&batch, number)?));
                    }
                }
                first = end;
                if found.len() >= limit {
                    return Ok(found);
                }
            }
            match first > last {
                true => Ok(found),
                false => Err(lost_batch()),
            }
        })
    }

    /// The newest summary of a trace: that of its highest fragment.
    ///
    /// # Errors
    /// When a block cannot be read, or a batch is corrupt.
    pub fn summary_of(
        &self,
        tenant: &TenantId,
        shard: ShardId,
        trace: TraceId,
    ) -> Result<Option<TraceSummary>, BlockError> {
        self.newest_summary(&self.fragments(tenant, shard, trace)?)
    }

    /// The newest summary among the fragments of one trace: that of the highest fragment which has one.
    ///
    /// # Errors
    /// When a block cannot be read, or the batch is corrupt.
    pub fn newest_summary(
        &self,
        fragments: &[FragmentLocation],
    ) -> Result<Option<TraceSummary>, BlockError> {
        match newest_with_summary(fragments) {
            Some(newest) => self.summary_at(newest.bucket, newest.sequence).map(Some),
            None => Ok(None),
        }
    }

    /// [`Self::newest_summary`] of many traces, in their order. Looked up in the order in which the blocks hold
    /// them, so that a batch is opened once however small the cache is.
    pub fn newest_summaries<T: AsRef<[FragmentLocation]>>(
        &self,
        traces: &[T],
    ) -> Vec<Result<Option<TraceSummary>, BlockError>> {
        let mut order: Vec<(Bucket, u64, usize)> = Vec::with_capacity(traces.len());
        for (index, fragments) in traces.iter().enumerate() {
            if let Some(newest) = newest_with_summary(fragments.as_ref()) {
                order.push((newest.bucket, newest.sequence, index));
            }
        }
        order.sort_unstable();
        let mut found: Vec<_> = traces.iter().map(|_| Ok(None)).collect();
        for (bucket, sequence, index) in order {
            if let Some(place) = found.get_mut(index) {
                *place = self.summary_at(bucket, sequence).map(Some);
            }
        }
        found
    }

    /// The summary that a locator speaks of.
    pub(super) fn summary_at(
        &self,
        bucket: Bucket,
        sequence: u64,
    ) -> Result<TraceSummary, BlockError> {
        guarded(|| {
            let file = self.file(bucket)?;
            let block_id = file.meta().block_id;
            let (first, batch) = match self.batches.get(block_id, sequence) {
                Some(cached) => cached,
                None => {
                    let view = file.view(&self.open)?;
                    let table = view.table(SUMMARIES)?;
                    let row = table.range(..=sequence)?.next_back();
                    let (first, stored) = row.ok_or_else(lost_batch)??;
                    let batch = Arc::new(open_batch(stored.value(), bucket)?);
                    self.batches.insert(block_id, first.value(), &batch);
                    (first.value(), batch)
                }
            };
            let number = sequence.checked_sub(first).map(usize::try_from);
            match number {
                Some(Ok(number)) if number < batch.len() => summary_in(&batch, number),
                _ => Err(lost_batch()),
            }
        })
    }
}

fn newest_with_summary(fragments: &[FragmentLocation]) -> Option<&FragmentLocation> {
    let with_summary = fragments.iter().filter(|fragment| fragment.sequence > 0);
    with_summary.max_by_key(|location| location.fragment.age())
}

fn open_batch(stored: &[u8], bucket: Bucket) -> Result<Batch, BlockError> {
    Batch::open(stored, bucket).ok_or_else(|| corrupt("batch of summaries"))
}

fn lost_batch() -> BlockError {
    corrupt("place of a batch of summaries")
}

fn summary_in(batch: &Batch, number: usize) -> Result<TraceSummary, BlockError> {
    batch
        .summary(number)
        .ok_or_else(|| corrupt("batch of summaries"))
}
