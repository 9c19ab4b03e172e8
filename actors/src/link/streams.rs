//! Where the bytes between nodes flow: production has TCP with or without TLS, the simulation streams of its own.

use std::future::Future;
use std::io;
use std::pin::Pin;

use async_trait::async_trait;
use ractor_cluster::{BoxRead, BoxWrite};

use super::tls::PeerCertificate;

/// A connected stream.
pub struct LinkStream {
    /// What the other side sends.
    pub reader: BoxRead,
    /// What this side sends.
    pub writer: BoxWrite,
    /// Who the other side has proved to be; `None` where streams prove nothing.
    pub certificate: Option<PeerCertificate>,
    /// The other side's address, for people.
    pub peer: String,
}

impl std::fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkStream")
            .field("peer", &self.peer)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The rest of taking a connection (TLS), which must not keep the next one waiting.
pub type Incoming = Pin<Box<dyn Future<Output = io::Result<LinkStream>> + Send>>;

/// Connects with other nodes and takes their connections.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Connects with `host:port`. The other side is the one that belongs there, as far as the streams can prove it.
    ///
    /// # Errors
    /// When nobody answers there or the proof fails.
    async fn dial(&self, address: &str) -> io::Result<LinkStream>;

    /// The next connection that another node has opened. May be dropped at any point without losing one.
    ///
    /// # Errors
    /// When none can be taken at the moment; it is asked again.
    async fn accept(&self) -> io::Result<Incoming>;
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_host_of_an_address() {
        for (address, host) in [
            ("node-1.example:7200", "node-1.example"),
            ("10.0.0.1:7200", "10.0.0.1"),
            ("[::1]:7200", "::1"),
            ("node-1", "node-1"),
        ] {
            assert_eq!(host_of(address), host);
        }
    }
}
