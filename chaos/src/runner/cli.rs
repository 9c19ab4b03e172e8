//! The command line.

use std::path::PathBuf;

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};

use super::nemesis::{Nemeses, Nemesis, parse_nemeses};

/// Runs a cluster of real nodes under load, breaks it again and again, and judges whether it kept its promises.
#[derive(Debug, Parser)]
#[command(name = "spandrel-chaos", version, about)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a cluster, strike it with faults, judge it, and write a report; the exit code is 1 if a promise is broken
    ///
    /// The program under test is `spandrel` beside this program (cargo build -p spandrel makes it), or what
    /// SPANDREL_BIN names. SPANDREL_CHAOS_KEEP=1 keeps the directories of the nodes.
    Run(RunArgs),
}

/// `spandrel-chaos run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// The faults, separated by commas; each comes once before any comes again
    ///
    /// kill: SIGKILL of a node, which is started again some seconds later.
    /// pause: SIGSTOP of a node, and SIGCONT some seconds later.
    /// partition: a node runs but reaches no other one, and some seconds later it does.
    /// slow: what a node and the others send each other takes 0.2 s longer in each direction, for some seconds.
    /// restart: SIGTERM of a node, which is started again some seconds later, as at an upgrade.
    /// rot: SIGKILL of a node; some bytes of a block or of its journal change before it is started again.
    /// join: a new node joins; at most twice a run.
    /// disk-full: the disk of a node is full, to its reserve or to its last byte; some seconds later it has room.
    /// Each node has a disk of its own for it, a tmpfs: as root, or by unshare --map-root-user --mount.
    /// clock: the wall clock of a node jumps by some ten seconds or runs off, and some seconds later it is right.
    /// Its nodes are another program: cargo build -p spandrel --example shifted_clock.
    /// upgrade: SIGTERM of all nodes, one after the other, each started again as the version before, and then back.
    /// leave: a node leaves and is removed; some seconds later a new one joins in its place.
    #[arg(long, value_name = "LIST", value_parser = parse_nemeses, verbatim_doc_comment)]
    pub(crate) nemesis: Nemeses,
    /// How long faults are begun, 1 to 60; what has begun is brought to its end, so that a run takes some time more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) minutes: u64,
    /// Nodes at the beginning, 3 to 10: of fewer, one that is away would stop the settings
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=10))]
    pub(crate) nodes: u8,
    /// Copies of each shard, 2 or more: one that is alone is away with its node
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=10))]
    pub(crate) copies: u8,
    /// Repeats the faults, victims and requests of another run, though not their exact moments; by default from the
    /// clock, and the report names it
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Where the report and the history of the clients go
    #[arg(long, value_name = "DIR", default_value = "target/chaos-run")]
    pub(crate) out: PathBuf,
}

impl RunArgs {
    /// What no single argument can tell.
    ///
    /// # Errors
    /// When they do not fit together.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let (nodes, copies) = (self.nodes, self.copies);
        ensure!(
            copies <= nodes,
            "{copies} copies need as many nodes, and there are {nodes}: see --copies and --nodes"
        );
        ensure!(
            copies < nodes || !self.nemesis.contains(Nemesis::Leave),
            "when a node leaves, the others hold the {copies} copies, and there are {nodes} nodes with it: see --copies \
             and --nodes"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<RunArgs, String> {
        let all = ["spandrel-chaos", "run"].iter().chain(arguments);
        let Command::Run(arguments) = Cli::try_parse_from(all)
            .map_err(|error| error.to_string())?
            .command;
        let checked = arguments.check();
        checked.map_err(|error| error.to_string())?;
        Ok(arguments)
    }

    #[test]
    fn what_makes_no_run_is_an_error_that_says_why() {
        let run = parsed(&["--nemesis=kill,join", "--minutes=5"]).unwrap();
        assert_eq!((run.nodes, run.copies, run.seed), (5, 2, None));

        let check = |arguments: &[&str], expected: &str| {
            let error = parsed(arguments).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&["--nemesis=kill", "--minutes=0"], "0 is not in 1..=60");
        check(
            &["--nemesis=flood", "--minutes=1"],
            "unknown nemesis `flood`",
        );
        check(
            &["--nemesis=kill", "--minutes=1", "--nodes=2"],
            "2 is not in 3..=10",
        );
        let copies = ["--nemesis=kill", "--minutes=1", "--nodes=3", "--copies=4"];
        check(&copies, "4 copies need as many nodes");
        let leave = ["--nemesis=leave", "--minutes=1", "--nodes=3", "--copies=3"];
        check(&leave, "when a node leaves");
    }
}
