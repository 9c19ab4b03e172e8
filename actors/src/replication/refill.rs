//! Sends again what a shard holds undecided or unpaged, for replicas that have just joined it: as records of the log
//! like any others, so that every copy has the same records and nothing has to be put in order afterwards.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use spandrel_model::credit::Credit;
use spandrel_model::ids::{Lsn, ShardId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::{Verdict, VerdictRecord};
use spandrel_storage::journal::{FrameId, RecordKind};
use tokio::sync::oneshot;

use crate::assembler::HeldTrace;
use crate::assembler_actor::AssemblerMessage;
use crate::limits::{
    INTAKE_RETRY_MS, MAX_REFILL_RECORDS, PAGE_MAX_AGE_MS, RECORD_VERDICTS, REPEATED_VERDICTS_MS,
};
use crate::meters::Stage;
use crate::shared::Shared;
use crate::writer::{Append, AppendAnswer, Part, Ticket, WriterMessage};

/// A shard whose open state is sent again.
pub(crate) struct Again {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: ActorRef<WriterMessage>,
    pub(crate) assembler: ActorRef<AssemblerMessage>,
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
}

/// The traces of which a record is read again.
type Wanted = BTreeMap<Lsn, BTreeSet<(TenantId, TraceId)>>;

/// Comes when a record is on every copy.
type Acknowledgement = oneshot::Receiver<AppendAnswer>;

/// Sends the shard's open state again. Returns when all of it is on every copy.
pub(crate) async fn refill(again: &Again) -> Result<(), String> {
    let stopping = |_| "the node is stopping".to_owned();
    let (reply, held) = oneshot::channel();
    let asked = again.assembler.cast(AssemblerMessage::Held(reply));
    asked.map_err(|_| "the node is stopping".to_owned())?;
    let held: Vec<HeldTrace> = held.await.map_err(stopping)?;
    let mut wanted: Wanted = BTreeMap::new();
    let mut verdicts = Vec::new();
    for trace in held {
        verdicts.extend(trace.verdict);
        for lsn in trace.references {
            let traces = wanted.entry(lsn).or_default();
            traces.insert((trace.tenant.clone(), trace.trace_id));
        }
    }
    let mut sent = VecDeque::new();
    for (lsn, traces) in wanted {
        sent.extend(send_record(again, lsn, traces).await?);
        if sent.len() >= MAX_REFILL_RECORDS
            && let Some(first) = sent.pop_front()
        {
            acknowledged(again, first).await?;
        }
    }
    let last = verdicts.split_off(verdicts.len().saturating_sub(RECORD_VERDICTS));
    let dropped = dropped_lately(again).await?;
    let more = dropped.chunks(RECORD_VERDICTS);
    for some in more.chain(verdicts.chunks(RECORD_VERDICTS)) {
        sent.push_back(send_verdicts(again, some.to_vec())?);
    }
    for one in sent {
        acknowledged(again, one).await?;
    }
    // Also when there are none: every replica that joined has a record of the log then, behind which it goes on.
    let answer = send_verdicts(again, last)?;
    // A replica may lead only when it knows what was decided.
    acknowledged(again, answer).await
}

/// Sends verdicts that the shard has already.
fn send_verdicts(again: &Again, verdicts: Vec<VerdictRecord>) -> Result<Acknowledgement, String> {
    let (ticket, answer) = Ticket::new(1);
    let message = WriterMessage::VerdictsAgain(again.shard, verdicts, ticket);
    let asked = again.writer.cast(message);
    asked.map_err(|_| "the node is stopping".to_owned())?;
    Ok(answer)
}

/// Drops of the last [`REPEATED_VERDICTS_MS`], in the order of the journal: spans that come late are of these traces, and
/// a replica that did not know would decide them anew when it leads.
async fn dropped_lately(again: &Again) -> Result<Vec<VerdictRecord>, String> {
    let (shared, shard) = (Arc::clone(&again.shared), again.shard);
    let window = REPEATED_VERDICTS_MS * UnixNanos::PER_MILLI;
    let since = shared.env.now().minus(window);
    let read = move || -> Result<Vec<VerdictRecord>, String> {
        let journal = &shared.journal;
        let slices = journal.slices();
        let recent = slices.iter().find(|slice| slice.last_commit >= Some(since));
        let first = recent.and_then(|slice| slice.shards.iter().find(|range| range.shard == shard));
        let first = first.map_or(Lsn(0), |range| range.first);
        let located = journal.locate_from(shard, first);
        let Some((_, id)) = located.map_err(|error| error.to_string())? else {
            return Ok(Vec::new());
        };
        let mut dropped = Vec::new();
        for frame in journal.walk_verdicts(Some(FrameId(id.0.saturating_sub(1)))) {
            // A frame that cannot be read was reported where it was found.
            let Ok((_, frame)) = frame else { continue };
            let records = frame.records().iter().enumerate();
            for (number, _) in records.filter(|(_, head)| {
                let of_verdicts =
                    matches!(head.kind, RecordKind::Verdicts | RecordKind::VerdictsAgain);
                head.shard == shard && of_verdicts && !journal.is_void(shard, head.lsn)
            }) {
                let verdicts = frame.verdicts(number).map_err(|error| error.to_string())?;
                dropped.extend(verdicts.into_iter().filter(|verdict| {
                    verdict.verdict == Verdict::Drop && verdict.decided_at >= since
                }));
            }
        }
        Ok(dropped)
    };
    again.shared.block(Stage::Frame, read).await
}

/// Waits until a record is on every copy.
async fn acknowledged(again: &Again, answer: Acknowledgement) -> Result<(), String> {
    match answer
        .await
        .map_err(|_| "the node is stopping".to_owned())?
    {
        Ok(refused) if refused.is_empty() => Ok(()),
        Ok(_) => Err(format!("term {} is over", again.term.0)),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends the spans of some traces of one record, unless the journal holds none of them any more.
async fn send_record(
    again: &Again,
    lsn: Lsn,
    traces: BTreeSet<(TenantId, TraceId)>,
) -> Result<Option<Acknowledgement>, String> {
    let (shared, shard, epoch) = (Arc::clone(&again.shared), again.shard, again.shared.epoch());
    let rules = Arc::clone(&epoch);
    let read = move || -> Result<_, String> {
        let located = shared.journal.locate(shard, lsn);
        let Some(id) = located.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let frame = shared
            .journal
            .frame(id)
            .map_err(|error| error.to_string())?;
        let Some(number) = frame.find(shard, lsn) else {
            return Ok(None);
        };
        let Some(tenant) = frame.tenant(number).cloned() else {
            return Ok(None);
        };
        let mut is_wanted = |trace_id: TraceId| traces.contains(&(tenant.clone(), trace_id));
        let batch = frame.batch_of(number, rules.rules().interests(), &mut is_wanted);
        batch.map(Some).map_err(|error| error.to_string())
    };
    let Some(batch) = again.shared.block(Stage::Frame, read).await? else {
        return Ok(None);
    };
    if batch.spans.is_empty() {
        return Ok(None);
    }
    let bytes: u64 = batch
        .spans
        .iter()
        .map(|span| u64::from(span.span.len))
        .sum();
    let request = credit(again, bytes).await?;
    let growth = credit(again, 0).await?;
    let (ticket, answer) = Ticket::new(1);
    let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
    let part = Part {
        shard,
        start: 0,
        end: rows.len(),
        batch: Arc::new(batch),
        epoch,
        rows: rows.into(),
        again: true,
        credit: growth,
        request: Arc::new(request),
        ticket,
    };
    let append = WriterMessage::Append(Append { parts: vec![part] });
    let asked = again.writer.cast(append);
    asked.map_err(|_| "the node is stopping".to_owned())?;
    Ok(Some(answer))
}

/// Waits for memory credit: spans of clients come first, and a fill that takes long is no loss.
async fn credit(again: &Again, bytes: u64) -> Result<Credit, String> {
    for _ in 0..PAGE_MAX_AGE_MS / INTAKE_RETRY_MS {
        if let Some(credit) = again.shared.pool.try_take(bytes) {
            return Ok(credit);
        }
        tokio::time::sleep(Duration::from_millis(INTAKE_RETRY_MS)).await;
    }
    Err("no memory credit for the records of a fill".to_owned())
}
