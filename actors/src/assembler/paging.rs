//! Kept traces on their way into pages.

use spandrel_model::ids::{Bucket, Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::summary::TraceSummary;
use spandrel_model::verdict::VerdictRecord;

use super::entry::{Entry, Kept, Phase};
use super::state::ShardState;

/// A kept trace that a page may be built of.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptTrace {
    /// Whose trace.
    pub tenant: TenantId,
    /// The trace.
    pub trace_id: TraceId,
    /// The fragment covers every record of the trace up to this one.
    pub fragment: Lsn,
    /// Records that hold its spans.
    pub references: Vec<Lsn>,
    /// Bytes of its spans.
    pub bytes: u64,
    /// The bucket of its block.
    pub bucket: Bucket,
    /// The verdict.
    pub record: VerdictRecord,
    /// What search needs; `None` when it has to be made from the spans, because the entry knows only some of them.
    pub summary: Option<TraceSummary>,
    /// Earlier spans of the trace are in a block already.
    pub stored: bool,
}

/// A fragment that is durable in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagedTrace {
    /// Whose trace.
    pub tenant: TenantId,
    /// The trace.
    pub trace_id: TraceId,
    /// The block holds every record of the trace up to this one.
    pub fragment: Lsn,
}

impl KeptTrace {
    /// What the shard must know of it once it is in a block.
    #[must_use]
    pub fn paged(&self) -> PagedTrace {
        PagedTrace {
            tenant: self.tenant.clone(),
            trace_id: self.trace_id,
            fragment: self.fragment,
        }
    }
}

/// Of which kept traces pages are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagingScope {
    /// Also of those that still wait for more spans.
    pub all: bool,
    /// Also of those of shards that another node leads, which ships their pages.
    pub followed: bool,
}

/// The kept traces of a shard that a page may be built of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PagingBacklog {
    /// Bytes of their spans.
    pub bytes: u64,
    /// When the one that waits longest was ready.
    pub oldest: Option<UnixNanos>,
    /// Records that a restart must read because of them alone.
    pub records: u64,
}

impl PagingBacklog {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            oldest: self.oldest.into_iter().chain(other.oldest).min(),
            records: self.records.max(other.records),
        }
    }
}

impl ShardState {
    /// When the last span of each kept trace came that a page may be built of, and the bytes of its spans: the oldest
    /// first, up to `bytes` of spans (at least one trace). The flag says that there are more.
    #[must_use]
    pub fn kept_backlog(&self, bytes: u64, scope: PagingScope) -> (Vec<(UnixNanos, u64)>, bool) {
        let pageable = self.slots.iter().flatten();
        let pageable = pageable.filter(|entry| self.is_pageable(entry, scope));
        let mut backlog: Vec<(UnixNanos, u64)> = pageable
            .map(|entry| (entry.last_at, entry.bytes.max(1)))
            .collect();
        backlog.sort_unstable();
        let mut listed = 0;
        let wanted = backlog.iter().take_while(|(_, bytes_of_one)| {
            let take = listed < bytes;
            listed += bytes_of_one;
            take
        });
        let (count, whole) = (wanted.count(), backlog.len());
        backlog.truncate(count);
        (backlog, count < whole)
    }

    /// Takes out kept traces for a page: those whose last span came until `until`. They stay searchable until
    /// [`Self::paged`].
    pub fn collect_kept(
        &mut self,
        until: UnixNanos,
        scope: PagingScope,
        policy_name: &dyn Fn(&VerdictRecord) -> std::sync::Arc<str>,
    ) -> Vec<KeptTrace> {
        let slots = (0u32..).zip(&self.slots);
        let ready = slots.filter_map(|(slot, entry)| {
            let entry = entry.as_ref()?;
            (self.is_pageable(entry, scope) && entry.last_at <= until).then_some(slot)
        });
        let ready: Vec<u32> = ready.collect();
        let taken = ready.into_iter();
        taken
            .filter_map(|slot| self.take_kept(slot, self.applied, policy_name))
            .collect()
    }

    /// Takes out a kept trace for a page, as a fragment that covers the records up to `fragment`.
    pub(super) fn take_kept(
        &mut self,
        slot: u32,
        fragment: Lsn,
        policy_name: &dyn Fn(&VerdictRecord) -> std::sync::Arc<str>,
    ) -> Option<KeptTrace> {
        let entry = self.slots[slot as usize].as_ref()?;
        let Phase::Kept(kept) = &entry.phase else {
            return None;
        };
        let summary = (!entry.partial).then(|| {
            let name = policy_name(&kept.record);
            self.summary(entry, fragment, entry.fixed_start(), &kept.record, name)
        });
        let taken = KeptTrace {
            tenant: self.tenants[entry.tenant as usize].clone(),
            trace_id: entry.trace_id,
            fragment,
            references: entry.references.to_vec(),
            bytes: entry.bytes,
            bucket: if kept.stored {
                entry.bucket
            } else {
                kept.record.bucket
            },
            record: kept.record.clone(),
            summary,
            stored: kept.stored,
        };
        if let Some(Phase::Kept(kept)) = self.slots[slot as usize]
            .as_mut()
            .map(|entry| &mut entry.phase)
        {
            kept.paging = true;
        }
        Some(taken)
    }

    /// The fragments are durable in a block: entries without younger spans leave.
    pub fn paged(&mut self, traces: &[PagedTrace]) {
        for paged in traces {
            let Some(slot) = self.find(&paged.tenant, paged.trace_id) else {
                continue;
            };
            let Some(entry) = self.slots[slot as usize].as_mut() else {
                continue;
            };
            if !entry.references.iter().any(|lsn| *lsn > paged.fragment) {
                self.remove(slot);
                continue;
            }
            let before = entry.memory_bytes();
            entry.references.retain(|lsn| *lsn > paged.fragment);
            entry.partial = true;
            if let Phase::Kept(kept) = &mut entry.phase {
                (kept.paging, kept.ready) = (false, false);
                kept.stored = true;
            }
            self.entry_bytes = self.entry_bytes + entry.memory_bytes() - before;
        }
    }

    /// The page was not written: the traces wait for another one, which this node builds.
    pub fn paging_failed(&mut self, traces: &[PagedTrace]) {
        for failed in traces {
            if let Some(slot) = self.find(&failed.tenant, failed.trace_id)
                && let Some(entry) = self.slots[slot as usize].as_mut()
                && let Phase::Kept(kept) = &mut entry.phase
            {
                (kept.paging, kept.own) = (false, true);
            }
        }
    }

    /// What waits for a page: of one that this node builds in any case, and of one that it builds as primary only.
    #[must_use]
    pub fn backlog(&self) -> (PagingBacklog, PagingBacklog) {
        let (mut own, mut shipped) = (PagingBacklog::default(), PagingBacklog::default());
        let next = self.applied.next();
        let (mut own_from, mut shipped_from, mut others_from) = (next, next, next);
        for entry in self.entries() {
            let first = entry.references.first().copied().unwrap_or(next);
            match &entry.phase {
                Phase::Kept(kept) if kept.ready && kept.at <= self.counted => {
                    let (backlog, from) = match is_built_here(entry, kept) {
                        true => (&mut own, &mut own_from),
                        false => (&mut shipped, &mut shipped_from),
                    };
                    let at = kept.record.decided_at.max(entry.last_at);
                    backlog.oldest = Some(backlog.oldest.map_or(at, |known| known.min(at)));
                    backlog.bytes += entry.bytes;
                    *from = first.min(*from);
                }
                _ => others_from = others_from.min(first),
            }
        }
        own.records = others_from.records_since(own_from);
        shipped.records = others_from.records_since(shipped_from);
        (own, shipped)
    }

    fn is_pageable(&self, entry: &Entry, scope: PagingScope) -> bool {
        let Phase::Kept(kept) = &entry.phase else {
            return false;
        };
        let is_built_here = scope.followed || is_built_here(entry, kept);
        is_built_here && (kept.ready || scope.all) && !kept.paging && kept.at <= self.counted
    }
}

/// Whether this node builds the page of a kept trace, whoever leads its shard. A late part is put together with what each
/// node has of the trace.
fn is_built_here(entry: &Entry, kept: &Kept) -> bool {
    kept.own || kept.stored || entry.partial
}
