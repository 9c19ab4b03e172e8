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
    /// The first record that waited at the last look.
    waited: Option<Lsn>,
}

impl<W> PrimaryShard<W> {
    /// The shard at the beginning of a term, or of a process that goes on alone: everything up to `last` is on the own
    /// disk.
    pub(crate) fn new(me: NodeId, record: &ShardRecord, last: Lsn, least_copies: usize) -> Self {
        let mut shard = Self {
            term: record.term,
            last,
            local: last,
            commit: if record.nodes().all(|node| node == me) {
                last
            } else {
                Lsn(0)
            },
            copies: Vec::new(),
            least_copies,
            pending: VecDeque::new(),
            waited: None,
        };
        shard.adopt(me, record, least_copies);
        shard
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

    /// A follower was brought up to `lsn`. True when it lacks nothing now and gets records as they are numbered.
    pub(crate) fn attached(&mut self, node: NodeId, lsn: Lsn) -> bool {
        let last = self.last;
        let Some(copy) = self.copy_mut(node) else {
            return false;
        };
        if copy.filling {
            copy.joined = last;
            copy.acked = last;
            (copy.full, copy.asked) = (false, false);
        } else {
            copy.acked = lsn;
        }
        let level = copy.acked == last;
        if level {
            copy.phase = CopyPhase::Live;
        }
        level
    }

    /// A follower did not take records, or could not be arranged with.
    pub(crate) fn detach(&mut self, node: NodeId) {
        if let Some(copy) = self.copy_mut(node) {
            copy.phase = CopyPhase::Detached;
        }
    }

    /// The next follower that something has to be arranged with; it counts as being arranged with from now on.
    pub(crate) fn attach(&mut self) -> Option<(NodeId, bool)> {
        let mut copies = self.copies.iter_mut();
        let copy = copies.find(|copy| copy.phase == CopyPhase::Detached)?;
        copy.phase = CopyPhase::Attaching;
        Some((copy.node, copy.filling))
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
