//! The loop of a run: a queue of what happens when, the network, the settings, clients.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use spandrel_actors::settings::Epoch;
use spandrel_model::ids::{NodeId, ShardId, Term, TraceId, UnixNanos};
use spandrel_model::otlp::AttributePolicy;
use spandrel_model::policy::{Limiters, PolicySet};
use spandrel_model::routing::ShardRouter;
use spandrel_raft::ClusterState;
use spandrel_raft::state::{NodeAddresses, NodeRecord, NodeState, ShardChange, ShardRecord};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::checks::{Broken, Truth};
use super::clients::Client;
use super::dice::Dice;
use super::fault::FaultKind;
use super::log::ShardLog;
use super::node::{BuiltFrame, Call, Message, Node};
use super::plan::MessagePlan;

/// Microseconds of a millisecond.
pub(crate) const MS: u64 = 1_000;
/// The routing key of every run.
const ROUTING_KEY: u64 = 7;
/// Where time begins, so that the clock of the product makes sense.
const BASE_SECONDS: u64 = 1_800_000_000;
/// Keeps what failed, drops everything else, soon.
const POLICY: &str = "decision: {idle: 150ms, max_age: 900ms}\npolicies:\n  - {name: errors, type: status_code, status_codes: [ERROR]}\n";
/// Virtual milliseconds within which everything comes to rest once nothing goes wrong any more.
const REST_MS: u64 = 30_000;
/// Virtual milliseconds between two looks at who is silent, and how long that is borne.
const WATCH_MS: u64 = 20;
const SILENT_MS: u64 = 120;
/// Events of which the last ones are told when a run fails.
const TOLD_EVENTS: usize = 250;
/// More events than any run has: it goes in circles.
const MOST_EVENTS: u64 = 600_000;

/// What happens at a moment. Of a process: which life of it is meant.
#[derive(Debug)]
pub(crate) enum Event {
    Tick(usize, u64),
    Built(usize, u64, Vec<BuiltFrame>),
    Committed(usize, u64),
    Deliver(usize, Message),
    Expired(usize, u64, u64),
    FeedAgain(usize, u64, NodeId, u64),
    AttachAgain(usize, u64, u64),
    Detached(usize, u64, u64, bool),
    JobDone(usize, u64, u64),
    Confirmed(usize, u64, usize, TraceId),
    Map(usize, u64, usize),
    Proposal(u64),
    /// The node hears: true, that it took place; false, that it did not.
    Proposed(usize, u64, u64, bool),
    Watch,
    Request(usize),
    Restart(usize),
    Fault(usize),
    Join,
}

/// A direction between two nodes.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) cut_until: u64,
    pub(crate) lossy_until: u64,
    pub(crate) doubling_until: u64,
    pub(crate) reordering_until: u64,
    pub(crate) slow_until: u64,
    /// When the last message arrives.
    last: u64,
}

/// A proposal on its way.
pub(crate) struct Proposal {
    pub(crate) node: usize,
    pub(crate) life: u64,
    pub(crate) change: ShardChange,
}

/// A run.
pub(crate) struct World {
    pub(crate) plan: MessagePlan,
    /// Virtual microseconds.
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    /// Every map that there was.
    pub(crate) states: Vec<Arc<ClusterState>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: BTreeMap<(usize, usize), Link>,
    pub(crate) proposals: BTreeMap<u64, Proposal>,
    pub(crate) next_proposal: u64,
    pub(crate) next_content: u64,
    pub(crate) clients: Vec<Client>,
    pub(crate) epoch: Arc<Epoch>,
    pub(crate) limiters: Arc<Mutex<Limiters>>,
    pub(crate) router: ShardRouter,
    /// By how much the plan of where shards should be is turned.
    pub(crate) turn: usize,
    pub(crate) truth: Truth,
    pub(crate) broken: Option<Broken>,
    pub(crate) struck: BTreeMap<FaultKind, u64>,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    told: VecDeque<String>,
    tells: bool,
    pub(crate) is_calm: bool,
}

impl World {
    pub(crate) fn new(plan: MessagePlan, tells: bool) -> Self {
        #[allow(clippy::expect_used)] // the text stands above
        let set = Arc::new(PolicySet::parse(POLICY, 1).expect("a policy"));
        #[allow(clippy::expect_used)] // plans have a power of two of shards
        let router = ShardRouter::new(ROUTING_KEY, plan.shards).expect("shards");
        let mut world = Self {
            dice: Dice::new(plan.seed, 2),
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            states: Vec::new(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            proposals: BTreeMap::new(),
            next_proposal: 0,
            next_content: 0,
            clients: Vec::new(),
            limiters: Arc::new(Mutex::new(Limiters::new(&set))),
            epoch: Arc::new(Epoch::new(&[], &AttributePolicy::default(), &[set])),
            router,
            turn: 0,
            truth: Truth::new(usize::from(plan.shards)),
            broken: None,
            struck: BTreeMap::new(),
            hash: plan.seed,
            events: 0,
            told: VecDeque::new(),
            tells,
            is_calm: false,
            plan,
        };
        world.found();
        world
    }

    /// The first node founds the cluster and leads all shards; the others have joined.
    fn found(&mut self) {
        let ids: Vec<NodeId> = (1u64..).take(self.plan.nodes).map(NodeId).collect();
        let record = ShardRecord {
            term: Term(1),
            primary: NodeId(1),
            isr: vec![NodeId(1)],
            filling: Vec::new(),
            moving_to: None,
        };
        let state = ClusterState {
            cluster_id: 1,
            routing_key: ROUTING_KEY,
            shards: self.plan.shards,
            replication: self.plan.replication,
            nodes: ids.iter().map(|id| (*id, node_record(*id))).collect(),
            next_node: self.plan.nodes as u64 + 1,
            shard_map: vec![record; usize::from(self.plan.shards)],
            ..ClusterState::default()
        };
        self.states.push(Arc::new(state));
        for id in ids {
            self.add_node(id);
        }
        // The founder leads from the start: it does not find its shards.
        for side in self.nodes[0]
            .process
            .iter_mut()
            .flat_map(|process| &mut process.sides)
        {
            side.found = Term(0);
        }
        for node in 0..self.nodes.len() {
            self.adopt(node);
            self.pump(node);
        }
        for request in 0..self.plan.requests.len() {
            self.make_request(request);
            self.at(
                self.plan.requests[request].at_ms * MS,
                Event::Request(request),
            );
        }
        for fault in 0..self.plan.faults.len() {
            self.at(self.plan.faults[fault].at_ms * MS, Event::Fault(fault));
        }
        self.at(WATCH_MS * MS, Event::Watch);
    }

    pub(crate) fn add_node(&mut self, id: NodeId) {
        self.nodes.push(Node {
            id,
            life: 0,
            is_gone: false,
            disk: (0..self.plan.shards).map(|_| ShardLog::default()).collect(),
            process: None,
            paused_until: 0,
            slow_disk_until: 0,
            fails_sync: false,
            settings_cut_until: 0,
            late_maps_until: 0,
            lost_proposals_until: 0,
            no_memory_until: 0,
            heard: self.now,
        });
        self.start(self.nodes.len() - 1);
    }

    // ---- time ----

    pub(crate) fn clock(&self) -> UnixNanos {
        UnixNanos(BASE_SECONDS * UnixNanos::PER_SECOND + self.now * 1_000)
    }

    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.queue
            .insert((time.max(self.now), self.sequence), event);
    }

    pub(crate) fn after(&mut self, micros: u64, event: Event) {
        self.at(self.now + micros, event);
    }

    /// Between so many microseconds.
    pub(crate) fn soon(&mut self, least: u64, most: u64, event: Event) {
        let delay = self.dice.between(least, most);
        self.after(delay, event);
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if !self.tells {
            return;
        }
        let line = format!("{:>6}.{:03} {}", self.now / MS, self.now % MS, line());
        self.told.push_back(line);
        if self.told.len() > TOLD_EVENTS {
            self.told.pop_front();
        }
    }

    pub(crate) fn told(&self) -> Vec<String> {
        self.told.iter().cloned().collect()
    }

    pub(crate) fn note(&mut self, what: u64) {
        self.hash = xxh3_64_with_seed(&what.to_le_bytes(), self.hash);
    }

    /// Runs to the end. True when nothing was broken.
    pub(crate) fn run(&mut self) -> bool {
        let calm_at = (self.plan.ends_ms() + 1) * MS;
        let deadline = calm_at + REST_MS * MS;
        while self.broken.is_none() {
            let Some((&(time, sequence), _)) = self.queue.first_key_value() else {
                break;
            };
            if time > calm_at && !self.is_calm {
                self.calm_down();
            }
            if self.is_calm && self.events.is_multiple_of(64) && self.is_at_rest() {
                self.check_rest();
                return self.broken.is_none();
            }
            if time > deadline || self.events > MOST_EVENTS {
                self.broken("liveness", self.why_not_at_rest());
                break;
            }
            let Some(event) = self.queue.remove(&(time, sequence)) else {
                break;
            };
            self.now = time;
            self.events += 1;
            self.happen(event);
            self.note_state();
        }
        false
    }

    /// Nothing goes wrong any more, and everybody is there.
    fn calm_down(&mut self) {
        self.is_calm = true;
        self.turn = 0;
        for node in &mut self.nodes {
            node.paused_until = 0;
            node.fails_sync = false;
        }
        self.links.clear();
        let given_up = |state| matches!(state, NodeState::Draining | NodeState::Full);
        let nodes = self.newest().nodes.iter();
        let nodes = nodes.filter(|(_, record)| given_up(record.state));
        let nodes: Vec<NodeId> = nodes.map(|(id, _)| *id).collect();
        for id in nodes {
            self.set_node(id, NodeState::Up);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].process.is_none() && !self.nodes[node].is_gone {
                self.soon(MS, 50 * MS, Event::Restart(node));
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let (node, life) = match &event {
            Event::Tick(node, life)
            | Event::Built(node, life, _)
            | Event::Committed(node, life)
            | Event::Expired(node, life, _)
            | Event::FeedAgain(node, life, ..)
            | Event::AttachAgain(node, life, _)
            | Event::Detached(node, life, ..)
            | Event::JobDone(node, life, _)
            | Event::Confirmed(node, life, ..)
            | Event::Map(node, life, _)
            | Event::Proposed(node, life, ..) => (Some(*node), Some(*life)),
            Event::Deliver(node, _) => (Some(*node), None),
            _ => (None, None),
        };
        if let Some(at) = node {
            let Some(target) = self.nodes.get(at) else {
                return;
            };
            if target.process.is_none() || life.is_some_and(|life| life != target.life) {
                return;
            }
            if target.paused_until > self.now {
                let until = target.paused_until;
                return self.at(until, event);
            }
        }
        self.note(self.now ^ node.map_or(u64::MAX, |node| node as u64).rotate_left(48));
        match event {
            Event::Tick(node, _) => self.tick(node),
            Event::Built(node, _, frames) => self.built(node, frames),
            Event::Committed(node, _) => self.committed(node),
            Event::Deliver(node, message) => self.deliver(node, message),
            Event::Expired(node, _, call) => self.expired(node, call),
            Event::FeedAgain(node, _, to, round) => self.feed_again(node, to, round),
            Event::AttachAgain(node, _, attach) => self.step_attach(node, attach),
            Event::Detached(node, _, attach, unfit) => self.end_attach(node, attach, Err(unfit)),
            Event::JobDone(node, _, job) => self.job_done(node, job),
            Event::Confirmed(node, _, shard, trace) => self.confirmed(node, shard, trace),
            Event::Map(node, _, epoch) => self.map_comes(node, epoch),
            Event::Proposal(number) => self.take_place(number),
            Event::Proposed(node, _, number, took) => self.proposed(node, number, took),
            Event::Watch => self.watch(),
            Event::Request(request) => self.ask(request),
            Event::Restart(node) => self.restart(node),
            Event::Fault(fault) => self.strike(fault),
            Event::Join => self.join(),
        }
        if let Some(node) = node {
            self.pump(node);
        }
        if self.events.is_multiple_of(48) {
            self.check();
        }
    }

    // ---- the network ----

    pub(crate) fn transmit(&mut self, from: usize, to: usize, message: Message) {
        let now = self.now;
        let mut delay = self.dice.between(200, 2_500);
        let (lost, doubled, jitter) = (
            self.dice.chance(300),
            self.dice.chance(300),
            self.dice.between(0, 30 * MS),
        );
        let link = self.links.entry((from, to)).or_default();
        if link.cut_until > now || (link.lossy_until > now && lost) {
            return;
        }
        if link.slow_until > now {
            delay += 60 * MS;
        }
        let mut at = now + delay;
        if link.reordering_until > now {
            at += jitter;
        } else {
            at = at.max(link.last + 1);
        }
        link.last = link.last.max(at);
        // A step of an attempt is asked for once, and no link delivers a message twice.
        let is_begin = matches!(
            &message,
            Message::Request(_, super::node::Request::Begin(..))
        );
        let doubles = link.doubling_until > now && doubled && !is_begin;
        if doubles {
            let again = at + jitter * 3;
            self.at(again, Event::Deliver(to, message.clone()));
        }
        self.at(at, Event::Deliver(to, message));
    }

    pub(crate) fn answer(&mut self, node: usize, call: Call, answer: super::node::Answer) {
        self.transmit(node, call.node, Message::Answer(call, answer));
    }

    // ---- the settings ----

    pub(crate) fn newest(&self) -> &Arc<ClusterState> {
        &self.states[self.states.len() - 1]
    }

    pub(crate) fn map_of(&self, node: usize) -> Arc<ClusterState> {
        let process = self.nodes[node].process.as_ref();
        let epoch = process.map_or(0, |process| process.epoch);
        Arc::clone(&self.states[epoch])
    }

    /// A change of the settings that needs no comparison.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut ClusterState)) {
        let mut state = ClusterState::clone(self.newest());
        change(&mut state);
        self.push_state(state);
    }

    pub(crate) fn push_state(&mut self, mut state: ClusterState) {
        let number = self.states.len();
        state.epoch = number as u64;
        state.applied_index = number as u64;
        self.check_settings(&state);
        self.states.push(Arc::new(state));
        for node in 0..self.nodes.len() {
            self.send_map(node);
        }
        self.check();
    }

    /// Sends the newest map to a node, unless it cannot hear.
    pub(crate) fn send_map(&mut self, node: usize) {
        let epoch = self.states.len() - 1;
        let target = &self.nodes[node];
        if target.process.is_none() {
            return;
        }
        let (life, mut least, mut most) = (target.life, 500, 8 * MS);
        if target.late_maps_until > self.now {
            (least, most) = (50 * MS, 400 * MS);
        }
        if target.settings_cut_until > self.now {
            let until = target.settings_cut_until;
            return self.at(until + MS, Event::Map(node, life, epoch));
        }
        self.soon(least, most, Event::Map(node, life, epoch));
    }

    fn map_comes(&mut self, node: usize, epoch: usize) {
        let cut = self.nodes[node].settings_cut_until > self.now;
        if cut {
            return self.send_map(node);
        }
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if process.epoch < epoch {
            process.epoch = epoch;
            self.adopt(node);
            self.take_early(node);
        }
    }

    pub(crate) fn set_node(&mut self, node: NodeId, to: NodeState) {
        let known = self.newest().nodes.get(&node).map(|record| record.state);
        if known.is_some_and(|known| known != to) {
            self.tell(|| format!("node {} is {to:?} in the settings", node.0));
            self.change(|state| {
                if let Some(record) = state.nodes.get_mut(&node) {
                    record.state = to;
                }
            });
        }
    }

    /// The leader of the settings looks at who is silent, and gives their shards to others.
    fn watch(&mut self) {
        self.after(WATCH_MS * MS, Event::Watch);
        for node in 0..self.nodes.len() {
            let one = &mut self.nodes[node];
            let is_heard = one.process.is_some()
                && one.paused_until <= self.now
                && one.settings_cut_until <= self.now;
            if is_heard {
                one.heard = self.now;
            }
            let (id, silent) = (one.id, self.now.saturating_sub(one.heard) > SILENT_MS * MS);
            let state = self.newest().nodes.get(&id).map(|record| record.state);
            match state {
                Some(NodeState::Up | NodeState::Draining | NodeState::Full) if silent => {
                    self.set_node(id, NodeState::Down);
                }
                // It hears that it was taken for dead, and registers again.
                Some(NodeState::Down) if is_heard && self.dice.chance(300) => {
                    self.set_node(id, NodeState::Up);
                }
                _ => {}
            }
        }
        let commands: Vec<_> = spandrel_actors::controller::failovers(self.newest()).collect();
        for command in commands {
            let mut state = ClusterState::clone(self.newest());
            if state.apply(&command).is_ok() {
                self.tell(|| format!("failover {command:?}"));
                self.push_state(state);
            }
        }
    }

    /// A proposal reaches the settings.
    fn take_place(&mut self, number: u64) {
        let Some(proposal) = self.proposals.remove(&number) else {
            return;
        };
        let mut state = ClusterState::clone(self.newest());
        let command = spandrel_raft::Command::SetShards {
            changes: vec![proposal.change.clone()],
        };
        let took = state.apply(&command).is_ok();
        if took {
            let (shard, record) = (proposal.change.shard, &proposal.change.record);
            self.tell(|| format!("shard {} becomes {record:?}", shard.0));
            self.push_state(state);
        }
        let delay = self.dice.between(300, 3_000);
        let (node, life) = (proposal.node, proposal.life);
        self.after(delay, Event::Proposed(node, life, number, took));
    }
}

/// A node as the settings know it.
pub(crate) fn node_record(id: NodeId) -> NodeRecord {
    NodeRecord {
        addresses: NodeAddresses::default(),
        zone: String::new(),
        incarnation: 1,
        disk_id: id.0,
        boot: 1,
        state: NodeState::Up,
    }
}

/// The shards by number.
pub(crate) fn shard_id(shard: usize) -> ShardId {
    // Plans have few.
    ShardId(u16::try_from(shard).unwrap_or(u16::MAX))
}

/// Nodes by their place.
pub(crate) fn places(nodes: &[Node], ids: impl IntoIterator<Item = NodeId>) -> BTreeSet<usize> {
    let place = |id: NodeId| nodes.iter().position(|node| node.id == id);
    ids.into_iter().filter_map(place).collect()
}
