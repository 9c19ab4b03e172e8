//! Traces that were kept after spans had come late: of these, replicas that have joined since may lack spans, and the
//! primary brings them (`replication/recall.rs`). It may be gone before it has: the next one begins anew.

use std::collections::VecDeque;

use spandrel_model::ids::{Lsn, UnixNanos};
use spandrel_model::verdict::VerdictRecord;

use super::state::Recall;
use crate::limits::{LATE_KEEP_MS, MAX_LATE_KEEPS};

/// One of them.
#[derive(Debug)]
struct LateKeep {
    keep: VerdictRecord,
    /// The record that told of it.
    at: Lsn,
    known_at: UnixNanos,
}

/// The last of these traces, oldest first.
#[derive(Debug, Default)]
pub(crate) struct LateKeeps(VecDeque<LateKeep>);

impl LateKeeps {
    /// A trace whose spans may not be where the shard's records are.
    pub(crate) fn add(&mut self, keep: &VerdictRecord, at: Lsn, now: UnixNanos) {
        self.forget(now);
        let is_same = |late: &LateKeep| {
            late.keep.trace_id == keep.trace_id && late.keep.tenant == keep.tenant
        };
        if self.0.iter().any(is_same) {
            return;
        }
        if self.0.len() >= MAX_LATE_KEEPS {
            self.0.pop_front();
        }
        self.0.push_back(LateKeep {
            keep: keep.clone(),
            at,
            known_at: now,
        });
    }

    /// The first record that a replay needs for them.
    pub(crate) fn low_water(&self) -> Option<Lsn> {
        self.0.iter().map(|late| late.at).min()
    }

    /// What a primary that begins at `now` has to bring to all copies.
    pub(crate) fn begin(&mut self, now: UnixNanos) -> Vec<Recall> {
        self.forget(now);
        let recalls = self.0.iter().map(|late| Recall {
            tenant: late.keep.tenant.clone(),
            trace_id: late.keep.trace_id,
            keep: Some(late.keep.clone()),
        });
        recalls.collect()
    }

    /// The shard is let go. Forgets those of which records behind `last` tell, since these may never have counted. The
    /// others stay, but for them no replay begins with what is `applied`: it would find again what was let go.
    pub(crate) fn let_go(&mut self, last: Lsn, applied: Lsn) {
        self.0.retain(|late| late.at <= last);
        for late in &mut self.0 {
            late.at = late.at.max(applied.next());
        }
    }

    /// Forgets what some primary has brought long since.
    pub(crate) fn forget(&mut self, now: UnixNanos) {
        let age = LATE_KEEP_MS * UnixNanos::PER_MILLI;
        self.0.retain(|late| now.since(late.known_at) <= age);
    }
}
