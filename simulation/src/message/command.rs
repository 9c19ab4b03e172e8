//! The commands of the message level.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{FaultKind, MessageOutcome, MessagePlan, run_messages, shrink};
use crate::message::fault::KINDS;

/// Where regressions are kept, within the crate.
pub const REGRESSIONS: &str = "regressions";

/// Runs one seed and prints how it went. True when nothing was broken.
#[must_use]
pub fn replay(seed: u64, events: bool) -> bool {
    let plan = MessagePlan::of(seed);
    if events {
        print!("{plan}");
    }
    let outcome = run_messages(&plan, true);
    print_outcome(&outcome);
    if outcome.broken.is_some() {
        println!(
            "replay: cargo run -p spandrel-simulation -- replay --level message {seed} --events"
        );
        println!("shrink: cargo run -p spandrel-simulation -- shrink --level message {seed}");
    }
    println!("{}", last_line(seed, &outcome));
    outcome.broken.is_none()
}

fn print_outcome(outcome: &MessageOutcome) {
    let struck: u64 = outcome.struck.values().sum();
    println!(
        "{} events in {} virtual milliseconds, {struck} faults, {} requests acknowledged, {} traces decided",
        outcome.events, outcome.elapsed_ms, outcome.acknowledged, outcome.decided
    );
    if let Some(broken) = outcome.broken {
        outcome.told.iter().for_each(|line| println!("{line}"));
        println!("broken: {broken}: {}", outcome.detail);
    }
}

/// `seed N: ok|FAILED, hash ` and 16 hexadecimal digits.
#[must_use]
pub fn last_line(seed: u64, outcome: &MessageOutcome) -> String {
    let word = match outcome.broken {
        None => "ok",
        Some(_) => "FAILED",
    };
    format!("seed {seed}: {word}, hash {:016x}", outcome.hash)
}

/// Runs seeds from `from` on, prints those that fail and how often each fault has struck. True when none failed.
#[allow(clippy::disallowed_methods)] // the soak itself runs in real time
#[must_use]
pub fn soak(from: u64, seeds: u64, time: Option<Duration>) -> bool {
    let started = Instant::now();
    let mut struck: BTreeMap<FaultKind, u64> = BTreeMap::new();
    let (mut failed, mut ran, mut events) = (Vec::new(), 0u64, 0u64);
    for seed in from..from.saturating_add(seeds) {
        if time.is_some_and(|time| started.elapsed() >= time) {
            break;
        }
        let outcome = run_messages(&MessagePlan::of(seed), false);
        ran += 1;
        events += outcome.events;
        for (kind, count) in &outcome.struck {
            *struck.entry(*kind).or_default() += count;
        }
        if let Some(broken) = outcome.broken {
            println!("broken: {broken}: {}", outcome.detail);
            println!("{}", last_line(seed, &outcome));
            failed.push(seed);
        }
    }
    for (kind, _) in KINDS {
        println!("{kind}: {} times", struck.get(&kind).copied().unwrap_or(0));
    }
    println!(
        "{ran} seeds, {events} events in {:.1} s, {} failed: {failed:?}",
        started.elapsed().as_secs_f64(),
        failed.len()
    );
    failed.is_empty()
}

/// Shrinks a seed that fails, writes what is left as a regression, and prints where. False when the seed does not fail.
///
/// # Errors
/// When the file cannot be written.
pub fn shrink_to_file(seed: u64, dir: &Path) -> std::io::Result<bool> {
    let plan = MessagePlan::of(seed);
    let Some(small) = shrink(&plan) else {
        println!("seed {seed} does not fail");
        return Ok(false);
    };
    let outcome = run_messages(&small, false);
    let broken = outcome.broken.unwrap_or_default();
    println!(
        "{} faults and {} requests of {} and {} still break {broken}: {}",
        small.faults.len(),
        small.requests.len(),
        plan.faults.len(),
        plan.requests.len(),
        outcome.detail
    );
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{broken}-{seed}.txt"));
    let story = format!("# Broke {broken}: {}\n", outcome.detail.replace('\n', " "));
    std::fs::write(&path, format!("{story}{small}"))?;
    println!("{}", path.display());
    Ok(true)
}

/// Runs the plan of a regression file.
///
/// # Errors
/// When it cannot be read or understood.
pub fn run_regression(path: &Path) -> Result<MessageOutcome, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let plan = MessagePlan::parse(&text).map_err(|error| error.to_string())?;
    Ok(run_messages(&plan, true))
}
