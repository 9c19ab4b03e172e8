//! Spandrel's binary.

use std::process::ExitCode;

use clap::Parser;
use spandrel_node::cli::{Cli, Command, NodeCommand};
use tracing_subscriber::EnvFilter;

/// The server allocates from many threads in many sizes; it returns memory to the system better than the system's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let mut builder = match &cli.command {
        Command::Node(NodeCommand::Start(_)) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()
}

/// Logs go to standard error, at `info` unless `SPANDREL_LOG` says otherwise.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("SPANDREL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn,tantivy=warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    subscriber
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
