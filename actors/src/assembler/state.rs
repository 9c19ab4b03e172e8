//! The state of a shard's assembler: open traces and kept ones that wait for a page. Pure: time, settings and what
//! the journal knows are arguments, what must happen outside is returned as [`Effects`].

use std::sync::Mutex;

use hashbrown::HashTable;
use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{Bucket, Lsn, ShardId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::policy::Limiters;
use spandrel_model::routing::ShardRouter;
use spandrel_model::summary::{AttributeText, SpanClass};
use spandrel_model::verdict::{Verdict, VerdictRecord};

use super::entry::{Entry, Phase};
use super::late_again::LateAgain;
use super::late_keeps::LateKeeps;
use super::symbols::Symbols;
use crate::settings::Epoch;

/// What the journal says of a trace that the assembler has no entry for.
#[derive(Debug, Clone, PartialEq)]
pub enum Prior {
    /// It was not decided within the horizon.
    None,
    /// It may have been: ask the journal and call [`ShardState::confirm`].
    Ask,
    /// It was.
    Decided(Box<Earlier>),
}

/// A decision of the past.
#[derive(Debug, Clone, PartialEq)]
pub struct Earlier {
    /// The newest verdict.
    pub record: VerdictRecord,
    /// False of a kept trace that no block here holds, as it was kept before this node joined the shard or a block is
    /// damaged.
    pub is_here: bool,
}

/// Answers for the shard which traces were decided before; memory only.
pub trait Decided {
    /// What is known of a trace whose span stands in record `lsn`.
    fn prior(&self, shard: ShardId, tenant: &TenantId, trace_id: TraceId, lsn: Lsn) -> Prior;
}

/// What a step reads of the world.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The settings that the spans were scanned under, or those in force.
    pub epoch: &'a Epoch,
    /// What was decided before.
    pub decided: &'a dyn Decided,
    /// The node's limiters.
    pub limiters: &'a Mutex<Limiters>,
    /// The node's memory pressure, 0 to 4.
    pub pressure: u8,
    /// By the clock of the primary.
    pub now: UnixNanos,
    /// This node is the shard's primary: it decides. Followers obey the records.
    pub decides: bool,
}

/// A trace of which spans may be elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Recall {
    /// Whose trace.
    pub tenant: TenantId,
    /// The trace.
    pub trace_id: TraceId,
    /// The verdict of an earlier term, which replicas that have joined since may not know: without it they wait with the
    /// late spans for a verdict that does not come.
    pub keep: Option<VerdictRecord>,
}

/// What a step wants done outside.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// To be journaled as one record of the shard; then [`ShardState::verdicts_committed`].
    pub verdicts: Vec<VerdictRecord>,
    /// To be looked up in the journal; then [`ShardState::confirm`].
    pub confirm: Vec<(TenantId, TraceId)>,
    /// To be brought here from the nodes that hold it.
    pub recall: Vec<Recall>,
}

/// How spans of a step fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Spans that were new.
    pub spans: u64,
    /// Spans that were there already, byte for byte.
    pub duplicates: u64,
    /// New spans whose id another span of the trace has.
    pub conflicts: u64,
    /// Spans of traces that were decided before.
    pub late: u64,
}

/// From where on a replica has a shard's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldFrom {
    /// All of them.
    Beginning,
    /// From the next one on.
    Next,
    /// From this one on.
    Record(Lsn),
}

impl HeldFrom {
    pub(crate) fn holds(self, lsn: Lsn) -> bool {
        match self {
            Self::Beginning => true,
            Self::Next => false,
            Self::Record(first) => lsn >= first,
        }
    }
}

/// Options of a shard that do not change while it runs.
#[derive(Debug, Clone, Copy)]
pub struct ShardOptions {
    /// Which shard.
    pub shard: ShardId,
    /// Its term.
    pub term: Term,
    /// The cluster's router, for its keyed hash.
    pub router: ShardRouter,
    /// Length of a time bucket in nanoseconds.
    pub bucket_nanos: u64,
}

/// The assembler of one shard.
///
/// Invariants: each slot in use is in `table` once, under the hash of its tenant and trace id; `memory` is the sum
/// of the entries' and the symbols' bytes; `open` and `kept` count the entries by phase.
pub struct ShardState {
    pub(crate) options: ShardOptions,
    /// The last record that was applied.
    pub(crate) applied: Lsn,
    /// The last record that is known to count: a page is built of no later keep.
    pub(crate) counted: Lsn,
    /// Of a replica that has joined: the first record that it got. What verdicts name before it was repeated for it.
    pub(crate) held_from: HeldFrom,
    /// Dropped traces whose late spans are being repeated for replicas that have just joined.
    pub(crate) late: LateAgain,
    pub(crate) late_keeps: LateKeeps,
    pub(crate) slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    table: HashTable<u32>,
    pub(crate) classes: Symbols<SpanClass>,
    pub(crate) attributes: Symbols<AttributeText>,
    pub(crate) tenants: Vec<TenantId>,
    pub(crate) entry_bytes: u64,
    pub(crate) live: usize,
    pub(crate) kept: usize,
    pub(crate) kept_span_bytes: u64,
    pub(crate) kept_spans: u64,
}

impl ShardState {
    /// A shard without a trace, whose last applied record is `applied`.
    #[must_use]
    pub fn new(options: ShardOptions, applied: Lsn) -> Self {
        let seed = options.router.tenant_seed(&TenantId::default()) ^ u64::from(options.shard.0);
        Self {
            options,
            applied,
            counted: Lsn(u64::MAX),
            held_from: HeldFrom::Beginning,
            late: LateAgain::default(),
            late_keeps: LateKeeps::default(),
            slots: Vec::new(),
            free: Vec::new(),
            table: HashTable::new(),
            classes: Symbols::new(seed),
            attributes: Symbols::new(seed.rotate_left(17)),
            tenants: Vec::new(),
            entry_bytes: 0,
            live: 0,
            kept: 0,
            kept_span_bytes: 0,
            kept_spans: 0,
        }
    }

    /// The last record that was applied.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Notes that the shard's records up to `lsn` are applied (records other than spans advance it too).
    pub fn advance(&mut self, lsn: Lsn) {
        if self.held_from == HeldFrom::Next {
            self.held_from = HeldFrom::Record(lsn);
        }
        self.applied = self.applied.max(lsn);
    }

    /// Which shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.options.shard
    }

    /// Traces that are held.
    #[must_use]
    pub fn traces(&self) -> usize {
        self.live
    }

    /// Spans of all entries.
    #[must_use]
    pub fn spans_held(&self) -> u64 {
        self.entries()
            .map(|entry| u64::from(entry.span_count()))
            .sum()
    }

    /// The kept traces.
    #[must_use]
    pub fn kept_keys(&self) -> Vec<(TenantId, TraceId)> {
        let kept = self
            .entries()
            .filter(|entry| matches!(entry.phase, Phase::Kept(_)));
        kept.map(|entry| (self.tenants[entry.tenant as usize].clone(), entry.trace_id))
            .collect()
    }

    /// After replay: of the verdicts that were decided on the way only those are sent that the journal does not
    /// hold, for their entries still wait for them.
    pub fn keep_pending(&self, effects: &mut Effects) {
        effects.verdicts.retain(|record| {
            let slot = self.find(&record.tenant, record.trace_id);
            let entry = slot.and_then(|slot| self.slots[slot as usize].as_ref());
            entry.is_some_and(
                |entry| matches!(&entry.phase, Phase::Deciding(own) if own.record == *record),
            )
        });
    }

    /// Bytes of memory held.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.entry_bytes + self.classes.bytes() + self.attributes.bytes()
    }

    /// Entries that are not kept yet.
    #[must_use]
    pub fn open_traces(&self) -> usize {
        self.live - self.kept
    }

    /// Kept traces, their spans and their spans' bytes, that wait for a page.
    #[must_use]
    pub fn unpaged(&self) -> (usize, u64, u64) {
        (self.kept, self.kept_spans, self.kept_span_bytes)
    }

    /// The first record that is still needed: of an entry, or the next one.
    #[must_use]
    pub fn low_water(&self) -> Lsn {
        let first = self.first_held().into_iter();
        let first = first.chain(self.late.low_water());
        let first = first.chain(self.late_keeps.low_water());
        first.min().unwrap_or(self.applied.next())
    }

    /// The first record that an entry refers to.
    pub(super) fn first_held(&self) -> Option<Lsn> {
        let entries = self.entries();
        let first = entries.filter_map(|entry| entry.references.first().copied());
        first.min()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    pub(crate) fn tenant_number(&mut self, tenant: &TenantId) -> u32 {
        let known = self.tenants.iter().position(|other| other == tenant);
        let number = known.unwrap_or_else(|| {
            self.tenants.push(tenant.clone());
            self.tenants.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    fn hash(&self, tenant: &TenantId, trace_id: TraceId) -> u64 {
        let router = self.options.router;
        router.hash(router.tenant_seed(tenant), trace_id)
    }

    pub(crate) fn find(&self, tenant: &TenantId, trace_id: TraceId) -> Option<u32> {
        let hash = self.hash(tenant, trace_id);
        self.find_hashed(hash, tenant, trace_id)
    }

    fn find_hashed(&self, hash: u64, tenant: &TenantId, trace_id: TraceId) -> Option<u32> {
        let found = self.table.find(hash, |&slot| {
            self.slots[slot as usize].as_ref().is_some_and(|entry| {
                entry.trace_id == trace_id && self.tenants[entry.tenant as usize] == *tenant
            })
        });
        found.copied()
    }

    pub(crate) fn insert(&mut self, tenant: &TenantId, entry: Entry) -> u32 {
        let hash = self.hash(tenant, entry.trace_id);
        self.entry_bytes += entry.memory_bytes();
        self.live += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let (slots, tenants, router) = (&self.slots, &self.tenants, self.options.router);
        self.table.insert_unique(hash, slot, |&other| {
            slots[other as usize].as_ref().map_or(0, |entry| {
                let seed = router.tenant_seed(&tenants[entry.tenant as usize]);
                router.hash(seed, entry.trace_id)
            })
        });
        slot
    }

    /// Forgets an entry and gives back its symbols.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(entry) = self.slots[slot as usize].take() else {
            return;
        };
        let hash = self.hash(&self.tenants[entry.tenant as usize], entry.trace_id);
        if let Ok(found) = self.table.find_entry(hash, |&other| other == slot) {
            found.remove();
        }
        entry
            .classes()
            .iter()
            .for_each(|&class| self.classes.release(class));
        entry
            .attributes()
            .iter()
            .for_each(|&attribute| self.attributes.release(attribute));
        self.entry_bytes -= entry.memory_bytes();
        self.live -= 1;
        if matches!(entry.phase, Phase::Kept(_)) {
            self.kept -= 1;
            self.kept_spans -= u64::from(entry.span_count());
            self.kept_span_bytes -= entry.bytes;
        }
        self.free.push(slot);
    }

    /// Changes an entry's phase, keeping the counts.
    pub(crate) fn set_phase(&mut self, slot: u32, phase: Phase) {
        let Some(entry) = self.slots[slot as usize].as_mut() else {
            return;
        };
        let before = entry.memory_bytes();
        let was_kept = matches!(entry.phase, Phase::Kept(_));
        let is_kept = matches!(phase, Phase::Kept(_));
        entry.phase = phase;
        self.entry_bytes = self.entry_bytes + entry.memory_bytes() - before;
        if is_kept && !was_kept {
            self.kept += 1;
            self.kept_spans += u64::from(entry.span_count());
            self.kept_span_bytes += entry.bytes;
        } else if was_kept && !is_kept {
            self.kept -= 1;
            self.kept_spans -= u64::from(entry.span_count());
            self.kept_span_bytes -= entry.bytes;
        }
    }

    /// Applies the spans `rows` of `batch`, which record `lsn` of this shard made durable.
    pub fn apply(
        &mut self,
        lsn: Lsn,
        batch: &SpanBatch,
        rows: &[u32],
        step: &Step<'_>,
        effects: &mut Effects,
    ) -> Applied {
        self.apply_as(false, lsn, batch, rows, step, effects)
    }

    /// Applies spans that the shard has already, which record `lsn` repeats for replicas that have just joined it: an
    /// entry takes note of the record, and none is opened for a trace that is decided.
    pub fn apply_again(
        &mut self,
        lsn: Lsn,
        batch: &SpanBatch,
        rows: &[u32],
        step: &Step<'_>,
        effects: &mut Effects,
    ) -> Applied {
        self.apply_as(true, lsn, batch, rows, step, effects)
    }

    fn apply_as(
        &mut self,
        again: bool,
        lsn: Lsn,
        batch: &SpanBatch,
        rows: &[u32],
        step: &Step<'_>,
        effects: &mut Effects,
    ) -> Applied {
        let mut applied = Applied::default();
        // A decision on the way has read this record.
        self.advance(lsn);
        if again {
            self.late.spans_come(lsn);
        }
        let tenant_number = self.tenant_number(&batch.tenant);
        let seed = self.options.router.tenant_seed(&batch.tenant);
        let mut rest = rows;
        while let Some(&first) = rest.first() {
            let Some(trace_id) = batch.spans.get(first as usize).map(|span| span.trace_id) else {
                break;
            };
            let same = |row: &&u32| {
                batch
                    .spans
                    .get(**row as usize)
                    .is_some_and(|span| span.trace_id == trace_id)
            };
            let run = rest.iter().take_while(same).count();
            let (mine, others) = rest.split_at(run);
            rest = others;
            let hash = self.options.router.hash(seed, trace_id);
            let slot = match self.find_hashed(hash, &batch.tenant, trace_id) {
                Some(slot) => slot,
                None => {
                    let shard = self.options.shard;
                    let prior = step.decided.prior(shard, &batch.tenant, trace_id, lsn);
                    let is_late = again && self.late.contains(&batch.tenant, trace_id);
                    if again && !is_late && is_dropped(&prior) {
                        continue;
                    }
                    let slot = self.open(tenant_number, trace_id, batch, prior, step, effects);
                    if let Some(entry) = self.slots[slot as usize].as_mut() {
                        entry.again = again && !is_late;
                    }
                    slot
                }
            };
            if again {
                self.refer_again(slot, lsn);
            } else if let Some(entry) = self.slots[slot as usize].as_mut() {
                entry.again = false;
            }
            let outcome = self.add(slot, lsn, batch, mine, step);
            applied.spans += outcome.spans;
            applied.duplicates += outcome.duplicates;
            applied.conflicts += outcome.conflicts;
            applied.late += outcome.late;
            self.decide_at_once(slot, step, effects);
        }
        applied
    }

    /// An entry takes note of a record that repeats its spans: a verdict names records that every replica holds.
    fn refer_again(&mut self, slot: u32, lsn: Lsn) {
        if let Some(entry) = self.slots[slot as usize].as_mut() {
            let before = entry.memory_bytes();
            entry.refer(lsn);
            self.entry_bytes = self.entry_bytes + entry.memory_bytes() - before;
        }
    }

    /// Collects spans without deciding anything, for facts alone.
    pub(crate) fn collect(
        &mut self,
        batch: &SpanBatch,
        rows: &[u32],
        step: &Step<'_>,
        effects: &mut Effects,
    ) {
        let tenant = self.tenant_number(&batch.tenant);
        let mut sorted = rows.to_vec();
        sorted.sort_by_key(|row| batch.spans.get(*row as usize).map(|span| span.trace_id));
        for row in sorted {
            let Some(span) = batch.spans.get(row as usize) else {
                continue;
            };
            let slot = self.find(&batch.tenant, span.trace_id).unwrap_or_else(|| {
                self.open(tenant, span.trace_id, batch, Prior::None, step, effects)
            });
            self.add(slot, self.applied.next(), batch, &[row], step);
        }
    }

    fn open(
        &mut self,
        tenant_number: u32,
        trace_id: TraceId,
        batch: &SpanBatch,
        prior: Prior,
        step: &Step<'_>,
        effects: &mut Effects,
    ) -> u32 {
        let bucket = Bucket::containing(batch.received_at, self.options.bucket_nanos);
        let version = step.epoch.current().set().version();
        let phase = match prior {
            Prior::None => Phase::Open,
            Prior::Ask => {
                effects.confirm.push((batch.tenant.clone(), trace_id));
                Phase::Unconfirmed(None)
            }
            Prior::Decided(earlier) => {
                self.kept_before(None, &earlier, step.now);
                Self::late_phase(*earlier)
            }
        };
        let partial = matches!(phase, Phase::Kept(_) | Phase::LateDropped(_));
        let kept = matches!(phase, Phase::Kept(_));
        let mut entry = Entry::new(trace_id, tenant_number, version, phase, step.now, bucket);
        entry.partial = partial;
        self.kept += usize::from(kept);
        self.insert(&batch.tenant, entry)
    }

    /// Asserts the invariants: after each step in debug builds and always in the simulation.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        let entry_bytes: u64 = self.entries().map(Entry::memory_bytes).sum();
        assert_eq!(entry_bytes, self.entry_bytes, "entry bytes");
        assert_eq!(self.entries().count(), self.live, "live entries");
        assert_eq!(self.table.len(), self.live, "table entries");
        let kept = self
            .entries()
            .filter(|entry| matches!(entry.phase, Phase::Kept(_)));
        let (count, spans, bytes) = kept.fold((0, 0, 0), |(count, spans, bytes), entry| {
            (
                count + 1,
                spans + u64::from(entry.span_count()),
                bytes + entry.bytes,
            )
        });
        assert_eq!((count, spans, bytes), self.unpaged(), "kept entries");
        for entry in self.entries() {
            assert!(
                entry.rows.is_empty() || entry.start <= entry.end,
                "start after end"
            );
            assert!(entry.references.is_sorted(), "references out of order");
            let tenant = &self.tenants[entry.tenant as usize];
            let slot = self.find(tenant, entry.trace_id).map(|slot| slot as usize);
            let found = slot.and_then(|slot| self.slots[slot].as_ref());
            assert!(
                found.is_some_and(|found| std::ptr::eq(found, entry)),
                "lost entry"
            );
        }
    }
}

fn is_dropped(prior: &Prior) -> bool {
    matches!(prior, Prior::Decided(earlier) if earlier.record.verdict == Verdict::Drop)
}
