//! The settings' group over the links: its requests go out by [`LinkRaftTransport`] and are answered by [`answer_raft`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spandrel_model::ids::NodeId;
use spandrel_raft::{RaftCall, RaftTransport, Settings, TransportError};

use super::{Caller, IncomingCall, Link, LinkClass, LinkError, PeerService};

/// Carries the requests of the settings' group.
#[derive(Clone)]
pub struct LinkRaftTransport(Arc<dyn Link>);

impl LinkRaftTransport {
    /// Over these links.
    #[must_use]
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self(link)
    }
}

impl std::fmt::Debug for LinkRaftTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkRaftTransport")
    }
}

#[async_trait]
impl RaftTransport for LinkRaftTransport {
    async fn call(
        &self,
        to: NodeId,
        call: RaftCall,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        // A piece of a snapshot takes half a message: a heartbeat must not wait behind it.
        let class = match call {
            RaftCall::Snapshot => LinkClass::Bulk,
            _ => LinkClass::Control,
        };
        let asked = self
            .0
            .call(to, PeerService::Raft, class, request.into(), deadline);
        asked.await.map(Vec::from).map_err(|error| match error {
            LinkError::NoAnswer { to, reason } => TransportError::NoAnswer { to, reason },
            // A call that was refused or is too large was not acted on.
            LinkError::Unreachable { to, reason } | LinkError::Refused { to, reason } => {
                TransportError::Unreachable { to, reason }
            }
            LinkError::TooLarge { .. } => TransportError::Unreachable {
                to,
                reason: error.to_string(),
            },
        })
    }
}

/// Answers a call of the service [`PeerService::Raft`]. May wait for the disk and for other nodes: the handler runs it
/// in a task of its own.
pub async fn answer_raft(settings: Settings, call: IncomingCall) {
    let answer = match call.from {
        Caller::Joining => Err("only members take part in the settings' group".to_owned()),
        Caller::Node(from) => {
            let answered = settings.answer(from, &call.request).await;
            answered.map(Bytes::from).map_err(|error| error.to_string())
        }
    };
    // Fails when the caller does not wait any more.
    let _ = call.reply.send(answer);
}
