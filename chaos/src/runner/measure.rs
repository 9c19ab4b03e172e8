//! What the attempts of the clients amount to. Pure.

use spandrel_chaos::attempts::{Attempt, Outcome};

use super::limits::STRIKE_WINDOW_MS;

/// Attempts, and how many of them were acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Success {
    /// All of them.
    pub(crate) attempts: usize,
    /// Those that were acknowledged.
    pub(crate) acknowledged: usize,
}

impl Success {
    fn of<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> Self {
        let mut success = Self::default();
        for attempt in attempts {
            success.attempts += 1;
            success.acknowledged += usize::from(attempt.outcome == Outcome::Acknowledged);
        }
        success
    }

    /// Per cent, to be shown; a dash when there was no attempt. Rounded down: only all of them are 100 %.
    pub(crate) fn percent(self) -> String {
        match (self.acknowledged * 10_000).checked_div(self.attempts) {
            Some(hundredths) => format!("{}.{:02} %", hundredths / 100, hundredths % 100),
            None => "-".to_owned(),
        }
    }
}

/// How many attempts were acknowledged.
pub(crate) fn success(attempts: &[Attempt]) -> Success {
    Success::of(attempts.iter())
}

/// A fault, as far as attempts are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strike {
    /// The place of the node that was struck.
    pub(crate) victim: usize,
    /// When.
    pub(crate) at_ms: u64,
    /// When that was over; the end of time when it never was.
    pub(crate) healed_ms: u64,
}

impl Strike {
    /// Whether the attempt was under way between the strike and `last_ms`.
    fn meets(self, attempt: &Attempt, last_ms: u64) -> bool {
        attempt.ended_ms() >= self.at_ms && attempt.at_ms <= last_ms
    }

    fn has_in_window(self, attempt: &Attempt) -> bool {
        self.meets(attempt, self.at_ms.saturating_add(STRIKE_WINDOW_MS))
    }

    /// Whether the attempt was at the node that was struck, while it was.
    fn is_at(self, attempt: &Attempt) -> bool {
        attempt.node == self.victim && self.meets(attempt, self.healed_ms)
    }
}

/// The same without attempts that were under way in a window after one of the strikes.
pub(crate) fn success_outside(attempts: &[Attempt], strikes: &[Strike]) -> Success {
    let is_outside =
        |attempt: &&Attempt| !strikes.iter().any(|strike| strike.has_in_window(attempt));
    Success::of(attempts.iter().filter(is_outside))
}

/// [`success_outside`] without attempts at nodes that could not answer, since they were struck themselves.
pub(crate) fn success_elsewhere(attempts: &[Attempt], strikes: &[Strike]) -> Success {
    let counts = |attempt: &&Attempt| {
        let mut strikes = strikes.iter();
        !strikes.any(|strike| strike.has_in_window(attempt) || strike.is_at(attempt))
    };
    Success::of(attempts.iter().filter(counts))
}

/// Spans of attempts with this outcome.
pub(crate) fn spans_with(attempts: &[Attempt], outcome: Outcome) -> usize {
    let with = attempts.iter().filter(|it| it.outcome == outcome);
    with.map(|attempt| attempt.spans).sum()
}

/// What ended in one second of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Second {
    /// Spans that were acknowledged.
    pub(crate) spans: u64,
    /// Attempts that were not acknowledged.
    pub(crate) failures: u64,
    /// 99 of 100 acknowledgements took at most so long; none when there was none.
    pub(crate) p99_ms: Option<u64>,
}

/// Every second up to the last answer, by when attempts ended.
pub(crate) fn seconds(attempts: &[Attempt]) -> Vec<Second> {
    let at = |attempt: &Attempt| usize::try_from(attempt.ended_ms() / 1000).unwrap_or(0);
    let count = attempts.iter().map(at).max().map_or(0, |last| last + 1);
    let mut seconds = vec![Second::default(); count];
    let mut latencies = vec![Vec::new(); count];
    for attempt in attempts {
        let place = at(attempt);
        if attempt.outcome == Outcome::Acknowledged {
            seconds[place].spans += u64::try_from(attempt.spans).unwrap_or(u64::MAX);
            latencies[place].push(attempt.latency_ms);
        } else {
            seconds[place].failures += 1;
        }
    }
    for (second, latencies) in seconds.iter_mut().zip(latencies) {
        second.p99_ms = p99(latencies);
    }
    seconds
}

fn p99(mut latencies: Vec<u64>) -> Option<u64> {
    latencies.sort_unstable();
    let rank = (latencies.len() * 99).div_ceil(100);
    latencies.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(at_ms: u64, latency_ms: u64, outcome: Outcome) -> Attempt {
        Attempt {
            at_ms,
            node: 0,
            spans: 10,
            outcome,
            latency_ms,
        }
    }

    #[test]
    fn failures_in_the_window_after_a_strike_are_left_out() {
        let strike = 10_000;
        let attempts = [
            attempt(1_000, 5, Outcome::Acknowledged),
            // Under way when it struck, and at both ends of the window.
            attempt(9_990, 20, Outcome::Unanswered),
            attempt(10_000, 5, Outcome::Refused),
            attempt(13_000, 5, Outcome::Refused),
            // Before and after.
            attempt(9_000, 999, Outcome::Acknowledged),
            attempt(13_001, 5, Outcome::Refused),
        ];
        let all = success(&attempts);
        assert_eq!((all.acknowledged, all.attempts), (2, 6));
        assert_eq!(all.percent(), "33.33 %");
        let strike = Strike {
            victim: 0,
            at_ms: strike,
            healed_ms: 13_001,
        };
        let outside = success_outside(&attempts, &[strike]);
        assert_eq!((outside.acknowledged, outside.attempts), (2, 3));
        assert_eq!(success_outside(&attempts, &[]), all);
        let elsewhere = success_elsewhere(&attempts, &[strike]);
        assert_eq!((elsewhere.acknowledged, elsewhere.attempts), (2, 2));
        let of_another = Strike {
            victim: 1,
            ..strike
        };
        assert_eq!(success_elsewhere(&attempts, &[of_another]), outside);
        assert_eq!(success(&[]).percent(), "-");
        assert_eq!(spans_with(&attempts, Outcome::Refused), 30);
    }

    #[test]
    fn one_failure_of_many_is_less_than_all() {
        let success = Success {
            attempts: 100_000,
            acknowledged: 99_999,
        };
        assert_eq!(success.percent(), "99.99 %");
    }

    #[test]
    fn a_second_has_what_ended_in_it() {
        let mut attempts = vec![attempt(900, 200, Outcome::Acknowledged)];
        attempts.extend((0..200).map(|at| attempt(2_000, at, Outcome::Acknowledged)));
        attempts.push(attempt(2_100, 1, Outcome::Refused));
        let seconds = seconds(&attempts);
        assert_eq!(seconds.len(), 3);
        assert_eq!(seconds[0], Second::default());
        assert_eq!((seconds[1].spans, seconds[1].p99_ms), (10, Some(200)));
        assert_eq!((seconds[2].spans, seconds[2].failures), (2_000, 1));
        assert_eq!(seconds[2].p99_ms, Some(197));
    }
}
