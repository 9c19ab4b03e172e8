//! The model of one shard: what primaries send, how followers are brought level, fills, wishes.

use super::*;

impl World {
    pub(super) fn run_feeder(&mut self, at: usize, to: NodeId) {
        if self.dice.roll(3) == 0 {
            self.feed(at, to, Vec::new());
        }
        let Some(feeder) = self.nodes[at].feeders.get_mut(&to) else {
            return;
        };
        if feeder.sent >= feeder.calls.len().min(4) {
            // Now and then everything without an answer goes out again, though nothing was lost.
            let lost = feeder
                .calls
                .front()
                .is_some_and(|call| call.answer.is_none());
            if lost && self.dice.roll(12) == 0 {
                feeder.round += 1;
                feeder.sent = 0;
            }
            return;
        }
        let fed = &feeder.calls[feeder.sent];
        feeder.sent += 1;
        if fed.answer.is_some() {
            return;
        }
        let (round, call) = (feeder.round, fed.call);
        let request = Request::Replicate {
            catch_up: None,
            records: fed.records.clone(),
            committed: fed.committed,
        };
        self.send(at, to, round << 20, call, request);
    }

    pub(super) fn fed(&mut self, at: usize, to: NodeId, records: &[Record], refused: bool) {
        let Role::Primary(primary) = &mut self.nodes[at].role else {
            return;
        };
        for record in records {
            if !refused {
                primary.acked(to, record.lsn);
            } else if primary
                .copy_mut(to)
                .is_some_and(|copy| copy.phase == crate::replication::CopyPhase::Live)
            {
                primary.detach(to);
            }
        }
        self.advance(at);
    }

    pub(super) fn start_attach(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let epoch = node.epoch as u64;
        let Role::Primary(primary) = &mut node.role else {
            return;
        };
        let Some(due) = primary.attach() else {
            return;
        };
        node.attaches.push(Attach {
            due,
            term: primary.term,
            epoch,
            stage: Stage::Ask,
            call: None,
            answer: None,
            from: Lsn(0),
            to: Lsn(0),
            until: None,
            started: false,
            next: Lsn(0),
        });
    }

    pub(super) fn begin_call(&mut self, at: usize, number: usize, keep: Option<Lsn>) {
        let without = self.without;
        let node = &mut self.nodes[at];
        node.next_call += 1;
        let call = node.next_call;
        let attach = &mut node.attaches[number];
        attach.call = Some(call);
        let request = Request::Begin {
            epoch: attach.epoch,
            begin: Begin {
                term: attach.term,
                attempt: attach.due.attempt,
                keep,
                fill: attach.due.filling,
                settled: match without {
                    Without::Settled => attach.due.last,
                    _ => attach.due.settled,
                },
            },
        };
        let (to, stream) = (attach.due.node, attach.due.attempt + 1);
        self.send(at, to, stream, call, request);
    }

    pub(super) fn step_attach(&mut self, at: usize, number: usize) {
        let attach = &self.nodes[at].attaches[number];
        if attach.call.is_some() && attach.answer.is_none() {
            // Now and then nobody waits any longer.
            if self.dice.roll(if self.calm { 80 } else { 40 }) == 0 {
                self.end_attach(at, number, Err(false));
            }
            return;
        }
        let last = self.nodes[at].last();
        let attach = &mut self.nodes[at].attaches[number];
        attach.call = None;
        match (&attach.stage, attach.answer.take()) {
            (Stage::Ask, None) => self.begin_call(at, number, None),
            (Stage::Ask, Some(Ok(Answer::Begun(Ok(lower))))) => {
                self.settle(at, number, lower, last)
            }
            (Stage::Settle(keep), Some(Ok(Answer::Begun(Ok(found))))) => {
                if found < *keep {
                    self.settle(at, number, found, last);
                    return;
                }
                (attach.from, attach.to, attach.stage) = (found, found, Stage::CatchUp);
            }
            (Stage::Settle(keep), None) => {
                // It waits for the own disk.
                let keep = *keep;
                self.settle(at, number, keep, last);
            }
            (Stage::CatchUp, None) if attach.started => self.end_attach(at, number, Err(false)),
            (Stage::CatchUp, None) => self.catch_up(at, number),
            (Stage::CatchUp, Some(Ok(Answer::Replicated(false)))) => {
                attach.to = attach.next;
                attach.started = false;
            }
            (_, Some(Ok(Answer::Begun(Err(unfit))))) => self.end_attach(at, number, Err(unfit)),
            _ => self.end_attach(at, number, Err(false)),
        }
    }

    pub(super) fn settle(&mut self, at: usize, number: usize, last: Lsn, durable: Lsn) {
        let without = self.without;
        let attach = &mut self.nodes[at].attaches[number];
        attach.stage = Stage::Settle(last);
        let due = attach.due;
        if last > Lsn(0) && durable < due.last && without != Without::Unvoiding {
            return;
        }
        let keep = match last {
            Lsn(0) => last,
            last => match self.nodes[at].floor(last, without) {
                Some(keep) => keep,
                None if due.filling => Lsn(0),
                None => return self.end_attach(at, number, Err(true)),
            },
        };
        self.nodes[at].attaches[number].stage = Stage::Settle(keep);
        self.begin_call(at, number, Some(keep));
    }

    pub(super) fn catch_up(&mut self, at: usize, number: usize) {
        let without = self.without;
        let node = &mut self.nodes[at];
        let valid = node.valid(without);
        let last = valid.keys().next_back().copied().unwrap_or_default();
        let attach = &mut node.attaches[number];
        let target = attach.until.unwrap_or(last);
        if attach.to >= target {
            return self.end_attach(at, number, Ok(()));
        }
        if last < target {
            return;
        }
        let behind = valid.range(attach.to.next()..);
        let records: Vec<Record> = behind
            .take(2)
            .map(|(lsn, values)| Record {
                lsn: *lsn,
                values: values.clone(),
            })
            .collect();
        attach.next = records.last().unwrap().lsn;
        attach.started = true;
        node.next_call += 1;
        let call = node.next_call;
        attach.call = Some(call);
        let (to, stream) = (attach.due.node, attach.due.attempt + 1);
        let catch_up = Some((attach.term, attach.due.attempt));
        let request = Request::Replicate {
            catch_up,
            records,
            committed: None,
        };
        self.send(at, to, stream, call, request);
    }

    pub(super) fn end_attach(&mut self, at: usize, number: usize, outcome: Result<(), bool>) {
        let node = &mut self.nodes[at];
        let mut attach = node.attaches.swap_remove(number);
        let (to, attempt) = (attach.due.node, attach.due.attempt);
        let led = match &mut node.role {
            Role::Primary(led) if led.term == attach.term => Some(led),
            _ => None,
        };
        let Some(primary) = led.filter(|led| led.is_attaching(to, attempt)) else {
            node.held.remove(&to);
            return;
        };
        match outcome {
            Err(unfit) => {
                primary.detach(to);
                primary.copy_mut(to).unwrap().unfit |= unfit;
                node.held.remove(&to);
            }
            Ok(()) => {
                let mut reached = attach.to;
                if self.without == Without::Settled && attach.due.filling {
                    reached = primary.last;
                }
                if primary.attached(to, attach.from, reached) {
                    node.held.remove(&to);
                    self.advance(at);
                } else {
                    attach.until = Some(primary.last);
                    node.held.insert(to);
                    node.attaches.push(attach);
                }
            }
        }
    }

    pub(super) fn fill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Role::Primary(primary) = &mut node.role else {
            return;
        };
        let (joined, term) = (primary.ask_again(), primary.term);
        if !joined.is_empty() {
            self.next_fill += 1;
            let number = self.next_fill;
            let values: Vec<u64> = self.nodes[at].memory.iter().copied().collect();
            // In several records, others between them: it takes time. A held shard waits; the model numbers at once.
            let mut left = BTreeSet::new();
            for values in values.chunks(8).map(<[u64]>::to_vec).chain([Vec::new()]) {
                left.extend(self.number(at, |record| Work::Again(record, number), values));
            }
            self.nodes[at].fills.push(Fill {
                number,
                term,
                joined,
                left,
            });
            return;
        }
        let done = self.nodes[at]
            .fills
            .iter()
            .position(|fill| fill.left.is_empty());
        if let Some(done) = done {
            let node = &mut self.nodes[at];
            let fill = node.fills.swap_remove(done);
            if let Role::Primary(primary) = &mut node.role
                && primary.term == fill.term
            {
                let mut joined = fill.joined;
                if self.without == Without::Attempts {
                    for (node, attempt) in &mut joined {
                        *attempt = primary.copy_mut(*node).map_or(0, |copy| copy.attempt);
                    }
                }
                primary.sent_again(&joined, true);
            }
        }
    }

    // ---- the keeper ----

    pub(super) fn look(&mut self, at: usize) {
        let node = &self.nodes[at];
        let state = self.states[node.epoch].clone();
        if let Some((wish, proposal)) = &node.keeper {
            let term = state.shard_map[0].term;
            match proposal {
                None if matches!(&node.role, Role::Primary(led) if led.term == wish.expected.term) =>
                {
                    let Role::Primary(led) = &node.role else {
                        return;
                    };
                    if led.is_drained() && node.building.is_empty() {
                        let wish = wish.clone();
                        let number = self.propose(at, &wish);
                        self.nodes[at].keeper = Some((wish, Some(number)));
                    } else if self.dice.roll(20) == 0 {
                        self.nodes[at].keeper = None;
                    }
                }
                None => self.nodes[at].keeper = None,
                Some(number) => {
                    let open = self
                        .proposals
                        .iter()
                        .any(|(_, _, other, _)| other == number);
                    // A linearizable read: the map is as new as can be. Rarely the proposal comes after it.
                    let gives_up = !open || self.dice.roll(30) == 0;
                    let is_new = node.epoch + 1 == self.states.len();
                    if gives_up && is_new && (term != wish.expected.term || !open || !self.calm) {
                        self.nodes[at].keeper = None;
                    }
                }
            }
            return;
        }
        let mut progress = BTreeMap::new();
        if let Role::Primary(led) = &node.role {
            let nodes = |wanted: &dyn Fn(&crate::replication::Copy) -> bool| {
                let copies = led.copies.iter().filter(|copy| wanted(copy));
                copies.map(|copy| copy.node).collect()
            };
            progress.insert(
                SHARD,
                ShardProgress {
                    shard: SHARD,
                    term: led.term,
                    full: nodes(&|copy| copy.full),
                    unfit: nodes(&|copy| copy.unfit),
                    level: nodes(&|copy| copy.phase == crate::replication::CopyPhase::Live),
                    recalls: 0,
                },
            );
        }
        let up = state
            .nodes
            .iter()
            .filter(|(_, node)| node.state == NodeState::Up);
        let mut plan: Vec<NodeId> = up.map(|(id, _)| *id).collect();
        let turn = usize::try_from(self.next_value / 20).unwrap() % plan.len().max(1);
        plan.rotate_left(if self.calm { 0 } else { turn });
        plan.truncate(self.replication);
        let wish = wishes(&state, node.id, &progress, &[plan]).pop();
        match wish {
            Some(wish) if wish.holds => self.nodes[at].keeper = Some((wish, None)),
            Some(wish) => {
                self.propose(at, &wish);
            }
            None => {}
        }
    }

    pub(super) fn propose(&mut self, at: usize, wish: &Wish) -> usize {
        let change = ShardChange {
            shard: wish.shard,
            expected: wish.expected.clone(),
            record: wish.record.clone(),
        };
        self.next_proposal += 1;
        let (id, life) = (self.nodes[at].id, self.nodes[at].life);
        let number = self.next_proposal;
        self.proposals.push((id, life, number, change));
        number
    }

    // ---- the receiver ----

    pub(super) fn deliver(&mut self, stream: Stream) {
        let Some(queue) = self.streams.get_mut(&stream) else {
            return;
        };
        let Some(message) = queue.pop_front() else {
            return;
        };
        if queue.is_empty() {
            self.streams.remove(&stream);
        }
        let to = self.at(stream.2);
        match message {
            Message::Answer(call, answer) => self.answered(to, call, answer),
            Message::Request(..) if !self.nodes[to].up => {}
            Message::Request(call, request) => self.take(to, stream.0, call, request),
        }
    }

    pub(super) fn answer(&mut self, at: usize, to: NodeId, call: Call, answer: Answer) {
        let node = &self.nodes[at];
        let key = (node.id, node.life, to, (1 << 40) + call.2);
        self.streams
            .entry(key)
            .or_default()
            .push_back(Message::Answer(call, answer));
    }
}
