//! What a caller can do about a failure: each error of a port has a class, and the class is all that a transport
//! maps to a status.

use crate::ids::TenantId;

/// What the caller may do about an error. `api` maps each class to one HTTP and one gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The request is wrong and will stay wrong: 400, `INVALID_ARGUMENT`.
    Invalid,
    /// No or wrong credentials, or no tenant where one is required: 401, `UNAUTHENTICATED`.
    Unauthenticated,
    /// The caller may not do this: 403, `PERMISSION_DENIED`.
    Forbidden,
    /// What was asked for does not exist: 404, `NOT_FOUND`.
    NotFound,
    /// The request is larger than a limit: 413, `INVALID_ARGUMENT`.
    TooLarge,
    /// A quota of the tenant is used up: 429, `RESOURCE_EXHAUSTED`; always with a retry hint.
    OverLimit,
    /// The node cannot do it now (pressure, failover, disk full): 503, `UNAVAILABLE`; always with a retry hint.
    Unavailable,
    /// It took too long: 504, `DEADLINE_EXCEEDED`.
    Timeout,
    /// Stored bytes fail their checksum or their format: 500, `DATA_LOSS`.
    Corrupt,
    /// A defect of ours: 500, `INTERNAL`.
    Internal,
}

/// The error of a port: what went wrong, in the form that API.md's `{"error":{...}}` renders.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// What the caller may do.
    pub class: ErrorClass,
    /// A stable lowercase word for programs, such as `holders_unreachable`.
    pub code: &'static str,
    /// One lowercase sentence for people: names the field, the limit and the tenant.
    pub message: String,
    /// The request's field at fault.
    pub field: Option<String>,
    /// The limit that was passed, with its unit.
    pub limit: Option<String>,
    /// The tenant concerned.
    pub tenant: Option<TenantId>,
    /// When to try again, in milliseconds. Always set for `OverLimit` and `Unavailable`.
    pub retry_after_ms: Option<u64>,
}

impl PortError {
    /// An error with neither field, limit, tenant nor retry hint.
    #[must_use]
    pub fn new(class: ErrorClass, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            class,
            code,
            message: message.into(),
            field: None,
            limit: None,
            tenant: None,
            retry_after_ms: None,
        }
    }

    /// A refusal of a wrong request, naming its field.
    #[must_use]
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self {
            field: Some(field.to_owned()),
            ..Self::new(ErrorClass::Invalid, "invalid", message)
        }
    }

    /// A refusal that passes: try again after `retry_after_ms`.
    #[must_use]
    pub fn unavailable(
        code: &'static str,
        message: impl Into<String>,
        retry_after_ms: u64,
    ) -> Self {
        Self {
            retry_after_ms: Some(retry_after_ms),
            ..Self::new(ErrorClass::Unavailable, code, message)
        }
    }

    /// A defect or failure inside the node.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorClass::Internal, "internal", message)
    }

    /// The same error, naming the tenant concerned.
    #[must_use]
    pub fn with_tenant(mut self, tenant: &TenantId) -> Self {
        self.tenant = Some(tenant.clone());
        self
    }

    /// The same error, naming the limit that was passed.
    #[must_use]
    pub fn with_limit(mut self, limit: impl Into<String>) -> Self {
        self.limit = Some(limit.into());
        self
    }
}
