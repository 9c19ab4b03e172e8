//! When a trace is decided, how, and what follows once the verdict is durable.

use std::sync::PoisonError;

use smallvec::SmallVec;
use spandrel_model::ids::{Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::limits::{MAX_TRACE_BYTES, MAX_TRACE_SPANS};
use spandrel_model::policy::{Decision, TraceFacts};
use spandrel_model::verdict::{CERTAIN, PROMOTED_POLICY, Trigger, Verdict, VerdictRecord};

use super::entry::{Deciding, Entry, Kept, Phase};
use super::state::{Earlier, Effects, Recall, ShardState, Step};

/// What became of a promotion.
#[derive(Debug, Clone, PartialEq)]
pub enum Promotion {
    /// The verdict is among the effects.
    Decided,
    /// It was kept already.
    AlreadyKept(Box<VerdictRecord>),
    /// A verdict is on its way to the journal: ask again when it is durable.
    Busy,
    /// The shard knows nothing of it: look in the journal and call [`ShardState::promote_dropped`].
    Absent,
}

impl ShardState {
    pub(crate) fn late_phase(earlier: Earlier) -> Phase {
        match earlier.record.verdict {
            Verdict::Drop => Phase::LateDropped(Box::new(earlier.record)),
            Verdict::Keep => Phase::Kept(Box::new(Kept {
                at: earlier.record.input_lsn,
                record: earlier.record,
                ready: false,
                paging: false,
                own: false,
                stored: true,
            })),
        }
    }

    /// The facts that a policy decides on: the entry's, and those of the record that dropped it before.
    fn facts<'a>(&'a self, entry: &Entry, step: &Step<'_>) -> TraceFacts<'a> {
        let mut facts = TraceFacts {
            tenant: &self.tenants[entry.tenant as usize],
            trace_id: entry.trace_id,
            bits: entry.bits,
            start: entry.earliest(),
            end: entry.end,
            span_count: entry.span_count(),
            bytes: entry.bytes,
            error: entry.error_count > 0,
            pressure: step.pressure,
        };
        if let (Phase::LateDropped(record), true) = (&entry.phase, entry.partial) {
            if record.policy_version == entry.policy_version {
                facts.bits |= record.votes;
            }
            facts.end = facts.end.max(record.end);
            facts.span_count = facts.span_count.saturating_add(record.span_count);
        }
        facts
    }

    fn record(
        &self,
        entry: &Entry,
        facts: &TraceFacts<'_>,
        decision: Decision,
        trigger: Trigger,
        step: &Step<'_>,
    ) -> VerdictRecord {
        let mut references: SmallVec<[Lsn; 4]> = entry.references.iter().copied().collect();
        let mut bucket = entry.bucket;
        if let Phase::LateDropped(earlier) = &entry.phase {
            references.extend(earlier.references.iter().copied());
            references.sort_unstable();
            references.dedup();
            bucket = earlier.bucket;
        }
        VerdictRecord {
            tenant: facts.tenant.clone(),
            trace_id: entry.trace_id,
            verdict: decision.verdict,
            trigger,
            pressure: step.pressure,
            policy_version: step.epoch.policy(entry.policy_version).set().version(),
            policy: decision.policy,
            votes: facts.bits,
            probability: decision.probability,
            limiters: decision.limiters,
            decided_at: step.now,
            bucket,
            input_lsn: self.applied,
            start: facts.start,
            end: facts.end,
            span_count: facts.span_count,
            references,
        }
    }

    fn decide(&mut self, slot: u32, trigger: Trigger, step: &Step<'_>, effects: &mut Effects) {
        let Some(entry) = self.slots[slot as usize].as_ref() else {
            return;
        };
        let facts = self.facts(entry, step);
        let policy = step.epoch.policy(entry.policy_version).set();
        let decision = if trigger == Trigger::Promoted {
            promotion()
        } else {
            let mut limiters = step.limiters.lock().unwrap_or_else(PoisonError::into_inner);
            policy.decide(&facts, &mut limiters, step.now)
        };
        let record = self.record(entry, &facts, decision, trigger, step);
        self.send(slot, record, effects);
    }

    fn send(&mut self, slot: u32, record: VerdictRecord, effects: &mut Effects) {
        effects.verdicts.push(record.clone());
        let Some(entry) = self.slots[slot as usize].as_ref() else {
            return;
        };
        let earlier = entry.dropped_by().cloned();
        self.set_phase(
            slot,
            Phase::Deciding(Box::new(Deciding { record, earlier })),
        );
    }

    /// Decisions that do not wait for a tick: a trace at its cap, a keep that no later span can change, a drop that
    /// a late span turned.
    pub(crate) fn decide_at_once(&mut self, slot: u32, step: &Step<'_>, effects: &mut Effects) {
        let Some(entry) = self.slots[slot as usize].as_ref() else {
            return;
        };
        if !step.decides {
            return;
        }
        match entry.phase {
            Phase::Open => {
                if entry.span_count() >= MAX_TRACE_SPANS || entry.bytes >= MAX_TRACE_BYTES {
                    self.decide(slot, Trigger::Cap, step, effects);
                } else {
                    let facts = self.facts(entry, step);
                    let policy = step.epoch.policy(entry.policy_version).set();
                    if policy.keep_is_final(&facts) {
                        self.decide(slot, Trigger::EarlyKeep, step, effects);
                    }
                }
            }
            Phase::LateDropped(_) => self.upgrade(slot, step, effects),
            _ => {}
        }
    }

    /// Keeps a dropped trace when what came late makes the policy say so.
    fn upgrade(&mut self, slot: u32, step: &Step<'_>, effects: &mut Effects) {
        if step.decides
            && let Some(record) = self.weigh_again(slot, step)
            && record.verdict == Verdict::Keep
        {
            self.adopt_references(slot, &record);
            self.send(slot, record, effects);
        }
    }

    /// Records a dropped trace again with its late spans: the record names every one that the journal holds, so that
    /// a fetch finds the late ones too.
    fn drop_again(&mut self, slot: u32, step: &Step<'_>, effects: &mut Effects) {
        if let Some(record) = self.weigh_again(slot, step) {
            self.send(slot, record, effects);
        }
    }

    /// Decides a dropped trace again with what came late. Limiters are read from the record, not asked again: only a
    /// fact can turn a drop.
    fn weigh_again(&self, slot: u32, step: &Step<'_>) -> Option<VerdictRecord> {
        let entry = self.slots[slot as usize].as_ref()?;
        let Phase::LateDropped(earlier) = &entry.phase else {
            return None;
        };
        let facts = self.facts(entry, step);
        let policy = step.epoch.policy(entry.policy_version).set();
        let readings = if earlier.policy_version == policy.version() {
            earlier.limiters.as_slice()
        } else {
            &[]
        };
        let decision = policy.recompute(&facts, readings);
        Some(self.record(entry, &facts, decision, Trigger::LateSpan, step))
    }

    /// An entry that stands for all of its trace again needs all of its records until it is in a block. The facts of
    /// those that it did not see are not among its own.
    fn adopt_references(&mut self, slot: u32, record: &VerdictRecord) {
        let held_from = self.held_from;
        if let Some(entry) = self.slots[slot as usize].as_mut() {
            let before = entry.memory_bytes();
            let held = record.references.iter().copied();
            let held: SmallVec<[Lsn; 4]> = held.filter(|lsn| held_from.holds(*lsn)).collect();
            entry.partial |= held.iter().any(|lsn| !entry.references.contains(lsn));
            held.iter().for_each(|&lsn| entry.refer(lsn));
            self.entry_bytes = self.entry_bytes + entry.memory_bytes() - before;
        }
    }

    /// Looks at every entry: decides those that are due, and readies kept ones for their page.
    pub fn tick(&mut self, step: &Step<'_>, effects: &mut Effects) {
        if self.late.low_water().is_some() {
            self.late.forget(step.now, self.first_held());
        }
        self.late_keeps.forget(step.now);
        for number in 0..self.slots.len() {
            let Some(entry) = self.slots[number].as_ref() else {
                continue;
            };
            let set = step.epoch.policy(entry.policy_version).set();
            let millis = UnixNanos::PER_MILLI;
            let idle = step.now.since(entry.last_at) >= set.decision_idle_ms() * millis;
            let old = step.now.since(entry.opened_at) >= set.decision_max_age_ms() * millis;
            let slot = u32::try_from(number).unwrap_or(u32::MAX);
            match &entry.phase {
                Phase::Kept(kept) if !kept.ready && (idle || old) => self.make_ready(slot),
                _ if !step.decides => {}
                Phase::Open if idle && entry.has_root => {
                    self.decide(slot, Trigger::Idle, step, effects);
                }
                Phase::Open if old => self.decide(slot, Trigger::MaxAge, step, effects),
                Phase::LateDropped(_) if idle || old => self.drop_again(slot, step, effects),
                _ => {}
            }
        }
    }

    pub(crate) fn make_ready(&mut self, slot: u32) {
        if let Some(Phase::Kept(kept)) = self.slots[slot as usize]
            .as_mut()
            .map(|entry| &mut entry.phase)
        {
            kept.ready = true;
        }
    }

    /// Decides open traces early until about `bytes` of memory are on their way to be free: low priority first,
    /// those with errors last, older ones before younger ones.
    pub fn relieve(&mut self, bytes: u64, step: &Step<'_>, effects: &mut Effects) {
        if !step.decides {
            return;
        }
        let mut open: Vec<(u8, UnixNanos, TraceId, u32)> = Vec::new();
        for (number, entry) in (0u32..).zip(&self.slots) {
            let Some(entry) = entry.as_ref().filter(|entry| entry.phase == Phase::Open) else {
                continue;
            };
            let set = step.epoch.policy(entry.policy_version).set();
            let priority = set.priority(&self.facts(entry, step));
            open.push((priority, entry.opened_at, entry.trace_id, number));
        }
        open.sort_unstable();
        let mut freed = 0;
        for (_, _, _, slot) in open {
            if freed >= bytes {
                break;
            }
            freed += self.slots[slot as usize]
                .as_ref()
                .map_or(0, Entry::memory_bytes);
            self.decide(slot, Trigger::Pressure, step, effects);
        }
    }

    /// The verdicts of one record, `lsn`, are durable: drops leave, keeps wait for their page.
    pub fn verdicts_committed(
        &mut self,
        lsn: Lsn,
        records: &[VerdictRecord],
        step: &Step<'_>,
        effects: &mut Effects,
    ) {
        self.advance(lsn);
        for record in records {
            let slot = match (self.find(&record.tenant, record.trace_id), record.verdict) {
                (Some(slot), _) => slot,
                // On replay all spans of a trace that was dropped before it was kept may lie before the checkpoint.
                (None, Verdict::Keep) => self.insert_dropped(record.clone(), step),
                (None, Verdict::Drop) => continue,
            };
            let Some(entry) = self.slots[slot as usize].as_ref() else {
                continue;
            };
            let more_came = entry
                .references
                .last()
                .is_some_and(|&last| last > record.input_lsn);
            let record = record.clone();
            match record.verdict {
                Verdict::Keep => {
                    let waits =
                        matches!(record.trigger, Trigger::EarlyKeep | Trigger::Cap) || more_came;
                    // On replay the records of a trace that was dropped first lie before the checkpoint.
                    self.adopt_references(slot, &record);
                    if self.kept_late(&record, lsn, step.now) && step.decides {
                        effects.recall.push(Recall {
                            tenant: record.tenant.clone(),
                            trace_id: record.trace_id,
                            keep: None,
                        });
                    }
                    self.set_phase(
                        slot,
                        Phase::Kept(Box::new(Kept {
                            record,
                            at: lsn,
                            ready: !waits || step.pressure > 1,
                            paging: false,
                            own: false,
                            stored: false,
                        })),
                    );
                }
                Verdict::Drop if more_came => {
                    self.set_phase(slot, Phase::LateDropped(Box::new(record)));
                    // What came while the drop was on its way has not been weighed.
                    self.upgrade(slot, step, effects);
                }
                Verdict::Drop => self.remove(slot),
            }
        }
    }

    /// The journal's answer to [`Effects::confirm`].
    pub fn confirm(
        &mut self,
        tenant: &TenantId,
        trace_id: TraceId,
        found: Option<Earlier>,
        step: &Step<'_>,
        effects: &mut Effects,
    ) {
        let Some(slot) = self.find(tenant, trace_id) else {
            return;
        };
        let Some(entry) = self.slots[slot as usize].as_ref() else {
            return;
        };
        let Phase::Unconfirmed(repeated) = &entry.phase else {
            return;
        };
        // The journal of a follower is ahead of its shards: a verdict that has read these spans comes in its turn.
        let is_earlier = |found: &Earlier| {
            let mut held = entry.references.iter();
            held.all(|lsn| *lsn > found.record.input_lsn)
        };
        let found = found.filter(is_earlier);
        // The one that was repeated may have come when the journal had been read.
        let is_newer = |drop: &VerdictRecord| {
            let found = found.as_ref();
            found.is_none_or(|found| found.record.input_lsn < drop.input_lsn)
        };
        let repeated = repeated.as_deref().filter(|drop| is_newer(drop)).cloned();
        let repeated = repeated.map(|record| Earlier {
            record,
            is_here: true,
        });
        let phase = match repeated.or(found) {
            None => Phase::Open,
            Some(earlier) if earlier.record.verdict == Verdict::Drop && self.is_again(slot) => {
                // Nothing came late: the spans that the drop has read were repeated for a replica that joined.
                return self.remove(slot);
            }
            Some(earlier) => {
                let mut late = None;
                if let Some(entry) = self.slots[slot as usize].as_mut() {
                    entry.partial = true;
                    late = entry.references.first().copied();
                }
                if self.kept_before(late, &earlier, step.now) && step.decides {
                    effects.recall.push(Recall {
                        tenant: tenant.clone(),
                        trace_id,
                        keep: Some(earlier.record.clone()),
                    });
                }
                Self::late_phase(earlier)
            }
        };
        self.set_phase(slot, phase);
        self.decide_at_once(slot, step, effects);
    }

    /// Keeps a trace that the shard holds, because somebody asked for it.
    pub fn promote(
        &mut self,
        tenant: &TenantId,
        trace_id: TraceId,
        step: &Step<'_>,
        effects: &mut Effects,
    ) -> Promotion {
        let Some(slot) = self.find(tenant, trace_id) else {
            return Promotion::Absent;
        };
        let Some(entry) = self.slots[slot as usize].as_ref() else {
            return Promotion::Absent;
        };
        match &entry.phase {
            Phase::Kept(kept) => Promotion::AlreadyKept(Box::new(kept.record.clone())),
            // Whoever leads the shard now decides.
            _ if !step.decides => Promotion::Busy,
            Phase::Deciding(_) | Phase::Unconfirmed(_) => Promotion::Busy,
            Phase::Open => {
                self.decide(slot, Trigger::Promoted, step, effects);
                Promotion::Decided
            }
            Phase::LateDropped(_) => {
                let facts = self.facts(entry, step);
                let record = self.record(entry, &facts, promotion(), Trigger::Promoted, step);
                self.adopt_references(slot, &record);
                self.send(slot, record, effects);
                Promotion::Decided
            }
        }
    }

    /// Keeps a trace that was dropped by `earlier`, the newest verdict of the journal.
    pub fn promote_dropped(
        &mut self,
        earlier: VerdictRecord,
        step: &Step<'_>,
        effects: &mut Effects,
    ) -> Promotion {
        if earlier.verdict == Verdict::Keep {
            return Promotion::AlreadyKept(Box::new(earlier));
        }
        let (tenant, trace_id) = (earlier.tenant.clone(), earlier.trace_id);
        if self.find(&tenant, trace_id).is_none() {
            self.insert_dropped(earlier, step);
        }
        self.promote(&tenant, trace_id, step, effects)
    }

    /// An entry for a trace none of whose spans it knows: the record names those that the journal holds.
    fn insert_dropped(&mut self, record: VerdictRecord, step: &Step<'_>) -> u32 {
        let tenant = record.tenant.clone();
        let number = self.tenant_number(&tenant);
        let (trace_id, version, bucket) = (record.trace_id, record.policy_version, record.bucket);
        let phase = Phase::LateDropped(Box::new(record));
        let mut entry = Entry::new(trace_id, number, version, phase, step.now, bucket);
        entry.partial = true;
        self.insert(&tenant, entry)
    }
}

fn promotion() -> Decision {
    Decision {
        verdict: Verdict::Keep,
        policy: PROMOTED_POLICY,
        probability: CERTAIN,
        limiters: SmallVec::new(),
    }
}
