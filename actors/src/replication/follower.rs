//! A follower's side of one shard: which records it takes, and which of them count. Pure: what is done with a record
//! that counts (`R`) is the caller's.

use std::collections::VecDeque;

use spandrel_model::ids::{Lsn, NodeId, Term};

/// What becomes of records that are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// They follow what is here: append them.
    Next,
    /// They are here already, or on their way to the disk.
    Known,
    /// They are not taken.
    Refused(&'static str),
}

/// Where a follower stands within its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// The primary of the term has not begun with it.
    NotBegun,
    /// It takes what follows its last record.
    Follows,
}

/// Stands for the last record that an assembler has got when that is not known.
const DOUBTFUL: Lsn = Lsn(u64::MAX);

/// A follower of a shard, in a term.
///
/// Invariants: `commit` never goes back; a record in `pending` is durable here and does not count yet; `pending`
/// ascends; `applied <= durable <= last` while it follows.
#[derive(Debug)]
pub struct FollowerShard<R> {
    /// Its term.
    pub term: Term,
    /// Who leads it.
    pub primary: NodeId,
    /// The last record that was taken, durable or on its way to the disk.
    pub last: Lsn,
    /// The last record that is durable here.
    durable: Lsn,
    /// The last record that the shard's assembler has or will have got.
    applied: Lsn,
    /// Up to here records are on every copy.
    pub commit: Lsn,
    stand: Stand,
    /// The newest attempt of the primary to begin in this term.
    attempt: u64,
    pending: VecDeque<(Lsn, R)>,
}

impl<R> FollowerShard<R> {
    /// A follower whose disk holds records up to `last`, all of which its assembler has.
    pub fn new(term: Term, primary: NodeId, last: Lsn) -> Self {
        Self {
            term,
            primary,
            last,
            durable: last,
            applied: last,
            commit: Lsn(0),
            stand: Stand::NotBegun,
            attempt: 0,
            pending: VecDeque::new(),
        }
    }

    /// Another term, or another primary of it: what is pending stays until that primary says what counts.
    pub fn adopt(&mut self, term: Term, primary: NodeId) {
        if (term, primary) != (self.term, self.primary) {
            (self.term, self.primary) = (term, primary);
            self.stand = Stand::NotBegun;
            self.attempt = 0;
        }
    }

    /// The primary begins, or asks how far the follower is: it takes nothing until [`Self::go_on`] or [`Self::fill`] of
    /// this attempt. False when it is a late one, or not its primary's.
    pub fn begin(&mut self, from: NodeId, term: Term, attempt: u64) -> bool {
        let is_its = (term, from) == (self.term, self.primary) && attempt >= self.attempt;
        if is_its {
            self.stand = Stand::NotBegun;
            self.attempt = attempt;
        }
        is_its
    }

    /// Whether this is the attempt that began last.
    pub fn is_of(&self, from: NodeId, term: Term, attempt: u64) -> bool {
        (term, from, attempt) == (self.term, self.primary, self.attempt)
    }

    /// Whether it can go on behind `keep`: not when its assembler has got records behind it, which do not count.
    pub fn can_go_on(&self, keep: Lsn) -> bool {
        self.applied <= keep && keep <= self.last
    }

    /// Its assembler may have got too little or too much of what is here: it cannot go on, only be filled.
    pub fn doubt(&mut self) {
        self.applied = DOUBTFUL;
    }

    /// Whether its assembler has got, or will get, just what is here.
    pub fn is_whole(&self) -> bool {
        self.applied != DOUBTFUL
    }

    /// It led the shard before, and these records did not count by then: it can only be filled.
    pub fn give_up(&mut self, records: impl Iterator<Item = (Lsn, R)>) {
        self.pending = records.collect();
        if !self.pending.is_empty() {
            self.doubt();
        }
    }

    /// Before it is filled: of the records that its assembler did not get, those up to `counted`.
    pub fn settle(&mut self, counted: Lsn) -> Vec<(Lsn, R)> {
        let settled = self.pending.iter();
        let settled = settled.take_while(|(lsn, _)| *lsn <= counted).count();
        self.pending.drain(..settled).collect()
    }

    /// Forgets the records behind `keep`, which do not count.
    pub fn cut(&mut self, keep: Lsn) {
        self.last = self.last.min(keep);
        self.durable = self.durable.min(keep);
        self.pending.retain(|(lsn, _)| *lsn <= keep);
    }

    /// Goes on behind `keep`: records behind it do not count and are forgotten.
    pub fn go_on(&mut self, keep: Lsn) {
        self.cut(keep);
        self.stand = Stand::Follows;
    }

    /// Starts anew behind `from`: what comes before is sent again later. Not with whatever comes first, which may be a late
    /// frame of before the beginning, with others missing between it and the next one.
    pub fn fill(&mut self, from: Lsn) {
        self.pending.clear();
        self.applied = Lsn(0);
        self.last = from;
        self.stand = Stand::Follows;
    }

    /// Whether records `first` to `last` would be taken from `from`, which sends them as it numbers them, or to bring the
    /// follower level in an attempt of this term.
    pub fn offer(
        &self,
        from: NodeId,
        catch_up: Option<(Term, u64)>,
        first: Lsn,
        last: Lsn,
    ) -> Offer {
        if from != self.primary {
            return Offer::Refused("another node is the primary");
        }
        match catch_up {
            Some(attempt) if attempt != (self.term, self.attempt) => {
                return Offer::Refused("another attempt has begun since");
            }
            None if first.term() != self.term => {
                return Offer::Refused("another term has begun since");
            }
            _ => {}
        }
        match self.stand {
            Stand::NotBegun => Offer::Refused("the primary has not begun the term here"),
            Stand::Follows if last <= self.last => Offer::Known,
            Stand::Follows if !first.can_follow(self.last) => {
                Offer::Refused("records before these are missing")
            }
            Stand::Follows => Offer::Next,
        }
    }

    /// Takes records up to `last` that were offered.
    pub fn take(&mut self, last: Lsn) {
        self.stand = Stand::Follows;
        self.last = self.last.max(last);
    }

    /// A record is durable. One that was durable before, or does not count any more, is passed over.
    pub fn durable(&mut self, lsn: Lsn, record: R) {
        if lsn > self.durable && lsn <= self.last {
            self.durable = lsn;
            self.pending.push_back((lsn, record));
        }
    }

    /// The primary of `term` says that records up to `lsn` are on every copy.
    pub fn committed(&mut self, from: NodeId, term: Term, lsn: Lsn) {
        if from == self.primary && term == self.term && self.stand == Stand::Follows {
            self.commit = self.commit.max(lsn);
        }
    }

    /// Records that count and were not returned before, in order.
    pub fn counting(&mut self) -> Vec<(Lsn, R)> {
        let ready = self.pending.iter();
        let ready = ready.take_while(|(lsn, _)| *lsn <= self.commit).count();
        let ready: Vec<(Lsn, R)> = self.pending.drain(..ready).collect();
        if let Some((lsn, _)) = ready.last() {
            self.applied = *lsn;
        }
        ready
    }

    /// The last record that is durable here.
    pub fn durable_up_to(&self) -> Lsn {
        self.durable
    }

    /// Becomes the primary: everything that is here counts from now on.
    pub fn into_pending(self) -> VecDeque<(Lsn, R)> {
        self.pending
    }
}
