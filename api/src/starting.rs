//! What the port of the native API answers while the node starts: that may take as long as a majority of the cluster
//! is away, and whoever asks meanwhile must hear so rather than wait.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use spandrel_model::error::PortError;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::connection::{Protocols, accept_for_now};
use crate::error::ApiError;
use crate::limits::DEFAULT_RETRY_MS;

/// Says for people what the node waits for.
type Reason = Arc<dyn Fn() -> String + Send + Sync>;

/// Answers on the port of the native API until `started` is done, and returns what it gave: `/healthz` that the process
/// lives, `/ready` that it is not ready and why, everything else that it is unavailable. The listener is then free for
/// [`serve`](crate::serve).
pub async fn serve_until_started<T>(
    http: &TcpListener,
    reason: Reason,
    started: impl Future<Output = T>,
) -> T {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/ready", get(ready))
        .fallback(unavailable)
        .with_state(reason);
    let (stop, stopped) = watch::channel(());
    let starting = async {
        let started = started.await;
        drop(stop);
        started
    };
    let answering = accept_for_now("http", http, router, Protocols::Both, stopped);
    let (started, mut connections) = tokio::join!(starting, answering);
    // Each ends by itself after the answer that it is at: the node need not wait for that.
    connections.detach_all();
    started
}

async fn ready(State(reason): State<Reason>) -> Response {
    let text = format!("not ready: {}\n", reason());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn unavailable(State(reason): State<Reason>, request: Request) -> Response {
    let error = ApiError::from(PortError::unavailable(
        "starting",
        reason(),
        DEFAULT_RETRY_MS,
    ));
    let content_type = request.headers().get("content-type");
    if content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return error.tonic_status().into_http();
    }
    error.into_response()
}
