//! Streams over TCP, with or without TLS.

use std::io;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::ServerName;

use super::streams::{Incoming, LinkStream, Streams, host_of};
use super::tls::{LinkTls, PeerCertificate};

/// Streams over TCP: one listener, and TLS unless the network is trusted.
#[derive(Debug)]
pub struct TcpStreams {
    listener: TcpListener,
    tls: Option<LinkTls>,
}

impl TcpStreams {
    /// Over a listener that is bound to the link address.
    #[must_use]
    pub fn new(listener: TcpListener, tls: Option<LinkTls>) -> Self {
        Self { listener, tls }
    }
}

#[async_trait]
impl Streams for TcpStreams {
    async fn dial(&self, address: &str) -> io::Result<LinkStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(plain(stream, address.to_owned()));
        };
        let name = ServerName::try_from(host_of(address).to_owned()).map_err(io::Error::other)?;
        let stream = tls.connector.connect(name, stream).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let certificate = first(shown)?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(LinkStream {
            reader: Box::new(reader),
            writer: Box::new(writer),
            certificate: Some(certificate),
            peer: address.to_owned(),
        })
    }

    async fn accept(&self) -> io::Result<Incoming> {
        let (stream, peer) = self.listener.accept().await?;
        let tls = self.tls.clone();
        Ok(Box::pin(async move {
            stream.set_nodelay(true)?;
            let Some(tls) = tls else {
                return Ok(plain(stream, peer.to_string()));
            };
            let stream = tls.acceptor.accept(stream).await?;
            let certificate = first(stream.get_ref().1.peer_certificates())?;
            let (reader, writer) = tokio::io::split(stream);
            Ok(LinkStream {
                reader: Box::new(reader),
                writer: Box::new(writer),
                certificate: Some(certificate),
                peer: peer.to_string(),
            })
        }))
    }
}

fn plain(stream: TcpStream, peer: String) -> LinkStream {
    let (reader, writer) = stream.into_split();
    LinkStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        certificate: None,
        peer,
    }
}

type Shown<'a> = Option<&'a [tokio_rustls::rustls::pki_types::CertificateDer<'static>]>;

fn first(shown: Shown<'_>) -> io::Result<PeerCertificate> {
    let certificate = shown.and_then(<[_]>::first).map(PeerCertificate::new);
    certificate.ok_or_else(|| io::Error::other("the peer has shown no certificate"))
}
