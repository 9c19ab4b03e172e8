//! One trace by id, from its shard's primary and from whoever holds older data of the shard.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spandrel_model::error::PortError;
use spandrel_model::ids::{NodeId, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{DecisionView, TraceAbsence, TraceAnswer, TraceLookup, TraceReader};
use spandrel_model::search::{MissingPart, TraceState};
use spandrel_model::verdict::CERTAIN;

use super::super::message::{OpenedPart, OpenedTrace, decode_trace, encode_part, malformed};
use super::super::part::NodePart;
use super::super::plan::{Demand, Standing};
use super::super::reader::PartsReader;
use super::super::trace::{FoundPart, TracePart};
use super::merge::add_missing;
use super::merged_reader::{MergedReader, Source};
use super::peer::{PeerError, nonsense};
use super::remote_reader::RemoteReader;
use super::scatter::{Question, Scattered, scatter};
use super::{Coordinator, holders_unreachable, lookup_deadline};
use crate::link::LinkClass;
use crate::wire::{OpenTrace, query_answer::Answer, query_request};

/// All times: a trace is asked for by its id alone.
const ALL_TIMES: (UnixNanos, UnixNanos) = (UnixNanos(0), UnixNanos(u64::MAX));

pub(super) struct TraceQuestion<'a> {
    pub(super) coordinator: &'a Coordinator,
    pub(super) tenant: &'a TenantId,
    pub(super) trace_id: TraceId,
    pub(super) shard: ShardId,
    pub(super) marks: Marks,
}

/// Whether spans carry the mark of the sampling that kept them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    Shown,
    None,
}

/// What one node answered.
pub(super) enum HolderAnswer {
    Found(HolderPart),
    Absent(TraceAbsence),
}

/// What one node has of a trace.
pub(super) struct HolderPart {
    state: TraceState,
    missing: Vec<MissingPart>,
    decision: Option<DecisionView>,
    span_count: u32,
    /// In 2^-32.
    probability: u64,
    /// It has the live trace, if it is live: it knows best.
    is_live: bool,
    /// Gives spans without the mark of sampling.
    pub(super) reader: Box<dyn TraceReader>,
}

impl Coordinator {
    pub(super) async fn fetch(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<TraceLookup, PortError> {
        self.fetch_as(tenant, trace_id, Marks::Shown).await
    }

    /// As a fetch, with spans as they were stored, and of all who may have some: when one of them is out of reach, it is
    /// an error. What a holder cannot read is missing, as in a fetch.
    pub(crate) async fn fetch_stored(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<TraceLookup, PortError> {
        self.fetch_as(tenant, trace_id, Marks::None).await
    }

    async fn fetch_as(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
        marks: Marks,
    ) -> Result<TraceLookup, PortError> {
        // First: what it brings is in the map by then.
        let contact = self.no_contact(ALL_TIMES).await;
        let state = self.state();
        let shard = self.local().shared.shard(tenant, trace_id);
        let demand = Demand {
            every_holder: marks == Marks::None,
            ..self.demand(&state, Some(shard), ALL_TIMES)
        };
        let mut standing = self.standing(&state);
        if let (Some(part), None) = (self.alone(&demand)?, &contact) {
            let depth = part.depth(shard);
            let found = self.local().look_up(tenant, trace_id, depth).await?;
            return Ok(self.answer_alone(found, marks));
        }
        let question = TraceQuestion {
            coordinator: self,
            tenant,
            trace_id,
            shard,
            marks,
        };
        let scattered = question.ask_holders(&demand, &mut standing).await;
        let mut missing = scattered.missing;
        missing.extend(contact);
        if marks == Marks::None && !missing.is_empty() {
            return Err(holders_unreachable(tenant, &missing));
        }
        let mut parts = Vec::new();
        let mut absences = Vec::new();
        let primary = state.shard(shard).map(|record| record.primary);
        let mut primary_answered = false;
        for reply in scattered.replies {
            primary_answered |= Some(reply.node) == primary && reply.part.live.contains(shard);
            match reply.answer {
                HolderAnswer::Found(part) => parts.push((reply.node, part)),
                HolderAnswer::Absent(absence) => absences.push(absence),
            }
        }
        if parts.is_empty() {
            // A follower may learn of the last acknowledged spans some moments after its primary.
            if let Some(primary) = primary.filter(|_| !primary_answered) {
                missing.push(part_of(primary, shard, &standing));
            }
            if !missing.is_empty() {
                return Err(holders_unreachable(tenant, &missing));
            }
            return Ok(TraceLookup::Absent(newest_absence(absences)));
        }
        Ok(TraceLookup::Found(question.merge(parts, missing, standing)))
    }

    fn answer_alone(&self, found: TracePart, marks: Marks) -> TraceLookup {
        match found {
            TracePart::Absent(absence) => TraceLookup::Absent(absence),
            TracePart::Found(found) => {
                let shared = Arc::clone(&self.local().shared);
                let parts = match marks {
                    Marks::Shown => found.parts,
                    Marks::None => found.parts.unmarked(),
                };
                TraceLookup::Found(TraceAnswer {
                    state: found.state,
                    complete: found.missing.is_empty(),
                    missing: found.missing,
                    decision: found.decision,
                    span_count: found.span_count,
                    reader: Box::new(PartsReader::new(shared, parts)),
                })
            }
        }
    }
}

/// The primary's answer is missing.
fn part_of(primary: NodeId, shard: ShardId, standing: &Standing) -> MissingPart {
    let reason = standing.failed.get(&primary).cloned();
    MissingPart {
        node: primary,
        shards: vec![shard],
        from: ALL_TIMES.0,
        to: ALL_TIMES.1,
        reason: reason.unwrap_or_else(|| "the shard's primary did not answer".to_owned()),
    }
}

/// A drop that somebody knows of beats ignorance; of what is known to be covered, the least is promised.
fn newest_absence(absences: Vec<TraceAbsence>) -> TraceAbsence {
    let mut since = UnixNanos(0);
    let mut dropped: Option<DecisionView> = None;
    for absence in absences {
        match absence {
            TraceAbsence::Unknown { retained_since } => since = since.max(retained_since),
            TraceAbsence::Dropped(decision) => {
                let is_newer = dropped
                    .as_ref()
                    .is_none_or(|known| known.decided_at < decision.decided_at);
                if is_newer {
                    dropped = Some(decision);
                }
            }
        }
    }
    dropped.map_or(
        TraceAbsence::Unknown {
            retained_since: since,
        },
        TraceAbsence::Dropped,
    )
}

impl TraceQuestion<'_> {
    pub(super) async fn ask_holders(
        &self,
        demand: &Demand<'_>,
        standing: &mut Standing,
    ) -> Scattered<HolderAnswer> {
        scatter(demand, standing, lookup_deadline(), self).await
    }

    pub(super) fn demand<'a>(&self, state: &'a spandrel_raft::ClusterState) -> Demand<'a> {
        self.coordinator.demand(state, Some(self.shard), ALL_TIMES)
    }

    fn merge(
        &self,
        mut parts: Vec<(NodeId, HolderPart)>,
        mut missing: Vec<MissingPart>,
        standing: Standing,
    ) -> TraceAnswer {
        // A keep is never taken back; else the live copy knows best, else the newest decision.
        parts.sort_by_key(|(node, part)| {
            let decided_at = part.decision.as_ref().map(|decision| decision.decided_at);
            let rank = (part.state == TraceState::Kept, part.is_live, decided_at);
            (std::cmp::Reverse(rank), *node)
        });
        let state = parts
            .first()
            .map_or(TraceState::Open, |(_, part)| part.state);
        let of_state = parts.iter().filter(|(_, part)| part.state == state);
        let newest = of_state.max_by_key(|(node, part)| {
            let decided_at = part.decision.as_ref().map(|decision| decision.decided_at);
            (decided_at, part.is_live, std::cmp::Reverse(*node))
        });
        let decision = newest.and_then(|(_, part)| part.decision.clone());
        let probability = match self.marks {
            Marks::Shown => newest.map(|(_, part)| part.probability).unwrap_or_default(),
            Marks::None => CERTAIN,
        };
        let span_count = parts.iter().map(|(_, part)| part.span_count).max();
        let mut sources = Vec::with_capacity(parts.len());
        for (node, part) in parts {
            add_missing(&mut missing, part.missing);
            sources.push(Source {
                node,
                reader: part.reader,
            });
        }
        let reader = MergedReader::new(self, sources, probability, standing);
        TraceAnswer {
            state,
            complete: missing.is_empty(),
            missing,
            decision,
            span_count: span_count.unwrap_or_default(),
            reader: Box::new(reader),
        }
    }

    async fn ask_peer(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<HolderAnswer, PeerError> {
        let question = query_request::Question::Open(OpenTrace {
            part: Some(encode_part(part)),
            trace_id: self.trace_id.0.to_vec().into(),
        });
        let answer = self
            .coordinator
            .call(node, LinkClass::Bulk, self.tenant, question, left)
            .await?;
        let Answer::Trace(answer) = answer else {
            return Err(nonsense(node)(malformed("answer")()));
        };
        match decode_trace(answer).map_err(nonsense(node))? {
            OpenedTrace::Absent(absence) => Ok(HolderAnswer::Absent(absence)),
            OpenedTrace::Found(found) => Ok(HolderAnswer::Found(self.remote(node, part, found))),
        }
    }

    fn remote(&self, node: NodeId, part: &NodePart, found: OpenedPart) -> HolderPart {
        HolderPart {
            state: found.state,
            missing: found.missing,
            decision: found.decision,
            span_count: found.span_count,
            probability: found.probability,
            is_live: part.live.contains(self.shard),
            reader: Box::new(RemoteReader {
                coordinator: self.coordinator.clone(),
                node,
                tenant: self.tenant.clone(),
                trace_id: self.trace_id,
                reader: found.reader,
                pulls: 0,
                first: Some(found.first),
                is_done: false,
            }),
        }
    }

    fn local(&self, part: &NodePart, found: FoundPart) -> HolderPart {
        let shared = Arc::clone(&self.coordinator.local().shared);
        HolderPart {
            state: found.state,
            missing: found.missing,
            decision: found.decision,
            span_count: found.span_count,
            probability: found.parts.probability,
            is_live: part.live.contains(self.shard),
            reader: Box::new(PartsReader::new(shared, found.parts.unmarked())),
        }
    }
}

#[async_trait]
impl Question for TraceQuestion<'_> {
    type Answer = HolderAnswer;

    fn damage(&self, answer: &mut HolderAnswer) -> Option<MissingPart> {
        let HolderAnswer::Found(part) = answer else {
            return None;
        };
        // Where all are asked anyway, what one of them cannot read stays missing.
        if self.marks == Marks::None {
            return None;
        }
        std::mem::take(&mut part.missing)
            .into_iter()
            .reduce(|mut all, other| {
                all.from = all.from.min(other.from);
                all.to = all.to.max(other.to);
                all.reason = format!("{}; {}", all.reason, other.reason);
                all
            })
    }

    async fn ask(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<HolderAnswer, String> {
        if node != self.coordinator.parts.node {
            let answer = self.ask_peer(node, part, left).await;
            return answer.map_err(|error| error.to_string());
        }
        let local = self.coordinator.local();
        let depth = part.depth(self.shard);
        let found = local.look_up(self.tenant, self.trace_id, depth).await;
        Ok(match found.map_err(|error| error.to_string())? {
            TracePart::Absent(absence) => HolderAnswer::Absent(absence),
            TracePart::Found(found) => HolderAnswer::Found(self.local(part, found)),
        })
    }
}
