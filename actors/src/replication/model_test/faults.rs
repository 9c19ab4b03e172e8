//! The model of one shard: disks, crashes, a step of the world, and what must hold after it.

use super::*;

impl World {
    pub(super) fn answered(&mut self, at: usize, call: Call, answer: Answer) {
        let node = &mut self.nodes[at];
        if !node.up || node.life != call.1 {
            return;
        }
        let waits = node
            .attaches
            .iter_mut()
            .find(|attach| attach.call == Some(call.2));
        if let Some(attach) = waits {
            attach.answer = Some(Ok(answer));
            return;
        }
        let Answer::Replicated(refused) = answer else {
            return;
        };
        let mut done = Vec::new();
        for (to, feeder) in &mut node.feeders {
            for fed in feeder.calls.iter_mut().filter(|fed| fed.call == call.2) {
                fed.answer = Some(refused);
            }
            while feeder.calls.front().is_some_and(|fed| fed.answer.is_some()) {
                let fed = feeder.calls.pop_front().unwrap();
                feeder.sent = feeder.sent.saturating_sub(1);
                done.push((*to, fed));
            }
        }
        for (to, fed) in done {
            self.fed(at, to, &fed.records, fed.answer.unwrap());
        }
    }

    pub(super) fn take(&mut self, at: usize, from: NodeId, call: Call, request: Request) {
        let node = &mut self.nodes[at];
        match request {
            Request::Begin { epoch, begin } => {
                if (node.epoch as u64) < epoch {
                    return self.answer(at, from, call, Answer::Begun(Err(false)));
                }
                if let Role::Follower(follower) = &mut node.role {
                    follower.begin(from, begin.term, begin.attempt);
                }
                node.disk_queue.push_back(Landing::Begin(call, from, begin));
            }
            Request::Replicate {
                catch_up,
                records,
                committed,
            } => {
                let mut refused = false;
                // One frame.
                if let (Some(first), Some(last)) = (records.first(), records.last()) {
                    let offer = match &node.role {
                        Role::Follower(follower) => {
                            follower.offer(from, catch_up, first.lsn, last.lsn)
                        }
                        _ => Offer::Refused("not followed"),
                    };
                    match (offer, &mut node.role) {
                        (Offer::Next, Role::Follower(follower)) => {
                            follower.take(last.lsn);
                            let records = records.into_iter().map(Landing::Replica);
                            node.disk_queue.extend(records);
                        }
                        (Offer::Known, _) => {}
                        _ => refused = true,
                    }
                }
                if let (Some((term, lsn)), Role::Follower(follower)) = (committed, &mut node.role) {
                    follower.committed(from, term, lsn);
                }
                let answer = Answer::Replicated(refused);
                node.disk_queue
                    .push_back(Landing::Replied(call, from, answer));
                self.advance(at);
            }
        }
    }

    pub(super) fn land(&mut self, at: usize) {
        let without = self.without;
        let Some(landing) = self.nodes[at].disk_queue.pop_front() else {
            return;
        };
        let node = &mut self.nodes[at];
        match landing {
            Landing::Own(record) => {
                let lsn = record.lsn;
                node.disk.push(record);
                if let Role::Primary(primary) = &mut node.role {
                    primary.durable_here(lsn);
                }
            }
            Landing::Replica(record) => {
                node.disk.push(record.clone());
                match &mut node.role {
                    Role::Follower(follower) => follower.durable(record.lsn, record),
                    Role::Primary(primary) if record.lsn.term() < primary.term => {
                        primary.durable_here(record.lsn);
                        self.apply(at, &record);
                    }
                    _ => {}
                }
            }
            Landing::Replied(call, from, answer) => self.answer(at, from, call, answer),
            Landing::Begin(call, from, begin) => {
                let lacks = begin.keep.and_then(|keep| lacks(node, keep, without));
                let last = node.last();
                let mut work = None;
                if let (Role::Follower(follower), Some(keep), None) =
                    (&mut node.role, begin.keep, lacks)
                    && follower.is_of(from, begin.term, begin.attempt)
                    && (begin.fill || follower.can_go_on(keep))
                {
                    follower.cut(keep);
                    work = Some((keep, last));
                }
                node.jobs.push(Job {
                    call,
                    from,
                    begin,
                    work,
                    is_done: false,
                });
            }
        }
        self.advance(at);
    }

    pub(super) fn run_job(&mut self, at: usize, number: usize) {
        let without = self.without;
        let job = &mut self.nodes[at].jobs[number];
        if !job.is_done {
            job.is_done = true;
            let (work, fill) = (job.work, job.begin.fill);
            if let Some((keep, last)) = work {
                if fill {
                    self.empty(at);
                }
                let node = &mut self.nodes[at];
                if last > keep && without != Without::Voids {
                    node.voids.push((keep, last, node.disk.len()));
                }
            }
            return;
        }
        let job = self.nodes[at].jobs.swap_remove(number);
        let node = &mut self.nodes[at];
        let begin = job.begin;
        let lacks = begin.keep.and_then(|keep| lacks(node, keep, without));
        let outcome = match &mut node.role {
            Role::Follower(follower) if follower.is_of(job.from, begin.term, begin.attempt) => {
                match begin.keep {
                    _ if lacks.is_some() => Ok(lacks.unwrap()),
                    None => Ok(follower.last),
                    Some(keep) if begin.fill => {
                        node.start = keep.max(begin.settled);
                        follower.fill(node.start);
                        Ok(follower.last)
                    }
                    Some(keep) if follower.can_go_on(keep) => {
                        follower.go_on(keep);
                        Ok(follower.last)
                    }
                    Some(_) => Err(true),
                }
            }
            _ => Err(false),
        };
        self.answer(at, job.from, job.call, Answer::Begun(outcome));
    }

    // ---- faults ----

    pub(super) fn crash(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.up = false;
        node.role = Role::None;
        node.memory.clear();
        node.building.clear();
        node.disk_queue.clear();
        node.jobs.clear();
        node.attaches.clear();
        node.feeders.clear();
        node.held.clear();
        node.fills.clear();
        node.keeper = None;
    }

    pub(super) fn restart(&mut self, at: usize) {
        let without = self.without;
        let epoch = self.states.len() - 1;
        let id = self.nodes[at].id;
        self.set_node(id, NodeState::Up);
        let epoch = epoch.max(self.states.len() - 1);
        let record = self.states[epoch].shard_map[0].clone();
        let node = &mut self.nodes[at];
        node.up = true;
        node.life += 1;
        node.epoch = epoch;
        node.found = record.term;
        node.emptied = record.nodes().all(|other| other != id);
        let valid = node.valid(without);
        let mark = node.mark;
        let replayed = valid.range(mark.next()..);
        node.memory = replayed.flat_map(|(_, values)| values.clone()).collect();
        node.applied = node.last_valid(without);
        if node.emptied {
            self.empty(at);
        }
        self.adopt(at);
    }

    // ---- the run ----

    pub(super) fn step(&mut self) {
        let at = self.dice.roll(self.nodes.len());
        let id = self.nodes[at].id;
        let kind = self.dice.roll(100);
        if !self.nodes[at].up {
            if kind < 4 || self.calm {
                self.restart(at);
            } else if kind < 30 {
                self.set_node(id, NodeState::Down);
            } else if kind < 50 {
                self.fail_over();
            }
            return;
        }
        match kind {
            0..4 if self.calm && !self.steps.is_multiple_of(8) => {}
            0..4 => self.offer(at),
            4..14 => self.build(at),
            14..24 => self.land(at),
            24..40 => self.land(at),
            40..44 => {
                if self.nodes[at].epoch + 1 < self.states.len() {
                    // Maps are passed over when there are newer ones.
                    let newest = self.dice.roll(3) == 0;
                    let next = self.nodes[at].epoch + 1;
                    self.nodes[at].epoch = if newest { self.states.len() - 1 } else { next };
                    self.adopt(at);
                }
            }
            44..52 => {
                let others: Vec<NodeId> = self.nodes[at].feeders.keys().copied().collect();
                for to in others {
                    self.run_feeder(at, to);
                }
            }
            52..56 => {
                let copies: Vec<NodeId> = match &self.nodes[at].role {
                    Role::Primary(led) => led.copies.iter().map(|copy| copy.node).collect(),
                    _ => Vec::new(),
                };
                copies
                    .into_iter()
                    .for_each(|to| self.feed(at, to, Vec::new()));
                self.start_attach(at);
            }
            56..66 => {
                let count = self.nodes[at].attaches.len();
                if count > 0 {
                    let number = self.dice.roll(count);
                    self.step_attach(at, number);
                }
            }
            66..72 => {
                let count = self.nodes[at].jobs.len();
                if count > 0 {
                    let number = self.dice.roll(count);
                    self.run_job(at, number);
                }
            }
            72..75 => self.fill(at),
            75..79 => self.look(at),
            79..82 => {
                if !self.proposals.is_empty() {
                    let number = self.dice.roll(self.proposals.len());
                    let (_, _, _, change) = self.proposals.swap_remove(number);
                    if self.calm || self.dice.roll(10) > 0 {
                        self.set_shard(change);
                    }
                }
            }
            82..83 if !self.calm => match self.dice.roll(12) {
                0..2 => self.crash(at),
                2 => self.set_node(id, NodeState::Down),
                _ => {}
            },
            83..84 if !self.calm => {
                // A message is lost.
                let streams: Vec<Stream> = self.streams.keys().copied().collect();
                if !streams.is_empty() {
                    let stream = streams[self.dice.roll(streams.len())];
                    self.streams.remove(&stream);
                }
            }
            84..86 => {
                self.fail_over();
                if self.newest().nodes[&id].state == NodeState::Down {
                    // It registers again.
                    self.set_node(id, NodeState::Up);
                }
            }
            _ => {
                let streams: Vec<Stream> = self.streams.keys().copied().collect();
                for _ in 0..streams.len().min(4) {
                    let stream = streams[self.dice.roll(streams.len())];
                    self.deliver(stream);
                }
            }
        }
        if self.steps.is_multiple_of(16) || matches!(kind, 40..44 | 66..72 | 79..82 | 84..86) {
            self.check();
        }
        self.steps += 1;
    }

    pub(super) fn check(&self) {
        let record = &self.newest().shard_map[0];
        for id in &record.isr {
            let node = &self.nodes[self.at(*id)];
            let valid = node.valid(self.without);
            let replayed = valid.range(node.mark.next()..);
            let on_disk: BTreeSet<u64> = replayed.flat_map(|(_, values)| values.clone()).collect();
            let lost: Vec<&u64> = self.acknowledged.difference(&on_disk).collect();
            assert!(
                lost.is_empty(),
                "{id:?} has lost {lost:?} on disk, {record:?}"
            );
        }
        for node in self.nodes.iter().filter(|node| node.up) {
            if let Role::Primary(led) = &node.role
                && (led.term, node.id) == (record.term, record.primary)
            {
                let lost: Vec<&u64> = self.acknowledged.difference(&node.memory).collect();
                assert!(
                    lost.is_empty(),
                    "primary {:?} does not know {lost:?}",
                    node.id
                );
            }
        }
    }

    /// Behind the point where each of them last began anew, all replicas have the same records.
    pub(super) fn check_rest(&self) {
        let record = &self.newest().shard_map[0];
        let primary = &self.nodes[self.at(record.primary)];
        for id in &record.isr {
            let node = &self.nodes[self.at(*id)];
            let mark = node.mark.max(primary.mark);
            let mark = mark.max(node.start).max(primary.start);
            let (mut own, mut led) = (node.valid(self.without), primary.valid(self.without));
            (own, led) = (own.split_off(&mark.next()), led.split_off(&mark.next()));
            assert_eq!(own, led, "{id:?} and {:?} differ", primary.id);
        }
    }

    /// Nothing is lost any more: everything that is wanted must come.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        for _ in 0..60_000 {
            self.step();
            let record = &self.newest().shard_map[0];
            let wanted = self.replication.min(self.nodes.len());
            let level = record.isr.len() == wanted && record.filling.is_empty();
            if level
                && self
                    .nodes
                    .iter()
                    .all(|node| node.up && node.epoch + 1 == self.states.len())
                && matches!(&self.nodes[self.at(record.primary)].role,
                Role::Primary(led) if led.is_drained() && led.copies.iter().all(|copy| {
                    copy.phase == crate::replication::CopyPhase::Live
                }))
            {
                self.check_rest();
                return;
            }
        }
        let primary = &self.nodes[self.at(self.newest().shard_map[0].primary)];
        let led = match &primary.role {
            Role::Primary(led) => {
                format!("{:?} {:?} held {:?}", led.copies, led.commit, primary.held)
            }
            _ => "no role".to_owned(),
        };
        panic!(
            "it does not come to rest: {:?}, {led}",
            self.newest().shard_map
        );
    }
}
