//! OTLP: the wire-format scanner, the attribute policy, and writing `TracesData` back.
//!
//! The hot path never decodes a span: it walks the wire format once, checks all of its structure, reads the header
//! and the attributes of interest, and leaves the span where it lies. docs/formats/otlp.md says what is accepted,
//! changed and rejected. What is *not* checked: UTF-8 of text that nobody compares, and the ids of links.

mod attribute_policy;
mod report;
mod rescan;
mod rewrite;
mod rules;
mod scan;
mod threshold;
mod value;
mod visit;
mod walk;
mod wire;
mod writer;

pub use attribute_policy::{
    AttributeAction, AttributePolicy, AttributeRule, InvalidAttributePolicy,
};
pub use report::{ChangeReason, ChangedSpans, InvalidRequest, RejectReason, RejectedSpans};
pub use rescan::rescan;
pub use rewrite::CHANGED_KEY;
pub use rules::ScanRules;
pub use scan::{Scanned, scan_request};
pub use threshold::with_sampling_threshold;
pub use value::RawValue;
pub use visit::{visit_attributes, visit_resource_attributes, visit_spans};
pub use wire::WireFault;
pub use writer::{RawContext, TracesDataWriter};

/// Field numbers of OTLP's messages (opentelemetry-proto 1.x, `trace.proto`, `resource.proto`, `common.proto`).
mod number {
    /// `TracesData.resource_spans` and `ExportTraceServiceRequest.resource_spans`.
    pub(super) const RESOURCE_SPANS: u32 = 1;
    /// `ResourceSpans.resource` and `ScopeSpans.scope`.
    pub(super) const CONTEXT: u32 = 1;
    /// `ResourceSpans.scope_spans` and `ScopeSpans.spans`.
    pub(super) const CHILDREN: u32 = 2;
    /// `ResourceSpans.schema_url` and `ScopeSpans.schema_url`.
    pub(super) const SCHEMA_URL: u32 = 3;
    /// `Resource.attributes`.
    pub(super) const RESOURCE_ATTRIBUTES: u32 = 1;
    /// `Span.trace_state`.
    pub(super) const TRACE_STATE: u32 = 3;
    /// `Span.attributes`.
    pub(super) const SPAN_ATTRIBUTES: u32 = 9;
}

/// The attribute of a resource that names the service.
const SERVICE_NAME: &[u8] = b"service.name";
