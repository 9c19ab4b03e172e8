//! What the group's nodes tell each other.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Kind};
use crate::state::Command;
use crate::transport::RaftCall;
use crate::types::{Outcome, SnapshotMeta, TypeConfig, Vote};

/// A request with the cluster that it belongs to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) cluster_id: u64,
    pub(crate) from: u64,
    pub(crate) body: RequestBody,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum RequestBody {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Snapshot(SnapshotChunk),
    Propose(Command),
    ReadIndex,
}

/// A piece of a snapshot. Pieces come in order; the one that reaches `total_bytes` installs it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotChunk {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) total_bytes: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    /// The piece is taken, the next may come.
    SnapshotMore,
    Snapshot(SnapshotResponse<TypeConfig>),
    Proposed(Proposed),
    ReadIndex(ReadIndex),
    /// The request was not acted on.
    Refused {
        reason: String,
    },
}

/// What became of a proposal at the node that was asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Proposed {
    /// It is in the log at `index`, committed and applied.
    Applied { index: u64, outcome: Outcome },
    /// It is surely not in the log: this node does not lead, but perhaps that one.
    NotLeader { leader: Option<u64> },
    /// It may be in the log.
    Unknown { reason: String },
    /// The group has stopped on that node.
    Stopped { reason: String },
}

/// How far a linearizable read must have applied.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReadIndex {
    Index(u64),
    NotLeader { leader: Option<u64> },
    Stopped { reason: String },
}

impl RequestBody {
    pub(crate) fn call(&self) -> RaftCall {
        match self {
            Self::Append(_) => RaftCall::Append,
            Self::Vote(_) => RaftCall::Vote,
            Self::PreVote(_) => RaftCall::PreVote,
            Self::Snapshot(_) => RaftCall::Snapshot,
            Self::Propose(_) => RaftCall::Propose,
            Self::ReadIndex => RaftCall::ReadIndex,
        }
    }
}

impl Request {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::seal(Kind::Request, self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::unseal(Kind::Request, bytes)
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::seal(Kind::Answer, self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::unseal(Kind::Answer, bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spandrel_model::ids::NodeId;

    use super::*;
    use crate::codec_oracle::{read_message, resealed};
    use crate::state::NodeState;

    fn requests() -> Vec<Request> {
        let command = Command::SetNodeState {
            node: NodeId(2),
            expected_incarnation: 1,
            expected: NodeState::Up,
            state: NodeState::Draining,
        };
        let chunk = SnapshotChunk {
            vote: Vote::new(1, 1),
            meta: SnapshotMeta::default(),
            total_bytes: 9,
            offset: 4,
            bytes: vec![1; 5],
        };
        let append = AppendEntriesRequest {
            vote: Vote::new(1, 1),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let bodies = [
            RequestBody::Propose(command),
            RequestBody::Snapshot(chunk),
            RequestBody::Append(append),
            RequestBody::ReadIndex,
        ];
        let request = |body| Request {
            cluster_id: 5,
            from: 1,
            body,
        };
        bodies.into_iter().map(request).collect()
    }

    proptest! {
        /// Behind a right checksum anything may stand: a node of a later version, or one gone mad.
        #[test]
        fn damaged_messages_are_read_or_refused(
            which in 0..4_usize,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let bytes = requests()[which].encode().unwrap();
            let damaged = resealed(&bytes, |value| {
                for (at, byte) in &damage {
                    *at.get_mut(value) = *byte;
                }
            });
            read_message(&damaged);
        }
    }
}
