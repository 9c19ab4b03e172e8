//! Answers the requests of peers.

use std::sync::{Mutex, PoisonError};

use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;

use crate::limits::{MAX_COMMAND_BYTES, MAX_SNAPSHOT_BYTES};
use crate::message::{Answer, Proposed, ReadIndex, RequestBody, SnapshotChunk};
use crate::state::Command;
use crate::types::{Group, LogId, Snapshot, Vote};

/// The snapshot that is coming in: one at a time, the newest sender wins.
#[derive(Default)]
pub(crate) struct Inbox {
    incoming: Mutex<Option<Incoming>>,
}

struct Incoming {
    vote: Vote,
    last_log_id: Option<LogId>,
    bytes: Vec<u8>,
}

impl Inbox {
    pub(crate) async fn answer(&self, group: &Group, body: RequestBody) -> Answer {
        match body {
            RequestBody::Append(request) => {
                or_refused(group.append_entries(request).await.map(Answer::Append))
            }
            RequestBody::Vote(request) => or_refused(group.vote(request).await.map(Answer::Vote)),
            RequestBody::PreVote(request) => {
                or_refused(group.pre_vote(request).await.map(Answer::Vote))
            }
            RequestBody::Snapshot(chunk) => self.take_chunk(group, chunk).await,
            RequestBody::Propose(command) if command.encoded_bytes() > MAX_COMMAND_BYTES => {
                refused("the command is too large")
            }
            RequestBody::Propose(command) => Answer::Proposed(propose_here(group, command).await),
            RequestBody::ReadIndex => Answer::ReadIndex(read_index_here(group).await),
        }
    }

    async fn take_chunk(&self, group: &Group, chunk: SnapshotChunk) -> Answer {
        let (vote, meta) = (chunk.vote, chunk.meta.clone());
        // openraft panics on a snapshot that is newer than the leader that sends it.
        let newest = meta.last_log_id.map(|id| id.leader_id);
        if newest.is_some_and(|newest| newest > vote.leader_id) {
            return refused("the snapshot is newer than its leader");
        }
        match self.assemble(chunk) {
            Err(reason) => refused(reason),
            Ok(None) => Answer::SnapshotMore,
            Ok(Some(snapshot)) => {
                let snapshot = Snapshot { meta, snapshot };
                let installed = group.install_full_snapshot(vote, snapshot).await;
                or_refused(installed.map(Answer::Snapshot))
            }
        }
    }

    /// Adds a piece; the whole when it was the last.
    fn assemble(&self, chunk: SnapshotChunk) -> Result<Option<Vec<u8>>, &'static str> {
        let total = usize::try_from(chunk.total_bytes).unwrap_or(usize::MAX);
        if total > MAX_SNAPSHOT_BYTES {
            return Err("the snapshot is too large");
        }
        let mut slot = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.offset == 0 {
            *slot = Some(Incoming {
                vote: chunk.vote,
                last_log_id: chunk.meta.last_log_id,
                bytes: Vec::new(),
            });
        }
        let expected = slot.as_mut().filter(|incoming| {
            incoming.vote == chunk.vote
                && incoming.last_log_id == chunk.meta.last_log_id
                && incoming.bytes.len() as u64 == chunk.offset
        });
        let Some(incoming) = expected else {
            return Err("the piece of the snapshot does not follow the one before");
        };
        if incoming.bytes.len() + chunk.bytes.len() > total {
            *slot = None;
            return Err("the snapshot is longer than announced");
        }
        incoming.bytes.extend_from_slice(&chunk.bytes);
        if incoming.bytes.len() < total {
            return Ok(None);
        }
        Ok(slot.take().map(|incoming| incoming.bytes))
    }
}

/// Proposes to the group on this node, which succeeds on the leader only.
pub(crate) async fn propose_here(group: &Group, command: Command) -> Proposed {
    let error = match group.client_write(command).await {
        Ok(written) => {
            return Proposed::Applied {
                index: written.log_id.index,
                outcome: written.data,
            };
        }
        Err(error) => error,
    };
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => Proposed::NotLeader {
            leader: forward.leader_id,
        },
        RaftError::Fatal(fatal) => Proposed::Stopped {
            reason: fatal.to_string(),
        },
        RaftError::APIError(error) => Proposed::Unknown {
            reason: error.to_string(),
        },
    }
}

/// Asks the group on this node for the index of a linearizable read, which succeeds on the leader only.
pub(crate) async fn read_index_here(group: &Group) -> ReadIndex {
    match group.ensure_linearizable(ReadPolicy::ReadIndex).await {
        Ok(read) => ReadIndex::Index(read.index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(ForwardToLeader {
            leader_id,
            ..
        }))) => ReadIndex::NotLeader { leader: leader_id },
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            ReadIndex::NotLeader { leader: None }
        }
        Err(RaftError::Fatal(fatal)) => ReadIndex::Stopped {
            reason: fatal.to_string(),
        },
    }
}

fn or_refused<E: std::fmt::Display>(answer: Result<Answer, E>) -> Answer {
    answer.unwrap_or_else(refused)
}

fn refused(reason: impl std::fmt::Display) -> Answer {
    Answer::Refused {
        reason: reason.to_string(),
    }
}
