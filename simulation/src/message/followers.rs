//! What a node does with what primaries send it (production: `replication/intake.rs` and `writer/followers.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use spandrel_actors::replication::Offer;
use spandrel_model::ids::{Lsn, NodeId, Term};

use super::node::{Answer, Begin, Call, Frame, Job, Landing, Message, Node, Request, Role};
use super::process::{page, set_mark};
use super::world::{Event, MS, World};

impl World {
    pub(crate) fn deliver(&mut self, node: usize, message: Message) {
        match message {
            Message::Answer(call, answer) => {
                if call.life == self.nodes[node].life {
                    self.answered(node, call.number, Some(answer));
                }
            }
            Message::Request(call, Request::Begin(epoch, begin)) => {
                let Some(process) = self.nodes[node].process.as_mut() else {
                    return;
                };
                if process.epoch < epoch {
                    // It waits for a map that is as new as the sender's.
                    process.early.push((call, epoch, begin));
                    return;
                }
                self.announce(node, call, begin);
            }
            Message::Request(
                call,
                Request::Replicate {
                    catch_up,
                    frames,
                    committed,
                },
            ) => {
                let from = self.nodes[call.node].id;
                let mut refused = Vec::new();
                for frame in frames {
                    refused.extend(self.offer(node, from, catch_up, frame));
                }
                let mut touched = BTreeSet::new();
                if let Some(process) = self.nodes[node].process.as_mut() {
                    for (shard, term, lsn) in committed {
                        if let Role::Follower(follower) = &mut process.sides[shard].role {
                            follower.committed(from, term, lsn);
                            touched.insert(shard);
                        }
                    }
                    process.queue.push(Landing::Replied(call, refused));
                }
                for shard in touched {
                    self.advance(node, shard);
                }
            }
        }
    }

    /// Beginnings that waited for this map.
    pub(crate) fn take_early(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        let epoch = process.epoch;
        let early = std::mem::take(&mut process.early);
        let (due, wait): (Vec<_>, Vec<_>) = early
            .into_iter()
            .partition(|(_, wanted, _)| *wanted <= epoch);
        process.early = wait;
        for (call, _, begin) in due {
            self.announce(node, call, begin);
        }
    }

    /// Takes a frame whole, or says which shards do not take it.
    fn offer(
        &mut self,
        node: usize,
        from: NodeId,
        catch_up: Option<(Term, u64)>,
        frame: Frame,
    ) -> Vec<usize> {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return Vec::new();
        };
        let shards: BTreeSet<usize> = frame.iter().map(|sent| sent.shard).collect();
        let range = |shard: usize| {
            let of_shard = frame.iter().filter(|sent| sent.shard == shard);
            let lsns: Vec<Lsn> = of_shard.map(|sent| sent.lsn).collect();
            let first = lsns.iter().min().copied().unwrap_or_default();
            (first, lsns.iter().max().copied().unwrap_or_default())
        };
        let (mut new, mut refused) = (false, Vec::new());
        for &shard in &shards {
            let (first, last) = range(shard);
            match &process.sides[shard].role {
                Role::Follower(follower) => match follower.offer(from, catch_up, first, last) {
                    Offer::Next => new = true,
                    Offer::Known => {}
                    Offer::Refused(_) => refused.push(shard),
                },
                _ => refused.push(shard),
            }
        }
        if !refused.is_empty() || !new {
            return refused;
        }
        for &shard in &shards {
            let (_, last) = range(shard);
            if let Role::Follower(follower) = &mut process.sides[shard].role {
                follower.take(last);
            }
        }
        process.queue.push(Landing::Replica(frame));
        Vec::new()
    }

    /// A frame of another primary is durable here.
    pub(crate) fn landed(&mut self, node: usize, frame: &Frame, touched: &mut BTreeSet<usize>) {
        for sent in frame.iter() {
            let Some(process) = self.nodes[node].process.as_mut() else {
                return;
            };
            match &mut process.sides[sent.shard].role {
                Role::Follower(follower) => {
                    follower.durable(sent.lsn, Arc::clone(&sent.content));
                    touched.insert(sent.shard);
                }
                Role::Primary(primary) if sent.lsn.term() < primary.term => {
                    primary.durable_here(sent.lsn);
                    let has_landed = primary.has_landed();
                    touched.insert(sent.shard);
                    self.apply(node, sent.shard, sent.lsn, &sent.content);
                    if let Some(process) = self.nodes[node].process.as_mut() {
                        process.sides[sent.shard].decides |= has_landed;
                    }
                }
                _ => {}
            }
        }
    }

    fn announce(&mut self, node: usize, call: Call, begin: Begin) {
        let from = self.nodes[call.node].id;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if let Role::Follower(follower) = &mut process.sides[begin.shard].role {
            follower.begin(from, begin.term, begin.attempt);
        }
        process.queue.push(Landing::Begin(call, begin));
    }

    /// A beginning has come to its turn: everything that was taken before is durable.
    pub(crate) fn prepare(&mut self, node: usize, call: Call, begin: Begin) {
        let from = self.nodes[call.node].id;
        let life = self.nodes[node].life;
        let Node { disk, process, .. } = &mut self.nodes[node];
        let Some(process) = process.as_mut() else {
            return;
        };
        let mut work = None;
        let mut settled = Vec::new();
        if let (Role::Follower(follower), Some(keep)) =
            (&mut process.sides[begin.shard].role, begin.keep)
            && follower.is_of(from, begin.term, begin.attempt)
            && lacks(&disk[begin.shard], begin).is_none()
            && (begin.fill || follower.can_go_on(keep))
        {
            follower.cut(keep);
            if begin.fill {
                disk[begin.shard].let_go = begin.term;
            }
            let counted = begin.fill.then(|| keep.min(begin.settled));
            if let Some(counted) = counted {
                settled = follower.settle(counted);
            }
            work = Some((keep, disk[begin.shard].last(), counted));
        }
        let number = process.number();
        process.jobs.insert(number, Job { call, begin, work });
        for (lsn, content) in settled {
            self.check_settled(begin.shard, lsn, &content);
            self.apply(node, begin.shard, lsn, &content);
        }
        self.soon(200, 10 * MS, Event::JobDone(node, life, number));
    }

    /// What a beginning asks of the disk and of the assembler is done: the follower begins.
    pub(crate) fn job_done(&mut self, node: usize, number: u64) {
        let Node { disk, process, .. } = &mut self.nodes[node];
        let Some(process) = process.as_mut() else {
            return;
        };
        let Some(Job { call, begin, work }) = process.jobs.remove(&number) else {
            return;
        };
        let shard = begin.shard;
        let (side, log) = (&mut process.sides[shard], &mut disk[shard]);
        let mut gone = Vec::new();
        if let Some((keep, last, fill)) = work {
            if let Some(counted) = fill {
                side.state.count(counted);
                side.effects = Default::default();
                side.state.let_go(side.state.counted(), log.last());
                side.state.page_kept();
                page(side, log);
                side.applied = Lsn(0);
            }
            let counted = side.counted.max(log.counted).min(last);
            gone = log.void_after(counted.max(keep), last);
            set_mark(side, log);
            log.counted = log.counted.max(side.counted);
        }
        self.check_void(node, shard, &gone);
        self.begun(node, call, begin);
    }

    fn begun(&mut self, node: usize, call: Call, begin: Begin) {
        let from = self.nodes[call.node].id;
        let Some((side, log)) = self.nodes[node].shard(begin.shard) else {
            return;
        };
        let lower = lacks(log, begin);
        let keep = begin.keep.map(super::checks::show);
        let outcome = match &mut side.role {
            Role::Follower(follower) if follower.is_of(from, begin.term, begin.attempt) => {
                match (lower, begin.keep) {
                    (Some(lower), _) => Ok(lower),
                    (None, None) => Ok(follower.last),
                    (None, Some(keep)) if begin.fill => {
                        log.start = keep.max(begin.settled);
                        follower.fill(log.start);
                        Ok(follower.last)
                    }
                    (None, Some(keep)) if follower.can_go_on(keep) => {
                        follower.go_on(keep);
                        Ok(follower.last)
                    }
                    (None, Some(_)) => Err(true),
                }
            }
            _ => Err(false),
        };
        let whole = log.let_go == Term(0);
        self.tell(|| {
            let (to, shard, fill) = (from.0, begin.shard, begin.fill);
            let settled = super::checks::show(begin.settled);
            let result = outcome.map(super::checks::show);
            format!(
                "node {}: shard {shard} begins with node {to}, keep {keep:?} fill {fill} settled {settled}: {result:?}, whole {whole}",
                node + 1
            )
        });
        self.answer(node, call, Answer::Begun(outcome, whole));
    }
}

/// Where this node does not hold the record that it is told to keep, the last one before that it holds.
fn lacks(log: &super::log::ShardLog, begin: Begin) -> Option<Lsn> {
    let keep = begin.keep.filter(|keep| *keep > Lsn(0))?;
    let floor = log.floor(keep)?;
    (floor < keep).then_some(floor)
}
