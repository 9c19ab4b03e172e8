//! For how long this node has led without a break, as far as its own eyes were open.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::STALL_MS;

/// Since when the node leads.
///
/// Invariant: `since` is not after `looked`.
#[derive(Debug, Default)]
pub(super) struct Leadership {
    since: Option<Instant>,
    looked: Option<Instant>,
}

impl Leadership {
    /// For how long the node has led, `None` when it does not. Begins anew after a pause in which nobody looked: a
    /// process that was stopped and goes on has heard nobody for as long, and that is no sign of their death.
    pub(super) fn look(&mut self, leads: bool, now: Instant) -> Option<Duration> {
        let pause = self.looked.map(|before| now.duration_since(before));
        self.looked = Some(now);
        let stalled = pause.is_none_or(|pause| pause > Duration::from_millis(STALL_MS));
        if !leads || stalled {
            self.since = None;
        }
        if !leads {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        Some(now.duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_the_election_and_anew_after_a_stall() {
        let mut leadership = Leadership::default();
        let mut now = Instant::now();
        let mut look = |leads, pause_ms| {
            now += Duration::from_millis(pause_ms);
            leadership.look(leads, now).map(|led| led.as_millis())
        };
        assert_eq!(look(false, 0), None);
        assert_eq!(look(true, 200), Some(0));
        assert_eq!(look(true, STALL_MS), Some(u128::from(STALL_MS)));
        assert_eq!(look(true, STALL_MS + 1), Some(0), "it was stopped");
        assert_eq!(look(true, 200), Some(200));
        assert_eq!(look(false, 200), None);
        assert_eq!(look(true, 200), Some(0));
    }
}
