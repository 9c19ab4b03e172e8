//! Takes what other nodes send about shards: spans for those led here, frames and beginnings for those followed here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ractor::ActorRef;
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, NodeId, ShardId, Term};
use spandrel_model::verdict::VerdictRecord;
use spandrel_raft::ClusterState;
use spandrel_storage::journal::{EncodedFrame, FrameBatch, RecordHead, RecordKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::limits::{
    BEGIN_DEADLINE_MS, ENTRY_BYTES_PER_SPAN, ENTRY_BYTES_PER_TRACE, FRAME_RATIO,
    INTAKE_PATIENCE_MS, INTAKE_RETRY_MS,
};
use crate::link::{Caller, IncomingCall, PeerHandler};
use crate::meters::Stage;
use crate::route::{forwarded_parts, stopping};
use crate::settings::Epoch;
use crate::shared::Shared;
use crate::wire::{self, shards_answer, shards_request};
use crate::writer::{
    Append, CommitNotice, ReplicaFrame, ReplicaRecord, Replication, WriterMessage,
};

/// Answers service `Shards`.
pub(crate) struct Intake {
    parts: Arc<Parts>,
    /// One queue a node: what it sends to its followers is taken in its order.
    queues: Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<Ordered>>>,
}

struct Parts {
    shared: Arc<Shared>,
    writer: ActorRef<WriterMessage>,
    cluster: watch::Receiver<Arc<ClusterState>>,
}

/// A call whose place among others of its node matters. The link bounds how many are on their way.
struct Ordered {
    body: shards_request::Body,
    arrived: Instant,
    reply: oneshot::Sender<Result<Bytes, String>>,
}

/// A shard of a beginning (see `Begin` in shards.proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BeginShard {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    pub(crate) keep: Option<Lsn>,
    pub(crate) fill: bool,
    pub(crate) attempt: u64,
    pub(crate) settled: Lsn,
}

impl BeginShard {
    pub(crate) fn to_wire(self) -> wire::BeginShard {
        wire::BeginShard {
            shard: u32::from(self.shard.0),
            term: self.term.0,
            keep: self.keep.map(|lsn| lsn.0),
            fill: self.fill,
            attempt: self.attempt,
            settled: self.settled.0,
        }
    }

    fn from_wire(wire: &wire::BeginShard) -> Option<Self> {
        Some(Self {
            shard: ShardId(u16::try_from(wire.shard).ok()?),
            term: Term(wire.term),
            keep: wire.keep.map(Lsn),
            fill: wire.fill,
            attempt: wire.attempt,
            settled: Lsn(wire.settled),
        })
    }
}

/// What a follower answers to it: its last record, or why it does not begin, and whether it can only be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) shard: ShardId,
    pub(crate) outcome: Result<Lsn, (String, bool)>,
    /// Its state is that of all its records.
    pub(crate) whole: bool,
}

impl Begun {
    fn to_wire(&self) -> wire::BegunShard {
        let (last, refused, unfit) = match &self.outcome {
            Ok(last) => (last.0, String::new(), false),
            Err((reason, unfit)) => (0, reason.clone(), *unfit),
        };
        wire::BegunShard {
            shard: u32::from(self.shard.0),
            last,
            refused,
            unfit,
            whole: self.whole,
        }
    }

    pub(crate) fn from_wire(wire: &wire::BegunShard) -> Option<Self> {
        let outcome = if wire.refused.is_empty() {
            Ok(Lsn(wire.last))
        } else {
            Err((wire.refused.clone(), wire.unfit))
        };
        Some(Self {
            shard: ShardId(u16::try_from(wire.shard).ok()?),
            outcome,
            whole: wire.whole,
        })
    }
}

impl Intake {
    pub(crate) fn new(
        shared: Arc<Shared>,
        writer: ActorRef<WriterMessage>,
        cluster: watch::Receiver<Arc<ClusterState>>,
    ) -> Self {
        let parts = Parts {
            shared,
            writer,
            cluster,
        };
        Self {
            parts: Arc::new(parts),
            queues: Mutex::default(),
        }
    }

    fn enqueue(&self, from: NodeId, ordered: Ordered) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(from).or_insert_with(|| {
            let (sender, mut calls) = mpsc::unbounded_channel::<Ordered>();
            let parts = Arc::clone(&self.parts);
            self.parts.shared.spawn_job("intake", async move {
                while let Some(call) = calls.recv().await {
                    parts.take_ordered(from, call).await;
                }
            });
            sender
        });
        // Its receiver ends with the runtime alone.
        let _ = queue.send(ordered);
    }
}

impl PeerHandler for Intake {
    fn deliver(&self, call: IncomingCall) {
        let Caller::Node(from) = call.from else {
            let _ = call.reply.send(Err("this node is no member".to_owned()));
            return;
        };
        let body = match wire::ShardsRequest::decode(call.request) {
            Ok(request) => request.body,
            Err(error) => {
                let _ = call.reply.send(Err(error.to_string()));
                return;
            }
        };
        match body {
            None => {
                let _ = call.reply.send(Err("an empty request".to_owned()));
            }
            Some(shards_request::Body::Forward(forward)) => {
                let (parts, reply) = (Arc::clone(&self.parts), call.reply);
                self.parts.shared.spawn_job("intake", async move {
                    let answer = parts.take_forward(forward.frame).await;
                    let _ = reply.send(Ok(encode(shards_answer::Body::Forward(answer))));
                });
            }
            Some(body) => self.enqueue(
                from,
                Ordered {
                    body,
                    arrived: Instant::now(),
                    reply: call.reply,
                },
            ),
        }
    }
}

impl Parts {
    /// Takes spans for shards that are led here.
    async fn take_forward(&self, frame: Bytes) -> wire::ForwardAnswer {
        let unavailable = |error: PortError| wire::ForwardAnswer {
            refused: Vec::new(),
            code: error.code.to_owned(),
            unavailable: error.message,
        };
        let shared = Arc::clone(&self.shared);
        let bytes = frame.len() * FRAME_RATIO;
        let read = move || forwarded_parts(&shared, &frame);
        let (parts, answer) = match self.shared.compute(Stage::Scan, bytes, read).await {
            Ok(parts) => parts,
            Err(error) => return unavailable(error),
        };
        if self
            .writer
            .cast(WriterMessage::Append(Append { parts }))
            .is_err()
        {
            return unavailable(stopping());
        }
        match answer.await {
            Ok(Ok(refused)) => wire::ForwardAnswer {
                refused: refused.iter().map(|shard| u32::from(shard.0)).collect(),
                ..wire::ForwardAnswer::default()
            },
            Ok(Err(error)) => unavailable(error),
            Err(_) => unavailable(stopping()),
        }
    }

    /// Takes a call in its turn; the answer comes later, beside the next call.
    async fn take_ordered(&self, from: NodeId, call: Ordered) {
        let Ordered {
            body,
            arrived,
            reply,
        } = call;
        // Its caller's deadline has passed, and what it sent will be sent once more.
        if reply.is_closed() {
            return;
        }
        match body {
            shards_request::Body::Replicate(replicate) => {
                let patience = Patience {
                    until: arrived + Duration::from_millis(INTAKE_PATIENCE_MS),
                    caller: &reply,
                };
                let replication = match self.read(from, replicate, &patience).await {
                    Ok(replication) => replication,
                    Err(reason) => {
                        let _ = reply.send(Err(reason));
                        return;
                    }
                };
                let (replication, answer) = replication;
                let _ = self.writer.cast(WriterMessage::Replicate(replication));
                let shared = Arc::clone(&self.shared);
                self.shared.spawn_job("intake", async move {
                    let Ok(refused) = answer.await else { return };
                    let refused = refused.into_iter();
                    let refused = refused.map(|(shard, term, reason)| wire::RefusedShard {
                        shard: u32::from(shard.0),
                        term: term.0,
                        reason,
                    });
                    let answer = wire::ReplicateAnswer {
                        refused: refused.collect(),
                        pressure: u32::from(shared.own_pressure()),
                        disk_is_full: shared.disk.refuses(),
                    };
                    let _ = reply.send(Ok(encode(shards_answer::Body::Replicate(answer))));
                });
            }
            shards_request::Body::Begin(begin) => {
                if let Err(reason) = self.as_new_as(begin.epoch).await {
                    let _ = reply.send(Err(reason));
                    return;
                }
                let shards = begin.shards.iter().filter_map(BeginShard::from_wire);
                let (answered, answer) = oneshot::channel();
                let begin = WriterMessage::Begin(from, begin.epoch, shards.collect(), answered);
                let _ = self.writer.cast(begin);
                self.shared.spawn_job("intake", async move {
                    let Ok(begun) = answer.await else { return };
                    let answer = wire::BeginAnswer {
                        shards: begun.iter().map(Begun::to_wire).collect(),
                    };
                    let _ = reply.send(Ok(encode(shards_answer::Body::Begin(answer))));
                });
            }
            shards_request::Body::Forward(_) => {}
        }
    }

    /// Waits until this node's shard map is as new as the sender's.
    async fn as_new_as(&self, epoch: u64) -> Result<(), String> {
        let mut cluster = self.cluster.clone();
        let applied = cluster.wait_for(|state| state.epoch >= epoch);
        let deadline = Duration::from_millis(BEGIN_DEADLINE_MS / 2);
        match tokio::time::timeout(deadline, applied).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(format!("the settings here have not come to index {epoch}")),
        }
    }

    /// Decodes, checks, reads and pays for frames.
    async fn read(
        &self,
        from: NodeId,
        replicate: wire::Replicate,
        patience: &Patience<'_>,
    ) -> Result<(Replication, oneshot::Receiver<Refusals>), String> {
        let mut frames = Vec::with_capacity(replicate.frames.len());
        let raw_bytes: usize = replicate.frames.iter().map(Bytes::len).sum::<usize>() * FRAME_RATIO;
        for bytes in replicate.frames {
            let shared = Arc::clone(&self.shared);
            let decode = move || Decoded::read(&shared, bytes);
            let decoded = self.shared.compute(Stage::Frame, raw_bytes, decode);
            let decoded = decoded.await?;
            let credit = self.credit(&decoded, patience).await?;
            frames.push(decoded.pay(credit));
        }
        let committed = replicate.committed.iter().filter_map(|notice| {
            Some(CommitNotice {
                shard: ShardId(u16::try_from(notice.shard).ok()?),
                term: Term(notice.term),
                lsn: Lsn(notice.lsn),
            })
        });
        let (reply, answer) = oneshot::channel();
        let replication = Replication {
            from,
            catch_up: replicate.catch_up.map(|one| (Term(one.term), one.attempt)),
            frames,
            committed: committed.collect(),
            reply,
        };
        Ok((replication, answer))
    }

    /// Takes credit for a frame. While there is none it waits, and the primary with it; but not for ever, and not with
    /// verdicts: it is these that let go of entries, and they stand behind the frames that wait.
    ///
    /// # Errors
    /// The caller has given up: what its frames have paid so far is let go of.
    async fn credit(&self, decoded: &Decoded, patience: &Patience<'_>) -> Result<Credit, String> {
        let bytes = decoded.bytes();
        let nothing = "no memory credit left for frames of primaries";
        loop {
            if let Some(credit) = self.shared.pool.try_take(bytes) {
                return Ok(credit);
            }
            if decoded.batches.is_empty() || Instant::now() >= patience.until {
                crate::meters::uncovered(bytes);
                return self
                    .shared
                    .pool
                    .try_take(0)
                    .ok_or_else(|| nothing.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(INTAKE_RETRY_MS)).await;
            if patience.caller.is_closed() {
                return Err("the caller has given up".to_owned());
            }
        }
    }
}

/// How long the frames of one call wait for memory credit, all together.
struct Patience<'a> {
    until: Instant,
    caller: &'a oneshot::Sender<Result<Bytes, String>>,
}

/// A frame with what its records hold.
struct Decoded {
    encoded: EncodedFrame,
    heads: Vec<RecordHead>,
    epoch: Arc<Epoch>,
    batches: Vec<FrameBatch>,
    verdicts: Vec<(usize, Vec<VerdictRecord>)>,
}

/// Bytes that the entries of a shard may grow by for so many spans. A record holds some spans of some traces: few have
/// fewer than three of one.
pub(crate) fn growth(spans: usize) -> u64 {
    let spans = spans as u64;
    spans * ENTRY_BYTES_PER_SPAN + spans.div_ceil(3) * ENTRY_BYTES_PER_TRACE
}

impl Decoded {
    fn read(shared: &Shared, bytes: Bytes) -> Result<Self, String> {
        let parsed = EncodedFrame::parse_both(bytes);
        let (encoded, frame) = parsed.map_err(|error| error.to_string())?;
        let epoch = shared.epoch();
        let batches = frame.batches(epoch.rules().interests());
        let mut verdicts = Vec::new();
        for (number, head) in frame.records().iter().enumerate() {
            if head.kind.is_verdicts() {
                let records = frame.verdicts(number);
                verdicts.push((number, records.map_err(|error| error.to_string())?));
            }
        }
        Ok(Self {
            heads: frame.records().to_vec(),
            batches: batches.map_err(|error| error.to_string())?,
            encoded,
            epoch,
            verdicts,
        })
    }

    /// Bytes of memory that it takes, and those by which entries may grow.
    fn bytes(&self) -> u64 {
        let records = self.batches.iter().flat_map(|one| &one.records);
        let growth: u64 = records.map(|(_, rows)| growth(rows.len())).sum();
        self.encoded.raw_bytes() as u64 + growth
    }

    fn pay(self, mut credit: Credit) -> ReplicaFrame {
        let heads = &self.heads;
        let is_again = |number: usize| {
            let kind = heads.get(number).map(|head| head.kind);
            matches!(
                kind,
                Some(RecordKind::SpansAgain | RecordKind::VerdictsAgain)
            )
        };
        let spans = self.batches.iter().flat_map(|one| &one.records);
        let credits: Vec<Credit> = spans
            .map(|(_, rows)| credit.split(growth(rows.len())))
            .collect();
        let (mut credits, request) = (credits.into_iter(), Arc::new(credit));
        let mut records: BTreeMap<usize, ReplicaRecord> = BTreeMap::new();
        for FrameBatch {
            batch,
            records: parts,
        } in self.batches
        {
            let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
            let (batch, rows): (_, Arc<[u32]>) = (Arc::new(batch), rows.into());
            for ((number, part), credit) in parts.into_iter().zip(credits.by_ref()) {
                let spans = ReplicaRecord::Spans {
                    batch: Arc::clone(&batch),
                    epoch: Arc::clone(&self.epoch),
                    rows: Arc::clone(&rows),
                    start: part.start,
                    end: part.end,
                    again: is_again(number),
                    credit,
                    request: Arc::clone(&request),
                };
                records.insert(number, spans);
            }
        }
        for (number, verdicts) in self.verdicts {
            let verdicts = ReplicaRecord::Verdicts {
                records: verdicts.into(),
                again: is_again(number),
            };
            records.insert(number, verdicts);
        }
        let records = records.into_iter();
        let records = records.filter_map(|(number, record)| Some((*heads.get(number)?, record)));
        ReplicaFrame {
            records: records.collect(),
            encoded: self.encoded,
        }
    }
}

/// Shards of frames that were not taken, and why.
type Refusals = Vec<(ShardId, Term, String)>;

fn encode(body: shards_answer::Body) -> Bytes {
    let answer = wire::ShardsAnswer { body: Some(body) };
    answer.encode_to_vec().into()
}
