//! Keeping a trace that is open or was dropped: its shard's primary decides.

use spandrel_model::error::PortError;
use spandrel_model::ids::{TenantId, TraceId};
use spandrel_model::ports::DecisionView;
use tokio::time::Instant;

use super::super::message::{decode_decision, malformed};
use super::peer::{PeerError, nonsense};
use super::{Coordinator, lookup_deadline};
use crate::limits::HOLDERS_RETRY_MS;
use crate::link::LinkClass;
use crate::wire::{Promote, query_answer::Answer, query_request};

impl Coordinator {
    /// Asks the primary; a new one when the shard gets one meanwhile.
    pub(super) async fn keep(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<DecisionView, PortError> {
        let shard = self.local().shared.shard(tenant, trace_id);
        let deadline = lookup_deadline();
        let mut cluster = self.parts.cluster.clone();
        loop {
            let record = cluster.borrow_and_update().shard(shard).cloned();
            let primary = record.map(|record| record.primary);
            let Some(primary) = primary.filter(|_| self.parts.link.is_some()) else {
                return self.local().keep(tenant, trace_id).await;
            };
            if primary == self.parts.node {
                return self.local().keep(tenant, trace_id).await;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let question = query_request::Question::Promote(Promote {
                trace_id: trace_id.0.to_vec().into(),
            });
            let answer = self
                .call(primary, LinkClass::Control, tenant, question, left)
                .await;
            let error = match answer {
                Ok(Answer::Decision(decision)) => match decode_decision(&decision) {
                    Ok(decision) => return Ok(decision),
                    Err(error) => nonsense(primary)(error),
                },
                Ok(_) => nonsense(primary)(malformed("answer")()),
                Err(PeerError::Refused { error, .. }) if error.code != "not_member" => {
                    return Err(error.with_tenant(tenant));
                }
                Err(error) => error,
            };
            // Promoting twice is promoting once: the next primary may be asked whatever became of this question.
            let changed = cluster.wait_for(|state| {
                let record = state.shard(shard);
                record.is_some_and(|record| record.primary != primary)
            });
            let changed = tokio::time::timeout_at(deadline, changed).await;
            if !matches!(changed, Ok(Ok(_))) {
                let code = "holders_unreachable";
                let error = PortError::unavailable(code, error.to_string(), HOLDERS_RETRY_MS);
                return Err(error.with_tenant(tenant));
            }
        }
    }
}
