//! Batches of summaries: classes and attributes once per batch, then compressed.

use std::collections::BTreeMap;
use std::sync::Arc;

use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::summary::{AttributeText, RootSpan, SpanClass, SummaryDecision, TraceSummary};
use spandrel_model::verdict::Trigger;
use xxhash_rust::xxh3::xxh3_64;

use super::limits::{MAX_SUMMARY_BATCH_BYTES, SUMMARY_BATCH};
use crate::page::wire::{Wire, put_bytes, put_varint, unzigzag, zigzag};

const VERSION: u8 = 1;
const LEVEL: i32 = 1;
const HAS_ROOT: u8 = 1;
const TRUNCATED: u8 = 2;

/// Numbers values in the order of their first appearance.
struct Dictionary<T> {
    numbers: BTreeMap<T, u64>,
    entries: Vec<T>,
}

impl<T: Ord + Clone> Dictionary<T> {
    fn new() -> Self {
        Self {
            numbers: BTreeMap::new(),
            entries: Vec::new(),
        }
    }

    fn number(&mut self, value: &T) -> u64 {
        if let Some(&number) = self.numbers.get(value) {
            return number;
        }
        let number = self.entries.len() as u64;
        self.numbers.insert(value.clone(), number);
        self.entries.push(value.clone());
        number
    }
}

/// The stored form of summaries of one tenant and bucket.
pub(super) fn encode(tenant: &TenantId, summaries: &[&TraceSummary]) -> std::io::Result<Vec<u8>> {
    let (mut texts, mut classes, mut attributes) =
        (Dictionary::new(), Dictionary::new(), Dictionary::new());
    let mut body = Vec::new();
    put_varint(&mut body, summaries.len() as u64);
    let mut before = 0u64;
    for summary in summaries {
        put_varint(&mut body, u64::from(summary.shard.0));
        body.extend_from_slice(&summary.trace_id.0);
        put_varint(&mut body, summary.fragment.0);
        put_varint(&mut body, delta(before, summary.start.0));
        put_varint(&mut body, delta(summary.start.0, summary.earliest.0));
        put_varint(&mut body, delta(summary.start.0, summary.end.0));
        before = summary.start.0;
        let root = u8::from(summary.root.is_some()) * HAS_ROOT;
        body.push(root | (u8::from(summary.truncated) * TRUNCATED));
        if let Some(root) = &summary.root {
            body.extend_from_slice(&root.span_id.0);
            put_varint(&mut body, texts.number(&root.service));
            put_varint(&mut body, texts.number(&root.operation));
        }
        let decision = &summary.decision;
        put_varint(&mut body, texts.number(&decision.policy));
        body.push(decision.trigger as u8);
        put_varint(&mut body, u64::from(decision.policy_version));
        put_varint(&mut body, decision.probability);
        put_varint(&mut body, delta(summary.start.0, decision.decided_at.0));
        put_varint(&mut body, u64::from(summary.span_count));
        put_varint(&mut body, u64::from(summary.error_count));
        put_varint(&mut body, summary.classes.len() as u64);
        for class in &summary.classes {
            put_varint(&mut body, classes.number(class));
        }
        put_varint(&mut body, summary.attributes.len() as u64);
        for attribute in &summary.attributes {
            put_varint(&mut body, attributes.number(attribute));
        }
    }
    let mut entries = Vec::new();
    put_varint(&mut entries, classes.entries.len() as u64);
    for class in &classes.entries {
        put_varint(&mut entries, texts.number(&class.service));
        put_varint(&mut entries, texts.number(&class.operation));
        entries.push((class.kind as u8) << 4 | class.status as u8);
    }
    put_varint(&mut entries, attributes.entries.len() as u64);
    for attribute in &attributes.entries {
        put_varint(&mut entries, texts.number(&attribute.key));
        put_varint(&mut entries, texts.number(&attribute.value));
    }
    let mut raw = Vec::with_capacity(body.len() + entries.len() + 1_024);
    put_bytes(&mut raw, tenant.as_str().as_bytes());
    put_varint(&mut raw, texts.entries.len() as u64);
    for text in &texts.entries {
        put_bytes(&mut raw, text.as_bytes());
    }
    raw.extend_from_slice(&entries);
    raw.extend_from_slice(&body);
    let compressed = zstd::bulk::compress(&raw, LEVEL)?;
    let mut out = Vec::with_capacity(compressed.len() + 16);
    out.push(VERSION);
    put_varint(&mut out, raw.len() as u64);
    out.extend_from_slice(&compressed);
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    Ok(out)
}

/// A stored batch that was verified and unpacked; each of its summaries is decoded when it is asked for.
///
/// Decoding one summary takes about a hundredth of the time of decoding all 128 (docs/benchmarks.md).
#[derive(Debug)]
pub(super) struct Batch {
    tenant: TenantId,
    bucket: Bucket,
    dictionaries: Dictionaries,
    body: Vec<u8>,
    places: Vec<Place>,
}

/// Where a summary begins in the body, and the start that its own is relative to.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: usize,
    before: u64,
}

impl Batch {
    /// Verifies and unpacks a stored batch; `None` when it is malformed.
    pub(super) fn open(stored: &[u8], bucket: Bucket) -> Option<Self> {
        let (covered, checksum) = stored.split_last_chunk::<8>()?;
        if xxh3_64(covered) != u64::from_le_bytes(*checksum) {
            return None;
        }
        let mut wire = Wire::new(covered);
        if wire.byte()? != VERSION {
            return None;
        }
        let raw_len = usize::try_from(wire.minimal_varint()?).ok()?;
        if raw_len > MAX_SUMMARY_BATCH_BYTES {
            return None;
        }
        let raw = crate::compression::decompress(wire.rest(), raw_len).ok()?;
        let mut wire = Wire::new(&raw);
        let tenant = std::str::from_utf8(wire.minimal_bytes()?)
            .ok()?
            .parse()
            .ok()?;
        let dictionaries = Dictionaries::read(&mut wire)?;
        let count = usize::try_from(wire.minimal_varint()?).ok()?;
        if count > SUMMARY_BATCH {
            return None;
        }
        let body = wire.rest().to_vec();
        let mut wire = Wire::new(&body);
        let mut places = Vec::with_capacity(count);
        let mut before = 0u64;
        for _ in 0..count {
            let at = wire.position();
            places.push(Place { at, before });
            before = pass_summary(&mut wire, before)?;
        }
        wire.is_empty().then_some(Self {
            tenant,
            bucket,
            dictionaries,
            places,
            body,
        })
    }

    /// How many summaries it holds.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The summary with a number; `None` when there is none or it is malformed.
    pub(super) fn summary(&self, number: usize) -> Option<TraceSummary> {
        let place = self.places.get(number)?;
        let mut wire = Wire::new(self.body.get(place.at..)?);
        self.dictionaries
            .summary(&mut wire, &self.tenant, self.bucket, place.before)
    }

    /// Bytes of memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.body.capacity()
            + self.places.capacity() * size_of::<Place>()
            + self.dictionaries.memory_bytes()
    }
}

/// Passes over a summary; the start of it.
fn pass_summary(wire: &mut Wire<'_>, before: u64) -> Option<u64> {
    wire.minimal_varint()?;
    wire.take(size_of::<TraceId>())?;
    wire.minimal_varint()?;
    let start = undelta(before, wire)?;
    // The earliest start and the end.
    wire.minimal_varint()?;
    wire.minimal_varint()?;
    if wire.byte()? & HAS_ROOT != 0 {
        wire.take(size_of::<SpanId>())?;
        wire.minimal_varint()?;
        wire.minimal_varint()?;
    }
    wire.minimal_varint()?;
    wire.byte()?;
    // Policy version, probability, time of the decision, spans, errors.
    for _ in 0..5 {
        wire.minimal_varint()?;
    }
    for _ in ["classes", "attributes"] {
        for _ in 0..wire.minimal_varint()? {
            wire.minimal_varint()?;
        }
    }
    Some(start)
}

#[derive(Debug)]
struct Dictionaries {
    texts: Vec<Arc<str>>,
    classes: Vec<SpanClass>,
    attributes: Vec<AttributeText>,
}

/// Reads a count and so many items; each takes at least one byte, so the bytes left bound the count.
fn list<T>(wire: &mut Wire<'_>, read: impl Fn(&mut Wire<'_>) -> Option<T>) -> Option<Vec<T>> {
    let count = usize::try_from(wire.minimal_varint()?).ok()?;
    if count > wire.rest().len() {
        return None;
    }
    (0..count).map(|_| read(wire)).collect()
}

impl Dictionaries {
    fn read(wire: &mut Wire<'_>) -> Option<Self> {
        let mut dictionaries = Self {
            texts: list(wire, |wire| {
                std::str::from_utf8(wire.minimal_bytes()?)
                    .ok()
                    .map(Arc::from)
            })?,
            classes: Vec::new(),
            attributes: Vec::new(),
        };
        dictionaries.classes = list(wire, |wire| {
            let (service, operation) = (dictionaries.text(wire)?, dictionaries.text(wire)?);
            let code = wire.byte()?;
            Some(SpanClass {
                service,
                operation,
                kind: SpanKind::from_wire(i32::from(code >> 4)),
                status: StatusCode::from_wire(i32::from(code & 0x0f)),
            })
        })?;
        dictionaries.attributes = list(wire, |wire| {
            Some(AttributeText {
                key: dictionaries.text(wire)?,
                value: dictionaries.text(wire)?,
            })
        })?;
        Some(dictionaries)
    }

    fn memory_bytes(&self) -> usize {
        // A text costs its bytes and two counters besides its place.
        let texts = self.texts.iter().map(|text| text.len() + 16);
        texts.sum::<usize>()
            + self.texts.capacity() * size_of::<Arc<str>>()
            + self.classes.capacity() * size_of::<SpanClass>()
            + self.attributes.capacity() * size_of::<AttributeText>()
    }

    fn text(&self, wire: &mut Wire<'_>) -> Option<Arc<str>> {
        entry(&self.texts, wire)
    }

    fn summary(
        &self,
        wire: &mut Wire<'_>,
        tenant: &TenantId,
        bucket: Bucket,
        before: u64,
    ) -> Option<TraceSummary> {
        let shard = ShardId(u16::try_from(wire.minimal_varint()?).ok()?);
        let trace_id = TraceId(wire.array()?);
        let fragment = Lsn(wire.minimal_varint()?);
        let start = undelta(before, wire)?;
        let earliest = undelta(start, wire)?;
        let end = undelta(start, wire)?;
        let flags = wire.byte()?;
        let root = match flags & HAS_ROOT {
            0 => None,
            _ => Some(RootSpan {
                span_id: SpanId(wire.array()?),
                service: self.text(wire)?,
                operation: self.text(wire)?,
            }),
        };
        let decision = SummaryDecision {
            policy: self.text(wire)?,
            trigger: Trigger::from_number(wire.byte()?)?,
            policy_version: u32::try_from(wire.minimal_varint()?).ok()?,
            probability: wire.minimal_varint()?,
            decided_at: UnixNanos(undelta(start, wire)?),
        };
        Some(TraceSummary {
            tenant: tenant.clone(),
            shard,
            trace_id,
            fragment,
            bucket,
            start: UnixNanos(start),
            earliest: UnixNanos(earliest),
            end: UnixNanos(end),
            root,
            span_count: u32::try_from(wire.minimal_varint()?).ok()?,
            error_count: u32::try_from(wire.minimal_varint()?).ok()?,
            classes: list(wire, |wire| entry(&self.classes, wire))?,
            attributes: list(wire, |wire| entry(&self.attributes, wire))?,
            truncated: flags & TRUNCATED != 0,
            decision,
        })
    }
}

fn entry<T: Clone>(entries: &[T], wire: &mut Wire<'_>) -> Option<T> {
    let number = usize::try_from(wire.minimal_varint()?).ok()?;
    entries.get(number).cloned()
}

fn delta(before: u64, value: u64) -> u64 {
    zigzag(value.wrapping_sub(before).cast_signed())
}

fn undelta(before: u64, wire: &mut Wire<'_>) -> Option<u64> {
    let delta = unzigzag(wire.minimal_varint()?);
    Some(before.wrapping_add(delta.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = Arc<str>> {
        prop_oneof!["[a-c]", "\\PC{0,20}"].prop_map(|text: String| Arc::from(text))
    }

    fn summary() -> impl Strategy<Value = TraceSummary> {
        let class =
            (text(), text(), 0..6i32, 0..3i32).prop_map(|(service, operation, kind, status)| {
                SpanClass {
                    service,
                    operation,
                    kind: SpanKind::from_wire(kind),
                    status: StatusCode::from_wire(status),
                }
            });
        let attribute = (text(), text()).prop_map(|(key, value)| AttributeText { key, value });
        let root = proptest::option::of((any::<[u8; 8]>(), text(), text()));
        (
            any::<(u16, [u8; 16], u64, u64, u64, bool)>(),
            root,
            any::<(u32, u32)>(),
            btree_set(class, 0..5),
            btree_set(attribute, 0..5),
        )
            .prop_map(|(ids, root, counts, classes, attributes)| TraceSummary {
                tenant: TenantId::default(),
                shard: ShardId(ids.0),
                trace_id: TraceId(ids.1),
                fragment: Lsn(ids.2),
                bucket: Bucket(3),
                start: UnixNanos(ids.3),
                earliest: UnixNanos(ids.3.wrapping_sub(ids.2)),
                end: UnixNanos(ids.4),
                root: root.map(|(id, service, operation)| RootSpan {
                    span_id: SpanId(id),
                    service,
                    operation,
                }),
                span_count: counts.0,
                error_count: counts.1,
                classes: classes.into_iter().collect(),
                attributes: attributes.into_iter().collect(),
                truncated: ids.5,
                decision: SummaryDecision {
                    policy: Arc::from("errors"),
                    trigger: Trigger::Idle,
                    policy_version: counts.0,
                    probability: ids.2,
                    decided_at: UnixNanos(ids.4),
                },
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn batches_round_trip_and_notice_changes(summaries in vec(summary(), 0..6), at in any::<u16>()) {
            let stored = encode(&TenantId::default(), &summaries.iter().collect::<Vec<_>>()).unwrap();
            let batch = Batch::open(&stored, Bucket(3)).unwrap();
            let decoded: Option<Vec<_>> = (0..batch.len()).map(|number| batch.summary(number)).collect();
            prop_assert_eq!(decoded, Some(summaries));
            let mut changed = stored;
            let at = usize::from(at) % changed.len();
            changed[at] ^= 4;
            prop_assert!(Batch::open(&changed, Bucket(3)).is_none());
        }
    }
}
