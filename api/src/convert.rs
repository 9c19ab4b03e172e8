//! From the ports' types to both wire forms, and from gRPC's messages back to the JSON bodies for the client.

use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::UnixNanos;
use spandrel_model::ports::{DecisionView, NodeStatus, PolicyView};
use spandrel_model::search::{FoundTrace, MissingPart, Name, Receipt, TraceState};
use spandrel_model::verdict::Verdict;

use crate::time::{Instant, nanos_to_ms};
use crate::{dto, proto};

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Keep => "keep",
        Verdict::Drop => "drop",
    }
}

impl From<DecisionView> for dto::Decision {
    fn from(view: DecisionView) -> Self {
        Self {
            verdict: verdict_word(view.verdict).to_owned(),
            policy: view.policy,
            trigger: view.trigger.as_str().to_owned(),
            policy_version: view.policy_version,
            probability: view.probability,
            decided_at: Instant(view.decided_at),
            recoverable_until: view.recoverable_until.map(Instant),
        }
    }
}

impl From<DecisionView> for proto::Decision {
    fn from(view: DecisionView) -> Self {
        Self {
            verdict: verdict_word(view.verdict).to_owned(),
            policy: view.policy,
            trigger: view.trigger.as_str().to_owned(),
            policy_version: view.policy_version,
            probability: view.probability,
            decided_at_unix_nano: view.decided_at.0,
            recoverable_until_unix_nano: view.recoverable_until.map(|at| at.0),
        }
    }
}

impl From<proto::Decision> for dto::Decision {
    fn from(from: proto::Decision) -> Self {
        Self {
            verdict: from.verdict,
            policy: from.policy,
            trigger: from.trigger,
            policy_version: from.policy_version,
            probability: from.probability,
            decided_at: instant(from.decided_at_unix_nano),
            recoverable_until: from.recoverable_until_unix_nano.map(instant),
        }
    }
}

impl From<MissingPart> for dto::MissingPart {
    fn from(part: MissingPart) -> Self {
        Self {
            node: part.node.0.to_string(),
            shards: part.shards.iter().map(|shard| shard.0).collect(),
            from: Instant(part.from),
            to: Instant(part.to),
            reason: part.reason,
        }
    }
}

impl From<MissingPart> for proto::MissingPart {
    fn from(part: MissingPart) -> Self {
        Self {
            node: part.node.0,
            shards: part.shards.iter().map(|shard| shard.0.into()).collect(),
            from_unix_nano: part.from.0,
            to_unix_nano: part.to.0,
            reason: part.reason,
        }
    }
}

impl From<proto::MissingPart> for dto::MissingPart {
    fn from(part: proto::MissingPart) -> Self {
        let shard = |number: u32| u16::try_from(number).ok();
        Self {
            node: part.node.to_string(),
            shards: part.shards.into_iter().filter_map(shard).collect(),
            from: instant(part.from_unix_nano),
            to: instant(part.to_unix_nano),
            reason: part.reason,
        }
    }
}

impl From<Receipt> for dto::Receipt {
    fn from(receipt: Receipt) -> Self {
        Self {
            complete: receipt.complete,
            from: Instant(receipt.from),
            to: Instant(receipt.to),
            index_watermark: Instant(receipt.index_watermark),
            missing: receipt.missing.into_iter().map(Into::into).collect(),
            inspected_spans: receipt.inspected_spans,
            inspected_bytes: receipt.inspected_bytes,
        }
    }
}

impl From<Receipt> for proto::Receipt {
    fn from(receipt: Receipt) -> Self {
        Self {
            complete: receipt.complete,
            from_unix_nano: receipt.from.0,
            to_unix_nano: receipt.to.0,
            index_watermark_unix_nano: receipt.index_watermark.0,
            missing: receipt.missing.into_iter().map(Into::into).collect(),
            inspected_spans: receipt.inspected_spans,
            inspected_bytes: receipt.inspected_bytes,
        }
    }
}

impl From<proto::Receipt> for dto::Receipt {
    fn from(receipt: proto::Receipt) -> Self {
        Self {
            complete: receipt.complete,
            from: instant(receipt.from_unix_nano),
            to: instant(receipt.to_unix_nano),
            index_watermark: instant(receipt.index_watermark_unix_nano),
            missing: receipt.missing.into_iter().map(Into::into).collect(),
            inspected_spans: receipt.inspected_spans,
            inspected_bytes: receipt.inspected_bytes,
        }
    }
}

impl From<proto::TraceHead> for dto::TraceHead {
    fn from(head: proto::TraceHead) -> Self {
        Self {
            state: state_word(head.state()).to_owned(),
            trace_id: head.trace_id,
            complete: head.complete,
            missing: head.missing.into_iter().map(Into::into).collect(),
            decision: head.decision.map(Into::into),
            span_count: head.span_count,
        }
    }
}

impl From<FoundTrace> for dto::FoundTrace {
    fn from(trace: FoundTrace) -> Self {
        Self {
            trace_id: trace.trace_id.to_string(),
            root_service: trace.root_service,
            root_operation: trace.root_operation,
            start_time: Instant(trace.earliest),
            duration_ms: nanos_to_ms(trace.duration),
            status: trace.status.as_str().to_owned(),
            span_count: trace.span_count,
            error_count: trace.error_count,
            services: trace.services,
            state: trace.state.as_str().to_owned(),
            matched_spans: trace
                .matched_spans
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

impl From<FoundTrace> for proto::FoundTrace {
    fn from(trace: FoundTrace) -> Self {
        Self {
            trace_id: trace.trace_id.to_string(),
            root_service: trace.root_service,
            root_operation: trace.root_operation,
            start_unix_nano: trace.earliest.0,
            duration_nanos: trace.duration,
            status: status_to_proto(trace.status).into(),
            span_count: trace.span_count,
            error_count: trace.error_count,
            services: trace.services,
            state: state_to_proto(trace.state).into(),
            matched_spans: trace
                .matched_spans
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

impl From<proto::FoundTrace> for dto::FoundTrace {
    fn from(trace: proto::FoundTrace) -> Self {
        Self {
            status: match trace.status() {
                proto::SpanStatus::Ok => "ok",
                proto::SpanStatus::Error => "error",
                proto::SpanStatus::Unspecified | proto::SpanStatus::Unset => "unset",
            }
            .to_owned(),
            state: state_word(trace.state()).to_owned(),
            trace_id: trace.trace_id,
            root_service: trace.root_service,
            root_operation: trace.root_operation,
            start_time: instant(trace.start_unix_nano),
            duration_ms: nanos_to_ms(trace.duration_nanos),
            span_count: trace.span_count,
            error_count: trace.error_count,
            services: trace.services,
            matched_spans: trace.matched_spans,
        }
    }
}

impl From<proto::ListServicesResponse> for dto::ServicesResponse {
    fn from(from: proto::ListServicesResponse) -> Self {
        Self {
            services: from.services,
            receipt: from.receipt.unwrap_or_default().into(),
        }
    }
}

impl From<proto::ListOperationsResponse> for dto::OperationsResponse {
    fn from(from: proto::ListOperationsResponse) -> Self {
        let operation = |operation: proto::Operation| dto::Operation {
            kind: SpanKind::from_wire(operation.kind).as_str().to_owned(),
            name: operation.name,
        };
        Self {
            operations: from.operations.into_iter().map(operation).collect(),
            receipt: from.receipt.unwrap_or_default().into(),
        }
    }
}

impl From<proto::ListTagsResponse> for dto::TagsResponse {
    fn from(from: proto::ListTagsResponse) -> Self {
        let tag = |tag: proto::Tag| dto::Tag {
            key: tag.key,
            scope: tag.scope,
            indexed: tag.indexed,
        };
        Self {
            tags: from.tags.into_iter().map(tag).collect(),
            receipt: from.receipt.unwrap_or_default().into(),
        }
    }
}

impl From<proto::ListTagValuesResponse> for dto::TagValuesResponse {
    fn from(from: proto::ListTagValuesResponse) -> Self {
        let value = |value: proto::TagValue| dto::TagValue {
            value: value.value,
            r#type: value.r#type,
        };
        Self {
            values: from.values.into_iter().map(value).collect(),
            receipt: from.receipt.unwrap_or_default().into(),
        }
    }
}

impl From<Name> for dto::Operation {
    fn from(name: Name) -> Self {
        Self {
            name: name.name,
            kind: name.kind.unwrap_or_default().as_str().to_owned(),
        }
    }
}

impl From<Name> for proto::Operation {
    fn from(name: Name) -> Self {
        Self {
            name: name.name,
            // Our kinds have OTLP's numbers, and the proto's enum too.
            kind: name.kind.unwrap_or_default() as i32,
        }
    }
}

impl From<Name> for dto::Tag {
    fn from(name: Name) -> Self {
        Self {
            key: name.name,
            scope: name.scope.unwrap_or_default().to_owned(),
            indexed: name.indexed.unwrap_or_default(),
        }
    }
}

impl From<Name> for proto::Tag {
    fn from(name: Name) -> Self {
        Self {
            key: name.name,
            scope: name.scope.unwrap_or_default().to_owned(),
            indexed: name.indexed.unwrap_or_default(),
        }
    }
}

impl From<Name> for dto::TagValue {
    fn from(name: Name) -> Self {
        Self {
            value: name.name,
            r#type: name.scope.unwrap_or_default().to_owned(),
        }
    }
}

impl From<Name> for proto::TagValue {
    fn from(name: Name) -> Self {
        Self {
            value: name.name,
            r#type: name.scope.unwrap_or_default().to_owned(),
        }
    }
}

impl From<NodeStatus> for dto::StatusResponse {
    fn from(status: NodeStatus) -> Self {
        Self {
            node: status.node.0.to_string(),
            cluster: status.cluster,
            version: status.version,
            ready: status.ready,
            not_ready_because: status.not_ready_because,
            shards: status.shards,
            pressure: status.pressure,
            credit_capacity_bytes: status.credit_capacity_bytes,
            credit_used_bytes: status.credit_used_bytes,
            open_traces: status.open_traces,
            unpaged_traces: status.unpaged_traces,
            uncompared_buckets: status.uncompared_buckets,
            differing_buckets: status.differing_buckets,
            journal_bytes: status.journal_bytes,
            block_bytes: status.block_bytes,
            index_bytes: status.index_bytes,
            journal_since: Instant(status.journal_since),
            index_watermark: Instant(status.index_watermark),
            policy_version: status.policy_version,
            policies: status.policies,
            retention_seconds: status.retention_seconds,
        }
    }
}

impl From<PolicyView> for dto::PolicyResponse {
    fn from(view: PolicyView) -> Self {
        Self {
            version: view.version,
            yaml: view.yaml,
        }
    }
}

/// The gRPC form of a state.
pub(crate) fn state_to_proto(state: TraceState) -> proto::TraceState {
    match state {
        TraceState::Open => proto::TraceState::Open,
        TraceState::Kept => proto::TraceState::Kept,
        TraceState::Dropped => proto::TraceState::Dropped,
    }
}

fn state_word(state: proto::TraceState) -> &'static str {
    match state {
        proto::TraceState::Unspecified => "unspecified",
        proto::TraceState::Open => "open",
        proto::TraceState::Kept => "kept",
        proto::TraceState::Dropped => "dropped",
    }
}

fn status_to_proto(status: StatusCode) -> proto::SpanStatus {
    match status {
        StatusCode::Unset => proto::SpanStatus::Unset,
        StatusCode::Ok => proto::SpanStatus::Ok,
        StatusCode::Error => proto::SpanStatus::Error,
    }
}

fn instant(nanos: u64) -> Instant {
    Instant(UnixNanos(nanos))
}
