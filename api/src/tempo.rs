//! What a Grafana Tempo data source needs to be saved and to show a trace by id.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prost::Message;
use serde_json::json;
use spandrel_model::ports::TraceAnswer;

use crate::error::ApiError;
use crate::native::{Native, lookup, parse_id, wants_protobuf};
use crate::pieces::{Pieces, Rendering};
use crate::tenant;

/// What is behind `trace` in `tempopb.TraceByIDResponse`.
#[derive(Clone, PartialEq, Message)]
struct TraceByIdEnd {
    /// 0 is COMPLETE, 1 is PARTIAL.
    #[prost(int32, tag = "3")]
    status: i32,
    #[prost(string, tag = "4")]
    message: String,
}

/// The routes. Unknown parameters are ignored, as Tempo does: Grafana sends `start`, `end` and more.
pub(crate) fn routes() -> Router<Native> {
    Router::new()
        .route("/api/echo", get(async || "echo"))
        .route("/api/status/buildinfo", get(build_info))
        .route("/api/v2/traces/{trace_id}", get(trace_v2))
        .route("/api/traces/{trace_id}", get(trace_v1))
}

async fn build_info() -> Response {
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"), "revision": "", "branch": "", "buildDate": "", "buildUser": "",
        "goVersion": "",
    });
    let content_type = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

async fn trace_v2(
    State(native): State<Native>,
    Path(trace_id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let answer = match find(&native, &trace_id, &headers).await {
        Ok(answer) => answer,
        Err(response) => return *response,
    };
    let partial = if answer.complete {
        String::new()
    } else {
        "some nodes that may hold spans of this trace did not answer".to_owned()
    };
    if wants_protobuf(&headers) {
        let end = TraceByIdEnd {
            status: i32::from(!answer.complete),
            message: partial,
        };
        return send(
            answer,
            Rendering::field(end.encode_to_vec()),
            "application/protobuf",
        )
        .await;
    }
    let status = if answer.complete {
        "COMPLETE"
    } else {
        "PARTIAL"
    };
    let end = format!(
        "]}},\"status\":\"{status}\",\"message\":{}}}",
        json!(partial)
    );
    let rendering = Rendering::json("{\"trace\":{\"resourceSpans\":[", end);
    send(answer, rendering, "application/json").await
}

async fn trace_v1(
    State(native): State<Native>,
    Path(trace_id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let answer = match find(&native, &trace_id, &headers).await {
        Ok(answer) => answer,
        Err(response) => return *response,
    };
    if wants_protobuf(&headers) {
        return send(answer, Rendering::raw(), "application/protobuf").await;
    }
    send(
        answer,
        Rendering::json("{\"batches\":[", "]}"),
        "application/json",
    )
    .await
}

async fn find(
    native: &Native,
    trace_id: &str,
    headers: &HeaderMap,
) -> Result<TraceAnswer, Box<Response>> {
    let found = async {
        let tenant = tenant::of_headers(native.ports.ingest.as_ref(), headers)?;
        lookup(native.ports.query.as_ref(), &tenant, parse_id(trace_id)?).await
    };
    found.await.map_err(|error| Box::new(plain(&error)))
}

async fn send(answer: TraceAnswer, rendering: Rendering, content_type: &'static str) -> Response {
    match Pieces::open(answer.reader, rendering).await {
        Ok(pieces) => {
            let content_type = HeaderValue::from_static(content_type);
            let body = Body::from_stream(pieces.into_stream());
            ([(CONTENT_TYPE, content_type)], body).into_response()
        }
        Err(error) => plain(&error),
    }
}

/// Tempo answers errors in plain text.
fn plain(error: &ApiError) -> Response {
    let text = match error.status {
        StatusCode::NOT_FOUND => "trace not found".to_owned(),
        _ => error.detail.message.clone(),
    };
    (error.status, text).into_response()
}
