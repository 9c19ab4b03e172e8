//! The chaos runner: faults follow one another on a cluster of real nodes under load, and then the oracle judges what
//! the nodes answer.

mod runner;

use std::process::ExitCode;

use clap::Parser;

use runner::cli::{Cli, Command};

fn main() -> ExitCode {
    let Command::Run(arguments) = Cli::parse().command;
    let done = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(runner::run(&arguments)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
