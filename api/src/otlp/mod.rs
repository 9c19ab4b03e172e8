//! OTLP: taking spans by gRPC and by HTTP.

mod body;
mod grpc;
mod grpc_head;
mod http;
pub(crate) mod json;
mod unfold;
#[cfg(test)]
mod unfold_oracle;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::TenantId;
use spandrel_model::ports::{ExportOutcome, Ingest};

pub(crate) use self::grpc::router as grpc_router;
pub(crate) use self::http::router as http_router;
use crate::error::ApiError;
use crate::limits::TIMED_OUT_RETRY_MS;

/// The gRPC path of an export.
pub(crate) const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// An export that came in whole.
struct Arrived {
    tenant: TenantId,
    request: Bytes,
    credit: Credit,
}

/// Hands an export to the node. The caller bounds the time of it together with that of reading.
async fn hand_over(ingest: &Arc<dyn Ingest>, arrived: Arrived) -> Result<ExportOutcome, ApiError> {
    let Arrived {
        tenant,
        request,
        credit,
    } = arrived;
    Ok(ingest.export(&tenant, request, credit).await?)
}

/// The whole of an export within its deadline. When it passes, nothing is known to be durable: the whole request is
/// put off, never answered by a partial success (API.md).
async fn within<T>(
    deadline: Duration,
    export: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::time::timeout(deadline, export)
        .await
        .unwrap_or_else(|_| {
            let message = format!(
                "the spans were not durable within {} ms",
                deadline.as_millis()
            );
            Err(PortError::unavailable("deadline", message, TIMED_OUT_RETRY_MS).into())
        })
}

/// Runs what takes a while off the network threads.
async fn offloaded<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(PortError::internal("decoding the request failed").into()))
}

/// OTLP's answer: without a partial success when there is nothing to say (OTLP, "Partial Success").
fn response_of(outcome: ExportOutcome) -> ExportTraceServiceResponse {
    let nothing = outcome.rejected == 0 && outcome.message.is_empty();
    ExportTraceServiceResponse {
        partial_success: (!nothing).then(|| ExportTracePartialSuccess {
            rejected_spans: i64::try_from(outcome.rejected).unwrap_or(i64::MAX),
            error_message: outcome.message,
        }),
    }
}
