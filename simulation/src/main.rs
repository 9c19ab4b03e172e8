//! Replays one seed, or soaks many, each in a process of its own.

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use spandrel_simulation::{Canary, Plan, run_seed};

/// The simulation of a node.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Runs one seed and prints what happened.
    Replay {
        /// The seed.
        seed: u64,
        /// Prints every event; RUST_LOG shows the node's own log lines among them.
        #[arg(long)]
        events: bool,
        /// Puts a defect in, which a checker must find.
        #[arg(long)]
        canary: bool,
    },
    /// Runs many seeds and prints those that fail.
    Soak {
        /// How many.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Action::Replay {
            seed,
            events,
            canary,
        } => Ok(replay(seed, events, canary)),
        Action::Soak { seeds, from } => soak(from, seeds),
    }
}

fn replay(seed: u64, events: bool, canary: bool) -> ExitCode {
    tracing_subscriber::fmt()
        .without_time()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let plan = Plan::of(seed);
    let plan = if canary {
        plan.with_canary(Canary::JournalSyncsLie)
    } else {
        plan
    };
    println!("{plan:?}");
    let outcome = run_seed(plan, events);
    println!(
        "{} events in {} virtual seconds, {} spans acknowledged",
        outcome.events,
        outcome.elapsed_ms / 1_000,
        outcome.acknowledged
    );
    let word = match &outcome.violation {
        None => "ok",
        Some(violation) => {
            if !events {
                outcome
                    .last_events
                    .iter()
                    .for_each(|event| println!("{event}"));
            }
            println!("broken: {violation}");
            let canary = if canary { " --canary" } else { "" };
            println!("replay: cargo run -p spandrel-simulation -- replay {seed} --events{canary}");
            "FAILED"
        }
    };
    println!("seed {seed}: {word}, hash {:016x}", outcome.hash);
    if outcome.violation.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn soak(from: u64, seeds: u64) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let mut failed = Vec::new();
    for seed in from..from.saturating_add(seeds) {
        let output = Command::new(&program)
            .args(["replay", &seed.to_string()])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text
            .lines()
            .filter(|line| line.starts_with("broken:") || line.starts_with("seed "))
        {
            println!("{line}");
        }
        if !output.status.success() {
            failed.push(seed);
        }
    }
    println!("{seeds} seeds, {} failed: {failed:?}", failed.len());
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
