//! Recovery: rebuilds the assemblers of a node from their checkpoints and the journal.
//!
//! A verdict that is found is adopted, never decided again. Two passes: the first, over the frames of verdicts alone,
//! learns which traces are decided within the window. So the second tells their spans from late ones, and passes over
//! those that nobody needs any more: nearly all, since a few traces that wait long for their end hold the range open.

mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::{Verdict, VerdictRecord};
use spandrel_storage::journal::{
    Corruption, Frame, FrameId, JournalError, RecordHead, RecordKind, Walk,
};

use crate::assembler::{Decided, Effects, PagedTrace, Prior, ShardState, Step};
use crate::env::BlockingMode;
use crate::settings::Epoch;
use crate::shared::Shared;
use window::{Window, newest_fragment};

/// Threads that read and scan frames.
const READERS: usize = 2;
/// Frames that each of them is ahead: some megabytes.
const FRAMES_AHEAD: usize = 8;

/// A shard after recovery.
pub(crate) struct Recovered {
    pub(crate) state: ShardState,
    pub(crate) effects: Effects,
}

/// What a recovery did, for the log.
#[derive(Debug, Default)]
pub(crate) struct ReplayCost {
    pub(crate) frames: u64,
    pub(crate) spans: u64,
    /// Frames that were skipped because they are corrupt.
    pub(crate) skipped: BTreeMap<FrameId, Corruption>,
}

/// What is decided, for replay: verdicts within the window by their input, older ones by the journal.
struct ReplayDecided<'a> {
    shared: &'a Shared,
    window: &'a Window<'a>,
}

impl Decided for ReplayDecided<'_> {
    fn prior(&self, shard: ShardId, tenant: &TenantId, trace_id: TraceId, lsn: Lsn) -> Prior {
        let last_input = self.window.last_input(shard, tenant, trace_id);
        if last_input.is_some_and(|input| input >= lsn) {
            // A verdict that comes later in the journal read this record: the trace is open here.
            return Prior::None;
        }
        let journal = &self.shared.journal;
        if last_input.is_none() && !journal.maybe_decided(shard, tenant, trace_id) {
            return Prior::None;
        }
        match self.shared.earlier(shard, tenant, trace_id) {
            Ok(Some(earlier)) => Prior::Decided(Box::new(earlier)),
            // The actor asks until it is read.
            Err(error) if !error.is_damage => Prior::Ask,
            _ => Prior::None,
        }
    }
}

/// Replays the journal into `states`, one per shard.
pub(crate) fn replay(
    shared: &Shared,
    epoch: &Arc<Epoch>,
    mut states: Vec<ShardState>,
) -> Result<(Vec<Recovered>, ReplayCost), String> {
    let mut cost = ReplayCost::default();
    let from: Vec<Lsn> = states.iter().map(ShardState::applied).collect();
    let start = first_frame(shared, &states)?;
    let mut window = Window::new(shared);
    if let Some(start) = start {
        let prepare = |frame: Arc<Frame>| Ok(verdicts_after(shared, &frame, &states));
        let walk = shared.journal.walk_verdicts(before(start));
        let share = |number, of| walk.clone().share(number, of);
        each_frame(shared, &share, &mut cost, &prepare, &mut |found| {
            found
                .into_iter()
                .for_each(|(shard, record)| window.add(shard, record));
            Ok(())
        })?;
    }
    cost = ReplayCost::default();
    let mut effects: Vec<Effects> = states.iter().map(|_| Effects::default()).collect();
    if let Some(start) = start {
        let decided = ReplayDecided {
            shared,
            window: &window,
        };
        let prepare = |frame: Arc<Frame>| records_after(shared, epoch, &frame, &from, &window);
        let walk = shared.journal.walk(before(start));
        let share = |number, of| walk.clone().share(number, of);
        each_frame(shared, &share, &mut cost, &prepare, &mut |records| {
            for record in records {
                apply_record(shared, epoch, &decided, record, &mut states, &mut effects);
            }
            Ok(())
        })?;
    }
    let mut recovered = Vec::with_capacity(states.len());
    for (mut state, mut effects) in states.into_iter().zip(effects) {
        settle_kept(shared, &mut state)?;
        state.keep_pending(&mut effects);
        cost.spans += state.spans_held();
        recovered.push(Recovered { state, effects });
    }
    Ok((recovered, cost))
}

/// The first frame that any shard needs.
fn first_frame(shared: &Shared, states: &[ShardState]) -> Result<Option<FrameId>, String> {
    let mut first: Option<FrameId> = None;
    for (shard, state) in (0u16..).map(ShardId).zip(states) {
        let located = shared.journal.locate_from(shard, state.applied().next());
        let located = located.map_err(|error| error.to_string())?;
        if let Some((_, id)) = located {
            first = Some(first.map_or(id, |other| other.min(id)));
        }
    }
    Ok(first)
}

fn before(start: FrameId) -> Option<FrameId> {
    Some(FrameId(start.0.saturating_sub(1)))
}

/// Walks frames: `prepare` (decoding, scanning), which costs twice what applying does, runs ahead on threads of its own
/// where threads are allowed; `visit` takes the results in order.
fn each_frame<'a, T: Send>(
    shared: &'a Shared,
    frames: &dyn Fn(usize, usize) -> Walk<'a>,
    cost: &mut ReplayCost,
    prepare: &(dyn Fn(Arc<Frame>) -> Result<T, String> + Sync),
    visit: &mut dyn FnMut(T) -> Result<(), String>,
) -> Result<(), String> {
    let read = |frame: Result<(FrameId, Arc<Frame>), JournalError>| match frame {
        Ok((_, frame)) => prepare(frame).map(Ok),
        Err(JournalError::Corrupt(corruption)) => Ok(Err(corruption)),
        Err(error) => Err(error.to_string()),
    };
    let mut take = |one: Result<Result<T, Corruption>, String>| -> Result<(), String> {
        cost.frames += 1;
        match one? {
            Ok(one) => visit(one),
            Err(corruption) => {
                // A walk meets damage frame by frame.
                let frame = corruption.frame.unwrap_or(FrameId(0));
                cost.skipped.insert(frame, corruption);
                Ok(())
            }
        }
    };
    if matches!(shared.env.blocking, BlockingMode::Inline(_)) {
        return frames(0, 1).map(read).try_for_each(take);
    }
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let (sender, receiver) = std::sync::mpsc::sync_channel(FRAMES_AHEAD);
                let mut share = frames(number, READERS).map(read);
                // Ends with the frames, or when nobody takes them any more.
                scope.spawn(move || share.try_for_each(|one| sender.send(one)));
                receiver
            })
            .collect();
        // The frames were dealt out in turn, and are taken in turn.
        for reader in readers.iter().cycle() {
            match reader.recv() {
                Ok(one) => take(one)?,
                Err(_) => break,
            }
        }
        Ok(())
    })
}

fn verdicts_after(
    shared: &Shared,
    frame: &Frame,
    states: &[ShardState],
) -> Vec<(ShardId, VerdictRecord)> {
    let mut found = Vec::new();
    for (number, head) in frame.records().iter().enumerate() {
        let applied = states
            .get(usize::from(head.shard.0))
            .map(ShardState::applied);
        let of_verdicts = head.kind.is_verdicts();
        let known = applied.is_none_or(|applied| head.lsn <= applied);
        if !of_verdicts || known || shared.journal.is_void(head.shard, head.lsn) {
            continue;
        }
        let records = frame.verdicts(number).unwrap_or_default();
        found.extend(records.into_iter().map(|record| (head.shard, record)));
    }
    found
}

/// A record, read and scanned.
struct ReadRecord {
    head: RecordHead,
    received_at: Option<UnixNanos>,
    content: Content,
}

enum Content {
    Spans(SpanBatch),
    /// Those that are not settled, and settled keeps.
    Verdicts(Vec<VerdictRecord>, Vec<VerdictRecord>),
    Other,
}

/// The records of a frame that come after each shard's checkpoint, without what is settled.
fn records_after(
    shared: &Shared,
    epoch: &Epoch,
    frame: &Frame,
    from: &[Lsn],
    window: &Window<'_>,
) -> Result<Vec<ReadRecord>, String> {
    let mut records = Vec::new();
    for (number, head) in frame.records().iter().enumerate() {
        if from
            .get(usize::from(head.shard.0))
            .is_none_or(|applied| head.lsn <= *applied)
            || shared.journal.is_void(head.shard, head.lsn)
        {
            continue;
        }
        let content = match head.kind {
            RecordKind::Spans | RecordKind::SpansAgain => {
                read_spans(epoch, frame, number, head, window)?
            }
            RecordKind::Verdicts | RecordKind::VerdictsAgain => {
                read_verdicts(frame, number, head, window)?
            }
            RecordKind::Page => Content::Other,
        };
        records.push(ReadRecord {
            head: *head,
            received_at: frame.received_at(number),
            content,
        });
    }
    Ok(records)
}

fn read_spans(
    epoch: &Epoch,
    frame: &Frame,
    number: usize,
    head: &RecordHead,
    window: &Window<'_>,
) -> Result<Content, String> {
    let Some(tenant) = frame.tenant(number) else {
        return Ok(Content::Other);
    };
    let mut failed = None;
    // The spans of a trace lie together in a record.
    let mut last: Option<(TraceId, bool)> = None;
    let mut wanted = |trace_id: TraceId| {
        if let Some((_, wanted)) = last.filter(|(known, _)| *known == trace_id) {
            return wanted;
        }
        let settled = window.is_settled(head.shard, tenant, trace_id, head.lsn);
        let settled = settled.unwrap_or_else(|error| {
            failed = Some(error);
            false
        });
        last = Some((trace_id, !settled));
        !settled
    };
    let batch = frame.batch_of(number, epoch.rules().interests(), &mut wanted);
    let batch = batch.map_err(|error| error.to_string())?;
    match failed {
        Some(error) => Err(error),
        None if batch.spans.is_empty() => Ok(Content::Other),
        None => Ok(Content::Spans(batch)),
    }
}

/// Keeps whose fragment is in a block have no entry to go to: their spans were passed over.
fn read_verdicts(
    frame: &Frame,
    number: usize,
    head: &RecordHead,
    window: &Window<'_>,
) -> Result<Content, String> {
    let (mut open, mut settled) = (Vec::new(), Vec::new());
    for record in frame.verdicts(number).map_err(|error| error.to_string())? {
        let is_settled = record.verdict == Verdict::Keep
            && window.is_settled(head.shard, &record.tenant, record.trace_id, head.lsn)?;
        match is_settled {
            true => settled.push(record),
            false => open.push(record),
        }
    }
    Ok(Content::Verdicts(open, settled))
}

fn apply_record(
    shared: &Shared,
    epoch: &Arc<Epoch>,
    decided: &ReplayDecided<'_>,
    record: ReadRecord,
    states: &mut [ShardState],
    effects: &mut [Effects],
) {
    let shard = usize::from(record.head.shard.0);
    let (Some(state), Some(effects)) = (states.get_mut(shard), effects.get_mut(shard)) else {
        return;
    };
    if record.head.lsn <= state.applied() {
        return;
    }
    let step = Step {
        decides: true,
        epoch,
        decided,
        limiters: &shared.limiters,
        pressure: 0,
        now: record.received_at.unwrap_or_else(|| shared.env.now()),
    };
    match record.content {
        Content::Spans(batch) => {
            let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
            if record.head.kind == RecordKind::SpansAgain {
                state.apply_again(record.head.lsn, &batch, &rows, &step, effects);
            } else {
                state.apply(record.head.lsn, &batch, &rows, &step, effects);
            }
        }
        Content::Verdicts(records, _) if record.head.kind == RecordKind::VerdictsAgain => {
            state.verdicts_again(record.head.lsn, &records, &step, effects);
        }
        Content::Verdicts(records, settled) => {
            state.verdicts_committed(record.head.lsn, &records, &step, effects);
            for keep in &settled {
                state.kept_late(keep, record.head.lsn, step.now);
            }
        }
        Content::Other => state.advance(record.head.lsn),
    }
}

/// Kept traces whose fragments are in blocks leave; what came after the newest fragment stays.
fn settle_kept(shared: &Shared, state: &mut ShardState) -> Result<(), String> {
    let shard = state.shard();
    let mut paged = Vec::new();
    for (tenant, trace_id) in state.kept_keys() {
        let Some(fragment) = newest_fragment(shared, shard, &tenant, trace_id)? else {
            continue;
        };
        paged.push(PagedTrace {
            tenant,
            trace_id,
            fragment,
        });
    }
    state.paged(&paged);
    Ok(())
}
