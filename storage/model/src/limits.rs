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
/// Largest span in bytes, as it is stored, with its resource, its scope and their schema urls: half of the largest message
/// between nodes, so that any span can be copied, whether or not it compresses. A cluster of one keeps to it too: it may
/// grow.
pub const MAX_SPAN_BYTES: usize = 512 * 1_024;
/// Distinct span classes that a summary names before it is marked truncated.
pub const MAX_SUMMARY_CLASSES: usize = 96;
/// Of these, classes that only a service that the trace did not have yet may take: a result names every service of
/// a trace, also of one with more operations than fit.
pub const RESERVED_SERVICE_CLASSES: usize = 16;
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
/// Largest policy file, and largest Collector file to import, in bytes: it is replicated whole with the settings.
pub const MAX_POLICY_BYTES: usize = 256 * 1_024;
/// Deepest YAML of a policy file: eight policies inside each other take two levels each, and their fields some more.
pub const MAX_POLICY_YAML_DEPTH: usize = 32;
/// Most nodes that the aliases of a policy file may stand for together: a few nested aliases would make millions.
pub const MAX_POLICY_ALIAS_EVENTS: usize = 10_000;
/// Deepest policies inside each other (`and` in `composite` in ...); evaluation recurses this deep.
pub const MAX_POLICY_DEPTH: usize = 8;
/// Most policies of a file at the top.
pub const MAX_POLICIES: usize = 128;
/// Most distinct conditions on spans of a policy file: one bit each of `policy::LeafBits`.
pub const MAX_POLICY_LEAVES: usize = 128;
/// Most rate limits of a policy file: a decision records the level of each that it asked.
pub const MAX_POLICY_LIMITERS: usize = 64;
/// Most entries of one list in a policy file (`values`, `status_codes`, sub-policies).
pub const MAX_POLICY_VALUES: usize = 1_000;
/// Longest policy name in bytes: it is a metric label.
pub const MAX_POLICY_NAME_BYTES: usize = 128;
/// Most regular expressions of a policy file: each may take twice `MAX_REGEX_BYTES`, 64 MiB together at worst.
pub const MAX_POLICY_REGEXES: usize = 128;
/// Memory of one compiled regular expression in bytes, and as much again for its lazily built automaton.
pub const MAX_REGEX_BYTES: usize = 256 * 1_024;
/// Deepest nesting of groups in a regular expression: its parser recurses.
pub const MAX_REGEX_DEPTH: u32 = 50;
/// Shortest wait before a decision, in milliseconds: below it a trace's spans cannot be on their way together.
pub const MIN_DECISION_MS: u64 = 10;
/// Longest wait before a decision, in milliseconds: an hour, the default recovery window of the journal.
pub const MAX_DECISION_MS: u64 = 3_600_000;
/// Highest rate of a limit, per second (spans, traces or bytes): keeps fixed-point levels far from overflow.
pub const MAX_POLICY_RATE: u64 = 1_000_000_000_000;
/// Service name of spans whose resource has none (the OpenTelemetry resource conventions' fallback).
pub const UNKNOWN_SERVICE: &str = "unknown_service";
