//! What outlives the lives of the node: the disk, the clock, the clients' queues and the truth.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_chacha::ChaCha8Rng;
use spandrel_actors::Clock;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_storage::disk::SimulatedDisk;
use tokio::sync::Notify;

use crate::check::{Demands, Violation};
use crate::clock::SimulatedClock;
use crate::counters::Counters;
use crate::events::{EventLog, Printing};
use crate::faults::{Cause, Fired};
use crate::model::{SpanRecord, Tally, TraceRecord};
use crate::plan::{Canary, Plan};
use crate::random::{Stream, stream};
use crate::workload::{Request, Workload};

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scene {
    /// One node, which knows everything while it runs.
    Alone,
    /// Several: while faults strike, an answer may say that somebody was not reached.
    Cluster,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) scene: Scene,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) log: Arc<EventLog>,
    pub(crate) disk: SimulatedDisk,
    pub(crate) tenants: Vec<TenantId>,
    traces: Mutex<Vec<TraceRecord>>,
    queues: Mutex<Vec<VecDeque<Request>>>,
    clients: Mutex<ChaCha8Rng>,
    /// The node's counters of all lives.
    pub(crate) counters: Counters,
    tally: Arc<Mutex<Tally>>,
    /// The policy files that were in force, by version.
    policies: Mutex<BTreeMap<u32, String>>,
    violation: Mutex<Option<Violation>>,
    fired: Mutex<Fired>,
    demands: Mutex<Demands>,
    /// A fault has struck in this life: what the disk no longer gives is no violation.
    pub(crate) faulted: AtomicBool,
    /// Told when a violation was found.
    pub(crate) stopped: Notify,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(plan: Plan, printing: Printing, scene: Scene) -> Arc<Self> {
        use rand::Rng;
        let workload = Workload::of(&plan);
        let disk_seed = stream(plan.seed, Stream::Disk).next_u64();
        let disk = SimulatedDisk::new(disk_seed);
        if let Some(bytes) = plan.extras.disk_bytes {
            disk.set_capacity(bytes);
        }
        Arc::new(Self {
            clock: Arc::new(SimulatedClock::new()),
            log: Arc::new(EventLog::new(printing)),
            disk,
            tenants: workload.tenants,
            traces: Mutex::new(workload.traces),
            queues: Mutex::new(workload.queues),
            clients: Mutex::new(stream(plan.seed, Stream::Clients)),
            counters: Counters::default(),
            tally: Arc::default(),
            fired: Mutex::default(),
            demands: Mutex::default(),
            policies: Mutex::new(BTreeMap::from([(1, plan.policy_yaml())])),
            violation: Mutex::new(None),
            faulted: AtomicBool::new(false),
            stopped: Notify::new(),
            plan,
            scene,
        })
    }

    pub(crate) fn now(&self) -> UnixNanos {
        self.clock.now()
    }

    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.clock.elapsed_nanos() / UnixNanos::PER_MILLI
    }

    pub(crate) fn note(&self, event: impl Into<String>) {
        self.log.note(self.clock.elapsed_nanos(), event.into());
    }

    /// Something that only counts for the hash.
    pub(crate) fn fold(&self, what: &str, numbers: &[u64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|one| one.to_le_bytes()).collect();
        let at = self.clock.elapsed_nanos();
        self.log.fold(at, &[what.as_bytes(), &bytes]);
    }

    pub(crate) fn traces(&self) -> MutexGuard<'_, Vec<TraceRecord>> {
        lock(&self.traces)
    }

    pub(crate) fn queues(&self) -> MutexGuard<'_, Vec<VecDeque<Request>>> {
        lock(&self.queues)
    }

    pub(crate) fn client_random(&self) -> MutexGuard<'_, ChaCha8Rng> {
        lock(&self.clients)
    }

    /// What clients know of their requests in this life.
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    /// The same, for a client to write to.
    pub(crate) fn shared_tally(&self) -> Arc<Mutex<Tally>> {
        Arc::clone(&self.tally)
    }

    /// This has taken effect.
    pub(crate) fn fired(&self, cause: impl Into<Cause>) {
        lock(&self.fired).add(cause);
    }

    pub(crate) fn all_fired(&self) -> Fired {
        lock(&self.fired).clone()
    }

    /// What the answers of a cluster must hold, now that its faults are over.
    pub(crate) fn demands(&self) -> MutexGuard<'_, Demands> {
        lock(&self.demands)
    }

    pub(crate) fn policies(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        lock(&self.policies)
    }

    /// Puts the defect of a canary into the truth: of a kept trace with an error, since nothing else may be missing.
    pub(crate) fn falsify(&self) {
        let Some(canary @ (Canary::ClaimedSpan | Canary::DeniedSpan)) = self.plan.canary else {
            return;
        };
        let now = self.now();
        let mut traces = self.traces();
        let kept = traces.iter_mut().find(|trace| trace.has_acked_error());
        let Some(trace) = kept else { return };
        let span = SpanRecord {
            is_error: false,
            sent: canary == Canary::ClaimedSpan,
            acked_at: (canary == Canary::ClaimedSpan).then_some(now),
        };
        let some = match canary {
            Canary::ClaimedSpan => Some(u64::MAX),
            _ => {
                let mut acked = trace.acked_after(UnixNanos(0));
                acked.next()
            }
        };
        if let Some(fingerprint) = some {
            trace.spans.insert(fingerprint, span);
        }
    }

    /// Records the first violation and ends the run.
    pub(crate) fn violate(&self, violation: Violation) {
        self.note(format!("VIOLATION {violation}"));
        lock(&self.violation).get_or_insert(violation);
        self.stopped.notify_one();
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        lock(&self.violation).clone()
    }
}
