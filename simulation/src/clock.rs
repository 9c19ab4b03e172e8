//! Virtual time: tokio's paused clock within a life of the node, going on where the last life ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spandrel_actors::Clock;
use spandrel_model::ids::UnixNanos;
use tokio::time::Instant;

use crate::limits::EPOCH_SECONDS;
use crate::overrides::set_elapsed_nanos;

pub(crate) struct SimulatedClock {
    life: Mutex<Life>,
}

struct Life {
    /// Nanoseconds of all earlier lives and of the pauses between them.
    before_nanos: u64,
    /// tokio's instant at which this life began; `None` between two lives.
    began: Option<Instant>,
    /// Nanoseconds that nobody has lived through: only clocks on the wall have gone on.
    skipped_nanos: u64,
}

impl SimulatedClock {
    pub(crate) fn new() -> Self {
        let life = Life {
            before_nanos: 0,
            began: None,
            skipped_nanos: 0,
        };
        Self {
            life: Mutex::new(life),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the simulation's beginning, without what was skipped.
    pub(crate) fn elapsed_nanos(&self) -> u64 {
        self.life().elapsed_nanos()
    }

    /// So many nanoseconds have elapsed since the simulation's beginning: whoever steps the clock says so.
    pub(crate) fn step_to(&self, nanos: u64) {
        let mut life = self.life();
        life.before_nanos = nanos;
        set_elapsed_nanos(life.shown_nanos());
    }

    /// The clock goes on at once by so many nanoseconds.
    pub(crate) fn skip(&self, nanos: u64) {
        self.life().skipped_nanos += nanos;
    }

    /// A life begins; call within its runtime.
    pub(crate) fn begin_life(&self) {
        self.life().began = Some(Instant::now());
    }

    /// A life has ended at `elapsed_nanos`; the next one begins `pause_nanos` later.
    pub(crate) fn end_life(&self, elapsed_nanos: u64, pause_nanos: u64) {
        let mut life = self.life();
        life.before_nanos = elapsed_nanos + pause_nanos;
        life.began = None;
        set_elapsed_nanos(life.shown_nanos());
    }

    /// Lets the C library's clock follow. Called before each task is polled.
    pub(crate) fn publish(&self) {
        set_elapsed_nanos(self.life().shown_nanos());
    }
}

impl Life {
    fn elapsed_nanos(&self) -> u64 {
        let within = self
            .began
            .map_or(0, |began| Instant::now().duration_since(began).as_nanos());
        self.before_nanos + u64::try_from(within).unwrap_or(u64::MAX)
    }

    /// What a clock shows, as nanoseconds since the simulation's beginning.
    fn shown_nanos(&self) -> u64 {
        self.elapsed_nanos() + self.skipped_nanos
    }
}

/// The clock of one machine, which may be off.
pub(crate) struct OffsetClock {
    right: Arc<SimulatedClock>,
    off: Mutex<Off>,
}

/// By how much a clock is off.
#[derive(Default)]
struct Off {
    millis: i64,
    /// Milliseconds that it gains each second.
    gains: i64,
    /// Since when it does, in nanoseconds of the right time.
    since_nanos: u64,
}

impl OffsetClock {
    pub(crate) fn new(right: Arc<SimulatedClock>) -> Self {
        Self {
            right,
            off: Mutex::default(),
        }
    }

    fn off(&self) -> MutexGuard<'_, Off> {
        self.off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is so many milliseconds ahead, or behind, and runs as it should.
    pub(crate) fn set_offset_ms(&self, millis: i64) {
        *self.off() = Off {
            millis,
            ..Off::default()
        };
    }

    /// From now on it gains, or loses, so many milliseconds a second.
    pub(crate) fn drift(&self, gains: i64) {
        let mut off = self.off();
        off.gains = gains;
        off.since_nanos = self.right.elapsed_nanos();
    }
}

impl Clock for OffsetClock {
    fn now(&self) -> UnixNanos {
        let off = self.off();
        let drifted = self.right.elapsed_nanos() - off.since_nanos;
        let gained = drifted / 1_000 * off.gains.unsigned_abs();
        let right = self.right.now();
        let set = shifted(
            right,
            off.millis,
            off.millis.unsigned_abs() * UnixNanos::PER_MILLI,
        );
        shifted(set, off.gains, gained)
    }
}

/// Ahead or behind, as the sign says.
fn shifted(time: UnixNanos, sign: i64, nanos: u64) -> UnixNanos {
    match sign >= 0 {
        true => time.plus(nanos),
        false => time.minus(nanos),
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> UnixNanos {
        UnixNanos(EPOCH_SECONDS * UnixNanos::PER_SECOND).plus(self.life().shown_nanos())
    }
}
