//! What must hold at every moment of a run, each invariant by its name. They look at all nodes at once, as nobody in
//! production can.
//!
//! Not verified: that spans of a dropped trace are brought together when it is kept after all, what is in pages beyond which traces they hold, queries, memory credit, and anything that openraft, the
//! links and redb do: whole nodes are simulated for that (`cluster/`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spandrel_actors::assembler::Depth;
use spandrel_actors::placement::least_copies;
use spandrel_actors::replication::CopyPhase;
use spandrel_model::ids::{Lsn, NodeId, TenantId, Term, TraceId};
use spandrel_model::verdict::{Trigger, Verdict};
use spandrel_raft::ClusterState;
use spandrel_raft::state::{NodeState, ShardRecord};

use super::log::{Content, Kind};
use super::node::{Decisions, Role};
use super::world::{World, places};

/// What was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// The invariant.
    pub(crate) name: &'static str,
    pub(crate) detail: String,
}

/// An acknowledged request.
struct Acknowledged {
    lsn: Lsn,
    trace_id: TraceId,
    values: Vec<u64>,
}

/// What is true of a shard, whatever its nodes know.
#[derive(Default)]
struct ShardTruth {
    /// Every number that was given out, and for which content.
    given: BTreeMap<Lsn, u64>,
    /// Every record that came to be on every copy.
    counted: BTreeMap<Lsn, u64>,
    /// The first of them that holds a span.
    first: BTreeMap<u64, Lsn>,
    acknowledged: Vec<Acknowledged>,
    /// Who has acknowledged in which term.
    by: BTreeMap<Term, NodeId>,
    decisions: Decisions,
    /// Kept traces that were in blocks of disks which are lost, and up to which record.
    lost_blocks: BTreeMap<TraceId, Lsn>,
}

/// What is true.
pub(crate) struct Truth {
    shards: Vec<ShardTruth>,
}

impl Truth {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| ShardTruth::default()).collect(),
        }
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.acknowledged.len())
            .sum()
    }

    pub(crate) fn decided(&self) -> usize {
        self.shards.iter().map(|shard| shard.decisions.len()).sum()
    }
}

impl ShardTruth {
    /// Whether a drop that counts has read it: its spans stay where they are, also when the trace is kept after all
    /// (production then brings them from there).
    fn is_dropped(&self, one: &Acknowledged) -> bool {
        let (lsn, of_trace) = (self.first(one), self.decisions.get(&one.trace_id));
        let mut drops = of_trace.into_iter().flatten();
        drops.any(|(_, record)| record.verdict == Verdict::Drop && record.input_lsn >= lsn)
    }

    /// The record by which its spans were known to all: a request that comes again changes nothing.
    fn first(&self, one: &Acknowledged) -> Lsn {
        let known = one.values.iter().filter_map(|value| self.first.get(value));
        known.max().copied().unwrap_or(one.lsn).min(one.lsn)
    }
}

impl World {
    /// Whether the spans of a request are in a block somewhere: whoever joins later does not get them.
    fn is_paged(&self, shard: usize, one: &Acknowledged) -> bool {
        let lsn = self.truth.shards[shard].first(one);
        let blocks = self.nodes.iter().map(|node| &node.disk[shard].blocks);
        let mut blocks = blocks.chain([&self.truth.shards[shard].lost_blocks]);
        blocks.any(|blocks| blocks.get(&one.trace_id).is_some_and(|upto| *upto >= lsn))
    }

    /// The blocks of a disk go with it.
    pub(crate) fn note_lost_blocks(&mut self, node: usize) {
        for (log, truth) in self.nodes[node].disk.iter().zip(&mut self.truth.shards) {
            for (trace_id, upto) in &log.blocks {
                let known = truth.lost_blocks.entry(*trace_id).or_default();
                *known = (*known).max(*upto);
            }
        }
    }

    pub(crate) fn broken(&mut self, name: &'static str, detail: String) {
        if self.broken.is_none() {
            self.tell(|| format!("broken: {name}: {detail}"));
            self.broken = Some(Broken { name, detail });
        }
    }

    /// `isr_grows_with_a_term`, `one_primary_a_term`, `terms_go_on`: of each change of the settings.
    pub(crate) fn check_settings(&mut self, new: &ClusterState) {
        let before = Arc::clone(self.newest());
        for (old, record) in before.shard_map.iter().zip(&new.shard_map) {
            if record.term < old.term {
                self.broken("terms_go_on", format!("{old:?} becomes {record:?}"));
            }
            if record.term != old.term {
                continue;
            }
            if record.isr.iter().any(|node| !old.isr.contains(node)) {
                self.broken(
                    "isr_grows_with_a_term",
                    format!("{old:?} becomes {record:?}"),
                );
            }
            if record.primary != old.primary {
                self.broken("one_primary_a_term", format!("{old:?} becomes {record:?}"));
            }
        }
    }

    /// `numbers_are_given_once`.
    pub(crate) fn check_given(
        &mut self,
        node: usize,
        shard: usize,
        term: Term,
        lsn: Lsn,
        content: &Arc<Content>,
    ) {
        let known = self.truth.shards[shard].given.insert(lsn, content.id);
        if lsn.term() != term || known.is_some() {
            let detail = format!("node {} gives {lsn:?} of shard {shard} again", node + 1);
            self.broken("numbers_are_given_once", detail);
        }
    }

    /// `counted_on_every_copy`: what a primary counts is on the disk of each copy that is in sync by its map, unless that
    /// one has begun anew behind it.
    fn check_counts(&mut self, node: usize, shard: usize, lsn: Lsn, content: &Arc<Content>) {
        let process = self.nodes[node].process.as_ref();
        let Some(Role::Primary(primary)) = process.map(|process| &process.sides[shard].role) else {
            return;
        };
        let in_sync = primary.copies.iter().filter(|copy| !copy.filling);
        for at in places(&self.nodes, in_sync.map(|copy| copy.node)) {
            let (id, log) = (self.nodes[at].id, &self.nodes[at].disk[shard]);
            let lacks = log.get(lsn).is_none_or(|held| held.id != content.id);
            if lacks && lsn > log.start && !self.nodes[at].is_gone {
                let detail = format!("{} of shard {shard} is not at {id:?}", show(lsn));
                return self.broken("counted_on_every_copy", detail);
            }
        }
    }

    /// A primary says that its records up to this one are on every copy.
    pub(crate) fn counts(&mut self, node: usize, shard: usize, commit: Lsn) {
        let truth = &self.truth.shards[shard];
        let upto = truth.counted.keys().next_back().copied();
        let log = &self.nodes[node].disk[shard];
        let new = log.behind(upto.unwrap_or_default());
        let new = new.take_while(|(lsn, _)| *lsn <= commit);
        let new: Vec<(Lsn, Arc<Content>)> = new
            .map(|(lsn, content)| (lsn, Arc::clone(content)))
            .collect();
        for (lsn, content) in new {
            let truth = &mut self.truth.shards[shard];
            let known = truth.counted.insert(lsn, content.id);
            for value in content.values() {
                truth.first.entry(*value).or_insert(lsn);
            }
            if known.is_some_and(|known| known != content.id)
                || truth.given.get(&lsn) != Some(&content.id)
            {
                let detail = format!("{lsn:?} of shard {shard} at node {}", node + 1);
                return self.broken("one_record_a_number", detail);
            }
            self.tell(|| {
                let (number, name) = (node + 1, describe(&content));
                format!("node {number}: shard {shard} counts {} {name}", show(lsn))
            });
            self.check_counts(node, shard, lsn, &content);
            if known.is_none() {
                self.check_decisions(shard, lsn, &content);
            }
        }
    }

    /// `a_verdict_is_adopted`: a trace is decided once; afterwards only what comes late, or a request, turns a drop.
    fn check_decisions(&mut self, shard: usize, lsn: Lsn, content: &Content) {
        let Kind::Verdicts {
            records,
            again: false,
        } = &content.kind
        else {
            return;
        };
        for record in records {
            let of = self.truth.shards[shard]
                .decisions
                .entry(record.trace_id)
                .or_default();
            let is_adopted = match of.last().map(|(_, before)| before.verdict) {
                None => true,
                Some(Verdict::Keep) => false,
                Some(Verdict::Drop) => {
                    matches!(record.trigger, Trigger::LateSpan | Trigger::Promoted)
                }
            };
            let before = of.last().cloned();
            of.push((lsn, record.clone()));
            if !is_adopted {
                let detail = format!(
                    "trace {} of shard {shard}: {before:?}, then {lsn:?} {record:?}",
                    record.trace_id
                );
                self.broken("a_verdict_is_adopted", detail);
            }
        }
    }

    /// `one_primary_acknowledges`, `acknowledged_on_enough_copies`.
    pub(crate) fn check_acknowledgement(
        &mut self,
        node: usize,
        shard: usize,
        lsn: Lsn,
        content: &Arc<Content>,
    ) {
        let me = self.nodes[node].id;
        let Some(process) = self.nodes[node].process.as_ref() else {
            return;
        };
        let Role::Primary(primary) = &process.sides[shard].role else {
            return;
        };
        let term = primary.term;
        let truth = &mut self.truth.shards[shard];
        let by = *truth.by.entry(term).or_insert(me);
        let trace_id = match &content.kind {
            Kind::Spans { batch, .. } => batch.spans.first().map(|span| span.trace_id),
            Kind::Verdicts { .. } => None,
        };
        truth.acknowledged.push(Acknowledged {
            lsn,
            trace_id: trace_id.unwrap_or(TraceId([0; 16])),
            values: content.values().to_vec(),
        });
        if by != me {
            let detail = format!("{by:?} and {me:?} in term {} of shard {shard}", term.0);
            self.broken("one_primary_acknowledges", detail);
        }
        let least = least_copies(&self.map_of(node));
        let lost = self.nodes.iter().filter(|node| node.is_gone).count();
        let holds = |node: &&super::node::Node| {
            let held = node.disk[shard].get(lsn);
            held.is_some_and(|held| held.id == content.id)
        };
        let copies = self.nodes.iter().filter(holds).count();
        // What the copy has answered may come after the loss of its disk.
        if copies + lost < least {
            let detail = format!("{lsn:?} of shard {shard} is on {copies} disks of {least}");
            self.broken("acknowledged_on_enough_copies", detail);
        }
    }

    /// `no_effect_before_it_counts`, of what a follower's assembler gets.
    pub(crate) fn check_counted(
        &mut self,
        node: usize,
        shard: usize,
        lsn: Lsn,
        content: &Arc<Content>,
    ) {
        let counted = self.truth.shards[shard].counted.get(&lsn);
        if counted != Some(&content.id) {
            let detail = format!("{lsn:?} of shard {shard} at node {}", node + 1);
            self.broken("no_effect_before_it_counts", detail);
        }
    }

    /// The same, of what a follower is told that is settled before it begins anew: no in-sync copy lacks it, but for one
    /// that has begun anew behind it itself.
    pub(crate) fn check_settled(&mut self, shard: usize, lsn: Lsn, content: &Arc<Content>) {
        let state = Arc::clone(self.newest());
        let isr = state.shard_map[shard].isr.iter().copied();
        for node in places(&self.nodes, isr) {
            let log = &self.nodes[node].disk[shard];
            let lacks = log.get(lsn).is_none_or(|held| held.id != content.id);
            if lacks && lsn > log.start && !self.nodes[node].is_gone {
                let detail = format!("{lsn:?} of shard {shard} is not at node {}", node + 1);
                self.broken("no_effect_before_it_counts", detail);
            }
        }
    }

    /// `applied_in_order`, `one_record_a_number`.
    pub(crate) fn check_effect(
        &mut self,
        node: usize,
        shard: usize,
        lsn: Lsn,
        content: &Arc<Content>,
    ) {
        let Some(process) = self.nodes[node].process.as_ref() else {
            return;
        };
        let is_next = lsn > process.sides[shard].applied;
        let truth = &self.truth.shards[shard];
        let is_given = truth.given.get(&lsn) == Some(&content.id);
        let detail = format!("{lsn:?} of shard {shard} at node {}", node + 1);
        if !is_given {
            self.broken("one_record_a_number", detail);
        } else if !is_next {
            self.broken("applied_in_order", detail);
        }
    }

    /// `no_counted_record_is_void`, of a copy that counts for the shard.
    pub(crate) fn check_void(&mut self, node: usize, shard: usize, gone: &[(Lsn, Arc<Content>)]) {
        let id = self.nodes[node].id;
        if self.newest().shard_map[shard].isr.contains(&id) {
            let truth = &self.truth.shards[shard];
            let counts =
                |(lsn, content): &&(Lsn, Arc<Content>)| truth.counted.get(lsn) == Some(&content.id);
            if let Some((lsn, _)) = gone.iter().find(counts) {
                let detail = format!("{lsn:?} of shard {shard} at {id:?}");
                self.broken("no_counted_record_is_void", detail);
            }
        }
        if !gone.is_empty() {
            let gone: Vec<String> = gone.iter().map(|(lsn, _)| show(*lsn)).collect();
            self.tell(|| format!("node {}: shard {shard} voids {gone:?}", node + 1));
            self.check();
        }
    }

    /// `acknowledged_on_every_copy`: what was acknowledged is on the disk of each member of the in-sync set.
    pub(crate) fn check(&mut self) {
        let state = Arc::clone(self.newest());
        for (shard, record) in state.shard_map.iter().enumerate() {
            for node in places(&self.nodes, record.isr.iter().copied()) {
                let one = &self.nodes[node];
                if one.is_gone {
                    continue;
                }
                let log = &one.disk[shard];
                let truth = &self.truth.shards[shard];
                let lacks = |known: &&Acknowledged| {
                    let mut values = known.values.iter();
                    values.any(|value| !log.holds(*value))
                        && !truth.is_dropped(known)
                        && !self.is_paged(shard, known)
                };
                if let Some(lost) = truth.acknowledged.iter().find(lacks) {
                    let detail = format!(
                        "{:?} of trace {} of shard {shard} is not at {:?}, {record:?}",
                        lost.lsn, lost.trace_id, one.id
                    );
                    return self.broken("acknowledged_on_every_copy", detail);
                }
            }
        }
    }

    // ---- at rest ----

    fn nodes_here(&self) -> impl Iterator<Item = &super::node::Node> {
        self.nodes.iter().filter(|node| !node.is_gone)
    }

    /// Whether the disks of all in-sync copies are gone: a disk was lost and, before the settings knew, every other copy was
    /// taken for dead. The shard waits for an operator (`node remove --i-accept-loss`), and so it should.
    fn is_lost(&self, record: &ShardRecord) -> bool {
        let copies = places(&self.nodes, record.isr.iter().copied());
        copies.iter().all(|place| self.nodes[*place].is_gone)
    }

    /// Why the run has not come to rest; nothing when it has.
    fn unrest(&self) -> Option<String> {
        let state = self.newest();
        let last = self.states.len() - 1;
        let waiting = self.clients.iter().filter(|one| !one.is_acknowledged);
        let waiting = waiting.filter(|one| !self.is_lost(&state.shard_map[one.shard]));
        let waiting = waiting.count();
        if waiting > 0 {
            return Some(format!("{waiting} requests are not acknowledged"));
        }
        for node in self.nodes_here() {
            let is_up = state.nodes.get(&node.id).map(|node| node.state) == Some(NodeState::Up);
            let Some(process) = node.process.as_ref() else {
                return Some(format!("{:?} does not run", node.id));
            };
            if !is_up || process.epoch != last {
                return Some(format!("{:?} is not up, or has an old map", node.id));
            }
        }
        let wanted = usize::from(state.replication).min(self.nodes_here().count());
        for (shard, record) in state.shard_map.iter().enumerate() {
            if self.is_lost(record) {
                continue;
            }
            if record.isr.len() != wanted || !record.filling.is_empty() {
                return Some(format!("shard {shard} has not its copies: {record:?}"));
            }
            let places = places(&self.nodes, [record.primary]);
            let primary = places
                .first()
                .and_then(|at| self.nodes[*at].process.as_ref());
            let Some(side) = primary.map(|process| &process.sides[shard]) else {
                return Some(format!("shard {shard} is led by nobody"));
            };
            let Role::Primary(led) = &side.role else {
                return Some(format!("{:?} does not lead shard {shard}", record.primary));
            };
            let all_live = led.copies.iter().all(|copy| copy.phase == CopyPhase::Live);
            if !led.is_drained() || !all_live || side.state.open_traces() > 0 {
                return Some(format!(
                    "shard {shard} is busy: {:?}, held {:?}, {} open, pending {}",
                    led.copies,
                    side.held,
                    side.state.open_traces(),
                    !led.is_drained(),
                ));
            }
            for at in super::world::places(&self.nodes, record.isr.iter().copied()) {
                let process = self.nodes[at].process.as_ref();
                let follower = process.map(|process| process.sides[shard].applied);
                if follower.is_some_and(|applied| applied.max(led.commit) != led.commit) {
                    return Some(format!("node {} is ahead of shard {shard}", at + 1));
                }
                let behind = self.nodes[at].disk[shard].last_valid() != led.last;
                if behind || follower.is_some_and(|applied| applied < side.applied) {
                    return Some(format!("node {} is behind in shard {shard}", at + 1));
                }
            }
        }
        None
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.unrest().is_none()
    }

    pub(crate) fn why_not_at_rest(&self) -> String {
        self.unrest()
            .unwrap_or_else(|| "too many events".to_owned())
    }

    /// `copies_agree`, `copies_know_what_was_acknowledged`, `everything_is_decided`.
    pub(crate) fn check_rest(&mut self) {
        self.check();
        let state = Arc::clone(self.newest());
        for (shard, record) in state.shard_map.iter().enumerate() {
            if self.is_lost(record) {
                continue;
            }
            let copies = places(&self.nodes, record.isr.iter().copied());
            let start = copies.iter().map(|at| self.nodes[*at].disk[shard].start);
            let start = start.max().unwrap_or_default();
            let lists: BTreeSet<Vec<(Lsn, u64)>> = copies
                .iter()
                .map(|at| {
                    let behind = self.nodes[*at].disk[shard].behind(start);
                    behind.map(|(lsn, content)| (lsn, content.id)).collect()
                })
                .collect();
            if lists.len() > 1 {
                let detail = format!("shard {shard} behind {start:?}, {record:?}");
                self.broken("copies_agree", detail);
            }
            for at in copies {
                self.check_knowledge(at, shard);
            }
            let truth = &self.truth.shards[shard];
            let acknowledged = truth.acknowledged.iter();
            let undecided = acknowledged
                .map(|one| one.trace_id)
                .find(|trace| !truth.decisions.contains_key(trace));
            if let Some(trace) = undecided {
                let detail = format!("trace {trace} of shard {shard}");
                self.broken("everything_is_decided", detail);
            }
        }
    }

    fn check_knowledge(&mut self, at: usize, shard: usize) {
        let (tenant, node) = (TenantId::default(), &self.nodes[at]);
        let Some(process) = node.process.as_ref() else {
            return;
        };
        let (side, log) = (&process.sides[shard], &node.disk[shard]);
        let truth = &self.truth.shards[shard];
        let is_lost = |one: &&Acknowledged| {
            if truth.is_dropped(one) || self.is_paged(shard, one) {
                return false;
            }
            let view = side.state.view(&tenant, one.trace_id, Depth::Live);
            let references = view.map(|view| view.references).unwrap_or_default();
            let contents = references.iter().filter_map(|lsn| log.get(*lsn));
            let known: BTreeSet<u64> = contents
                .flat_map(|content| content.values().iter().copied())
                .collect();
            one.values.iter().any(|value| !known.contains(value))
        };
        if let Some(lost) = truth.acknowledged.iter().find(is_lost) {
            let detail = format!(
                "{:?} of trace {} of shard {shard} is not known at {:?}",
                lost.lsn, lost.trace_id, node.id
            );
            self.broken("copies_know_what_was_acknowledged", detail);
        }
    }
}

/// A number as people read it: term and number within it.
pub(crate) fn show(lsn: Lsn) -> String {
    let before = Lsn::before_term(lsn.term());
    format!("{}/{}", lsn.term().0, lsn.0.saturating_sub(before.0))
}

/// What a record holds, for people.
pub(crate) fn describe(content: &Content) -> String {
    match &content.kind {
        Kind::Spans { batch, again, .. } => {
            let trace = batch.spans.first().map(|span| span.trace_id.0[15]);
            let word = if *again { "again" } else { "spans" };
            format!("{word} of trace {}", trace.unwrap_or_default())
        }
        Kind::Verdicts { records, again } => {
            let all = records
                .iter()
                .map(|record| format!("{}:{:?}", record.trace_id.0[15], record.verdict));
            let word = if *again { "again" } else { "verdicts" };
            format!("{word} {}", all.collect::<Vec<_>>().join(" "))
        }
    }
}
