//! One mapping of the ports' errors to HTTP and gRPC.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use prost::Message;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ports::TraceAbsence;

use crate::dto::{ErrorBody, ErrorDetail};
use crate::limits::DEFAULT_RETRY_MS;
use crate::rpc_status::{
    ERROR_DOMAIN, ERROR_INFO_URL, ErrorInfo, RETRY_INFO_URL, RetryInfo, RpcAny, RpcDuration,
    RpcStatus,
};
use crate::time::{Instant, format_instant};

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: tonic::Code,
    pub(crate) detail: Box<ErrorDetail>,
}

impl From<PortError> for ApiError {
    fn from(error: PortError) -> Self {
        let (status, code) = mapping(error.class);
        if matches!(error.class, ErrorClass::Internal | ErrorClass::Corrupt) {
            tracing::error!(code = error.code, message = %error.message, "request failed");
        }
        let passes = matches!(error.class, ErrorClass::OverLimit | ErrorClass::Unavailable);
        Self {
            status,
            code,
            detail: Box::new(ErrorDetail {
                code: error.code.to_owned(),
                message: error.message,
                field: error.field,
                limit: error.limit,
                tenant: error.tenant.map(Into::into),
                retry_after_ms: error.retry_after_ms.or(passes.then_some(DEFAULT_RETRY_MS)),
                ..ErrorDetail::default()
            }),
        }
    }
}

fn mapping(class: ErrorClass) -> (StatusCode, tonic::Code) {
    use tonic::Code;
    match class {
        ErrorClass::Invalid => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        ErrorClass::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
        ErrorClass::Forbidden => (StatusCode::FORBIDDEN, Code::PermissionDenied),
        ErrorClass::NotFound => (StatusCode::NOT_FOUND, Code::NotFound),
        ErrorClass::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidArgument),
        ErrorClass::OverLimit => (StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted),
        ErrorClass::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
        ErrorClass::Timeout => (StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded),
        ErrorClass::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, Code::DataLoss),
        // A class that is newer than this table is a defect of ours.
        _ => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
    }
}

impl ApiError {
    /// A wrong request, naming its field.
    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        PortError::invalid(field, message).into()
    }

    /// More bytes than a limit.
    pub(crate) fn too_large(message: impl Into<String>, limit_bytes: usize) -> Self {
        PortError::new(ErrorClass::TooLarge, "too_large", message)
            .with_limit(format!("{limit_bytes} bytes"))
            .into()
    }

    /// A content type or encoding that nobody here reads.
    pub(crate) fn unsupported(field: &str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code: tonic::Code::Unimplemented,
            ..Self::invalid(field, message)
        }
    }

    /// A query that the port did not answer in time.
    pub(crate) fn timed_out(limit_ms: u64) -> Self {
        let message = format!("the query took longer than {limit_ms} ms");
        PortError::new(ErrorClass::Timeout, "timeout", message).into()
    }

    /// A trace that is not there, with the reason.
    pub(crate) fn absent(absence: TraceAbsence) -> Self {
        let not_found =
            |message: &str| Self::from(PortError::new(ErrorClass::NotFound, "not_found", message));
        match absence {
            TraceAbsence::Dropped(decision) => {
                let mut error = not_found("the trace was dropped and its spans are gone");
                error.detail.reason = Some("dropped".to_owned());
                error.detail.decision = Some(decision.into());
                error
            }
            TraceAbsence::Unknown { retained_since } => {
                let mut error = not_found("no such trace");
                error.detail.reason = Some("unknown".to_owned());
                error.detail.retained_since = Some(Instant(retained_since));
                error
            }
        }
    }

    /// As `google.rpc.Status`, with RetryInfo when there is a hint: without it collectors give up on
    /// RESOURCE_EXHAUSTED for good.
    pub(crate) fn rpc_status(&self) -> RpcStatus {
        let detail = &self.detail;
        let mut details = Vec::new();
        if let Some(millis) = detail.retry_after_ms {
            let info = RetryInfo {
                retry_delay: Some(RpcDuration::from_millis(millis)),
            };
            details.push(RpcAny::pack(RETRY_INFO_URL, &info));
        }
        let decision = detail
            .decision
            .as_ref()
            .and_then(|decision| serde_json::to_string(decision).ok());
        let metadata: BTreeMap<String, String> = [
            ("field", detail.field.clone()),
            ("limit", detail.limit.clone()),
            ("tenant", detail.tenant.clone()),
            ("reason", detail.reason.clone()),
            (
                "retainedSince",
                detail.retained_since.map(|at| format_instant(at.0)),
            ),
            ("decision", decision),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect();
        let info = ErrorInfo {
            reason: detail.code.clone(),
            domain: ERROR_DOMAIN.to_owned(),
            metadata,
        };
        details.push(RpcAny::pack(ERROR_INFO_URL, &info));
        RpcStatus {
            code: self.code as i32,
            message: detail.message.clone(),
            details,
        }
    }

    /// As the status of a gRPC call.
    pub(crate) fn tonic_status(&self) -> tonic::Status {
        let details = self.rpc_status().encode_to_vec().into();
        tonic::Status::with_details(self.code, self.detail.message.clone(), details)
    }

    /// The value of `Retry-After`: whole seconds, rounded up.
    pub(crate) fn retry_after(&self) -> Option<HeaderValue> {
        let seconds = self.detail.retry_after_ms?.div_ceil(1_000).max(1);
        Some(HeaderValue::from(seconds))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = self.retry_after();
        let body = ErrorBody {
            error: *self.detail,
        };
        // Plain structs of text and numbers always serialise.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = retry_after {
            headers.insert(RETRY_AFTER, retry_after);
        }
        response
    }
}
