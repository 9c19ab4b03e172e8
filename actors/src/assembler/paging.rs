//! Kept traces on their way into pages.

use spandrel_model::ids::{Bucket, Lsn, TenantId, TraceId, UnixNanos};
use spandrel_model::summary::TraceSummary;
use spandrel_model::verdict::VerdictRecord;

use super::entry::{Entry, Phase};
use super::state::ShardState;

/// A kept trace that a page may be built of.
#[derive(Debug, Clone)]
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

impl ShardState {
    /// When the last span of each kept trace came that a page may be built of, and the bytes of its spans: the oldest
    /// first, up to `bytes` of spans (at least one trace). `all` counts those that still wait for spans too. The
    /// flag says that there are more.
    #[must_use]
    pub fn kept_backlog(&self, bytes: u64, all: bool) -> (Vec<(UnixNanos, u64)>, bool) {
        let pageable = self.slots.iter().flatten();
        let pageable = pageable.filter(|entry| self.is_pageable(entry, all));
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
        all: bool,
        policy_name: &dyn Fn(&VerdictRecord) -> std::sync::Arc<str>,
    ) -> Vec<KeptTrace> {
        let slots = (0u32..).zip(&self.slots);
        let ready = slots.filter_map(|(slot, entry)| {
            let entry = entry.as_ref()?;
            (self.is_pageable(entry, all) && entry.last_at <= until).then_some(slot)
        });
        let ready: Vec<u32> = ready.collect();
        let mut taken = Vec::with_capacity(ready.len());
        for slot in ready {
            let Some(entry) = self.slots[slot as usize].as_ref() else {
                continue;
            };
            let Phase::Kept(kept) = &entry.phase else {
                continue;
            };
            let summary = (!entry.partial).then(|| {
                let name = policy_name(&kept.record);
                self.summary(entry, self.applied, entry.fixed_start(), &kept.record, name)
            });
            taken.push(KeptTrace {
                tenant: self.tenants[entry.tenant as usize].clone(),
                trace_id: entry.trace_id,
                fragment: self.applied,
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
            });
            if let Some(Phase::Kept(kept)) = self.slots[slot as usize]
                .as_mut()
                .map(|entry| &mut entry.phase)
            {
                kept.paging = true;
            }
        }
        taken
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

    /// The page could not be written: the traces wait for another one.
    pub fn paging_failed(&mut self, traces: &[PagedTrace]) {
        for failed in traces {
            if let Some(slot) = self.find(&failed.tenant, failed.trace_id)
                && let Some(entry) = self.slots[slot as usize].as_mut()
                && let Phase::Kept(kept) = &mut entry.phase
            {
                kept.paging = false;
            }
        }
    }

    /// What waits for a page.
    #[must_use]
    pub fn backlog(&self) -> PagingBacklog {
        let mut backlog = PagingBacklog::default();
        let next = self.applied.next();
        let (mut waiting_from, mut others_from) = (next, next);
        for entry in self.entries() {
            let first = entry.references.first().copied().unwrap_or(next);
            match &entry.phase {
                Phase::Kept(kept) if kept.ready && kept.at <= self.counted => {
                    let at = kept.record.decided_at.max(entry.last_at);
                    let oldest = backlog.oldest.map_or(at, |known| known.min(at));
                    backlog.bytes += entry.bytes;
                    backlog.oldest = Some(oldest);
                    waiting_from = waiting_from.min(first);
                }
                _ => others_from = others_from.min(first),
            }
        }
        backlog.records = others_from.0.saturating_sub(waiting_from.0);
        backlog
    }

    fn is_pageable(&self, entry: &Entry, all: bool) -> bool {
        let Phase::Kept(kept) = &entry.phase else {
            return false;
        };
        (kept.ready || all) && !kept.paging && kept.at <= self.counted
    }
}
