//! The query port of a node: it plans which nodes hold what is asked for, asks them, the next holder where one fails or is
//! late, merges what they answer, and says in a receipt what it did not reach.
//!
//! What this node holds is answered without the links. A node that is alone in its cluster has nobody to ask; one that
//! holds everything goes the common way all the same: what it cannot read, others may.

mod merge;
#[cfg(test)]
mod merge_test;
mod merged_reader;
mod names;
mod peer;
mod promote;
mod remote_reader;
mod scatter;
mod search;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use spandrel_model::error::PortError;
use spandrel_model::ids::{NodeId, ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{DecisionView, Query, TraceLookup};
use spandrel_model::search::{
    MissingPart, NamesAnswer, NamesRequest, Receipt, SearchAnswer, SearchRequest,
};
use spandrel_raft::ClusterState;
use tokio::sync::watch;
use tokio::time::Instant;

use super::QueryPort;
use super::gate::Gate;
use super::part::NodePart;
use super::plan::{Demand, ScatterPlan, Standing};
use crate::limits::{HOLDERS_RETRY_MS, LOOKUP_TIMEOUT_MS};
use crate::link::Link;

/// What a coordinator is made of.
#[derive(Clone)]
pub(crate) struct CoordinatorParts {
    /// Answers for this node.
    pub(crate) local: Arc<QueryPort>,
    /// Reaches the others; `None` on a node that is alone.
    pub(crate) link: Option<Arc<dyn Link>>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    /// This node.
    pub(crate) node: NodeId,
    /// Whether the majority of the settings' group confirms that this node's map is the newest: otherwise it says so.
    pub(crate) contact: Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
}

/// Answers questions for the cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Coordinator {
    parts: CoordinatorParts,
    gate: Arc<Gate>,
}

#[async_trait]
impl Query for Coordinator {
    async fn trace(&self, tenant: &TenantId, trace_id: TraceId) -> Result<TraceLookup, PortError> {
        let started = self.now();
        let answer = self.fetch(tenant, trace_id).await;
        self.observe("trace", started);
        answer
    }

    async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, PortError> {
        let started = self.now();
        let _turn = self.gate.enter(&request.tenant).await?;
        let range = (request.filter.from, request.filter.to);
        // First: what it brings is in the map by then.
        let no_contact = self.no_contact(range).await;
        let answer = self.find(request).await.map(|mut answer| {
            note(&mut answer.receipt, no_contact);
            answer
        });
        self.observe("search", started);
        answer
    }

    async fn names(&self, request: NamesRequest) -> Result<NamesAnswer, PortError> {
        let started = self.now();
        let _turn = self.gate.enter(&request.tenant).await?;
        let range = (request.from, request.to);
        let no_contact = self.no_contact(range).await;
        let answer = self.list(request).await.map(|mut answer| {
            note(&mut answer.receipt, no_contact);
            answer
        });
        self.observe("names", started);
        answer
    }

    async fn promote(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<DecisionView, PortError> {
        self.keep(tenant, trace_id).await
    }
}

impl Coordinator {
    pub(crate) fn new(parts: CoordinatorParts) -> Self {
        Self {
            parts,
            gate: Arc::new(Gate::default()),
        }
    }

    /// The same with another view of the cluster.
    #[cfg(test)]
    pub(super) fn with_cluster(mut self, cluster: watch::Receiver<Arc<ClusterState>>) -> Self {
        self.parts.cluster = cluster;
        self
    }

    /// Nobody else holds anything.
    pub(crate) fn is_alone(&self) -> bool {
        self.parts.link.is_none() || self.state().nodes.len() < 2
    }

    fn local(&self) -> &Arc<QueryPort> {
        &self.parts.local
    }

    fn now(&self) -> UnixNanos {
        self.parts.local.shared.env.now()
    }

    fn observe(&self, what: &'static str, started: UnixNanos) {
        let nanos = self.now().since(started);
        metrics::histogram!("spandrel_query_seconds", "query" => what)
            .record(crate::meters::seconds(nanos));
    }

    fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.parts.cluster.borrow())
    }

    fn demand<'a>(
        &self,
        state: &'a ClusterState,
        shard: Option<ShardId>,
        (from, to): (UnixNanos, UnixNanos),
    ) -> Demand<'a> {
        Demand {
            state,
            me: self.parts.node,
            bucket_nanos: self.parts.local.shared.bucket_nanos,
            shard,
            from,
            to,
            every_holder: false,
        }
    }

    /// What is known of the nodes when a query begins.
    fn standing(&self, state: &ClusterState) -> Standing {
        let mut standing = Standing::default();
        if let Some(link) = &self.parts.link {
            let peers = Arc::clone(&link.peers().borrow());
            let is_silent = |node: &NodeId| peers.get(node).is_none_or(|peer| !peer.connected);
            let silent = state.nodes.keys().copied().filter(is_silent);
            standing.silent = silent.filter(|node| *node != self.parts.node).collect();
        }
        standing
    }

    /// What this node is asked for when it is alone and holds that.
    ///
    /// # Errors
    /// `Unavailable` before the cluster's shards have owners.
    fn alone(&self, demand: &Demand<'_>) -> Result<Option<NodePart>, PortError> {
        if self.parts.link.is_none() {
            let shards = self.parts.local.shared.router.shards();
            return Ok(Some(NodePart::all(shards)));
        }
        if demand.state.shard_map.is_empty() {
            let message = "the cluster's shards have no owners yet";
            return Err(PortError::unavailable(
                "starting",
                message,
                HOLDERS_RETRY_MS,
            ));
        }
        if !self.is_alone() {
            return Ok(None);
        }
        let mut plan = ScatterPlan::new(demand, &Standing::default());
        let mine = plan.asks.remove(&demand.me);
        Ok(mine.filter(|_| plan.asks.is_empty() && plan.missing.is_empty()))
    }

    /// A node that does not hear from the majority may know of other holders than there are.
    async fn no_contact(&self, (from, to): (UnixNanos, UnixNanos)) -> Option<MissingPart> {
        let is_fresh = self.parts.link.is_none() || (self.parts.contact)().await;
        (!is_fresh).then(|| MissingPart {
            node: self.parts.node,
            shards: Vec::new(),
            from,
            to,
            reason: "the node asked has no contact to the majority of the cluster: \
                     newer data may be held by nodes that it does not know of"
                .to_owned(),
        })
    }
}

fn note(receipt: &mut Receipt, missing: Option<MissingPart>) {
    receipt.complete &= missing.is_none();
    receipt.missing.extend(missing);
}

/// When names and lookups are given up.
fn lookup_deadline() -> Instant {
    Instant::now() + Duration::from_millis(LOOKUP_TIMEOUT_MS)
}

/// Nothing was found, and somebody who may know did not answer.
fn holders_unreachable(tenant: &TenantId, missing: &[MissingPart]) -> PortError {
    let nodes: std::collections::BTreeSet<u64> = missing.iter().map(|part| part.node.0).collect();
    let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
    let reason = missing.first().map_or("", |part| part.reason.as_str());
    let message = format!("did not reach node {}: {reason}", nodes.join(", "));
    PortError::unavailable("holders_unreachable", message, HOLDERS_RETRY_MS).with_tenant(tenant)
}
