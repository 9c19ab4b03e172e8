//! The admin port: status, policies, tenants, flush.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use ractor::ActorRef;
use spandrel_model::cluster::{ClusterView, NewJoinToken};
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, TenantId};
use spandrel_model::policy::PolicySet;
use spandrel_model::ports::{Admin, NodeStatus, PolicyView};
use spandrel_raft::{Command, ProposeError};
use tokio::sync::oneshot;

use crate::disk_hang::NO_ANSWER;
use crate::indexer::IndexerMessage;
use crate::inventory::{ComparerMessage, ask_to_look, look};
use crate::limits::PRESSURE_RETRY_MS;
use crate::membership::Member;
use crate::opening::adopt_settings;
use crate::pager::PagerMessage;
use crate::query::QueryPort;
use crate::repair::CopierMessage;
use crate::shared::{Gauges, Shared};

/// Changes and shows the settings of a node.
pub(crate) struct AdminPort {
    pub(crate) shared: Arc<Shared>,
    pub(crate) member: Member,
    pub(crate) pager: ActorRef<PagerMessage>,
    pub(crate) indexer: ActorRef<IndexerMessage>,
    pub(crate) copier: ActorRef<CopierMessage>,
    pub(crate) comparer: ActorRef<ComparerMessage>,
    pub(crate) query: QueryPort,
}

fn unavailable(reason: impl std::fmt::Display) -> PortError {
    PortError::unavailable("settings", reason.to_string(), PRESSURE_RETRY_MS)
}

#[async_trait]
impl Admin for AdminPort {
    async fn status(&self) -> NodeStatus {
        let (shared, state) = (&self.shared, self.member.settings.state());
        let epoch = shared.epoch();
        let set = epoch.current().set();
        let blocks = shared.blocks.buckets().unwrap_or_default();
        let hangs = shared.disk_hang.hangs().then(|| NO_ANSWER.to_owned());
        let not_ready = hangs.or_else(|| self.member.not_ready());
        NodeStatus {
            node: shared.node,
            cluster: format!("{:016x}", state.cluster_id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: not_ready.is_none(),
            not_ready_because: not_ready.unwrap_or_default(),
            shards: state.shards,
            pressure: shared.told_pressure(),
            credit_capacity_bytes: shared.pool.capacity(),
            credit_used_bytes: shared.pool.used(),
            open_traces: Gauges::total(&shared.gauges.open_traces),
            uncompared_buckets: shared.uncompared.load(Ordering::Relaxed),
            differing_buckets: shared.differing.load(Ordering::Relaxed),
            unpaged_traces: Gauges::total(&shared.gauges.unpaged_traces),
            journal_bytes: shared.journal.bytes_on_disk(),
            block_bytes: blocks.iter().map(|block| block.bytes).sum(),
            index_bytes: shared.index.bytes(),
            journal_since: shared.journal.covered_since(),
            index_watermark: self.query.index_watermark(),
            policy_version: set.version(),
            policies: set.describe(),
            retention_seconds: state.retention_seconds,
        }
    }

    async fn policy(&self) -> PolicyView {
        let policy = self.member.settings.state().policy.clone();
        PolicyView {
            version: policy.version,
            yaml: policy.yaml,
        }
    }

    async fn apply_policy(&self, yaml: String) -> Result<PolicyView, PortError> {
        let before = self.member.settings.state().policy.version;
        PolicySet::parse(&yaml, before + 1)
            .map_err(|error| PortError::invalid("policy", error.to_string()))?;
        let command = Command::ApplyPolicy {
            expected_version: before,
            yaml,
        };
        self.member
            .settings
            .propose(command)
            .await
            .map_err(unavailable)?;
        adopt_settings(&self.shared, &self.member.settings.state())
            .map_err(|error| PortError::internal(error.to_string()))?;
        Ok(self.policy().await)
    }

    async fn create_tenant(&self, tenant: TenantId) -> Result<(), PortError> {
        let command = Command::CreateTenant {
            tenant: tenant.clone(),
        };
        match self.member.settings.propose(command).await {
            Ok(_) => Ok(()),
            Err(error @ ProposeError::Conflict(_)) => {
                let limit =
                    PortError::new(ErrorClass::Invalid, "too_many_tenants", error.to_string());
                Err(limit.with_tenant(&tenant))
            }
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn tenants(&self) -> Vec<TenantId> {
        let state = self.member.settings.state();
        let mut tenants: Vec<TenantId> = state.tenants.keys().cloned().collect();
        tenants.push(TenantId::default());
        tenants.sort();
        tenants.dedup();
        tenants
    }

    async fn cluster(&self) -> ClusterView {
        self.member.view().await
    }

    async fn leave_node(&self) -> Result<(), PortError> {
        self.member.leave().await
    }

    async fn remove_node(&self, node: NodeId, accepts_loss: bool) -> Result<(), PortError> {
        self.member.remove(node, accepts_loss).await
    }

    async fn repair(&self) -> Result<(), PortError> {
        self.copier.cast(CopierMessage::Look).map_err(unavailable)?;
        look(&self.comparer).await.map_err(unavailable)?;
        let (state, me) = (self.member.settings.state(), self.shared.node);
        let others = state.nodes.keys().copied().filter(|node| *node != me);
        ask_to_look(self.member.link.as_ref(), others).await;
        Ok(())
    }

    async fn create_join_token(&self) -> Result<NewJoinToken, PortError> {
        self.member.create_join_token(&self.shared.env).await
    }

    async fn flush(&self) -> Result<(), PortError> {
        let gone = |_| unavailable("the node is stopping");
        let failed = |error: String| PortError::unavailable("flush", error, PRESSURE_RETRY_MS);
        let (reply, answer) = oneshot::channel();
        self.pager
            .cast(PagerMessage::Flush(reply))
            .map_err(unavailable)?;
        answer.await.map_err(gone)?.map_err(failed)?;
        let (reply, answer) = oneshot::channel();
        self.indexer
            .cast(IndexerMessage::Flush(reply))
            .map_err(unavailable)?;
        answer.await.map_err(gone)?.map_err(failed)
    }
}
