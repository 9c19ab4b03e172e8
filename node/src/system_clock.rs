//! The machine's wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::ClockId;
use spandrel_actors::Clock;
use spandrel_model::ids::UnixNanos;

/// The clock of a node in production.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one clock behind `Env` in production
    fn now(&self) -> UnixNanos {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    fn thread_cpu_nanos(&self) -> u64 {
        let used = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
        seconds * UnixNanos::PER_SECOND + u64::try_from(used.tv_nsec).unwrap_or(0)
    }
}
