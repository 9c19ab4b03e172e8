//! Which traces were decided before, by the journal.

use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};

use crate::assembler::{Decided, Prior};
use crate::shared::Shared;

/// What the journal's filters say, for live traffic.
pub(crate) struct JournalDecided<'a>(pub(crate) &'a Shared);

impl Decided for JournalDecided<'_> {
    fn prior(&self, shard: ShardId, tenant: &TenantId, trace_id: TraceId, _: Lsn) -> Prior {
        if self.0.journal.maybe_decided(shard, tenant, trace_id) {
            Prior::Ask
        } else {
            Prior::None
        }
    }
}
