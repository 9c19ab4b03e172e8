//! Sends again what a shard holds undecided or unpaged, for replicas that have just joined it: as records of the log
//! like any others, so that every copy has the same records and nothing has to be put in order afterwards.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use ractor::ActorRef;
use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::ids::{Lsn, ShardId, SpanId, TenantId, TraceId};
use spandrel_model::verdict::{Trigger, Verdict, VerdictRecord};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::decided::{Owned, decided_lately};
use crate::assembler::HeldTrace;
use crate::assembler_message::AssemblerMessage;
use crate::limits::{
    INTAKE_RETRY_MS, MAX_REFILL_RECORDS, PAGE_MAX_AGE_MS, RECORD_VERDICTS, REFILL_PATIENCE_MS,
    ROUTE_RETRY_MS,
};
use crate::meters::Stage;
use crate::settings::Epoch;
use crate::shared::Shared;
use crate::writer::{Append, AppendAnswer, Part, Ticket, WriterMessage};

/// A shard whose open state is sent again.
pub(crate) struct Again {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: ActorRef<WriterMessage>,
    pub(crate) assembler: ActorRef<AssemblerMessage>,
    pub(crate) shard: ShardId,
}

/// The traces of which a record is read again.
type Wanted = BTreeMap<Lsn, BTreeSet<Owned>>;

/// The spans that a fill has repeated: a span is in its first record, and in another one since each earlier fill, and would be
/// in twice as many after each if all were repeated.
#[derive(Default)]
struct Repeated(BTreeMap<TenantId, HashSet<(TraceId, SpanId, u64), FixedState>>);

impl Repeated {
    /// The rows whose spans were not repeated before.
    fn rows(&mut self, batch: &SpanBatch) -> Vec<u32> {
        let known = self.0.entry(batch.tenant.clone()).or_default();
        let rows = (0u32..).zip(&batch.spans);
        let new = rows.filter(|(_, span)| known.insert((span.trace_id, span.span_id, span.hash)));
        new.map(|(row, _)| row).collect()
    }
}

/// Comes when a record is on every copy.
type Acknowledgement = oneshot::Receiver<AppendAnswer>;

/// Spans that were sent again.
pub(super) struct SentSpans {
    batch: Arc<SpanBatch>,
    rows: Arc<[u32]>,
    epoch: Arc<Epoch>,
    answer: Acknowledgement,
}

/// Sends the shard's open state again. Returns when all of it is on every copy.
pub(crate) async fn refill(again: &Again) -> Result<(), String> {
    let stopping = |_| "the node is stopping".to_owned();
    let (reply, held) = oneshot::channel();
    let asked = again.assembler.cast(AssemblerMessage::Held(reply));
    asked.map_err(|_| "the node is stopping".to_owned())?;
    let held = with_verdicts(again, held.await.map_err(stopping)?).await?;
    let mut wanted: Wanted = BTreeMap::new();
    let (mut verdicts, mut first) = (Vec::new(), Vec::new());
    let owned = held.iter().filter(|trace| trace.verdict.is_some());
    let owned = owned.map(|trace| (trace.tenant.clone(), trace.trace_id));
    let owned: BTreeSet<Owned> = owned.collect();
    for trace in held {
        match trace.verdict {
            Some(verdict) if follows_drop(&verdict) => first.push(verdict),
            verdict => verdicts.extend(verdict),
        }
        for lsn in trace.references {
            let traces = wanted.entry(lsn).or_default();
            traces.insert((trace.tenant.clone(), trace.trace_id));
        }
    }
    // First: so replicas know the spans that follow for late ones, which no drop has read, or for those of a trace that was
    // kept after all. One that knows of the drop alone would let go of them. They are waited for: of what waits together the
    // writer numbers spans before verdicts.
    let first = first.chunks(RECORD_VERDICTS);
    let sent: Result<Vec<_>, String> = first
        .map(|some| send_verdicts(again, some.to_vec()))
        .collect();
    for one in sent? {
        acknowledged(one).await?;
    }
    let (mut repeated, mut sent) = (Repeated::default(), VecDeque::new());
    for (lsn, traces) in wanted {
        sent.extend(send_record(again, lsn, traces, &mut repeated).await?);
        if sent.len() >= MAX_REFILL_RECORDS
            && let Some(first) = sent.pop_front()
        {
            spans_acknowledged(again, first).await?;
        }
    }
    // Spans that were not taken at first must not come behind their verdicts.
    for spans in sent {
        spans_acknowledged(again, spans).await?;
    }
    let mut sent = VecDeque::new();
    let last = verdicts.split_off(verdicts.len().saturating_sub(RECORD_VERDICTS));
    let decided = decided_lately(&again.shared, again.shard, owned).await?;
    let more = decided.chunks(RECORD_VERDICTS);
    for some in more.chain(verdicts.chunks(RECORD_VERDICTS)) {
        sent.push_back(send_verdicts(again, some.to_vec())?);
        if sent.len() >= MAX_REFILL_RECORDS
            && let Some(first) = sent.pop_front()
        {
            acknowledged(first).await?;
        }
    }
    for one in sent {
        acknowledged(one).await?;
    }
    // Also when there are none: every replica that joined has a record of the log then, behind which it goes on.
    let answer = send_verdicts(again, last)?;
    // A replica may lead only when it knows what was decided.
    acknowledged(answer).await
}

/// The traces with what the journal says of those that the shard is just asking about: their spans are late ones, which a
/// replay knows by the verdict that comes before them.
async fn with_verdicts(again: &Again, mut held: Vec<HeldTrace>) -> Result<Vec<HeldTrace>, String> {
    let (shared, shard) = (Arc::clone(&again.shared), again.shard);
    let look = move || -> Result<Vec<HeldTrace>, String> {
        let journal = &shared.journal;
        for trace in held.iter_mut().filter(|trace| trace.verdict.is_none()) {
            if journal.maybe_decided(shard, &trace.tenant, trace.trace_id) {
                let verdict = journal.verdict(shard, &trace.tenant, trace.trace_id);
                trace.verdict = verdict.map_err(|error| error.to_string())?;
            }
        }
        Ok(held)
    };
    again.shared.block(Stage::Frame, look).await
}

/// A drop, or a keep that has taken the place of one.
fn follows_drop(verdict: &VerdictRecord) -> bool {
    verdict.verdict == Verdict::Drop
        || matches!(verdict.trigger, Trigger::LateSpan | Trigger::Promoted)
}

/// Sends verdicts that the shard has already.
pub(super) fn send_verdicts(
    again: &Again,
    verdicts: Vec<VerdictRecord>,
) -> Result<Acknowledgement, String> {
    let (ticket, answer) = Ticket::new(1);
    let message = WriterMessage::VerdictsAgain(again.shard, verdicts, ticket);
    let asked = again.writer.cast(message);
    asked.map_err(|_| "the node is stopping".to_owned())?;
    Ok(answer)
}

/// Waits until a record is on every copy.
pub(super) async fn acknowledged(answer: Acknowledgement) -> Result<(), String> {
    match was_taken(answer).await? {
        true => Ok(()),
        false => Err("another node leads the shard".to_owned()),
    }
}

/// Waits until a record is on every copy. False: the shard does not take it now.
async fn was_taken(answer: Acknowledgement) -> Result<bool, String> {
    let answer = answer
        .await
        .map_err(|_| "the node is stopping".to_owned())?;
    let refused = answer.map_err(|error| error.to_string())?;
    Ok(refused.is_empty())
}

/// Waits until spans are on every copy. While the shard does not take them they are offered again, as clients' spans are:
/// a fill that began anew instead would write all of it into the journals once more.
pub(super) async fn spans_acknowledged(again: &Again, sent: SentSpans) -> Result<(), String> {
    let SentSpans {
        batch,
        rows,
        epoch,
        mut answer,
    } = sent;
    let deadline = Instant::now() + Duration::from_millis(REFILL_PATIENCE_MS);
    while !was_taken(answer).await? {
        if Instant::now() >= deadline {
            return Err("the shard takes no spans here".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(ROUTE_RETRY_MS)).await;
        answer = offer(again, &batch, &rows, &epoch).await?;
    }
    Ok(())
}

/// Sends the spans of some traces of one record that were not repeated yet, unless the journal holds none of them any more.
async fn send_record(
    again: &Again,
    lsn: Lsn,
    traces: BTreeSet<Owned>,
    repeated: &mut Repeated,
) -> Result<Option<SentSpans>, String> {
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
    let rows = repeated.rows(&batch);
    append_again(again, batch, rows, epoch).await
}

/// Sends spans that the shard has had already, unless there are none.
pub(super) async fn append_again(
    again: &Again,
    batch: SpanBatch,
    rows: Vec<u32>,
    epoch: Arc<Epoch>,
) -> Result<Option<SentSpans>, String> {
    if rows.is_empty() {
        return Ok(None);
    }
    let (batch, rows) = (Arc::new(batch), rows.into());
    let answer = offer(again, &batch, &rows, &epoch).await?;
    Ok(Some(SentSpans {
        batch,
        rows,
        epoch,
        answer,
    }))
}

/// Gives spans to the writer.
async fn offer(
    again: &Again,
    batch: &Arc<SpanBatch>,
    rows: &Arc<[u32]>,
    epoch: &Arc<Epoch>,
) -> Result<Acknowledgement, String> {
    let spans = rows.iter().filter_map(|row| batch.spans.get(*row as usize));
    let bytes = spans.map(|span| u64::from(span.span.len)).sum();
    let request = credit(again, bytes).await?;
    let growth = credit(again, 0).await?;
    let (ticket, answer) = Ticket::new(1);
    let part = Part {
        shard: again.shard,
        start: 0,
        end: rows.len(),
        batch: Arc::clone(batch),
        epoch: Arc::clone(epoch),
        rows: Arc::clone(rows),
        again: true,
        credit: growth,
        request: Arc::new(request),
        ticket,
    };
    let append = WriterMessage::Append(Append { parts: vec![part] });
    let asked = again.writer.cast(append);
    asked.map_err(|_| "the node is stopping".to_owned())?;
    Ok(answer)
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
