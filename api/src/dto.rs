//! The JSON bodies of the native API, both directions: what the server writes, the client reads.

mod cluster;

use opentelemetry_proto::tonic::trace::v1::TracesData;
use serde::{Deserialize, Serialize};
use serde_with_decimal as decimal;

use crate::time::Instant;

pub use self::cluster::{
    ClusterNode, ClusterResponse, JoinTokenResponse, LackingShard, RemoveNodeRequest,
};

/// Counters as decimal strings, because JavaScript's numbers end at 2^53.
mod serde_with_decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde demands the reference
    pub(super) fn serialize<S: Serializer>(count: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(count)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// `{"error":{...}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorDetail {
    /// A stable lowercase word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The request's field at fault.
    pub field: Option<String>,
    /// The limit that was passed, with its unit.
    pub limit: Option<String>,
    /// The tenant concerned.
    pub tenant: Option<String>,
    /// When to try again, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// Of a trace that is not there: `dropped` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of an unknown trace: what was acknowledged since then would be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_since: Option<Instant>,
    /// Of a dropped trace whose verdict is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// The decision about a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// `keep` or `drop`.
    pub verdict: String,
    /// Name of the policy that decided; empty when none voted.
    pub policy: String,
    /// `idle`, `max_age`, `cap`, `early_keep`, `pressure`, `late_span` or `promoted`.
    pub trigger: String,
    /// Version of the policy set.
    pub policy_version: u32,
    /// Probability with which such a trace is kept, 0 to 1.
    pub probability: f64,
    /// By the clock of the node that decided.
    pub decided_at: Instant,
    /// Of a dropped trace: its spans are held until about then.
    pub recoverable_until: Option<Instant>,
}

/// Part of what was asked that was not reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissingPart {
    /// The node that should have answered.
    pub node: String,
    /// The shards concerned; empty means all of the node's.
    pub shards: Vec<u16>,
    /// The time range concerned.
    pub from: Instant,
    /// Its end, exclusive.
    pub to: Instant,
    /// Why, for people.
    pub reason: String,
}

/// What an answer covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// True when everything that was asked for was inspected.
    pub complete: bool,
    /// The range that was asked for.
    pub from: Instant,
    /// Its end, exclusive.
    pub to: Instant,
    /// Everything kept before this instant is in the index.
    pub index_watermark: Instant,
    /// What was not reached.
    pub missing: Vec<MissingPart>,
    /// Spans looked at.
    #[serde(with = "decimal")]
    pub inspected_spans: u64,
    /// Bytes read.
    #[serde(with = "decimal")]
    pub inspected_bytes: u64,
}

/// `GET /v1/traces/{traceId}` without the spans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceHead {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// `open`, `kept` or `dropped`.
    pub state: String,
    /// Every replica set that may hold part of the trace answered.
    pub complete: bool,
    /// What was not reached.
    pub missing: Vec<MissingPart>,
    /// Null while open.
    pub decision: Option<Decision>,
    /// Spans at its decision, duplicates not counted; absent before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub span_count: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde demands the reference
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// `GET /v1/traces/{traceId}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceResponse {
    /// All but the spans.
    #[serde(flatten)]
    pub head: TraceHead,
    /// The spans, as OTLP JSON.
    pub trace: TracesData,
}

/// `POST /v1/traces/{traceId}/promote`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PromoteResponse {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// The decision afterwards.
    pub decision: Decision,
}

/// One trace of `GET /v1/traces/search`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundTrace {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// Service of its root, if one was seen.
    pub root_service: String,
    /// Name of its root.
    pub root_operation: String,
    /// Start of the trace.
    pub start_time: Instant,
    /// Duration in milliseconds with a fraction.
    pub duration_ms: f64,
    /// `error`, `ok` or `unset`.
    pub status: String,
    /// Spans.
    pub span_count: u32,
    /// Spans with status error.
    pub error_count: u32,
    /// Its services, sorted.
    pub services: Vec<String>,
    /// `open`, `kept` or `dropped`.
    pub state: String,
    /// Spans that meet the conditions, 16 hexadecimal digits each.
    pub matched_spans: Vec<String>,
}

/// `GET /v1/traces/search`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SearchResponse {
    /// Newest start first, then trace id; of a kept trace by the start that its verdict knew.
    pub traces: Vec<FoundTrace>,
    /// Continue with this one; null when there is no more.
    pub next_cursor: Option<String>,
    /// What the answer covers.
    pub receipt: Receipt,
}

/// `GET /v1/services`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesResponse {
    /// Sorted.
    pub services: Vec<String>,
    /// What the answer covers.
    pub receipt: Receipt,
}

/// An operation of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The span's name.
    pub name: String,
    /// `server`, `client`, `internal`, `producer`, `consumer` or `unspecified`.
    pub kind: String,
}

/// `GET /v1/services/{service}/operations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationsResponse {
    /// Sorted.
    pub operations: Vec<Operation>,
    /// What the answer covers.
    pub receipt: Receipt,
}

/// An attribute key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// The key.
    pub key: String,
    /// `span` or `resource`.
    pub scope: String,
    /// Whether the index holds it; a search for another one reads spans.
    pub indexed: bool,
}

/// `GET /v1/tags`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagsResponse {
    /// Sorted.
    pub tags: Vec<Tag>,
    /// What the answer covers.
    pub receipt: Receipt,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagValue {
    /// The value as text.
    pub value: String,
    /// `string`, `int`, `double` or `bool`.
    pub r#type: String,
}

/// `GET /v1/tags/{key}/values`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagValuesResponse {
    /// Sorted.
    pub values: Vec<TagValue>,
    /// What the answer covers.
    pub receipt: Receipt,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusResponse {
    /// The node's id.
    pub node: String,
    /// The cluster's name.
    pub cluster: String,
    /// The program's version.
    pub version: String,
    /// Settings applied, journal replayed, listeners open.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub not_ready_because: String,
    /// Shards of the cluster.
    pub shards: u16,
    /// Memory pressure, 0 (none) to 4 (refusing).
    pub pressure: u8,
    /// Bytes of the credit pool.
    pub credit_capacity_bytes: u64,
    /// Bytes of it that are taken.
    pub credit_used_bytes: u64,
    /// Open traces.
    pub open_traces: u64,
    /// Kept traces that are not in a block yet.
    pub unpaged_traces: u64,
    /// Buckets whose data is still to be compared with that of other nodes.
    pub uncompared_buckets: u64,
    /// Buckets that could not be compared, or of which something is lacking still.
    pub differing_buckets: u64,
    /// Bytes of the journal on disk.
    pub journal_bytes: u64,
    /// Bytes of the block files.
    pub block_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Oldest instant that the journal still covers.
    pub journal_since: Instant,
    /// Everything kept before is in the index.
    pub index_watermark: Instant,
    /// Version of the policy set in force.
    pub policy_version: u32,
    /// One line per policy in force.
    pub policies: Vec<String>,
    /// Period after which kept traces expire, in seconds.
    pub retention_seconds: u64,
}

/// `GET` and `POST /v1/admin/policy`, the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyResponse {
    /// Version of the policy set.
    pub version: u32,
    /// The YAML text as it was applied.
    pub yaml: String,
}

/// `POST /v1/admin/policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPolicyRequest {
    /// The policy file's text.
    pub yaml: String,
}

/// `GET /v1/admin/tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantsResponse {
    /// Sorted.
    pub tenants: Vec<String>,
}

/// `POST /v1/admin/tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTenantRequest {
    /// The new tenant's name.
    pub tenant: String,
}

/// The answer of calls that only say that it was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DoneResponse {}
