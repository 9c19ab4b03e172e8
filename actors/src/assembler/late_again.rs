//! Which repeated spans are late ones: those of dropped traces whose verdict was repeated right before them.

use std::collections::{BTreeSet, VecDeque};

use spandrel_model::ids::{Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::Verdict;

use crate::limits::LATE_AGAIN_MS;

/// Verdicts that are repeated for replicas come before the late spans of their traces, if any are held.
#[derive(Debug, Default)]
pub(crate) struct LateAgain {
    traces: BTreeSet<(TenantId, TraceId)>,
    /// Spans have come since the first of these verdicts: the next verdicts begin anew.
    spans_came: bool,
    /// When the last one came.
    at: UnixNanos,
    /// The last one is open while there are `traces`: their spans may still come.
    rounds: VecDeque<Round>,
}

/// Verdicts, and the spans that follow them.
#[derive(Debug)]
struct Round {
    /// The record that holds the first verdict: without it a replay takes the spans for known ones.
    since: Lsn,
    /// The record of the last spans.
    last: Lsn,
}

impl LateAgain {
    /// A verdict about a trace, in record `lsn`.
    pub(crate) fn add(
        &mut self,
        (tenant, trace_id): (&TenantId, TraceId),
        verdict: Verdict,
        lsn: Lsn,
        now: UnixNanos,
    ) {
        self.at = now;
        if std::mem::take(&mut self.spans_came) {
            self.traces.clear();
        }
        if verdict == Verdict::Drop {
            if self.traces.is_empty() {
                self.rounds.push_back(Round {
                    since: lsn,
                    last: lsn,
                });
            }
            self.traces.insert((tenant.clone(), trace_id));
        }
    }

    /// Forgets traces whose spans have come long since, and rounds of whose spans no entry holds any: `first` is the first
    /// record that one holds.
    pub(crate) fn forget(&mut self, now: UnixNanos, first: Option<Lsn>) {
        if now.since(self.at) > LATE_AGAIN_MS * UnixNanos::PER_MILLI {
            self.traces.clear();
        }
        let open = (!self.traces.is_empty()).then(|| self.rounds.pop_back());
        let is_needed = |round: &Round| first.is_some_and(|first| first <= round.last);
        self.rounds.retain(is_needed);
        self.rounds.extend(open.flatten());
    }

    /// The first record that a replay needs for it.
    pub(crate) fn low_water(&self) -> Option<Lsn> {
        self.rounds.front().map(|round| round.since)
    }

    /// Spans are being repeated, in this record.
    pub(crate) fn spans_come(&mut self, lsn: Lsn) {
        self.spans_came = true;
        if let (false, Some(round)) = (self.traces.is_empty(), self.rounds.back_mut()) {
            round.last = lsn;
        }
    }

    pub(crate) fn contains(&self, tenant: &TenantId, trace_id: TraceId) -> bool {
        self.traces.contains(&(tenant.clone(), trace_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each fill began within two minutes of the one before, and the mark of the shard stayed at the first of them: a
    /// restart replayed the whole journal.
    #[test]
    fn a_replay_needs_the_verdicts_of_spans_that_are_held_and_of_no_others() {
        let (mut late, tenant) = (LateAgain::default(), TenantId::default());
        let now = UnixNanos(UnixNanos::PER_SECOND);
        for fill in [10, 20, 30] {
            let trace = (&tenant, TraceId([1; 16]));
            late.add(trace, Verdict::Drop, Lsn(fill), now);
            late.spans_come(Lsn(fill + 5));
        }
        assert_eq!(late.low_water(), Some(Lsn(10)));
        // when the first record that an entry holds is of the second fill
        late.forget(now, Some(Lsn(24)));
        assert_eq!(late.low_water(), Some(Lsn(20)));
        // and when none holds any: the last one is not over
        late.forget(now, None);
        assert_eq!(late.low_water(), Some(Lsn(30)));
        late.forget(UnixNanos(1_000 * UnixNanos::PER_SECOND), None);
        assert_eq!(late.low_water(), None);
    }
}
