//! Encodes planned traces once and remembers where ids, times and varying texts lie, so that another trace of the
//! kind costs a copy and a few writes rather than an encoding: the generator shares its processors with the server
//! that it measures.

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;

use super::attributes::Varying;
use super::plan::{LinkTarget, SpanPlan, TracePlan};
use super::services::{Scope, Service};
use super::wire;

/// A link's target.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkTo {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
}

/// What makes one trace out of a template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instance {
    pub(super) trace_id: [u8; 16],
    /// Random: span ids and varying texts follow from it.
    pub(super) seed: u64,
    /// Unix nanoseconds.
    pub(super) start: u64,
    /// Factor of all times, in 2^-16.
    pub(super) stretch: u64,
}

impl Instance {
    /// Unix nanoseconds of a moment of the plan.
    pub(super) fn moment(&self, us: u64) -> u64 {
        self.start + ((us * 1_000 * self.stretch) >> 16)
    }

    /// The id of the span at `index`.
    pub(super) fn span_id(&self, index: usize) -> [u8; 8] {
        mix(self.seed ^ (index as u64 + 1)).max(1).to_be_bytes()
    }
}

/// Where one varying text lies and what belongs there.
#[derive(Debug)]
struct Slot {
    at: usize,
    digits: usize,
    varying: Varying,
    /// Position of the run within its text: the groups of a UUID differ.
    run: u64,
}

/// Where a link lies and what it points to.
#[derive(Debug)]
struct LinkPlace {
    trace_at: usize,
    span_at: usize,
}

/// One span, encoded.
#[derive(Debug)]
pub(super) struct SpanTemplate {
    pub(super) service: Service,
    pub(super) scope: Scope,
    pub(super) error: bool,
    pub(super) link_targets: Vec<LinkTarget>,
    index: usize,
    parent: Option<usize>,
    start_us: u64,
    end_us: u64,
    bytes: Vec<u8>,
    trace_at: usize,
    span_at: usize,
    parent_at: usize,
    start_at: usize,
    end_at: usize,
    events: Vec<(usize, u64)>,
    links: Vec<LinkPlace>,
    slots: Vec<Slot>,
}

/// One trace, encoded.
#[derive(Debug)]
pub(super) struct TraceTemplate {
    pub(super) spans: Vec<SpanTemplate>,
    pub(super) producer: Option<usize>,
    /// The trace that continues this one, by its number in the library.
    pub(super) follow_up: Option<usize>,
    /// Of the whole trace before it is stretched.
    pub(super) duration_us: u64,
}

impl TraceTemplate {
    pub(super) fn of(plan: &TracePlan, follow_up: Option<usize>) -> Self {
        let spans = plan.spans.iter().enumerate();
        Self {
            spans: spans
                .map(|(index, span)| SpanTemplate::of(index, span))
                .collect(),
            producer: plan.producer,
            follow_up,
            duration_us: plan.spans.iter().map(|span| span.end_us).max().unwrap_or(0),
        }
    }

    /// When the message that others link to was sent.
    pub(super) fn produced_us(&self) -> u64 {
        let producer = self.producer.and_then(|index| self.spans.get(index));
        producer.map_or(0, |span| span.end_us)
    }
}

impl SpanTemplate {
    /// Length of the encoded span in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the span of `instance`. `links` are the targets of its links, in order; missing ones point to the
    /// trace itself.
    pub(super) fn write(&self, instance: &Instance, links: &[LinkTo], out: &mut Vec<u8>) {
        let base = out.len();
        out.extend_from_slice(&self.bytes);
        let span = &mut out[base..];
        let own_id = instance.span_id(self.index);
        put(span, self.trace_at, &instance.trace_id);
        put(span, self.span_at, &own_id);
        if let Some(parent) = self.parent {
            put(span, self.parent_at, &instance.span_id(parent));
        }
        // Below a microsecond, far less than the shortest gap of a plan: so that times are not all round.
        let jitter = mix(instance.seed.rotate_left(17) ^ self.index as u64) & 0x3ff;
        let moment = |us: u64| (instance.moment(us) + jitter).to_le_bytes();
        put(span, self.start_at, &moment(self.start_us));
        put(span, self.end_at, &moment(self.end_us));
        for (at, us) in &self.events {
            put(span, *at, &moment(*us));
        }
        for (place, number) in self.links.iter().zip(0..) {
            let target = links.get(number).copied().unwrap_or(LinkTo {
                trace_id: instance.trace_id,
                span_id: own_id,
            });
            put(span, place.trace_at, &target.trace_id);
            put(span, place.span_at, &target.span_id);
        }
        for slot in &self.slots {
            slot.fill(instance.seed, self.index, span);
        }
    }

    fn of(index: usize, plan: &SpanPlan) -> Self {
        let mut bytes = Vec::with_capacity(1_024);
        let trace_at = wire::put_bytes(&mut bytes, 1, &[0; 16]);
        let span_at = wire::put_bytes(&mut bytes, 2, &[0; 8]);
        let parent_at = match plan.parent {
            Some(_) => wire::put_bytes(&mut bytes, 4, &[0; 8]),
            None => 0,
        };
        wire::put_bytes(&mut bytes, 5, plan.name.as_bytes());
        wire::put_number(&mut bytes, 6, u64::from((plan.kind as i32).unsigned_abs()));
        let start_at = wire::put_fixed64(&mut bytes, 7, 0);
        let end_at = wire::put_fixed64(&mut bytes, 8, 0);
        let mut slots = Vec::new();
        for attribute in &plan.attributes {
            put_attribute(9, attribute, &mut bytes, &mut slots);
        }
        let mut events = Vec::new();
        for event in &plan.events {
            let mut own = Vec::new();
            let (body, time_at) = event_body(event.name, &event.attributes, &mut own);
            let at = wire::put_bytes(&mut bytes, 11, &body);
            events.push((at + time_at, event.at_us));
            slots.extend(own.into_iter().map(|slot| Slot {
                at: at + slot.at,
                ..slot
            }));
        }
        let mut links = Vec::new();
        for _ in &plan.links {
            let mut body = Vec::new();
            let trace_at = wire::put_bytes(&mut body, 1, &[0; 16]);
            let span_at = wire::put_bytes(&mut body, 2, &[0; 8]);
            let at = wire::put_bytes(&mut bytes, 13, &body);
            links.push(LinkPlace {
                trace_at: at + trace_at,
                span_at: at + span_at,
            });
        }
        if let Some(message) = &plan.error {
            let mut body = Vec::new();
            wire::put_bytes(&mut body, 2, message.as_bytes());
            wire::put_number(&mut body, 3, 2);
            wire::put_bytes(&mut bytes, 15, &body);
        }
        // W3C: sampled; and the parent, if any, is known to be remote or not (0x100), remote for server and consumer.
        let flags = if matches!(plan.kind as i32, 2 | 5) {
            0x301
        } else {
            0x101
        };
        wire::put_fixed32(&mut bytes, 16, flags);
        Self {
            service: plan.service,
            scope: plan.scope,
            error: plan.error.is_some(),
            link_targets: plan.links.clone(),
            index,
            parent: plan.parent,
            start_us: plan.start_us,
            end_us: plan.end_us,
            bytes,
            trace_at,
            span_at,
            parent_at,
            start_at,
            end_at,
            events,
            links,
            slots,
        }
    }
}

/// An event, the place of its time in it, and the places of its marked texts.
fn event_body(name: &str, attributes: &[KeyValue], slots: &mut Vec<Slot>) -> (Vec<u8>, usize) {
    let mut body = Vec::new();
    let time_at = wire::put_fixed64(&mut body, 1, 0);
    wire::put_bytes(&mut body, 2, name.as_bytes());
    for attribute in attributes {
        put_attribute(3, attribute, &mut body, slots);
    }
    (body, time_at)
}

/// Appends an attribute as a field of a span or an event, and notes the places of its marked texts.
fn put_attribute(field: u64, attribute: &KeyValue, bytes: &mut Vec<u8>, slots: &mut Vec<Slot>) {
    let encoded = attribute.encode_to_vec();
    let at = wire::put_bytes(bytes, field, &encoded);
    if !has_marker(attribute) {
        return;
    }
    let value = attribute.value.as_ref().map_or(0, AnyValue::encoded_len);
    // The value comes last in its attribute.
    let key = encoded.len() - value;
    slots.extend(runs(encoded.get(key..).unwrap_or_default(), at + key));
}

fn has_marker(attribute: &KeyValue) -> bool {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let value = attribute
        .value
        .as_ref()
        .and_then(|value| value.value.as_ref());
    matches!(value, Some(Value::StringValue(text)) if text.bytes().any(|byte| Varying::of(byte).is_some()))
}

/// The runs of at least four equal marker characters in the bytes of a value that begins at `base`.
fn runs(value: &[u8], base: usize) -> Vec<Slot> {
    let mut found: Vec<Slot> = Vec::new();
    let mut at = 0;
    for run in value.chunk_by(|a, b| a == b) {
        if let (Some(varying), true) = (run.first().copied().and_then(Varying::of), run.len() >= 4)
        {
            found.push(Slot {
                at: base + at,
                digits: run.len().min(16),
                varying,
                run: found.len() as u64,
            });
        }
        at += run.len();
    }
    found
}

impl Slot {
    fn fill(&self, seed: u64, index: usize, span: &mut [u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let own = match self.varying {
            Varying::Span => index as u64 + 1,
            shared => (shared as u64) << 32,
        };
        let mut random = mix(seed ^ own.rotate_left(40) ^ self.run << 8);
        if let Some(place) = span.get_mut(self.at..self.at + self.digits) {
            for digit in place {
                *digit = DIGITS[(random & 15) as usize];
                random >>= 4;
            }
        }
    }
}

/// Writes at a place that the template itself measured.
fn put(span: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = span.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// SplitMix64's finaliser: neighbouring inputs give unrelated outputs, different inputs different ones.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
