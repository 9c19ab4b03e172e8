//! The settings of a node: flags, environment, file and defaults become one typed value, once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spandrel_actors::link::{NEWEST_VERSION, OLDEST_VERSION};

use crate::host_port::HostPort;
use crate::output::{exact_size, period};

/// The settings as they are given, each possibly absent. The same names serve the command line (`--http-addr`), the
/// environment (`SPANDREL_HTTP_ADDR`) and the file (`http_addr:`).
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSettings {
    /// Native API, gRPC, metrics and first page [default: 127.0.0.1:3200]
    #[arg(long, env = "SPANDREL_HTTP_ADDR", value_name = "ADDRESS")]
    pub http_addr: Option<SocketAddr>,
    /// OTLP by gRPC [default: 127.0.0.1:4317]
    #[arg(long, env = "SPANDREL_OTLP_GRPC_ADDR", value_name = "ADDRESS")]
    pub otlp_grpc_addr: Option<SocketAddr>,
    /// OTLP by HTTP [default: 127.0.0.1:4318]
    #[arg(long, env = "SPANDREL_OTLP_HTTP_ADDR", value_name = "ADDRESS")]
    pub otlp_http_addr: Option<SocketAddr>,
    /// Between nodes [default: 127.0.0.1:7200]
    #[arg(long, env = "SPANDREL_LINK_ADDR", value_name = "ADDRESS")]
    pub link_addr: Option<SocketAddr>,
    /// Where other nodes reach the link address, as host:port; the host may be a name [default: the link address]
    #[arg(long, env = "SPANDREL_ADVERTISE_ADDR", value_name = "ADDRESS")]
    pub advertise_addr: Option<String>,
    /// Directory with ca.pem, node.pem and node.key for mutual TLS between nodes, as `spandrel cluster ca issue` writes
    /// them [default: no TLS]
    #[arg(long, env = "SPANDREL_LINK_TLS_DIR", value_name = "DIRECTORY")]
    pub link_tls_dir: Option<PathBuf>,
    /// Where the data is [default: ./spandrel-data]
    #[arg(long, env = "SPANDREL_DATA_DIR", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Bound of the process's anonymous memory, such as 480MiB or 2GiB [default: 480MiB]
    #[arg(long, env = "SPANDREL_MEMORY", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Copies of each span, at most one a node; seeds a new cluster only [default: 3]
    #[arg(long, env = "SPANDREL_REPLICATION", value_name = "COPIES")]
    pub replication: Option<u8>,
    /// Shards, a power of two from 1 to 4096; seeds a new cluster only [default: 64]
    #[arg(long, env = "SPANDREL_SHARDS", value_name = "SHARDS")]
    pub shards: Option<u16>,
    /// Policy file; seeds a new cluster only
    #[arg(long, env = "SPANDREL_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Keep every trace; seeds a new cluster only
    #[arg(long, env = "SPANDREL_KEEP_ALL", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub keep_all: Option<bool>,
    /// How long kept traces are held, such as 7d or 36h; seeds a new cluster only [default: 7d]
    #[arg(long, env = "SPANDREL_RETENTION", value_name = "PERIOD")]
    pub retention: Option<String>,
    /// The zone that this node is in: a label of its metrics, and copies are spread over zones
    #[arg(long, env = "SPANDREL_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Refuse requests that name no tenant
    #[arg(long, env = "SPANDREL_REQUIRE_TENANT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub require_tenant: Option<bool>,
    /// Send the traffic of a made-up shop to this node
    #[arg(long, env = "SPANDREL_DEMO", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub demo: Option<bool>,
    /// How long dropped traces can be recovered [default: 1h]
    #[arg(long, env = "SPANDREL_JOURNAL_RECOVERY_WINDOW", value_name = "PERIOD")]
    pub journal_recovery_window: Option<String>,
    /// Most bytes of the journal; its recovery window shrinks before that [default: 10GiB]
    #[arg(long, env = "SPANDREL_JOURNAL_MAX_BYTES", value_name = "SIZE")]
    pub journal_max_bytes: Option<String>,
    /// With less of the disk free than this, exports are refused until there is more [default: 5 % of the disk, at
    /// least 2GiB]
    #[arg(long, env = "SPANDREL_DISK_RESERVE", value_name = "SIZE")]
    pub disk_reserve: Option<String>,
    /// Speak to other nodes as the version before does, to try an upgrade
    #[arg(
        long,
        env = "SPANDREL_LINK_VERSION",
        hide = true,
        value_name = "NUMBER"
    )]
    pub link_version: Option<u16>,
}

/// The settings of one node, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStartOptions {
    /// Native API, gRPC, metrics and first page.
    pub http_addr: SocketAddr,
    /// OTLP by gRPC.
    pub otlp_grpc_addr: SocketAddr,
    /// OTLP by HTTP.
    pub otlp_http_addr: SocketAddr,
    /// Between nodes.
    pub link_addr: SocketAddr,
    /// Where other nodes reach the link address.
    pub advertise_addr: HostPort,
    /// Newest version of the links between nodes that is spoken.
    pub link_version: u16,
    /// Directory with the files of TLS between nodes; none means no TLS.
    pub link_tls_dir: Option<PathBuf>,
    /// Where the data is.
    pub data_dir: PathBuf,
    /// Bound of anonymous memory in bytes.
    pub memory_bytes: u64,
    /// Copies of each span in a new cluster.
    pub replication: u8,
    /// Shards of a new cluster.
    pub shards: u16,
    /// Policy file of a new cluster.
    pub policy: Option<PathBuf>,
    /// Keep every trace in a new cluster.
    pub keep_all: bool,
    /// Retention of a new cluster in seconds.
    pub retention_seconds: u64,
    /// The zone of this node; empty when none is named.
    pub zone: String,
    /// Refuse requests that name no tenant.
    pub require_tenant: bool,
    /// Send demonstration traffic.
    pub demo: bool,
    /// How long the journal holds what was dropped, in milliseconds.
    pub journal_recovery_window_ms: u64,
    /// Bytes of the journal at which its recovery window shrinks.
    pub journal_max_bytes: u64,
    /// Free bytes of the disk below which exports are refused; none means by the size of the disk.
    pub disk_reserve_bytes: Option<u64>,
    /// Names of the cluster's settings that were given rather than left at their defaults: on a used directory the
    /// cluster's own values stand, and the node warns about these.
    pub given_seeds: Vec<&'static str>,
}

/// Settings that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file `{path}` cannot be read: {message}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        message: String,
    },
    /// The file is not the YAML of these settings.
    #[error("config file `{path}`: {message}")]
    Parse {
        /// The file.
        path: String,
        /// What and where.
        message: String,
    },
    /// A value breaks its rule.
    #[error("{field} must be {rule}, got `{value}`")]
    Value {
        /// The setting.
        field: &'static str,
        /// Its rule.
        rule: &'static str,
        /// What was given.
        value: String,
    },
}

/// Least memory in bytes: the fixed parts (caches, index writer, runtime) take 304 MiB of it.
const MIN_MEMORY_BYTES: u64 = 368 << 20;
/// Largest config file in bytes: all settings take less than a thousandth of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl NodeSettings {
    /// Reads a YAML file.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, and line and field when one is wrong or unknown.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let unreadable = |message: String| ConfigError::Read {
            path: shown.clone(),
            message,
        };
        let size = std::fs::metadata(path)
            .map_err(|error| unreadable(error.to_string()))?
            .len();
        if size > MAX_FILE_BYTES {
            return Err(unreadable(format!(
                "it has {size} bytes, the limit is {MAX_FILE_BYTES}"
            )));
        }
        let yaml = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        if yaml.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&yaml).map_err(|error| {
            // The first line says what and where; a drawing of the place follows, which repeats it.
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            ConfigError::Parse {
                path: shown,
                message: first.strip_prefix("error: ").unwrap_or(first).to_owned(),
            }
        })
    }

    /// These settings, and where they are silent those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            http_addr: self.http_addr.or(other.http_addr),
            otlp_grpc_addr: self.otlp_grpc_addr.or(other.otlp_grpc_addr),
            otlp_http_addr: self.otlp_http_addr.or(other.otlp_http_addr),
            link_addr: self.link_addr.or(other.link_addr),
            advertise_addr: self.advertise_addr.or(other.advertise_addr),
            link_tls_dir: self.link_tls_dir.or(other.link_tls_dir),
            data_dir: self.data_dir.or(other.data_dir),
            memory: self.memory.or(other.memory),
            replication: self.replication.or(other.replication),
            shards: self.shards.or(other.shards),
            policy: self.policy.or(other.policy),
            keep_all: self.keep_all.or(other.keep_all),
            retention: self.retention.or(other.retention),
            zone: self.zone.or(other.zone),
            require_tenant: self.require_tenant.or(other.require_tenant),
            demo: self.demo.or(other.demo),
            journal_recovery_window: self
                .journal_recovery_window
                .or(other.journal_recovery_window),
            journal_max_bytes: self.journal_max_bytes.or(other.journal_max_bytes),
            disk_reserve: self.disk_reserve.or(other.disk_reserve),
            link_version: self.link_version.or(other.link_version),
        }
    }

    /// The typed settings, defaults filled in and everything checked.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the setting and its rule.
    pub fn resolve(self) -> Result<NodeStartOptions, ConfigError> {
        let given_seeds = self.given_seeds();
        let link_addr = self
            .link_addr
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7200)));
        let options = NodeStartOptions {
            http_addr: self
                .http_addr
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3200))),
            otlp_grpc_addr: self
                .otlp_grpc_addr
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 4317))),
            otlp_http_addr: self
                .otlp_http_addr
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 4318))),
            link_addr,
            advertise_addr: match &self.advertise_addr {
                Some(text) => HostPort::parse(text).ok_or_else(|| ConfigError::Value {
                    field: "advertise_addr",
                    rule: "host:port, such as 10.0.0.1:7200 or node-1.example:7200",
                    value: text.clone(),
                })?,
                None => HostPort::from(link_addr),
            },
            link_version: self.link_version.unwrap_or(NEWEST_VERSION),
            link_tls_dir: self.link_tls_dir,
            data_dir: self
                .data_dir
                .unwrap_or_else(|| PathBuf::from("./spandrel-data")),
            memory_bytes: bytes("memory", self.memory.as_deref().unwrap_or("480MiB"))?,
            replication: self.replication.unwrap_or(3),
            shards: self.shards.unwrap_or(64),
            policy: self.policy,
            keep_all: self.keep_all.unwrap_or(false),
            retention_seconds: period_ms("retention", self.retention.as_deref().unwrap_or("7d"))?
                / 1_000,
            zone: self.zone.unwrap_or_default(),
            require_tenant: self.require_tenant.unwrap_or(false),
            demo: self.demo.unwrap_or(false),
            journal_recovery_window_ms: period_ms(
                "journal_recovery_window",
                self.journal_recovery_window.as_deref().unwrap_or("1h"),
            )?,
            journal_max_bytes: bytes(
                "journal_max_bytes",
                self.journal_max_bytes.as_deref().unwrap_or("10GiB"),
            )?,
            disk_reserve_bytes: self
                .disk_reserve
                .as_deref()
                .map(|text| bytes("disk_reserve", text))
                .transpose()?,
            given_seeds,
        };
        options.check()?;
        Ok(options)
    }

    fn given_seeds(&self) -> Vec<&'static str> {
        let given = [
            ("replication", self.replication.is_some()),
            ("shards", self.shards.is_some()),
            ("policy", self.policy.is_some()),
            ("keep-all", self.keep_all.is_some()),
            ("retention", self.retention.is_some()),
        ];
        given
            .into_iter()
            .filter(|(_, given)| *given)
            .map(|(name, _)| name)
            .collect()
    }
}

impl NodeStartOptions {
    /// The settings as a file would give them: read again they come to the same.
    #[must_use]
    pub fn as_settings(&self) -> NodeSettings {
        NodeSettings {
            http_addr: Some(self.http_addr),
            otlp_grpc_addr: Some(self.otlp_grpc_addr),
            otlp_http_addr: Some(self.otlp_http_addr),
            link_addr: Some(self.link_addr),
            advertise_addr: Some(self.advertise_addr.to_string()),
            link_tls_dir: self.link_tls_dir.clone(),
            data_dir: Some(self.data_dir.clone()),
            memory: Some(exact_size(self.memory_bytes)),
            replication: Some(self.replication),
            shards: Some(self.shards),
            policy: self.policy.clone(),
            keep_all: Some(self.keep_all),
            retention: Some(period(self.retention_seconds.saturating_mul(1_000))),
            zone: Some(self.zone.clone()),
            require_tenant: Some(self.require_tenant),
            demo: Some(self.demo),
            journal_recovery_window: Some(period(self.journal_recovery_window_ms)),
            journal_max_bytes: Some(exact_size(self.journal_max_bytes)),
            disk_reserve: self.disk_reserve_bytes.map(exact_size),
            link_version: Some(self.link_version),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, rule, value: String| Err(ConfigError::Value { field, rule, value });
        if self.memory_bytes < MIN_MEMORY_BYTES {
            return refuse("memory", "at least 368MiB", exact_size(self.memory_bytes));
        }
        if !(1..=4096).contains(&self.shards) || !self.shards.is_power_of_two() {
            return refuse(
                "shards",
                "a power of two from 1 to 4096",
                self.shards.to_string(),
            );
        }
        if !(1..=7).contains(&self.replication) {
            return refuse("replication", "1 to 7", self.replication.to_string());
        }
        if self.retention_seconds < 60 {
            return refuse(
                "retention",
                "at least a minute",
                period(self.retention_seconds.saturating_mul(1_000)),
            );
        }
        if !(OLDEST_VERSION..=NEWEST_VERSION).contains(&self.link_version) {
            return refuse(
                "link_version",
                "one of the versions of the links that this program speaks",
                self.link_version.to_string(),
            );
        }
        if self.journal_max_bytes < 64 << 20 {
            return refuse(
                "journal_max_bytes",
                "at least 64MiB",
                exact_size(self.journal_max_bytes),
            );
        }
        if self.keep_all && self.policy.is_some() {
            return refuse(
                "keep_all",
                "absent when a policy file is given",
                "true".to_owned(),
            );
        }
        let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if self.zone.len() > 64 || !self.zone.chars().all(label) {
            return refuse(
                "zone",
                "up to 64 characters of [A-Za-z0-9_.-]",
                self.zone.clone(),
            );
        }
        let addresses = [
            ("http_addr", self.http_addr),
            ("otlp_grpc_addr", self.otlp_grpc_addr),
            ("otlp_http_addr", self.otlp_http_addr),
            ("link_addr", self.link_addr),
        ];
        for (at, (field, address)) in addresses.iter().enumerate() {
            let taken = addresses.iter().take(at).any(|(_, other)| other == address);
            if taken && address.port() != 0 {
                return refuse(
                    field,
                    "an address that no other listener has",
                    address.to_string(),
                );
            }
        }
        Ok(())
    }
}

/// Bytes from `512MiB`, `10GB`, `4096`.
fn bytes(field: &'static str, text: &str) -> Result<u64, ConfigError> {
    let units = [
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1_u64 << 40),
    ];
    number_with_unit(text, &units).ok_or_else(|| ConfigError::Value {
        field,
        rule: "a size such as 480MiB, 10GB or a number of bytes",
        value: text.to_owned(),
    })
}

/// Milliseconds from `7d`, `36h`, `15m`, `30s`, `500ms`.
fn period_ms(field: &'static str, text: &str) -> Result<u64, ConfigError> {
    let units = [
        ("MS", 1),
        ("S", 1_000),
        ("M", 60_000),
        ("H", 3_600_000),
        ("D", 86_400_000),
    ];
    number_with_unit(text, &units).ok_or_else(|| ConfigError::Value {
        field,
        rule: "a period such as 7d, 36h, 15m or 30s",
        value: text.to_owned(),
    })
}

fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text.get(..end)?.parse().ok()?;
    let unit = text.get(end..)?.trim().to_ascii_uppercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

/// A period given on the command line.
///
/// # Errors
/// [`ConfigError::Value`] naming the rule.
pub fn parse_period(text: &str) -> Result<std::time::Duration, ConfigError> {
    period_ms("a period", text).map(std::time::Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(yaml: &str) -> Result<NodeSettings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spandrel.yaml");
        std::fs::write(&path, yaml).unwrap();
        NodeSettings::read(&path)
    }

    #[test]
    fn defaults_are_those_of_the_documents() {
        let options = NodeSettings::default().resolve().unwrap();
        assert_eq!(options.http_addr.to_string(), "127.0.0.1:3200");
        assert_eq!(options.advertise_addr.to_string(), "127.0.0.1:7200");
        assert_eq!(options.memory_bytes, 480 << 20);
        assert_eq!(options.retention_seconds, 7 * 86_400);
        assert_eq!((options.shards, options.replication), (64, 3));
        assert!(options.given_seeds.is_empty());
    }

    #[test]
    fn the_first_that_speaks_wins() {
        let given = NodeSettings {
            shards: Some(16),
            ..NodeSettings::default()
        };
        let from_file = file("shards: 32\nmemory: 1GiB\nkeep_all: true\n").unwrap();
        let options = given.or(from_file).resolve().unwrap();
        assert_eq!(
            (options.shards, options.memory_bytes, options.keep_all),
            (16, 1 << 30, true)
        );
        assert_eq!(options.given_seeds, ["shards", "keep-all"]);
    }

    #[test]
    fn wrong_settings_are_named() {
        assert!(
            file("shrads: 3\n")
                .unwrap_err()
                .to_string()
                .contains("shrads")
        );
        let refused = |settings: NodeSettings| settings.resolve().unwrap_err().to_string();
        assert_eq!(
            refused(NodeSettings {
                shards: Some(48),
                ..NodeSettings::default()
            }),
            "shards must be a power of two from 1 to 4096, got `48`"
        );
        assert!(
            refused(NodeSettings {
                memory: Some("lots".to_owned()),
                ..NodeSettings::default()
            })
            .starts_with("memory must be a size")
        );
        let same = NodeSettings {
            otlp_http_addr: "127.0.0.1:4317".parse().ok(),
            ..NodeSettings::default()
        };
        assert!(
            refused(same)
                .starts_with("otlp_http_addr must be an address that no other listener has")
        );
        let nowhere = NodeSettings {
            advertise_addr: Some("node-1".to_owned()),
            ..NodeSettings::default()
        };
        assert!(refused(nowhere).starts_with("advertise_addr must be host:port"));
        assert!(file("").unwrap() == NodeSettings::default());
    }

    #[test]
    fn a_node_advertises_a_name_or_an_address() {
        for address in ["node-1.example:7200", "10.0.0.1:7200", "[::1]:7200"] {
            let settings = NodeSettings {
                advertise_addr: Some(address.to_owned()),
                ..NodeSettings::default()
            };
            let options = settings.resolve().unwrap();
            assert_eq!(options.advertise_addr.to_string(), address);
            assert_eq!(
                options.as_settings().resolve().unwrap(),
                NodeStartOptions {
                    given_seeds: vec!["replication", "shards", "keep-all", "retention"],
                    ..options
                }
            );
        }
    }
}
