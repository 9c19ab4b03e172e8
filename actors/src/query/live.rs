//! Which live traces may have a span that meets the conditions: the journal's frames are walked, each at most once,
//! in the order in which the traces need them.

use std::collections::BTreeSet;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
use spandrel_model::otlp::RawContext;
use spandrel_storage::journal::{Frame, FrameId};
use spandrel_storage::page::{ContextMatch, PageCondition};
use tokio::time::Instant;

use super::sources::{Candidate, Origin};
use super::verify::Inspected;
use crate::assembler::UnverifiedTrace;
use crate::limits::MAX_SEARCH_FRAME_BYTES;
use crate::shared::Shared;

/// Why an inspection ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// A deadline.
    Time,
    /// [`MAX_SEARCH_FRAME_BYTES`].
    Bytes,
}

/// The walk over the frames of a round's live candidates.
pub(super) struct LiveScan<'a> {
    shared: &'a Shared,
    tenant: &'a TenantId,
    condition: PageCondition<'a>,
    deadline: Instant,
    /// The traces looked for, and whether a span that meets the conditions was seen.
    traces: HashMap<TraceId, bool, FixedState>,
    walked: BTreeSet<FrameId>,
    /// Records of the frames that were walked: those need not be located.
    records: HashSet<(ShardId, Lsn), FixedState>,
}

impl<'a> LiveScan<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        tenant: &'a TenantId,
        condition: PageCondition<'a>,
        deadline: Instant,
        candidates: &[Candidate],
    ) -> Self {
        let traces = candidates
            .iter()
            .filter_map(|candidate| match &candidate.origin {
                Origin::Unverified(trace) if trace.whole => Some((trace.trace_id, false)),
                _ => None,
            });
        Self {
            shared,
            tenant,
            condition,
            deadline,
            traces: traces.collect(),
            walked: BTreeSet::new(),
            records: HashSet::default(),
        }
    }

    /// Whether one of the trace's spans meets the conditions; true also where that cannot be told here, since not all
    /// of its spans are in records, or one of them cannot be read.
    pub(super) fn may_meet(
        &mut self,
        trace: &UnverifiedTrace,
        inspected: &mut Inspected,
    ) -> Result<bool, Stop> {
        if !trace.whole {
            return Ok(true);
        }
        let shard = self.shared.shard(self.tenant, trace.trace_id);
        for &lsn in &trace.references {
            if !self.records.contains(&(shard, lsn)) && !self.walk(shard, lsn, inspected)? {
                return Ok(true);
            }
        }
        Ok(self.traces.get(&trace.trace_id).copied().unwrap_or(true))
    }

    /// Walks the frame of a record; false when it cannot be read or does not hold it.
    fn walk(&mut self, shard: ShardId, lsn: Lsn, inspected: &mut Inspected) -> Result<bool, Stop> {
        if Instant::now() >= self.deadline {
            return Err(Stop::Time);
        }
        let Ok(Some(id)) = self.shared.journal.locate(shard, lsn) else {
            return Ok(false);
        };
        if !self.walked.insert(id) {
            return Ok(false);
        }
        if inspected.frame_bytes >= MAX_SEARCH_FRAME_BYTES {
            return Err(Stop::Bytes);
        }
        let Ok(frame) = self.shared.journal.frame(id) else {
            return Ok(false);
        };
        inspected.frame_bytes += frame.raw_bytes() as u64;
        self.inspect(&frame, inspected);
        Ok(self.records.contains(&(shard, lsn)))
    }

    fn inspect(&mut self, frame: &Frame, inspected: &mut Inspected) {
        // A resource by its place in the frame, which many spans share.
        let mut contexts: HashMap<usize, ContextMatch, FixedState> = HashMap::default();
        for (number, head) in frame.records().iter().enumerate() {
            self.records.insert((head.shard, head.lsn));
            if frame.tenant(number) != Some(self.tenant) {
                continue;
            }
            let (traces, condition) = (&mut self.traces, &self.condition);
            let mut visit = |context: &RawContext<'_>, trace_id: TraceId, span: &[u8]| {
                let Some(met) = traces.get_mut(&trace_id).filter(|met| !**met) else {
                    return;
                };
                inspected.spans += 1;
                inspected.bytes += span.len() as u64;
                let context = contexts
                    .entry(context.resource.as_ptr().addr())
                    .or_insert_with(|| condition.match_resource(context.resource));
                *met = condition.match_span(span, context);
            };
            frame.visit_spans(number, &mut visit);
        }
    }
}
