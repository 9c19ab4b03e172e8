//! The writer: one actor per node gives the records of its shards their numbers, groups them into frames, compresses
//! and commits, and takes the frames of primaries elsewhere. A record counts when every copy of its shard has it.
//!
//! While one commit is on its way to the disk, the next frames are built; what arrives meanwhile waits and shares
//! them. An idle writer commits a lone request at once. The shards hear of a commit before anybody is acknowledged.
//!
//! Among several nodes commits keep a distance (`pace`): what a node leads and what it follows arrives in small pieces.

mod copies;
mod followers;
mod frames;
mod numbering;
mod pace;
mod pauses;
mod roles;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, NodeId, ShardId, Term};
use spandrel_model::verdict::VerdictRecord;
use spandrel_raft::ClusterState;
use spandrel_storage::journal::{EncodedFrame, FrameBuilder, LsnRange};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::assembler_message::{AssemblerMessage, Reign};
use crate::limits::{FRAME_RAW_BYTES, MAX_READY_FRAMES, PRESSURE_RETRY_MS};
use crate::link::Link;
use crate::meters::Stage;
use crate::replication::{
    Attachment, BeginShard, Begun, FeederMessage, FollowerShard, Level, PrimaryShard, ShardProgress,
};
use crate::shared::Shared;
use frames::{BuiltFrame, build_frames};
use pace::Pace;
use pauses::{Pause, Pauses};
pub(crate) use work::{
    Append, AppendAnswer, CommitNotice, DISK_RESERVE, NOT_DURABLE, Part, ReplicaFrame,
    ReplicaRecord, Replication, ShardCommit, Ticket, disk_reserve,
};
use work::{Waiting, Work};

/// zstd level of frames: -1 to 1 cost the same and 1 compresses best of them (measured).
pub(crate) const FRAME_LEVEL: i32 = 1;

/// The writer's messages. Spans enter with their credit; verdicts are bounded by the entries they decide.
#[allow(clippy::large_enum_variant)] // each message lives once, in the mailbox or in the queue
pub(crate) enum WriterMessage {
    Append(Append),
    /// Verdicts of a shard's assembler, and the reign in which it decided them.
    Verdicts(ShardId, Reign, Vec<VerdictRecord>),
    /// Verdicts that the shard has already, for replicas that have just joined it.
    VerdictsAgain(ShardId, Vec<VerdictRecord>, Ticket),
    Built(Built),
    Committed(Result<(), String>),
    /// The owners of shards have changed.
    Map(Arc<ClusterState>),
    /// A follower has the records of a frame, or (the flag) has refused them.
    Fed(NodeId, Vec<LsnRange>, bool),
    /// A follower was brought this far, or cannot be; the flag: it must be filled anew.
    Attached(NodeId, Attachment, Result<Level, bool>),
    /// What a shard held when replicas joined, in these attempts, was sent again and is on every copy, or could not be.
    SentAgain(ShardId, Term, Vec<(NodeId, u64)>, bool),
    /// Frames of a primary elsewhere.
    Replicate(Replication),
    /// A primary elsewhere begins with this node as its follower, by the map of this epoch.
    Begin(NodeId, u64, Vec<BeginShard>, oneshot::Sender<Vec<Begun>>),
    /// What a beginning asked of the disk is done.
    Prepared(NodeId, Vec<BeginShard>, oneshot::Sender<Vec<Begun>>),
    /// Give out no numbers for a shard; told true once nothing of it is on its way, false when it is not led here or one
    /// of these joining replicas does not have everything.
    Hold(ShardId, Term, Vec<NodeId>, oneshot::Sender<bool>),
    /// Give out numbers again.
    Release(ShardId, Term),
    /// Where the shards stand that this node leads, by the map of this epoch.
    Progress(oneshot::Sender<(u64, Vec<ShardProgress>)>),
    /// The tick of this number.
    Tick(u64),
    /// It is time for the next commit.
    Paced,
    /// Answered when everything that came before is durable.
    Drain(oneshot::Sender<()>),
}

impl ractor::Message for WriterMessage {}

/// What is done when a commit has come to the disk.
enum Landing {
    /// A frame of this node.
    Own(Vec<LsnRange>),
    /// A frame of another primary.
    Replica(ReplicaFrame),
    /// The answer to a primary elsewhere.
    Replied(
        oneshot::Sender<Vec<(ShardId, Term, String)>>,
        Vec<(ShardId, Term, String)>,
    ),
    /// A beginning: what came before is durable now.
    Begin(NodeId, Vec<BeginShard>, oneshot::Sender<Vec<Begun>>),
}

/// Who begins with which shards, and who hears what came of it.
type Beginning = (NodeId, Vec<BeginShard>, oneshot::Sender<Vec<Begun>>);

/// Frames that were built.
pub(crate) struct Built {
    builder: FrameBuilder,
    /// What cannot be built cannot be written either: the node stops.
    frames: Result<Vec<BuiltFrame>, String>,
}

/// What this node is to a shard.
enum Role {
    /// Nothing, or its primary without a term of its own yet.
    None,
    Primary(Box<PrimaryShard<Work>>),
    Follower(FollowerShard<ReplicaRecord>),
}

/// Why a shard gives out no numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum HeldFor {
    /// A follower catches up with the last records.
    Copy(NodeId),
    /// The keeper hands it over or lets a replica in.
    Keeper,
}

/// The keeper waits until nothing of a shard is on its way and these joining replicas have everything.
type KeeperWaits = (Vec<NodeId>, oneshot::Sender<bool>);

/// The actor.
pub(crate) struct Writer;

/// What the writer needs.
pub(crate) struct WriterArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<ActorRef<AssemblerMessage>>,
    pub(crate) link: Arc<dyn Link>,
    /// The state after this process registered: what it leads by it, it leads by an earlier process's right.
    pub(crate) state: Arc<ClusterState>,
}

/// Invariants: at most one build and one commit are under way; what lands is in the order in which it was queued; no
/// frame holds spans and verdicts, or shards with different followers.
pub(crate) struct WriterState {
    shared: Arc<Shared>,
    shards: Vec<ActorRef<AssemblerMessage>>,
    link: Arc<dyn Link>,
    /// The terms in which this process found the shards.
    found: Vec<Term>,
    roles: Vec<Role>,
    /// The last reign of this node over each shard.
    reigns: Vec<Reign>,
    /// The last record of each shard that the replay found, until it is known to count.
    replayed: Vec<Option<Lsn>>,
    /// Shards whose traces were let go here: what the disk holds of them no longer says what their assemblers have.
    emptied: Vec<bool>,
    map: Arc<ClusterState>,
    /// Beginnings by maps that have not come yet, with the epochs of these.
    early: Vec<(u64, Beginning)>,
    feeders: BTreeMap<NodeId, ActorRef<FeederMessage>>,
    /// Why shards are held, and what waits for their numbers meanwhile.
    held: BTreeMap<ShardId, Vec<HeldFor>>,
    pauses: Pauses,
    deferred: BTreeMap<ShardId, VecDeque<Waiting>>,
    drained: BTreeMap<ShardId, KeeperWaits>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    builder: Option<FrameBuilder>,
    frames: Vec<EncodedFrame>,
    built: Vec<Landing>,
    committing: Option<Vec<Landing>>,
    drains: Vec<oneshot::Sender<()>>,
    pace: Pace,
    /// Counts ticks; the last one is the one that comes next.
    ticks: u64,
    /// When it comes, and its timer: while there are followers.
    tick_due: Option<(Instant, AbortHandle)>,
    /// A follower is to be told something, or was lost.
    looks_soon: bool,
    /// When it was last looked for stalled shards.
    looked: Instant,
    failed: Option<String>,
}

impl Actor for Writer {
    type Msg = WriterMessage;
    type State = WriterState;
    type Arguments = WriterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<WriterMessage>,
        arguments: WriterArguments,
    ) -> Result<WriterState, ActorProcessingErr> {
        let shards = usize::from(arguments.shared.router.shards());
        let found = arguments.state.shard_map.iter().map(|record| record.term);
        let found: Vec<Term> = found.collect();
        for (shard, term) in (0u16..).map(ShardId).zip(&found) {
            arguments.shared.checkpoints.found(shard, *term);
        }
        let replayed = (0u16..).map(ShardId).take(shards);
        let replayed = replayed.map(|shard| Some(arguments.shared.journal.last_valid(shard)));
        let replayed = replayed.collect();
        let mut state = WriterState {
            found,
            roles: (0..shards).map(|_| Role::None).collect(),
            reigns: vec![Reign::default(); shards],
            replayed,
            emptied: vec![false; shards],
            map: Arc::clone(&arguments.state),
            early: Vec::new(),
            shared: arguments.shared,
            shards: arguments.shards,
            link: arguments.link,
            feeders: BTreeMap::new(),
            held: BTreeMap::new(),
            pauses: Pauses::default(),
            deferred: BTreeMap::new(),
            drained: BTreeMap::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            builder: Some(FrameBuilder::new(FRAME_LEVEL)?),
            frames: Vec::new(),
            built: Vec::new(),
            committing: None,
            drains: Vec::new(),
            pace: Pace::default(),
            ticks: 0,
            tick_due: None,
            looks_soon: false,
            looked: Instant::now(),
            failed: None,
        };
        state.adopt(&myself, arguments.state).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<WriterMessage>,
        message: WriterMessage,
        state: &mut WriterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WriterMessage::Append(append) => {
                append
                    .parts
                    .into_iter()
                    .for_each(|part| state.queue(Waiting::Spans(part)));
            }
            WriterMessage::Verdicts(shard, reign, records) => {
                // The assembler may not have heard yet that another node decides, or has decided meanwhile.
                if state.reigns.get(usize::from(shard.0)) == Some(&reign) {
                    state.queue(Waiting::Verdicts(shard, records.into(), None));
                }
            }
            WriterMessage::VerdictsAgain(shard, records, ticket) => {
                state.queue(Waiting::Verdicts(shard, records.into(), Some(ticket)));
            }
            WriterMessage::Built(built) => {
                state.built(built);
                state.commit(&myself);
            }
            WriterMessage::Committed(result) => state.committed(&myself, result),
            // In a box of its own: every message would carry the room for it.
            WriterMessage::Map(map) => Box::pin(state.adopt(&myself, map)).await?,
            WriterMessage::Fed(node, ranges, refused) => state.fed(node, &ranges, refused),
            WriterMessage::Attached(node, attachment, outcome) => {
                state.attached(&myself, node, attachment, outcome);
            }
            WriterMessage::SentAgain(shard, term, nodes, done) => {
                state.sent_again(shard, term, &nodes, done);
            }
            WriterMessage::Replicate(replication) => state.replicate(replication),
            WriterMessage::Begin(from, epoch, shards, reply) => {
                state.early.push((epoch, (from, shards, reply)));
                state.announce_known();
            }
            WriterMessage::Prepared(from, shards, reply) => state.begin(from, &shards, reply),
            WriterMessage::Hold(shard, term, joining, reply) => {
                state.hold_for_keeper(shard, term, (joining, reply));
            }
            WriterMessage::Release(shard, term) => state.release_by_keeper(shard, term),
            WriterMessage::Progress(reply) => {
                let _ = reply.send((state.map.epoch, state.progress()));
            }
            WriterMessage::Tick(tick) if tick == state.ticks => state.tick(&myself),
            // An earlier one was wanted meanwhile.
            WriterMessage::Tick(_) => {}
            WriterMessage::Paced => state.pace.waits = false,
            WriterMessage::Drain(reply) => state.drains.push(reply),
        }
        if state.failed.is_none() {
            state.build(&myself);
            state.commit(&myself);
        }
        if let Some(reason) = &state.failed {
            let reason = reason.clone();
            state.refuse_all(&reason);
            return Ok(());
        }
        state.answer_drains();
        if state.looks_soon {
            state.start_ticking(&myself);
        }
        Ok(())
    }

    /// Its feeders come and go with the followers. One that fails takes the writer with it, and so the node.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<WriterMessage>,
        event: SupervisionEvent,
        _: &mut WriterState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => Err(error),
            _ => Ok(()),
        }
    }
}

impl WriterState {
    fn queue(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.raw_bytes();
        self.waiting.push_back(waiting);
    }

    /// Starts a build when a frame is full or nothing else keeps the disk busy.
    fn build(&mut self, myself: &ActorRef<WriterMessage>) {
        if self.waiting.is_empty() || self.builder.is_none() {
            return;
        }
        // Frames of other primaries wait a moment for those of this node, so that one commit takes all.
        let is_next = self.frames.is_empty() || self.has_peers();
        let idle = self.committing.is_none() && is_next && !self.is_early(myself);
        let full = self.waiting_bytes >= FRAME_RAW_BYTES && self.frames.len() < MAX_READY_FRAMES;
        if !(idle || full) {
            return;
        }
        let Some(mut builder) = self.builder.take() else {
            return;
        };
        let (groups, bytes) = self.take_groups();
        if groups.is_empty() {
            self.builder = Some(builder);
            return;
        }
        let build = move || {
            let frames = build_frames(&mut builder, groups);
            Built {
                frames: frames.map_err(|error| error.to_string()),
                builder,
            }
        };
        if bytes <= self.shared.env.inline_work_bytes() {
            let built = self.shared.measured(Stage::Frame, build);
            return self.built(built);
        }
        self.pace.joins = idle;
        let (shared, myself) = (Arc::clone(&self.shared), myself.clone());
        let job = async move {
            let built = shared.block(Stage::Frame, build).await;
            // The node is stopping when nobody listens.
            let _ = myself.cast(WriterMessage::Built(built));
        };
        self.shared.spawn_job("writer", job);
    }

    fn built(&mut self, built: Built) {
        self.builder = Some(built.builder);
        self.pace.joins = false;
        let frames = match built.frames {
            Ok(frames) => frames,
            Err(reason) => return self.fail(reason),
        };
        for built in frames {
            for node in built.followers.iter() {
                self.feed(*node, &built.frame);
            }
            self.built.push(Landing::Own(built.frame.ranges().to_vec()));
            self.frames.push(built.frame);
        }
    }

    /// Commits all frames that are there, unless a commit is under way.
    fn commit(&mut self, myself: &ActorRef<WriterMessage>) {
        if self.committing.is_some() || self.built.is_empty() || self.failed.is_some() {
            return;
        }
        // What needs no disk, an answer alone, does not wait.
        if !self.frames.is_empty() && (self.pace.joins || self.is_early(myself)) {
            return;
        }
        let frames = std::mem::take(&mut self.frames);
        if !frames.is_empty() {
            self.pace.began();
        }
        self.committing = Some(std::mem::take(&mut self.built));
        let (shared, myself) = (Arc::clone(&self.shared), myself.clone());
        let job = async move {
            let result = if frames.is_empty() {
                Ok(())
            } else {
                let (journal, now) = (Arc::clone(&shared.journal), shared.env.now());
                let commit = move || journal.commit(&frames, now).map(drop);
                shared.disk_hang.begins();
                let result = shared.block(Stage::Commit, commit).await;
                shared.disk_hang.ends();
                result.map_err(|error| error.to_string())
            };
            let _ = myself.cast(WriterMessage::Committed(result));
        };
        self.shared.spawn_job("writer", job);
    }

    fn committed(&mut self, myself: &ActorRef<WriterMessage>, result: Result<(), String>) {
        self.pace.ended();
        let landings = self.committing.take().unwrap_or_default();
        if let Err(reason) = result {
            // Never retried: what the kernel still holds of a failed fsync is unknown. A restart reads the disk.
            return self.fail(reason);
        }
        let mut touched = Vec::new();
        let mut replies = Vec::new();
        for landing in landings {
            match landing {
                Landing::Own(ranges) => {
                    for range in ranges {
                        if let Role::Primary(primary) = &mut self.roles[usize::from(range.shard.0)]
                        {
                            primary.durable_here(range.last);
                        }
                        touched.push(range.shard);
                    }
                }
                Landing::Replica(frame) => self.landed(frame, &mut touched),
                Landing::Replied(reply, refused) => replies.push((reply, refused)),
                Landing::Begin(from, shards, reply) => self.prepare(myself, from, shards, reply),
            }
        }
        self.advance(touched);
        for (reply, refused) in replies {
            // The primary may have gone: it sends its frames again.
            let _ = reply.send(refused);
        }
    }

    /// Tells the assemblers of these shards which of their records count now, then those who wait for it.
    fn advance(&mut self, mut touched: Vec<ShardId>) {
        touched.sort_unstable();
        touched.dedup();
        let mut tickets = Vec::new();
        for shard in touched {
            let commits: Vec<ShardCommit> = match &mut self.roles[usize::from(shard.0)] {
                Role::None => continue,
                Role::Follower(follower) => follower
                    .counting()
                    .into_iter()
                    .map(|(lsn, record)| record.into_commit(lsn))
                    .collect(),
                Role::Primary(primary) => {
                    let counting = primary.advance().into_iter().map(|(lsn, work)| {
                        let (commit, ticket) = work.into_commit(lsn);
                        tickets.extend(ticket);
                        commit
                    });
                    let commits: Vec<_> = counting.collect();
                    self.looks_soon |= !commits.is_empty();
                    if primary.is_settled() {
                        self.pauses.end(shard, Pause::NewTerm);
                    }
                    if cfg!(debug_assertions) {
                        primary.check();
                    }
                    commits
                }
            };
            self.tell(shard, commits);
            self.settle_replayed(shard);
            self.answer_keeper(shard);
        }
        tickets.into_iter().for_each(Ticket::durable);
    }

    /// What was replayed counts once the log counts up to there: by what its primary says, and alone at once.
    fn settle_replayed(&mut self, shard: ShardId) {
        let at = usize::from(shard.0);
        let commit = match self.roles.get(at) {
            Some(Role::Follower(follower)) => follower.commit.min(follower.durable_up_to()),
            Some(Role::Primary(primary)) => primary.commit,
            _ => return,
        };
        self.shared.checkpoints.count(shard, commit);
        if let (Some(last), Some(assembler)) = (self.replayed[at], self.shards.get(at))
            && commit >= last
        {
            let _ = assembler.cast(AssemblerMessage::Counted(last));
            self.replayed[at] = None;
        }
    }

    fn tell(&self, shard: ShardId, commits: Vec<ShardCommit>) {
        if let Some(assembler) = self.shards.get(usize::from(shard.0))
            && !commits.is_empty()
        {
            let _ = assembler.cast(AssemblerMessage::Committed(commits));
        }
    }

    /// Answers those who wait for all that came before them: nothing waits, is built, is written, or lacks a copy.
    fn answer_drains(&mut self) {
        let quiet = self.waiting.is_empty()
            && self.deferred.values().all(VecDeque::is_empty)
            && self.builder.is_some()
            && self.built.is_empty()
            && self.committing.is_none();
        let drained = |role: &Role| match role {
            Role::Primary(primary) => primary.is_drained(),
            _ => true,
        };
        if quiet && !self.drains.is_empty() && self.roles.iter().all(drained) {
            for reply in self.drains.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    fn fail(&mut self, reason: String) {
        tracing::error!(reason, "the journal cannot be written, stopping");
        (self.shared.env.halt)(&reason);
        self.failed = Some(reason);
    }

    fn refuse_all(&mut self, reason: &str) {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let deferred = std::mem::take(&mut self.deferred).into_values().flatten();
        let numbered = self.roles.iter_mut().flat_map(|role| match role {
            Role::Primary(primary) => primary.give_up(),
            _ => Vec::new(),
        });
        let unnumbered = waiting.chain(deferred).filter_map(|waiting| match waiting {
            Waiting::Spans(part) => Some(part),
            Waiting::Verdicts(..) => None,
        });
        let numbered = numbered.filter_map(|(_, work)| match work {
            Work::Spans(part) => Some(part),
            Work::Verdicts(..) => None,
        });
        for part in unnumbered.chain(numbered) {
            let message = format!("the journal cannot be written: {reason}");
            let error = PortError::unavailable("journal_failed", message, PRESSURE_RETRY_MS);
            part.ticket.fail(error);
        }
        self.built.clear();
        self.frames.clear();
        self.waiting_bytes = 0;
    }
}
