//! The group of the settings over the links: its requests out, those of others in.
//!
//! A request begins with the id of the node that it is for (8 bytes, little endian). A wiped machine comes back as a new
//! node at the address of the old one, and must not vote in its name.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use spandrel_model::ids::NodeId;
use spandrel_raft::{RaftCall, RaftTransport, Settings, TransportError};
use tokio::sync::Semaphore;

use crate::limits::MAX_PEER_CALLS;
use crate::link::{Caller, IncomingCall, Link, LinkClass, LinkError, PeerHandler, PeerService};

/// Carries the group's requests to other nodes.
pub(crate) struct RaftLink(pub(crate) Arc<dyn Link>);

#[async_trait]
impl RaftTransport for RaftLink {
    async fn call(
        &self,
        to: NodeId,
        call: RaftCall,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let class = match call {
            RaftCall::Snapshot => LinkClass::Bulk,
            _ => LinkClass::Control,
        };
        let mut addressed = BytesMut::with_capacity(size_of::<u64>() + request.len());
        addressed.put_u64_le(to.0);
        addressed.put_slice(&request);
        let request = addressed.freeze();
        let called = self
            .0
            .call(to, PeerService::Raft, class, request, deadline)
            .await;
        called.map(Vec::from).map_err(|error| match error {
            LinkError::Unreachable { to, reason } => TransportError::Unreachable { to, reason },
            error @ LinkError::TooLarge { .. } => TransportError::Unreachable {
                to,
                reason: error.to_string(),
            },
            // A node that stops answers for calls that it may have acted on.
            error => TransportError::NoAnswer {
                to,
                reason: error.to_string(),
            },
        })
    }
}

/// Answers the requests of the other nodes' groups.
pub(crate) struct RaftHandler {
    settings: Settings,
    permits: Arc<Semaphore>,
}

impl RaftHandler {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            permits: Arc::new(Semaphore::new(MAX_PEER_CALLS)),
        }
    }
}

impl PeerHandler for RaftHandler {
    fn deliver(&self, call: IncomingCall) {
        let Caller::Node(from) = call.from else {
            let _ = call
                .reply
                .send(Err("a stranger has no settings".to_owned()));
            return;
        };
        let this = self.settings.node();
        let addressed = call.request.split_first_chunk();
        if addressed.is_none_or(|(to, _)| u64::from_le_bytes(*to) != this.0) {
            let refusal = format!("this is node {}, the request is for another one", this.0);
            let _ = call.reply.send(Err(refusal));
            return;
        }
        let request = call.request.slice(size_of::<u64>()..);
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let _ = call.reply.send(Err("too many requests at once".to_owned()));
            return;
        };
        let settings = self.settings.clone();
        tokio::spawn(async move {
            let answer = settings.answer(from, &request).await;
            let answer = answer.map(Bytes::from).map_err(|error| error.to_string());
            let _ = call.reply.send(answer);
            drop(permit);
        });
    }
}
