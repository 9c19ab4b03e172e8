//! The listeners: what is served where, and how it ends.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use spandrel_model::ports::{Admin, Ingest, Query};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic_health::ServingStatus;

use crate::connection::{Protocols, accept};
use crate::limits::MAX_QUERY_MESSAGE_BYTES;
use crate::native::{Addresses, Native};
use crate::proto::query_service_server::QueryServiceServer;
use crate::query_service::Queries;
use crate::{native, otlp, proto};

/// The sockets, bound by the caller, who can name the flag when a port is taken.
#[derive(Debug)]
pub struct Listeners {
    /// The native API, by HTTP/1.1 and h2c, with gRPC.
    pub http: TcpListener,
    /// OTLP/gRPC.
    pub otlp_grpc: TcpListener,
    /// OTLP/HTTP.
    pub otlp_http: TcpListener,
}

/// What the API calls.
#[derive(Clone)]
pub struct Ports {
    /// Takes spans.
    pub ingest: Arc<dyn Ingest>,
    /// Answers queries.
    pub query: Arc<dyn Query>,
    /// Shows and changes settings.
    pub admin: Arc<dyn Admin>,
    /// Renders the metrics of the process in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Serving could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A listener has no address.
    #[error("the address of a listener is unknown: {0}")]
    Address(#[from] std::io::Error),
    /// Our own descriptors are broken.
    #[error("grpc reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves until `shutdown` is done; then takes no new connections and no new requests, lets open ones end within
/// [`DRAIN_MS`](crate::limits::DRAIN_MS), and returns.
///
/// Boxed: else every crate that awaits it compiles the servers again.
///
/// # Errors
/// [`ServeError`] before anything is served.
pub fn serve(
    listeners: Listeners,
    ports: Ports,
    shutdown: BoxFuture<'static, ()>,
) -> BoxFuture<'static, Result<(), ServeError>> {
    async move {
        let addresses = Addresses {
            http: listeners.http.local_addr()?,
            otlp_grpc: listeners.otlp_grpc.local_addr()?,
            otlp_http: listeners.otlp_http.local_addr()?,
        };
        let ports = Arc::new(ports);
        let ingest = Arc::clone(&ports.ingest);
        let native = native::router(Native {
            ports: Arc::clone(&ports),
            addresses,
        });
        let queries = QueryServiceServer::new(Queries { ports })
            .max_decoding_message_size(MAX_QUERY_MESSAGE_BYTES);
        let http = with_grpc(native, "spandrel.v1.QueryService", proto::DESCRIPTORS)
            .await?
            .route_service("/spandrel.v1.QueryService/{rpc}", queries);
        let http = native::observed(http);
        let otlp_grpc = with_grpc(
            otlp::grpc_router(Arc::clone(&ingest)).fallback(no_such_method),
            "opentelemetry.proto.collector.trace.v1.TraceService",
            opentelemetry_proto::DESCRIPTORS,
        )
        .await?;
        let otlp_http = otlp::http_router(ingest);

        let (stop, stopped) = watch::channel(());
        let serving = async {
            tokio::join!(
                accept(
                    "http",
                    listeners.http,
                    http,
                    Protocols::Both,
                    stopped.clone()
                ),
                accept(
                    "otlp_grpc",
                    listeners.otlp_grpc,
                    otlp_grpc,
                    Protocols::Http2,
                    stopped.clone()
                ),
                accept(
                    "otlp_http",
                    listeners.otlp_http,
                    otlp_http,
                    Protocols::Both,
                    stopped.clone()
                ),
            )
        };
        let stopping = async {
            shutdown.await;
            tracing::info!("no new requests are taken; open ones may end");
            drop(stop);
        };
        tokio::join!(serving, stopping);
        Ok(())
    }
    .boxed()
}

/// gRPC's health and reflection services beside other routes, for one service of ours.
async fn with_grpc(
    router: Router,
    service: &'static str,
    descriptors: &'static [u8],
) -> Result<Router, ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status(service, ServingStatus::Serving)
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(service)
            .with_service_name("grpc.health.v1.Health")
    };
    Ok(router
        .route_service("/grpc.health.v1.Health/{rpc}", health)
        .route_service(
            "/grpc.reflection.v1.ServerReflection/{rpc}",
            reflection().build_v1()?,
        )
        .route_service(
            "/grpc.reflection.v1alpha.ServerReflection/{rpc}",
            reflection().build_v1alpha()?,
        ))
}

async fn no_such_method(request: Request) -> Response {
    let grpc = request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return tonic::Status::unimplemented("this port takes OTLP/gRPC only: queries go to the port of the native API, 3200 by default").into_http();
    }
    (StatusCode::NOT_FOUND, "this port takes OTLP/gRPC only: the page and queries are on the port of the native API, 3200 by default\n").into_response()
}
