//! The query port: a coordinator plans, asks every shard and store that may hold an answer, merges in a total
//! order, and says in a receipt what it did not reach.

mod columns;
mod gate;
mod live;
mod names;
mod reader;
mod search;
mod sources;
mod trace;
mod verify;

use std::sync::Arc;

use async_trait::async_trait;
use ractor::ActorRef;
use spandrel_model::error::PortError;
use spandrel_model::ids::{ShardId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{DecisionView, Query, TraceLookup};
use spandrel_model::search::{NamesAnswer, NamesRequest, SearchAnswer, SearchRequest};
use spandrel_model::summary::SummaryDecision;
use spandrel_model::verdict::{CERTAIN, Verdict, VerdictRecord};
use tokio::sync::oneshot;

use crate::assembler_actor::AssemblerMessage;
use crate::limits::{PRESSURE_RETRY_MS, QUERY_CREDIT_BYTES};
use crate::shared::Shared;
pub(crate) use gate::Gate;

/// Answers questions for a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct QueryPort {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Arc<[ActorRef<AssemblerMessage>]>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) recovery_window_nanos: u64,
}

#[async_trait]
impl Query for QueryPort {
    async fn trace(&self, tenant: &TenantId, trace_id: TraceId) -> Result<TraceLookup, PortError> {
        let started = self.shared.env.now();
        let answer = self.fetch(tenant, trace_id).await;
        self.observe("trace", started);
        answer
    }

    async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, PortError> {
        let started = self.shared.env.now();
        let _turn = self.gate.enter(&request.tenant).await?;
        let _credit = self.credit(&request.tenant)?;
        let answer = self.find(request).await;
        self.observe("search", started);
        answer
    }

    async fn names(&self, request: NamesRequest) -> Result<NamesAnswer, PortError> {
        let _turn = self.gate.enter(&request.tenant).await?;
        let _credit = self.credit(&request.tenant)?;
        self.list(request).await
    }

    async fn promote(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<DecisionView, PortError> {
        self.keep(tenant, trace_id).await
    }
}

impl QueryPort {
    fn observe(&self, what: &'static str, started: UnixNanos) {
        let nanos = self.shared.env.now().since(started);
        metrics::histogram!("spandrel_query_seconds", "query" => what)
            .record(crate::meters::seconds(nanos));
    }

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

    /// Asks every shard; the answers come in the order of the shards.
    async fn ask_all<T>(
        &self,
        question: impl Fn(oneshot::Sender<T>) -> AssemblerMessage,
    ) -> Result<Vec<T>, PortError> {
        let shards = (0..self.shared.router.shards()).map(ShardId);
        let answers = shards.map(|shard| self.ask(shard, &question));
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

/// A storage error as the port's error.
fn storage_error(error: impl std::fmt::Display) -> PortError {
    PortError::internal(error.to_string())
}
