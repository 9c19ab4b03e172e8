//! The edge over real sockets, with fakes behind the ports.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod client;
mod native;
mod otlp_grpc;
mod otlp_http;
mod starting;
mod support;
