//! The primary's side of one shard: numbers records, and knows from which on every copy has them. Pure: what is done
//! with a record that every copy has (`W`) is the caller's.

use std::collections::VecDeque;

use smallvec::SmallVec;
use spandrel_model::ids::{Lsn, NodeId, Term};
use spandrel_raft::state::ShardRecord;

/// The followers that get a shard's records as they are numbered, ascending.
pub type LiveSet = SmallVec<[NodeId; 4]>;

/// How far a follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyPhase {
    /// Nothing was arranged with it in this term, or it has refused: [`PrimaryShard::attach`] is due.
    Detached,
    /// It is being brought up to date.
    Attaching,
    /// It gets every record as it is numbered.
    Live,
}

/// A follower of the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Which node.
    pub node: NodeId,
    /// It joins: it has the records behind [`Copy::acked`] at its attachment, and what is sent again, no others.
    pub filling: bool,
    /// How far it is.
    pub phase: CopyPhase,
    /// It has all records up to this one, durably.
    pub acked: Lsn,
    /// Up to where it was told that records are on every copy.
    pub told: Lsn,
    /// Of a filling one: the last record before it began to get them.
    pub joined: Lsn,
    /// Of a filling one: it has whatever the shard held when it joined. It has gone on, or all of that was sent again and
    /// is on every copy.
    pub full: bool,
    /// Of a filling one: it was full once, so it may be in sync by a map that has not come yet.
    pub was_full: bool,
    /// Of a filling one: it is being sent again.
    pub asked: bool,
    /// It holds records that do not count: it can only be filled anew.
    pub unfit: bool,
    /// The attempt to bring it level that is under way or was the last.
    pub attempt: u64,
}

impl Copy {
    /// Whether a record does not count before this copy has it. One that joins is not waited for until it is level, since
    /// it may have a long way to go. Once it was full it always is: whoever asks the settings may find it in sync.
    fn is_waited_for(&self) -> bool {
        !self.filling || self.was_full || self.phase == CopyPhase::Live
    }

    /// Whether it can only be filled, or go on by what it says itself. Once it was full it goes on like one that is in
    /// sync: to empty it could empty one that was let in.
    fn is_filled(&self) -> bool {
        self.filling && (!self.was_full || self.unfit)
    }

    fn becomes_full(&mut self, full: bool) {
        self.full = full;
        self.was_full |= full;
    }
}

/// A follower that something has to be arranged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Which node.
    pub node: NodeId,
    /// It joins, and is filled unless it can go on.
    pub may_be_filled: bool,
    /// The number of the attempt within the term.
    pub attempt: u64,
    /// The last record before the first one that does not count yet: a joining follower needs all behind it.
    pub settled: Lsn,
    /// The last record that was given out or taken over so far. It may be on its way to the own disk.
    pub last: Lsn,
    /// Records up to this one were on every copy by then.
    pub committed: Lsn,
}

/// What a record needs before it counts, and where the shard stands.
///
/// Invariants (see [`PrimaryShard::check`]): `commit <= last`, `commit` never goes back, and every copy that is in sync, or
/// joins and is level or was full, has acknowledged it, as has the own disk; `pending` ascends and lies behind `commit`.
#[derive(Debug)]
pub struct PrimaryShard<W> {
    /// Its term.
    pub term: Term,
    /// The last number given out, of this term or of earlier ones.
    pub last: Lsn,
    /// Durable on the own disk.
    pub local: Lsn,
    /// On every copy.
    pub commit: Lsn,
    /// The followers, by node.
    pub copies: Vec<Copy>,
    /// Copies that a record needs, the own one counted.
    least_copies: usize,
    pending: VecDeque<(Lsn, W)>,
    /// Attempts to bring followers level so far, in this term.
    attempts: u64,
    /// The first record that waited at the last look.
    waited: Option<Lsn>,
    /// The last record that it had when the term began. Whether those before it count is not known until every in-sync copy
    /// has them.
    inherited: Lsn,
}

impl<W> PrimaryShard<W> {
    /// The shard at the beginning of a term, or of a process that goes on alone: everything up to `local` is on the own
    /// disk, the rest up to `last` on its way there.
    pub fn new(
        me: NodeId,
        record: &ShardRecord,
        (local, last): (Lsn, Lsn),
        least_copies: usize,
    ) -> Self {
        let mut shard = Self {
            term: record.term,
            last,
            local,
            commit: if record.nodes().all(|node| node == me) {
                local
            } else {
                Lsn(0)
            },
            copies: Vec::new(),
            least_copies,
            pending: VecDeque::new(),
            attempts: 0,
            waited: None,
            inherited: last,
        };
        shard.adopt(me, record, least_copies);
        shard
    }

    /// The next term, of the same primary. What is on its way counts when the followers of that term have it.
    pub fn next_term(&mut self, me: NodeId, record: &ShardRecord, least_copies: usize) {
        self.term = record.term;
        self.copies.clear();
        self.attempts = 0;
        self.inherited = self.last;
        self.adopt(me, record, least_copies);
    }

    /// Takes over the copies of a record of the same term: those that it does not name are not waited for any more.
    pub fn adopt(&mut self, me: NodeId, record: &ShardRecord, least_copies: usize) {
        debug_assert_eq!(record.term, self.term, "another term is another primary");
        self.least_copies = least_copies;
        let named = record.isr.iter().map(|node| (*node, false));
        let named = named.chain(record.filling.iter().map(|node| (*node, true)));
        let before = std::mem::take(&mut self.copies);
        self.copies = named
            .filter(|(node, _)| *node != me)
            .map(|(node, filling)| {
                let same = |copy: &&Copy| copy.node == node && copy.filling == filling;
                before.iter().find(same).cloned().unwrap_or(Copy {
                    node,
                    filling,
                    phase: CopyPhase::Detached,
                    acked: Lsn(0),
                    told: Lsn(0),
                    joined: Lsn(0),
                    full: false,
                    was_full: false,
                    asked: false,
                    unfit: false,
                    attempt: 0,
                })
            })
            .collect();
        self.copies.sort_by_key(|copy| copy.node);
    }

    /// Whether spans are taken now. A shard with too few copies takes none: nobody could be told that they are durable.
    pub fn takes(&self) -> bool {
        let copies = self.copies.iter().filter(|copy| copy.is_waited_for());
        copies.count() + 1 >= self.least_copies
    }

    /// Gives out the next number, for `work`.
    pub fn number(&mut self, work: W) -> Lsn {
        let first = Lsn::before_term(self.term);
        self.last = self.last.max(first).next();
        self.pending.push_back((self.last, work));
        self.last
    }

    /// Who gets the records that are numbered now.
    pub fn live(&self) -> LiveSet {
        let live = self.copies.iter();
        let live = live.filter(|copy| copy.phase == CopyPhase::Live);
        live.map(|copy| copy.node).collect()
    }

    /// The own disk has all records up to `lsn`.
    pub fn durable_here(&mut self, lsn: Lsn) {
        self.local = self.local.max(lsn);
    }

    /// Everything that it had when the term began is on the own disk: whoever decides knows of every verdict among it.
    pub fn has_landed(&self) -> bool {
        self.local >= self.inherited
    }

    /// All that it had when the term began counts, and spans are taken.
    pub fn is_settled(&self) -> bool {
        self.takes() && self.commit >= self.inherited
    }

    /// A follower that gets records as they are numbered has all of them up to `lsn`.
    pub fn acked(&mut self, node: NodeId, lsn: Lsn) {
        let live = |copy: &&mut Copy| copy.phase == CopyPhase::Live;
        if let Some(copy) = self.copy_mut(node).filter(live) {
            copy.acked = copy.acked.max(lsn);
        }
    }

    /// A follower was brought up to `lsn`, and has all records from the one behind `from` on; when `went_on`, those
    /// before too. True when it lacks nothing now and gets records as they are numbered.
    pub fn attached(&mut self, node: NodeId, from: Lsn, lsn: Lsn, went_on: bool) -> bool {
        let last = self.last;
        let Some(copy) = self.copy_mut(node) else {
            return false;
        };
        copy.joined = from;
        copy.acked = lsn;
        let level = copy.acked == last;
        if level {
            copy.phase = CopyPhase::Live;
            copy.becomes_full(copy.filling && went_on);
            // It passes over what it is told before it has begun.
            copy.told = Lsn(0);
        }
        level
    }

    /// Whether this is the attempt to bring a follower level that is under way.
    pub fn is_attaching(&self, node: NodeId, attempt: u64) -> bool {
        let mut copies = self.copies.iter();
        copies.any(|copy| {
            copy.node == node && copy.attempt == attempt && copy.phase == CopyPhase::Attaching
        })
    }

    /// A follower did not take records, or could not be arranged with.
    pub fn detach(&mut self, node: NodeId) {
        if let Some(copy) = self.copy_mut(node) {
            copy.phase = CopyPhase::Detached;
            (copy.full, copy.asked) = (false, false);
        }
    }

    /// The next follower that something has to be arranged with; it counts as being arranged with from now on. A joining
    /// one waits until all that was inherited is on the in-sync copies: it is told that this is settled. `may_be_let_in`:
    /// the keeper may have proposed it, and one that was full is left alone.
    pub fn attach(&mut self, may_be_let_in: bool) -> Option<Due> {
        let in_sync = self.copies.iter().filter(|copy| !copy.filling);
        let in_sync = in_sync.map(|copy| copy.acked).fold(self.local, Lsn::min);
        let fills = in_sync >= self.inherited;
        let (last, committed) = (self.last, self.commit);
        let first = self.pending.front();
        let settled = first.map_or(last, |(lsn, _)| Lsn(lsn.0.saturating_sub(1)));
        let mut copies = self.copies.iter_mut();
        let is_due = |copy: &&mut Copy| {
            let waits = match copy.is_filled() {
                true => !fills || (copy.was_full && may_be_let_in),
                false => false,
            };
            copy.phase == CopyPhase::Detached && !waits
        };
        let copy = copies.find(is_due)?;
        copy.phase = CopyPhase::Attaching;
        self.attempts += 1;
        copy.attempt = self.attempts;
        Some(Due {
            node: copy.node,
            may_be_filled: copy.is_filled(),
            attempt: copy.attempt,
            settled,
            last,
            committed,
        })
    }

    /// Joining followers whose time has come to be sent again what the shard held when they joined, and their attempts.
    pub fn ask_again(&mut self) -> Vec<(NodeId, u64)> {
        let commit = self.commit;
        let mut joined = Vec::new();
        for copy in &mut self.copies {
            let due = copy.filling && copy.phase == CopyPhase::Live && !copy.full && !copy.asked;
            if due && copy.joined <= commit {
                copy.asked = true;
                joined.push((copy.node, copy.attempt));
            }
        }
        joined
    }

    /// What the shard held was sent again, or (`done`) not, to followers that have joined in these attempts.
    pub fn sent_again(&mut self, joined: &[(NodeId, u64)], done: bool) {
        for copy in &mut self.copies {
            // One that began anew meanwhile has only the later part.
            if copy.phase == CopyPhase::Live && joined.contains(&(copy.node, copy.attempt)) {
                copy.asked = done;
                copy.becomes_full(done);
            }
        }
    }

    /// Records that have come to be on every copy since the last call, in order.
    pub fn advance(&mut self) -> Vec<(Lsn, W)> {
        let copies = self.copies.iter().filter(|copy| copy.is_waited_for());
        let reached = copies.map(|copy| copy.acked).fold(self.local, Lsn::min);
        if self.takes() {
            self.commit = self.commit.max(reached);
        }
        let ready = self.pending.iter();
        let ready = ready.take_while(|(lsn, _)| *lsn <= self.commit).count();
        self.pending.drain(..ready).collect()
    }

    /// Takes back what waits, when the term has ended: whether it counts is for the next primary to say.
    pub fn give_up(&mut self) -> Vec<(Lsn, W)> {
        self.pending.drain(..).collect()
    }

    /// Whether the first record that waits is the one of the last look.
    pub fn has_stalled(&mut self) -> bool {
        let waits = self.pending.front().map(|(lsn, _)| *lsn);
        let before = std::mem::replace(&mut self.waited, waits);
        waits.is_some() && waits == before
    }

    /// Nothing is on its way.
    pub fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether a joining follower has everything, and gets records as they are numbered.
    pub fn is_full(&self, node: NodeId) -> bool {
        let mut copies = self.copies.iter();
        copies.any(|copy| copy.node == node && copy.full)
    }

    /// Whether a record needs one of these nodes before it counts.
    pub fn needs_any(&self, nodes: &[NodeId]) -> bool {
        self.copies.iter().any(|copy| nodes.contains(&copy.node))
    }

    /// A follower.
    pub fn copy_mut(&mut self, node: NodeId) -> Option<&mut Copy> {
        self.copies.iter_mut().find(|copy| copy.node == node)
    }

    /// Asserts the invariants.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        assert!(
            self.commit <= self.last,
            "a record counts that was not given out"
        );
        let mut before = self.commit;
        for (lsn, _) in &self.pending {
            assert!(*lsn > before, "pending records out of order");
            before = *lsn;
        }
    }
}
