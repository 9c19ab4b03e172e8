//! The links of a node that has no peers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spandrel_model::ids::NodeId;
use tokio::sync::watch;

use crate::link::{Link, LinkClass, LinkError, PeerHandler, PeerService, Peers};
use crate::membership::{LinkFactory, LinkIdentity, LinkStartError};

/// Reaches nobody.
#[derive(Debug)]
pub struct NoLink {
    peers: watch::Sender<Peers>,
}

impl Default for NoLink {
    fn default() -> Self {
        Self {
            peers: watch::Sender::new(Arc::default()),
        }
    }
}

fn unreachable(to: NodeId) -> LinkError {
    LinkError::Unreachable {
        to,
        reason: "this node has no links to others".to_owned(),
    }
}

#[async_trait]
impl Link for NoLink {
    async fn call(
        &self,
        to: NodeId,
        _: PeerService,
        _: LinkClass,
        _: Bytes,
        _: Duration,
    ) -> Result<Bytes, LinkError> {
        Err(unreachable(to))
    }

    async fn call_address(
        &self,
        _: &str,
        _: PeerService,
        _: Bytes,
        _: Duration,
    ) -> Result<Bytes, LinkError> {
        Err(unreachable(NodeId(0)))
    }

    fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.subscribe()
    }

    fn set_peers(&self, _: BTreeMap<NodeId, String>) {}

    fn set_apart(&self, _: Option<String>) {}
}

/// Gives every node a [`NoLink`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLinks;

#[async_trait]
impl LinkFactory for NoLinks {
    async fn start(
        &self,
        _: LinkIdentity,
        _: Arc<dyn PeerHandler>,
    ) -> Result<Arc<dyn Link>, LinkStartError> {
        Ok(Arc::new(NoLink::default()))
    }
}
