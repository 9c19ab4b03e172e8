//! What queries see of a shard: single traces, searches, names.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Lsn, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, FoundTrace, SearchFilter, TraceState};
use spandrel_model::summary::{RootSpan, SummaryDecision, TraceSummary};
use spandrel_model::verdict::VerdictRecord;

use super::entry::{Entry, Phase};
use super::state::ShardState;
use crate::found::TraceFacts;

/// Which of a shard's traces in memory count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All: the copy is in sync.
    Live,
    /// The kept ones that are not in a block yet: whatever else is there is stale, and others know better.
    Stored,
}

impl Depth {
    fn counts(self, entry: &Entry) -> bool {
        self == Self::Live || matches!(entry.phase, Phase::Kept(_))
    }
}

/// A trace as its shard holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct EntryView {
    /// Where it stands.
    pub state: TraceState,
    /// The durable verdict.
    pub record: Option<VerdictRecord>,
    /// Records that hold its spans, those of an earlier drop included.
    pub references: Vec<Lsn>,
    /// Spans that the entry has seen, each once.
    pub span_count: u32,
    /// The journal is being asked whether it was decided before.
    pub unconfirmed: bool,
}

/// A trace of a shard that meets a search's conditions, or may.
#[derive(Debug, Clone, PartialEq)]
pub enum MemoryHit {
    /// It meets them.
    Meets(FoundTrace),
    /// Only its spans can tell.
    Unverified(UnverifiedTrace),
}

/// A live trace whose spans must be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnverifiedTrace {
    /// The trace.
    pub trace_id: TraceId,
    /// Its start, as far as the shard knows it.
    pub start: UnixNanos,
    /// Where it stands.
    pub state: TraceState,
    /// Records that hold its spans, those of an earlier drop included.
    pub references: Vec<Lsn>,
    /// All of its spans are in these records.
    pub whole: bool,
}

/// How much a search asks of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HitLimits {
    /// Most hits.
    pub all: usize,
    /// Most hits that meet the conditions: those are results as they stand.
    pub meeting: usize,
}

/// What a search asks of a shard.
#[derive(Debug, Clone)]
pub struct ShardSearch {
    /// Whose traces.
    pub tenant: TenantId,
    /// The conditions.
    pub filter: Arc<SearchFilter>,
    /// Only what comes after it.
    pub cursor: Option<Cursor>,
    /// How much of it.
    pub limits: HitLimits,
    /// Dropped traces too.
    pub include_dropped: bool,
    /// Which traces count.
    pub depth: Depth,
}

/// The newest hits of a shard.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MemoryHits {
    /// Newest start first, then by trace id.
    pub hits: Vec<MemoryHit>,
    /// There are more after the last one.
    pub more: bool,
    /// Up to which record verdicts in the journal are in effect; the shard's actor knows.
    pub in_effect: Lsn,
    /// The dropped traces that the shard holds again, since spans came late; only of a search for dropped ones.
    pub dropped: Vec<TraceId>,
}

/// The names of a shard's live traces of one tenant.
#[derive(Debug, Default)]
pub struct LiveNames {
    /// Operations by service.
    pub operations: BTreeSet<(Arc<str>, Arc<str>, SpanKind)>,
    /// Indexed attributes: key and value.
    pub attributes: BTreeSet<(Arc<str>, Arc<str>)>,
}

/// A filter in the shard's own numbers.
struct Resolved {
    /// For each demanded service, the classes that have it.
    services: Vec<Vec<bool>>,
    /// The classes that meet the conditions on one span, tags apart; `None` when there are none.
    span: Option<Vec<bool>>,
    /// The attribute of each tag, when the shard has it.
    tags: Vec<Option<u32>>,
}

impl Resolved {
    /// The classes whose spans a result names: those that meet the span's conditions, else those of the services.
    fn matched(&self) -> Vec<bool> {
        if let Some(span) = &self.span {
            return span.clone();
        }
        let mut union = vec![false; self.services.first().map_or(0, Vec::len)];
        for set in &self.services {
            union.iter_mut().zip(set).for_each(|(all, one)| *all |= one);
        }
        union
    }
}

impl ShardState {
    /// One trace.
    #[must_use]
    pub fn view(&self, tenant: &TenantId, trace_id: TraceId, depth: Depth) -> Option<EntryView> {
        let slot = self.find(tenant, trace_id)?;
        let entry = self.slots[slot as usize].as_ref();
        // A dropped one with late spans too: the keep of it that the primary has counted may be in the journal here and
        // not count yet, and then nothing else tells of the records that the drop has read.
        let counts = |entry: &&Entry| depth.counts(entry) || entry.dropped_by().is_some();
        let entry = entry.filter(counts)?;
        let record = match &entry.phase {
            Phase::Kept(kept) => Some(kept.record.clone()),
            Phase::LateDropped(record) => Some((**record).clone()),
            Phase::Deciding(deciding) => deciding.earlier.clone(),
            Phase::Open | Phase::Unconfirmed(_) => None,
        };
        Some(EntryView {
            state: state_of(entry),
            record,
            references: references_of(entry),
            span_count: entry.span_count(),
            unconfirmed: matches!(entry.phase, Phase::Unconfirmed(_)),
        })
    }

    /// What search knows of an entry that holds all of its trace.
    pub(crate) fn summary(
        &self,
        entry: &Entry,
        fragment: Lsn,
        start: UnixNanos,
        record: &VerdictRecord,
        policy: Arc<str>,
    ) -> TraceSummary {
        let classes = entry
            .classes()
            .iter()
            .filter_map(|&class| self.classes.get(class).cloned());
        let mut classes: Vec<_> = classes.collect();
        classes.sort_unstable();
        let attributes = entry.attributes().iter();
        let attributes = attributes.filter_map(|&number| self.attributes.get(number).cloned());
        let mut attributes: Vec<_> = attributes.collect();
        attributes.sort_unstable();
        TraceSummary {
            tenant: self.tenants[entry.tenant as usize].clone(),
            shard: self.options.shard,
            trace_id: entry.trace_id,
            fragment,
            bucket: record.bucket,
            start,
            earliest: entry.start.min(entry.end).min(start),
            end: entry.end.max(start),
            root: self.root(entry),
            span_count: entry.span_count(),
            error_count: entry.error_count,
            classes,
            attributes,
            truncated: entry.truncated,
            decision: SummaryDecision {
                policy,
                trigger: record.trigger,
                policy_version: record.policy_version,
                probability: record.probability,
                decided_at: record.decided_at,
            },
        }
    }

    /// The summary of the only trace of a state that was made of one trace's spans.
    pub(crate) fn only_summary(
        &self,
        fragment: Lsn,
        start: UnixNanos,
        record: &VerdictRecord,
        policy: Arc<str>,
    ) -> Option<TraceSummary> {
        let entry = self.entries().next()?;
        Some(self.summary(entry, fragment, start, record, policy))
    }

    fn root(&self, entry: &Entry) -> Option<RootSpan> {
        let row = entry.rows.get(entry.root_row as usize)?;
        let class = entry.classes().get(usize::from(row.class))?;
        let class = self.classes.get(*class)?;
        Some(RootSpan {
            span_id: SpanId(row.span_id),
            service: Arc::clone(&class.service),
            operation: Arc::clone(&class.operation),
        })
    }

    fn resolve(&self, filter: &SearchFilter) -> Resolved {
        let class_set = |meets: &dyn Fn(&spandrel_model::summary::SpanClass) -> bool| {
            let mut set = vec![false; self.classes.bound()];
            for (number, class) in self.classes.iter() {
                set[number as usize] = meets(class);
            }
            set
        };
        let services = filter.services.iter();
        let services: Vec<Vec<bool>> = services
            .map(|service| class_set(&|class| *class.service == **service))
            .collect();
        let span = filter.has_span_conditions().then(|| {
            class_set(&|class| {
                filter
                    .span_service()
                    .is_none_or(|service| *class.service == *service)
                    && filter
                        .operation
                        .as_deref()
                        .is_none_or(|name| *class.operation == *name)
                    && filter.status.is_none_or(|status| class.status == status)
            })
        });
        let tags = filter.tags.iter().map(|tag| {
            let key: Arc<str> = Arc::from(tag.key.as_str());
            self.attributes.find((&key, tag.value.as_bytes()))
        });
        Resolved {
            services,
            span,
            tags: tags.collect(),
        }
    }

    /// Does the entry meet the filter? `None` no, `Some(false)` perhaps, `Some(true)` yes.
    fn meets(
        &self,
        entry: &Entry,
        filter: &SearchFilter,
        resolved: &Resolved,
        indexed: &dyn Fn(&str) -> bool,
    ) -> Option<bool> {
        if entry.rows.is_empty() || entry.partial {
            // Its other spans are elsewhere: only reading them all can tell.
            return Some(false);
        }
        let duration = entry.end.since(entry.earliest());
        if !filter.admits_start(entry.fixed_start()) || !filter.admits_duration(duration) {
            return None;
        }
        let has = |set: &Vec<bool>| entry.classes().iter().any(|&class| set[class as usize]);
        let all_services = resolved.services.iter().all(has);
        let span = resolved.span.as_ref().is_none_or(has);
        let tags_possible =
            filter
                .tags
                .iter()
                .zip(&resolved.tags)
                .all(|(tag, number)| match number {
                    Some(number) => entry.attributes().contains(number),
                    None => !indexed(&tag.key),
                });
        if all_services && span && (tags_possible || entry.truncated) {
            return Some(filter.tags.is_empty());
        }
        entry.truncated.then_some(false)
    }

    /// The newest traces of a tenant after the cursor that meet the filter or may.
    #[must_use]
    pub fn search(&self, search: &ShardSearch, indexed: &dyn Fn(&str) -> bool) -> MemoryHits {
        let ShardSearch {
            tenant,
            filter,
            cursor,
            limits,
            ..
        } = search;
        let mut found = MemoryHits::default();
        let Some(number) = self.tenants.iter().position(|known| known == tenant) else {
            return found;
        };
        let resolved = self.resolve(filter);
        // A heap whose top is the worst of the best: the oldest start, then the greatest id.
        let mut best: BinaryHeap<(Reverse<UnixNanos>, TraceId, u32, bool)> = BinaryHeap::new();
        for (slot, entry) in (0u32..).zip(&self.slots) {
            let Some(entry) = entry
                .as_ref()
                .filter(|entry| entry.tenant as usize == number && search.depth.counts(entry))
            else {
                continue;
            };
            if entry.dropped_by().is_some() {
                if !search.include_dropped {
                    continue;
                }
                found.dropped.push(entry.trace_id);
            }
            let start = entry.fixed_start();
            let after = cursor.is_none_or(|cursor| {
                (Reverse(start), entry.trace_id) > (Reverse(cursor.start), cursor.trace_id)
            });
            if !after {
                continue;
            }
            let Some(exact) = self.meets(entry, filter, &resolved, indexed) else {
                continue;
            };
            best.push((Reverse(start), entry.trace_id, slot, exact));
            if best.len() > limits.all {
                best.pop();
                found.more = true;
            }
        }
        let matched = resolved.matched();
        let mut meeting = 0;
        for (_, _, slot, exact) in best.into_sorted_vec() {
            let Some(entry) = self.slots[slot as usize].as_ref() else {
                continue;
            };
            if exact && meeting == limits.meeting {
                found.more = true;
                break;
            }
            meeting += usize::from(exact);
            found.hits.push(match exact {
                true => MemoryHit::Meets(self.found(entry, &matched)),
                false => MemoryHit::Unverified(unverified(entry)),
            });
        }
        found
    }

    /// The only trace of a state that was made of one trace's spans, if it meets a filter without tags.
    pub(crate) fn only_found(&self, filter: &SearchFilter) -> Option<FoundTrace> {
        let entry = self.entries().next()?;
        let resolved = self.resolve(filter);
        self.meets(entry, filter, &resolved, &|_| true)?;
        Some(self.found(entry, &resolved.matched()))
    }

    fn found(&self, entry: &Entry, matched: &[bool]) -> FoundTrace {
        let class_of = |class: u8| entry.classes().get(usize::from(class)).copied();
        let root_class = entry.rows.get(entry.root_row as usize).map(|row| row.class);
        let root_status = root_class
            .and_then(class_of)
            .and_then(|class| self.classes.get(class))
            .map_or(StatusCode::Unset, |class| class.status);
        let matches = |class: u8| {
            class_of(class)
                .is_some_and(|number| matched.get(number as usize).copied().unwrap_or(false))
        };
        let (start, earliest) = (entry.fixed_start(), entry.earliest());
        let root = self.root(entry);
        let facts = TraceFacts {
            trace_id: entry.trace_id,
            root: root.as_ref(),
            root_status,
            start,
            earliest,
            duration: entry.end.max(earliest).since(earliest),
            span_count: entry.span_count(),
            error_count: entry.error_count,
            state: state_of(entry),
        };
        let services = entry.classes().iter();
        let rows = entry.rows.iter().filter(|row| matches(row.class));
        facts.found(
            services.filter_map(|&class| self.classes.get(class).map(|class| &*class.service)),
            rows.map(|row| SpanId(row.span_id)),
        )
    }

    /// The names of the tenant's live traces whose start lies in the range.
    pub fn names(
        &self,
        tenant: &TenantId,
        (from, to): (UnixNanos, UnixNanos),
        depth: Depth,
        names: &mut LiveNames,
    ) {
        let Some(number) = self.tenants.iter().position(|known| known == tenant) else {
            return;
        };
        let mut classes = vec![false; self.classes.bound()];
        let mut attributes = vec![false; self.attributes.bound()];
        for entry in self
            .entries()
            .filter(|entry| entry.tenant as usize == number && depth.counts(entry))
        {
            let start = entry.fixed_start();
            if start < from || start >= to || entry.dropped_by().is_some() {
                continue;
            }
            entry
                .classes()
                .iter()
                .for_each(|&class| classes[class as usize] = true);
            entry
                .attributes()
                .iter()
                .for_each(|&attribute| attributes[attribute as usize] = true);
        }
        for (_, class) in self
            .classes
            .iter()
            .filter(|(number, _)| classes[*number as usize])
        {
            names.operations.insert((
                Arc::clone(&class.service),
                Arc::clone(&class.operation),
                class.kind,
            ));
        }
        for (_, text) in self
            .attributes
            .iter()
            .filter(|(number, _)| attributes[*number as usize])
        {
            names
                .attributes
                .insert((Arc::clone(&text.key), Arc::clone(&text.value)));
        }
    }
}

/// Where a trace stands. While its verdict is not durable, it stands as before.
fn state_of(entry: &Entry) -> TraceState {
    match entry.phase {
        Phase::Kept(_) => TraceState::Kept,
        _ if entry.dropped_by().is_some() => TraceState::Dropped,
        _ => TraceState::Open,
    }
}

/// The records that hold its spans, those of an earlier drop included, ascending.
fn references_of(entry: &Entry) -> Vec<Lsn> {
    let mut references: Vec<Lsn> = entry.references.to_vec();
    match &entry.phase {
        Phase::Deciding(deciding) => {
            references.extend(deciding.record.references.iter().copied());
        }
        Phase::LateDropped(record) => references.extend(record.references.iter().copied()),
        Phase::Open | Phase::Unconfirmed(_) | Phase::Kept(_) => {}
    }
    references.sort_unstable();
    references.dedup();
    references
}

fn unverified(entry: &Entry) -> UnverifiedTrace {
    UnverifiedTrace {
        trace_id: entry.trace_id,
        start: entry.fixed_start(),
        state: state_of(entry),
        references: references_of(entry),
        whole: !entry.rows.is_empty() && !entry.partial,
    }
}
