//! Answers the questions of other nodes from what this one holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, TenantId};
use spandrel_raft::ClusterState;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::QueryPort;
use super::message::{
    Malformed, OpenedPart, OpenedTrace, decode_names_request, decode_part, decode_request,
    decode_trace_id, encode_decision, encode_names, encode_refusal, encode_search, encode_trace,
    malformed,
};
use super::part::NodePart;
use super::reader::PartsReader;
use super::readers::{Chunks, ReaderOwner, Readers};
use super::trace::TracePart;
use crate::buggify::Site;
use crate::limits::{
    HOLDERS_RETRY_MS, MAX_PEER_QUERIES, MAX_PEER_QUERIES_WAITING, MAX_PEER_QUERY_MS,
};
use crate::link::{Caller, IncomingCall, PeerHandler, PeerService};
use crate::wire::query_answer::Answer;
use crate::wire::query_request::Question;
use crate::wire::{OpenTrace, PullTrace, QueryAnswer, QueryRequest};

/// Answers [`PeerService::Query`]. Cheap to clone.
#[derive(Clone)]
pub(crate) struct QueryServer {
    local: Arc<QueryPort>,
    node: NodeId,
    cluster: watch::Receiver<Arc<ClusterState>>,
    readers: Arc<Readers>,
    /// Those that run or wait.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

/// What every question brings.
struct Asked {
    from: NodeId,
    tenant: TenantId,
    epoch: u64,
}

impl PeerHandler for QueryServer {
    fn deliver(&self, call: IncomingCall) {
        let IncomingCall {
            from,
            service,
            request,
            mut reply,
            ..
        } = call;
        let (Caller::Node(from), PeerService::Query) = (from, service) else {
            let _ = reply.send(Err("only members of the cluster ask for data".to_owned()));
            return;
        };
        let buggify = self.local.shared.env.buggify.clone();
        if buggify.strikes(Site::QuestionRefused) {
            let _ = reply.send(Ok(message(Answer::Refused(encode_refusal(&busy())))));
            return;
        }
        let Ok(permit) = Arc::clone(&self.admitted).try_acquire_owned() else {
            let _ = reply.send(Ok(message(Answer::Refused(encode_refusal(&busy())))));
            return;
        };
        let server = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            buggify.pause(Site::AnswerSlow).await;
            let answer = tokio::select! {
                biased;
                // The asker has given up, or has got its answer from another node.
                () = reply.closed() => return,
                answer = server.answer(from, request) => answer,
            };
            let _ = reply.send(answer);
        });
    }
}

fn busy() -> PortError {
    let message = format!("{MAX_PEER_QUERIES_WAITING} questions of other nodes wait already");
    PortError::unavailable("busy", message, HOLDERS_RETRY_MS)
}

fn not_in_time(timeout: Duration) -> PortError {
    let message = format!("not answered within {} ms", timeout.as_millis());
    PortError::unavailable("busy", message, HOLDERS_RETRY_MS)
}

fn message(answer: Answer) -> Bytes {
    let answer = QueryAnswer {
        answer: Some(answer),
    };
    answer.encode_to_vec().into()
}

impl From<Malformed> for PortError {
    fn from(error: Malformed) -> Self {
        Self::invalid(error.field, error.to_string())
    }
}

impl QueryServer {
    pub(crate) fn new(
        local: Arc<QueryPort>,
        node: NodeId,
        cluster: watch::Receiver<Arc<ClusterState>>,
    ) -> Self {
        Self {
            local,
            node,
            cluster,
            readers: Arc::new(Readers::default()),
            admitted: Arc::new(Semaphore::new(MAX_PEER_QUERIES_WAITING)),
            running: Arc::new(Semaphore::new(MAX_PEER_QUERIES)),
        }
    }

    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Bytes, String> {
        let request = QueryRequest::decode(request).map_err(|error| error.to_string())?;
        let timeout = Duration::from_millis(request.timeout_ms.min(MAX_PEER_QUERY_MS));
        let answer = match tokio::time::timeout(timeout, self.decide(from, request, timeout)).await
        {
            Ok(answer) => answer,
            Err(_) => Err(not_in_time(timeout)),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Refused(encode_refusal(&error)));
        Ok(message(answer))
    }

    async fn decide(
        &self,
        from: NodeId,
        request: QueryRequest,
        timeout: Duration,
    ) -> Result<Answer, PortError> {
        let deadline = Instant::now() + timeout;
        let tenant = request.tenant.parse();
        let asked = Asked {
            from,
            tenant: tenant.map_err(|_| malformed("tenant")())?,
            epoch: request.epoch,
        };
        let _running = self.running.acquire().await.map_err(|_| busy())?;
        let shards = self.local.shared.router.shards();
        match request.question.ok_or_else(malformed("question"))? {
            Question::Search(question) => {
                let (mut request, part) =
                    decode_request(question, asked.tenant.clone(), shards, 0)?;
                self.is_member(&asked, &part).await?;
                request.timeout_ms = left_ms(deadline);
                let found = self.local.find(request, &part).await?;
                Ok(Answer::Search(encode_search(found)))
            }
            Question::Names(question) => {
                let (request, part) = decode_names_request(question, asked.tenant.clone(), shards)?;
                self.is_member(&asked, &part).await?;
                let names = self.local.list(request, &part).await?;
                Ok(Answer::Names(encode_names(names)))
            }
            Question::Open(question) => {
                let trace = self.open(asked, question).await?;
                Ok(Answer::Trace(encode_trace(trace)))
            }
            Question::Pull(pull) => {
                let owner = owner(asked, &pull)?;
                let piece = self.readers.pull(&owner, pull.reader, pull.number).await?;
                Ok(Answer::Piece(piece))
            }
            Question::Promote(question) => {
                let trace_id = decode_trace_id(&question.trace_id)?;
                let shard = self.local.shared.shard(&asked.tenant, trace_id);
                let state = self.state(&asked).await?;
                let record = state.shard(shard);
                if record.is_none_or(|record| record.primary != self.node) {
                    return Err(not_member("it is not the shard's primary"));
                }
                let decision = self.local.keep(&asked.tenant, trace_id).await?;
                Ok(Answer::Decision(encode_decision(&decision)))
            }
        }
    }

    /// The cluster's state, not older than the asker's.
    async fn state(&self, asked: &Asked) -> Result<Arc<ClusterState>, PortError> {
        let mut cluster = self.cluster.clone();
        let state = cluster.wait_for(|state| state.epoch >= asked.epoch).await;
        let state = state.map_err(|_| not_member("the node is stopping"))?;
        Ok(Arc::clone(&state))
    }

    /// Live traces are only answered of shards of which this node has an in-sync copy.
    async fn is_member(&self, asked: &Asked, part: &NodePart) -> Result<(), PortError> {
        let (state, node) = (self.state(asked).await?, self.node);
        let lacks = part.live.iter().find(|shard| {
            let record = state.shard(*shard);
            record.is_none_or(|record| !record.isr.contains(&node))
        });
        match lacks {
            Some(shard) => Err(not_member(&format!(
                "its copy of shard {} is not in sync",
                shard.0
            ))),
            None => Ok(()),
        }
    }

    async fn open(&self, asked: Asked, question: OpenTrace) -> Result<OpenedTrace, PortError> {
        let shared = &self.local.shared;
        let trace_id = decode_trace_id(&question.trace_id)?;
        let part = decode_part(question.part, shared.router.shards())?;
        let shard = shared.shard(&asked.tenant, trace_id);
        if !part.stored.contains(shard) {
            return Err(malformed("part")().into());
        }
        self.is_member(&asked, &part).await?;
        let depth = part.depth(shard);
        let found = match self.local.look_up(&asked.tenant, trace_id, depth).await? {
            TracePart::Absent(absence) => return Ok(OpenedTrace::Absent(absence)),
            TracePart::Found(found) => found,
        };
        let probability = found.parts.probability;
        let reader = PartsReader::new(Arc::clone(shared), found.parts.unmarked());
        let mut chunks = Chunks::open(Box::new(reader)).await?;
        let first = chunks.next().await?;
        let owner = ReaderOwner {
            node: asked.from,
            tenant: asked.tenant,
            trace_id,
        };
        let reader = match first.last {
            true => 0,
            false => self.readers.hold(owner, chunks)?,
        };
        Ok(OpenedTrace::Found(OpenedPart {
            state: found.state,
            missing: found.missing,
            decision: found.decision,
            span_count: found.span_count,
            probability,
            first,
            reader,
        }))
    }

    #[cfg(test)]
    pub(super) fn open_readers(&self) -> usize {
        self.readers.len()
    }
}

fn owner(asked: Asked, pull: &PullTrace) -> Result<ReaderOwner, Malformed> {
    Ok(ReaderOwner {
        node: asked.from,
        tenant: asked.tenant,
        trace_id: decode_trace_id(&pull.trace_id)?,
    })
}

fn not_member(reason: &str) -> PortError {
    PortError {
        retry_after_ms: Some(HOLDERS_RETRY_MS),
        ..PortError::new(ErrorClass::Unavailable, "not_member", reason)
    }
}

fn left_ms(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}
