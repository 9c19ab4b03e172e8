//! Searching a bucket's index: newest first, stopping as soon as the page is full.

use spandrel_model::ids::{Bucket, Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, SearchFilter};
use spandrel_model::shard_set::ShardSet;

use super::error::{Fault, IndexError};
use super::limits::MAX_HITS;
use super::manifest::{Manifest, SegmentEntry};
use super::query::Plan;
use super::segment::{Candidate, OpenSegment};
use super::store::IndexStore;

/// One search in one bucket.
#[derive(Debug, Clone, Copy)]
pub struct IndexQuery<'a> {
    /// Whose traces.
    pub tenant: &'a TenantId,
    /// The conditions.
    pub filter: &'a SearchFilter,
    /// Only traces of these shards; `None`: of all.
    pub shards: Option<&'a ShardSet>,
    /// Only what comes after it.
    pub cursor: Option<Cursor>,
    /// Most hits to return, at most [`MAX_HITS`].
    pub limit: usize,
}

/// A trace that matches, or may match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHit {
    /// The trace.
    pub trace_id: TraceId,
    /// Its shard.
    pub shard: ShardId,
    /// Its newest fragment in this bucket.
    pub fragment: Lsn,
    /// Its start.
    pub start: UnixNanos,
    /// True when it matches; false when its spans must be looked at first.
    pub exact: bool,
}

/// What a bucket's index knows of a search.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexAnswer {
    /// The hits are of the block's summaries up to this sequence; 0 when there is no index of that block.
    pub up_to_sequence: u64,
    /// Newest start first, then by trace id. Fewer than the limit means that there are no more.
    pub hits: Vec<IndexHit>,
}

impl IndexStore {
    /// Finds the traces of a tenant that match a filter, and those that may match it.
    ///
    /// Every trace that matches by the newest summary that the index has is found; one with `exact: true` does match.
    /// The order is total and each trace occurs once, so pages that continue by cursor neither repeat nor skip.
    ///
    /// # Errors
    /// [`IndexError::LimitTooLarge`]; [`IndexError::Corrupt`] when the bucket's index was damaged: it is gone then,
    /// and its summaries must be read instead; [`IndexError::Io`]; [`IndexError::Busy`].
    pub fn search(
        &self,
        bucket: Bucket,
        block_id: u128,
        query: &IndexQuery<'_>,
    ) -> Result<IndexAnswer, IndexError> {
        if query.limit > MAX_HITS {
            return Err(IndexError::LimitTooLarge {
                limit: query.limit,
                max: MAX_HITS,
            });
        }
        let answer = self.read(bucket, |manifest| {
            if manifest.block_id != block_id {
                return Ok(IndexAnswer::default());
            }
            self.search_manifest(manifest, query)
        })?;
        Ok(answer.unwrap_or_default())
    }

    fn search_manifest(
        &self,
        manifest: &Manifest,
        query: &IndexQuery<'_>,
    ) -> Result<IndexAnswer, Fault> {
        let mut page = Page::new(query);
        let mut segments: Vec<&SegmentEntry> = manifest.segments.iter().collect();
        segments.sort_by_key(|entry| (std::cmp::Reverse(entry.max_start), entry.number));
        for entry in segments {
            let reached =
                entry.min_start <= page.latest.0 && page.wants(UnixNanos(entry.max_start));
            if query.limit > 0 && reached {
                let segment = self.segment(manifest.bucket, entry)?;
                let plan = Plan::new(query.tenant, query.filter, &entry.keys);
                page.collect(&segment, entry, &plan)?;
            }
        }
        Ok(IndexAnswer {
            up_to_sequence: manifest.checkpoint,
            hits: page.finish(),
        })
    }
}

/// Hits beyond the limit that are held before the worst are let go.
const SLACK_HITS: usize = 1_024;

/// A page of hits that fills up, segment by segment.
///
/// Invariant: no hit that starts before `floor` belongs on the page.
struct Page<'a> {
    query: &'a IndexQuery<'a>,
    /// Latest start on the page.
    latest: UnixNanos,
    floor: UnixNanos,
    hits: Vec<IndexHit>,
}

impl<'a> Page<'a> {
    fn new(query: &'a IndexQuery<'a>) -> Self {
        let before_end = query.filter.to.minus(1);
        let after_cursor = query.cursor.map_or(before_end, |cursor| cursor.start);
        // An end at the epoch leaves no start at all.
        let nothing = query.filter.to.0 == 0;
        Self {
            query,
            latest: before_end.min(after_cursor),
            floor: if nothing {
                UnixNanos(u64::MAX)
            } else {
                query.filter.from
            },
            hits: Vec::new(),
        }
    }

    fn wants(&self, start: UnixNanos) -> bool {
        start >= self.floor
    }

    fn collect(
        &mut self,
        segment: &OpenSegment,
        entry: &SegmentEntry,
        plan: &Plan,
    ) -> Result<(), Fault> {
        let mut candidates = segment.candidates(plan)?;
        let mut next = segment.first_at_or_before(self.latest, 0);
        let mut found = 0;
        while let Some(candidate) = candidates.seek(next) {
            let document = candidate.document;
            let start = segment.start(document);
            if document >= segment.documents() || !self.wants(start) {
                break;
            }
            next = document + 1;
            if entry.stale.binary_search(&document).is_ok() || !self.admits(segment, document) {
                continue;
            }
            self.hits.push(hit(segment, candidate, plan));
            found += 1;
            if found == self.query.limit {
                // Newest first: whatever starts earlier in this segment is past the page.
                self.floor = self.floor.max(start);
            }
            if self.hits.len() > 2 * self.query.limit + SLACK_HITS {
                self.prune();
            }
        }
        self.prune();
        Ok(())
    }

    /// Whether shard, time, cursor and duration let a document pass.
    fn admits(&self, segment: &OpenSegment, document: u32) -> bool {
        let filter = self.query.filter;
        let shards = self.query.shards;
        if shards.is_some_and(|shards| !shards.contains(segment.shard(document))) {
            return false;
        }
        let after_cursor = self.query.cursor.is_none_or(|cursor| {
            let start = segment.start(document);
            start < cursor.start
                || (start == cursor.start && segment.trace_id(document) > cursor.trace_id)
        });
        after_cursor && filter.admits_duration(segment.duration(document))
    }

    /// Keeps the best hits, and raises the floor to the worst of them when the page is full.
    fn prune(&mut self) {
        let limit = self.query.limit;
        if self.hits.len() < limit {
            return;
        }
        self.hits.sort_unstable_by_key(order);
        self.hits.truncate(limit);
        if let Some(worst) = self.hits.last() {
            self.floor = self.floor.max(worst.start);
        }
    }

    fn finish(mut self) -> Vec<IndexHit> {
        self.hits.sort_unstable_by_key(order);
        self.hits
    }
}

fn order(hit: &IndexHit) -> (std::cmp::Reverse<UnixNanos>, TraceId) {
    (std::cmp::Reverse(hit.start), hit.trace_id)
}

fn hit(segment: &OpenSegment, candidate: Candidate, plan: &Plan) -> IndexHit {
    let exact = match candidate.truncated {
        true => plan.exact_when_truncated,
        false => plan.exact,
    };
    IndexHit {
        trace_id: segment.trace_id(candidate.document),
        shard: segment.shard(candidate.document),
        fragment: segment.fragment(candidate.document),
        start: segment.start(candidate.document),
        exact: exact && candidate.holds_conditions,
    }
}
