//! One machine of a cluster: the process on it with a runtime of its own, which may stand still while its connections
//! stay, and the place in turmoil's network.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, RngSeed, Runtime};
use tokio::task::JoinHandle;

use super::TICK_MS;
use crate::counters::Counters;
use crate::panics;

/// What a step of a process came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ticked {
    Runs,
    Ended,
    /// Something in it has panicked.
    Panicked(String),
}

/// A process, from its start to its end.
pub(super) struct Process {
    runtime: Runtime,
    main: JoinHandle<()>,
    counters: Counters,
    /// Time that has passed while it stood still.
    missed: Duration,
}

impl Process {
    pub(super) fn begin(
        seed: u64,
        counters: Counters,
        main: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
            .build()?;
        let main = runtime.spawn(main);
        Ok(Self {
            runtime,
            main,
            counters,
            missed: Duration::ZERO,
        })
    }

    /// Lets it run for a step.
    pub(super) fn tick(&mut self) -> Ticked {
        let missed = std::mem::take(&mut self.missed);
        let step = async {
            if !missed.is_zero() {
                // All timers that came due meanwhile strike at once.
                tokio::time::advance(missed).await;
            }
            tokio::time::sleep(Duration::from_millis(TICK_MS)).await;
        };
        let (runtime, counters) = (&self.runtime, &self.counters);
        metrics::with_local_recorder(counters, || runtime.block_on(step));
        match panics::take() {
            Some(panic) => Ticked::Panicked(panic),
            None if self.main.is_finished() => Ticked::Ended,
            None => Ticked::Runs,
        }
    }

    /// A step passes in which it does not run.
    pub(super) fn miss(&mut self) {
        self.missed += Duration::from_millis(TICK_MS);
    }
}

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// Nothing yet: it joins later.
    Later,
    /// A node.
    Here,
    /// The node has left.
    Gone,
}

pub(super) struct Machine {
    pub(super) presence: Presence,
    pub(super) process: Option<Process>,
    /// When the process starts again, in milliseconds.
    pub(super) again_ms: u64,
    /// Until then it stands still.
    pub(super) paused_until_ms: u64,
    /// The power is off: what is sent to it is lost.
    pub(super) is_off: bool,
    /// It was asked to stop.
    pub(super) stops: bool,
    /// Kills that are still to come, each shortly after a start.
    pub(super) storm: u64,
    /// When the next of them comes.
    pub(super) dies_at_ms: u64,
    /// Operations of the disk after which the next process loses its power.
    pub(super) dies_after: Option<u64>,
}

impl Machine {
    pub(super) fn new(presence: Presence) -> Self {
        Self {
            presence,
            process: None,
            again_ms: 0,
            paused_until_ms: 0,
            is_off: false,
            stops: false,
            storm: 0,
            dies_at_ms: 0,
            dies_after: None,
        }
    }
}
