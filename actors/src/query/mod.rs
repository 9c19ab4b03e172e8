//! Queries. [`QueryPort`] answers for one node, of the shards that it is asked for: it asks each shard and store that
//! may hold an answer and merges in a total order.

#[cfg(test)]
mod cluster_test;
mod columns;
mod coordinator;
mod dropped;
mod found;
mod gate;
#[cfg(test)]
mod large_trace_test;
mod live;
mod message;
mod missing;
mod names;
mod part;
mod pieces;
mod plan;
#[cfg(test)]
mod plan_test;
mod reader;
mod readers;
mod search;
mod server;
#[cfg(test)]
mod server_test;
mod sources;
#[cfg(test)]
mod test_cluster;
mod trace;
mod verify;

use std::sync::Arc;

use ractor::ActorRef;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{ShardId, TenantId};
use spandrel_model::ports::DecisionView;
use spandrel_model::summary::SummaryDecision;
use spandrel_model::verdict::{CERTAIN, Verdict, VerdictRecord};
use spandrel_raft::ClusterState;
use spandrel_storage::block::BlockError;
use tokio::sync::{oneshot, watch};

use crate::assembler::Depth;
use crate::assembler_message::AssemblerMessage;
use crate::limits::{PRESSURE_RETRY_MS, QUERY_CREDIT_BYTES};
use crate::shared::Shared;
pub(crate) use coordinator::{Coordinator, CoordinatorParts};
use part::NodePart;
pub(crate) use server::QueryServer;

/// Answers questions for one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct QueryPort {
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Arc<[ActorRef<AssemblerMessage>]>,
    pub(crate) recovery_window_nanos: u64,
}

impl QueryPort {
    /// Queries draw from the pool that spans draw from.
    fn credit(&self, tenant: &TenantId) -> Result<spandrel_model::credit::Credit, PortError> {
        self.shared
            .pool
            .try_take(QUERY_CREDIT_BYTES)
            .ok_or_else(|| {
                let message = "no memory credit left for a query: the node is under pressure";
                PortError::unavailable("memory", message, PRESSURE_RETRY_MS).with_tenant(tenant)
            })
    }

    /// Asks one shard.
    async fn ask<T>(
        &self,
        shard: ShardId,
        question: impl FnOnce(oneshot::Sender<T>) -> AssemblerMessage,
    ) -> Result<T, PortError> {
        let stopping =
            || PortError::unavailable("stopping", "the node is stopping", PRESSURE_RETRY_MS);
        let (reply, answer) = oneshot::channel();
        let actor = self.shards.get(usize::from(shard.0)).ok_or_else(stopping)?;
        actor.cast(question(reply)).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// Asks the shards of a part for what counts of their memory; the answers come in their order.
    async fn ask_shards<T>(
        &self,
        part: &NodePart,
        question: impl Fn(Depth, oneshot::Sender<T>) -> AssemblerMessage,
    ) -> Result<Vec<T>, PortError> {
        let answers = part.stored.iter().map(|shard| {
            let depth = part.depth(shard);
            let question = &question;
            self.ask(shard, move |reply| question(depth, reply))
        });
        futures_util::future::try_join_all(answers).await
    }

    fn decision(&self, record: &VerdictRecord) -> DecisionView {
        let until = record.decided_at.plus(self.recovery_window_nanos);
        DecisionView {
            verdict: record.verdict,
            policy: self.shared.policy_name(record).to_string(),
            trigger: record.trigger,
            policy_version: record.policy_version,
            probability: probability(record.probability),
            decided_at: record.decided_at,
            recoverable_until: (record.verdict == Verdict::Drop).then_some(until),
        }
    }
}

fn stored_decision(decision: &SummaryDecision) -> DecisionView {
    DecisionView {
        verdict: Verdict::Keep,
        policy: decision.policy.to_string(),
        trigger: decision.trigger,
        policy_version: decision.policy_version,
        probability: probability(decision.probability),
        decided_at: decision.decided_at,
        recoverable_until: None,
    }
}

#[allow(clippy::cast_precision_loss)] // 2^32 at most
fn probability(fixed: u64) -> f64 {
    fixed.min(CERTAIN) as f64 / CERTAIN as f64
}

/// An error of the blocks as the port's error: what is damaged here another node may have, and what could not be read
/// may be read later.
fn block_error(error: BlockError) -> PortError {
    let message = error.to_string();
    if error.is_damage() || matches!(error, BlockError::Unopenable { .. }) {
        return PortError::new(ErrorClass::Corrupt, "corrupt_block", message);
    }
    PortError::unavailable("disk", message, PRESSURE_RETRY_MS)
}

/// A storage error as the port's error.
fn storage_error(error: impl std::fmt::Display) -> PortError {
    PortError::internal(error.to_string())
}
