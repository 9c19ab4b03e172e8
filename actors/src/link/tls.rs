//! Mutual TLS between nodes: both sides show a certificate of the cluster's own authority, and it names the host that
//! the node advertises. TLS 1.3 only, with the provider aws-lc-rs.

use std::sync::Arc;

use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The certificate that the other side of a stream has shown, issued by the cluster's authority.
#[derive(Clone)]
pub struct PeerCertificate(CertificateDer<'static>);

impl PeerCertificate {
    pub(crate) fn new(certificate: &CertificateDer<'_>) -> Self {
        Self(certificate.clone().into_owned())
    }

    /// Whether the certificate was issued for a host: a DNS name or an IP address.
    #[must_use]
    pub fn names_host(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host) else {
            return false;
        };
        let Ok(parsed) = ParsedCertificate::try_from(&self.0) else {
            return false;
        };
        verify_server_name(&parsed, &name).is_ok()
    }
}

impl std::fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerCertificate({} bytes)", self.0.len())
    }
}

/// What a node needs for TLS, as the content of PEM files.
#[derive(Clone)]
pub struct LinkPem {
    /// The certificates of the cluster's authority: several while it is being replaced.
    pub authority: Vec<u8>,
    /// The node's certificate, then those between it and the authority.
    pub certificate: Vec<u8>,
    /// The node's private key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for LinkPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkPem").finish_non_exhaustive()
    }
}

/// Certificates or a key that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {what} cannot be used: {reason}")]
pub struct LinkTlsError {
    /// Which of them.
    pub what: &'static str,
    /// Why.
    pub reason: String,
}

/// Both directions of TLS, ready for use.
#[derive(Clone)]
pub struct LinkTls {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) connector: TlsConnector,
}

impl std::fmt::Debug for LinkTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkTls").finish_non_exhaustive()
    }
}

impl LinkTls {
    /// From the content of PEM files.
    ///
    /// # Errors
    /// [`LinkTlsError`] naming what is wrong.
    pub fn new(pem: &LinkPem) -> Result<Self, LinkTlsError> {
        let roots = Arc::new(roots(&pem.authority)?);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(because("authority"))?;
        let chain = certificates("node's certificate", &pem.certificate)?;
        let key = || PrivateKeyDer::from_pem_slice(&pem.key).map_err(because("node's private key"));
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(because("provider"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key()?)
            .map_err(because("node's certificate with its key"))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(because("provider"))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key()?)
            .map_err(because("node's certificate with its key"))?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, LinkTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authority's certificate", pem)? {
        roots
            .add(certificate)
            .map_err(because("authority's certificate"))?;
    }
    Ok(roots)
}

fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, LinkTlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(because(what))?;
    if all.is_empty() {
        return Err(because(what)("there is none in the file"));
    }
    Ok(all)
}

fn because<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> LinkTlsError {
    move |error| LinkTlsError {
        what,
        reason: error.to_string(),
    }
}
