//! The primary's side of one shard: numbers records, and knows from which on every copy has them. Pure: what is done
//! with a record that every copy has (`W`) is the caller's.

use std::collections::VecDeque;

use smallvec::SmallVec;
use spandrel_model::ids::{Lsn, NodeId, Term};
use spandrel_raft::state::ShardRecord;

/// The followers that get a shard's records as they are numbered, ascending.
pub(crate) type LiveSet = SmallVec<[NodeId; 4]>;

/// How far a follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyPhase {
    /// Nothing was arranged with it in this term, or it has refused: [`PrimaryShard::attach`] is due.
    Detached,
    /// It is being brought up to date.
    Attaching,
    /// It gets every record as it is numbered.
    Live,
}

/// A follower of the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) node: NodeId,
    /// It joins: it has the records behind [`Copy::acked`] at its attachment, and what is sent again, no others.
    pub(crate) filling: bool,
    pub(crate) phase: CopyPhase,
    /// It has all records up to this one, durably.
    pub(crate) acked: Lsn,
    /// Up to where it was told that records are on every copy.
    pub(crate) told: Lsn,
    /// Of a filling one: the last record before it began to get them.
    pub(crate) joined: Lsn,
    /// Of a filling one: whatever the shard held when it joined was sent again and is on every copy.
    pub(crate) full: bool,
    /// Of a filling one: it is being sent again.
    pub(crate) asked: bool,
    /// It holds records that do not count: it can only be filled anew.
    pub(crate) unfit: bool,
    /// The attempt to bring it level that is under way or was the last.
    pub(crate) attempt: u64,
}

/// A follower that something has to be arranged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) node: NodeId,
    pub(crate) filling: bool,
    pub(crate) attempt: u64,
    /// The last record before the first one that does not count yet: a joining follower needs all behind it.
    pub(crate) settled: Lsn,
    /// The last record that was given out or taken over so far. It may be on its way to the own disk.
    pub(crate) last: Lsn,
}

/// What a record needs before it counts, and where the shard stands.
///
/// Invariants (see [`PrimaryShard::check`]): `commit <= last`, `commit` never goes back, and every copy that is in the
/// replicated record has acknowledged it, as has the own disk; `pending` ascends and lies behind `commit`.
#[derive(Debug)]
pub(crate) struct PrimaryShard<W> {
    pub(crate) term: Term,
    /// The last number given out, of this term or of earlier ones.
    pub(crate) last: Lsn,
    /// Durable on the own disk.
    pub(crate) local: Lsn,
    /// On every copy.
    pub(crate) commit: Lsn,
    pub(crate) copies: Vec<Copy>,
    /// Copies that a record needs, the own one counted.
    least_copies: usize,
    pending: VecDeque<(Lsn, W)>,
    /// Attempts to bring followers level so far, in this term.
    attempts: u64,
    /// The first record that waited at the last look.
    waited: Option<Lsn>,
}

impl<W> PrimaryShard<W> {
    /// The shard at the beginning of a term, or of a process that goes on alone: everything up to `local` is on the own
    /// disk, the rest up to `last` on its way there.
    pub(crate) fn new(
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
        };
        shard.adopt(me, record, least_copies);
        shard
    }

    /// The next term, of the same primary. What is on its way counts when the followers of that term have it.
    pub(crate) fn next_term(&mut self, me: NodeId, record: &ShardRecord, least_copies: usize) {
        self.term = record.term;
        self.copies.clear();
        self.attempts = 0;
        self.adopt(me, record, least_copies);
    }

    /// Takes over the copies of a record of the same term: those that it does not name are not waited for any more.
    pub(crate) fn adopt(&mut self, me: NodeId, record: &ShardRecord, least_copies: usize) {
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
                    asked: false,
                    unfit: false,
                    attempt: 0,
                })
            })
            .collect();
        self.copies.sort_by_key(|copy| copy.node);
    }

    /// Whether spans are taken now. A shard with too few copies takes none: nobody could be told that they are durable.
    pub(crate) fn takes(&self) -> bool {
        self.copies.len() + 1 >= self.least_copies
    }

    /// Gives out the next number, for `work`.
    pub(crate) fn number(&mut self, work: W) -> Lsn {
        let first = Lsn::before_term(self.term);
        self.last = self.last.max(first).next();
        self.pending.push_back((self.last, work));
        self.last
    }

    /// Who gets the records that are numbered now.
    pub(crate) fn live(&self) -> LiveSet {
        let live = self.copies.iter();
        let live = live.filter(|copy| copy.phase == CopyPhase::Live);
        live.map(|copy| copy.node).collect()
    }

    /// The own disk has all records up to `lsn`.
    pub(crate) fn durable_here(&mut self, lsn: Lsn) {
        self.local = self.local.max(lsn);
    }

    /// A follower that gets records as they are numbered has all of them up to `lsn`.
    pub(crate) fn acked(&mut self, node: NodeId, lsn: Lsn) {
        let live = |copy: &&mut Copy| copy.phase == CopyPhase::Live;
        if let Some(copy) = self.copy_mut(node).filter(live) {
            copy.acked = copy.acked.max(lsn);
        }
    }

    /// A follower was brought up to `lsn`, and has all records from the one behind `from` on. True when it lacks nothing
    /// now and gets records as they are numbered.
    pub(crate) fn attached(&mut self, node: NodeId, from: Lsn, lsn: Lsn) -> bool {
        let last = self.last;
        let Some(copy) = self.copy_mut(node) else {
            return false;
        };
        copy.joined = from;
        copy.acked = lsn;
        let level = copy.acked == last;
        if level {
            copy.phase = CopyPhase::Live;
            // It passes over what it is told before it has begun.
            copy.told = Lsn(0);
        }
        level
    }

    /// Whether this is the attempt to bring a follower level that is under way.
    pub(crate) fn is_attaching(&self, node: NodeId, attempt: u64) -> bool {
        let mut copies = self.copies.iter();
        copies.any(|copy| {
            copy.node == node && copy.attempt == attempt && copy.phase == CopyPhase::Attaching
        })
    }

    /// A follower did not take records, or could not be arranged with.
    pub(crate) fn detach(&mut self, node: NodeId) {
        if let Some(copy) = self.copy_mut(node) {
            copy.phase = CopyPhase::Detached;
            (copy.full, copy.asked) = (false, false);
        }
    }

    /// The next follower that something has to be arranged with; it counts as being arranged with from now on.
    pub(crate) fn attach(&mut self) -> Option<Due> {
        let last = self.last;
        let first = self.pending.front();
        let settled = first.map_or(last, |(lsn, _)| Lsn(lsn.0.saturating_sub(1)));
        let mut copies = self.copies.iter_mut();
        let copy = copies.find(|copy| copy.phase == CopyPhase::Detached)?;
        copy.phase = CopyPhase::Attaching;
        self.attempts += 1;
        copy.attempt = self.attempts;
        Some(Due {
            node: copy.node,
            filling: copy.filling,
            attempt: copy.attempt,
            settled,
            last,
        })
    }

    /// Joining followers whose time has come to be sent again what the shard held when they joined, and their attempts.
    pub(crate) fn ask_again(&mut self) -> Vec<(NodeId, u64)> {
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
    pub(crate) fn sent_again(&mut self, joined: &[(NodeId, u64)], done: bool) {
        for copy in &mut self.copies {
            // One that began anew meanwhile has only the later part.
            if copy.phase == CopyPhase::Live && joined.contains(&(copy.node, copy.attempt)) {
                (copy.asked, copy.full) = (done, done);
            }
        }
    }

    /// Records that have come to be on every copy since the last call, in order.
    pub(crate) fn advance(&mut self) -> Vec<(Lsn, W)> {
        let copies = self.copies.iter().map(|copy| copy.acked);
        let reached = copies.fold(self.local, Lsn::min);
        if self.takes() {
            self.commit = self.commit.max(reached);
        }
        let ready = self.pending.iter();
        let ready = ready.take_while(|(lsn, _)| *lsn <= self.commit).count();
        self.pending.drain(..ready).collect()
    }

    /// Takes back what waits, when the term has ended: whether it counts is for the next primary to say.
    pub(crate) fn give_up(&mut self) -> Vec<(Lsn, W)> {
        self.pending.drain(..).collect()
    }

    /// Whether the first record that waits is the one of the last look.
    pub(crate) fn has_stalled(&mut self) -> bool {
        let waits = self.pending.front().map(|(lsn, _)| *lsn);
        let before = std::mem::replace(&mut self.waited, waits);
        waits.is_some() && waits == before
    }

    /// Nothing is on its way.
    pub(crate) fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn copy_mut(&mut self, node: NodeId) -> Option<&mut Copy> {
        self.copies.iter_mut().find(|copy| copy.node == node)
    }

    /// Asserts the invariants.
    ///
    /// # Panics
    /// When one is broken.
    pub(crate) fn check(&self) {
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
