//! How many queries of one tenant run at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{MAX_TENANT_QUERIES, QUERY_QUEUE_MS};

/// Invariant: a tenant without a query, running or waiting, has no entry after the next one has entered.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    tenants: Mutex<BTreeMap<TenantId, Arc<Semaphore>>>,
}

impl Gate {
    /// Waits for a turn.
    pub(crate) async fn enter(&self, tenant: &TenantId) -> Result<OwnedSemaphorePermit, PortError> {
        let turns = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            tenants.retain(|_, turns| turns.available_permits() < MAX_TENANT_QUERIES);
            let new = || Arc::new(Semaphore::new(MAX_TENANT_QUERIES));
            Arc::clone(tenants.entry(tenant.clone()).or_insert_with(new))
        };
        let turn = turns.acquire_owned();
        match tokio::time::timeout(Duration::from_millis(QUERY_QUEUE_MS), turn).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(PortError {
                retry_after_ms: Some(QUERY_QUEUE_MS),
                ..PortError::new(
                    ErrorClass::OverLimit,
                    "too_many_queries",
                    format!("tenant `{tenant}` runs {MAX_TENANT_QUERIES} queries already"),
                )
            }
            .with_tenant(tenant)
            .with_limit(format!("{MAX_TENANT_QUERIES} queries"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_seventeenth_query_waits_and_is_refused() {
        let gate = Gate::default();
        let tenant = TenantId::default();
        let mut turns = Vec::new();
        for _ in 0..MAX_TENANT_QUERIES {
            turns.push(gate.enter(&tenant).await.unwrap());
        }
        let refused = gate.enter(&tenant).await.unwrap_err();
        assert_eq!(refused.class, ErrorClass::OverLimit);
        let other: TenantId = "other".parse().unwrap();
        assert!(gate.enter(&other).await.is_ok());
        turns.pop();
        assert!(gate.enter(&tenant).await.is_ok());
    }
}
