//! The network between the machines.

use std::time::Duration;

use turmoil::Sim;

use super::TICK_MS;
use super::streams::host;

/// Bytes of a connection that are under way at most, in segments of what was written at once.
const TCP_SEGMENTS: usize = 4_096;
/// Longest run in seconds: a bound for turmoil that no run reaches.
const LONGEST_S: u64 = 86_400;

/// turmoil's network, by places.
pub(super) struct Network {
    pub(super) sim: Sim<'static>,
    places: usize,
    latency_ms: u64,
}

impl Network {
    pub(super) fn new(places: usize, latency_ms: u64, seed: u64) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .tick_duration(Duration::from_millis(TICK_MS))
            .simulation_duration(Duration::from_secs(LONGEST_S))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(latency_ms.max(1)))
            .tcp_capacity(TCP_SEGMENTS)
            .rng_seed(seed);
        Self {
            sim: builder.build(),
            places,
            latency_ms,
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Cuts these places off from all others.
    pub(super) fn cut_off(&self, side: &[usize]) {
        self.each_pair(side, |one, other| self.sim.partition(one, other));
    }

    /// The other way round.
    pub(super) fn join_again(&self, side: &[usize]) {
        self.each_pair(side, |one, other| self.sim.repair(one, other));
    }

    fn each_pair(&self, side: &[usize], act: impl Fn(String, String)) {
        for one in side {
            for other in (0..self.places).filter(|other| !side.contains(other)) {
                act(host(*one), host(other));
            }
        }
    }

    /// Every message between two places takes this long.
    pub(super) fn slow(&self, one: usize, other: usize, ms: u64) {
        let latency = Duration::from_millis(ms.max(1));
        self.sim.set_link_latency(host(one), host(other), latency);
    }

    /// Messages between two places take up to so long, each another while.
    pub(super) fn jitter(&self, one: usize, other: usize, most_ms: u64) {
        // The least comes first: turmoil subtracts it.
        self.slow(one, other, 1);
        let most = Duration::from_millis(most_ms.max(1));
        self.sim
            .set_link_max_message_latency(host(one), host(other), most);
    }

    /// So many of a thousand messages between two places break what is under way.
    pub(super) fn lose(&mut self, one: usize, other: usize, per_mille: u32) {
        let rate = f64::from(per_mille) / 1_000.0;
        self.sim.set_link_fail_rate(host(one), host(other), rate);
    }

    /// The link of two places is as it was at the beginning.
    pub(super) fn restore(&mut self, one: usize, other: usize) {
        self.lose(one, other, 0);
        self.jitter(one, other, self.latency_ms);
        self.sim.release(host(one), host(other));
        self.sim.repair(host(one), host(other));
    }

    pub(super) fn restore_all(&mut self) {
        for one in 0..self.places {
            for other in 0..one {
                self.restore(one, other);
            }
        }
    }
}
