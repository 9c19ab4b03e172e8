//! Gives older data to the nodes that are to hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ractor::ActorRef;
use spandrel_model::credit::Credit;
use spandrel_model::ids::{Bucket, NodeId, ShardId, TenantId, Term, TraceId};
use spandrel_raft::ClusterState;
use spandrel_raft::limits::MAX_HOLDER_CHANGES;
use spandrel_raft::state::{HolderKey, NodeState};
use spandrel_storage::block::PagePlace;
use spandrel_storage::page::FragmentHead;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::assembler_message::AssemblerMessage;
use crate::buggify::Site;
use crate::limits::{
    COPY_CREDIT_BYTES, COPY_DEADLINE_MS, INVENTORY_TRACES, MAX_COPIES_GIVEN, PAGES_PIECE_BYTES,
};
use crate::link::{Caller, IncomingCall, PeerHandler, PeerService};
use crate::meters::Stage;
use crate::pager::PagerMessage;
use crate::shared::Shared;
use crate::wire::copy_answer::Answer;
use crate::wire::{CopyAnswer, CopyPiece, CopyRefusal, CopyRequest, NamedTraces};

/// Answers [`PeerService::Copies`]. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CopyServer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Arc<[ActorRef<AssemblerMessage>]>,
    pub(crate) pager: ActorRef<PagerMessage>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    running: Arc<Semaphore>,
    /// The parts that are being fetched piece by piece, each made once.
    parts: Arc<Mutex<BTreeMap<NodeId, (Asked, Part)>>>,
}

/// What a node asks for, but for the piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    bucket: Bucket,
    /// All that the bucket has of these shards: a fragment stands under the number of the last record that the node knew
    /// when it wrote it, which may be of an earlier or a later term than its spans.
    shards: BTreeSet<ShardId>,
    /// Of one shard, these traces alone.
    traces: Option<(TenantId, BTreeSet<TraceId>)>,
    after: PagePlace,
}

/// Fragments, packed; empty when the pages that were read have none for the asker.
#[derive(Debug, Clone)]
struct Part {
    bytes: Bytes,
    next: Option<PagePlace>,
    _credit: Arc<Credit>,
}

impl PeerHandler for CopyServer {
    fn deliver(&self, call: IncomingCall) {
        let IncomingCall {
            from,
            service,
            request,
            reply,
            ..
        } = call;
        let (Caller::Node(from), PeerService::Copies) = (from, service) else {
            let _ = reply.send(Err("only members of the cluster ask for data".to_owned()));
            return;
        };
        if self.shared.env.buggify.strikes(Site::CopyRefused) {
            let _ = reply.send(Ok(message(refused("the simulation lets it be refused"))));
            return;
        }
        let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() else {
            let _ = reply.send(Ok(message(refused("other copies are being made"))));
            return;
        };
        let server = self.clone();
        self.shared.spawn_job("copies", async move {
            let deadline = Duration::from_millis(COPY_DEADLINE_MS);
            let answer = tokio::time::timeout(deadline, server.answer(from, request)).await;
            let answer = answer.unwrap_or_else(|_| Err("not in time".to_owned()));
            let answer = answer.unwrap_or_else(|reason| refused(&reason));
            let _ = reply.send(Ok(message(answer)));
            drop(permit);
        });
    }
}

fn refused(reason: &str) -> Answer {
    let reason = reason.to_owned();
    Answer::Refused(CopyRefusal { reason })
}

fn message(answer: Answer) -> Bytes {
    let answer = CopyAnswer {
        answer: Some(answer),
    };
    answer.encode_to_vec().into()
}

impl CopyServer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        shards: Arc<[ActorRef<AssemblerMessage>]>,
        pager: ActorRef<PagerMessage>,
        cluster: watch::Receiver<Arc<ClusterState>>,
    ) -> Self {
        Self {
            shared,
            shards,
            pager,
            cluster,
            running: Arc::new(Semaphore::new(MAX_COPIES_GIVEN)),
            parts: Arc::default(),
        }
    }

    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Answer, String> {
        let request = CopyRequest::decode(request).map_err(|error| error.to_string())?;
        let bucket = Bucket(u32::try_from(request.bucket).map_err(|_| "no such bucket")?);
        if request.keys.len() > MAX_HOLDER_CHANGES {
            return Err(format!("more than {MAX_HOLDER_CHANGES} keys"));
        }
        let mut keys = Vec::with_capacity(request.keys.len());
        for key in &request.keys {
            let shard = u16::try_from(key.shard).map_err(|_| "no such shard")?;
            keys.push(HolderKey {
                shard: ShardId(shard),
                term: Term(key.term),
            });
        }
        let tenant = u16::try_from(request.after_tenant).map_err(|_| "no such tenant")?;
        let after = PagePlace {
            tenant,
            page: request.after_page,
        };
        let asked = match &request.traces {
            // Whoever compares takes what there is.
            Some(named) => {
                let (tenant, shard, traces) = named_traces(named)?;
                Asked {
                    bucket,
                    shards: BTreeSet::from([shard]),
                    traces: Some((tenant, traces.into_iter().collect())),
                    after,
                }
            }
            None => {
                if (after, request.offset) == (PagePlace::default(), 0) {
                    self.has_all(bucket, &keys, request.applied).await?;
                }
                Asked {
                    bucket,
                    shards: keys.iter().map(|key| key.shard).collect(),
                    traces: None,
                    after,
                }
            }
        };
        let part = self.part(from, asked, request.offset).await?;
        piece(&part, request.offset)
    }

    /// Refuses unless this node's blocks hold everything that records of these terms brought into the bucket.
    async fn has_all(
        &self,
        bucket: Bucket,
        keys: &[HolderKey],
        applied: u64,
    ) -> Result<(), String> {
        let has_holes = self.shared.has_holes.load(Ordering::Relaxed);
        let mut cluster = self.cluster.clone();
        let state = cluster
            .wait_for(|state| state.applied_index >= applied)
            .await;
        let state = Arc::clone(&*state.map_err(|_| "the node is stopping")?);
        let me = self.shared.node;
        let mut last_terms: BTreeMap<ShardId, Term> = BTreeMap::new();
        for key in keys {
            let records = state.holders.get(&bucket);
            let holders = records.and_then(|records| records.get(key));
            if !holders.is_some_and(|holders| holders.contains(&me)) {
                return Err(format!(
                    "it does not hold shard {} of term {}",
                    key.shard.0, key.term.0
                ));
            }
            // A copy of what has holes is better than none, where nobody else has any.
            let mut others = holders.into_iter().flatten().filter(|node| **node != me);
            if has_holes && others.any(|node| state.nodes.contains_key(node)) {
                return Err("frames of its journal were lost, and others have the data".to_owned());
            }
            let shard = state.shard(key.shard);
            if shard.is_none_or(|shard| shard.term <= key.term) {
                return Err(format!(
                    "term {} of shard {} goes on",
                    key.term.0, key.shard.0
                ));
            }
            let last = last_terms.entry(key.shard).or_insert(key.term);
            *last = key.term.max(*last);
        }
        for (shard, term) in last_terms {
            let Some(assembler) = self.shards.get(usize::from(shard.0)) else {
                return Err("no such shard".to_owned());
            };
            let (reply, settled) = oneshot::channel();
            let asked = assembler.cast(AssemblerMessage::Settled(bucket, term, reply));
            asked.map_err(|_| "the node is stopping")?;
            if !settled.await.map_err(|_| "the node is stopping")? {
                self.write_soon(&state);
                return Err(format!("traces of shard {} wait for their page", shard.0));
            }
        }
        Ok(())
    }

    /// A node that leaves does not wait until its pages are full.
    fn write_soon(&self, state: &ClusterState) {
        let record = state.nodes.get(&self.shared.node);
        if record.is_some_and(|record| record.state == NodeState::Draining) {
            let (reply, _) = oneshot::channel();
            let _ = self.pager.cast(PagerMessage::Flush(reply));
        }
    }

    async fn part(&self, from: NodeId, asked: Asked, offset: u64) -> Result<Part, String> {
        let known = self.parts().remove(&from);
        let part = match known {
            Some((known, part)) if known == asked && offset > 0 => part,
            _ => {
                let (shared, wanted) = (Arc::clone(&self.shared), asked.clone());
                let export = move || export(&shared, &wanted);
                self.shared.block(Stage::Copy, export).await?
            }
        };
        let answered = offset.saturating_add(PAGES_PIECE_BYTES as u64);
        if answered < part.bytes.len() as u64 {
            self.parts().insert(from, (asked, part.clone()));
        }
        Ok(part)
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Asked, Part)>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The traces that somebody names.
fn named_traces(ask: &NamedTraces) -> Result<(TenantId, ShardId, Vec<TraceId>), String> {
    if ask.trace_ids.len() > INVENTORY_TRACES {
        return Err(format!("more than {INVENTORY_TRACES} traces"));
    }
    let tenant = ask
        .tenant
        .parse()
        .map_err(|_| "no such tenant".to_owned())?;
    let shard = u16::try_from(ask.shard).map_err(|_| "no such shard".to_owned())?;
    let traces = ask
        .trace_ids
        .iter()
        .map(|id| id.as_ref().try_into().map(TraceId));
    let traces: Result<Vec<TraceId>, _> = traces.collect();
    let traces = traces.map_err(|_| "a trace id has 16 bytes".to_owned())?;
    Ok((tenant, ShardId(shard), traces))
}

fn export(shared: &Shared, asked: &Asked) -> Result<Part, String> {
    let node = shared.node;
    // Spans and the page that is made of them, for as long as that takes and the part is fetched.
    let credit = shared.pool.try_take(COPY_CREDIT_BYTES);
    let credit = credit.ok_or("it has no memory for a copy now")?;
    let wanted = |head: &FragmentHead| asked.shards.contains(&head.shard);
    let (blocks, bucket, after) = (&shared.blocks, asked.bucket, asked.after);
    let exported = match (&asked.traces, asked.shards.first()) {
        (Some((tenant, traces)), Some(shard)) => {
            blocks.export_traces(bucket, (tenant, *shard), traces, node, after)
        }
        _ => blocks.export(bucket, &wanted, node, after),
    };
    let exported = exported.map_err(|error| error.to_string())?;
    let packed = exported.write.map(|write| write.pack()).transpose();
    let bytes = packed.map_err(|error| error.to_string())?;
    Ok(Part {
        bytes: bytes.unwrap_or_default(),
        next: exported.next,
        _credit: Arc::new(credit),
    })
}

/// The piece of a part that begins at `offset`.
fn piece(part: &Part, offset: u64) -> Result<Answer, String> {
    let outside = || "nothing of the part is there".to_owned();
    let from = usize::try_from(offset).map_err(|_| outside())?;
    if from > part.bytes.len() {
        return Err(outside());
    }
    let to = from.saturating_add(PAGES_PIECE_BYTES).min(part.bytes.len());
    let next = part.next.unwrap_or_default();
    Ok(Answer::Piece(CopyPiece {
        bytes: part.bytes.slice(from..to),
        part_bytes: part.bytes.len() as u64,
        is_last: part.next.is_none(),
        next_tenant: next.tenant.into(),
        next_page: next.page,
    }))
}
