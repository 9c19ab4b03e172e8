//! `spandrel-chaos run`: strikes, judges, reports.
//!
//! `cli` and `nemesis` say what is asked for, `trial` does it, `measure` and `check` judge it, and `report`, `page` and
//! `chart` show it. Only this module and `trial` touch anything; the others are pure.

mod chart;
mod check;
pub(crate) mod cli;
mod limits;
mod measure;
mod nemesis;
mod page;
mod report;
mod rot;
mod shift;
mod trial;

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use cli::RunArgs;
use report::{Report, Setup};
use spandrel_chaos::attempts::read_attempts;
use spandrel_chaos::node_process::program;
use trial::{Ending, Trial, machine};

const HISTORY: &str = "history.jsonl";
const PAGE: &str = "report.html";
/// The whole of what failed, logs included.
const FAILURES: &str = "failures.txt";

/// Runs a cluster under load, strikes it, judges it, and writes the report. Returns whether it passes.
///
/// # Errors
/// When the cluster cannot be started, the run is interrupted, or a file cannot be written.
pub(crate) async fn run(arguments: &RunArgs) -> anyhow::Result<bool> {
    arguments.check()?;
    let out = &arguments.out;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let setup = Setup {
        nemeses: arguments.nemesis.clone(),
        minutes: arguments.minutes,
        nodes: usize::from(arguments.nodes),
        copies: usize::from(arguments.copies),
        seed: arguments.seed.map_or_else(seed_of_the_clock, Ok)?,
        binary: program(machine(&arguments.nemesis).clock)?
            .display()
            .to_string(),
    };
    eprintln!("{}", setup.line());
    let history = out.join(HISTORY);
    let ending = tokio::select! {
        ending = strike_and_judge(&setup, &history) => ending?,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            bail!("interrupted; the nodes are killed");
        }
    };
    note_failures(&out.join(FAILURES), &ending)?;
    let report = Report::new(setup, ending, read_attempts(&history)?);
    print!("{}", report.text());
    let page = out.join(PAGE);
    fs::write(&page, page::render(&report))
        .with_context(|| format!("cannot write {}", page.display()))?;
    println!("{} and {} are written", page.display(), history.display());
    Ok(report.passes())
}

async fn strike_and_judge(setup: &Setup, history: &Path) -> anyhow::Result<Ending> {
    let trial = Trial::start(setup, history).await?;
    trial.run(setup).await
}

/// A report shows the beginning of a failure; everything is here. Without a failure there is no such file.
fn note_failures(path: &Path, ending: &Ending) -> anyhow::Result<()> {
    let all = [&ending.settled, &ending.clients, &ending.examined];
    let failures = all.into_iter().filter_map(|done| done.as_ref().err());
    let failures: Vec<String> = failures.map(|error| format!("{error:?}\n")).collect();
    if failures.is_empty() {
        // One of a run before would be taken for this one's.
        return match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        };
    }
    fs::write(path, failures.join("\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("failures, with logs: {}", path.display());
    Ok(())
}

fn seed_of_the_clock() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(since.as_secs())
}
