//! An address that other machines dial: a host, by name or by number, and a port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Most characters of a host: those of a DNS name.
const MAX_HOST_CHARACTERS: usize = 253;

/// `host:port`. The host is a DNS name, an IPv4 address, or an IPv6 address in brackets; the port is not 0.
///
/// A name is looked up by whoever dials it, each time: it may come to mean another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The address that is written so; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let is_host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?.parse::<IpAddr>().ok()?.is_ipv6(),
            None => is_name(host),
        };
        is_host.then(|| Self {
            host: host.to_owned(),
            port,
        })
    }

    /// True when it means the machine that asks.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<IpAddr>();
        bare.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }

    /// True when it means every address of a machine: one can listen there, and nobody can dial it.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>()
            .is_ok_and(|address| address.is_unspecified())
    }
}

/// A DNS name or an IPv4 address: underscores stand in names of containers.
fn is_name(host: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=MAX_HOST_CHARACTERS).contains(&host.len()) && host.chars().all(fits)
}

impl From<SocketAddr> for HostPort {
    /// A listener may have port 0, which the system replaces.
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        Self {
            host,
            port: address.port(),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_address() {
        for good in [
            "node-1.example:7200",
            "a_b:1",
            "10.0.0.1:65535",
            "[::1]:7200",
        ] {
            assert_eq!(HostPort::parse(good).unwrap().to_string(), good);
        }
        let long = format!("{}:1", "a".repeat(254));
        let bad = [
            "", ":1", "a", "a:", "a:0", "a:65536", "::1:7200", "[::1", "[a]:1", "a b:1", "a/b:1",
            &long,
        ];
        for bad in bad {
            assert_eq!(HostPort::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_on_this_machine() {
        for (address, local) in [
            ("localhost:1", true),
            ("127.0.0.2:1", true),
            ("[::1]:1", true),
            ("10.0.0.1:1", false),
            ("localhost.example:1", false),
        ] {
            assert_eq!(
                HostPort::parse(address).unwrap().is_loopback(),
                local,
                "{address}"
            );
        }
        for (address, anywhere) in [("0.0.0.0:1", true), ("[::]:1", true), ("10.0.0.1:1", false)] {
            assert_eq!(HostPort::parse(address).unwrap().is_unspecified(), anywhere);
        }
        let listener: SocketAddr = "[::1]:7200".parse().unwrap();
        assert_eq!(HostPort::from(listener).to_string(), "[::1]:7200");
    }
}
