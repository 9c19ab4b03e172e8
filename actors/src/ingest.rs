//! The ingest port: admit, scan, route, journal, acknowledge.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use spandrel_model::credit::Credit;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::TenantId;
use spandrel_model::otlp::{RejectedSpans, scan_request};
use spandrel_model::ports::{ExportOutcome, Ingest};
use spandrel_raft::ClusterState;
use tokio::sync::watch;

use crate::limits::PRESSURE_RETRY_MS;
use crate::meters::{self, Stage};
use crate::route::{Dispatcher, Routed, route};
use crate::shared::Shared;
use crate::writer::DISK_RESERVE;

/// Takes spans for a node.
pub(crate) struct IngestPort {
    pub(crate) shared: Arc<Shared>,
    pub(crate) dispatcher: Dispatcher,
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
        self.shared.pool.try_take(bytes).ok_or_else(|| {
            meters::refused("memory", bytes);
            self.refusal("memory", tenant)
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
        credit: Credit,
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
            message: describe(&scanned.rejected, tenant),
        };
        if accepted > 0 {
            let (rows, shards) = route(self.shared.router, &scanned.batch);
            let request = Routed {
                batch: Arc::new(scanned.batch),
                epoch,
                rows,
                request: Arc::new(credit),
            };
            let taken = self.dispatcher.take(&request, shards).await;
            taken.map_err(|error| match error.code {
                "memory" => self.refusal("memory", tenant),
                DISK_RESERVE => self.refusal(DISK_RESERVE, tenant),
                _ => error.with_tenant(tenant),
            })?;
        }
        meters::received(accepted, &scanned.rejected, &scanned.changed, bytes);
        Ok(outcome)
    }

    fn refusal(&self, reason: &'static str, tenant: &TenantId) -> PortError {
        let (message, limit) = match reason {
            DISK_RESERVE => (
                format!(
                    "the disk has reached its reserve, and other nodes cannot take over: spans of tenant `{tenant}` are refused"
                ),
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
}

/// What `partial_success` says: empty when all spans were taken.
fn describe(rejected: &RejectedSpans, tenant: &TenantId) -> String {
    if rejected.total() == 0 {
        String::new()
    } else {
        format!("spans of tenant `{tenant}` are rejected: {rejected}")
    }
}
