//! Brings followers level: asks for their last record, says which of theirs count, and sends what they lack from the
//! journal. Runs beside the writer, which goes on numbering records and hears how far each follower has come.
//!
//! One that joins is filled, unless it has been there before and can go on: its state is that of all its records, this
//! node's journal has all that came behind them, and that is not more than what a fill would read.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ractor::ActorRef;
use spandrel_model::ids::{Lsn, NodeId, ShardId, Term};
use spandrel_model::interest::Interests;
use spandrel_storage::journal::{Frame, FrameBuilder, JournalError, RecordKind};

use super::decided::first_repeated;
use super::intake::{BeginShard, Begun};
use crate::buggify::Site;
use crate::limits::{
    ATTACH_RETRY_MS, BEGIN_DEADLINE_MS, BEGIN_SHARDS, CATCH_UP_FRAMES, CATCH_UP_ROUNDS,
    FRAME_RAW_BYTES, REPLICATE_DEADLINE_MS,
};
use crate::link::{Link, LinkClass, PeerService};
use crate::meters::Stage;
use crate::shared::Shared;
use crate::wire;
use crate::writer::{FRAME_LEVEL, WriterMessage};

/// A follower of a shard that is to be brought level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    /// It joins, and what the shard holds is sent to it again unless it can go on.
    pub(crate) may_be_filled: bool,
    pub(crate) attempt: u64,
    /// Where a joining follower begins: records up to this one are sent again later.
    pub(crate) settled: Lsn,
    /// The last record that the shard had when the attempt began.
    pub(crate) last: Lsn,
    /// Records up to this one were on every copy by then. The follower is told with what it is sent: its assembler gets
    /// them, instead of memory being held for all that it lacks until it is level.
    pub(crate) committed: Lsn,
    /// What an earlier part of the attempt has reached; no further record is given out meanwhile.
    pub(crate) resume: Option<Level>,
}

impl Attachment {
    /// What the follower is told and asked: which of its records count, and whether it begins anew.
    fn ask(&self, keep: Option<Lsn>, fill: bool) -> BeginShard {
        BeginShard {
            shard: self.shard,
            term: self.term,
            keep,
            fill,
            attempt: self.attempt,
            settled: self.settled,
        }
    }
}

/// How far a follower was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    /// It has all records behind this one.
    pub(crate) from: Lsn,
    /// Up to this one.
    pub(crate) to: Lsn,
    /// It has those before too: it was in sync, or it joins and has gone on.
    pub(crate) went_on: bool,
}

/// Brings a follower node level for some shards, and tells the writer of each.
pub(crate) async fn attach(
    shared: &std::sync::Arc<Shared>,
    link: &dyn Link,
    node: NodeId,
    epoch: u64,
    shards: Vec<Attachment>,
    writer: &ActorRef<WriterMessage>,
) {
    let with = With {
        shared,
        link,
        node,
        epoch,
    };
    let (begun, resumed): (Vec<_>, Vec<_>) =
        shards.into_iter().partition(|one| one.resume.is_none());
    let mut failed = Vec::new();
    for chunk in begun.chunks(BEGIN_SHARDS) {
        for (one, outcome) in with.begin(chunk).await {
            let outcome = match outcome {
                Ok(begun) => {
                    let level = with.catch_up(one, begun, None).await;
                    level.map_err(|reason| (reason, false))
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(_) => with.tell(writer, one, outcome),
                Err(_) => failed.push((one, outcome)),
            }
        }
    }
    for one in resumed {
        let Some(reached) = one.resume else {
            continue;
        };
        let level = with.catch_up(one, reached, Some(one.last)).await;
        with.tell(writer, one, level.map_err(|reason| (reason, false)));
    }
    if failed.is_empty() {
        return;
    }
    // What failed is not tried again at once.
    tokio::time::sleep(Duration::from_millis(ATTACH_RETRY_MS)).await;
    for (one, outcome) in failed {
        with.tell(writer, one, outcome);
    }
}

/// Where a follower begins, or why it does not, and whether it can only be filled.
type Outcome = Result<Level, (String, bool)>;

/// A follower whose last record is known.
struct Beginning {
    one: Attachment,
    last: Lsn,
    /// It is not filled, as far as is known.
    goes_on: bool,
}

struct With<'a> {
    shared: &'a std::sync::Arc<Shared>,
    link: &'a dyn Link,
    node: NodeId,
    epoch: u64,
}

impl With<'_> {
    /// Tells the writer.
    fn tell(
        &self,
        writer: &ActorRef<WriterMessage>,
        one: Attachment,
        outcome: Result<Level, (String, bool)>,
    ) {
        if let Err((reason, unfit)) = &outcome {
            let (shard, node) = (one.shard.0, self.node.0);
            tracing::debug!(
                shard,
                node,
                reason,
                unfit,
                "a follower was not brought level"
            );
        }
        let outcome = outcome.map_err(|(_, unfit)| unfit);
        let _ = writer.cast(WriterMessage::Attached(self.node, one, outcome));
    }

    /// Begins with the follower: asks for its last record of each shard, then says which ones count. It may lack the
    /// one that it is told to keep (another primary had it void): then it names a lower one, until both hold the same.
    async fn begin(&self, shards: &[Attachment]) -> Vec<(Attachment, Outcome)> {
        let first = shards.iter().map(|one| one.ask(None, one.may_be_filled));
        let asked = self.call_begin(first.collect()).await;
        let (mut open, mut outcomes) = (Vec::new(), Vec::new());
        for (one, begun) in begun_of(shards.iter().copied(), asked) {
            match begun.outcome {
                Ok(last) => open.push(Beginning {
                    one,
                    last,
                    goes_on: !one.may_be_filled || begun.whole,
                }),
                Err(error) => outcomes.push((one, Err(error))),
            }
        }
        while !open.is_empty() {
            open = self.settle(open, &mut outcomes).await;
        }
        outcomes
    }

    /// Says which records of the followers count. Returns those that have to be told again.
    async fn settle(
        &self,
        beginnings: Vec<Beginning>,
        outcomes: &mut Vec<(Attachment, Outcome)>,
    ) -> Vec<Beginning> {
        let (mut told, mut asked) = (Vec::new(), Vec::new());
        for mut beginning in beginnings {
            let one = beginning.one;
            match self.common(&mut beginning).await {
                Ok(keep) => {
                    asked.push(one.ask(Some(keep), !beginning.goes_on));
                    told.push((beginning, keep));
                }
                Err(error) => outcomes.push((one, Err(error))),
            }
        }
        let mut open = Vec::new();
        if told.is_empty() {
            return open;
        }
        let answer = self.call_begin(asked).await;
        let shards: Vec<Attachment> = told.iter().map(|(beginning, _)| beginning.one).collect();
        for ((beginning, keep), (one, begun)) in told.into_iter().zip(begun_of(shards, answer)) {
            let Beginning { goes_on, .. } = beginning;
            match begun.outcome {
                Ok(last) if last < keep => open.push(Beginning { last, ..beginning }),
                // It holds records that do not count.
                Err((_, true)) if one.may_be_filled && goes_on => open.push(Beginning {
                    goes_on: false,
                    ..beginning
                }),
                outcome => {
                    let begun = outcome.map(|from| Level {
                        from,
                        to: from,
                        went_on: goes_on,
                    });
                    outcomes.push((one, begun));
                }
            }
        }
        open
    }

    /// The last record that the follower and this node both may hold. Numbers are of one primary each, so what both hold
    /// up to there is the same. A follower that joins does not go on when this node may lack something behind it, or when
    /// a fill is less.
    async fn common(&self, beginning: &mut Beginning) -> Result<Lsn, (String, bool)> {
        let Beginning { one, last, goes_on } = *beginning;
        if last == Lsn(0) {
            beginning.goes_on &= !one.may_be_filled;
            return Ok(last);
        }
        // The follower may be quicker: what is on its way to the disk here is not lacking here.
        self.until_durable(one).await?;
        let (shared, shard) = (std::sync::Arc::clone(self.shared), one.shard);
        let look = move || -> Result<_, JournalError> {
            let Some(keep) = shared.journal.floor(shard, last)? else {
                return Ok(None);
            };
            let is_worth_it = || {
                let first = first_repeated(&shared.journal.slices(), shard, shared.env.now());
                keep >= shared.checkpoints.all_behind(shard) && keep.next() >= first
            };
            Ok(Some((
                keep,
                goes_on && (!one.may_be_filled || is_worth_it()),
            )))
        };
        let found = self.shared.block(Stage::Commit, look).await;
        match found.map_err(|error| (error.to_string(), false))? {
            Some((keep, goes_on)) => {
                beginning.goes_on = goes_on;
                Ok(keep)
            }
            None if one.may_be_filled => {
                beginning.goes_on = false;
                Ok(Lsn(0))
            }
            None => {
                let reason =
                    "this node's journal does not reach back to the follower's last record";
                Err((reason.to_owned(), true))
            }
        }
    }

    /// Waits until everything is on the own disk that the shard had when the attempt began.
    async fn until_durable(&self, one: Attachment) -> Result<(), (String, bool)> {
        for _ in 0..BEGIN_DEADLINE_MS {
            if self.shared.journal.last_lsn(one.shard) >= one.last {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(("the own disk is slow".to_owned(), false))
    }

    async fn call_begin(&self, shards: Vec<BeginShard>) -> Result<Vec<Begun>, String> {
        let begin = wire::Begin {
            epoch: self.epoch,
            shards: shards.into_iter().map(BeginShard::to_wire).collect(),
        };
        let body = wire::shards_request::Body::Begin(begin);
        let answer = self.call(body, LinkClass::Bulk, BEGIN_DEADLINE_MS).await?;
        match answer {
            wire::shards_answer::Body::Begin(answer) => {
                Ok(answer.shards.iter().filter_map(Begun::from_wire).collect())
            }
            _ => Err("an answer to something else".to_owned()),
        }
    }

    async fn call(
        &self,
        body: wire::shards_request::Body,
        class: LinkClass,
        deadline_ms: u64,
    ) -> Result<wire::shards_answer::Body, String> {
        let request = wire::ShardsRequest { body: Some(body) };
        let deadline = Duration::from_millis(deadline_ms);
        let request = Bytes::from(request.encode_to_vec());
        let called = self
            .link
            .call(self.node, PeerService::Shards, class, request, deadline);
        let answer = called.await.map_err(|error| error.to_string())?;
        let answer = wire::ShardsAnswer::decode(answer).map_err(|error| error.to_string())?;
        answer.body.ok_or_else(|| "an empty answer".to_owned())
    }

    /// Sends the shard's records behind what was reached: those that the journal holds now, or all up to `until`.
    async fn catch_up(
        &self,
        one: Attachment,
        reached: Level,
        until: Option<Lsn>,
    ) -> Result<Level, String> {
        let mut from = reached.to;
        let (mut target, mut rounds) = (until.unwrap_or(from), 0);
        loop {
            // What has come meanwhile, for some rounds: a shard under load is held for the rest.
            if until.is_none() && from >= target && rounds < CATCH_UP_ROUNDS {
                target = self.shared.journal.last_valid(one.shard);
                rounds += 1;
            }
            if self.shared.env.buggify.strikes(Site::CatchUpFails) {
                return Err("the simulation lets it fail".to_owned());
            }
            if from >= target {
                return Ok(Level {
                    to: from,
                    ..reached
                });
            }
            if self.shared.journal.last_valid(one.shard) < target {
                // The last records are on their way to the disk.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let (shared, shard) = (std::sync::Arc::clone(self.shared), one.shard);
            let read = move || {
                let records = next_records(&shared, shard, from, target)?;
                match reached.went_on && is_trimmed(&shared, shard, from)? {
                    true => Err("the journal was trimmed meanwhile".to_owned()),
                    false => Ok(records),
                }
            };
            let (frames, last) = self.shared.block(Stage::Frame, read).await?;
            let committed = wire::Committed {
                shard: u32::from(one.shard.0),
                term: one.term.0,
                lsn: one.committed.0,
            };
            let replicate = wire::Replicate {
                frames,
                committed: vec![committed],
                catch_up: Some(wire::CatchUp {
                    shard: u32::from(one.shard.0),
                    term: one.term.0,
                    attempt: one.attempt,
                }),
            };
            let body = wire::shards_request::Body::Replicate(replicate);
            let answer = self
                .call(body, LinkClass::Bulk, REPLICATE_DEADLINE_MS)
                .await?;
            let wire::shards_answer::Body::Replicate(answer) = answer else {
                return Err("an answer to something else".to_owned());
            };
            if let Some(refused) = answer.refused.first() {
                return Err(refused.reason.clone());
            }
            from = last;
        }
    }
}

/// What was answered about each shard that was asked about.
fn begun_of(
    shards: impl IntoIterator<Item = Attachment>,
    answer: Result<Vec<Begun>, String>,
) -> Vec<(Attachment, Begun)> {
    let begun = |one: &Attachment| {
        let reason = match &answer {
            Err(reason) => reason.clone(),
            Ok(begun) => match begun.iter().find(|begun| begun.shard == one.shard) {
                Some(begun) => return begun.clone(),
                None => "the answer leaves the shard out".to_owned(),
            },
        };
        Begun {
            shard: one.shard,
            outcome: Err((reason, false)),
            whole: false,
        }
    };
    let shards = shards.into_iter();
    shards.map(|one| (one, begun(&one))).collect()
}

/// Whether a record is gone from the journal's beginning, and maybe the ones behind it.
fn is_trimmed(shared: &Shared, shard: ShardId, lsn: Lsn) -> Result<bool, String> {
    let floor = shared.journal.floor(shard, lsn);
    let floor = floor.map_err(|error| error.to_string())?;
    Ok(lsn > Lsn(0) && floor != Some(lsn))
}

/// The shard's first records behind `from`, up to `target` or as many as a frame holds, in frames of their own, and the
/// last of them.
fn next_records(
    shared: &Shared,
    shard: ShardId,
    from: Lsn,
    target: Lsn,
) -> Result<(Vec<Bytes>, Lsn), String> {
    let journal = &shared.journal;
    let mut builder = FrameBuilder::new(FRAME_LEVEL).map_err(|error| error.to_string())?;
    let (mut frames, mut last, mut at) = (Vec::new(), from, from.next());
    let mut raw_bytes = 0;
    // A frame holds spans or verdicts.
    let mut of_verdicts = None;
    loop {
        let located = journal.locate_from(shard, at);
        let Some((lsn, id)) = located.map_err(|error| error.to_string())? else {
            break;
        };
        let frame = journal.frame(id).map_err(|error| error.to_string())?;
        for (number, head) in frame.records().iter().enumerate() {
            let is_new = head.shard == shard && head.lsn > last;
            if !is_new || journal.is_void(shard, head.lsn) {
                continue;
            }
            let changes = of_verdicts.replace(head.kind.is_verdicts());
            let changes = changes.is_some_and(|before| before != head.kind.is_verdicts());
            if builder.raw_bytes() >= FRAME_RAW_BYTES || changes {
                raw_bytes += builder.raw_bytes();
                let finished = builder.finish().map_err(|error| error.to_string())?;
                frames.push(finished.bytes().clone());
            }
            let place = (head.shard, head.term, head.lsn);
            copy_record(&frame, number, place, head.kind, &mut builder)?;
            last = head.lsn;
        }
        at = last.max(lsn).next();
        let is_full = raw_bytes + builder.raw_bytes() >= FRAME_RAW_BYTES;
        if last >= target || is_full || frames.len() >= CATCH_UP_FRAMES {
            break;
        }
    }
    if !builder.is_empty() {
        let finished = builder.finish().map_err(|error| error.to_string())?;
        frames.push(finished.bytes().clone());
    }
    match frames.is_empty() {
        true => Err(format!("no record behind {}", from.0)),
        false => Ok((frames, last)),
    }
}

fn copy_record(
    frame: &Frame,
    number: usize,
    place: (ShardId, Term, Lsn),
    kind: RecordKind,
    builder: &mut FrameBuilder,
) -> Result<(), String> {
    let (shard, term, lsn) = place;
    let pushed = match kind {
        RecordKind::Spans | RecordKind::SpansAgain => {
            let batch = frame.batch(number, &Interests::default());
            let batch = batch.map_err(|error| error.to_string())?;
            let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
            match kind {
                RecordKind::SpansAgain => builder.push_spans_again(place, &batch, &rows),
                _ => builder.push_spans(shard, term, lsn, &batch, &rows),
            }
        }
        _ => {
            let records = frame.verdicts(number).map_err(|error| error.to_string())?;
            match kind {
                RecordKind::VerdictsAgain => builder.push_verdicts_again(place, &records),
                _ => builder.push_verdicts(shard, term, lsn, &records),
            }
        }
    };
    pushed.map_err(|error| error.to_string())
}
