//! Connections: accepted up to a bound, served with bounds, drained at the end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::limits::{
    ACCEPT_PAUSE_MS, CONNECTION_WINDOW_BYTES, DRAIN_MS, FRAME_BYTES, HEADER_TIMEOUT_MS,
    HTTP1_BUFFER_BYTES, KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, MAX_CONCURRENT_STREAMS,
    MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_HEADERS, NARROW_FRAME_BYTES, NARROW_WINDOW_BYTES,
    STREAM_WINDOW_BYTES, WIDE_CONNECTIONS,
};
use crate::native::Peer;
use crate::telemetry;

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocols {
    /// HTTP/1.1 and HTTP/2 with prior knowledge.
    Both,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Serves what connects to `listener` until the sender of `stopped` is gone, then lets open requests end.
pub(crate) async fn accept(
    name: &'static str,
    listener: TcpListener,
    router: Router,
    protocols: Protocols,
    stopped: watch::Receiver<()>,
) {
    let mut connections = accept_for_now(name, &listener, router, protocols, stopped).await;
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(DRAIN_MS), drained)
        .await
        .is_err()
    {
        tracing::warn!(
            listener = name,
            "requests did not end in time and are cut off"
        );
        connections.shutdown().await;
    }
}

/// Serves what connects to `listener` until the sender of `stopped` is gone. Returns the connections, which end after
/// the requests that are open on them; the listener goes on listening.
pub(crate) async fn accept_for_now(
    name: &'static str,
    listener: &TcpListener,
    router: Router,
    protocols: Protocols,
    mut stopped: watch::Receiver<()>,
) -> JoinSet<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let open = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            _ = stopped.changed() => return connections,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = name, %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                continue;
            }
        };
        let wide = open.fetch_add(1, Ordering::Relaxed) < WIDE_CONNECTIONS;
        let counted = Counted {
            name,
            open: Arc::clone(&open),
        };
        telemetry::connections(name, 1.0);
        let (router, stopped) = (router.clone(), stopped.clone());
        connections.spawn(async move {
            let _held = (place, counted);
            let builder = builder(protocols, wide);
            serve_connection(builder, stream, peer, router, stopped).await;
        });
    }
}

struct Counted {
    name: &'static str,
    open: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        telemetry::connections(self.name, -1.0);
    }
}

fn builder(protocols: Protocols, wide: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if protocols == Protocols::Http2 {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEADER_TIMEOUT_MS))
        .max_headers(MAX_HEADERS)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    let (stream, connection, frame) = if wide {
        (STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES)
    } else {
        (NARROW_WINDOW_BYTES, NARROW_WINDOW_BYTES, NARROW_FRAME_BYTES)
    };
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(stream)
        .initial_connection_window_size(connection)
        .max_frame_size(frame)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(Duration::from_millis(KEEPALIVE_MS))
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_TIMEOUT_MS));
    builder
}

async fn serve_connection(
    builder: Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    mut stopped: watch::Receiver<()>,
) {
    // Answers are small and awaited: they must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        call(router.clone(), request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection broke");
    }
}

async fn call(router: Router, request: Request<Body>) -> Result<Response, Infallible> {
    router.oneshot(request).await
}
