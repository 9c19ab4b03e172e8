//! Ports for a node.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context;

use crate::limits::{FIRST_PORT, PORTS};

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Native API, queries, metrics.
    pub http: SocketAddr,
    /// OTLP by gRPC.
    pub otlp_grpc: SocketAddr,
    /// OTLP by HTTP.
    pub otlp_http: SocketAddr,
    /// Between nodes.
    pub link: SocketAddr,
}

impl Ports {
    /// Ports that were free a moment ago: all four were held at once, so that they differ. Not those that the system
    /// gives to connections that go out: while a node is dead, whoever dials it in vain could be given its port, and
    /// the node could not come back.
    pub(crate) fn free() -> anyhow::Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Two tests that run at once begin elsewhere.
        let begin = u16::try_from(std::process::id() % u32::from(PORTS))?;
        let begin = begin.wrapping_mul(131) % PORTS;
        let mut held: Vec<TcpListener> = Vec::new();
        for _ in 0..PORTS {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let port = FIRST_PORT + begin.wrapping_add(step) % PORTS;
            held.extend(TcpListener::bind(("127.0.0.1", port)).ok());
            if held.len() == 4 {
                break;
            }
        }
        let addr = |at: usize| -> anyhow::Result<SocketAddr> {
            Ok(held.get(at).context("four were bound")?.local_addr()?)
        };
        Ok(Self {
            http: addr(0)?,
            otlp_grpc: addr(1)?,
            otlp_http: addr(2)?,
            link: addr(3)?,
        })
    }
}
