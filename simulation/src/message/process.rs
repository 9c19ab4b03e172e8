//! Processes: how they start from their disk, and what they do at intervals (production: `starting.rs`, `replay/`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spandrel_actors::assembler::{
    Decided, Earlier, Effects, PagingScope, Prior, ShardOptions, ShardState, Step,
};
use spandrel_model::ids::{Lsn, NodeId, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::verdict::{Verdict, VerdictRecord};
use spandrel_raft::state::NodeState;

use super::log::{Kind, ShardLog};
use super::node::{Landing, Node, Process, Role, Side};
use super::world::{Event, MS, World, node_record, shard_id};

/// Virtual microseconds between two rounds of a process.
const TICK: u64 = 15 * MS;
/// A bucket: longer than a run.
const BUCKET_NANOS: u64 = 3_600 * UnixNanos::PER_SECOND;

/// What a node's journal says of older decisions.
pub(crate) struct LogDecided<'a>(pub(crate) &'a ShardLog);

impl Decided for LogDecided<'_> {
    fn prior(&self, _: ShardId, _: &TenantId, trace_id: TraceId, _: Lsn) -> Prior {
        match self.0.verdict(trace_id) {
            Some(_) => Prior::Ask,
            None => Prior::None,
        }
    }
}

/// The same in a replay: a verdict that comes later has read its spans.
struct ReplayDecided<'a>(&'a ShardLog, &'a BTreeMap<TraceId, Vec<VerdictRecord>>);

impl Decided for ReplayDecided<'_> {
    fn prior(&self, _: ShardId, _: &TenantId, trace_id: TraceId, lsn: Lsn) -> Prior {
        let window = self.1.get(&trace_id).into_iter().flatten();
        let last_input = window.map(|record| record.input_lsn).max();
        if last_input.is_some_and(|input| input >= lsn) {
            return Prior::None;
        }
        match earlier(self.0, trace_id) {
            Some(earlier) => Prior::Decided(Box::new(earlier)),
            None => Prior::None,
        }
    }
}

/// The newest verdict about a trace, as a question to the journal answers.
pub(crate) fn earlier(log: &ShardLog, trace_id: TraceId) -> Option<Earlier> {
    let record = log.verdict(trace_id)?.clone();
    let stored = log.blocks.contains_key(&trace_id);
    Some(Earlier {
        is_here: record.verdict == Verdict::Drop || stored,
        record,
    })
}

impl World {
    /// A process begins, from what its disk holds.
    pub(crate) fn start(&mut self, node: usize) {
        let epoch = self.states.len() - 1;
        let state = Arc::clone(&self.states[epoch]);
        let (now, router, settings) = (self.clock(), self.router, Arc::clone(&self.epoch));
        let limiters = Arc::clone(&self.limiters);
        let one = &mut self.nodes[node];
        one.life += 1;
        one.heard = self.now;
        let (me, life) = (one.id, one.life);
        let is_alone = state.nodes.len() < 2;
        let mut sides = Vec::new();
        for (shard, (log, record)) in one.disk.iter().zip(&state.shard_map).enumerate() {
            let options = ShardOptions {
                shard: shard_id(shard),
                term: record.term,
                router,
                bucket_nanos: BUCKET_NANOS,
            };
            let mut shard_state = ShardState::new(options, log.mark);
            let mut effects = Effects::default();
            let window = window(log);
            let decided = ReplayDecided(log, &window);
            let step = Step {
                decides: true,
                epoch: &settings,
                decided: &decided,
                limiters: &limiters,
                pressure: 0,
                now,
            };
            replay(log, &window, &mut shard_state, &step, &mut effects);
            shard_state.keep_pending(&mut effects);
            if !is_alone {
                shard_state.doubt();
            }
            sides.push(Side {
                role: Role::None,
                found: record.term,
                reign: 0,
                decides: false,
                emptied: false,
                replayed: Some(log.last_valid()),
                held: BTreeSet::new(),
                deferred: VecDeque::new(),
                state: shard_state,
                effects,
                counted: log.counted,
                applied: log.last_valid(),
            });
        }
        one.process = Some(Box::new(Process {
            epoch,
            sides,
            waiting: VecDeque::new(),
            building: false,
            queue: Vec::new(),
            committing: None,
            feeders: BTreeMap::new(),
            attaches: BTreeMap::new(),
            jobs: BTreeMap::new(),
            fills: BTreeMap::new(),
            keeping: BTreeMap::new(),
            calls: BTreeMap::new(),
            early: Vec::new(),
            next: 0,
            ticks: 0,
        }));
        self.tell(|| format!("node {} starts, life {life}", me.0));
        self.soon(0, TICK, Event::Tick(node, life));
    }

    /// A process that had ended begins again: it registers first.
    pub(crate) fn restart(&mut self, node: usize) {
        let one = &self.nodes[node];
        if one.process.is_some() || one.is_gone {
            return;
        }
        if one.settings_cut_until > self.now && !self.is_calm {
            let until = one.settings_cut_until;
            return self.at(until, Event::Restart(node));
        }
        let id = one.id;
        self.set_node(id, NodeState::Up);
        self.start(node);
        self.adopt(node);
        self.pump(node);
        // What changed while it registered.
        self.send_map(node);
    }

    /// A process ends at once.
    pub(crate) fn crash(&mut self, node: usize) {
        let one = &mut self.nodes[node];
        if one.process.take().is_some() {
            let id = one.id;
            one.fails_sync = false;
            self.tell(|| format!("node {} ends", id.0));
        }
        self.check();
    }

    /// A new node joins the cluster.
    pub(crate) fn join(&mut self) {
        let id = NodeId(self.newest().next_node);
        self.tell(|| format!("node {} joins", id.0));
        self.change(|state| {
            state.next_node += 1;
            state.nodes.insert(id, node_record(id));
        });
        self.add_node(id);
        let node = self.nodes.len() - 1;
        self.adopt(node);
    }

    // ---- rounds ----

    /// What production does at intervals.
    pub(crate) fn tick(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.after(TICK, Event::Tick(node, life));
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        process.ticks += 1;
        let (ticks, shards) = (process.ticks, process.sides.len());
        self.tell_followers(node);
        self.attach_copies(node);
        let has_no_memory = self.nodes[node].no_memory_until > self.now;
        for shard in 0..shards {
            self.attach_next(node, shard);
            if ticks.is_multiple_of(3) {
                self.step(node, shard, |state, step, effects| {
                    state.tick(step, effects);
                    if has_no_memory {
                        state.relieve(2_000, step, effects);
                    }
                });
                self.perform(node, shard);
                if let Some((side, log)) = self.nodes[node].shard(shard) {
                    set_mark(side, log);
                    log.counted = log.counted.max(side.counted);
                }
            }
        }
        if ticks.is_multiple_of(2) {
            self.keep(node);
        }
    }

    /// A step of a shard's assembler.
    pub(crate) fn step<T>(
        &mut self,
        node: usize,
        shard: usize,
        work: impl FnOnce(&mut ShardState, &Step<'_>, &mut Effects) -> T,
    ) -> Option<T> {
        let (now, epoch) = (self.clock(), Arc::clone(&self.epoch));
        let limiters = Arc::clone(&self.limiters);
        let Node {
            disk,
            process,
            no_memory_until,
            ..
        } = &mut self.nodes[node];
        let side = &mut process.as_mut()?.sides[shard];
        let decided = LogDecided(&disk[shard]);
        let step = Step {
            decides: matches!(side.role, Role::Primary(_)) && side.decides,
            epoch: &epoch,
            decided: &decided,
            limiters: &limiters,
            pressure: if *no_memory_until > self.now { 2 } else { 0 },
            now,
        };
        let outcome = work(&mut side.state, &step, &mut side.effects);
        side.state.check();
        Some(outcome)
    }

    /// Lets the disk and the builder do what waits for them.
    pub(crate) fn pump(&mut self, node: usize) {
        self.build(node);
        self.commit(node);
    }

    pub(crate) fn commit(&mut self, node: usize) {
        let is_slow = self.nodes[node].slow_disk_until > self.now;
        let life = self.nodes[node].life;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if process.committing.is_some() || process.queue.is_empty() {
            return;
        }
        process.committing = Some(std::mem::take(&mut process.queue));
        let (least, most) = match is_slow {
            true => (30 * MS, 150 * MS),
            false => (300, 4 * MS),
        };
        self.soon(least, most, Event::Committed(node, life));
    }

    /// A commit has ended: what was in it is durable.
    pub(crate) fn committed(&mut self, node: usize) {
        if self.nodes[node].fails_sync {
            self.tell(|| format!("a sync of node {} fails", node + 1));
            self.crash(node);
            return self.soon(50 * MS, 400 * MS, Event::Restart(node));
        }
        let Node { disk, process, .. } = &mut self.nodes[node];
        let Some(process) = process.as_mut() else {
            return;
        };
        let landings = process.committing.take().unwrap_or_default();
        // One transaction: all of it is on the disk before anybody hears of it.
        for landing in &landings {
            if let Landing::Own(frame) | Landing::Replica(frame) = landing {
                for sent in frame.iter() {
                    disk[sent.shard].commit(sent.lsn, &sent.content);
                }
            }
        }
        let mut replies = Vec::new();
        let mut touched = BTreeSet::new();
        for landing in landings {
            match landing {
                Landing::Own(frame) => {
                    let Some(process) = self.nodes[node].process.as_mut() else {
                        return;
                    };
                    for sent in frame.iter() {
                        if let Role::Primary(primary) = &mut process.sides[sent.shard].role {
                            primary.durable_here(sent.lsn);
                        }
                        touched.insert(sent.shard);
                    }
                }
                Landing::Replica(frame) => self.landed(node, &frame, &mut touched),
                Landing::Replied(call, refused) => replies.push((call, refused)),
                Landing::Begin(call, begin) => self.prepare(node, call, begin),
            }
        }
        for shard in touched {
            self.advance(node, shard);
        }
        for (call, refused) in replies {
            self.answer(node, call, super::node::Answer::Replicated(refused));
        }
    }
}

/// Kept traces whose keep surely counts go to a block.
pub(crate) fn page(side: &mut Side, log: &mut ShardLog) {
    let name: &dyn Fn(&VerdictRecord) -> Arc<str> = &|_| Arc::from("errors");
    let everything = PagingScope {
        all: true,
        followed: true,
    };
    let taken = side
        .state
        .collect_kept(UnixNanos(u64::MAX), everything, name);
    for kept in &taken {
        let known = log.blocks.entry(kept.trace_id).or_default();
        *known = kept.fragment.max(*known);
    }
    let paged: Vec<_> = taken.iter().map(|kept| kept.paged()).collect();
    side.state.paged(&paged);
}

/// A restart reads from the first record that the assembler needs.
pub(crate) fn set_mark(side: &Side, log: &mut ShardLog) {
    log.mark = Lsn(side.state.low_water().0.saturating_sub(1));
}

/// The verdicts of the records that a replay reads.
fn window(log: &ShardLog) -> BTreeMap<TraceId, Vec<VerdictRecord>> {
    let mut window: BTreeMap<TraceId, Vec<VerdictRecord>> = BTreeMap::new();
    for (_, content) in log.behind(log.mark) {
        for record in content.verdicts() {
            let of_trace = window.entry(record.trace_id).or_default();
            of_trace.push(record.clone());
        }
    }
    window
}

fn replay(
    log: &ShardLog,
    window: &BTreeMap<TraceId, Vec<VerdictRecord>>,
    state: &mut ShardState,
    step: &Step<'_>,
    effects: &mut Effects,
) {
    let is_settled = |trace_id: TraceId, lsn: Lsn| {
        let mut verdicts = window.get(&trace_id).into_iter().flatten();
        verdicts.any(|record| match record.verdict {
            Verdict::Drop => lsn <= record.input_lsn,
            Verdict::Keep => log.blocks.get(&trace_id).is_some_and(|paged| lsn <= *paged),
        })
    };
    for (lsn, content) in log.behind(log.mark) {
        match &content.kind {
            Kind::Spans {
                batch, rows, again, ..
            } => {
                let wanted = rows.iter().copied().filter(|row| {
                    let span = batch.spans.get(*row as usize);
                    span.is_some_and(|span| !is_settled(span.trace_id, lsn))
                });
                let wanted: Vec<u32> = wanted.collect();
                match (wanted.is_empty(), again) {
                    (true, _) => state.advance(lsn),
                    (false, true) => drop(state.apply_again(lsn, batch, &wanted, step, effects)),
                    (false, false) => drop(state.apply(lsn, batch, &wanted, step, effects)),
                }
            }
            Kind::Verdicts { records, again } => {
                let left = records.iter().filter(|record| {
                    record.verdict == Verdict::Drop || !is_settled(record.trace_id, lsn)
                });
                let left: Vec<VerdictRecord> = left.cloned().collect();
                match again {
                    true => state.verdicts_again(lsn, &left, step, effects),
                    false => state.verdicts_committed(lsn, &left, step, effects),
                }
            }
        }
        state.check();
    }
    let paged = state.kept_keys().into_iter().filter_map(|(tenant, trace)| {
        Some(spandrel_actors::assembler::PagedTrace {
            tenant,
            trace_id: trace,
            fragment: *log.blocks.get(&trace)?,
        })
    });
    let paged: Vec<_> = paged.collect();
    state.paged(&paged);
}
