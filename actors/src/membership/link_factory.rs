//! Where a node gets its links from.

use std::sync::Arc;

use async_trait::async_trait;
use spandrel_model::ids::NodeId;

use crate::link::{Link, PeerHandler};

/// Who opens links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkIdentity {
    /// The cluster; 0 while the node joins.
    pub cluster_id: u64,
    /// The node; `None` while it joins. Such links only carry [`Link::call_address`]; they need not listen.
    pub node: Option<NodeId>,
    /// Boot counter of the data directory.
    pub boot: u64,
}

/// The links cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct LinkStartError {
    /// Why, with the address concerned, for people.
    pub reason: String,
}

/// Opens the links of a node: over sockets in production, in memory in tests.
#[async_trait]
pub trait LinkFactory: Send + Sync {
    /// Opens the links. They end with [`Link::close`], and what they listened on is free when that returns.
    ///
    /// # Errors
    /// [`LinkStartError`], when the address is taken for example.
    async fn start(
        &self,
        identity: LinkIdentity,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Arc<dyn Link>, LinkStartError>;
}
