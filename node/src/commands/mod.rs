//! The commands, a file each.

pub mod cluster;
pub mod config;
pub mod demo;
pub mod node;
pub mod node_join;
pub mod node_recover;
pub mod node_start;
pub mod nodes;
pub mod policy;
pub mod query;
pub mod tenant;
pub mod token;

use std::sync::Arc;

use anyhow::Context;
use clap::CommandFactory;
use spandrel_actors::Clock;
use spandrel_api::client::{Client, ClientError, ClientOptions};

use crate::cli::{Cli, ClientArgs, Command};

/// Runs a command; a node that it starts goes by this clock.
///
/// # Errors
/// What went wrong and what to try next, for people.
pub async fn run(cli: Cli, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    match cli.command {
        Command::Node(command) => node::run(command, clock).await,
        Command::Cluster(command) => cluster::run(command),
        Command::Query(command) => query::run(command).await,
        Command::Tenant(command) => tenant::run(command).await,
        Command::Token(command) => token::run(command).await,
        Command::Policy(command) => policy::run(command).await,
        Command::Config(command) => config::run(command),
        Command::Demo(args) => demo::run(args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "spandrel", &mut script);
            Ok(crate::output::print(&String::from_utf8_lossy(&script))?)
        }
    }
}

/// Connects as the arguments say.
async fn connect(args: &ClientArgs) -> Result<Client, ClientError> {
    Client::connect(ClientOptions {
        addr: args.addr.clone(),
        tenant: args.tenant.clone(),
        timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
    })
    .await
}

/// Prints a document for programs.
fn print_json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("rendering json")?;
    Ok(crate::output::print(&format!("{text}\n"))?)
}
