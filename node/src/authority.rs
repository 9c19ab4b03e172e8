//! The cluster's certificate authority: a key and a certificate in a directory, and the certificates that it issues for
//! the links between nodes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// File of the authority's certificate, also beside each certificate that it has issued.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// File of the authority's key.
const AUTHORITY_KEY_FILE: &str = "ca.key";
/// File of a node's certificate.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// File of a node's key.
pub const KEY_FILE: &str = "node.key";
/// Name of every authority. Certificates refer to it, and issuing them needs the key alone.
const AUTHORITY_NAME: &str = "Spandrel cluster authority";
/// Years for which an authority is valid: longer than a cluster is likely to live.
const AUTHORITY_YEARS: i16 = 20;
/// Years for which a node's certificate is valid. Nothing renews it while a node runs.
const CERTIFICATE_YEARS: i16 = 5;
/// Owner alone.
const KEY_MODE: u32 = 0o600;
/// Everybody may read.
const CERTIFICATE_MODE: u32 = 0o644;

/// The authority, or what it should issue, cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The system refuses.
    #[error("{what} {}", path.display())]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is one already: a second one would not be trusted by those that know the first.
    #[error("{} exists and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A key or name that cannot be used.
    #[error("{what}: {reason}")]
    Certificate {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// An opened authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority in a directory.
    ///
    /// # Errors
    /// [`AuthorityError`]; `Exists` when the directory has one.
    pub fn create(dir: &Path, today: Date) -> Result<(), AuthorityError> {
        let key = KeyPair::generate().map_err(unusable("the authority's key"))?;
        let mut params = authority_params();
        set_validity(&mut params, today, AUTHORITY_YEARS)?;
        let certificate = params.self_signed(&key);
        let certificate = certificate.map_err(unusable("the authority's certificate"))?;
        make_dir(dir)?;
        // The key first: without it the certificate is of no use.
        write_new(
            &dir.join(AUTHORITY_KEY_FILE),
            &key.serialize_pem(),
            KEY_MODE,
        )?;
        write_new(
            &dir.join(AUTHORITY_FILE),
            &certificate.pem(),
            CERTIFICATE_MODE,
        )
    }

    /// Opens the authority in a directory.
    ///
    /// # Errors
    /// [`AuthorityError`] naming the file.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let key = read(&dir.join(AUTHORITY_KEY_FILE))?;
        let key = KeyPair::from_pem(&key).map_err(unusable("the authority's key"))?;
        Ok(Self {
            issuer: Issuer::new(authority_params(), key),
            pem: read(&dir.join(AUTHORITY_FILE))?,
        })
    }

    /// Issues a certificate for a node that others reach by these hosts (DNS names or IP addresses).
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] for a name that is none.
    pub fn issue(&self, hosts: &[String], today: Date) -> Result<CertificateFiles, AuthorityError> {
        let params = CertificateParams::new(hosts);
        let mut params = params.map_err(unusable("the hosts"))?;
        params.distinguished_name = DistinguishedName::new();
        if let Some(host) = hosts.first() {
            params
                .distinguished_name
                .push(DnType::CommonName, host.as_str());
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node dials and is dialled.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        set_validity(&mut params, today, CERTIFICATE_YEARS)?;
        let key = KeyPair::generate().map_err(unusable("the node's key"))?;
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.map_err(unusable("the node's certificate"))?;
        Ok(CertificateFiles {
            authority: self.pem.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// What a node needs, as PEM.
pub struct CertificateFiles {
    authority: String,
    certificate: String,
    key: String,
}

impl std::fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateFiles").finish_non_exhaustive()
    }
}

impl CertificateFiles {
    /// Writes them into a directory, which must not hold a certificate yet.
    ///
    /// # Errors
    /// [`AuthorityError`] naming the file.
    pub fn write(&self, dir: &Path) -> Result<(), AuthorityError> {
        make_dir(dir)?;
        write_new(&dir.join(KEY_FILE), &self.key, KEY_MODE)?;
        write_new(
            &dir.join(CERTIFICATE_FILE),
            &self.certificate,
            CERTIFICATE_MODE,
        )?;
        write_new(&dir.join(AUTHORITY_FILE), &self.authority, CERTIFICATE_MODE)
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Valid from the month before, for nodes whose clocks are behind.
fn set_validity(
    params: &mut CertificateParams,
    today: Date,
    years: i16,
) -> Result<(), AuthorityError> {
    let from = today.saturating_sub(jiff::Span::new().months(1));
    let invalid = || AuthorityError::Certificate {
        what: "today's date",
        reason: format!("{today} is out of range"),
    };
    let month = u8::try_from(from.month()).map_err(|_| invalid())?;
    let until = from.year().checked_add(years).ok_or_else(invalid)?;
    params.not_before = rcgen::date_time_ymd(from.year().into(), month, 1);
    params.not_after = rcgen::date_time_ymd(until.into(), month, 1);
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(dir).map_err(|source| AuthorityError::File {
        what: "making",
        path: dir.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::File {
        what: "reading",
        path: path.to_owned(),
        source,
    })
}

fn write_new(path: &Path, content: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(content.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => AuthorityError::Exists {
            path: path.to_owned(),
        },
        _ => AuthorityError::File {
            what: "writing",
            path: path.to_owned(),
            source,
        },
    })
}

fn unusable(what: &'static str) -> impl Fn(rcgen::Error) -> AuthorityError {
    move |error| AuthorityError::Certificate {
        what,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::link_streams::load_tls;

    const TODAY: Date = jiff::civil::date(2026, 3, 31);

    #[test]
    fn a_node_can_use_what_the_authority_issues() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, node) = (dir.path().join("ca"), dir.path().join("node"));
        Authority::create(&ca, TODAY).unwrap();
        let hosts = ["node-1.example".to_owned(), "10.0.0.1".to_owned()];
        let files = Authority::open(&ca).unwrap().issue(&hosts, TODAY).unwrap();
        files.write(&node).unwrap();

        load_tls(&node).unwrap();
        for key in [ca.join(AUTHORITY_KEY_FILE), node.join(KEY_FILE)] {
            let mode = fs::metadata(key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, KEY_MODE);
        }
        assert!(
            !node.join(AUTHORITY_KEY_FILE).exists(),
            "the authority's key stays at home"
        );
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), TODAY).unwrap();
        let before = fs::read(dir.path().join(AUTHORITY_KEY_FILE)).unwrap();
        let again = Authority::create(dir.path(), TODAY).unwrap_err();
        assert!(again.to_string().ends_with("exists and is not overwritten"));
        let authority = Authority::open(dir.path()).unwrap();
        let files = authority.issue(&["a".to_owned()], TODAY).unwrap();
        let node = dir.path().join("node");
        files.write(&node).unwrap();
        assert!(files.write(&node).is_err());
        assert_eq!(
            before,
            fs::read(dir.path().join(AUTHORITY_KEY_FILE)).unwrap()
        );
    }
}
