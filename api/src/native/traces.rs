//! One trace: fetched a piece at a time, or promoted.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use spandrel_model::ids::{TenantId, TraceId};
use spandrel_model::ports::{Query, TraceAnswer, TraceLookup};

use super::{Native, in_time, json_response, tenant_and_parameters};
use crate::dto::{PromoteResponse, TraceHead};
use crate::error::ApiError;
use crate::limits::DEFAULT_QUERY_TIMEOUT_MS;
use crate::otlp::json::{TRACE_DOCUMENT_END, trace_document_start};
use crate::pieces::{Pieces, Rendering};

pub(super) async fn trace(
    State(native): State<Native>,
    Path(trace_id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (tenant, parameters) = tenant_and_parameters(&native, &headers, &uri)?;
    parameters.finish()?;
    let trace_id = parse_id(&trace_id)?;
    let answer = lookup(native.ports.query.as_ref(), &tenant, trace_id).await?;
    let head = head_of(trace_id, &answer);
    let (rendering, content_type) = if wants_protobuf(&headers) {
        (Rendering::raw(), "application/protobuf")
    } else {
        let start = trace_document_start(&head);
        (
            Rendering::json(start, TRACE_DOCUMENT_END),
            "application/json",
        )
    };
    let pieces = Pieces::open(answer.reader, rendering).await?;
    let complete = if head.complete { "true" } else { "false" };
    let headers = [
        ("content-type", HeaderValue::from_static(content_type)),
        (
            "spandrel-state",
            HeaderValue::from_static(answer.state.as_str()),
        ),
        ("spandrel-complete", HeaderValue::from_static(complete)),
    ];
    Ok((headers, Body::from_stream(pieces.into_stream())).into_response())
}

pub(super) async fn promote(
    State(native): State<Native>,
    Path(trace_id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (tenant, parameters) = tenant_and_parameters(&native, &headers, &uri)?;
    parameters.finish()?;
    let trace_id = parse_id(&trace_id)?;
    let promoted = native.ports.query.promote(&tenant, trace_id);
    let decision = in_time(DEFAULT_QUERY_TIMEOUT_MS, promoted).await?;
    Ok(json_response(&PromoteResponse {
        trace_id: trace_id.to_string(),
        decision: decision.into(),
    }))
}

/// The trace, or the error that says why there is none.
pub(crate) async fn lookup(
    query: &dyn Query,
    tenant: &TenantId,
    trace_id: TraceId,
) -> Result<TraceAnswer, ApiError> {
    match in_time(DEFAULT_QUERY_TIMEOUT_MS, query.trace(tenant, trace_id)).await? {
        TraceLookup::Found(answer) => Ok(answer),
        TraceLookup::Absent(absence) => Err(ApiError::absent(absence)),
    }
}

/// A trace id of a path or a message.
pub(crate) fn parse_id(text: &str) -> Result<TraceId, ApiError> {
    text.parse()
        .map_err(|error: spandrel_model::ids::InvalidId| {
            ApiError::invalid("traceId", error.to_string())
        })
}

/// Whether `Accept` names protobuf before JSON.
pub(crate) fn wants_protobuf(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|part| part.split(';').next())
        .find_map(|kind| match kind.trim() {
            "application/protobuf" | "application/x-protobuf" => Some(true),
            "application/json" => Some(false),
            _ => None,
        })
        .unwrap_or(false)
}

fn head_of(trace_id: TraceId, answer: &TraceAnswer) -> TraceHead {
    TraceHead {
        trace_id: trace_id.to_string(),
        state: answer.state.as_str().to_owned(),
        complete: answer.complete,
        missing: answer.missing.iter().cloned().map(Into::into).collect(),
        decision: answer.decision.clone().map(Into::into),
        span_count: answer.span_count,
    }
}
