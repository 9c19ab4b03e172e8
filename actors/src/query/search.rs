//! The coordinator of a search: rounds of candidates from every source, merged in the total order, verified, until
//! the page is full, nothing is left or the time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, TraceId, UnixNanos};
use spandrel_model::search::{
    Cursor, FoundTrace, MissingPart, Receipt, SearchAnswer, SearchRequest,
};
use tokio::time::Instant;

use super::sources::{self, Batch, Candidate, Key, Origin, after, key};
use super::verify::{Inspected, verify};
use super::{QueryPort, storage_error};
use crate::assembler_actor::{AssemblerMessage, ShardSearch};
use crate::shared::Shared;

/// Candidates beyond the page's limit that a round takes from each source.
const ROUND_SPARE: usize = 30;

/// A search under way.
struct Progress {
    request: SearchRequest,
    deadline: Instant,
    cursor: Option<Cursor>,
    found: Vec<FoundTrace>,
    seen: BTreeSet<TraceId>,
    inspected: Inspected,
    /// Results of the column scan, once it was needed.
    scanned: Option<Vec<Candidate>>,
    timed_out: bool,
    exhausted: bool,
}

impl QueryPort {
    pub(super) async fn find(&self, request: SearchRequest) -> Result<SearchAnswer, PortError> {
        let mut progress = Progress {
            deadline: Instant::now() + Duration::from_millis(request.timeout_ms),
            cursor: request.cursor,
            found: Vec::new(),
            seen: BTreeSet::new(),
            inspected: Inspected::default(),
            scanned: None,
            timed_out: false,
            exhausted: false,
            request,
        };
        while !progress.is_done() {
            let live = self.live(&progress).await?;
            let references = self.live_references(&progress, &live).await?;
            let shared = Arc::clone(&self.shared);
            progress = self
                .shared
                .env
                .block(move || progress.round(&shared, live, &references))
                .await?;
        }
        Ok(self.answer_search(progress))
    }

    /// The shards' candidates of a round. Of an entry with late spans only the place in the order is known, by the
    /// start that its verdict fixed: it comes whatever the filter says, and its spans are read.
    async fn live(&self, progress: &Progress) -> Result<Batch, PortError> {
        let request = &progress.request;
        let limit = request.limit + ROUND_SPARE;
        let filter = Arc::new(request.filter.clone());
        let answers = self
            .ask_all(|reply| {
                let search = ShardSearch {
                    tenant: request.tenant.clone(),
                    filter: Arc::clone(&filter),
                    cursor: progress.cursor,
                    limit: limit + 1,
                    include_dropped: request.include_dropped,
                };
                AssemblerMessage::Search(search, reply)
            })
            .await?;
        let candidates = answers.into_iter().flatten().map(|hit| Candidate {
            key: key(hit.found.start, hit.found.trace_id),
            exact: hit.exact,
            origin: Origin::Live(Box::new(hit.found)),
        });
        Ok(Batch::of(candidates.collect(), limit))
    }

    /// The journal records of live candidates whose spans must be read.
    async fn live_references(
        &self,
        progress: &Progress,
        live: &Batch,
    ) -> Result<BTreeMap<TraceId, Vec<Lsn>>, PortError> {
        let tenant = &progress.request.tenant;
        let mut references = BTreeMap::new();
        for candidate in live.candidates.iter().filter(|candidate| !candidate.exact) {
            let trace_id = candidate.key.1;
            let shard = self.shared.shard(tenant, trace_id);
            let owner = tenant.clone();
            let view = self
                .ask(shard, |reply| {
                    AssemblerMessage::View(owner, trace_id, reply)
                })
                .await?;
            references.insert(
                trace_id,
                view.map(|view| view.references).unwrap_or_default(),
            );
        }
        Ok(references)
    }

    fn answer_search(&self, progress: Progress) -> SearchAnswer {
        let request = &progress.request;
        let mut missing = Vec::new();
        let part = |reason: String| MissingPart {
            node: self.shared.node,
            shards: Vec::new(),
            from: request.filter.from,
            to: progress
                .cursor
                .map_or(request.filter.to, |cursor| cursor.start),
            reason,
        };
        if progress.timed_out {
            missing.push(part(format!(
                "not inspected within {} ms",
                request.timeout_ms
            )));
        }
        let unreadable = progress.inspected.unreadable;
        if unreadable > 0 {
            missing.push(part(format!(
                "{unreadable} records, fragments or pages cannot be read"
            )));
        }
        if request.include_dropped {
            let reason = "of the dropped traces only those with recent spans are searched";
            missing.push(part(reason.to_owned()));
        }
        let next = (!progress.exhausted && progress.found.len() >= request.limit)
            .then(|| {
                let last = progress.found.last()?;
                Some(Cursor {
                    start: last.start,
                    trace_id: last.trace_id,
                })
            })
            .flatten();
        SearchAnswer {
            next,
            receipt: Receipt {
                complete: missing.is_empty(),
                from: request.filter.from,
                to: request.filter.to,
                index_watermark: self.index_watermark(),
                missing,
                inspected_spans: progress.inspected.spans,
                inspected_bytes: progress.inspected.bytes,
            },
            traces: progress.found,
        }
    }

    /// Everything that was kept before is in the index.
    pub(crate) fn index_watermark(&self) -> UnixNanos {
        let mut oldest = self.shared.gauges.oldest().min(self.shared.env.now());
        self.shared
            .recent
            .visit(|summary| oldest = oldest.min(summary.decision.decided_at));
        oldest
    }
}

impl Progress {
    fn is_done(&self) -> bool {
        self.exhausted || self.timed_out || self.found.len() >= self.request.limit
    }

    fn round(
        mut self,
        shared: &Shared,
        live: Batch,
        references: &BTreeMap<TraceId, Vec<Lsn>>,
    ) -> Result<Self, PortError> {
        let limit = self.request.limit + ROUND_SPARE;
        let epoch = shared.epoch();
        let interests = epoch.rules().interests();
        let indexed = |key: &str| {
            interests
                .number(key)
                .is_some_and(|number| number < interests.indexed())
        };
        let by_columns = self
            .request
            .filter
            .tags
            .iter()
            .any(|tag| !indexed(&tag.key));
        let [recent, stored] = if by_columns {
            let recent = sources::recent(shared, &self.request, self.cursor, limit, &indexed)?;
            [recent, self.columns(shared, limit)?]
        } else {
            self.summaries(shared, limit, &indexed)?
        };
        let batches = [live, recent, stored];
        // A source with more to give may still hold something before the others' last ones.
        let safe: Option<Key> = batches
            .iter()
            .filter(|batch| batch.more)
            .filter_map(|batch| batch.candidates.last().map(|candidate| candidate.key))
            .min();
        let mut merged: Vec<Candidate> = batches
            .into_iter()
            .flat_map(|batch| batch.candidates)
            .collect();
        merged.sort_by_key(|candidate| (candidate.key, candidate.origin.rank()));
        for candidate in merged {
            let at = candidate.key;
            if safe.is_some_and(|safe| at > safe) || self.is_done() {
                break;
            }
            if !after(self.cursor, at) && self.cursor.is_some() {
                continue;
            }
            if Instant::now() >= self.deadline {
                self.timed_out = true;
                break;
            }
            self.take(shared, candidate, references)?;
        }
        self.exhausted = safe.is_none() && !self.is_full();
        if let (Some(safe), false) = (safe, self.is_full()) {
            self.cursor = Some(Cursor {
                start: safe.0.0,
                trace_id: safe.1,
            });
        }
        Ok(self)
    }

    /// Summaries that are not indexed, and those of the index. Where the index is damaged, looking drops it, and the
    /// next look reads that bucket's summaries from its block: a damaged index costs time, not answers.
    fn summaries(
        &self,
        shared: &Shared,
        limit: usize,
        indexed: &dyn Fn(&str) -> bool,
    ) -> Result<[Batch; 2], PortError> {
        // Each look but the last one drops the index of a bucket.
        let buckets = shared.blocks.buckets().map_err(storage_error)?.len();
        for _ in 0..=buckets {
            let recent = sources::recent(shared, &self.request, self.cursor, limit, indexed)?;
            if let Some(stored) = sources::index(shared, &self.request, self.cursor, limit)? {
                return Ok([recent, stored]);
            }
        }
        Err(storage_error("the index is damaged again and again"))
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.request.limit
    }

    fn take(
        &mut self,
        shared: &Shared,
        candidate: Candidate,
        references: &BTreeMap<TraceId, Vec<Lsn>>,
    ) -> Result<(), PortError> {
        let trace_id = candidate.key.1;
        if !self.seen.insert(trace_id) {
            return Ok(());
        }
        let live = |trace_id| references.get(&trace_id).cloned().unwrap_or_default();
        let request = &self.request;
        let found = verify(shared, request, candidate, &live, &mut self.inspected)?;
        self.found.extend(found);
        Ok(())
    }

    fn columns(&mut self, shared: &Shared, limit: usize) -> Result<Batch, PortError> {
        if self.scanned.is_none() {
            let (candidates, cost, in_time) =
                sources::columns(shared, &self.request, self.deadline)?;
            self.inspected.spans += cost.spans;
            self.inspected.bytes += cost.bytes;
            self.inspected.unreadable += cost.corrupt_pages;
            self.timed_out |= !in_time;
            self.scanned = Some(candidates);
        }
        let all = self.scanned.as_deref().unwrap_or_default().iter();
        let rest = all.filter(|candidate| after(self.cursor, candidate.key));
        Ok(Batch::of(rest.cloned().collect(), limit))
    }
}
