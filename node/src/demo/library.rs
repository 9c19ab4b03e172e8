//! Everything that is encoded before the first span is sent: the processes' resources and a stock of traces.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::flows::{Flow, Outcome};
use super::outbox::Pending;
use super::services::{INSTANCES, Scope, Service};
use super::template::{SpanTemplate, TraceTemplate};

/// Which instance of which service: `service * INSTANCES + instance`.
pub(super) type ResourceIndex = usize;

/// Number of processes of the shop.
pub(super) const RESOURCES: usize = Service::ALL.len() * INSTANCES;

/// The bytes of all resources and scopes.
#[derive(Debug)]
pub(super) struct Processes {
    resources: Vec<Vec<u8>>,
    scopes: Vec<Vec<u8>>,
}

impl Processes {
    pub(super) fn new(rng: &mut ChaCha8Rng) -> Self {
        let mut resources = Vec::with_capacity(RESOURCES);
        let mut scopes = Vec::new();
        for service in Service::ALL {
            resources.extend((0..INSTANCES).map(|instance| service.resource(instance, rng)));
            scopes.extend(Scope::ALL.map(|scope| service.scope(scope)));
        }
        Self { resources, scopes }
    }

    pub(super) fn resource(&self, index: ResourceIndex) -> &[u8] {
        self.resources.get(index).map_or(&[], Vec::as_slice)
    }

    pub(super) fn scope(&self, index: ResourceIndex, scope: usize) -> &[u8] {
        let at = index / INSTANCES * Scope::ALL.len() + scope;
        self.scopes.get(at).map_or(&[], Vec::as_slice)
    }
}

/// Variants of each kind of healthy trace.
const HEALTHY_VARIANTS: usize = 24;
/// Variants of each kind of failed or slow trace.
const RARE_VARIANTS: usize = 10;

/// The stock. The same seed makes the same one.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) processes: Processes,
    traces: Vec<TraceTemplate>,
    /// For each flow and outcome, the numbers of its variants.
    stock: Vec<Vec<usize>>,
}

impl Library {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut library = Self {
            processes: Processes::new(&mut rng),
            traces: Vec::new(),
            stock: Vec::new(),
        };
        for flow in Flow::ALL {
            for outcome in [Outcome::Healthy, Outcome::Slow, Outcome::Failed] {
                let variants = match outcome {
                    Outcome::Healthy => HEALTHY_VARIANTS,
                    Outcome::Slow | Outcome::Failed => RARE_VARIANTS,
                };
                let numbers = (0..variants)
                    .map(|_| library.add(flow, outcome, &mut rng))
                    .collect();
                library.stock.push(numbers);
            }
        }
        library
    }

    /// The number of a variant that the random numbers choose.
    pub(super) fn choose(&self, outcome: Outcome, rng: &mut ChaCha8Rng) -> usize {
        let mut dice = rng.random_range(0..Flow::ALL.map(Flow::weight).iter().sum());
        let mut chosen = Flow::Checkout;
        for flow in Flow::ALL {
            if dice < flow.weight() {
                chosen = flow;
                break;
            }
            dice -= flow.weight();
        }
        let variants = &self.stock[chosen as usize * 3 + outcome as usize];
        variants[rng.next_u32() as usize % variants.len()]
    }

    /// The template of a trace.
    pub(super) fn trace(&self, number: usize) -> &TraceTemplate {
        &self.traces[number]
    }

    /// The template of a waiting span.
    pub(super) fn span(&self, pending: &Pending) -> &SpanTemplate {
        &self.traces[pending.trace].spans[pending.span]
    }

    fn add(&mut self, flow: Flow, outcome: Outcome, rng: &mut ChaCha8Rng) -> usize {
        let plan = flow.plan(outcome, rng);
        let follow_up = plan.follow_up.as_deref().map(|plan| {
            self.traces.push(TraceTemplate::of(plan, None));
            self.traces.len() - 1
        });
        self.traces.push(TraceTemplate::of(&plan, follow_up));
        self.traces.len() - 1
    }
}
