//! Spandrel's binary.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::Parser;
use spandrel_node::cli::Cli;
use tracing_subscriber::EnvFilter;

/// The server allocates from many threads in many sizes; it returns memory to the system better than the system's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.command.runs_a_node() {
        return_memory_soon();
    }
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

/// Starts this program again, in the same process, with the allocator told to give freed memory back soon: kept for a
/// second, as is its default, it doubled the anonymous memory while pages are built (measured: 720 against 370 MB);
/// given back at once, it is faulted in again for the next request, which costs 8 % of the processor time (measured).
/// mimalloc reads that from its environment, before `main`. When it cannot be done the node runs all the same.
#[allow(clippy::disallowed_methods)] // the allocator's own setting, not one of ours
fn return_memory_soon() {
    const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
    if std::env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let arguments = std::env::args_os().skip(1);
        let failed = std::process::Command::new(program)
            .args(arguments)
            .env(PURGE_DELAY, "10")
            .exec();
        eprintln!("warning: freed memory is returned late: {failed}");
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
