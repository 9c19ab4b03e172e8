//! A node: its disk, and its process with what the writer, the feeders, the attachments, the fills and the keeper of
//! production hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spandrel_actors::assembler::{Effects, ShardState};
use spandrel_actors::replication::{Due, FollowerShard, LiveSet, PrimaryShard, Wish};
use spandrel_model::ids::{Lsn, NodeId, Term, TraceId};
use spandrel_model::verdict::VerdictRecord;

use super::log::{Content, ShardLog};

/// Who waits for a record to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ticket {
    /// Nobody: verdicts.
    None,
    /// The client of this request.
    Client(usize),
    /// The fill of this number.
    Fill(u64),
}

/// A record that was numbered.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) content: Arc<Content>,
    pub(crate) ticket: Ticket,
}

/// What waits for a number.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) shard: usize,
    pub(crate) work: Work,
    /// Of verdicts that the own assembler decided: in which reign.
    pub(crate) reign: Option<u64>,
}

/// A record on its way.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) shard: usize,
    pub(crate) lsn: Lsn,
    pub(crate) content: Arc<Content>,
}

/// Records of shards with the same followers: taken whole or not at all.
pub(crate) type Frame = Arc<Vec<Sent>>;

/// Up to which record a shard's records are on every copy, in which term.
pub(crate) type Notice = (usize, Term, Lsn);

/// A frame and who gets it.
pub(crate) type BuiltFrame = (Frame, LiveSet);

/// The name of a call: who calls, in which life, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) node: usize,
    pub(crate) life: u64,
    pub(crate) number: u64,
}

/// How a primary begins with a follower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begin {
    pub(crate) shard: usize,
    pub(crate) term: Term,
    pub(crate) attempt: u64,
    pub(crate) keep: Option<Lsn>,
    pub(crate) fill: bool,
    pub(crate) settled: Lsn,
}

/// What nodes ask each other.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// The map that it is judged by is not older than this one.
    Begin(usize, Begin),
    Replicate {
        /// To bring a follower level: the shard's term and attempt.
        catch_up: Option<(Term, u64)>,
        frames: Vec<Frame>,
        committed: Vec<Notice>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The follower's last record, or whether it can only be filled; whether its state is that of all its records.
    Begun(Result<Lsn, bool>, bool),
    /// The shards of frames that were not taken.
    Replicated(Vec<usize>),
}

/// What travels.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Request(Call, Request),
    Answer(Call, Answer),
}

/// What follows when the disk has everything that was before it.
#[derive(Debug)]
pub(crate) enum Landing {
    Own(Frame),
    Replica(Frame),
    Replied(Call, Vec<usize>),
    Begin(Call, Begin),
}

/// What this node is to a shard.
#[derive(Debug)]
pub(crate) enum Role {
    None,
    Primary(Box<PrimaryShard<Work>>),
    Follower(FollowerShard<Arc<Content>>),
}

/// Why no numbers are given out for a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hold {
    Copy(NodeId),
    Keeper,
}

/// A shard in a process.
pub(crate) struct Side {
    pub(crate) role: Role,
    /// The term under which this process found the shard.
    pub(crate) found: Term,
    pub(crate) reign: u64,
    /// Of a primary: everything that it has inherited has come to its assembler.
    pub(crate) decides: bool,
    pub(crate) emptied: bool,
    /// The last record of the replay, until it is known to count.
    pub(crate) replayed: Option<Lsn>,
    pub(crate) held: BTreeSet<Hold>,
    pub(crate) deferred: VecDeque<Waiting>,
    pub(crate) state: ShardState,
    pub(crate) effects: Effects,
    /// Its records up to here count, as this process knows.
    pub(crate) counted: Lsn,
    /// For the checks: the last record that the assembler got.
    pub(crate) applied: Lsn,
}

/// How far an attempt to bring a follower level has come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Ask,
    /// It waits for the own disk, to answer to this last record of the follower.
    Common(Lsn),
    Settle(Lsn),
    CatchUp,
}

#[derive(Debug)]
pub(crate) struct Attach {
    pub(crate) shard: usize,
    pub(crate) due: Due,
    pub(crate) term: Term,
    pub(crate) epoch: usize,
    pub(crate) stage: Stage,
    /// It is not filled, as far as is known.
    pub(crate) goes_on: bool,
    /// The follower's last record, as it has said.
    pub(crate) last: Lsn,
    /// The follower has all behind the first, up to the second.
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    /// All up to there, while no further number is given out.
    pub(crate) until: Option<Lsn>,
    /// The last record of the call that is on its way.
    pub(crate) sent: Lsn,
}

/// What a call is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CallFor {
    /// The feeder of this node: number of its call, and round.
    Feeder(NodeId, u64, u64),
    Attach(u64),
}

#[derive(Debug)]
pub(crate) struct Fed {
    pub(crate) number: u64,
    pub(crate) frames: Vec<Frame>,
    pub(crate) committed: Vec<Notice>,
    pub(crate) answer: Option<Vec<usize>>,
}

/// What goes to a follower together.
pub(crate) type Feed = (Option<Frame>, Vec<Notice>);

/// Frames on their way to a follower node, in order.
#[derive(Debug, Default)]
pub(crate) struct Feeder {
    pub(crate) waiting: VecDeque<Feed>,
    pub(crate) calls: VecDeque<Fed>,
    pub(crate) next: u64,
    pub(crate) sent: usize,
    pub(crate) round: u64,
    pub(crate) lost: bool,
}

/// A beginning beside the writer.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) call: Call,
    pub(crate) begin: Begin,
    /// Void behind the first, up to the second; of a fill, what is known to count.
    pub(crate) work: Option<(Lsn, Lsn, Option<Lsn>)>,
}

/// A shard's open state on its way to replicas that join.
#[derive(Debug)]
pub(crate) struct Fill {
    pub(crate) shard: usize,
    pub(crate) term: Term,
    pub(crate) joined: Vec<(NodeId, u64)>,
    pub(crate) left: VecDeque<Arc<Content>>,
    pub(crate) open: usize,
    /// What is under way must count before anything follows.
    pub(crate) waits: bool,
    pub(crate) has_begun: bool,
}

/// A change that the keeper wants for a shard.
#[derive(Debug)]
pub(crate) struct Keeping {
    pub(crate) wish: Wish,
    /// It was proposed under this number.
    pub(crate) proposed: Option<u64>,
    /// What became of it is not known.
    pub(crate) in_doubt: bool,
    /// When the hold is given up.
    pub(crate) until: u64,
}

/// A process.
pub(crate) struct Process {
    /// The newest map that it has, by its number.
    pub(crate) epoch: usize,
    pub(crate) sides: Vec<Side>,
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) building: bool,
    pub(crate) queue: Vec<Landing>,
    pub(crate) committing: Option<Vec<Landing>>,
    pub(crate) feeders: BTreeMap<NodeId, Feeder>,
    pub(crate) attaches: BTreeMap<u64, Attach>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) fills: BTreeMap<u64, Fill>,
    pub(crate) keeping: BTreeMap<usize, Keeping>,
    pub(crate) calls: BTreeMap<u64, CallFor>,
    /// Beginnings that wait for a newer map.
    pub(crate) early: Vec<(Call, usize, Begin)>,
    /// Numbers of calls, jobs, attachments and fills.
    pub(crate) next: u64,
    pub(crate) ticks: u64,
}

impl Process {
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) life: u64,
    /// Its disk is lost: it does not come back.
    pub(crate) is_gone: bool,
    pub(crate) disk: Vec<ShardLog>,
    pub(crate) process: Option<Box<Process>>,
    pub(crate) paused_until: u64,
    pub(crate) slow_disk_until: u64,
    pub(crate) fails_sync: bool,
    pub(crate) settings_cut_until: u64,
    pub(crate) late_maps_until: u64,
    pub(crate) lost_proposals_until: u64,
    pub(crate) no_memory_until: u64,
    /// When it was heard last by who watches.
    pub(crate) heard: u64,
}

impl Node {
    /// What its process is to a shard, and what its disk has of it; nothing while no process runs.
    pub(crate) fn shard(&mut self, shard: usize) -> Option<(&mut Side, &mut ShardLog)> {
        let process = self.process.as_mut()?;
        Some((&mut process.sides[shard], &mut self.disk[shard]))
    }
}

/// What a decision is about, for the checks: the counted verdicts about a trace, in order.
pub(crate) type Decisions = BTreeMap<TraceId, Vec<(Lsn, VerdictRecord)>>;
