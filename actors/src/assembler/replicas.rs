//! What replicas need of a shard: state that is repeated for one that joins, obeying, starting anew.

use spandrel_model::ids::{Bucket, Lsn, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::{Trigger, Verdict, VerdictRecord};

use super::entry::Phase;
use super::late_again::LateAgain;
use super::state::{Earlier, Effects, HeldFrom, Recall, ShardState, Step};

/// A trace that a shard holds, with what a replica that joins must know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldTrace {
    /// Whose trace.
    pub tenant: TenantId,
    /// The trace.
    pub trace_id: TraceId,
    /// Records that hold its spans.
    pub references: Vec<Lsn>,
    /// The durable verdict under which it stands.
    pub verdict: Option<VerdictRecord>,
}

impl ShardState {
    pub(super) fn is_again(&self, slot: u32) -> bool {
        let entry = self.slots[slot as usize].as_ref();
        entry.is_some_and(|entry| entry.again)
    }

    /// The verdicts of a record that repeats them for replicas that have just joined: those have the traces open, or know
    /// them as dropped from the time before they left the shard.
    pub fn verdicts_again(
        &mut self,
        lsn: Lsn,
        records: &[VerdictRecord],
        step: &Step<'_>,
        effects: &mut Effects,
    ) {
        let late = &mut self.late;
        for record in records {
            let trace = (&record.tenant, record.trace_id);
            late.add(trace, record.verdict, lsn, step.now);
        }
        for record in records.iter().filter(|it| it.verdict == Verdict::Drop) {
            self.repeat_drop(record);
        }
        let is_news = |record: &&VerdictRecord| {
            let slot = self.find(&record.tenant, record.trace_id);
            let entry = slot.and_then(|slot| self.slots[slot as usize].as_ref());
            entry.is_some_and(|entry| match &entry.phase {
                Phase::Open => true,
                // A keep is never undone; of drops the journal knows whether they are the newest.
                Phase::Unconfirmed(_) => record.verdict == Verdict::Keep,
                Phase::LateDropped(known) => {
                    record.verdict == Verdict::Keep || known.input_lsn < record.input_lsn
                }
                Phase::Deciding(own) => {
                    let known = own.earlier.as_ref();
                    known.is_none_or(|known| known.input_lsn < record.input_lsn)
                }
                Phase::Kept(_) => false,
            })
        };
        let news: Vec<VerdictRecord> = records.iter().filter(is_news).cloned().collect();
        news.iter().for_each(|record| self.note_partial(record));
        self.verdicts_committed(lsn, &news, step, effects);
    }

    /// The journal is being asked about a trace, and may say that it was kept since this drop.
    fn repeat_drop(&mut self, drop: &VerdictRecord) {
        let Some(slot) = self.find(&drop.tenant, drop.trace_id) else {
            return;
        };
        let entry = self.slots[slot as usize].as_ref();
        let Some(Phase::Unconfirmed(known)) = entry.map(|entry| &entry.phase) else {
            return;
        };
        let is_newer = |known: &VerdictRecord| known.input_lsn < drop.input_lsn;
        if known.as_deref().is_none_or(is_newer) {
            self.set_phase(slot, Phase::Unconfirmed(Some(Box::new(drop.clone()))));
        }
    }

    /// Of a trace with late spans only these may have been repeated: its entry is partial when it cannot have seen all
    /// that the verdict has read.
    fn note_partial(&mut self, record: &VerdictRecord) {
        let slot = self.find(&record.tenant, record.trace_id);
        if let Some(entry) = slot.and_then(|slot| self.slots[slot as usize].as_mut()) {
            let is_whole = entry.span_count() >= record.span_count
                && entry.earliest() <= record.start
                && entry.end >= record.end;
            entry.partial |= !is_whole;
        }
    }

    /// Whether spans of a trace, whose keep stands in record `at`, may be missing on replicas; notes it if so.
    pub fn kept_late(&mut self, keep: &VerdictRecord, at: Lsn, now: UnixNanos) -> bool {
        let terms = (keep.references.first(), keep.references.last());
        // Whoever has a record of a term has all of them: none joins the in-sync set within one.
        let is_of_one_term =
            matches!(terms, (Some(first), Some(last)) if first.term() == last.term());
        let is_late = matches!(keep.trigger, Trigger::LateSpan | Trigger::Promoted);
        let may_lack = is_late && !is_of_one_term;
        if may_lack {
            self.late_keeps.add(keep, at, now);
        }
        may_lack
    }

    /// Whether replicas that have joined since may lack what was kept of a trace before its late spans came, in record
    /// `late` or the next one; notes it if so.
    pub(super) fn kept_before(
        &mut self,
        late: Option<Lsn>,
        earlier: &Earlier,
        now: UnixNanos,
    ) -> bool {
        let is_older = earlier.record.input_lsn.term() < self.applied.term();
        let may_lack = earlier.record.verdict == Verdict::Keep && (!earlier.is_here || is_older);
        if may_lack {
            let at = late.unwrap_or(self.applied);
            self.late_keeps.add(&earlier.record, at, now);
        }
        may_lack
    }

    /// This node decides from now on: what it has to bring to all copies, because the primary before it may not have
    /// done so.
    pub fn begin_deciding(&mut self, now: UnixNanos) -> Vec<Recall> {
        self.late_keeps.begin(now)
    }

    /// This node decides no more: verdicts that are on their way may never count.
    pub fn stop_deciding(&mut self) {
        for slot in 0..self.slots.len() {
            let earlier = match self.slots[slot].as_ref().map(|entry| &entry.phase) {
                Some(Phase::Deciding(deciding)) => deciding.earlier.clone(),
                _ => continue,
            };
            let phase = match earlier {
                Some(record) => Phase::LateDropped(Box::new(record)),
                None => Phase::Open,
            };
            self.set_phase(u32::try_from(slot).unwrap_or(u32::MAX), phase);
        }
    }

    /// Lets go of the traces but for those whose keep stands in a record up to `kept_up_to`: of these this node's copy is
    /// counted on, so they stay until they are in a block ([`Self::page_kept`]). The shard is elsewhere, or starts anew
    /// here; what it gets from then on comes behind `applied`.
    pub fn let_go(&mut self, kept_up_to: Lsn, applied: Lsn) {
        for slot in 0..self.slots.len() {
            let phase = self.slots[slot].as_ref().map(|entry| &entry.phase);
            let stays = matches!(phase, Some(Phase::Kept(kept)) if kept.at <= kept_up_to);
            if !stays {
                self.remove(u32::try_from(slot).unwrap_or(u32::MAX));
            }
        }
        self.applied = self.applied.max(applied);
        self.late = LateAgain::default();
        self.late_keeps.let_go(kept_up_to, self.applied);
        self.held_from = HeldFrom::Next;
    }

    /// The kept traces wait for no more spans before they are written to a page.
    pub fn page_kept(&mut self) {
        for entry in self.slots.iter_mut().flatten() {
            if let Phase::Kept(kept) = &mut entry.phase {
                kept.ready = true;
            }
        }
    }

    /// Whether something that records of terms up to `term` brought is still to be written to the block of a bucket.
    #[must_use]
    pub fn waits_for_page(&self, bucket: Bucket, term: Term) -> bool {
        self.slots.iter().flatten().any(|entry| {
            let (of, first) = match &entry.phase {
                Phase::Kept(kept) if kept.stored => (entry.bucket, kept.at),
                Phase::Kept(kept) => (kept.record.bucket, kept.at),
                Phase::Deciding(deciding) => (deciding.record.bucket, self.applied),
                Phase::Unconfirmed(_) => (entry.bucket, self.applied),
                Phase::Open | Phase::LateDropped(_) => return false,
            };
            let first = entry
                .references
                .first()
                .map_or(first, |lsn| first.min(*lsn));
            of == bucket && first.term() <= term
        })
    }

    /// The last record that is known to count.
    #[must_use]
    pub fn counted(&self) -> Lsn {
        self.counted
    }

    /// Records up to `lsn` count.
    pub fn count(&mut self, lsn: Lsn) {
        self.counted = self.counted.max(lsn);
    }

    /// After a replay of records of which the node cannot know whether they count: a keep among them may never have
    /// counted, and another node may have decided otherwise since.
    pub fn doubt(&mut self) {
        self.counted = Lsn(0);
    }

    /// The traces that are held, with what a replica that joins must know of them.
    #[must_use]
    pub fn held(&self) -> Vec<HeldTrace> {
        let held = self.entries().map(|entry| HeldTrace {
            tenant: self.tenants[entry.tenant as usize].clone(),
            trace_id: entry.trace_id,
            references: entry.references.to_vec(),
            verdict: match &entry.phase {
                Phase::Kept(kept) => Some(kept.record.clone()),
                Phase::LateDropped(record) => Some((**record).clone()),
                Phase::Deciding(deciding) => deciding.earlier.clone(),
                Phase::Unconfirmed(drop) => drop.as_deref().cloned(),
                Phase::Open => None,
            },
        });
        held.collect()
    }
}
