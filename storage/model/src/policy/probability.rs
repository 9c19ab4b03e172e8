//! Probabilities in 2^-32 and the sampling decision of one trace, consistent with OpenTelemetry's OTEP 235.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ids::TraceId;
use crate::verdict::CERTAIN;

/// The product of two probabilities in 2^-32, rounded down.
pub(super) fn product(a: u64, b: u64) -> u64 {
    let product = (u128::from(a.min(CERTAIN)) * u128::from(b.min(CERTAIN))) >> 32;
    // At most 2^32 by the two bounds above.
    u64::try_from(product).unwrap_or(CERTAIN)
}

/// A percentage as a probability. More than 0 percent never becomes 0, so that it stays invertible.
pub(super) fn from_percentage(percentage: f64) -> u64 {
    let scaled = (percentage / 100.0).clamp(0.0, 1.0) * 4_294_967_296.0;
    // Within 0 to 2^32 by the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let probability = scaled.round() as u64;
    if percentage > 0.0 {
        probability.max(1)
    } else {
        0
    }
}

/// Where the randomness of a trace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Randomness {
    /// The low 56 bits of the trace id, as OTEP 235 reads them: every sampler on the way decides consistently.
    TraceId,
    /// A hash of the trace id with this seed: independent of other samplers, for several layers of sampling.
    Salted(u64),
}

impl Randomness {
    /// The seed of a salt that people wrote.
    pub(super) fn salted(salt: &str) -> Self {
        Self::Salted(xxh3_64(salt.as_bytes()))
    }

    /// True when a trace is kept at this probability: its randomness reaches the rejection threshold. Of the 56 bits
    /// the upper 32 decide, for the threshold of a probability in 2^-32 has zeros below them.
    pub(super) fn keeps(self, trace_id: TraceId, probability: u64) -> bool {
        self.value(trace_id) >= CERTAIN.saturating_sub(probability)
    }

    /// Uniform in 0 to 2^32 - 1.
    fn value(self, trace_id: TraceId) -> u64 {
        match self {
            Self::TraceId => {
                let [.., a, b, c, d, _, _, _] = trace_id.0;
                u64::from(u32::from_be_bytes([a, b, c, d]))
            }
            Self::Salted(seed) => xxh3_64_with_seed(&trace_id.0, seed) >> 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_otep_235s() {
        // given: OTEP 235's example of 1 in 4: threshold c0000000000000, so randomness from c0... on is kept
        let quarter = from_percentage(25.0);
        let id = |low: &str| -> TraceId { format!("ffffffffffffffffff{low}").parse().unwrap() };
        // then
        assert!(Randomness::TraceId.keeps(id("c0000000000000"), quarter));
        assert!(!Randomness::TraceId.keeps(id("bfffffffffffff"), quarter));
        // and at the ends
        assert!(Randomness::TraceId.keeps(id("00000000000000"), CERTAIN));
        assert!(!Randomness::TraceId.keeps(id("ffffffffffffff"), 0));
        assert!(Randomness::TraceId.keeps(id("ffffffff000000"), 1));
    }

    #[test]
    fn a_salt_decides_otherwise_but_as_often() {
        let half = from_percentage(50.0);
        let ids = (1..=10_000u128).map(|n| {
            TraceId(
                n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
                    .to_be_bytes(),
            )
        });
        let kept = |source: Randomness| ids.clone().filter(|id| source.keeps(*id, half)).count();
        let (a, b) = (Randomness::salted("a"), Randomness::salted("b"));
        assert!((4_800..5_200).contains(&kept(a)), "{}", kept(a));
        let agree = ids
            .clone()
            .filter(|id| a.keeps(*id, half) == b.keeps(*id, half))
            .count();
        assert!((4_800..5_200).contains(&agree), "{agree}");
    }

    #[test]
    fn percentages_are_exact_at_the_ends() {
        assert_eq!(from_percentage(0.0), 0);
        assert_eq!(from_percentage(100.0), CERTAIN);
        assert_eq!(from_percentage(50.0), CERTAIN / 2);
        assert_eq!(from_percentage(1e-12), 1);
        assert_eq!(product(CERTAIN, CERTAIN), CERTAIN);
        assert_eq!(product(CERTAIN / 2, CERTAIN / 4), CERTAIN / 8);
    }
}
