//! What a seed means for a cluster: its size, its settings, and the faults of its network, disks and processes.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::plan::Plan;
use crate::random::{Stream, stream};

/// Milliseconds in which nodes join before the first fault.
const QUIET_START_MS: u64 = 4_000;

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed and starts again; what it wrote without a sync may be lost with the power.
    Crash { place: usize, loses_power: bool },
    /// The process is asked to stop, and starts again.
    Stop { place: usize },
    /// The so-manieth sync from now on fails: the node halts, and starts again.
    FailedSync { place: usize, syncs: u64 },
    /// These nodes and the others do not reach each other.
    Partition { side: Vec<usize> },
    /// What one node sends to another is lost; the way back works.
    OneWay { from: usize, to: usize },
    /// What two nodes send each other is held back until the end, and comes then.
    Held { one: usize, other: usize },
    /// What two nodes send each other takes so many milliseconds.
    Slow { one: usize, other: usize, ms: u64 },
}

/// A fault with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at_ms: u64,
    /// How long it lasts; of a process that ended: until it starts again.
    pub(crate) for_ms: u64,
    pub(crate) fault: Fault,
}

/// A run of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlan {
    pub(crate) nodes: usize,
    pub(crate) replication: u8,
    /// Milliseconds that a message takes at most; at least one.
    pub(crate) latency_ms: u64,
    pub(crate) faults: Vec<Planned>,
    /// The settings and the spans.
    pub(crate) node: Plan,
}

impl ClusterPlan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = stream(seed, Stream::Cluster);
        let nodes = random.random_range(3..6);
        let mut node = Plan::of(seed);
        node.shards = 8;
        // What the pressure of one node alone does, the runs of single nodes show.
        node.credit_bytes = 32 << 20;
        node.lives = Vec::new();
        node.traces = random.random_range(30..60);
        node.span_ms = random.random_range(20_000..40_000);
        node.clients = random.random_range(nodes..2 * nodes + 1);
        let count = random.random_range(1..8);
        let until_ms = QUIET_START_MS + node.span_ms;
        let faults = (0..count).map(|_| planned(&mut random, nodes, until_ms));
        let mut faults: Vec<Planned> = faults.collect();
        faults.sort_by_key(|planned| planned.at_ms);
        Self {
            nodes,
            replication: random.random_range(2..4),
            latency_ms: random.random_range(1..20),
            faults,
            node,
        }
    }
}

fn planned(random: &mut ChaCha8Rng, nodes: usize, until_ms: u64) -> Planned {
    let place = random.random_range(0..nodes);
    let other = (place + random.random_range(1..nodes)) % nodes;
    let fault = match random.random_range(0..12) {
        0..3 => Fault::Crash {
            place,
            loses_power: random.random_bool(0.5),
        },
        3 => Fault::Stop { place },
        4 => Fault::FailedSync {
            place,
            syncs: random.random_range(1..200),
        },
        5..7 => Fault::Partition { side: vec![place] },
        7 => Fault::Partition {
            side: vec![place, other],
        },
        8 => Fault::OneWay {
            from: place,
            to: other,
        },
        9..11 => Fault::Held { one: place, other },
        _ => Fault::Slow {
            one: place,
            other,
            ms: random.random_range(20..400),
        },
    };
    Planned {
        at_ms: random.random_range(QUIET_START_MS..until_ms),
        for_ms: random.random_range(200..12_000),
        fault,
    }
}
