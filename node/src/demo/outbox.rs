//! Collects spans by the process that sends them and writes export requests.

use bytes::Bytes;

use super::library::{Library, RESOURCES, ResourceIndex};
use super::services::{SCHEMA_URL, Scope};
use super::template::{Instance, LinkTo, SpanTemplate};
use super::wire;

/// A span that waits to be sent.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    /// Number of the trace's template in the library.
    pub(super) trace: usize,
    /// Number of the span in it.
    pub(super) span: usize,
    pub(super) instance: Instance,
    pub(super) links: Vec<LinkTo>,
}

/// The spans that wait, by process and library.
#[derive(Debug)]
pub(super) struct Outbox {
    lanes: Vec<[Vec<Pending>; Scope::ALL.len()]>,
    waiting: Vec<u32>,
    total: u32,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            lanes: (0..RESOURCES).map(|_| Default::default()).collect(),
            waiting: vec![0; RESOURCES],
            total: 0,
        }
    }

    pub(super) fn push(&mut self, resource: ResourceIndex, scope: Scope, pending: Pending) {
        self.lanes[resource][scope as usize].push(pending);
        self.waiting[resource] += 1;
        self.total += 1;
    }

    /// Spans that wait for all processes.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Spans that wait for one process.
    pub(super) fn waiting(&self, resource: ResourceIndex) -> u32 {
        self.waiting[resource]
    }

    /// Writes one request with all that waits for `resources`, and forgets it. `each` sees every span that is sent.
    pub(super) fn take(
        &mut self,
        resources: std::ops::Range<ResourceIndex>,
        library: &Library,
        each: &mut dyn FnMut(&Pending, &SpanTemplate),
    ) -> Bytes {
        let lengths: Vec<usize> = resources
            .clone()
            .map(|resource| self.resource_len(resource, library))
            .collect();
        let whole = lengths
            .iter()
            .map(|length| wire::delimited_len(*length))
            .sum();
        let mut out = Vec::with_capacity(whole);
        for (resource, length) in resources.zip(lengths) {
            if self.waiting[resource] == 0 {
                continue;
            }
            wire::put_head(&mut out, 1, length);
            self.write_resource(resource, library, &mut out, each);
            self.total -= self.waiting[resource];
            self.waiting[resource] = 0;
        }
        Bytes::from(out)
    }

    fn resource_len(&self, resource: ResourceIndex, library: &Library) -> usize {
        let lanes = self.lanes[resource].iter().enumerate();
        let scopes: usize = lanes
            .filter(|(_, lane)| !lane.is_empty())
            .map(|(scope, lane)| {
                wire::delimited_len(lane_len(
                    lane,
                    library.processes.scope(resource, scope),
                    library,
                ))
            })
            .sum();
        wire::delimited_len(library.processes.resource(resource).len())
            + scopes
            + wire::delimited_len(SCHEMA_URL.len())
    }

    fn write_resource(
        &mut self,
        resource: ResourceIndex,
        library: &Library,
        out: &mut Vec<u8>,
        each: &mut dyn FnMut(&Pending, &SpanTemplate),
    ) {
        wire::put_bytes(out, 1, library.processes.resource(resource));
        for (scope, lane) in self.lanes[resource].iter_mut().enumerate() {
            if lane.is_empty() {
                continue;
            }
            let scope = library.processes.scope(resource, scope);
            wire::put_head(out, 2, lane_len(lane, scope, library));
            wire::put_bytes(out, 1, scope);
            for pending in lane.drain(..) {
                let template = library.span(&pending);
                wire::put_head(out, 2, template.len());
                template.write(&pending.instance, &pending.links, out);
                each(&pending, template);
            }
        }
        wire::put_bytes(out, 3, SCHEMA_URL.as_bytes());
    }
}

/// Length of a `ScopeSpans` message.
fn lane_len(lane: &[Pending], scope: &[u8], library: &Library) -> usize {
    let spans: usize = lane
        .iter()
        .map(|pending| wire::delimited_len(library.span(pending).len()))
        .sum();
    wire::delimited_len(scope.len()) + spans
}
