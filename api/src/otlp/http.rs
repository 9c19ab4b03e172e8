//! OTLP/HTTP: `POST /v1/traces` in protobuf or JSON, answered in the encoding of the request.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use prost::Message;
use serde_json::json;
use spandrel_model::credit::Credit;
use spandrel_model::ports::{ExportOutcome, Ingest};

use super::body::{no_room, read_whole};
use super::json::{TranscodeError, transcode_request};
use super::unfold::{ACCEPTED, Encoding, unfold};
use super::{Arrived, hand_over, offloaded, response_of, within};
use crate::error::ApiError;
use crate::limits::{
    DEFAULT_EXPORT_DEADLINE_MS, MAX_DECODED_BYTES, OFFLOAD_BYTES, OFFLOAD_COMPRESSED_BYTES,
};
use crate::rpc_status::RETRY_INFO_URL;
use crate::telemetry::{Observed, received, refused};
use crate::tenant;

const API: &str = "otlp_http";

/// How request and answer are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

/// The route of an export.
pub(crate) fn router(ingest: Arc<dyn Ingest>) -> Router {
    Router::new()
        .route("/v1/traces", post(export))
        .with_state(ingest)
}

async fn export(State(ingest): State<Arc<dyn Ingest>>, request: Request<Body>) -> Response {
    let observed = Observed::start(API);
    let format = format_of(request.headers());
    let deadline = Duration::from_millis(DEFAULT_EXPORT_DEADLINE_MS);
    let result = match format {
        Some(format) => within(deadline, take(&ingest, request, format)).await,
        None => {
            let message = "the content type must be application/x-protobuf or application/json";
            Err(ApiError::unsupported("content-type", message))
        }
    };
    let format = format.unwrap_or(Format::Protobuf);
    let response = match result {
        Ok(outcome) => accepted(format, outcome),
        Err(error) => {
            refused(API, &error.detail.code);
            failed(format, &error)
        }
    };
    observed.answered(response.status().as_u16());
    response
}

fn format_of(headers: &HeaderMap) -> Option<Format> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = value.split(';').next()?.trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/x-protobuf" => Some(Format::Protobuf),
        "application/json" => Some(Format::Json),
        _ => None,
    }
}

async fn take(
    ingest: &Arc<dyn Ingest>,
    request: Request<Body>,
    format: Format,
) -> Result<ExportOutcome, ApiError> {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let encoding = Encoding::parse(headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes));
    let encoding = encoding.ok_or_else(|| {
        let message = format!("the content encoding must be one of {ACCEPTED}");
        ApiError::unsupported("content-encoding", message)
    })?;
    let tenant = tenant::of_headers(ingest.as_ref(), &headers)?;
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let (wire, credit) = read_whole(body, announced, ingest.as_ref(), &tenant).await?;
    received(API, wire.len());
    let work = move || decode(format, encoding, wire, credit);
    let cheap = format == Format::Protobuf && encoding == Encoding::Identity;
    let most = match encoding {
        Encoding::Identity => OFFLOAD_BYTES,
        Encoding::Gzip | Encoding::Zstd => OFFLOAD_COMPRESSED_BYTES,
    };
    let small = announced.is_some_and(|bytes| bytes < most as u64);
    let (request, credit) = if cheap || small {
        work()?
    } else {
        offloaded(work).await?
    };
    let arrived = Arrived {
        tenant,
        request,
        credit,
    };
    hand_over(ingest, arrived).await
}

fn decode(
    format: Format,
    encoding: Encoding,
    wire: Bytes,
    mut credit: Credit,
) -> Result<(Bytes, Credit), ApiError> {
    let body = unfold(encoding, wire, &mut credit)?;
    if format == Format::Protobuf {
        return Ok((body, credit));
    }
    let before = credit.bytes();
    let request = transcode_request(&body, &mut |more| credit.try_grow(more));
    let request = request.map_err(|error| match error {
        TranscodeError::Invalid(_) => ApiError::invalid("body", error.to_string()),
        TranscodeError::NoRoom => no_room(),
        TranscodeError::TooLarge => ApiError::too_large(error.to_string(), MAX_DECODED_BYTES),
    })?;
    drop(body);
    // What remains was taken for the protobuf form; the JSON is gone.
    credit.shrink_to((credit.bytes() - before).max(request.len() as u64));
    Ok((request, credit))
}

fn accepted(format: Format, outcome: ExportOutcome) -> Response {
    let answer = response_of(outcome);
    let body = match format {
        Format::Protobuf => answer.encode_to_vec(),
        Format::Json => match answer.partial_success {
            None => b"{}".to_vec(),
            Some(partial) => json!({"partialSuccess": {
                "rejectedSpans": partial.rejected_spans.to_string(),
                "errorMessage": partial.error_message,
            }})
            .to_string()
            .into_bytes(),
        },
    };
    respond(format, StatusCode::OK, body)
}

/// Errors are a `google.rpc.Status` in the encoding of the request (OTLP, "Failures").
fn failed(format: Format, error: &ApiError) -> Response {
    let status = error.rpc_status();
    let body = match format {
        Format::Protobuf => status.encode_to_vec(),
        Format::Json => {
            let mut body = json!({"code": status.code, "message": status.message});
            if let Some(millis) = error.detail.retry_after_ms {
                let delay = format!("{}.{:03}s", millis / 1_000, millis % 1_000);
                body["details"] = json!([{"@type": RETRY_INFO_URL, "retryDelay": delay}]);
            }
            body.to_string().into_bytes()
        }
    };
    let mut response = respond(format, error.status, body);
    if let Some(retry_after) = error.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, retry_after);
    }
    response
}

fn respond(format: Format, status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(match format {
        Format::Protobuf => "application/x-protobuf",
        Format::Json => "application/json",
    });
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
