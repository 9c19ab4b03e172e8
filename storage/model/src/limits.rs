//! Every bound of the domain, with its unit and its reason.

/// Longest attribute value in bytes that is stored whole (API.md); longer text is cut at a character.
pub const MAX_ATTRIBUTE_VALUE_BYTES: usize = 2_048;
/// Longest attribute key in bytes: keys become columns and dictionary entries. Attributes with longer ones are dropped.
pub const MAX_ATTRIBUTE_KEY_BYTES: usize = 1_024;
/// Most rules of an attribute policy: each prefix rule is tried on each attribute.
pub const MAX_ATTRIBUTE_RULES: usize = 256;
/// A span time further ahead of the node's clock than this is absurd (24 h in nanoseconds).
pub const MAX_TIME_AHEAD_NANOS: u64 = 24 * 3_600 * 1_000_000_000;
/// A span time before 2000-01-01T00:00:00Z is absurd (nanoseconds since 1970): older than every tracing system.
pub const MIN_TIME_NANOS: u64 = 946_684_800 * 1_000_000_000;
/// Most attributes of a span (API.md); the first ones stay.
pub const MAX_SPAN_ATTRIBUTES: usize = 128;
/// Most events of a span (API.md).
pub const MAX_SPAN_EVENTS: usize = 64;
/// Most links of a span (API.md).
pub const MAX_SPAN_LINKS: usize = 64;
/// Deepest nesting of attribute values: arrays and maps inside each other. prost stops at 100 messages deep.
pub const MAX_VALUE_DEPTH: usize = 16;
/// Longest span name and service name in bytes: they become index terms and symbols.
pub const MAX_NAME_BYTES: usize = 1_024;
/// Most spans of a trace (API.md); beyond it the trace is decided and the rest streamed by that decision.
pub const MAX_TRACE_SPANS: u32 = 100_000;
/// Most bytes of a trace's spans (API.md).
pub const MAX_TRACE_BYTES: u64 = 5_000_000;
/// Distinct span classes that a summary names before it is marked truncated.
pub const MAX_SUMMARY_CLASSES: usize = 96;
/// Distinct indexed attributes that a summary names before it is marked truncated.
pub const MAX_SUMMARY_ATTRIBUTES: usize = 64;
/// Longest indexed value in bytes: longer ones are cut for the index and the summary is marked truncated.
pub const MAX_INDEXED_VALUE_BYTES: usize = 256;
/// Matched spans that a search names per trace.
pub const MAX_MATCHED_SPANS: usize = 20;
/// Most traces of one page of a search (API.md).
pub const MAX_SEARCH_LIMIT: usize = 1_000;
/// Most tenants of a cluster (DESIGN.md section 5).
pub const MAX_TENANTS: usize = 10_000;
/// Service name of spans whose resource has none (the OpenTelemetry resource conventions' fallback).
pub const UNKNOWN_SERVICE: &str = "unknown_service";
