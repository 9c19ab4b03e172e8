//! Runs many seeds, each in a process of its own, some at a time.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::{Cause, Fired, Setting};
use crate::shrink::BROKEN;

/// Seeds of clusters after which every kind of fault has struck.
const SEEDS_FOR_ALL_KINDS: u64 = 200;
/// Real time after which a run counts as one that does not end: the slowest one known takes half a minute.
const MOST_TIME: Duration = Duration::from_secs(600);
/// Between two looks whether a run has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Which seeds are run.
pub struct Soak {
    /// What replays a seed.
    pub program: PathBuf,
    /// The first one.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// No seed begins after it.
    pub time: Option<Duration>,
    /// How many at a time.
    pub jobs: usize,
    /// Nodes that are alone, instead of clusters.
    pub alone: bool,
    /// More flags of the replay.
    pub flags: Vec<String>,
}

/// What has come of the seeds.
#[derive(Default)]
struct Tally {
    ran: u64,
    failed: Vec<u64>,
    fired: Fired,
    error: Option<io::Error>,
}

impl Soak {
    /// Prints how each seed ends, and how often each fault took effect. True when none failed and, where there were enough
    /// seeds for it, every kind has struck.
    ///
    /// # Errors
    /// When the program cannot be run.
    #[allow(clippy::disallowed_methods)] // the soak itself runs in real time
    pub fn run(&self) -> io::Result<bool> {
        let (started, next, tally) = (Instant::now(), AtomicU64::new(0), Mutex::default());
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    while self.time.is_none_or(|time| started.elapsed() < time) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.seeds || !self.one(self.from + number, &tally) {
                            return;
                        }
                    }
                });
            }
        });
        let tally: Tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        match tally.error {
            Some(error) => Err(error),
            None => Ok(self.judge(tally)),
        }
    }

    /// False when it could not be run.
    fn one(&self, seed: u64, tally: &Mutex<Tally>) -> bool {
        let ended = self.replay(seed);
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, is_well) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tally.error = Some(error);
                return false;
            }
        };
        let says = |line: &&str| line.starts_with(BROKEN) || line.starts_with("seed ");
        text.lines()
            .filter(says)
            .for_each(|line| println!("{line}"));
        tally.ran += 1;
        tally.fired.add_report(&text);
        if !is_well {
            tally.failed.push(seed);
        }
        true
    }

    /// What the run of a seed says, and whether it is well.
    #[allow(clippy::disallowed_methods)] // as above
    fn replay(&self, seed: u64) -> io::Result<(String, bool)> {
        let mut command = Command::new(&self.program);
        command
            .args(["replay", &seed.to_string()])
            .args(&self.flags);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        let reader = child.stdout.take().map(|mut stdout| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stdout.read_to_end(&mut bytes).map(|_| bytes)
            })
        });
        let mut is_over = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > MOST_TIME {
                is_over = true;
                child.kill()?;
            }
            thread::sleep(LOOK);
        };
        let read = reader.map_or(Ok(Ok(Vec::new())), thread::JoinHandle::join);
        let bytes = read.unwrap_or_else(|_| Ok(Vec::new()))?;
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if is_over {
            let seconds = MOST_TIME.as_secs();
            text += &format!("\n{BROKEN}liveness: seed {seed} does not end within {seconds} s\n");
        }
        Ok((text, status.success()))
    }

    fn judge(&self, mut tally: Tally) -> bool {
        tally.failed.sort_unstable();
        let never = self.print_fired(&tally.fired);
        let (ran, failed) = (tally.ran, &tally.failed);
        println!("{ran} seeds, {} failed: {failed:?}", failed.len());
        let enough = !self.alone && ran >= SEEDS_FOR_ALL_KINDS;
        let is_missing = enough && !never.is_empty();
        if is_missing {
            println!("kinds that never struck: {never:?}");
        }
        failed.is_empty() && !is_missing
    }

    /// Prints how often each cause took effect, and returns those that never did.
    fn print_fired(&self, fired: &Fired) -> Vec<&'static str> {
        let strikes = |cause: &Cause| !self.alone || cause.setting() == Setting::Everywhere;
        let causes: Vec<Cause> = Cause::all().filter(strikes).collect();
        for cause in &causes {
            let (times, name) = (fired.of(*cause), cause.name());
            println!("{times:>6} {name}: {}", cause.description());
        }
        let never = causes.iter().filter(|cause| fired.of(**cause) == 0);
        never.map(|cause| cause.name()).collect()
    }
}
