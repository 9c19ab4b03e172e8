//! `spandrel cluster`.

use anyhow::Context;

use crate::authority::{Authority, CertificateFiles};
use crate::cli::{AuthorityCommand, ClusterCommand};

/// Runs one of the cluster commands.
///
/// # Errors
/// What went wrong and what to try next.
pub fn run(command: ClusterCommand) -> anyhow::Result<()> {
    let ClusterCommand::Ca(command) = command;
    match command {
        AuthorityCommand::Init { dir } => {
            Authority::create(&dir, today())?;
            crate::output::print(&format!(
                "made the authority in {0}\nkeep {0}/ca.key off the nodes; next: spandrel cluster ca issue --dir {0} --host NAME --out DIR\n",
                dir.display()
            ))?;
        }
        AuthorityCommand::Issue { dir, host, out } => {
            let authority = Authority::open(&dir)?;
            let files = authority
                .issue(&host, today())
                .with_context(|| format!("issuing a certificate for {}", host.join(", ")))?;
            CertificateFiles::write(&files, &out)?;
            crate::output::print(&format!(
                "issued a certificate for {}\nmove {1} to the node and start it with --link-tls-dir {1}\n",
                host.join(", "),
                out.display()
            ))?;
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // the validity of a certificate begins when it is issued
fn today() -> jiff::civil::Date {
    jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date()
}
