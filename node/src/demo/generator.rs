//! The stream of export requests: deterministic for a seed and the times that it is asked at.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spandrel_model::ids::{SpanId, TraceId, UnixNanos};

use super::flows::Outcome;
use super::library::{Library, RESOURCES, ResourceIndex};
use super::options::{Grouping, Shape};
use super::outbox::{Outbox, Pending};
use super::plan::LinkTarget;
use super::services::INSTANCES;
use super::template::{Instance, LinkTo};

/// How often a process exports what waits, in nanoseconds: the default of the SDKs' batch span processors.
const EXPORT_INTERVAL_NANOS: u64 = 5_000_000_000;
/// Longest wait of a batch of whole traces, in nanoseconds, so that a slow stream still shows.
const TRACE_BATCH_AGE_NANOS: u64 = 1_000_000_000;
/// Share of the traces with one span that comes seconds after the rest.
const LATE_SHARE: f64 = 0.005;
/// How late, in nanoseconds.
const LATENESS_NANOS: std::ops::Range<u64> = 2_000_000_000..20_000_000_000;
/// Messages that later traces may link to.
const REMEMBERED_MESSAGES: usize = 64;
/// Traces of each kind that are named at the end.
const EXAMPLES_OF_A_KIND: usize = 2;

/// One export request.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The bytes of an `ExportTraceServiceRequest`.
    pub request: Bytes,
    /// When it is to be sent, by the clock that paces the generator.
    pub due: UnixNanos,
    /// Spans in it.
    pub spans: u32,
    /// What is in it by trace; empty unless the shape asks for a record.
    pub traces: Vec<TracePart>,
}

/// The spans of one trace in one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracePart {
    /// The trace.
    pub trace_id: TraceId,
    /// Spans of the whole trace, in this batch or in others.
    pub trace_spans: u32,
    /// Those in this batch.
    pub spans: Vec<SpanId>,
    /// One of those in this batch has status error.
    pub error: bool,
    /// The trace takes more than a second.
    pub slow: bool,
}

/// A trace worth looking at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The trace.
    pub trace_id: TraceId,
    /// `failed`, `slow`, `linked` or `late span`.
    pub kind: &'static str,
}

/// A span that comes late: ordered by time, then by number, so that the order is total.
struct Late {
    due: u64,
    number: u64,
    resource: ResourceIndex,
    pending: Pending,
}

/// Makes the stream of one connection.
pub struct Generator {
    library: Arc<Library>,
    shape: Shape,
    rng: ChaCha8Rng,
    outbox: Outbox,
    late: BinaryHeap<Reverse<Late>>,
    /// Unix nanoseconds up to which traces have been made.
    timeline: u64,
    /// When each process exports next (by service), or the batch at the latest (by trace: the first entry).
    export_at: Vec<u64>,
    messages: VecDeque<LinkTo>,
    examples: Vec<Example>,
    made_spans: u64,
    made_traces: u64,
}

impl Generator {
    /// The stream number `stream` of a seed, beginning at `start`.
    #[must_use]
    pub fn new(shape: Shape, stream: u64, start: UnixNanos) -> Self {
        Self::with_library(Arc::new(Library::new(shape.seed)), shape, stream, start)
    }

    /// As [`Generator::new`], sharing the stock of encoded traces with other streams.
    pub(super) fn with_library(
        library: Arc<Library>,
        shape: Shape,
        stream: u64,
        start: UnixNanos,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(shape.seed);
        rng.set_stream(stream + 1);
        let export_at = match shape.grouping {
            Grouping::Trace => vec![start.0 + TRACE_BATCH_AGE_NANOS],
            Grouping::Service => (0..RESOURCES)
                .map(|_| start.0 + rng.random_range(0..EXPORT_INTERVAL_NANOS))
                .collect(),
        };
        Self {
            library,
            shape,
            rng,
            outbox: Outbox::new(),
            late: BinaryHeap::new(),
            timeline: start.0,
            export_at,
            messages: VecDeque::with_capacity(REMEMBERED_MESSAGES),
            examples: Vec::new(),
            made_spans: 0,
            made_traces: 0,
        }
    }

    /// The next request. With a pace, `now` is not looked at and the batch says when it is due; without, traces end
    /// at `now` and the batch is due at once.
    pub fn next_batch(&mut self, now: UnixNanos) -> Batch {
        if self.shape.nanos_per_span.is_none() {
            self.timeline = self.timeline.max(now.0);
        }
        loop {
            if let Some(resources) = self.ready() {
                return self.batch(resources);
            }
            self.release_late(self.timeline);
            let before = self.made_spans;
            self.add_trace();
            if let Some(nanos) = self.shape.nanos_per_span {
                // Positive and far below 2^53: a trace's time at the pace.
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss
                )]
                let step = (nanos * (self.made_spans - before) as f64) as u64;
                self.timeline += step;
            }
        }
    }

    /// What still waits, late spans included: the requests that end the stream.
    pub fn drain(&mut self) -> Vec<Batch> {
        self.release_late(u64::MAX);
        let mut batches = Vec::new();
        match self.shape.grouping {
            Grouping::Trace if self.outbox.total() > 0 => batches.push(self.batch(0..RESOURCES)),
            Grouping::Trace => {}
            Grouping::Service => {
                for resource in 0..RESOURCES {
                    if self.outbox.waiting(resource) > 0 {
                        batches.push(self.batch(resource..resource + 1));
                    }
                }
            }
        }
        batches
    }

    /// Traces made so far.
    #[must_use]
    pub fn traces(&self) -> u64 {
        self.made_traces
    }

    /// Spans made so far, those that still wait included.
    #[must_use]
    pub fn spans(&self) -> u64 {
        self.made_spans
    }

    /// A few traces to look at.
    #[must_use]
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// The processes whose spans make the next request, if one is full or due.
    fn ready(&mut self) -> Option<std::ops::Range<ResourceIndex>> {
        let batch = self.shape.batch_spans;
        if self.shape.grouping == Grouping::Trace {
            let due = self
                .export_at
                .first()
                .is_some_and(|at| *at <= self.timeline);
            if due {
                self.export_at = vec![self.timeline + TRACE_BATCH_AGE_NANOS];
            }
            let full = self.outbox.total() >= batch;
            return (full || due && self.outbox.total() > 0).then_some(0..RESOURCES);
        }
        for resource in 0..RESOURCES {
            let waiting = self.outbox.waiting(resource);
            let at = &mut self.export_at[resource];
            let due = *at <= self.timeline;
            if due {
                *at = self.timeline + EXPORT_INTERVAL_NANOS;
            }
            if waiting >= batch || due && waiting > 0 {
                return Some(resource..resource + 1);
            }
        }
        None
    }

    fn batch(&mut self, resources: std::ops::Range<ResourceIndex>) -> Batch {
        if self.shape.grouping == Grouping::Trace {
            self.export_at = vec![self.timeline + TRACE_BATCH_AGE_NANOS];
        }
        let mut spans = 0;
        let mut record = Record::default();
        let recorded = self.shape.record;
        let library = Arc::clone(&self.library);
        let request = self
            .outbox
            .take(resources, &library, &mut |pending, template| {
                spans += 1;
                if recorded {
                    record.add(pending, template.error, &library);
                }
            });
        Batch {
            request,
            due: UnixNanos(self.timeline),
            spans,
            traces: record.parts,
        }
    }

    /// Makes one trace, and the one that follows it up.
    fn add_trace(&mut self) {
        let dice: f64 = self.rng.random();
        let outcome = match dice {
            dice if dice < self.shape.errors => Outcome::Failed,
            dice if dice < self.shape.errors + self.shape.slow => Outcome::Slow,
            _ => Outcome::Healthy,
        };
        let library = Arc::clone(&self.library);
        let number = library.choose(outcome, &mut self.rng);
        let template = library.trace(number);
        let mut instance = self.instance();
        let took = instance.moment(template.duration_us) - instance.start;
        let gap = self.rng.random_range(200_000..50_000_000);
        instance.start = self.timeline.saturating_sub(took + gap);
        if self.place(&library, number, instance, &[]) {
            self.example(instance, "late span");
        }
        match outcome {
            Outcome::Failed => self.example(instance, "failed"),
            Outcome::Slow => self.example(instance, "slow"),
            Outcome::Healthy => {}
        }
        let Some(producer) = template.producer else {
            return;
        };
        let message = LinkTo {
            trace_id: instance.trace_id,
            span_id: instance.span_id(producer),
        };
        if let Some(number) = template.follow_up {
            let follow_up = Instance {
                start: instance.moment(template.produced_us()) + 20_000_000,
                ..self.instance()
            };
            self.place(&library, number, follow_up, &[message]);
            self.example(follow_up, "linked");
        }
        if self.messages.len() == REMEMBERED_MESSAGES {
            self.messages.pop_back();
        }
        self.messages.push_front(message);
    }

    /// Ids and the stretch of a new trace; its start is set by the caller.
    fn instance(&mut self) -> Instance {
        let mut trace_id = [0; 16];
        self.rng.fill_bytes(&mut trace_id);
        Instance {
            trace_id,
            seed: self.rng.next_u64(),
            start: 0,
            // 0.6 to 1.5.
            stretch: self.rng.random_range(39_322..98_304),
        }
    }

    /// Puts the spans of a trace into the outbox, those that end first before the others. True when one of them is
    /// held back.
    fn place(
        &mut self,
        library: &Library,
        number: usize,
        instance: Instance,
        producers: &[LinkTo],
    ) -> bool {
        let template = library.trace(number);
        let pods = self.rng.next_u64();
        let held_back = (self.rng.random::<f64>() < LATE_SHARE)
            .then(|| self.rng.random_range(0..template.spans.len()));
        for (index, span) in template.spans.iter().enumerate().rev() {
            let service = span.service as usize;
            let pod = usize::from((pods >> (service * 5)).to_le_bytes()[0]) % INSTANCES;
            let resource = service * INSTANCES + pod;
            let target = |target: &LinkTarget| match target {
                LinkTarget::Producer => producers.first().copied(),
                LinkTarget::Earlier(n) => self.messages.get(*n).copied(),
            };
            let pending = Pending {
                trace: number,
                span: index,
                instance,
                links: span.link_targets.iter().filter_map(target).collect(),
            };
            self.made_spans += 1;
            if held_back == Some(index) {
                let due = self.timeline + self.rng.random_range(LATENESS_NANOS);
                self.late.push(Reverse(Late {
                    due,
                    number: self.made_spans,
                    resource,
                    pending,
                }));
            } else {
                self.outbox.push(resource, span.scope, pending);
            }
        }
        self.made_traces += 1;
        held_back.is_some()
    }

    fn release_late(&mut self, until: u64) {
        while self
            .late
            .peek()
            .is_some_and(|Reverse(late)| late.due <= until)
        {
            if let Some(Reverse(late)) = self.late.pop() {
                let scope = self.library.span(&late.pending).scope;
                self.outbox.push(late.resource, scope, late.pending);
            }
        }
    }

    fn example(&mut self, instance: Instance, kind: &'static str) {
        let same = self.examples.iter().filter(|example| example.kind == kind);
        if same.count() < EXAMPLES_OF_A_KIND {
            self.examples.push(Example {
                trace_id: TraceId(instance.trace_id),
                kind,
            });
        }
    }
}

/// Collects a batch's record.
#[derive(Default)]
struct Record {
    parts: Vec<TracePart>,
    by_trace: std::collections::BTreeMap<[u8; 16], usize>,
}

impl Record {
    fn add(&mut self, pending: &Pending, error: bool, library: &Library) {
        let template = library.trace(pending.trace);
        let instance = &pending.instance;
        let at = *self.by_trace.entry(instance.trace_id).or_insert_with(|| {
            let took = instance.moment(template.duration_us) - instance.start;
            self.parts.push(TracePart {
                trace_id: TraceId(instance.trace_id),
                trace_spans: u32::try_from(template.spans.len()).unwrap_or(u32::MAX),
                spans: Vec::new(),
                error: false,
                slow: took > 1_000_000_000,
            });
            self.parts.len() - 1
        });
        if let Some(part) = self.parts.get_mut(at) {
            part.spans.push(SpanId(instance.span_id(pending.span)));
            part.error |= error;
        }
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
