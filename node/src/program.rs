//! The program from its command line to its exit code. The clock is given by who runs it: `examples/shifted_clock.rs` is
//! the same node by another one.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use spandrel_actors::Clock;
use tracing_subscriber::EnvFilter;

use crate::cli::Cli;
use crate::commands;

/// Does what the command line of this process says; a node that it starts goes by this clock.
pub fn run(clock: Arc<dyn Clock>) -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    match runtime(&cli)
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(commands::run(cli, clock)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Threads for work on the disk and for what takes the processor long, at the least and for each processor. More would
/// not be quicker, and each keeps some freed memory to itself: what comes beyond waits for its turn.
const LEAST_BLOCKING_THREADS: usize = 32;
const BLOCKING_THREADS_PER_PROCESSOR: usize = 2;

/// A node uses every processor; a client one thread, so that the load generator leaves the rest to the server.
fn runtime(cli: &Cli) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = if cli.command.runs_a_node() {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors * BLOCKING_THREADS_PER_PROCESSOR;
    builder
        .max_blocking_threads(threads.max(LEAST_BLOCKING_THREADS))
        .enable_all()
        .build()
}

/// Without the numbers of actors before the lines that they log, and without what openraft says at the end of each node: that
/// what still comes in is not handled any more.
const DEFAULT_LOG: &str =
    "info,openraft=error,openraft::raft::raft_inner=off,ractor=warn,tantivy=warn";

/// What ractor_cluster may log: its debug lines hold the bytes of each message, spans included, and the links log their
/// sessions themselves.
const TRANSPORT_LOG: &str = "ractor_cluster=error";

/// Logs go to standard error, at `info` unless `SPANDREL_LOG` says otherwise.
fn log_to_stderr() {
    let filter =
        EnvFilter::try_from_env("SPANDREL_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
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
