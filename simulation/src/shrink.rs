//! Makes a run of a cluster that fails small. Each attempt is a process of its own, as each seed of a soak.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::cluster::{ClusterPlan, Cut};
use crate::fewer::fewer;

/// Runs of one shrinking at most: some minutes.
const MOST_RUNS: usize = 200;

/// Runs parts of a seed's plan.
pub struct Shrinking {
    /// What replays a seed.
    pub program: PathBuf,
    /// The seed.
    pub seed: u64,
    /// More flags of the replay.
    pub flags: Vec<String>,
}

impl Shrinking {
    /// The smallest part that is found which breaks the promise that the whole plan breaks, and how it breaks it; nothing
    /// when it breaks none.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn run(&self) -> io::Result<Option<(Cut, String)>> {
        let plan = ClusterPlan::of(self.seed);
        let mut best = Cut::all(&plan);
        let Some(mut broken) = self.broken(&best)? else {
            return Ok(None);
        };
        let promise = promise(&broken).to_owned();
        let (mut runs, mut error) = (1, None);
        // Of these places and faults.
        let mut has_fewest = false;
        let mut still_fails = |cut: &Cut| {
            if runs == MOST_RUNS || error.is_some() {
                return false;
            }
            runs += 1;
            match self.broken(cut) {
                Ok(Some(found)) if self::promise(&found) == promise => {
                    println!("{found}\n  with{cut}");
                    broken = found;
                    true
                }
                Ok(_) => false,
                Err(failed) => {
                    error = Some(failed);
                    false
                }
            }
        };
        loop {
            let before = best.clone();
            let places = before.places.unwrap_or_default();
            best.places = Some(fewer(&places, |places| {
                still_fails(&Cut {
                    places: Some(places),
                    ..best.clone()
                })
            }));
            let faults = before.faults.unwrap_or_default();
            best.faults = Some(fewer(&faults, |faults| {
                still_fails(&Cut {
                    faults: Some(faults),
                    ..best.clone()
                })
            }));
            let is_same = (&best.places, &best.faults) == (&Some(places), &Some(faults));
            if is_same && has_fewest {
                break;
            }
            let most = best.traces.unwrap_or(1);
            let sizes = std::iter::successors(Some(1), |size| Some(size * 2));
            let smaller = sizes.take_while(|size| *size < most).find(|size| {
                still_fails(&Cut {
                    traces: Some(*size),
                    ..best.clone()
                })
            });
            best.traces = smaller.or(best.traces);
            has_fewest = true;
        }
        match error {
            Some(error) => Err(error),
            None => Ok(Some((best, broken))),
        }
    }

    /// The line that says what the part breaks.
    fn broken(&self, cut: &Cut) -> io::Result<Option<String>> {
        let mut command = Command::new(&self.program);
        command.args(["replay", &self.seed.to_string()]);
        command.args(cut.to_string().split_whitespace());
        let output = command.args(&self.flags).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with(BROKEN));
        Ok(line.map(str::to_owned))
    }
}

/// How a report begins to say what is broken.
pub const BROKEN: &str = "broken: ";

/// Which promise a line says is broken.
fn promise(broken: &str) -> &str {
    let said = broken.trim_start_matches(BROKEN);
    said.split_once(':').map_or(said, |(promise, _)| promise)
}
