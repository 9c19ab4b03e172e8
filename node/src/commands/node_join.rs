//! `spandrel node join`: a node that comes into a cluster, or back to it.

use std::sync::Arc;

use anyhow::{bail, ensure};
use spandrel_actors::Clock;
use spandrel_actors::membership::{JoinSecret, NodeStart};

use super::{config, node_start};
use crate::cli::JoinArgs;
use crate::config::NodeStartOptions;
use crate::host_port::HostPort;

/// Runs a node until it is told to stop.
///
/// # Errors
/// When the node cannot start, or is not let in.
pub async fn run(args: JoinArgs, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let options = config::options(args.node)?;
    ensure!(
        !options.advertise_addr.is_unspecified(),
        "nobody can reach this node at {}: name an address of this machine with --advertise-addr",
        options.advertise_addr
    );
    for address in &args.addresses {
        check_address(address, &options)?;
    }
    let expected_shards = options.given_seeds.contains(&"shards");
    let start = NodeStart::Join {
        addresses: args.addresses,
        token: args.join_token.as_deref().map(JoinSecret::from_text),
        expected_shards: expected_shards.then_some(options.shards),
    };
    node_start::run(options, start, clock).await
}

/// The address of a member, as the links take it; and one that can reach this node back.
fn check_address(address: &str, options: &NodeStartOptions) -> anyhow::Result<()> {
    let Some(member) = HostPort::parse(address) else {
        bail!("`{address}` must be a member's link address as host:port, such as 10.0.0.1:7200");
    };
    ensure!(
        member.is_loopback() || !options.advertise_addr.is_loopback(),
        "{address} is on another machine, which cannot reach {} here: name an address of this machine with --link-addr or --advertise-addr",
        options.advertise_addr
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeSettings;

    fn options(link_addr: &str, advertise_addr: Option<&str>) -> NodeStartOptions {
        let settings = NodeSettings {
            link_addr: Some(link_addr.parse().unwrap()),
            advertise_addr: advertise_addr.map(str::to_owned),
            ..NodeSettings::default()
        };
        settings.resolve().unwrap()
    }

    #[test]
    fn an_address_is_host_and_port() {
        let local = options("127.0.0.1:7201", None);
        for good in ["127.0.0.1:7200", "localhost:7200", "[::1]:7200"] {
            check_address(good, &local).unwrap();
        }
        for bad in ["127.0.0.1", ":7200", "host:", "host:0", "host:99999", ""] {
            let error = check_address(bad, &local).unwrap_err().to_string();
            assert!(error.contains("host:port"), "{bad}: {error}");
        }
    }

    #[test]
    fn whoever_joins_another_machine_must_be_reachable_from_there() {
        let local = options("127.0.0.1:7201", None);
        let error = check_address("10.0.0.1:7200", &local).unwrap_err();
        assert!(error.to_string().contains("--advertise-addr"), "{error}");
        check_address("10.0.0.1:7200", &options("10.0.0.2:7200", None)).unwrap();
        let advertised = options("127.0.0.1:7201", Some("10.0.0.2:7200"));
        check_address("member.example:7200", &advertised).unwrap();
    }
}
