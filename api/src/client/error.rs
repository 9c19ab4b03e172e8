//! What went wrong with a call, and what to try next.

use prost::Message;

use crate::dto::ErrorDetail;
use crate::rpc_status::{ERROR_INFO_URL, ErrorInfo, RETRY_INFO_URL, RetryInfo, RpcStatus};
use crate::time::{Instant, parse_instant};

/// The failure of a call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address or a header cannot be used.
    #[error("{field} `{value}` cannot be used: {message}")]
    Invalid {
        /// Which option: `addr`, `tenant` or `trace id`.
        field: &'static str,
        /// What was given.
        value: String,
        /// Why not.
        message: String,
    },
    /// The node was not reached.
    #[error("cannot reach {addr}: {message}; {advice}")]
    Connect {
        /// The address.
        addr: String,
        /// What the transport said.
        message: String,
        /// What to try next.
        advice: &'static str,
    },
    /// No whole answer came within the time limit.
    #[error(
        "{addr} did not answer within {timeout_ms} ms; ask for less or allow more time with --timeout"
    )]
    Timeout {
        /// The address.
        addr: String,
        /// The limit in milliseconds.
        timeout_ms: u64,
    },
    /// The node answered with an error.
    #[error("{}", .0.message)]
    Refused(Box<ErrorDetail>),
    /// The answer is not what this client understands.
    #[error("{addr} answered something else than a spandrel node would: {message}")]
    Protocol {
        /// The address.
        addr: String,
        /// What was wrong with it.
        message: String,
    },
}

impl ClientError {
    /// The server's error, when it answered with one.
    #[must_use]
    pub fn refusal(&self) -> Option<&ErrorDetail> {
        match self {
            Self::Refused(detail) => Some(detail),
            _ => None,
        }
    }

    /// When to try again, in milliseconds, if the server said so.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.refusal()?.retry_after_ms
    }

    pub(super) fn connect(addr: &str, error: &dyn std::error::Error) -> Self {
        let message = innermost(error);
        let advice = if message.contains("refused") {
            "is a node running there? start one with `spandrel node start`, or name another with --addr or SPANDREL_ADDR (of the demo: --endpoint)"
        } else if message.contains("lookup") || message.contains("resolve") {
            "the name is not known: check --addr or SPANDREL_ADDR"
        } else {
            "check --addr or SPANDREL_ADDR and that no firewall is in between"
        };
        Self::Connect {
            addr: addr.to_owned(),
            message,
            advice,
        }
    }

    /// From a gRPC status: an answer of the server, or a failure of the transport.
    pub(super) fn from_status(addr: &str, timeout_ms: u64, status: &tonic::Status) -> Self {
        if status.details().is_empty() {
            match status.code() {
                tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => {
                    return Self::Timeout {
                        addr: addr.to_owned(),
                        timeout_ms,
                    };
                }
                tonic::Code::Unavailable | tonic::Code::Unknown
                    if std::error::Error::source(status).is_some() =>
                {
                    return Self::connect(addr, status);
                }
                _ => {}
            }
        }
        // What tonic makes of an answer that no gRPC server gave.
        if status.details().is_empty() && status.message().contains("grpc-status header missing") {
            return Self::Protocol {
                addr: addr.to_owned(),
                message: "no gRPC; queries go to the port of the native API, 3200 by default"
                    .to_owned(),
            };
        }
        Self::Refused(Box::new(detail_of(status)))
    }
}

fn detail_of(status: &tonic::Status) -> ErrorDetail {
    let mut detail = ErrorDetail {
        code: format!("{:?}", status.code()).to_lowercase(),
        message: status.message().to_owned(),
        ..ErrorDetail::default()
    };
    let parts = RpcStatus::decode(status.details())
        .unwrap_or_default()
        .details;
    for part in parts {
        match part.type_url.as_str() {
            RETRY_INFO_URL => {
                detail.retry_after_ms = RetryInfo::decode(part.value)
                    .ok()
                    .and_then(|info| info.retry_delay)
                    .map(crate::rpc_status::RpcDuration::as_millis);
            }
            ERROR_INFO_URL => {
                if let Ok(mut info) = ErrorInfo::decode(part.value) {
                    detail.code = info.reason;
                    let mut take = |key: &str| info.metadata.remove(key);
                    detail.field = take("field");
                    detail.limit = take("limit");
                    detail.tenant = take("tenant");
                    detail.reason = take("reason");
                    detail.retained_since = take("retainedSince")
                        .and_then(|text| parse_instant(&text).ok())
                        .map(Instant);
                    detail.decision =
                        take("decision").and_then(|text| serde_json::from_str(&text).ok());
                }
            }
            _ => {}
        }
    }
    detail
}

/// The most specific message of a chain of errors: hyper's outer ones say only "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    // Bounded: chains of errors are a handful of links; 16 guards against a cycle.
    for _ in 0..16 {
        match last.source() {
            Some(source) => last = source,
            None => break,
        }
    }
    last.to_string()
}
