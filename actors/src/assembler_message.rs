//! What is asked of the actor around a shard's assembler.

use std::sync::Arc;

use ractor::ActorRef;
use spandrel_model::ids::{Bucket, Lsn, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::VerdictRecord;
use tokio::sync::oneshot;

use crate::assembler::{
    Behind, Depth, Differs, Earlier, EntryView, HeldTrace, KeptTrace, LiveNames, MemoryHits,
    PagedTrace, PagingScope, Promotion, Recall, ShardSearch, ShippedTrace,
};
use crate::query::Coordinator;
use crate::writer::{ShardCommit, WriterMessage};

/// What this node is to the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShardRole {
    /// Nothing: the shard is elsewhere.
    None,
    /// It obeys the records.
    Follower,
    /// It decides.
    Primary,
}

/// Counts the times that a node has come to decide about a shard, or ceased to, in one process: a verdict of an earlier
/// one is late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reign(u64);

impl Reign {
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The assembler's messages. Spans come with credit; everything else is a question or a bounded reply.
pub(crate) enum AssemblerMessage {
    /// The writer, once: verdicts go there.
    Writer(ActorRef<WriterMessage>),
    /// Who is asked for spans that are elsewhere, once.
    Cluster(Arc<Coordinator>),
    /// Spans that were elsewhere are here, or this is to be tried again.
    Recalled(Option<(Recall, u32)>),
    Committed(Vec<ShardCommit>),
    /// Records up to this one count, those that a replay found included.
    Counted(Lsn),
    Confirmed(TenantId, TraceId, Option<Earlier>),
    Tick,
    /// What this node is to the shard from now on, and in which reign.
    Role(ShardRole, Reign),
    /// The shard starts anew here, and of this node's records those up to the one named count. Answered when no trace is
    /// left: the kept ones go to a block first.
    StartAnew(Lsn, oneshot::Sender<()>),
    /// Whether all that records of terms up to this one brought into the bucket is in its block.
    Settled(Bucket, Term, oneshot::Sender<bool>),
    /// Whether a kept trace of the bucket waits for its page.
    WaitsForPage(Bucket, oneshot::Sender<bool>),
    /// What a replica that joins must know of.
    Held(oneshot::Sender<Vec<HeldTrace>>),
    /// And up to which record the journal's verdicts are in effect.
    View(
        TenantId,
        TraceId,
        Depth,
        oneshot::Sender<(Option<EntryView>, Lsn)>,
    ),
    Search(ShardSearch, oneshot::Sender<MemoryHits>),
    Names(
        TenantId,
        (UnixNanos, UnixNanos),
        Depth,
        oneshot::Sender<LiveNames>,
    ),
    /// What waits for a page, up to so many bytes of spans.
    KeptBacklog(
        u64,
        PagingScope,
        oneshot::Sender<(Vec<(UnixNanos, u64)>, bool)>,
    ),
    /// Take out what waits for a page and got its last span until then.
    CollectKept(UnixNanos, PagingScope, oneshot::Sender<Vec<KeptTrace>>),
    /// Take out the traces of pages that the primary has built, as far as they are the same here.
    CollectShipped(
        TenantId,
        Vec<ShippedTrace>,
        oneshot::Sender<Result<Vec<Result<KeptTrace, Differs>>, Behind>>,
    ),
    Paged(Vec<PagedTrace>),
    PagingFailed(Vec<PagedTrace>),
    Promote(
        TenantId,
        TraceId,
        Option<VerdictRecord>,
        oneshot::Sender<Promotion>,
    ),
    /// Decide traces early until about so many bytes come free.
    Relieve(u64),
}

impl ractor::Message for AssemblerMessage {}
