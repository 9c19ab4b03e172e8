//! The native HTTP API: one port for queries, administration, metrics and the first page.

mod admin;
mod cluster;
mod names;
mod page;
mod search;
mod traces;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use spandrel_model::ids::TenantId;

use crate::error::ApiError;
use crate::limits::QUERY_GRACE_MS;
use crate::parameters::Parameters;
use crate::serve::Ports;
use crate::telemetry::Observed;
use crate::tenant;

pub(crate) use self::traces::{lookup, parse_id, wants_protobuf};

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Native {
    pub(crate) ports: Arc<Ports>,
    pub(crate) addresses: Addresses,
}

/// Where the node listens, for the first page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) http: SocketAddr,
    pub(crate) otlp_grpc: SocketAddr,
    pub(crate) otlp_http: SocketAddr,
}

/// The client's address; put into each request by the listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// All routes of the native API.
pub(crate) fn router(native: Native) -> Router {
    Router::new()
        .route("/", get(page::first_page))
        .route("/healthz", get(async || "ok\n"))
        .route("/ready", get(admin::ready))
        .route("/metrics", get(metrics))
        .route("/v1/traces/search", get(search::search))
        .route("/v1/traces/{trace_id}", get(traces::trace))
        .route("/v1/traces/{trace_id}/promote", post(traces::promote))
        .route("/v1/services", get(names::services))
        .route("/v1/services/{service}/operations", get(names::operations))
        .route("/v1/tags", get(names::tags))
        .route("/v1/tags/{key}/values", get(names::tag_values))
        .route("/v1/status", get(admin::status))
        .route(
            "/v1/admin/policy",
            get(admin::policy).post(admin::apply_policy),
        )
        .route(
            "/v1/admin/tenants",
            get(admin::tenants).post(admin::create_tenant),
        )
        .route("/v1/admin/flush", post(admin::flush))
        .route("/v1/cluster", get(cluster::cluster))
        .route("/v1/admin/nodes/leave", post(cluster::leave))
        .route("/v1/admin/nodes/remove", post(cluster::remove))
        .route("/v1/admin/nodes/repair", post(cluster::repair))
        .route("/v1/admin/tokens/join", post(cluster::create_join_token))
        .merge(crate::tempo::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(native)
}

/// The same routes, counted. Routes that are added afterwards are not.
pub(crate) fn observed(router: Router) -> Router {
    router.layer(middleware::from_fn(observe))
}

async fn no_such_route(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(128).collect();
    let mut error = ApiError::invalid("path", format!("there is nothing at {path}"));
    error.status = StatusCode::NOT_FOUND;
    error.detail.code = "no_such_route".to_owned();
    error
}

async fn wrong_method(method: Method) -> ApiError {
    let mut error = ApiError::invalid("method", format!("{method} is not taken here"));
    error.status = StatusCode::METHOD_NOT_ALLOWED;
    error.detail.code = "wrong_method".to_owned();
    error
}

async fn metrics(State(native): State<Native>) -> impl IntoResponse {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, content_type)], (native.ports.metrics)())
}

/// Counts a request under the name of its route: paths hold ids and are no labels.
async fn observe(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let api = match path.strip_prefix("/v1/") {
        Some(rest) if rest.starts_with("traces/search") => "search",
        Some(rest) if rest.starts_with("traces/") => "trace",
        Some(rest) if rest.starts_with("services") || rest.starts_with("tags") => "names",
        Some(_) => "admin",
        None if path.starts_with("/api/") => "tempo",
        None if path.starts_with("/spandrel.v1.") => "query_grpc",
        None => "other",
    };
    let observed = Observed::start(api);
    let mut response = next.run(request).await;
    // A gRPC call that failed says so in its headers; one that breaks later does so in trailers, unseen here.
    match response
        .headers()
        .get("grpc-status")
        .map(|code| code.to_str())
    {
        Some(Ok(code)) => observed.answered(format_args!("grpc_{code}")),
        _ => observed.answered(response.status().as_u16()),
    }
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert("x-content-type-options", nosniff);
    response
}

/// The tenant of a request and its parameters, with `tenant` taken from them and compared.
fn tenant_and_parameters(
    native: &Native,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<(TenantId, Parameters), ApiError> {
    let tenant = tenant::of_headers(native.ports.ingest.as_ref(), headers)?;
    let mut parameters = Parameters::parse(uri.query())?;
    tenant::check_parameter(&tenant, parameters.one("tenant")?.as_deref())?;
    Ok((tenant, parameters))
}

/// Waits for a port a little longer than the port was told to take.
pub(crate) async fn in_time<T>(
    limit_ms: u64,
    query: impl Future<Output = Result<T, spandrel_model::error::PortError>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(Duration::from_millis(limit_ms + QUERY_GRACE_MS), query).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::timed_out(limit_ms)),
    }
}

/// A body in JSON.
fn json_response(body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let content_type = HeaderValue::from_static("application/json");
            ([(CONTENT_TYPE, content_type)], Body::from(bytes)).into_response()
        }
        Err(error) => {
            let message = format!("an answer could not be written: {error}");
            ApiError::from(spandrel_model::error::PortError::internal(message)).into_response()
        }
    }
}
