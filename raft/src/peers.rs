//! openraft's network over a [`RaftTransport`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend};
use spandrel_model::ids::NodeId;

use crate::limits::{MAX_MESSAGE_BYTES, SNAPSHOT_CHUNK_BYTES, SNAPSHOT_CHUNK_DEADLINE_MS};
use crate::message::{Answer, Request, RequestBody, SnapshotChunk};
use crate::store::Identity;
use crate::transport::{RaftTransport, TransportError};
use crate::types::{Snapshot, TypeConfig, Vote};

/// The other nodes of the group. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    transport: Arc<dyn RaftTransport>,
    identity: Identity,
}

impl Peers {
    pub(crate) fn new(transport: Arc<dyn RaftTransport>, identity: Identity) -> Self {
        Self {
            transport,
            identity,
        }
    }

    /// Asks a node and waits for its answer until the deadline.
    pub(crate) async fn ask(
        &self,
        to: u64,
        body: RequestBody,
        deadline: Duration,
    ) -> Result<Answer, TransportError> {
        let to = NodeId(to);
        let call = body.call();
        let unsent = |reason: String| TransportError::Unreachable { to, reason };
        let request = Request {
            cluster_id: self.identity.cluster_id,
            from: self.identity.node,
            body,
        };
        let request = request
            .encode()
            .map_err(|error| unsent(error.to_string()))?;
        if request.len() > MAX_MESSAGE_BYTES {
            let bytes = request.len();
            return Err(unsent(format!(
                "{bytes} bytes are over {MAX_MESSAGE_BYTES}"
            )));
        }
        let asked = self.transport.call(to, call, request, deadline);
        let no_answer = |reason: String| TransportError::NoAnswer { to, reason };
        let answer = tokio::time::timeout(deadline, asked)
            .await
            .map_err(|_elapsed| no_answer(format!("none within {} ms", deadline.as_millis())))??;
        Answer::decode(&answer).map_err(|error| no_answer(error.to_string()))
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        Peer {
            peers: self.clone(),
            to: target,
        }
    }
}

/// One other node of the group.
pub(crate) struct Peer {
    peers: Peers,
    to: u64,
}

/// An answer that does not belong to its request, or a refusal.
#[derive(Debug, thiserror::Error)]
#[error("node {to} answered: {reason}")]
struct WrongAnswer {
    to: u64,
    reason: String,
}

impl Peer {
    async fn ask(
        &self,
        body: RequestBody,
        option: &RPCOption,
    ) -> Result<Answer, Unreachable<TypeConfig>> {
        let asked = self.peers.ask(self.to, body, option.hard_ttl()).await;
        asked.map_err(|error| Unreachable::new(&error))
    }

    fn wrong(&self, answer: Answer) -> Unreachable<TypeConfig> {
        let reason = match answer {
            Answer::Refused { reason } => reason,
            _ => "something else than was asked".to_owned(),
        };
        Unreachable::new(&WrongAnswer {
            to: self.to,
            reason,
        })
    }

    async fn ask_vote(
        &self,
        body: RequestBody,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(body, option).await? {
            Answer::Vote(answer) => Ok(answer),
            answer => Err(self.wrong(answer).into()),
        }
    }

    /// Sends the pieces one after the other.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let deadline = RPCOption::new(Duration::from_millis(SNAPSHOT_CHUNK_DEADLINE_MS));
        let mut offset = 0;
        loop {
            let rest = snapshot.snapshot.get(offset..).unwrap_or_default();
            let piece = rest.get(..SNAPSHOT_CHUNK_BYTES).unwrap_or(rest);
            let chunk = SnapshotChunk {
                vote,
                meta: snapshot.meta.clone(),
                total_bytes: snapshot.snapshot.len() as u64,
                offset: offset as u64,
                bytes: piece.to_vec(),
            };
            offset += piece.len();
            let last = offset >= snapshot.snapshot.len();
            match self.ask(RequestBody::Snapshot(chunk), &deadline).await? {
                Answer::Snapshot(answer) => return Ok(answer),
                Answer::SnapshotMore if !last => {}
                answer => return Err(self.wrong(answer).into()),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(RequestBody::Append(request), &option).await? {
            Answer::Append(answer) => Ok(answer),
            answer => Err(self.wrong(answer).into()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(RequestBody::Vote(request), &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(RequestBody::PreVote(request), &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }
}
