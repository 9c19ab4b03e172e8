//! The model of one shard: the settings, roles, and records on their way from a primary.

use super::*;

impl World {
    pub(super) fn new(seed: u64, nodes: u64, replication: u8, without: Without) -> Self {
        let record = |_: u64| NodeRecord {
            addresses: NodeAddresses::default(),
            zone: String::new(),
            incarnation: 1,
            disk_id: 1,
            boot: 1,
            state: NodeState::Up,
        };
        let state = ClusterState {
            cluster_id: 1,
            shards: 1,
            replication,
            nodes: (1..=nodes).map(|id| (NodeId(id), record(id))).collect(),
            shard_map: vec![ShardRecord {
                term: Term(1),
                primary: NodeId(1),
                isr: vec![NodeId(1)],
                filling: Vec::new(),
                moving_to: None,
            }],
            ..ClusterState::default()
        };
        let nodes = (1..=nodes).map(|id| Node {
            id: NodeId(id),
            life: 1,
            up: true,
            disk: Vec::new(),
            voids: Vec::new(),
            mark: Lsn(0),
            start: Lsn(0),
            epoch: 0,
            // The founder leads its shard from the start.
            found: Term(0),
            role: Role::None,
            emptied: false,
            memory: BTreeSet::new(),
            applied: Lsn(0),
            building: VecDeque::new(),
            disk_queue: VecDeque::new(),
            jobs: Vec::new(),
            attaches: Vec::new(),
            feeders: BTreeMap::new(),
            held: BTreeSet::new(),
            keeper: None,
            fills: Vec::new(),
            next_call: 0,
        });
        let mut world = Self {
            dice: Dice(seed),
            without,
            replication: usize::from(replication),
            states: vec![state],
            nodes: nodes.collect(),
            streams: BTreeMap::new(),
            proposals: Vec::new(),
            next_proposal: 0,
            next_value: 0,
            next_fill: 0,
            acknowledged: BTreeSet::new(),
            given: BTreeMap::new(),
            calm: false,
            steps: 0,
        };
        (0..world.nodes.len()).for_each(|at| world.adopt(at));
        world
    }

    pub(super) fn newest(&self) -> &ClusterState {
        self.states.last().unwrap()
    }

    pub(super) fn at(&self, node: NodeId) -> usize {
        usize::try_from(node.0).unwrap() - 1
    }

    pub(super) fn least(&self) -> usize {
        self.replication.min(self.nodes.len()).min(2)
    }

    // ---- the settings ----

    pub(super) fn change(&mut self, change: impl FnOnce(&mut ClusterState)) {
        let mut state = self.newest().clone();
        change(&mut state);
        state.epoch = self.states.len() as u64;
        self.states.push(state);
    }

    pub(super) fn set_shard(&mut self, change: ShardChange) -> bool {
        let mut state = self.newest().clone();
        let command = Command::SetShards {
            changes: vec![change],
        };
        if state.apply(&command).is_err() {
            return false;
        }
        state.epoch = self.states.len() as u64;
        self.states.push(state);
        true
    }

    pub(super) fn set_node(&mut self, node: NodeId, to: NodeState) {
        if self.newest().nodes[&node].state != to {
            self.change(|state| state.nodes.get_mut(&node).unwrap().state = to);
        }
    }

    pub(super) fn fail_over(&mut self) {
        let state = self.newest();
        let is_up = |node: &NodeId| state.nodes[node].state == NodeState::Up;
        let old = state.shard_map[0].clone();
        if is_up(&old.primary) {
            return;
        }
        let isr: Vec<NodeId> = old.isr.iter().copied().filter(is_up).collect();
        let filling = old.filling.iter().copied().filter(is_up).collect();
        if isr.is_empty() {
            return;
        }
        let primary = isr[self.dice.roll(isr.len())];
        let term = old.term.next();
        let record = ShardRecord {
            term,
            primary,
            isr,
            filling,
            moving_to: None,
        };
        assert!(self.set_shard(ShardChange {
            shard: SHARD,
            expected: old,
            record
        }));
    }

    // ---- roles ----

    pub(super) fn adopt(&mut self, at: usize) {
        let least = self.least();
        let without = self.without;
        let state = self.states[self.nodes[at].epoch].clone();
        let record = &state.shard_map[0];
        let node = &mut self.nodes[at];
        let me = node.id;
        let alone = if without == Without::NewTerm {
            record.nodes().all(|other| other == me)
        } else {
            state.nodes.len() < 2
        };
        let led = matches!(&node.role, Role::Primary(led) if led.term == record.term);
        let leads = record.primary == me && (led || alone || record.term > node.found);
        let follows = record.primary != me && record.nodes().any(|other| other == me);
        match &mut node.role {
            Role::Primary(primary) if leads && led => primary.adopt(me, record, least),
            Role::Follower(follower) if follows => follower.adopt(record.term, record.primary),
            _ if leads => self.lead(at, record, least),
            _ if follows => {
                let last = node.last_valid(without);
                let follower = match std::mem::replace(&mut node.role, Role::None) {
                    Role::Primary(mut led) => {
                        let unsettled = !led.give_up().is_empty();
                        let mut follower =
                            FollowerShard::new(record.term, record.primary, led.last);
                        if unsettled {
                            follower.doubt();
                        }
                        follower
                    }
                    _ => {
                        let mut follower = FollowerShard::new(record.term, record.primary, last);
                        if node.emptied {
                            follower.doubt();
                        }
                        follower
                    }
                };
                node.emptied = false;
                node.role = Role::Follower(follower);
                node.held.clear();
            }
            Role::None => {}
            _ => {
                node.role = Role::None;
                node.held.clear();
                self.empty(at);
                self.nodes[at].emptied = true;
            }
        }
        let wanted: BTreeSet<NodeId> = match &self.nodes[at].role {
            Role::Primary(led) => led.copies.iter().map(|copy| copy.node).collect(),
            _ => BTreeSet::new(),
        };
        self.nodes[at]
            .feeders
            .retain(|node, _| wanted.contains(node));
        self.advance(at);
    }

    pub(super) fn lead(&mut self, at: usize, record: &ShardRecord, least: usize) {
        let without = self.without;
        let node = &mut self.nodes[at];
        let me = node.id;
        node.held.clear();
        let (local, last) = match std::mem::replace(&mut node.role, Role::None) {
            Role::Primary(mut primary) => {
                primary.next_term(me, record, least);
                node.role = Role::Primary(primary);
                return;
            }
            Role::Follower(follower) => {
                let (local, last) = (follower.durable_up_to(), follower.last);
                for (_, record) in follower.into_pending() {
                    self.apply(at, &record);
                }
                (local, last)
            }
            Role::None => {
                let last = node.last_valid(without);
                (last, last)
            }
        };
        let node = &mut self.nodes[at];
        node.role = Role::Primary(PrimaryShard::new(me, record, (local, last), least));
    }

    pub(super) fn empty(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.memory.clear();
        node.mark = node.last();
        node.applied = Lsn(0);
    }

    pub(super) fn apply(&mut self, at: usize, record: &Record) {
        let given = &self.given[&record.lsn];
        assert_eq!(given, &record.values, "another record has this number");
        let node = &mut self.nodes[at];
        assert!(
            record.lsn > node.applied,
            "applied out of order: {:?} {record:?}",
            node.id
        );
        node.applied = record.lsn;
        node.memory.extend(&record.values);
    }

    pub(super) fn advance(&mut self, at: usize) {
        let records = match &mut self.nodes[at].role {
            Role::None => Vec::new(),
            Role::Follower(follower) => follower
                .counting()
                .into_iter()
                .map(|(_, record)| (record, None))
                .collect(),
            Role::Primary(primary) => {
                if self.without == Without::Copies {
                    for copy in &mut primary.copies {
                        copy.acked = copy.acked.max(primary.local);
                    }
                }
                let before = primary.commit;
                let counting = primary.advance();
                assert!(primary.commit >= before, "what counts went back");
                primary.check();
                counting
                    .into_iter()
                    .map(|(_, work)| (work.record().clone(), Some(work)))
                    .collect()
            }
        };
        for (record, work) in records {
            self.apply(at, &record);
            match work {
                Some(Work::Client(record)) => {
                    let on_disk = |node: &&Node| node.valid(self.without).contains_key(&record.lsn);
                    let copies = self.nodes.iter().filter(on_disk).count();
                    assert!(
                        copies >= self.least(),
                        "acknowledged with {copies} copies: {record:?}"
                    );
                    self.acknowledged.extend(record.values);
                }
                Some(Work::Again(record, number)) => {
                    let fills = self.nodes[at].fills.iter_mut();
                    for fill in fills.filter(|fill| fill.number == number) {
                        fill.left.remove(&record.lsn);
                    }
                }
                _ => {}
            }
        }
    }

    // ---- the primary ----

    pub(super) fn number(
        &mut self,
        at: usize,
        make: impl FnOnce(Record) -> Work,
        values: Vec<u64>,
    ) -> Option<Lsn> {
        let Role::Primary(primary) = &mut self.nodes[at].role else {
            return None;
        };
        // The number is not known before it is given.
        let next = primary.last.max(Lsn::before_term(primary.term)).next();
        let record = Record {
            lsn: next,
            values: values.clone(),
        };
        let followers = primary.live().to_vec();
        assert_eq!(primary.number(make(record.clone())), next);
        self.nodes[at].building.push_back((record, followers));
        if let Some(other) = self.given.insert(next, values.clone()) {
            assert!(!self.acknowledged.iter().any(|value| other.contains(value)));
            let kept = self
                .nodes
                .iter()
                .any(|node| node.disk.iter().any(|record| record.lsn == next));
            assert!(!kept, "{next:?} was given before");
        }
        Some(next)
    }

    pub(super) fn offer(&mut self, at: usize) {
        let node = &self.nodes[at];
        let Role::Primary(primary) = &node.role else {
            return;
        };
        if !node.held.is_empty() || node.keeper.is_some() {
            return;
        }
        let takes = primary.takes();
        let value = self.next_value;
        self.next_value += 1;
        if takes && self.dice.roll(4) > 0 {
            self.number(at, Work::Client, vec![value]);
        } else {
            self.number(at, Work::Inner, vec![value]);
        }
    }

    pub(super) fn notice(&mut self, at: usize, to: NodeId) -> Option<(Term, Lsn)> {
        let Role::Primary(primary) = &mut self.nodes[at].role else {
            return None;
        };
        let (term, lsn) = (primary.term, primary.commit);
        let copy = primary.copy_mut(to)?;
        if copy.phase == crate::replication::CopyPhase::Live && copy.told < lsn {
            copy.told = lsn;
            return Some((term, lsn));
        }
        None
    }

    pub(super) fn feed(&mut self, at: usize, to: NodeId, records: Vec<Record>) {
        let committed = self.notice(at, to);
        if records.is_empty() && committed.is_none() {
            return;
        }
        let node = &mut self.nodes[at];
        let Role::Primary(primary) = &node.role else {
            return;
        };
        if !primary.copies.iter().any(|copy| copy.node == to) {
            return;
        }
        node.next_call += 1;
        let fed = Fed {
            call: node.next_call,
            records,
            committed,
            answer: None,
        };
        node.feeders.entry(to).or_default().calls.push_back(fed);
    }

    pub(super) fn build(&mut self, at: usize) {
        if let Some((record, followers)) = self.nodes[at].building.pop_front() {
            for to in followers {
                self.feed(at, to, vec![record.clone()]);
            }
            self.nodes[at].disk_queue.push_back(Landing::Own(record));
        }
    }

    pub(super) fn send(&mut self, at: usize, to: NodeId, stream: u64, call: u64, request: Request) {
        let node = &self.nodes[at];
        let key = (node.id, node.life, to, stream);
        let call = (node.id, node.life, call);
        self.streams
            .entry(key)
            .or_default()
            .push_back(Message::Request(call, request));
    }
}
