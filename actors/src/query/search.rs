//! A search on one node: rounds of candidates from every source, merged in the total order, verified, until
//! the page is full, nothing is left or the time is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, ShardId, Term, TraceId, UnixNanos};
use spandrel_model::search::{
    Cursor, FoundTrace, MissingPart, Receipt, SearchAnswer, SearchRequest,
};
use spandrel_model::shard_set::ShardSet;
use spandrel_storage::block::BlockInfo;
use spandrel_storage::page::PageCondition;
use tokio::time::Instant;

use super::columns::ColumnScan;
use super::dropped::{DroppedRound, DroppedScan, DroppedView, joined_lately};
use super::found::{Reached, SearchPart};
use super::live::{LiveScan, Stop};
use super::part::NodePart;
use super::sources::{self, Batch, Candidate, Key, Origin, Wanted, after};
use super::verify::{Inspected, prepare, verify};
use super::{QueryPort, storage_error};
use crate::assembler::{HitLimits, ShardSearch};
use crate::assembler_message::AssemblerMessage;
use crate::limits::{MAX_SEARCH_FRAME_BYTES, MAX_SHARD_CANDIDATES, SEARCH_GROUP};
use crate::meters::Stage;
use crate::shared::Shared;

/// Candidates beyond the page's limit that a round takes from each source.
const ROUND_SPARE: usize = 30;
/// By how much more a round asks of each shard than the one before: conditions that only spans answer leave few of
/// many candidates.
const ROUND_GROWTH: usize = 4;
/// The part of a search's time, in percent, in which columns are scanned; the rest is for what was found.
const SCAN_TIME_PERCENT: u64 = 75;
/// The part of it in which the verdicts of dropped traces are walked.
const WALK_TIME_PERCENT: u64 = 40;

/// A search under way.
struct Progress {
    request: Arc<SearchRequest>,
    /// The shards of which blocks are read; `None`: of all.
    shards: Option<Arc<ShardSet>>,
    /// When columns and frames are scanned no more; what was found by then is still read.
    scan_deadline: Instant,
    /// When the verdicts of dropped traces are walked no more.
    walk_deadline: Instant,
    deadline: Instant,
    cursor: Option<Cursor>,
    /// Candidates that a round asks of each shard.
    shard_candidates: usize,
    found: Vec<FoundTrace>,
    seen: BTreeSet<TraceId>,
    inspected: Inspected,
    /// Blocks with summaries that cannot be read.
    unreadable_blocks: u64,
    /// The column scan, once it was needed.
    columns: Option<ColumnScan>,
    dropped: DroppedScan,
    /// Shards whose dropped traces may be missing, since this copy is new.
    joined: ShardSet,
    stopped: Option<Stop>,
    exhausted: bool,
}

/// What the shards gave a round.
struct LiveRound {
    batches: Vec<Batch>,
    dropped: DroppedView,
}

/// Candidates that are verified together.
#[derive(Default)]
struct Group {
    candidates: Vec<Candidate>,
    /// The last candidate that was looked at, also one that cannot be a result.
    passed: Option<Key>,
    /// What ended the search behind it.
    stopped: Option<Stop>,
}

impl QueryPort {
    /// Finds traces of the part's shards. Its bound is the caller's gate and the credit taken here.
    pub(crate) async fn find(
        &self,
        request: SearchRequest,
        part: &NodePart,
    ) -> Result<SearchPart, PortError> {
        let _credit = self.credit(&request.tenant)?;
        let whole = part.stored.len() == usize::from(self.shared.router.shards());
        let (started, timeout) = (Instant::now(), request.timeout_ms);
        let after_percent =
            |percent: u64| started + Duration::from_millis(timeout.saturating_mul(percent) / 100);
        let joined = match request.include_dropped {
            true => self.joined_lately(part),
            false => ShardSet::default(),
        };
        let mut progress = Progress {
            scan_deadline: after_percent(SCAN_TIME_PERCENT),
            walk_deadline: after_percent(WALK_TIME_PERCENT),
            deadline: started + Duration::from_millis(timeout),
            cursor: request.cursor,
            shard_candidates: request.limit + ROUND_SPARE,
            found: Vec::new(),
            seen: BTreeSet::new(),
            inspected: Inspected::default(),
            unreadable_blocks: 0,
            columns: None,
            dropped: DroppedScan::default(),
            joined,
            stopped: None,
            exhausted: false,
            shards: (!whole).then(|| Arc::new(part.stored.clone())),
            request: Arc::new(request),
        };
        while !progress.is_done() {
            let live = self.live(&progress, part).await?;
            let shared = Arc::clone(&self.shared);
            progress = self
                .shared
                .block(Stage::Query, move || progress.round(&shared, live))
                .await?;
        }
        Ok(self.answer_search(progress))
    }

    /// The shards' candidates of a round, each shard's as a source of its own. Of an entry with late spans only the
    /// place in the order is known, by the start that its verdict fixed: it comes whatever the filter says, and its
    /// spans are read.
    async fn live(&self, progress: &Progress, part: &NodePart) -> Result<LiveRound, PortError> {
        let request = &progress.request;
        let filter = Arc::new(request.filter.clone());
        let answers = self
            .ask_shards(part, |depth, reply| {
                let search = ShardSearch {
                    tenant: request.tenant.clone(),
                    filter: Arc::clone(&filter),
                    cursor: progress.cursor,
                    limits: HitLimits {
                        all: progress.shard_candidates,
                        meeting: request.limit,
                    },
                    include_dropped: request.include_dropped,
                    depth,
                };
                AssemblerMessage::Search(search, reply)
            })
            .await?;
        let mut round = LiveRound {
            batches: Vec::with_capacity(answers.len()),
            dropped: DroppedView::default(),
        };
        for (shard, mut found) in part.stored.iter().zip(answers) {
            if part.live.contains(shard) {
                round.dropped.add(shard, &mut found);
            }
            round.batches.push(Batch::live(found));
        }
        Ok(round)
    }

    /// The shards of a part whose dropped traces this node may lack.
    fn joined_lately(&self, part: &NodePart) -> ShardSet {
        let shared = &self.shared;
        let since = shared.env.now().minus(self.recovery_window_nanos);
        let state = self.cluster.borrow();
        let has_records = |shard, term: Term| {
            let last = Lsn::before_term(term.next());
            let floor = shared.journal.floor(shard, last);
            floor.is_ok_and(|floor| floor.is_some_and(|floor| floor.term() == term))
        };
        let time = (shared.bucket_nanos, since);
        joined_lately(&state, shared.node, &part.live, time, &has_records)
    }

    fn answer_search(&self, progress: Progress) -> SearchPart {
        let request = &progress.request;
        let mut missing = Vec::new();
        let part = |reason: String| MissingPart {
            node: self.shared.node,
            shards: Vec::new(),
            from: request.filter.from,
            to: progress
                .cursor
                .map_or(request.filter.to, |cursor| cursor.start.plus(1)),
            reason,
        };
        match progress.stopped {
            Some(Stop::Time) => missing.push(part(format!(
                "not inspected within {} ms",
                request.timeout_ms
            ))),
            Some(Stop::Bytes) => missing.push(part(format!(
                "not inspected: a search reads at most {MAX_SEARCH_FRAME_BYTES} bytes of the journal"
            ))),
            None => {}
        }
        let mut unreadable = progress.inspected.unreadable;
        unreadable.somewhere(progress.unreadable_blocks);
        let damage = (unreadable.count > 0).then(|| MissingPart {
            shards: unreadable.shards(),
            ..part(format!(
                "{} records, fragments or pages cannot be read",
                unreadable.count
            ))
        });
        let whole = |reason: String, shards: Vec<ShardId>| MissingPart {
            node: self.shared.node,
            shards,
            from: request.filter.from,
            to: request.filter.to,
            reason,
        };
        let verdicts = "verdicts of older dropped traces are not inspected";
        match progress.dropped.stopped() {
            Some(Stop::Time) => missing.push(whole(
                format!("{verdicts}: they take {WALK_TIME_PERCENT} % of the time at most"),
                Vec::new(),
            )),
            Some(Stop::Bytes) => missing.push(whole(
                format!(
                    "{verdicts}: a search reads at most {MAX_SEARCH_FRAME_BYTES} bytes of them"
                ),
                Vec::new(),
            )),
            None => {}
        }
        if !progress.joined.is_empty() {
            let reason = "dropped traces of before this copy of the shard are not searched";
            missing.push(whole(reason.to_owned(), progress.joined.iter().collect()));
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
        let reached = match progress.exhausted {
            true => Reached::End,
            false => Reached::Until(progress.cursor),
        };
        let answer = SearchAnswer {
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
        };
        SearchPart {
            answer,
            reached,
            damage,
        }
    }

    /// Everything that was kept before is in the index.
    pub(crate) fn index_watermark(&self) -> UnixNanos {
        let oldest = self.shared.gauges.oldest().min(self.shared.env.now());
        let waiting = self.shared.recent.oldest_decision();
        waiting.map_or(oldest, |waiting| waiting.min(oldest))
    }
}

impl Progress {
    fn is_done(&self) -> bool {
        self.exhausted || self.stopped.is_some() || self.is_full()
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.request.limit
    }

    fn round(mut self, shared: &Shared, live: LiveRound) -> Result<Self, PortError> {
        let blocks = shared.blocks.buckets().map_err(storage_error)?;
        let mut batches = live.batches;
        let mut in_time = true;
        if self.request.include_dropped {
            let (dropped, was_in_time) = self.dropped(shared, &live.dropped)?;
            batches.push(dropped);
            in_time = was_in_time;
        }
        in_time &= self.stored(shared, &blocks, &mut batches)?;
        // A source with more to give may still hold something before the others' last ones.
        let safe: Option<Key> = batches.iter().filter_map(|batch| batch.bound).min();
        let merged = self.merge(batches, safe);
        let stopped = self.inspect(shared, merged)?;
        self.shard_candidates = self
            .shard_candidates
            .saturating_mul(ROUND_GROWTH)
            .min(MAX_SHARD_CANDIDATES)
            .max(self.shard_candidates);
        if self.is_full() {
            return Ok(self);
        }
        if stopped.is_none()
            && let Some(safe) = safe
        {
            self.reach(safe);
        }
        self.exhausted = stopped.is_none() && safe.is_none();
        self.stopped = stopped.or((!in_time).then_some(Stop::Time));
        Ok(self)
    }

    fn reach(&mut self, key: Key) {
        self.cursor = Some(Cursor {
            start: key.0.0,
            trace_id: key.1,
        });
    }

    fn wanted<'a>(&'a self, blocks: &'a [BlockInfo], limit: usize) -> Wanted<'a> {
        Wanted {
            request: &self.request,
            shards: self.shards.as_deref(),
            blocks,
            cursor: self.cursor,
            limit,
        }
    }

    fn dropped(&mut self, shared: &Shared, view: &DroppedView) -> Result<(Batch, bool), PortError> {
        let round = DroppedRound {
            shared,
            request: &self.request,
            view,
            cursor: self.cursor,
            limit: self.request.limit + ROUND_SPARE,
            walk_deadline: self.walk_deadline,
            deadline: self.scan_deadline,
        };
        self.dropped.next(&round, &mut self.inspected)
    }

    /// Adds the candidates of the stores. False when the time was over before the columns were scanned.
    fn stored(
        &mut self,
        shared: &Shared,
        blocks: &[BlockInfo],
        batches: &mut Vec<Batch>,
    ) -> Result<bool, PortError> {
        let limit = self.request.limit + ROUND_SPARE;
        let epoch = shared.epoch();
        let interests = epoch.rules().interests();
        let indexed = |key: &str| interests.is_indexed(key);
        let mut tags = self.request.filter.tags.iter();
        if tags.all(|tag| indexed(&tag.key)) {
            batches.extend(self.summaries(shared, blocks, limit, &indexed)?);
            return Ok(true);
        }
        let wanted = self.wanted(blocks, limit);
        let (recent, unreadable) = sources::recent(shared, &wanted, &indexed)?;
        let (request, cursor) = (&self.request, self.cursor);
        self.unreadable_blocks = unreadable;
        batches.push(recent);
        let columns = self
            .columns
            .get_or_insert_with(|| ColumnScan::new(request, self.shards.clone(), blocks));
        let deadline = self.scan_deadline;
        let (found, in_time) = columns.next(
            shared,
            request,
            cursor,
            limit,
            deadline,
            &mut self.inspected,
        )?;
        batches.push(found);
        Ok(in_time)
    }

    /// Summaries that are not indexed, and those of the index. Where the index is damaged, looking drops it, and the
    /// next look reads that bucket's summaries from its block: a damaged index costs time, not answers.
    fn summaries(
        &mut self,
        shared: &Shared,
        blocks: &[BlockInfo],
        limit: usize,
        indexed: &dyn Fn(&str) -> bool,
    ) -> Result<[Batch; 2], PortError> {
        // Each look but the last one drops the index of a bucket.
        for _ in 0..=blocks.len() {
            let wanted = self.wanted(blocks, limit);
            let (recent, unreadable) = sources::recent(shared, &wanted, indexed)?;
            if let Some(stored) = sources::index(shared, &wanted)? {
                self.unreadable_blocks = unreadable;
                return Ok([recent, stored]);
            }
        }
        Err(storage_error("the index is damaged again and again"))
    }

    /// The candidates of all sources that nothing can come before any more, each trace once, in the total order.
    fn merge(&mut self, batches: Vec<Batch>, safe: Option<Key>) -> Vec<Candidate> {
        let candidates = batches.into_iter().flat_map(|batch| batch.candidates);
        let in_order = |candidate: &Candidate| {
            safe.is_none_or(|safe| candidate.key <= safe) && after(self.cursor, candidate.key)
        };
        let mut merged: Vec<Candidate> = candidates.filter(in_order).collect();
        merged.sort_unstable_by_key(|candidate| (candidate.key, candidate.origin.rank()));
        merged
    }

    /// Takes candidates until the page is full. Says what stopped it before; the cursor is then where it came to.
    fn inspect(
        &mut self,
        shared: &Shared,
        merged: Vec<Candidate>,
    ) -> Result<Option<Stop>, PortError> {
        let request = Arc::clone(&self.request);
        let condition = request.filter.span_condition();
        let condition = PageCondition::new(&condition);
        let (tenant, deadline) = (&request.tenant, self.scan_deadline);
        let mut live = LiveScan::new(shared, tenant, condition, deadline, &merged);
        let mut merged = merged.into_iter();
        let mut stopped = None;
        while stopped.is_none() && !self.is_full() && merged.len() > 0 {
            let group = self.group(&mut live, &mut merged);
            stopped = self.take(shared, group)?;
        }
        Ok(stopped)
    }

    /// The next candidates that may be results, no more than the page has room for.
    fn group(
        &mut self,
        live: &mut LiveScan<'_>,
        merged: &mut std::vec::IntoIter<Candidate>,
    ) -> Group {
        let room = (self.request.limit - self.found.len()).min(SEARCH_GROUP);
        let of_spans = self.request.filter.has_span_conditions();
        let mut group = Group::default();
        while group.candidates.len() < room
            && let Some(candidate) = merged.next()
        {
            let may_meet = match &candidate.origin {
                _ if self.seen.contains(&candidate.key.1) => Ok(false),
                Origin::Unverified(trace) if of_spans => live.may_meet(trace, &mut self.inspected),
                _ => Ok(true),
            };
            match may_meet {
                Ok(may_meet) => {
                    group.passed = Some(candidate.key);
                    self.seen.insert(candidate.key.1);
                    group.candidates.extend(may_meet.then_some(candidate));
                }
                Err(stop) => {
                    group.stopped = Some(stop);
                    break;
                }
            }
        }
        group
    }

    /// Verifies a group; says what stopped the search in it or behind it.
    fn take(&mut self, shared: &Shared, group: Group) -> Result<Option<Stop>, PortError> {
        let request = Arc::clone(&self.request);
        for prepared in prepare(shared, &request, group.candidates, &mut self.inspected)? {
            let at = prepared.candidate.key;
            if Instant::now() >= self.deadline {
                return Ok(Some(Stop::Time));
            }
            let found = verify(shared, &request, prepared, &mut self.inspected)?;
            self.found.extend(found);
            self.reach(at);
        }
        if let Some(key) = group.passed {
            self.reach(key);
        }
        Ok(group.stopped)
    }
}
