//! Takes a span's message apart into fields, accepting only the form that the page can rebuild byte for byte.

use super::field::{self, Step, ValueKind};
use super::wire::Wire;

/// What is to be done with one field.
pub(super) trait Fields<'a> {
    /// A field with its value's bytes (empty where the step says it all).
    fn value(&mut self, step: Step, value: &'a [u8]) -> Option<()>;
    /// An attribute.
    fn attribute(&mut self, key: &'a [u8], kind: ValueKind, value: &'a [u8]) -> Option<()>;
}

/// Tags of `opentelemetry.proto.trace.v1.Span`: field number times 8 plus wire type.
mod tag {
    pub(super) const TRACE_ID: u64 = 0x0a;
    pub(super) const SPAN_ID: u64 = 0x12;
    pub(super) const TRACE_STATE: u64 = 0x1a;
    pub(super) const PARENT: u64 = 0x22;
    pub(super) const NAME: u64 = 0x2a;
    pub(super) const KIND: u64 = 0x30;
    pub(super) const START: u64 = 0x39;
    pub(super) const END: u64 = 0x41;
    pub(super) const ATTRIBUTE: u64 = 0x4a;
    pub(super) const DROPPED_ATTRIBUTES: u64 = 0x50;
    pub(super) const EVENT: u64 = 0x5a;
    pub(super) const DROPPED_EVENTS: u64 = 0x60;
    pub(super) const LINK: u64 = 0x6a;
    pub(super) const DROPPED_LINKS: u64 = 0x70;
    pub(super) const STATUS: u64 = 0x7a;
    pub(super) const FLAGS: u64 = 0x85;
}

/// Reports the fields of `span` in their order; `None` when there is one that must stay raw: unknown, repeated where
/// it may not be, of an odd length, or not in the shortest form.
pub(super) fn dissect<'a>(span: &'a [u8], fields: &mut impl Fields<'a>) -> Option<()> {
    let mut wire = Wire::new(span);
    let mut seen = 0u32;
    let mut once = |step: Step| {
        let bit = 1u32 << step;
        let first = seen & bit == 0;
        seen |= bit;
        first.then_some(())
    };
    while !wire.is_empty() {
        match wire.minimal_varint()? {
            tag::ATTRIBUTE => attribute(wire.minimal_bytes()?, fields)?,
            tag::EVENT => fields.value(field::EVENT, wire.minimal_bytes()?)?,
            tag::LINK => fields.value(field::LINK, wire.minimal_bytes()?)?,
            tag::TRACE_ID => {
                once(field::TRACE_ID)?;
                fields.value(field::TRACE_ID, wire.minimal_bytes()?)?;
            }
            tag::SPAN_ID => {
                once(field::SPAN_ID)?;
                fields.value(field::SPAN_ID, wire.minimal_bytes()?)?;
            }
            tag::PARENT => {
                once(field::PARENT)?;
                let parent = wire.minimal_bytes()?;
                match parent.len() {
                    0 => fields.value(field::PARENT_EMPTY, parent)?,
                    _ => fields.value(field::PARENT, parent)?,
                }
            }
            tag::TRACE_STATE => {
                once(field::TRACE_STATE)?;
                fields.value(field::TRACE_STATE, wire.minimal_bytes()?)?;
            }
            tag::NAME => {
                once(field::NAME)?;
                fields.value(field::NAME, wire.minimal_bytes()?)?;
            }
            tag::START => {
                once(field::START)?;
                fields.value(field::START, wire.take(8)?)?;
            }
            tag::END => {
                once(field::END)?;
                fields.value(field::END, wire.take(8)?)?;
            }
            tag::STATUS => {
                once(field::STATUS_CODE)?;
                status(wire.minimal_bytes()?, fields)?;
            }
            tag::FLAGS => {
                once(field::FLAGS)?;
                fields.value(field::FLAGS, wire.take(4)?)?;
            }
            other => {
                let step = match other {
                    tag::KIND => field::KIND,
                    tag::DROPPED_ATTRIBUTES => field::DROPPED_ATTRIBUTES,
                    tag::DROPPED_EVENTS => field::DROPPED_EVENTS,
                    tag::DROPPED_LINKS => field::DROPPED_LINKS,
                    _ => return None,
                };
                once(step)?;
                fields.value(step, varint_bytes(&mut wire)?)?;
            }
        }
    }
    Some(())
}

/// The bytes of a varint in its shortest form.
fn varint_bytes<'a>(wire: &mut Wire<'a>) -> Option<&'a [u8]> {
    let rest = wire.rest();
    let before = wire.position();
    wire.minimal_varint()?;
    rest.get(..wire.position() - before)
}

/// `KeyValue { key = 1, value = 2 }`, in this order and with nothing else.
fn attribute<'a>(pair: &'a [u8], fields: &mut impl Fields<'a>) -> Option<()> {
    let mut wire = Wire::new(pair);
    if wire.byte()? != 0x0a {
        return None;
    }
    let key = wire.minimal_bytes()?;
    if wire.byte()? != 0x12 {
        return None;
    }
    let any = wire.minimal_bytes()?;
    if !wire.is_empty() {
        return None;
    }
    let (kind, value) = any_value(any).unwrap_or((ValueKind::Other, any));
    fields.attribute(key, kind, value)
}

/// The value of an `AnyValue` that holds one scalar in its shortest form; `None` for all others.
fn any_value(any: &[u8]) -> Option<(ValueKind, &[u8])> {
    let mut wire = Wire::new(any);
    let (kind, value) = match wire.byte()? {
        0x0a => (ValueKind::Text, wire.minimal_bytes()?),
        0x10 => {
            let value = wire.take(1)?;
            if value != [0] && value != [1] {
                return None;
            }
            (ValueKind::Bool, value)
        }
        0x18 => (ValueKind::Int, varint_bytes(&mut wire)?),
        0x21 => (ValueKind::Double, wire.take(8)?),
        _ => return None,
    };
    wire.is_empty().then_some((kind, value))
}

/// `Status { message = 2, code = 3 }`.
fn status<'a>(status: &'a [u8], fields: &mut impl Fields<'a>) -> Option<()> {
    let mut wire = Wire::new(status);
    if wire.is_empty() {
        return fields.value(field::STATUS_EMPTY, status);
    }
    let mut tag = wire.byte()?;
    let mut message = None;
    if tag == 0x12 {
        message = Some(wire.minimal_bytes()?);
        if wire.is_empty() {
            return fields.value(field::STATUS_MESSAGE, message?);
        }
        tag = wire.byte()?;
    }
    if tag != 0x18 {
        return None;
    }
    let code = varint_bytes(&mut wire)?;
    if !wire.is_empty() {
        return None;
    }
    match message {
        // The one step with two values: the message, then the code.
        Some(message) => {
            fields.value(field::STATUS_MESSAGE_CODE, message)?;
            fields.value(field::STATUS_CODE, code)
        }
        None => fields.value(field::STATUS_CODE, code),
    }
}
