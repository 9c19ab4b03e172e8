//! The message level: fixed seeds, some of them twice, and every regression file.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails so

use std::collections::BTreeMap;
use std::path::Path;

use spandrel_simulation::message::command::{REGRESSIONS, run_regression};
use spandrel_simulation::message::{FaultKind, MessagePlan, run_messages};

/// Seeds in every build.
const SEEDS: u64 = 200;
/// Every so many of them runs twice.
const REPEATED: u64 = 10;

#[test]
fn every_seed_keeps_the_invariants_and_has_one_history() {
    let mut struck: BTreeMap<FaultKind, u64> = BTreeMap::new();
    let (mut acknowledged, mut decided) = (0, 0);
    for seed in 1..=SEEDS {
        let plan = MessagePlan::of(seed);
        let outcome = run_messages(&plan, false);
        if let Some(broken) = outcome.broken {
            panic!(
                "seed {seed} breaks {broken}: {}\nreplay: cargo run -p spandrel-simulation -- replay --level message {seed}",
                outcome.detail
            );
        }
        if seed % REPEATED == 0 {
            assert_eq!(run_messages(&plan, false), outcome, "seed {seed}");
        }
        for (kind, count) in outcome.struck {
            *struck.entry(kind).or_default() += count;
        }
        acknowledged += outcome.acknowledged;
        decided += outcome.decided;
    }
    // The runs are about something.
    assert!(acknowledged > 40 * 200, "{acknowledged}");
    assert!(decided > 5 * 200, "{decided}");
    for kind in FaultKind::ALL {
        let count = struck.get(&kind).copied().unwrap_or(0);
        assert!(count > 0, "{kind} never strikes");
    }
}

#[test]
fn what_was_broken_once_is_whole() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(REGRESSIONS);
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let outcome = run_regression(&path).unwrap();
        assert_eq!(
            outcome.broken,
            None,
            "{}: {}\n{}",
            path.display(),
            outcome.detail,
            outcome.told.join("\n")
        );
        files += 1;
    }
    assert!(files > 0, "no file in {}", dir.display());
}
