//! Administration and state, for callers on the node's own machine.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::TenantId;

use super::{Native, Peer, json_response};
use crate::dto::{
    ApplyPolicyRequest, CreateTenantRequest, DoneResponse, PolicyResponse, StatusResponse,
    TenantsResponse,
};
use crate::error::ApiError;
use crate::limits::MAX_ADMIN_BODY_BYTES;

/// `/ready`: for load balancers, open to all.
pub(super) async fn ready(State(native): State<Native>) -> Response {
    let status = native.ports.admin.status().await;
    if status.ready {
        return "ready\n".into_response();
    }
    let reason = format!("not ready: {}\n", status.not_ready_because);
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

/// A request from this machine, and from a program rather than a web page.
pub(super) struct Local;

impl Local {
    /// Loopback is not proof enough: a page in a browser on this machine also comes from there. It cannot do without
    /// `Origin` on what changes something, nor send JSON across origins without asking first, and a name that was
    /// bound to 127.0.0.1 to get around that shows in `Host`.
    fn check(
        peer: Option<&Peer>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let refused = |message: &str| {
            Err(PortError::new(ErrorClass::Forbidden, "loopback_only", message).into())
        };
        if !peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback()) {
            return refused("administration is taken from the node's own machine only");
        }
        let host = match uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => headers.get(HOST).and_then(|host| host.to_str().ok()),
        };
        if !host.is_some_and(is_loopback_name) || headers.contains_key(ORIGIN) {
            return refused("administration is taken under a loopback address, not from web pages");
        }
        let json = headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        if method == Method::POST && !json {
            let message = "the content type must be application/json";
            return Err(ApiError::unsupported("content-type", message));
        }
        Ok(Self)
    }
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| {
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

impl<S: Sync> axum::extract::FromRequestParts<S> for Local {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, ApiError> {
        let peer = parts.extensions.get::<Peer>();
        Self::check(peer, &parts.method, &parts.uri, &parts.headers)
    }
}

pub(super) async fn status(_: Local, State(native): State<Native>) -> Response {
    json_response(&StatusResponse::from(native.ports.admin.status().await))
}

pub(super) async fn policy(_: Local, State(native): State<Native>) -> Response {
    json_response(&PolicyResponse::from(native.ports.admin.policy().await))
}

pub(super) async fn apply_policy(
    _: Local,
    State(native): State<Native>,
    request: Request,
) -> Result<Response, ApiError> {
    let body: ApplyPolicyRequest = read_json(request).await?;
    let view = native.ports.admin.apply_policy(body.yaml).await?;
    Ok(json_response(&PolicyResponse::from(view)))
}

pub(super) async fn tenants(_: Local, State(native): State<Native>) -> Response {
    let tenants = native.ports.admin.tenants().await;
    json_response(&TenantsResponse {
        tenants: tenants.into_iter().map(Into::into).collect(),
    })
}

pub(super) async fn create_tenant(
    _: Local,
    State(native): State<Native>,
    request: Request,
) -> Result<Response, ApiError> {
    let body: CreateTenantRequest = read_json(request).await?;
    let tenant: TenantId =
        body.tenant
            .parse()
            .map_err(|error: spandrel_model::ids::InvalidTenant| {
                ApiError::invalid("tenant", error.to_string())
            })?;
    native.ports.admin.create_tenant(tenant).await?;
    Ok(json_response(&DoneResponse {}))
}

pub(super) async fn flush(_: Local, State(native): State<Native>) -> Result<Response, ApiError> {
    native.ports.admin.flush().await?;
    Ok(json_response(&DoneResponse {}))
}

pub(super) async fn read_json<T: DeserializeOwned>(request: Request<Body>) -> Result<T, ApiError> {
    let body = Limited::new(request.into_body(), MAX_ADMIN_BODY_BYTES);
    let bytes = body.collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            let message = format!("the body is larger than {MAX_ADMIN_BODY_BYTES} bytes");
            return ApiError::too_large(message, MAX_ADMIN_BODY_BYTES);
        }
        ApiError::invalid("body", format!("the body broke off: {error}"))
    })?;
    serde_json::from_slice(&bytes.to_bytes())
        .map_err(|error| ApiError::invalid("body", format!("the body cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for good in [
            "localhost",
            "LOCALHOST:3200",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:3200",
            "[::1]",
        ] {
            assert!(is_loopback_name(good), "{good}");
        }
        for bad in [
            "",
            "evil.example:3200",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "localhost.evil",
        ] {
            assert!(!is_loopback_name(bad), "{bad}");
        }
    }
}
