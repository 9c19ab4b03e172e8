//! The ingest port: admit, scan, route, journal, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ractor::ActorRef;
use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::TenantId;
use spandrel_model::otlp::{RejectedSpans, scan_request};
use spandrel_model::ports::{ExportOutcome, Ingest};
use spandrel_raft::ClusterState;
use tokio::sync::{oneshot, watch};

use crate::limits::{
    ENTRY_BYTES_PER_SPAN, ENTRY_BYTES_PER_TRACE, EXPORT_DEADLINE_MS, PRESSURE_RETRY_MS,
};
use crate::meters::{self, Stage};
use crate::shared::Shared;
use crate::writer::{Append, ShardRows, WriterMessage};

/// Takes spans for a node.
pub(crate) struct IngestPort {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: ActorRef<WriterMessage>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    /// Requests without a tenant are refused.
    pub(crate) require_tenant: bool,
}

#[async_trait]
impl Ingest for IngestPort {
    fn tenant(&self, name: Option<&str>) -> Result<TenantId, PortError> {
        let Some(name) = name else {
            if self.require_tenant {
                return Err(PortError::new(
                    ErrorClass::Unauthenticated,
                    "no_org_id",
                    "no org id",
                ));
            }
            return Ok(TenantId::default());
        };
        let tenant: TenantId = name
            .parse()
            .map_err(|error| PortError::invalid("X-Scope-OrgID", format!("{error}")))?;
        let known = tenant.as_str() == TenantId::DEFAULT
            || self.cluster.borrow().tenants.contains_key(&tenant);
        if known {
            return Ok(tenant);
        }
        let message = format!(
            "tenant `{tenant}` is unknown: an operator creates tenants (POST /v1/admin/tenants)"
        );
        Err(PortError::new(ErrorClass::Forbidden, "unknown_tenant", message).with_tenant(&tenant))
    }

    fn admit(&self, tenant: &TenantId, bytes: u64) -> Result<Credit, PortError> {
        let reason = match self.shared.pressure() {
            4.. => "disk_reserve",
            _ => "memory",
        };
        let admitted = (reason == "memory")
            .then(|| self.shared.pool.try_take(bytes))
            .flatten();
        admitted.ok_or_else(|| {
            meters::refused(reason, bytes);
            self.refusal(reason, tenant)
        })
    }

    async fn export(
        &self,
        tenant: &TenantId,
        request: Bytes,
        credit: Credit,
    ) -> Result<ExportOutcome, PortError> {
        let bytes = request.len() as u64;
        let outcome = self.take(tenant, request, credit).await;
        if let Err(error) = &outcome {
            meters::refused(error.code, bytes);
        }
        outcome
    }
}

impl IngestPort {
    async fn take(
        &self,
        tenant: &TenantId,
        request: Bytes,
        mut credit: Credit,
    ) -> Result<ExportOutcome, PortError> {
        let bytes = request.len() as u64;
        let epoch = self.shared.epoch();
        let now = self.shared.env.now();
        let scan = || scan_request(request, tenant.clone(), now, epoch.rules());
        let scanned = self.shared.measured(Stage::Scan, scan).map_err(|error| {
            PortError::invalid("request", format!("{error}")).with_tenant(tenant)
        })?;
        let accepted = scanned.batch.spans.len() as u64;
        let outcome = ExportOutcome {
            accepted,
            rejected: scanned.rejected.total(),
            message: describe(&scanned.rejected),
        };
        if accepted > 0 {
            let (rows, shards) = self.route(&scanned.batch);
            let growth = shards.iter().map(|part| part.growth).sum();
            if !credit.try_grow(growth) {
                return Err(self.refusal("memory", tenant));
            }
            self.append(Append {
                batch: Arc::new(scanned.batch),
                epoch,
                rows,
                shards,
                credit,
                reply: oneshot::channel().0,
            })
            .await
            .map_err(|error| error.with_tenant(tenant))?;
        }
        meters::received(accepted, &scanned.rejected, &scanned.changed, bytes);
        Ok(outcome)
    }

    fn refusal(&self, reason: &'static str, tenant: &TenantId) -> PortError {
        let (message, limit) = match reason {
            "disk_reserve" => (
                format!("the disk has reached its reserve: spans of tenant `{tenant}` are refused"),
                "disk reserve".to_owned(),
            ),
            _ => {
                let capacity = self.shared.pool.capacity();
                (
                    format!(
                        "no memory credit left for spans of tenant `{tenant}`: the pool is {capacity} bytes"
                    ),
                    format!("{capacity} bytes of credit"),
                )
            }
        };
        PortError::unavailable(reason, message, PRESSURE_RETRY_MS)
            .with_tenant(tenant)
            .with_limit(limit)
    }

    /// The rows of the batch sorted by shard and trace, and each shard's part of them.
    fn route(&self, batch: &SpanBatch) -> (Arc<[u32]>, Vec<ShardRows>) {
        let router = self.shared.router;
        let seed = router.tenant_seed(&batch.tenant);
        let mut keyed: Vec<(u64, u32)> = (0u32..)
            .zip(&batch.spans)
            .map(|(row, span)| {
                let hash = router.hash(seed, span.trace_id);
                // The shard first, so that its rows lie together; then the rest of the hash, for its traces.
                (u64::from(router.shard(hash).0) << 48 | hash >> 16, row)
            })
            .collect();
        keyed.sort_unstable();
        let mut shards: Vec<ShardRows> = Vec::new();
        let mut previous = None;
        for (at, (key, row)) in keyed.iter().enumerate() {
            let span = &batch.spans[*row as usize];
            let shard = router.shard(router.hash(seed, span.trace_id));
            let new_trace = previous != Some(*key);
            previous = Some(*key);
            let growth = ENTRY_BYTES_PER_SPAN
                + u64::from(span.name.len)
                + if new_trace { ENTRY_BYTES_PER_TRACE } else { 0 };
            match shards.last_mut() {
                Some(part) if part.shard == shard => {
                    part.end = at + 1;
                    part.growth += growth;
                }
                _ => shards.push(ShardRows {
                    shard,
                    start: at,
                    end: at + 1,
                    growth,
                }),
            }
        }
        (keyed.into_iter().map(|(_, row)| row).collect(), shards)
    }

    async fn append(&self, mut append: Append) -> Result<(), PortError> {
        let (reply, answer) = oneshot::channel();
        append.reply = reply;
        let stopping =
            || PortError::unavailable("stopping", "the node is stopping", PRESSURE_RETRY_MS);
        self.writer
            .cast(WriterMessage::Append(append))
            .map_err(|_| stopping())?;
        let deadline = Duration::from_millis(EXPORT_DEADLINE_MS);
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(PortError::unavailable(
                "deadline",
                format!("not durable within {EXPORT_DEADLINE_MS} ms: send it again"),
                PRESSURE_RETRY_MS,
            )),
        }
    }
}

fn describe(rejected: &RejectedSpans) -> String {
    if rejected.total() == 0 {
        String::new()
    } else {
        rejected.to_string()
    }
}
