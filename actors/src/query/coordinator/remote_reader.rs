//! Reads a trace of another node piece by piece.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, TenantId, TraceId};
use spandrel_model::ports::TraceReader;

use super::super::message::malformed;
use super::Coordinator;
use super::peer::nonsense;
use crate::limits::{HOLDERS_RETRY_MS, LOOKUP_TIMEOUT_MS, MAX_PEER_PIECE_BYTES};
use crate::link::LinkClass;
use crate::wire::{PullTrace, TracePiece, query_answer::Answer, query_request};

/// Pulls what a node holds for this one.
pub(super) struct RemoteReader {
    pub(super) coordinator: Coordinator,
    pub(super) node: NodeId,
    pub(super) tenant: TenantId,
    pub(super) trace_id: TraceId,
    /// At the node.
    pub(super) reader: u64,
    /// Pulls so far.
    pub(super) pulls: u64,
    /// What came and was not given yet.
    pub(super) first: Option<TracePiece>,
    pub(super) is_done: bool,
}

#[async_trait]
impl TraceReader for RemoteReader {
    async fn next(&mut self) -> Result<Option<Bytes>, PortError> {
        let mut piece = BytesMut::new();
        while !self.is_done {
            let chunk = match self.first.take() {
                Some(first) => first,
                None => self.pull().await?,
            };
            self.is_done = chunk.last;
            if !chunk.goes_on && piece.is_empty() {
                // Most pieces are one message: their bytes are not copied.
                match chunk.bytes.is_empty() {
                    true => continue,
                    false => return Ok(Some(chunk.bytes)),
                }
            }
            if piece.len() + chunk.bytes.len() > MAX_PEER_PIECE_BYTES {
                let message = format!("node {} sent an endless piece", self.node.0);
                return Err(PortError::new(ErrorClass::Corrupt, "peer", message));
            }
            piece.extend_from_slice(&chunk.bytes);
            if !chunk.goes_on {
                break;
            }
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}

impl RemoteReader {
    async fn pull(&mut self) -> Result<TracePiece, PortError> {
        self.pulls += 1;
        let question = query_request::Question::Pull(PullTrace {
            reader: self.reader,
            trace_id: self.trace_id.0.to_vec().into(),
            number: self.pulls,
        });
        let left = Duration::from_millis(LOOKUP_TIMEOUT_MS);
        let answer = self
            .coordinator
            .call(self.node, LinkClass::Bulk, &self.tenant, question, left)
            .await;
        let error = match answer {
            Ok(Answer::Piece(piece)) => return Ok(piece),
            Ok(_) => nonsense(self.node)(malformed("answer")()),
            Err(error) => error,
        };
        let code = "holders_unreachable";
        Err(PortError::unavailable(
            code,
            error.to_string(),
            HOLDERS_RETRY_MS,
        ))
    }
}
