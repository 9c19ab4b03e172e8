//! How a clock is wrong: drawn from a seed. Pure.

use std::fmt;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spandrel_chaos::attempts::millis;

use super::limits::{CLOCK_GAIN, LARGEST_JUMP_MS, SMALLEST_JUMP_MS};

/// What a clock does until it is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    /// It is ahead by so many milliseconds; behind, when that is negative.
    Jump(i64),
    /// It gains so many milliseconds in each.
    Gain(i64),
}

impl Shift {
    /// The shift of a seed.
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let jump_ms = random.random_range(SMALLEST_JUMP_MS..=LARGEST_JUMP_MS);
        match random.random_range(0..3) {
            0 => Self::Jump(jump_ms),
            1 => Self::Jump(-jump_ms),
            _ => Self::Gain(CLOCK_GAIN),
        }
    }

    /// By how many milliseconds the clock is ahead when it has been wrong for so long.
    pub(crate) fn ahead_ms(self, elapsed: Duration) -> i64 {
        match self {
            Self::Jump(ahead_ms) => ahead_ms,
            Self::Gain(gain) => {
                let elapsed_ms = i64::try_from(millis(elapsed)).unwrap_or(i64::MAX);
                elapsed_ms.saturating_mul(gain)
            }
        }
    }
}

impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(ahead_ms) => write!(f, "the clock jumps by {ahead_ms} ms"),
            Self::Gain(gain) => write!(f, "the clock gains {gain} s a second"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_draw_each_kind_and_a_seed_the_same() {
        let drawn: Vec<Shift> = (0..50).map(Shift::drawn).collect();
        assert_eq!(drawn, (0..50).map(Shift::drawn).collect::<Vec<_>>());
        let jumps = drawn.iter().filter_map(|shift| match shift {
            Shift::Jump(ms) => Some(*ms),
            Shift::Gain(_) => None,
        });
        let jumps: Vec<i64> = jumps.collect();
        assert!(jumps.len() < drawn.len(), "nothing runs off");
        let is_of_its_size = |ms: &i64| (SMALLEST_JUMP_MS..=LARGEST_JUMP_MS).contains(&ms.abs());
        assert!(jumps.iter().all(is_of_its_size), "{jumps:?}");
        assert!(jumps.iter().any(|ms| *ms > 0) && jumps.iter().any(|ms| *ms < 0));
    }

    #[test]
    fn a_jump_is_there_at_once_and_a_gain_grows() {
        let (at_once, later) = (Duration::ZERO, Duration::from_secs(2));
        assert_eq!(Shift::Jump(-5).ahead_ms(at_once), -5);
        assert_eq!(Shift::Jump(-5).ahead_ms(later), -5);
        assert_eq!(Shift::Gain(4).ahead_ms(at_once), 0);
        assert_eq!(Shift::Gain(4).ahead_ms(later), 8_000);
    }
}
