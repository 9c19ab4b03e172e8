//! The writer: one actor per node gives records their lsn, groups them into frames, compresses and commits.
//!
//! While one commit is on its way to the disk, the next frames are built; what arrives meanwhile waits and shares
//! them. An idle writer commits a lone request at once. The shards hear of a commit before anybody is acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, ShardId, Term};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::journal::{EncodedFrame, FrameBuilder, JournalError};
use tokio::sync::oneshot;

use crate::assembler_actor::AssemblerMessage;
use crate::limits::{FRAME_RAW_BYTES, MAX_READY_FRAMES, PRESSURE_RETRY_MS};
use crate::meters::Stage;
use crate::settings::Epoch;
use crate::shared::Shared;

/// zstd level of frames: -1 to 1 cost the same and 1 compresses best of them (measured).
const FRAME_LEVEL: i32 = 1;

/// Spans of one request, grouped by shard.
pub(crate) struct Append {
    pub(crate) batch: Arc<SpanBatch>,
    pub(crate) epoch: Arc<Epoch>,
    /// The rows of the batch, sorted by shard and trace.
    pub(crate) rows: Arc<[u32]>,
    /// The part of `rows` of each shard.
    pub(crate) shards: Vec<ShardRows>,
    /// Pays for the request and for what its entries may grow by.
    pub(crate) credit: Credit,
    /// Told when all of it is durable.
    pub(crate) reply: oneshot::Sender<Result<(), PortError>>,
}

/// A shard's part of an [`Append`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardRows {
    pub(crate) shard: ShardId,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Credit charged for the growth of the shard's entries.
    pub(crate) growth: u64,
}

/// A durable record of a shard, for its assembler.
pub(crate) enum ShardCommit {
    Spans {
        lsn: Lsn,
        batch: Arc<SpanBatch>,
        epoch: Arc<Epoch>,
        rows: Arc<[u32]>,
        part: ShardRows,
        /// Pays for the growth of the shard's entries.
        credit: Credit,
        /// Pays for the request's bytes while any shard still reads them.
        request: Arc<Credit>,
    },
    Verdicts {
        lsn: Lsn,
        records: Vec<VerdictRecord>,
    },
}

/// The writer's messages. Spans enter with their credit; verdicts are bounded by the entries they decide.
#[allow(clippy::large_enum_variant)] // each message lives once, in the mailbox or in the queue
pub(crate) enum WriterMessage {
    Append(Append),
    Verdicts(ShardId, Vec<VerdictRecord>),
    Built(Built),
    Committed(Result<(), String>),
    /// Answered when everything that came before is durable.
    Drain(oneshot::Sender<()>),
}

impl ractor::Message for WriterMessage {}

enum Item {
    Append(Append, Vec<Lsn>),
    Verdicts(ShardId, Lsn, Vec<VerdictRecord>),
    Drain(oneshot::Sender<()>),
}

/// Frames with the requests that they make durable.
pub(crate) struct Built {
    builder: FrameBuilder,
    /// What cannot be built cannot be written either: the node stops.
    frames: Result<Vec<EncodedFrame>, String>,
    items: Vec<Item>,
}

/// The actor.
pub(crate) struct Writer;

/// What the writer needs.
pub(crate) struct WriterArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<ActorRef<AssemblerMessage>>,
    pub(crate) term: Term,
}

/// Invariants: at most one build and one commit are under way; `next` holds for each shard the lsn after the last
/// one given out; items are committed in the order in which their lsns were given; no frame holds spans and verdicts.
pub(crate) struct WriterState {
    shared: Arc<Shared>,
    shards: Vec<ActorRef<AssemblerMessage>>,
    term: Term,
    next: Vec<Lsn>,
    waiting: VecDeque<WriterMessage>,
    waiting_bytes: usize,
    builder: Option<FrameBuilder>,
    frames: Vec<EncodedFrame>,
    built: Vec<Item>,
    committing: Option<Vec<Item>>,
    failed: Option<String>,
}

impl Actor for Writer {
    type Msg = WriterMessage;
    type State = WriterState;
    type Arguments = WriterArguments;

    async fn pre_start(
        &self,
        _: ActorRef<WriterMessage>,
        arguments: WriterArguments,
    ) -> Result<WriterState, ActorProcessingErr> {
        let shards = 0..arguments.shared.router.shards();
        let journal = &arguments.shared.journal;
        Ok(WriterState {
            next: shards
                .map(|shard| journal.last_lsn(ShardId(shard)).next())
                .collect(),
            shared: arguments.shared,
            shards: arguments.shards,
            term: arguments.term,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            builder: Some(FrameBuilder::new(FRAME_LEVEL)?),
            frames: Vec::new(),
            built: Vec::new(),
            committing: None,
            failed: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<WriterMessage>,
        message: WriterMessage,
        state: &mut WriterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WriterMessage::Built(built) => {
                state.builder = Some(built.builder);
                state.built.extend(built.items);
                match built.frames {
                    Ok(frames) => state.frames.extend(frames),
                    Err(reason) => state.fail(reason),
                }
            }
            WriterMessage::Committed(result) => state.committed(result),
            other => {
                state.waiting_bytes += other.raw_bytes();
                state.waiting.push_back(other);
            }
        }
        if let Some(reason) = &state.failed {
            let reason = reason.clone();
            state.refuse_all(&reason);
            return Ok(());
        }
        state.commit(&myself);
        state.build(&myself);
        Ok(())
    }
}

impl WriterMessage {
    fn raw_bytes(&self) -> usize {
        match self {
            Self::Append(append) => append
                .batch
                .spans
                .iter()
                .map(|span| span.span.len as usize)
                .sum(),
            Self::Verdicts(_, records) => records.len() * 64,
            _ => 0,
        }
    }
}

impl WriterState {
    /// Starts a build when a frame is full or nothing else keeps the disk busy.
    fn build(&mut self, myself: &ActorRef<WriterMessage>) {
        let idle = self.committing.is_none() && self.frames.is_empty();
        let full = self.waiting_bytes >= FRAME_RAW_BYTES && self.frames.len() < MAX_READY_FRAMES;
        if self.waiting.is_empty() || !(idle || full) {
            return;
        }
        let Some(builder) = self.builder.take() else {
            return;
        };
        let items = self.take_items();
        let (shared, term, myself) = (Arc::clone(&self.shared), self.term, myself.clone());
        let job = async move {
            let build = move || build_frames(builder, items, term);
            let built = shared.block(Stage::Frame, build).await;
            // The node is stopping when nobody listens.
            let _ = myself.cast(WriterMessage::Built(built));
        };
        self.shared.spawn_job("writer", job);
    }

    /// Takes messages off the queue and numbers their records: spans first, then verdicts, so that these have frames
    /// of their own and recovery, which looks for verdicts before anything else, reads no others.
    fn take_items(&mut self) -> Vec<Item> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        while bytes < MAX_READY_FRAMES / 4 * FRAME_RAW_BYTES {
            let Some(message) = self.waiting.pop_front() else {
                break;
            };
            bytes += message.raw_bytes();
            messages.push(message);
        }
        self.waiting_bytes -= bytes;
        // Stable: the records of a kind keep their order.
        messages.sort_by_key(|message| match message {
            WriterMessage::Append(_) => 0,
            WriterMessage::Verdicts(..) => 1,
            _ => 2,
        });
        let numbered = messages.into_iter();
        numbered
            .filter_map(|message| self.number(message))
            .collect()
    }

    fn number(&mut self, message: WriterMessage) -> Option<Item> {
        let mut give = |shard: ShardId| {
            let next = &mut self.next[usize::from(shard.0)];
            std::mem::replace(next, next.next())
        };
        match message {
            WriterMessage::Append(append) => {
                let lsns = append.shards.iter().map(|part| give(part.shard)).collect();
                Some(Item::Append(append, lsns))
            }
            WriterMessage::Verdicts(shard, records) => {
                Some(Item::Verdicts(shard, give(shard), records))
            }
            WriterMessage::Drain(reply) => Some(Item::Drain(reply)),
            WriterMessage::Built(_) | WriterMessage::Committed(_) => None,
        }
    }

    /// Commits all frames that are built, unless a commit is under way.
    fn commit(&mut self, myself: &ActorRef<WriterMessage>) {
        if self.committing.is_some() || self.built.is_empty() {
            return;
        }
        let frames = std::mem::take(&mut self.frames);
        self.committing = Some(std::mem::take(&mut self.built));
        let (shared, myself) = (Arc::clone(&self.shared), myself.clone());
        let job = async move {
            let result = if frames.is_empty() {
                Ok(())
            } else {
                let (journal, now) = (Arc::clone(&shared.journal), shared.env.now());
                let commit = move || journal.commit(&frames, now).map(drop);
                shared
                    .block(Stage::Commit, commit)
                    .await
                    .map_err(|error| error.to_string())
            };
            let _ = myself.cast(WriterMessage::Committed(result));
        };
        self.shared.spawn_job("writer", job);
    }

    fn committed(&mut self, result: Result<(), String>) {
        let items = self.committing.take().unwrap_or_default();
        if let Err(reason) = result {
            // Never retried: what the kernel still holds of a failed fsync is unknown. A restart reads the disk.
            items.into_iter().for_each(|item| refuse(item, &reason));
            self.fail(reason);
            return;
        }
        let mut commits: Vec<Vec<ShardCommit>> = self.shards.iter().map(|_| Vec::new()).collect();
        let mut replies = Vec::new();
        let mut drained = Vec::new();
        for item in items {
            match item {
                Item::Drain(reply) => drained.push(reply),
                Item::Verdicts(shard, lsn, records) => {
                    commits[usize::from(shard.0)].push(ShardCommit::Verdicts { lsn, records });
                }
                Item::Append(mut append, lsns) => {
                    let growth = append.shards.iter().map(|part| part.growth).sum();
                    let mut growth = append.credit.split(growth);
                    let request = Arc::new(append.credit);
                    for (part, lsn) in append.shards.iter().zip(lsns) {
                        commits[usize::from(part.shard.0)].push(ShardCommit::Spans {
                            lsn,
                            batch: Arc::clone(&append.batch),
                            epoch: Arc::clone(&append.epoch),
                            rows: Arc::clone(&append.rows),
                            part: *part,
                            credit: growth.split(part.growth),
                            request: Arc::clone(&request),
                        });
                    }
                    replies.push(append.reply);
                }
            }
        }
        for (shard, commits) in self.shards.iter().zip(commits) {
            if !commits.is_empty() {
                let _ = shard.cast(AssemblerMessage::Committed(commits));
            }
        }
        for reply in replies {
            // The client may have gone: its spans are durable all the same.
            let _ = reply.send(Ok(()));
        }
        for reply in drained {
            let _ = reply.send(());
        }
    }

    fn fail(&mut self, reason: String) {
        tracing::error!(reason, "the journal cannot be written, stopping");
        (self.shared.env.halt)(&reason);
        self.failed = Some(reason);
    }

    fn refuse_all(&mut self, reason: &str) {
        for message in std::mem::take(&mut self.waiting) {
            if let WriterMessage::Append(append) = message {
                refuse(Item::Append(append, Vec::new()), reason);
            }
        }
        std::mem::take(&mut self.built)
            .into_iter()
            .for_each(|item| refuse(item, reason));
        self.waiting_bytes = 0;
    }
}

fn refuse(item: Item, reason: &str) {
    if let Item::Append(append, _) = item {
        let message = format!("the journal cannot be written: {reason}");
        let error = PortError::unavailable("journal_failed", message, PRESSURE_RETRY_MS);
        let _ = append.reply.send(Err(error));
    }
}

fn build_frames(mut builder: FrameBuilder, items: Vec<Item>, term: Term) -> Built {
    let frames = push_items(&mut builder, &items, term).map_err(|error| error.to_string());
    Built {
        builder,
        frames,
        items,
    }
}

fn push_items(
    builder: &mut FrameBuilder,
    items: &[Item],
    term: Term,
) -> Result<Vec<EncodedFrame>, JournalError> {
    let mut frames = Vec::new();
    for item in items {
        match item {
            Item::Append(append, lsns) => {
                for (part, lsn) in append.shards.iter().zip(lsns) {
                    let rows = append.rows.get(part.start..part.end).unwrap_or_default();
                    builder.push_spans(part.shard, term, *lsn, &append.batch, rows)?;
                    if builder.raw_bytes() >= FRAME_RAW_BYTES {
                        frames.push(builder.finish()?);
                    }
                }
            }
            Item::Verdicts(shard, lsn, records) => {
                if builder.holds_spans() {
                    frames.push(builder.finish()?);
                }
                builder.push_verdicts(*shard, term, *lsn, records)?;
            }
            Item::Drain(_) => {}
        }
    }
    if !builder.is_empty() {
        frames.push(builder.finish()?);
    }
    Ok(frames)
}
