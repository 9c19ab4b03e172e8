//! The walk over one span, resource or scope: all of its structure is checked, the header is read, nothing is copied.

use super::attribute_policy::{AttributeAction, CompiledPolicy};
use super::report::RejectReason;
use super::value::{Value, walk_key_value};
use super::wire::{Reader, WireFault, low_i32};
use super::{SERVICE_NAME, number};
use crate::batch::{Attribute, AttributeValue, Run, Slice, SpanHeader, SpanKind, StatusCode};
use crate::ids::{SpanId, TraceId, UnixNanos};
use crate::interest::Interests;
use crate::limits::{
    MAX_ATTRIBUTE_KEY_BYTES, MAX_ATTRIBUTE_VALUE_BYTES, MAX_NAME_BYTES, MAX_SPAN_ATTRIBUTES,
    MAX_SPAN_EVENTS, MAX_SPAN_LINKS,
};

/// The lengths that keys of interest have: bit n for n bytes, bit 63 for 63 and more. Spares most keys the hash.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeyLengths(u64);

impl KeyLengths {
    pub(super) fn of(interests: &Interests) -> Self {
        let bit = |len: usize| 1_u64 << len.min(63);
        Self(
            interests
                .keys()
                .iter()
                .fold(0, |bits, key| bits | bit(key.len())),
        )
    }

    #[inline(always)]
    fn contains(self, len: usize) -> bool {
        self.0 >> len.min(63) & 1 == 1
    }
}

/// How to walk.
#[derive(Clone, Copy)]
pub(super) struct Walker<'w> {
    pub(super) interests: &'w Interests,
    pub(super) lengths: KeyLengths,
    /// When given, the walk reports whether the message must be rewritten for the limits or the policy.
    pub(super) policy: Option<&'w CompiledPolicy>,
    /// True at ingest. On replay limits of length do not reject, and a value of interest that is not UTF-8 is passed
    /// over: nobody was interested in it when it was accepted.
    pub(super) strict: bool,
}

/// A span that was walked.
pub(super) struct WalkedSpan {
    /// Without context, hash and run of attributes; times as the client said.
    pub(super) header: SpanHeader,
    /// True when it may have to be rewritten.
    pub(super) rewrite: bool,
}

/// A resource or scope that was walked.
#[derive(Default)]
pub(super) struct WalkedContext {
    /// Text of `service.name`, of a resource.
    pub(super) service: Slice,
    /// True when it may have to be rewritten.
    pub(super) rewrite: bool,
    /// Why no span under it can be taken.
    pub(super) fault: Option<RejectReason>,
}

impl WalkedContext {
    /// Of several faults the first in the order of the reasons is told.
    fn add_fault(&mut self, reason: RejectReason) {
        self.fault = Some(self.fault.map_or(reason, |fault| fault.min(reason)));
    }
}

/// What one attribute asks for.
struct Found<'a> {
    key: Reader<'a>,
    value: Value<'a>,
    rewrite: bool,
}

impl Walker<'_> {
    /// Walks a `Span`; its attributes of interest are appended to `attributes`, also when it is refused.
    pub(super) fn span(
        &self,
        message: Reader<'_>,
        attributes: &mut Vec<Attribute>,
    ) -> Result<WalkedSpan, RejectReason> {
        let absent = Reader::new(&[], 0);
        let (mut trace_id, mut span_id, mut parent) = (absent, absent, absent);
        let (mut name, mut trace_state) = (absent, absent);
        let (mut start, mut end) = (0, 0);
        let (mut kind, mut status, mut flags) = (0, 0, 0);
        let (mut attribute_count, mut event_count, mut link_count) = (0_usize, 0_usize, 0_usize);
        let mut rewrite = false;
        let mut fault = None;
        let mut rest = message;
        while !rest.is_empty() {
            let (number, field) = rest.field()?;
            match number {
                1 => trace_id = field.bytes()?,
                2 => span_id = field.bytes()?,
                number::TRACE_STATE => trace_state = field.bytes()?,
                4 => parent = field.bytes()?,
                5 => name = field.bytes()?,
                6 => kind = low_i32(field.varint()?),
                7 => start = field.fixed64()?,
                8 => end = field.fixed64()?,
                number::SPAN_ATTRIBUTES => {
                    attribute_count += 1;
                    let found = self.attribute(field.bytes()?)?;
                    if found.rewrite {
                        rewrite = true;
                    } else if let Err(reason) = self.report(&found, attributes) {
                        fault = Some(reason);
                    }
                }
                11 => {
                    event_count += 1;
                    rewrite |= self.event(field.bytes()?)?;
                }
                13 => {
                    link_count += 1;
                    rewrite |= self.link(field.bytes()?)?;
                }
                10 | 12 | 14 => drop(field.varint()?),
                15 => walk_status(field.bytes()?, &mut status)?,
                16 => flags = field.fixed32()?,
                _ => {}
            }
        }
        rewrite |= attribute_count > MAX_SPAN_ATTRIBUTES
            || event_count > MAX_SPAN_EVENTS
            || link_count > MAX_SPAN_LINKS
            || trace_id.len() == 8;
        let header = SpanHeader {
            trace_id: parse_trace_id(trace_id.rest()).ok_or(RejectReason::InvalidTraceId)?,
            span_id: parse_span_id(span_id.rest()).ok_or(RejectReason::InvalidSpanId)?,
            parent_span_id: match parent.rest() {
                [] => SpanId::default(),
                bytes => SpanId(
                    bytes
                        .try_into()
                        .map_err(|_| RejectReason::InvalidParentSpanId)?,
                ),
            },
            context: 0,
            span: message.slice(),
            name: name.slice(),
            trace_state: trace_state.slice(),
            start: UnixNanos(start),
            end: UnixNanos(end),
            kind: SpanKind::from_wire(kind),
            status: StatusCode::from_wire(status),
            flags,
            hash: 0,
            attributes: Run::default(),
        };
        self.check_text(name)?;
        if std::str::from_utf8(trace_state.rest()).is_err() {
            return Err(RejectReason::InvalidUtf8);
        }
        match fault {
            Some(reason) => Err(reason),
            None => Ok(WalkedSpan { header, rewrite }),
        }
    }

    /// Walks a `Resource`; its attributes of interest are appended to `attributes`.
    ///
    /// # Errors
    /// When the structure is broken: then nothing says where its spans are, the request is refused.
    pub(super) fn resource(
        &self,
        mut message: Reader<'_>,
        attributes: &mut Vec<Attribute>,
    ) -> Result<WalkedContext, WireFault> {
        let mut walked = WalkedContext::default();
        let mut service = None;
        let mut count = 0_usize;
        while !message.is_empty() {
            match message.field()? {
                (number::RESOURCE_ATTRIBUTES, field) => {
                    count += 1;
                    let found = match self.attribute(field.bytes()?) {
                        Err(WireFault::TooDeep) => {
                            walked.add_fault(RejectReason::NestedTooDeep);
                            continue;
                        }
                        found => found?,
                    };
                    walked.rewrite |= found.rewrite;
                    if found.rewrite {
                        continue;
                    }
                    if let (SERVICE_NAME, Value::Text(text)) = (found.key.rest(), found.value) {
                        service.get_or_insert(text);
                    }
                    if let Err(reason) = self.report(&found, attributes) {
                        walked.add_fault(reason);
                    }
                }
                (2, field) => drop(field.varint()?),
                (3, field) => walk_strings(field.bytes()?, 4)?,
                _ => {}
            }
        }
        walked.rewrite |= count > MAX_SPAN_ATTRIBUTES;
        if let Some(service) = service {
            walked.service = service.slice();
            if let Err(reason) = self.check_text(service) {
                walked.add_fault(reason);
            }
        }
        Ok(walked)
    }

    /// Walks an `InstrumentationScope`. Its attributes are never of interest.
    ///
    /// # Errors
    /// When the structure is broken, as with a resource.
    pub(super) fn scope(&self, mut message: Reader<'_>) -> Result<WalkedContext, WireFault> {
        let mut walked = WalkedContext::default();
        let mut count = 0_usize;
        while !message.is_empty() {
            match message.field()? {
                (1 | 2, field) => drop(field.bytes()?),
                (3, field) => {
                    count += 1;
                    match self.attribute(field.bytes()?) {
                        Err(WireFault::TooDeep) => {
                            walked.fault = Some(RejectReason::NestedTooDeep);
                        }
                        found => walked.rewrite |= found?.rewrite,
                    }
                }
                (4, field) => drop(field.varint()?),
                _ => {}
            }
        }
        walked.rewrite |= count > MAX_SPAN_ATTRIBUTES;
        Ok(walked)
    }

    #[inline(always)]
    fn attribute<'a>(&self, message: Reader<'a>) -> Result<Found<'a>, WireFault> {
        let (key, value) = walk_key_value(message, 0)?;
        let rewrite = match self.policy {
            None => false,
            Some(policy) => may_change(policy, key, message.len()),
        };
        Ok(Found {
            key,
            value,
            rewrite,
        })
    }

    /// Appends the attribute if somebody needs it.
    #[inline(always)]
    fn report(
        &self,
        found: &Found<'_>,
        attributes: &mut Vec<Attribute>,
    ) -> Result<(), RejectReason> {
        if !self.lengths.contains(found.key.len()) {
            return Ok(());
        }
        let key = std::str::from_utf8(found.key.rest()).unwrap_or_default();
        let Some(key) = self.interests.number(key) else {
            return Ok(());
        };
        let value = match found.value {
            Value::Text(text) if std::str::from_utf8(text.rest()).is_ok() => {
                AttributeValue::Text(text.slice())
            }
            Value::Text(_) if self.strict => return Err(RejectReason::InvalidUtf8),
            Value::Int(value) => AttributeValue::Int(value),
            Value::Double(value) => AttributeValue::Double(value),
            Value::Bool(value) => AttributeValue::Bool(value),
            _ => return Ok(()),
        };
        attributes.push(Attribute { key, value });
        Ok(())
    }

    /// Walks a `Span.Event`; true when it may have to be rewritten.
    fn event(&self, mut message: Reader<'_>) -> Result<bool, WireFault> {
        let mut rewrite = false;
        let mut count = 0_usize;
        while !message.is_empty() {
            match message.field()? {
                (1, field) => drop(field.fixed64()?),
                (2, field) => drop(field.bytes()?),
                (3, field) => {
                    count += 1;
                    rewrite |= self.attribute(field.bytes()?)?.rewrite;
                }
                (4, field) => drop(field.varint()?),
                _ => {}
            }
        }
        Ok(rewrite || count > MAX_SPAN_ATTRIBUTES)
    }

    /// Walks a `Span.Link`; true when it may have to be rewritten.
    fn link(&self, mut message: Reader<'_>) -> Result<bool, WireFault> {
        let mut rewrite = false;
        let mut count = 0_usize;
        while !message.is_empty() {
            match message.field()? {
                (1..=3, field) => drop(field.bytes()?),
                (4, field) => {
                    count += 1;
                    rewrite |= self.attribute(field.bytes()?)?.rewrite;
                }
                (5, field) => drop(field.varint()?),
                (6, field) => drop(field.fixed32()?),
                _ => {}
            }
        }
        Ok(rewrite || count > MAX_SPAN_ATTRIBUTES)
    }

    fn check_text(&self, text: Reader<'_>) -> Result<(), RejectReason> {
        if self.strict && text.len() > MAX_NAME_BYTES {
            return Err(RejectReason::NameTooLong);
        }
        match std::str::from_utf8(text.rest()) {
            Ok(_) => Ok(()),
            Err(_) => Err(RejectReason::InvalidUtf8),
        }
    }
}

/// True when the policy or a limit may change the attribute. May be true for nothing, as it knows only how long the
/// whole `KeyValue` is; never false when there is something to change.
#[inline(always)]
fn may_change(policy: &CompiledPolicy, key: Reader<'_>, message_len: usize) -> bool {
    let most_value_bytes = message_len.saturating_sub(key.len());
    if key.len() > MAX_ATTRIBUTE_KEY_BYTES || most_value_bytes > MAX_ATTRIBUTE_VALUE_BYTES {
        return true;
    }
    match policy.action(key.rest()) {
        AttributeAction::Allow => false,
        AttributeAction::Drop | AttributeAction::Hash => true,
        AttributeAction::Truncate { max_bytes } => most_value_bytes > max_bytes as usize,
    }
}

/// Walks a `Status`. Repeated ones are merged: a later one without a code leaves the code.
fn walk_status(mut message: Reader<'_>, code: &mut i32) -> Result<(), WireFault> {
    while !message.is_empty() {
        match message.field()? {
            (2, field) => drop(field.bytes()?),
            (3, field) => *code = low_i32(field.varint()?),
            _ => {}
        }
    }
    Ok(())
}

/// Walks a message whose fields 1 to `last` are strings: `EntityRef`.
fn walk_strings(mut message: Reader<'_>, last: u32) -> Result<(), WireFault> {
    while !message.is_empty() {
        let (number, field) = message.field()?;
        if number <= last {
            field.bytes()?;
        }
    }
    Ok(())
}

/// 16 bytes, or 8 that are padded on the left; not all zero.
fn parse_trace_id(bytes: &[u8]) -> Option<TraceId> {
    let id = match *bytes {
        [a, b, c, d, e, f, g, h] => [0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h],
        _ => bytes.try_into().ok()?,
    };
    (id != [0; 16]).then_some(TraceId(id))
}

fn parse_span_id(bytes: &[u8]) -> Option<SpanId> {
    let id = SpanId(bytes.try_into().ok()?);
    (!id.is_zero()).then_some(id)
}
