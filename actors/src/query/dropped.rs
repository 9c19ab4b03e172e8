//! Dropped traces, found by their verdicts in the journal: it is walked from its newest verdicts back, once for a search.
//! Traces that a shard holds again, since spans came late, are for the shard to give.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{Bucket, Lsn, NodeId, ShardId, Term, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, SearchRequest, TraceState};
use spandrel_model::shard_set::ShardSet;
use spandrel_model::verdict::{CERTAIN, Verdict, VerdictRecord};
use spandrel_raft::ClusterState;
use spandrel_storage::journal::{Frame, FrameId, JournalError};
use tokio::time::Instant;

use super::live::Stop;
use super::reader::{TraceParts, distinct_spans};
use super::sources::{Batch, Candidate, Key, Origin, after, key};
use super::storage_error;
use super::verify::Inspected;
use crate::assembler::{MemoryHits, UnverifiedTrace};
use crate::limits::{MAX_DROPPED_PLACES, MAX_SEARCH_FRAME_BYTES};
use crate::shared::Shared;

/// Nothing comes before it.
const FIRST: Key = (Reverse(UnixNanos(u64::MAX)), TraceId([0; 16]));

/// What the shards knew when a round began, of those whose dropped traces are searched: the journal is read as it was
/// then, so that a trace which is decided meanwhile is not missed by both.
#[derive(Debug, Default)]
pub(super) struct DroppedView {
    /// The last record of each shard up to which verdicts are in effect.
    in_effect: BTreeMap<ShardId, Lsn>,
    /// Dropped traces that shards hold again.
    held: BTreeSet<TraceId>,
}

impl DroppedView {
    pub(super) fn add(&mut self, shard: ShardId, found: &mut MemoryHits) {
        self.in_effect.insert(shard, found.in_effect);
        self.held.extend(std::mem::take(&mut found.dropped));
    }
}

/// A verdict that stands at a trace's place in the order.
#[derive(Debug, Clone, Copy)]
struct Place {
    shard: ShardId,
    /// The record that holds the verdict.
    lsn: Lsn,
    /// What it has read.
    input_lsn: Lsn,
}

/// A walk over the journal's verdicts.
///
/// Invariant: every drop that was walked, meets the conditions on start and duration and comes behind the cursor is in
/// `places`, unless `is_cut` and it comes behind the last one.
#[derive(Debug, Default)]
pub(super) struct DroppedScan {
    places: BTreeMap<Key, Place>,
    /// Places behind the last one were let go.
    is_cut: bool,
    /// The newest frame that was walked.
    newest: Option<FrameId>,
    has_walked: bool,
    /// Raw bytes of the frames that were walked.
    bytes: u64,
    /// Why older verdicts were not walked.
    stopped: Option<Stop>,
}

/// What a round asks of the scan.
#[derive(Clone, Copy)]
pub(super) struct DroppedRound<'a> {
    pub(super) shared: &'a Shared,
    pub(super) request: &'a SearchRequest,
    pub(super) view: &'a DroppedView,
    pub(super) cursor: Option<Cursor>,
    pub(super) limit: usize,
    /// When no more frames are walked; what was found by then is given.
    pub(super) walk_deadline: Instant,
    /// When no more places are looked up.
    pub(super) deadline: Instant,
}

impl DroppedScan {
    /// Why some verdicts were not walked.
    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// The next candidates, and false when the time was over before they were found.
    pub(super) fn next(
        &mut self,
        round: &DroppedRound<'_>,
        inspected: &mut Inspected,
    ) -> Result<(Batch, bool), PortError> {
        let cursor = round.cursor;
        self.places.retain(|place, _| after(cursor, *place));
        if !self.has_walked || (self.is_cut && self.places.is_empty()) {
            self.is_cut = false;
            self.walk_back(round, inspected)?;
        } else {
            self.walk_on(round, inspected)?;
        }
        let mut candidates = Vec::new();
        let mut in_time = true;
        let mut stale = Vec::new();
        let last = self.places.keys().next_back().copied();
        let mut bound = last.filter(|_| self.is_cut);
        let mut passed = cursor.map_or(FIRST, |cursor| key(cursor.start, cursor.trace_id));
        for (place, found) in &self.places {
            in_time = Instant::now() < round.deadline;
            if candidates.len() >= round.limit || !in_time {
                bound = Some(passed);
                break;
            }
            passed = *place;
            let is_in_effect = round.view.in_effect.get(&found.shard) >= Some(&found.lsn);
            if !is_in_effect || round.view.held.contains(&place.1) {
                continue;
            }
            match standing(round, *place, found, inspected)? {
                Some(trace) => candidates.push(Candidate {
                    key: *place,
                    origin: Origin::Unverified(trace),
                    exact: false,
                }),
                None => stale.push(*place),
            }
        }
        for place in stale {
            self.places.remove(&place);
        }
        Ok((Batch { candidates, bound }, in_time))
    }

    /// Walks all verdicts, the newest first, as far as time and bytes reach.
    fn walk_back(
        &mut self,
        round: &DroppedRound<'_>,
        inspected: &mut Inspected,
    ) -> Result<(), PortError> {
        let mut walk = round.shared.journal.walk_verdicts_back();
        let mut newest = None;
        while let Some(frame) = walk.next() {
            newest = newest.or(walk.position());
            if self.has_to_stop(round.walk_deadline) {
                break;
            }
            self.frame(round, frame, inspected)?;
        }
        if !self.has_walked {
            self.newest = newest;
        }
        self.has_walked = true;
        Ok(())
    }

    /// Walks the verdicts that came since.
    fn walk_on(
        &mut self,
        round: &DroppedRound<'_>,
        inspected: &mut Inspected,
    ) -> Result<(), PortError> {
        let mut walk = round.shared.journal.walk_verdicts(self.newest);
        while let Some(frame) = walk.next() {
            if self.has_to_stop(round.deadline) {
                break;
            }
            self.newest = walk.position();
            self.frame(round, frame, inspected)?;
        }
        Ok(())
    }

    fn has_to_stop(&mut self, deadline: Instant) -> bool {
        let stop = match () {
            () if self.bytes >= MAX_SEARCH_FRAME_BYTES => Some(Stop::Bytes),
            () if Instant::now() >= deadline => Some(Stop::Time),
            () => None,
        };
        self.stopped = self.stopped.or(stop);
        stop.is_some()
    }

    fn frame(
        &mut self,
        round: &DroppedRound<'_>,
        frame: Result<(FrameId, Arc<Frame>), JournalError>,
        inspected: &mut Inspected,
    ) -> Result<(), PortError> {
        let frame = match frame {
            Ok((_, frame)) => frame,
            Err(error) if error.class() == ErrorClass::Corrupt => {
                tracing::warn!(%error, "verdicts left out of a search");
                inspected.unreadable.somewhere(1);
                return Ok(());
            }
            Err(error) => return Err(storage_error(error)),
        };
        self.bytes += frame.raw_bytes() as u64;
        for (number, head) in frame.records().iter().enumerate() {
            let of_verdicts = head.kind.is_verdicts();
            if !of_verdicts
                || !round.view.in_effect.contains_key(&head.shard)
                || round.shared.journal.is_void(head.shard, head.lsn)
            {
                continue;
            }
            for verdict in frame.verdicts(number).map_err(storage_error)? {
                let place = Place {
                    shard: head.shard,
                    lsn: head.lsn,
                    input_lsn: verdict.input_lsn,
                };
                self.add(round, &verdict, place);
            }
        }
        Ok(())
    }

    fn add(&mut self, round: &DroppedRound<'_>, verdict: &VerdictRecord, place: Place) {
        let filter = &round.request.filter;
        let at = key(verdict.start, verdict.trace_id);
        if verdict.verdict != Verdict::Drop
            || verdict.tenant != round.request.tenant
            || !filter.admits_start(verdict.start)
            || !filter.admits_duration(verdict.end.since(verdict.start))
            || !after(round.cursor, at)
        {
            return;
        }
        let known = self.places.entry(at).or_insert(place);
        if known.input_lsn < place.input_lsn {
            *known = place;
        } else if known.input_lsn == place.input_lsn {
            // Repeated for a replica: it is in effect since it was there first.
            known.lsn = known.lsn.min(place.lsn);
        }
        if self.places.len() > MAX_DROPPED_PLACES {
            self.places.pop_last();
            self.is_cut = true;
        }
    }
}

/// The trace at a place, when its newest verdict stands there and the journal holds its spans; nothing also when it has
/// come to a block after all.
fn standing(
    round: &DroppedRound<'_>,
    place: Key,
    found: &Place,
    inspected: &mut Inspected,
) -> Result<Option<UnverifiedTrace>, PortError> {
    let (shared, tenant) = (round.shared, &round.request.tenant);
    let (shard, trace_id) = (found.shard, place.1);
    let in_effect = round.view.in_effect.get(&shard).copied();
    let in_effect = in_effect.unwrap_or_default();
    let newest = match shared
        .journal
        .verdict_up_to(shard, tenant, trace_id, in_effect)
    {
        Err(error) if error.class() == ErrorClass::Corrupt => {
            inspected.unreadable.of_shard(shard, 1);
            return Ok(None);
        }
        newest => newest.map_err(storage_error)?,
    };
    let Some(record) = newest.filter(|newest| newest.input_lsn == found.input_lsn) else {
        return Ok(None);
    };
    let fragments = shared.blocks.fragments(tenant, shard, trace_id);
    if !fragments.map_err(storage_error)?.is_empty() {
        return Ok(None);
    }
    let mut is_whole = true;
    for &lsn in &record.references {
        let located = shared.journal.locate(shard, lsn).map_err(storage_error)?;
        is_whole &= located.is_some();
    }
    if !is_whole {
        // A replica lacks older records and has others that repeat their spans; or they were trimmed.
        let parts = TraceParts {
            tenant: tenant.clone(),
            shard,
            trace_id,
            references: record.references.iter().copied().collect(),
            fragments: VecDeque::new(),
            probability: CERTAIN,
        };
        let spans = distinct_spans(shared, &parts, record.input_lsn);
        if u32::try_from(spans).unwrap_or(u32::MAX) < record.span_count {
            return Ok(None);
        }
    }
    Ok(Some(UnverifiedTrace {
        trace_id,
        start: record.start,
        state: TraceState::Dropped,
        references: record.references.to_vec(),
        whole: is_whole,
    }))
}

/// The shards of `live` whose dropped traces node `me` may lack, since others held the shard at some time that its
/// recovery window reaches back to, and it did not. Who is named as a holder beside others may have got a copy of what was
/// kept alone: of terms that are over, its journal must have a record (`has_records`).
pub(super) fn joined_lately(
    state: &ClusterState,
    me: NodeId,
    live: &ShardSet,
    (bucket_nanos, since): (u64, UnixNanos),
    has_records: &dyn Fn(ShardId, Term) -> bool,
) -> ShardSet {
    let recent = state
        .holders
        .range(Bucket::containing(since, bucket_nanos)..);
    let held = recent.flat_map(|(_, records)| records.iter());
    let lacks = held.filter(|(key, holders)| {
        let is_over = || {
            let shard = state.shard(key.shard);
            shard.is_none_or(|shard| key.term < shard.term)
        };
        let may_be_copied = || holders.len() > 1 && is_over() && !has_records(key.shard, key.term);
        live.contains(key.shard) && (!holders.contains(&me) || may_be_copied())
    });
    lacks.map(|(key, _)| key.shard).collect()
}

#[cfg(test)]
mod tests {
    use spandrel_raft::state::HolderKey;

    use super::*;

    #[test]
    fn a_copy_lacks_the_drops_of_terms_that_others_held() {
        let mut state = ClusterState::default();
        let hold =
            |state: &mut ClusterState, bucket: u32, shard: u16, term: u64, holders: &[u64]| {
                let key = HolderKey {
                    shard: ShardId(shard),
                    term: Term(term),
                };
                let records = state.holders.entry(Bucket(bucket)).or_default();
                let holders = holders.iter().copied().map(NodeId).collect();
                Arc::make_mut(records).insert(key, holders);
            };
        hold(&mut state, 3, 0, 1, &[1]);
        hold(&mut state, 4, 0, 2, &[1, 2]);
        hold(&mut state, 4, 1, 1, &[1]);
        hold(&mut state, 4, 1, 2, &[1, 2]);
        hold(&mut state, 4, 2, 1, &[3]);
        let live: ShardSet = [ShardId(0), ShardId(1)].into_iter().collect();
        let lacking = |state: &ClusterState, node: u64, since: u64| {
            let time = (10, UnixNanos(since));
            let lacks = joined_lately(state, NodeId(node), &live, time, &|_, term| term < Term(9));
            lacks.iter().map(|shard| shard.0).collect::<Vec<_>>()
        };
        assert_eq!(lacking(&state, 2, 45), [1]);
        assert_eq!(lacking(&state, 2, 39), [0, 1]);
        assert_eq!(lacking(&state, 1, 0), Vec::<u16>::new());

        // who got a copy of what was kept has no record of the term
        hold(&mut state, 4, 1, 9, &[1, 2]);
        let lacks = |state: &ClusterState| {
            let time = (10, UnixNanos(45));
            let has = |_, term| term < Term(9);
            joined_lately(state, NodeId(1), &live, time, &has)
                .iter()
                .count()
        };
        assert_eq!(lacks(&state), 1);
    }
}
