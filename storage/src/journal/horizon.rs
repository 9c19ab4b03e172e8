//! The verdict horizon: what was decided about a trace, for as long as its slice is held.

use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
use spandrel_model::verdict::VerdictRecord;

use super::error::{Corruption, JournalError};
use super::filter::trace_hash;
use super::journal::Journal;

impl Journal {
    /// Whether a verdict about the trace may be held. Memory only, one cache line for each slice. Never a false no
    /// for a verdict that was committed and whose slice is still held; about 1 unknown trace in 500 gets a false yes
    /// from each slice.
    #[must_use]
    pub fn maybe_decided(&self, shard: ShardId, tenant: &TenantId, trace: TraceId) -> bool {
        let mut seed = self.options.hash_seed;
        let mut hash = trace_hash(seed, shard, tenant, trace);
        self.slice_list().iter().rev().any(|slice| {
            if slice.created.hash_seed != seed {
                seed = slice.created.hash_seed;
                hash = trace_hash(seed, shard, tenant, trace);
            }
            slice.may_hold_verdict(shard, hash)
        })
    }

    /// The newest verdict about the trace. Reads disk when a slice may hold one and the frame is not in memory.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] when the frame that should hold it cannot be read, [`JournalError::Disk`] when the
    /// store cannot be.
    pub fn verdict(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        trace: TraceId,
    ) -> Result<Option<VerdictRecord>, JournalError> {
        self.verdict_up_to(shard, tenant, trace, Lsn(u64::MAX))
    }

    /// The newest verdict on a trace that stands in a record up to `last`: later ones may not count.
    ///
    /// # Errors
    ///
    /// As [`Self::verdict`].
    pub fn verdict_up_to(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        trace: TraceId,
        last: Lsn,
    ) -> Result<Option<VerdictRecord>, JournalError> {
        // A verdict may stand in the journal again, behind newer ones: the one that has read most is the newest.
        let mut newest: Option<VerdictRecord> = None;
        for slice in self.held_slices().iter().rev() {
            let hash = slice.hash(shard, tenant, trace);
            let positions = slice.verdict_positions(shard, hash);
            let positions = positions.map_err(|error| error.during("look a verdict up"))?;
            for (id, index) in positions {
                let frame = match self.frame(id) {
                    Err(JournalError::Gone { .. }) => continue,
                    read => read?,
                };
                let found = frame
                    .verdict_at(index as usize)
                    .map_err(|error| Corruption {
                        slice: slice.id,
                        frame: Some(id),
                        lost: Vec::new(),
                        reason: error.to_string(),
                    })?;
                if let Some((_, verdict)) = found.filter(|(head, verdict)| {
                    head.shard == shard
                        && verdict.tenant == *tenant
                        && verdict.trace_id == trace
                        && head.lsn <= last
                        && !self.is_void(shard, head.lsn)
                }) {
                    let known = newest.as_ref().map(|newest| newest.input_lsn);
                    if known < Some(verdict.input_lsn) {
                        newest = Some(verdict);
                    }
                }
            }
        }
        Ok(newest)
    }
}
