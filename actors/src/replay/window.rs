//! What was decided within the range of a replay, known before its first span is read.

use std::sync::OnceLock;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smallvec::SmallVec;
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
use spandrel_model::verdict::{Verdict, VerdictRecord};

use crate::shared::{Shared, or_lost};

/// A verdict within the range.
struct Known {
    tenant: TenantId,
    input_lsn: Lsn,
    verdict: Verdict,
    /// Of a keep: the trace's records up to this one are in blocks; 0 when none is. Looked up once.
    paged: OnceLock<Lsn>,
}

/// The verdicts within the range of a replay, by trace.
pub(super) struct Window<'a> {
    shared: &'a Shared,
    known: HashMap<(ShardId, TraceId), SmallVec<[Known; 1]>, FixedState>,
}

impl<'a> Window<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            known: HashMap::default(),
        }
    }

    pub(super) fn add(&mut self, shard: ShardId, record: VerdictRecord) {
        let known = Known {
            tenant: record.tenant,
            input_lsn: record.input_lsn,
            verdict: record.verdict,
            paged: OnceLock::new(),
        };
        let verdicts = self.known.entry((shard, record.trace_id)).or_default();
        verdicts.push(known);
    }

    fn verdicts<'b>(
        &'b self,
        shard: ShardId,
        tenant: &'b TenantId,
        trace_id: TraceId,
    ) -> impl Iterator<Item = &'b Known> {
        let known = self.known.get(&(shard, trace_id)).into_iter().flatten();
        known.filter(move |known| known.tenant == *tenant)
    }

    /// The record that the newest verdict about the trace has read; `None` when there is no verdict.
    pub(super) fn last_input(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Option<Lsn> {
        let verdicts = self.verdicts(shard, tenant, trace_id);
        verdicts.map(|known| known.input_lsn).max()
    }

    /// True when nothing needs the trace's part of record `lsn` any more: a drop has read it, or it is in a block.
    /// What would become of it in a replay is nothing: the verdict that follows takes its entry away.
    ///
    /// # Errors
    /// When a block cannot be read.
    pub(super) fn is_settled(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        trace_id: TraceId,
        lsn: Lsn,
    ) -> Result<bool, String> {
        for known in self.verdicts(shard, tenant, trace_id) {
            let settled_to = match known.verdict {
                Verdict::Drop => known.input_lsn,
                Verdict::Keep => self.paged(known, shard, trace_id)?,
            };
            if lsn <= settled_to {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn paged(&self, known: &Known, shard: ShardId, trace_id: TraceId) -> Result<Lsn, String> {
        if let Some(paged) = known.paged.get() {
            return Ok(*paged);
        }
        let newest = newest_fragment(self.shared, shard, &known.tenant, trace_id)?;
        Ok(*known.paged.get_or_init(|| newest.unwrap_or_default()))
    }
}

/// The newest fragment of a trace that this node wrote to its blocks: it covers every record of the trace up to it. One
/// that was copied from another node covers what that node had. `None` also when a block is damaged there: the trace is
/// written again from what the journal has.
///
/// # Errors
/// When a block cannot be read, and may be the next time.
pub(super) fn newest_fragment(
    shared: &Shared,
    shard: ShardId,
    tenant: &TenantId,
    trace_id: TraceId,
) -> Result<Option<Lsn>, String> {
    let fragments = shared.blocks.fragments(tenant, shard, trace_id);
    let fragments = or_lost(trace_id, fragments).map_err(|error| error.to_string())?;
    let written = fragments.iter().map(|location| location.fragment);
    Ok(written.filter(|fragment| !fragment.is_copied()).max())
}
