//! What the writer makes durable: spans of requests, verdicts, frames of primaries elsewhere.

use std::sync::{Arc, Mutex, PoisonError};

use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, NodeId, ShardId, Term};
use spandrel_model::verdict::VerdictRecord;
use spandrel_storage::journal::{EncodedFrame, RecordHead};
use tokio::sync::oneshot;

use crate::limits::PRESSURE_RETRY_MS;
use crate::route::share_bytes;
use crate::settings::Epoch;

/// The code of an answer to spans that may be durable on some copies and not on all.
pub(crate) const NOT_DURABLE: &str = "not_durable";

/// The code of a refusal because a disk that the spans need has no room for them.
pub(crate) const DISK_RESERVE: &str = "disk_reserve";

/// That refusal.
pub(crate) fn disk_reserve() -> PortError {
    let message = "a disk has reached its reserve, and other nodes cannot take over";
    PortError::unavailable(DISK_RESERVE, message, PRESSURE_RETRY_MS)
}

/// What became of an [`Append`]: the shards whose spans were not taken, since this node does not serve them now.
pub(crate) type AppendAnswer = Result<Vec<ShardId>, PortError>;

/// What waits for a number.
pub(super) enum Waiting {
    Spans(Part),
    /// With a share in an answer: the shard has them already.
    Verdicts(ShardId, Arc<[VerdictRecord]>, Option<Ticket>),
}

impl Waiting {
    pub(super) fn shard(&self) -> ShardId {
        match self {
            Self::Spans(part) => part.shard,
            Self::Verdicts(shard, ..) => *shard,
        }
    }

    pub(super) fn raw_bytes(&self) -> usize {
        match self {
            Self::Spans(part) => part.raw_bytes(),
            Self::Verdicts(_, records, _) => records.len() * 64,
        }
    }

    /// Bytes that a frame takes from it, about, before compression.
    pub(super) fn bytes_to_build(&self) -> usize {
        match self {
            Self::Spans(part) => share_bytes(&part.batch, part.end - part.start),
            Self::Verdicts(..) => self.raw_bytes(),
        }
    }
}

/// Spans for the shards of this node, all acknowledged together.
pub(crate) struct Append {
    pub(crate) parts: Vec<Part>,
}

/// The spans of one request for one shard.
pub(crate) struct Part {
    pub(crate) shard: ShardId,
    pub(crate) batch: Arc<SpanBatch>,
    pub(crate) epoch: Arc<Epoch>,
    /// Rows of the batch, sorted by shard and trace; the part's own are `start..end`.
    pub(crate) rows: Arc<[u32]>,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The shard has them already: they are for a replica that has just joined it.
    pub(crate) again: bool,
    /// Pays for the growth of the shard's entries.
    pub(crate) credit: Credit,
    /// Pays for the request's bytes while anybody still reads them.
    pub(crate) request: Arc<Credit>,
    pub(crate) ticket: Ticket,
}

impl Part {
    pub(crate) fn rows(&self) -> &[u32] {
        self.rows.get(self.start..self.end).unwrap_or_default()
    }

    /// Bytes of its spans.
    pub(crate) fn raw_bytes(&self) -> usize {
        let spans = self.rows().iter();
        let spans = spans.filter_map(|row| self.batch.spans.get(*row as usize));
        spans.map(|span| span.span.len as usize).sum()
    }
}

/// A share in the answer to an [`Append`]: the answer goes out when the last share is let go, and says yes only when
/// each part was durable or refused.
#[derive(Clone)]
pub(crate) struct Ticket(Arc<Shares>);

struct Shares {
    outcome: Mutex<Outcome>,
    reply: Option<oneshot::Sender<AppendAnswer>>,
}

struct Outcome {
    open: usize,
    refused: Vec<ShardId>,
    failed: Option<PortError>,
}

impl Ticket {
    /// A ticket for this number of parts, and where their answer comes.
    pub(crate) fn new(parts: usize) -> (Self, oneshot::Receiver<AppendAnswer>) {
        let (reply, answer) = oneshot::channel();
        let outcome = Outcome {
            open: parts,
            refused: Vec::new(),
            failed: None,
        };
        let shares = Shares {
            outcome: Mutex::new(outcome),
            reply: Some(reply),
        };
        (Self(Arc::new(shares)), answer)
    }

    fn note(&self, note: impl FnOnce(&mut Outcome)) {
        note(
            &mut self
                .0
                .outcome
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// A part is durable on every copy.
    pub(crate) fn durable(self) {
        self.note(|outcome| outcome.open = outcome.open.saturating_sub(1));
    }

    /// A part was not taken.
    pub(crate) fn refuse(self, shard: ShardId) {
        self.note(|outcome| {
            outcome.open = outcome.open.saturating_sub(1);
            outcome.refused.push(shard);
        });
    }

    /// The disk does not take a part.
    pub(crate) fn fail(self, error: PortError) {
        self.note(|outcome| outcome.failed = Some(error));
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        let Some(reply) = self.reply.take() else {
            return;
        };
        let outcome = self
            .outcome
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let answer = match outcome.failed.take() {
            Some(error) => Err(error),
            None if outcome.open > 0 => Err(PortError::unavailable(
                NOT_DURABLE,
                "it is not known whether the spans are durable on every copy: send them again",
                PRESSURE_RETRY_MS,
            )),
            None => Ok(std::mem::take(&mut outcome.refused)),
        };
        // The client may have gone: its spans are durable all the same.
        let _ = reply.send(answer);
    }
}

/// A record that was given a number and waits until every copy has it.
pub(crate) enum Work {
    Spans(Part),
    /// Those that the shard has already come with a share in an answer.
    Verdicts(Arc<[VerdictRecord]>, Option<Ticket>),
}

/// A record for a frame.
pub(crate) struct BuildItem {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    pub(crate) lsn: Lsn,
    pub(crate) content: BuildContent,
}

/// What is in it.
pub(crate) enum BuildContent {
    Spans {
        batch: Arc<SpanBatch>,
        rows: Arc<[u32]>,
        start: usize,
        end: usize,
        again: bool,
    },
    Verdicts(Arc<[VerdictRecord]>, bool),
}

/// A record of a shard, read and paid for: of a frame that came from its primary, or of what this node numbered.
pub(crate) enum ReplicaRecord {
    Spans {
        batch: Arc<SpanBatch>,
        epoch: Arc<Epoch>,
        /// The batch's rows in order; the record's own are `start..end`.
        rows: Arc<[u32]>,
        start: usize,
        end: usize,
        again: bool,
        /// Pays for the growth of the shard's entries.
        credit: Credit,
        /// Pays for the frame's bytes while anybody still reads them.
        request: Arc<Credit>,
    },
    Verdicts {
        records: Arc<[VerdictRecord]>,
        again: bool,
    },
}

impl ReplicaRecord {
    /// The notice of the record for its assembler.
    pub(crate) fn into_commit(self, lsn: Lsn) -> ShardCommit {
        ShardCommit { lsn, record: self }
    }
}

/// A frame from a primary, checked, read and paid for.
pub(crate) struct ReplicaFrame {
    pub(crate) encoded: EncodedFrame,
    pub(crate) records: Vec<(RecordHead, ReplicaRecord)>,
}

/// Up to which record a shard's records are on every copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommitNotice {
    pub(crate) shard: ShardId,
    pub(crate) term: Term,
    pub(crate) lsn: Lsn,
}

/// What a primary sends to its follower.
pub(crate) struct Replication {
    pub(crate) from: NodeId,
    /// The frames are of this attempt to bring a follower level.
    pub(crate) catch_up: Option<(Term, u64)>,
    pub(crate) frames: Vec<ReplicaFrame>,
    pub(crate) committed: Vec<CommitNotice>,
    /// Told when the frames are durable: the shards of a frame that was refused, with the reason.
    pub(crate) reply: oneshot::Sender<Vec<(ShardId, Term, String)>>,
}

/// A record that counts, for its shard's assembler.
pub(crate) struct ShardCommit {
    pub(crate) lsn: Lsn,
    pub(crate) record: ReplicaRecord,
}

impl Work {
    /// The notice of the record for its assembler, and who is to be told afterwards.
    pub(crate) fn into_commit(self, lsn: Lsn) -> (ShardCommit, Option<Ticket>) {
        let (record, ticket) = self.into_record();
        (record.into_commit(lsn), ticket)
    }

    /// The record as a follower holds it, and who waits for it.
    pub(crate) fn into_record(self) -> (ReplicaRecord, Option<Ticket>) {
        match self {
            Self::Verdicts(records, ticket) => {
                let again = ticket.is_some();
                (ReplicaRecord::Verdicts { records, again }, ticket)
            }
            Self::Spans(part) => {
                let record = ReplicaRecord::Spans {
                    batch: part.batch,
                    epoch: part.epoch,
                    rows: part.rows,
                    start: part.start,
                    end: part.end,
                    again: part.again,
                    credit: part.credit,
                    request: part.request,
                };
                (record, Some(part.ticket))
            }
        }
    }
}
