//! Recovery: rebuilds the assemblers of a node from their checkpoints and the journal.
//!
//! A verdict that is found is adopted, never decided again. Two passes over the frames: the first learns which
//! traces are decided within the window, so that their spans are told from late ones in the second.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use spandrel_model::error::ErrorClass;
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
use spandrel_model::verdict::{Verdict, VerdictRecord};
use spandrel_storage::journal::{Frame, FrameId, RecordKind};

use crate::assembler::{Decided, Effects, Prior, ShardState, Step};
use crate::settings::Epoch;
use crate::shared::Shared;

/// Frames between two looks for kept traces that are in blocks already: bounds the entries held meanwhile.
const SETTLE_EVERY_FRAMES: u64 = 256;

/// A shard after recovery.
pub(crate) struct Recovered {
    pub(crate) state: ShardState,
    pub(crate) effects: Effects,
}

/// What a recovery did, for the log.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ReplayCost {
    pub(crate) frames: u64,
    pub(crate) spans: u64,
    pub(crate) corrupt: u64,
}

type Known = HashMap<(ShardId, TraceId), Vec<(TenantId, Lsn, Verdict)>, FixedState>;

/// What is decided, for replay: verdicts within the window by their input, older ones by the journal.
struct ReplayDecided<'a> {
    shared: &'a Shared,
    /// By trace: the inputs of its verdicts within the window.
    window: &'a Known,
}

impl Decided for ReplayDecided<'_> {
    fn prior(&self, shard: ShardId, tenant: &TenantId, trace_id: TraceId, lsn: Lsn) -> Prior {
        let known = self
            .window
            .get(&(shard, trace_id))
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut mine = known.iter().filter(|(owner, _, _)| owner == tenant);
        if mine.clone().any(|(_, input, _)| *input >= lsn) {
            // A verdict that comes later in the journal read this record: the trace is open here.
            return Prior::None;
        }
        let journal = &self.shared.journal;
        if mine.next().is_none() && !journal.maybe_decided(shard, tenant, trace_id) {
            return Prior::None;
        }
        match journal.verdict(shard, tenant, trace_id) {
            Ok(Some(record)) => Prior::Decided(Box::new(record)),
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
    let start = first_frame(shared, &states)?;
    let mut window = Known::default();
    if let Some(start) = start {
        each_frame(shared, start, &mut cost, &mut |frame| {
            for record in verdicts_after(frame, &states) {
                let shard = record.0;
                let key = (shard, record.1.trace_id);
                let known = (
                    record.1.tenant.clone(),
                    record.1.input_lsn,
                    record.1.verdict,
                );
                window.entry(key).or_default().push(known);
            }
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
        let mut frames = 0;
        each_frame(shared, start, &mut cost, &mut |frame| {
            apply_frame(shared, epoch, &decided, frame, &mut states, &mut effects)?;
            frames += 1;
            if frames % SETTLE_EVERY_FRAMES == 0 {
                states
                    .iter_mut()
                    .try_for_each(|state| settle_kept(shared, state))?;
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
        let next = state.applied().next();
        if next > shared.journal.last_lsn(shard) {
            continue;
        }
        let located = shared
            .journal
            .locate(shard, next)
            .map_err(|error| error.to_string())?;
        match located {
            Some(id) => first = Some(first.map_or(id, |other| other.min(id))),
            // The record is in a corrupt or lost slice: everything that is left is replayed.
            None => return Ok(shared.journal.frames_after(None).into_iter().next()),
        }
    }
    Ok(first)
}

fn each_frame(
    shared: &Shared,
    start: FrameId,
    cost: &mut ReplayCost,
    visit: &mut dyn FnMut(&Frame) -> Result<(), String>,
) -> Result<(), String> {
    let before_start = FrameId(start.0.saturating_sub(1));
    for frame in shared.journal.walk(Some(before_start)) {
        match frame {
            Ok((_, frame)) => visit(&frame)?,
            Err(error) if error.class() == ErrorClass::Corrupt => {
                cost.corrupt += 1;
                tracing::error!(%error, "a frame is skipped");
            }
            Err(error) => return Err(error.to_string()),
        }
        cost.frames += 1;
    }
    Ok(())
}

fn verdicts_after(frame: &Frame, states: &[ShardState]) -> Vec<(ShardId, VerdictRecord)> {
    let mut found = Vec::new();
    for (number, head) in frame.records().iter().enumerate() {
        let applied = states
            .get(usize::from(head.shard.0))
            .map(ShardState::applied);
        if head.kind != RecordKind::Verdicts || applied.is_none_or(|applied| head.lsn <= applied) {
            continue;
        }
        let records = frame.verdicts(number).unwrap_or_default();
        found.extend(records.into_iter().map(|record| (head.shard, record)));
    }
    found
}

fn apply_frame(
    shared: &Shared,
    epoch: &Arc<Epoch>,
    decided: &ReplayDecided<'_>,
    frame: &Frame,
    states: &mut [ShardState],
    effects: &mut [Effects],
) -> Result<(), String> {
    for (number, head) in frame.records().iter().enumerate() {
        let shard = usize::from(head.shard.0);
        let (Some(state), Some(effects)) = (states.get_mut(shard), effects.get_mut(shard)) else {
            continue;
        };
        if head.lsn <= state.applied() {
            continue;
        }
        let at = frame
            .received_at(number)
            .unwrap_or_else(|| shared.env.now());
        let step = Step {
            epoch,
            decided,
            limiters: &shared.limiters,
            pressure: 0,
            now: at,
        };
        match head.kind {
            RecordKind::Spans => {
                let batch = frame.batch(number, epoch.rules().interests());
                let batch = batch.map_err(|error| error.to_string())?;
                let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
                state.apply(head.lsn, &batch, &rows, &step, effects);
            }
            RecordKind::Verdicts => {
                let records = frame.verdicts(number).map_err(|error| error.to_string())?;
                state.verdicts_committed(head.lsn, &records, &step);
            }
            _ => state.advance(head.lsn),
        }
    }
    Ok(())
}

/// Kept traces whose fragments are in blocks leave; what came after the newest fragment stays.
fn settle_kept(shared: &Shared, state: &mut ShardState) -> Result<(), String> {
    let shard = state.shard();
    let mut paged = Vec::new();
    for (tenant, trace_id) in state.kept_keys() {
        let fragments = shared.blocks.fragments(&tenant, shard, trace_id);
        let fragments = fragments.map_err(|error| error.to_string())?;
        if let Some(newest) = fragments.iter().map(|location| location.fragment).max() {
            paged.push((tenant, trace_id, newest));
        }
    }
    state.paged(&paged);
    Ok(())
}
