//! Spandrel's binary.

use std::process::ExitCode;

use clap::Parser;
use spandrel_node::cli::Cli;
use tracing_subscriber::EnvFilter;

/// Its settings are compiled in by `.cargo/config.toml`; docs/decisions/0015-jemalloc.md has the measurements.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    match runtime(&cli)
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(spandrel_node::commands::run(cli)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A node uses every processor; a client one thread, so that the load generator leaves the rest to the server.
fn runtime(cli: &Cli) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = if cli.command.runs_a_node() {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build()
}

/// What ractor_cluster may log: its debug lines hold the bytes of each message, spans included, and the links log their
/// sessions themselves.
const TRANSPORT_LOG: &str = "ractor_cluster=error";

/// Logs go to standard error, at `info` unless `SPANDREL_LOG` says otherwise.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("SPANDREL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=error,tantivy=warn"));
    let filter = match TRANSPORT_LOG.parse() {
        Ok(limit) => filter.add_directive(limit),
        Err(_) => filter,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    subscriber
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
