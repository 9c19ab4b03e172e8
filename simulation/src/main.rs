//! Replays one seed, or soaks many, each in a process of its own.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use spandrel_simulation::message::command;
use spandrel_simulation::{
    BROKEN, Canary, ClusterPlan, Cut, Outcome, Plan, Shrinking, Soak, run_cluster, run_seed,
};

/// Seeds of a soak that says neither how many nor how long.
const DEFAULT_SEEDS: u64 = 100;

/// Whole nodes in a deterministic simulation.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Runs one seed and prints what happened.
    Replay(Replay),
    /// Runs many seeds and prints those that fail.
    Soak {
        /// How many; 100 unless a time is given.
        #[arg(long)]
        seeds: Option<u64>,
        /// Stops beginning with another one after so many minutes.
        #[arg(long)]
        minutes: Option<u64>,
        /// Nodes that are alone, instead of clusters.
        #[arg(long)]
        alone: bool,
        /// The large plans of the seeds.
        #[arg(long, requires = "alone")]
        large: bool,
        /// The first one.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Whole nodes, or the cores of shards and what they send each other.
        #[arg(long, value_enum, default_value_t = Level::Byte)]
        level: Level,
        /// Whole nodes: so many runs at a time.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Puts known bugs into a copy of the sources, one after the other, and looks whether their checkers notice them.
    Bank {
        /// Only these; all of `simulation/bank` unless some are named.
        names: Vec<String>,
    },
    /// Finds the fewest faults and spans with which a seed still fails. Of whole nodes it prints the flags that replay what
    /// is left, of the message level it writes a regression.
    Shrink {
        /// The seed.
        seed: u64,
        /// Whole nodes, or the cores of shards and what they send each other.
        #[arg(long, value_enum, default_value_t = Level::Byte)]
        level: Level,
        /// The defect with which it fails.
        #[arg(long)]
        canary: Option<Defect>,
        /// Where the file of a regression goes.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions"))]
        dir: std::path::PathBuf,
    },
}

/// One run.
#[derive(Debug, clap::Args)]
struct Replay {
    /// The seed.
    seed: u64,
    /// Whole nodes, or the cores of shards and what they send each other.
    #[arg(long, value_enum, default_value_t = Level::Byte)]
    level: Level,
    /// A node that is alone, instead of a cluster.
    #[arg(long, conflicts_with_all = ["faults", "places", "traces"])]
    alone: bool,
    /// Prints every event; RUST_LOG shows the node's own log lines among them.
    #[arg(long)]
    events: bool,
    /// The large plan of the seed.
    #[arg(long, requires = "alone")]
    large: bool,
    /// Puts a defect in, which a checker must find.
    #[arg(long)]
    canary: Option<Defect>,
    #[command(flatten)]
    cut: Cut,
}

/// How much of the product is in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Whole nodes, with disks and a network.
    Byte,
    /// Shards alone.
    Message,
}

/// Defects that are put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Defect {
    /// Syncs of the journal do nothing.
    Syncs,
    /// Of a cluster: a span that nobody sent is claimed to be acknowledged.
    Claimed,
    /// Of a cluster: an acknowledged span is claimed never to have been sent.
    Denied,
}

impl From<Defect> for Canary {
    fn from(defect: Defect) -> Self {
        match defect {
            Defect::Syncs => Self::JournalSyncsLie,
            Defect::Claimed => Self::ClaimedSpan,
            Defect::Denied => Self::DeniedSpan,
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Action::Replay(it) if it.level == Level::Message => {
            Ok(exit(command::replay(it.seed, it.events)))
        }
        Action::Replay(it) => Ok(it.run()),
        Action::Bank { names } => {
            let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            Ok(exit(spandrel_simulation::bank::run(root, &names)?))
        }
        Action::Shrink {
            seed,
            level,
            canary,
            dir,
        } => match level {
            Level::Byte => shrink(seed, canary),
            Level::Message => Ok(exit(command::shrink_to_file(seed, &dir)?)),
        },
        Action::Soak {
            seeds,
            minutes,
            alone,
            large,
            from,
            level,
            jobs,
        } => {
            let default = if minutes.is_some() {
                u64::MAX
            } else {
                DEFAULT_SEEDS
            };
            let seeds = seeds.unwrap_or(default);
            let time = minutes.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
            if level == Level::Message {
                return Ok(exit(command::soak(from, seeds, time)));
            }
            let flags = [(alone, "--alone"), (large, "--large")];
            let flags = flags.iter().filter(|(given, _)| *given);
            let soak = Soak {
                program: std::env::current_exe()?,
                from,
                seeds,
                time,
                jobs,
                alone,
                flags: flags.map(|(_, flag)| (*flag).to_owned()).collect(),
            };
            Ok(exit(soak.run()?))
        }
    }
}

fn exit(is_well: bool) -> ExitCode {
    match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

impl Replay {
    fn run(&self) -> ExitCode {
        tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
        let outcome = self.outcome();
        println!(
            "{} events in {} virtual seconds, {} spans acknowledged",
            outcome.events,
            outcome.elapsed_ms / 1_000,
            outcome.acknowledged
        );
        println!("{}", outcome.fired);
        if let Some(violation) = &outcome.violation {
            if !self.events {
                let events = outcome.last_events.iter();
                events.for_each(|event| println!("{event}"));
            }
            println!("{BROKEN}{violation}");
            println!(
                "replay: cargo run -p spandrel-simulation -- replay {} --events{}",
                self.seed,
                self.flags()
            );
        }
        let (word, code) = match outcome.violation {
            None => ("ok", ExitCode::SUCCESS),
            Some(_) => ("FAILED", ExitCode::FAILURE),
        };
        println!("seed {}: {word}, hash {:016x}", self.seed, outcome.hash);
        code
    }

    fn outcome(&self) -> Outcome {
        if !self.alone {
            let plan = ClusterPlan::of(self.seed).cut(&self.cut);
            let plan = match self.canary {
                Some(defect) => plan.with_canary(defect.into()),
                None => plan,
            };
            println!("{plan:?}");
            return run_cluster(plan, self.events);
        }
        let plan = match self.large {
            true => Plan::large(self.seed),
            false => Plan::of(self.seed),
        };
        let plan = match self.canary {
            Some(defect) => plan.with_canary(defect.into()),
            None => plan,
        };
        println!("{plan:?}");
        run_seed(plan, self.events)
    }

    /// Those that make it another run.
    fn flags(&self) -> String {
        let mut flags = String::new();
        for (_, flag) in [(self.alone, " --alone"), (self.large, " --large")]
            .iter()
            .filter(|(given, _)| *given)
        {
            flags.push_str(flag);
        }
        flags + &canary_flag(self.canary) + &self.cut.to_string()
    }
}

fn canary_flag(defect: Option<Defect>) -> String {
    let value = defect.and_then(|defect| defect.to_possible_value());
    value.map_or_else(String::new, |value| {
        format!(" --canary {}", value.get_name())
    })
}

fn shrink(seed: u64, canary: Option<Defect>) -> anyhow::Result<ExitCode> {
    let canary = canary_flag(canary);
    let shrinking = Shrinking {
        program: std::env::current_exe()?,
        seed,
        flags: canary.split_whitespace().map(str::to_owned).collect(),
    };
    let Some((cut, broken)) = shrinking.run()? else {
        println!("seed {seed} does not fail");
        return Ok(ExitCode::FAILURE);
    };
    println!("{broken}");
    println!("replay: cargo run -p spandrel-simulation -- replay {seed} --events{canary}{cut}");
    Ok(ExitCode::SUCCESS)
}
