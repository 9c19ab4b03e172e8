//! The listener of the links between nodes, and the files of their TLS.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use spandrel_actors::link::{LinkPem, LinkTls, LinkTlsError, TcpStreams};
use tokio::net::TcpListener;

use crate::authority::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::config::NodeStartOptions;

/// Largest file in bytes: a chain of certificates takes some KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The directory of `--link-tls-dir` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkFilesError {
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in the files cannot be used.
    #[error("in {}", dir.display())]
    Content {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        source: LinkTlsError,
    },
}

/// Reads `ca.pem`, `node.pem` and `node.key` of a directory, as `spandrel cluster ca issue` writes them.
///
/// # Errors
/// [`LinkFilesError`] naming the file or what is wrong with it.
pub fn load_tls(dir: &Path) -> Result<LinkTls, LinkFilesError> {
    let pem = LinkPem {
        authority: read(dir.join(AUTHORITY_FILE))?,
        certificate: read(dir.join(CERTIFICATE_FILE))?,
        key: read(dir.join(KEY_FILE))?,
    };
    LinkTls::new(&pem).map_err(|source| LinkFilesError::Content {
        dir: dir.to_owned(),
        source,
    })
}

/// Listens at the link address, with TLS when its files are given. Warns when the links are open to a network without
/// it.
///
/// # Errors
/// When the address is taken or the files cannot be used, with the flag that changes it.
pub async fn listen(options: &NodeStartOptions) -> anyhow::Result<TcpStreams> {
    let addr = options.link_addr;
    let tls = match &options.link_tls_dir {
        Some(dir) => Some(load_tls(dir).context("TLS between nodes (--link-tls-dir)")?),
        None => None,
    };
    if tls.is_none() && !addr.ip().is_loopback() {
        tracing::warn!(
            %addr,
            flag = "--link-addr",
            "nodes are not authenticated and spans cross the network in the clear: use --link-tls-dir, or a trusted network only"
        );
    }
    if options.advertise_addr.is_unspecified() {
        tracing::warn!(
            advertised = %options.advertise_addr,
            flag = "--advertise-addr",
            "no other node can reach this one: it advertises no address of this machine"
        );
    }
    let listener = TcpListener::bind(addr).await.with_context(|| {
        format!("cannot listen on {addr}: choose another address with --link-addr")
    })?;
    Ok(TcpStreams::new(listener, tls))
}

fn read(path: PathBuf) -> Result<Vec<u8>, LinkFilesError> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(&path);
    let all = opened.and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    let within = all.and_then(|read| match u64::try_from(read) {
        Ok(read) if read <= MAX_FILE_BYTES => Ok(()),
        _ => Err(io::Error::other(format!(
            "it has over {MAX_FILE_BYTES} bytes"
        ))),
    });
    match within {
        Ok(()) => Ok(bytes),
        Err(source) => Err(LinkFilesError::Read { path, source }),
    }
}
