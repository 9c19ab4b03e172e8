//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use spandrel_model::ids::TenantId;

use crate::config::{NodeSettings, parse_period};
use crate::demo::Grouping;

/// A self-hosted distributed tracing cluster in one binary.
#[derive(Debug, Parser)]
#[command(name = "spandrel", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node, or ask one how it is
    #[command(subcommand)]
    Node(NodeCommand),
    /// Prepare a cluster of several nodes
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Find and show traces
    #[command(subcommand)]
    Query(QueryCommand),
    /// Show, check and change what is kept
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Create and list the tenants whose traces are taken
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Create the tokens that let nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Check settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Send the traffic of a made-up shop
    Demo(DemoArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `spandrel node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Start a node: the first of a cluster, or one that ran before
    Start(Box<NodeArgs>),
    /// Join a cluster, or come back to it
    Join(Box<JoinArgs>),
    /// Let the node that is asked hand over its shards, and wait until it may be stopped
    Leave {
        /// How to reach the node
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take a node that is gone for good out of the cluster
    Remove {
        /// Its number, as `node status` shows it
        node: u64,
        /// Remove it even if no other node holds some of the data that it holds
        #[arg(long)]
        i_accept_loss: bool,
        /// How to reach another node
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Go on without nodes that are lost with the majority of those that keep the settings; on a node that is stopped
    Recover(RecoverArgs),
    /// Have older data copied now that has too few copies, and wait until it has them
    Repair {
        /// How to reach a node
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the cluster and the state of a node
    Status {
        /// Show it again every second
        #[arg(long)]
        watch: bool,
        /// How to reach the node
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `spandrel node recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The data directory of this survivor
    #[arg(long, value_name = "DIRECTORY", env = "SPANDREL_DATA_DIR")]
    pub data_dir: PathBuf,
    /// The nodes that are lost, as `node status` has shown them: on the first survivor
    #[arg(
        long,
        value_name = "ID,ID",
        value_delimiter = ',',
        conflicts_with = "into"
    )]
    pub lost: Vec<u64>,
    /// The recovered cluster, as this command has told it on the first survivor: on each other one
    #[arg(long, value_name = "CLUSTER")]
    pub into: Option<String>,
    /// Do it; without this, it is only told what would be lost
    #[arg(long)]
    pub i_accept_loss: bool,
}

/// `spandrel cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Certificates for the links between nodes
    #[command(subcommand)]
    Ca(AuthorityCommand),
}

/// `spandrel cluster ca`.
#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Make the cluster's certificate authority
    Init {
        /// Where it is kept: ca.pem and ca.key
        #[arg(long, value_name = "DIRECTORY")]
        dir: PathBuf,
    },
    /// Issue a certificate for a node
    Issue {
        /// Where the authority is
        #[arg(long, value_name = "DIRECTORY")]
        dir: PathBuf,
        /// Host that the node advertises, a DNS name or an IP address; repeatable
        #[arg(long, required = true, num_args = 1.., value_name = "NAME")]
        host: Vec<String>,
        /// Where to write ca.pem, node.pem and node.key
        #[arg(long, value_name = "DIRECTORY")]
        out: PathBuf,
    },
}

/// The settings of a node and where to read more of them.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// YAML file with settings; flags and environment come first
    #[arg(long, env = "SPANDREL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: NodeSettings,
}

/// `spandrel node join`.
#[derive(Args)]
pub struct JoinArgs {
    /// Link addresses of members, as host:port; asked in turn
    #[arg(required = true, value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// The token of `spandrel token create --join`: required when the members listen beyond loopback
    #[arg(
        long,
        env = "SPANDREL_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub join_token: Option<String>,
    /// The settings of the node.
    #[command(flatten)]
    pub node: NodeArgs,
}

impl std::fmt::Debug for JoinArgs {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinArgs")
            .field("addresses", &self.addresses)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// `spandrel token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token and print it, once
    Create {
        /// A token that lets nodes join for a day
        #[arg(long, required = true)]
        join: bool,
        /// How to reach a member
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `spandrel tenant`.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant known; one that is known already stays as it is
    Create {
        /// 1 to 64 letters, digits, `_`, `.` or `-`
        name: TenantId,
        /// How to reach a node on this machine
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the tenants
    List {
        /// How to reach a node on this machine
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `spandrel config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective settings of `node start` with the same flags
    Check(Box<NodeArgs>),
}

/// How to reach a node, and how to answer.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// Address of a node
    #[arg(long, env = "SPANDREL_ADDR", default_value = "http://127.0.0.1:3200")]
    pub addr: String,
    /// Tenant to ask as
    #[arg(long, env = "SPANDREL_TENANT")]
    pub tenant: Option<String>,
    /// Longest wait, such as 10s
    #[arg(long, env = "SPANDREL_TIMEOUT", default_value = "10s", value_parser = parse_period)]
    pub timeout: Duration,
    /// Answer in JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// Colours: when standard output is a terminal, always or never
    #[arg(long, default_value = "auto", value_name = "WHEN")]
    pub color: ColourChoice,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Also into a pipe.
    Always,
    /// Not at all.
    Never,
}

/// `spandrel query`.
#[derive(Debug, Subcommand)]
pub enum QueryCommand {
    /// Find traces
    Search(SearchArgs),
    /// Draw one trace
    Trace(TraceArgs),
    /// List services
    Services(NamesArgs),
    /// List the operations of a service
    Operations {
        /// The service
        service: String,
        /// Which of them.
        #[command(flatten)]
        names: NamesArgs,
    },
    /// List attribute keys, or the values of one
    Tags {
        /// List the values of this key
        key: Option<String>,
        /// Which of them.
        #[command(flatten)]
        names: NamesArgs,
    },
    /// Show traces as they come
    Tail {
        /// The conditions.
        #[command(flatten)]
        search: SearchArgs,
        /// Time between two looks, such as 2s
        #[arg(long, default_value = "2s", value_parser = parse_period)]
        interval: Duration,
    },
}

/// Conditions of a search.
#[derive(Debug, Clone, Args)]
pub struct SearchArgs {
    /// A service that occurs in the trace; repeatable
    #[arg(long)]
    pub service: Vec<String>,
    /// Name of a span
    #[arg(long)]
    pub operation: Option<String>,
    /// Status of a span: error, ok or unset
    #[arg(long)]
    pub status: Option<StatusChoice>,
    /// Attribute of a span or its resource, as key:value; repeatable
    #[arg(long, value_name = "KEY:VALUE")]
    pub tag: Vec<String>,
    /// Least duration of the trace, such as 500ms
    #[arg(long, value_parser = parse_period)]
    pub min_duration: Option<Duration>,
    /// Greatest duration of the trace
    #[arg(long, value_parser = parse_period)]
    pub max_duration: Option<Duration>,
    /// When it started.
    #[command(flatten)]
    pub range: RangeArgs,
    /// Most traces, 1 to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Continue a search there
    #[arg(long)]
    pub cursor: Option<String>,
    /// Also dropped traces that the journal still holds
    #[arg(long)]
    pub include_dropped: bool,
    /// How to reach the node.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A time range.
#[derive(Debug, Clone, Args)]
pub struct RangeArgs {
    /// Earliest start: RFC 3339 or unix nanoseconds [default: an hour before --to]
    #[arg(long)]
    pub from: Option<String>,
    /// Latest start [default: now]
    #[arg(long)]
    pub to: Option<String>,
    /// Earliest start as a time before now, such as 15m
    #[arg(long, value_parser = parse_period, conflicts_with = "from")]
    pub since: Option<Duration>,
}

/// A span's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusChoice {
    /// Failed.
    Error,
    /// Said to be well.
    Ok,
    /// Nothing said.
    Unset,
}

/// Which names to list.
#[derive(Debug, Clone, Args)]
pub struct NamesArgs {
    /// Only names that begin so
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// Most names
    #[arg(long)]
    pub limit: Option<u32>,
    /// The time range.
    #[command(flatten)]
    pub range: RangeArgs,
    /// How to reach the node.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `spandrel query trace`.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// 32 (or 16) hexadecimal digits
    pub trace_id: String,
    /// Show attributes
    #[arg(long)]
    pub attributes: bool,
    /// Show events and links
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub events: bool,
    /// Most spans to draw
    #[arg(long, default_value_t = 500)]
    pub limit_spans: usize,
    /// Columns [default: those of the terminal, or 100]
    #[arg(long)]
    pub width: Option<usize>,
    /// How to reach the node.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `spandrel policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy in force
    Show {
        /// How to reach the node.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Put a policy file in force
    Apply {
        /// The file
        file: PathBuf,
        /// How to reach the node.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Turn a Collector's tail_sampling settings into a policy file on standard output
    Import {
        /// The Collector's YAML
        file: PathBuf,
        /// Answer in JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Check a policy file without a node
    Check {
        /// The file
        file: PathBuf,
        /// Answer in JSON, for programs
        #[arg(long)]
        json: bool,
    },
}

/// `spandrel demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Where OTLP/gRPC is taken
    #[arg(
        long,
        env = "SPANDREL_DEMO_ENDPOINT",
        default_value = "http://127.0.0.1:4317"
    )]
    pub endpoint: String,
    /// Tenant to send as
    #[arg(long, env = "SPANDREL_TENANT")]
    pub tenant: Option<String>,
    /// Spans per second; 0: as fast as they are acknowledged
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
    /// When to stop, such as 30s
    #[arg(long, value_parser = parse_period)]
    pub duration: Option<Duration>,
    /// After how many spans to stop
    #[arg(long)]
    pub spans: Option<u64>,
    /// Spans of a full request
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub connections: u32,
    /// Everything random follows from it [default: another one each time]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Share of the traces that fail, 0 to 1
    #[arg(long, default_value_t = 0.02)]
    pub errors: f64,
    /// Share of the traces that take more than a second, 0 to 1
    #[arg(long, default_value_t = 0.02)]
    pub slow: f64,
    /// Whole traces in a request, or each process by itself
    #[arg(long, default_value = "service")]
    pub grouping: Grouping,
    /// Write what was acknowledged, a line of JSON a request
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

impl Command {
    /// True of the commands that are the server.
    #[must_use]
    pub fn runs_a_node(&self) -> bool {
        matches!(
            self,
            Self::Node(NodeCommand::Start(_) | NodeCommand::Join(_))
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    fn parse(arguments: &[&str]) -> Result<super::Command, clap::Error> {
        let all = ["spandrel"].iter().chain(arguments);
        super::Cli::try_parse_from(all).map(|cli| cli.command)
    }

    #[test]
    fn a_node_joins_at_one_address_or_more_and_its_token_is_not_shown() {
        assert!(parse(&["node", "join"]).is_err());
        let arguments = [
            "node",
            "join",
            "a:1",
            "b:2",
            "--join-token",
            "s3cret",
            "--zone",
            "z",
        ];
        let command = parse(&arguments).unwrap();
        assert!(command.runs_a_node());
        let shown = format!("{command:?}");
        assert!(
            shown.contains("b:2") && !shown.contains("s3cret"),
            "{shown}"
        );
        assert!(!parse(&["node", "remove", "3"]).unwrap().runs_a_node());
        assert!(parse(&["node", "remove", "three"]).is_err());
        assert!(parse(&["token", "create"]).is_err(), "which token?");
        assert!(parse(&["token", "create", "--join"]).is_ok());
    }
}
