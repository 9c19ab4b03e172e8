//! The settings that people change: policies, attributes, limits, tenants.

use serde::{Deserialize, Serialize};
use spandrel_model::limits;
use spandrel_model::otlp::AttributeRule;

/// The sampling policies in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDocument {
    /// Counts the documents, 1 for the first.
    pub version: u32,
    /// The YAML text as it was applied.
    pub yaml: String,
}

/// What happens to attributes, and which of them are indexed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeSettings {
    /// Counts the changes, 1 for the first.
    pub version: u32,
    /// The rules of the attribute policy, in order.
    pub rules: Vec<AttributeRule>,
    /// Keys of the index, in the order given.
    pub indexed_keys: Vec<String>,
}

impl Default for AttributeSettings {
    /// No rules, and the allowlist of API.md.
    fn default() -> Self {
        let keys = [
            "deployment.environment.name",
            "http.route",
            "http.request.method",
            "http.response.status_code",
            "rpc.method",
            "messaging.destination.name",
        ];
        Self {
            version: 1,
            rules: Vec::new(),
            indexed_keys: keys.map(str::to_owned).to_vec(),
        }
    }
}

/// The limits of spans and traces that a cluster may tighten, never widen beyond `spandrel_model::limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanLimits {
    /// Counts the changes, 1 for the first.
    pub version: u32,
    /// Longest attribute value in bytes.
    pub attribute_value_bytes: u32,
    /// Most attributes of a span.
    pub span_attributes: u32,
    /// Most events of a span.
    pub span_events: u32,
    /// Most links of a span.
    pub span_links: u32,
    /// Most spans of a trace.
    pub trace_spans: u32,
    /// Most bytes of a trace's spans.
    pub trace_bytes: u64,
}

impl Default for SpanLimits {
    /// The domain's own limits (API.md).
    // Constants of the domain, the largest 100,000: no cast can lose anything.
    #[allow(clippy::cast_possible_truncation)]
    fn default() -> Self {
        Self {
            version: 1,
            attribute_value_bytes: limits::MAX_ATTRIBUTE_VALUE_BYTES as u32,
            span_attributes: limits::MAX_SPAN_ATTRIBUTES as u32,
            span_events: limits::MAX_SPAN_EVENTS as u32,
            span_links: limits::MAX_SPAN_LINKS as u32,
            trace_spans: limits::MAX_TRACE_SPANS,
            trace_bytes: limits::MAX_TRACE_BYTES,
        }
    }
}

/// What a tenant may use, cluster-wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantSettings {
    /// Counts the changes, 1 for the first.
    pub version: u32,
    /// Most bytes of spans a second; `None` is no limit.
    pub bytes_per_second: Option<u64>,
    /// Most spans a second; `None` is no limit.
    pub spans_per_second: Option<u64>,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            version: 1,
            bytes_per_second: None,
            spans_per_second: None,
        }
    }
}
