//! Which repeated spans are late ones: those of dropped traces whose verdict was repeated right before them.

use std::collections::BTreeSet;

use spandrel_model::ids::{Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::{Verdict, VerdictRecord};

use crate::limits::LATE_AGAIN_MS;

/// Verdicts that are repeated for replicas come before the late spans of their traces, if any are held.
#[derive(Debug, Default)]
pub(crate) struct LateAgain {
    traces: BTreeSet<(TenantId, TraceId)>,
    /// Spans have come since the first of these verdicts: the next verdicts begin anew.
    spans_came: bool,
    /// When the last one came.
    at: UnixNanos,
    /// The record that holds the first verdict of those that were not forgotten: without it a replay takes the spans for
    /// known ones.
    since: Option<Lsn>,
}

impl LateAgain {
    pub(crate) fn add(&mut self, record: &VerdictRecord, lsn: Lsn, now: UnixNanos) {
        self.at = now;
        if std::mem::take(&mut self.spans_came) {
            self.traces.clear();
        }
        if record.verdict == Verdict::Drop {
            self.since.get_or_insert(lsn);
            self.traces.insert((record.tenant.clone(), record.trace_id));
        }
    }

    /// Their spans have come long since.
    pub(crate) fn forget(&mut self, now: UnixNanos) {
        if now.since(self.at) > LATE_AGAIN_MS * UnixNanos::PER_MILLI {
            self.traces.clear();
            self.since = None;
        }
    }

    /// The first record that a replay needs for it.
    pub(crate) fn low_water(&self) -> Option<Lsn> {
        self.since
    }

    /// Spans are being repeated.
    pub(crate) fn spans_come(&mut self) {
        self.spans_came = true;
    }

    pub(crate) fn contains(&self, tenant: &TenantId, trace_id: TraceId) -> bool {
        self.traces.contains(&(tenant.clone(), trace_id))
    }
}
