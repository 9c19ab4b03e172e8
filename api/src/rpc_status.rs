//! The messages of `google.rpc` that OTLP and gRPC carry errors in, written by hand: four small messages do not
//! need a generator.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

/// `google.rpc.Status`: the body of an OTLP/HTTP error and the value of `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<RpcAny>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcAny {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// `google.rpc.RetryInfo`: without it collectors take RESOURCE_EXHAUSTED for permanent and drop the batch.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(crate) retry_delay: Option<RpcDuration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct RpcDuration {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

/// `google.rpc.ErrorInfo`: our error's code and fields for programs.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
    #[prost(string, tag = "2")]
    pub(crate) domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) metadata: BTreeMap<String, String>,
}

pub(crate) const RETRY_INFO_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
pub(crate) const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";
pub(crate) const ERROR_DOMAIN: &str = "spandrel";

impl RpcAny {
    pub(crate) fn pack(type_url: &str, message: &impl Message) -> Self {
        Self {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec().into(),
        }
    }
}

impl RpcDuration {
    pub(crate) fn from_millis(millis: u64) -> Self {
        Self {
            seconds: i64::try_from(millis / 1_000).unwrap_or(i64::MAX),
            // Below a thousand times a million: always in range.
            nanos: i32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000,
        }
    }

    pub(crate) fn as_millis(self) -> u64 {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        let millis = u64::try_from(self.nanos / 1_000_000).unwrap_or(0);
        seconds.saturating_mul(1_000).saturating_add(millis)
    }
}
