//! Collecting spans: what an entry keeps of each.

use spandrel_model::batch::{AttributeValue, Run, SpanBatch, SpanKind, StatusCode};
use spandrel_model::ids::Lsn;
use spandrel_model::limits::{
    MAX_INDEXED_VALUE_BYTES, MAX_SUMMARY_ATTRIBUTES, MAX_SUMMARY_CLASSES, RESERVED_SERVICE_CLASSES,
    UNKNOWN_SERVICE,
};

use super::entry::{Entry, NO_CLASS, Offer, Phase, Row};
use super::state::{Applied, ShardState, Step};
use crate::settings::Epoch;

/// Classes that any span may add to an entry.
const UNRESERVED_CLASSES: usize = MAX_SUMMARY_CLASSES - RESERVED_SERVICE_CLASSES;

impl ShardState {
    /// Adds the spans `rows` of `batch` to an entry, each once.
    pub(super) fn add(
        &mut self,
        slot: u32,
        lsn: Lsn,
        batch: &SpanBatch,
        rows: &[u32],
        step: &Step<'_>,
    ) -> Applied {
        let epoch = step.epoch;
        let mut applied = Applied::default();
        let Some(mut entry) = self.slots[slot as usize].take() else {
            return applied;
        };
        let (before, spans_before, bytes_before) =
            (entry.memory_bytes(), entry.span_count(), entry.bytes);
        let policy = epoch.policy(entry.policy_version);
        let observes = policy.set().version() == entry.policy_version;
        let mut context_seen = u32::MAX;
        for &row in rows {
            let Some(span) = batch.spans.get(row as usize) else {
                continue;
            };
            let context = batch.context(span);
            let service = match batch.bytes(context.service) {
                b"" => UNKNOWN_SERVICE.as_bytes(),
                name => name,
            };
            let class = self.class_position(
                &mut entry,
                service,
                batch.bytes(span.name),
                span.kind,
                span.status,
            );
            match entry.offer(Row::new(span.span_id, span.hash, class)) {
                Offer::Duplicate => {
                    applied.duplicates += 1;
                    continue;
                }
                Offer::New => applied.spans += 1,
                Offer::Conflict => {
                    applied.spans += 1;
                    applied.conflicts += 1;
                }
            }
            entry.refer(lsn);
            entry.start = entry.start.min(span.start);
            entry.end = entry.end.max(span.end);
            entry.bytes += u64::from(span.span.len);
            entry.error_count += u32::from(span.status == StatusCode::Error);
            let is_root = span.parent_span_id.is_zero();
            let earlier = span.start < entry.root_start;
            // A span without a parent beats one with; of equals the earlier one is the root.
            if (is_root && !entry.has_root) || (is_root == entry.has_root && earlier) {
                entry.root_row = entry.span_count() - 1;
                entry.root_start = span.start;
                entry.has_root |= is_root;
            }
            if observes {
                entry.bits |= policy.observe(batch, span);
            }
            if context_seen != span.context {
                context_seen = span.context;
                self.add_attributes(&mut entry, batch, context.attributes, epoch);
            }
            self.add_attributes(&mut entry, batch, span.attributes, epoch);
        }
        if applied.spans > 0 {
            entry.last_at = entry.last_at.max(step.now);
        }
        match &mut entry.phase {
            Phase::Kept(kept) => {
                kept.ready &= applied.spans == 0;
                self.kept_spans += u64::from(entry.span_count() - spans_before);
                self.kept_span_bytes += entry.bytes - bytes_before;
                applied.late = applied.spans;
            }
            Phase::LateDropped(_) | Phase::Deciding(_) => applied.late = applied.spans,
            Phase::Open | Phase::Unconfirmed(_) => {}
        }
        self.entry_bytes = self.entry_bytes + entry.memory_bytes() - before;
        self.slots[slot as usize] = Some(entry);
        applied
    }

    fn class_position(
        &mut self,
        entry: &mut Entry,
        service: &[u8],
        operation: &[u8],
        kind: SpanKind,
        status: StatusCode,
    ) -> u8 {
        let borrowed = (service, operation, kind, status);
        let full = match entry.classes().len() {
            MAX_SUMMARY_CLASSES.. => true,
            // The rest is for services that the trace did not have yet.
            UNRESERVED_CLASSES.. => entry.classes().iter().any(|&class| {
                let known = self.classes.get(class);
                known.is_some_and(|known| known.service.as_bytes() == service)
            }),
            _ => false,
        };
        let number = if full {
            self.classes.find(borrowed)
        } else {
            Some(self.classes.intern(borrowed))
        };
        let position =
            number.and_then(|number| entry.classes().iter().position(|&known| known == number));
        match (position, number) {
            // At most MAX_SUMMARY_CLASSES positions, which is below 255.
            (Some(position), _) => u8::try_from(position).unwrap_or(NO_CLASS),
            (None, Some(number)) if !full => {
                self.classes.retain(number);
                entry.push_class(number)
            }
            _ => {
                entry.truncated = true;
                NO_CLASS
            }
        }
    }

    fn add_attributes(&mut self, entry: &mut Entry, batch: &SpanBatch, run: Run, epoch: &Epoch) {
        let interests = epoch.rules().interests();
        for attribute in batch.attributes(run) {
            let Some(key) = interests
                .key(attribute.key)
                .filter(|_| attribute.key < interests.indexed())
            else {
                continue;
            };
            let mut digits = itoa::Buffer::new();
            let decimal;
            let text = match attribute.value {
                AttributeValue::Text(slice) => batch.bytes(slice),
                AttributeValue::Int(value) => digits.format(value).as_bytes(),
                AttributeValue::Bool(true) => b"true",
                AttributeValue::Bool(false) => b"false",
                AttributeValue::Double(value) => {
                    decimal = value.to_string();
                    decimal.as_bytes()
                }
            };
            let (text, cut) = indexed_part(text);
            entry.truncated |= cut;
            let borrowed = (key, text);
            let full = entry.attributes().len() >= MAX_SUMMARY_ATTRIBUTES;
            let number = if full {
                self.attributes.find(borrowed)
            } else {
                Some(self.attributes.intern(borrowed))
            };
            match number {
                Some(number) if entry.attributes().contains(&number) => {}
                Some(number) if !full => {
                    self.attributes.retain(number);
                    entry.push_attribute(number);
                }
                _ => entry.truncated = true,
            }
        }
    }
}

/// The part of a value that is indexed, whole characters, and whether something was cut off.
fn indexed_part(value: &[u8]) -> (&[u8], bool) {
    if value.len() <= MAX_INDEXED_VALUE_BYTES {
        return (value, false);
    }
    let text = std::str::from_utf8(value).unwrap_or_default();
    let cut = text.floor_char_boundary(MAX_INDEXED_VALUE_BYTES);
    (value.get(..cut).unwrap_or_default(), true)
}
