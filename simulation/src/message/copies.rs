//! The copies of the shards that a node leads: feeders and attachments (production: `replication/feeder.rs`, `attach.rs`,
//! `writer/copies.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use spandrel_actors::replication::CopyPhase;
use spandrel_model::ids::{Lsn, NodeId, Term};

use super::node::{
    Answer, Attach, Begin, Call, CallFor, Fed, Frame, Hold, Request, Role, Sent, Stage,
};
use super::world::{Event, MS, World};

/// Calls of a feeder that are on their way at once.
const FEEDER_CALLS: usize = 4;
/// Virtual milliseconds after which nobody waits for an answer any more.
const CALL_MS: u64 = 120;
/// Records of a catch-up in one call.
const CATCH_UP_RECORDS: usize = 4;
/// Records that a replica that joins may lack to go on; one that lacks as many is filled.
const GO_ON_RECORDS: usize = 16;

impl World {
    fn call(&mut self, node: usize, to: NodeId, purpose: CallFor, request: Request) {
        let Some(target) = self.nodes.iter().position(|other| other.id == to) else {
            return;
        };
        let life = self.nodes[node].life;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let number = process.number();
        process.calls.insert(number, purpose);
        let call = Call { node, life, number };
        self.after(CALL_MS * MS, Event::Expired(node, life, number));
        self.transmit(node, target, super::node::Message::Request(call, request));
    }

    /// Nobody waits for an answer any more.
    pub(crate) fn expired(&mut self, node: usize, number: u64) {
        self.answered(node, number, None);
    }

    pub(crate) fn answered(&mut self, node: usize, number: u64, answer: Option<Answer>) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        match process.calls.remove(&number) {
            None => {}
            Some(CallFor::Feeder(to, fed, round)) => self.fed(node, to, fed, round, answer),
            Some(CallFor::Attach(attach)) => self.attach_answered(node, attach, answer),
        }
    }

    // ---- feeders ----

    /// How far shards have come since a follower was last told.
    fn notices(&mut self, node: usize, to: NodeId) -> Vec<(usize, Term, Lsn)> {
        let mut notices = Vec::new();
        let process = self.nodes[node].process.iter_mut();
        for (shard, side) in process.flat_map(|process| process.sides.iter_mut().enumerate()) {
            let Role::Primary(primary) = &mut side.role else {
                continue;
            };
            let (term, lsn) = (primary.term, primary.commit);
            if let Some(copy) = primary.copy_mut(to)
                && copy.phase == CopyPhase::Live
                && copy.told < lsn
            {
                copy.told = lsn;
                notices.push((shard, term, lsn));
            }
        }
        notices
    }

    pub(crate) fn tell_followers(&mut self, node: usize) {
        let process = self.nodes[node].process.as_ref();
        let followers: Vec<NodeId> = process
            .map(|process| process.feeders.keys().copied().collect())
            .unwrap_or_default();
        for to in followers {
            self.feed(node, to, None);
        }
    }

    pub(crate) fn feed(&mut self, node: usize, to: NodeId, frame: Option<Frame>) {
        let committed = self.notices(node, to);
        let process = self.nodes[node].process.as_mut();
        if let Some(feeder) = process.and_then(|process| process.feeders.get_mut(&to)) {
            if frame.is_some() || !committed.is_empty() {
                feeder.waiting.push_back((frame, committed));
            }
            self.run_feeder(node, to);
        }
    }

    fn run_feeder(&mut self, node: usize, to: NodeId) {
        loop {
            let process = self.nodes[node].process.as_mut();
            let Some(feeder) = process.and_then(|process| process.feeders.get_mut(&to)) else {
                return;
            };
            if feeder.lost || feeder.sent >= FEEDER_CALLS {
                return;
            }
            if feeder.sent == feeder.calls.len() {
                if feeder.waiting.is_empty() {
                    return;
                }
                let (mut frames, mut committed) = (Vec::new(), Vec::new());
                for (frame, notices) in feeder.waiting.drain(..) {
                    frames.extend(frame);
                    committed.extend(notices);
                }
                feeder.calls.push_back(Fed {
                    number: feeder.next,
                    frames,
                    committed,
                    answer: None,
                });
                feeder.next += 1;
            }
            let fed = &feeder.calls[feeder.sent];
            feeder.sent += 1;
            if fed.answer.is_some() {
                continue;
            }
            let purpose = CallFor::Feeder(to, fed.number, feeder.round);
            let request = Request::Replicate {
                catch_up: None,
                frames: fed.frames.clone(),
                committed: fed.committed.clone(),
            };
            self.call(node, to, purpose, request);
        }
    }

    fn fed(&mut self, node: usize, to: NodeId, number: u64, round: u64, answer: Option<Answer>) {
        let life = self.nodes[node].life;
        let process = self.nodes[node].process.as_mut();
        let Some(feeder) = process.and_then(|process| process.feeders.get_mut(&to)) else {
            return;
        };
        match answer {
            Some(Answer::Replicated(refused)) => {
                let call = feeder.calls.iter_mut().find(|call| call.number == number);
                if let Some(call) = call {
                    call.answer = Some(refused);
                }
            }
            _ if round == feeder.round && !feeder.lost => {
                feeder.lost = true;
                self.after(20 * MS, Event::FeedAgain(node, life, to, round));
                return;
            }
            _ => {}
        }
        let mut done = Vec::new();
        while feeder
            .calls
            .front()
            .is_some_and(|call| call.answer.is_some())
        {
            if let Some(call) = feeder.calls.pop_front() {
                feeder.sent = feeder.sent.saturating_sub(1);
                done.push(call);
            }
        }
        let mut touched = BTreeSet::new();
        for fed in done {
            let refused = fed.answer.unwrap_or_default();
            for frame in &fed.frames {
                let is_refused = frame.iter().any(|sent| refused.contains(&sent.shard));
                self.fed_frame(node, to, frame, is_refused);
                touched.extend(frame.iter().map(|sent| sent.shard));
            }
        }
        for shard in touched {
            self.advance(node, shard);
        }
        self.run_feeder(node, to);
    }

    fn fed_frame(&mut self, node: usize, to: NodeId, frame: &[Sent], is_refused: bool) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        for sent in frame {
            let Role::Primary(primary) = &mut process.sides[sent.shard].role else {
                continue;
            };
            let copy = primary.copy_mut(to);
            let is_live = copy.is_some_and(|copy| copy.phase == CopyPhase::Live);
            match is_refused {
                true if is_live => primary.detach(to),
                true => {}
                false => primary.acked(to, sent.lsn),
            }
        }
    }

    pub(crate) fn feed_again(&mut self, node: usize, to: NodeId, round: u64) {
        let process = self.nodes[node].process.as_mut();
        let Some(feeder) = process.and_then(|process| process.feeders.get_mut(&to)) else {
            return;
        };
        if feeder.round == round {
            feeder.round += 1;
            feeder.lost = false;
            feeder.sent = 0;
        }
        self.run_feeder(node, to);
    }

    // ---- attachments ----

    pub(crate) fn attach_copies(&mut self, node: usize) {
        let mut begun = Vec::new();
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        for shard in 0..process.sides.len() {
            let may_be_let_in = process.sides[shard].held.contains(&Hold::Keeper);
            while let Role::Primary(primary) = &mut process.sides[shard].role
                && let Some(due) = primary.attach(may_be_let_in)
            {
                let term = primary.term;
                let number = process.number();
                let attach = Attach {
                    shard,
                    due,
                    term,
                    epoch: process.epoch,
                    stage: Stage::Ask,
                    goes_on: !due.may_be_filled,
                    last: Lsn(0),
                    from: Lsn(0),
                    to: Lsn(0),
                    until: None,
                    sent: Lsn(0),
                };
                process.attaches.insert(number, attach);
                begun.push(number);
            }
        }
        for number in begun {
            self.begin_call(node, number, None);
        }
    }

    fn begin_call(&mut self, node: usize, number: u64, keep: Option<Lsn>) {
        let process = self.nodes[node].process.as_ref();
        let Some(attach) = process.and_then(|process| process.attaches.get(&number)) else {
            return;
        };
        let begin = Begin {
            shard: attach.shard,
            term: attach.term,
            attempt: attach.due.attempt,
            keep,
            fill: !attach.goes_on,
            settled: attach.due.settled,
        };
        let (to, epoch) = (attach.due.node, attach.epoch);
        self.call(
            node,
            to,
            CallFor::Attach(number),
            Request::Begin(epoch, begin),
        );
    }

    /// Goes on with an attachment that waited for the own disk.
    pub(crate) fn step_attach(&mut self, node: usize, number: u64) {
        let process = self.nodes[node].process.as_ref();
        let Some(attach) = process.and_then(|process| process.attaches.get(&number)) else {
            return;
        };
        match attach.stage {
            Stage::Common(last) => self.common(node, number, last),
            Stage::CatchUp => self.catch_up(node, number),
            Stage::Ask | Stage::Settle(_) => {}
        }
    }

    fn attach_answered(&mut self, node: usize, number: u64, answer: Option<Answer>) {
        let process = self.nodes[node].process.as_mut();
        let Some(attach) = process.and_then(|process| process.attaches.get_mut(&number)) else {
            return;
        };
        match (attach.stage, answer) {
            (Stage::Ask, Some(Answer::Begun(Ok(last), whole))) => {
                attach.goes_on |= whole;
                attach.last = last;
                self.common(node, number, last);
            }
            (Stage::Settle(keep), Some(Answer::Begun(Ok(last), _))) if last < keep => {
                attach.last = last;
                self.common(node, number, last);
            }
            // It holds records that do not count.
            (Stage::Settle(_), Some(Answer::Begun(Err(true), _)))
                if attach.due.may_be_filled && attach.goes_on =>
            {
                attach.goes_on = false;
                let last = attach.last;
                self.common(node, number, last);
            }
            (Stage::Settle(_), Some(Answer::Begun(Ok(last), _))) => {
                (attach.from, attach.to) = (last, last);
                attach.stage = Stage::CatchUp;
                self.catch_up(node, number);
            }
            (Stage::CatchUp, Some(Answer::Replicated(refused))) if refused.is_empty() => {
                attach.to = attach.sent;
                self.catch_up(node, number);
            }
            (_, Some(Answer::Begun(Err(unfit), _))) => self.fail_attach(node, number, unfit),
            _ => self.fail_attach(node, number, false),
        }
    }

    /// It is not tried again at once.
    fn fail_attach(&mut self, node: usize, number: u64, unfit: bool) {
        let life = self.nodes[node].life;
        let process = self.nodes[node].process.as_ref();
        let resumes = process
            .and_then(|process| process.attaches.get(&number))
            .is_some_and(|attach| attach.until.is_some());
        match resumes {
            true => self.end_attach(node, number, Err(unfit)),
            false => self.soon(10 * MS, 40 * MS, Event::Detached(node, life, number, unfit)),
        }
    }

    /// Answers to the follower's last record: the last one that both hold.
    fn common(&mut self, node: usize, number: u64, last: Lsn) {
        let life = self.nodes[node].life;
        let super::node::Node { disk, process, .. } = &mut self.nodes[node];
        let Some(attach) = process
            .as_mut()
            .and_then(|process| process.attaches.get_mut(&number))
        else {
            return;
        };
        let log = &disk[attach.shard];
        if last > Lsn(0) && log.last() < attach.due.last {
            // What is on its way to the disk here is not lacking here.
            attach.stage = Stage::Common(last);
            return self.after(MS, Event::AttachAgain(node, life, number));
        }
        let floor = match last {
            Lsn(0) => None,
            last => log.floor(last),
        };
        // One that joins goes on where this node lacks nothing behind, and a fill is not less.
        let is_worth_it = floor.is_some_and(|keep| {
            keep >= log.start && log.behind(keep).take(GO_ON_RECORDS).count() < GO_ON_RECORDS
        });
        attach.goes_on &= !attach.due.may_be_filled || is_worth_it;
        let begins_at_0 = last == Lsn(0) || attach.due.may_be_filled;
        let keep = floor.or_else(|| begins_at_0.then_some(Lsn(0)));
        match keep {
            Some(keep) => {
                attach.stage = Stage::Settle(keep);
                self.begin_call(node, number, Some(keep));
            }
            None => self.fail_attach(node, number, true),
        }
    }

    fn catch_up(&mut self, node: usize, number: u64) {
        let life = self.nodes[node].life;
        let super::node::Node { disk, process, .. } = &mut self.nodes[node];
        let Some(attach) = process
            .as_mut()
            .and_then(|process| process.attaches.get_mut(&number))
        else {
            return;
        };
        let log = &disk[attach.shard];
        let target = attach.until.unwrap_or_else(|| log.last_valid());
        if attach.to >= target {
            return self.end_attach(node, number, Ok(()));
        }
        if log.last_valid() < target {
            return self.after(MS, Event::AttachAgain(node, life, number));
        }
        let shard = attach.shard;
        let records = log.behind(attach.to).take(CATCH_UP_RECORDS);
        let records: Vec<Sent> = records
            .map(|(lsn, content)| Sent {
                shard,
                lsn,
                content: Arc::clone(content),
            })
            .collect();
        attach.sent = records.last().map_or(attach.to, |sent| sent.lsn);
        let (to, catch_up) = (attach.due.node, Some((attach.term, attach.due.attempt)));
        let request = Request::Replicate {
            catch_up,
            frames: vec![Arc::new(records)],
            committed: vec![(shard, attach.term, attach.due.committed)],
        };
        self.call(node, to, CallFor::Attach(number), request);
    }

    pub(crate) fn end_attach(&mut self, node: usize, number: u64, outcome: Result<(), bool>) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let Some(mut attach) = process.attaches.remove(&number) else {
            return;
        };
        let (shard, to, attempt) = (attach.shard, attach.due.node, attach.due.attempt);
        let side = &mut process.sides[shard];
        let hold = Hold::Copy(to);
        let mut released = true;
        let mut level = false;
        if let Role::Primary(primary) = &mut side.role
            && primary.term == attach.term
            && primary.is_attaching(to, attempt)
        {
            match outcome {
                Err(unfit) => {
                    primary.detach(to);
                    if let Some(copy) = primary.copy_mut(to) {
                        copy.unfit |= unfit;
                    }
                }
                Ok(()) if primary.attached(to, attach.from, attach.to, attach.goes_on) => {
                    level = true;
                }
                Ok(()) => {
                    attach.until = Some(primary.last);
                    (attach.due.last, attach.due.committed) = (primary.last, primary.commit);
                    released = false;
                    side.held.insert(hold);
                    process.attaches.insert(number, attach);
                }
            }
        }
        if released {
            let side = &mut process.sides[shard];
            side.held.remove(&hold);
            self.undefer(node, shard);
        } else {
            self.catch_up(node, number);
        }
        if level {
            self.advance(node, shard);
            self.attach_next(node, shard);
        }
    }
}
