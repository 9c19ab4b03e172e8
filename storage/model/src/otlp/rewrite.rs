//! Rewriting what exceeds a limit or what the attribute policy changes. The cold path: most spans never come here.

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::attribute_policy::{AttributeAction, CompiledPolicy};
use super::report::{ChangeReason, ChangedSpans};
use super::value::{Value, walk_key_value};
use super::wire::{Field, Reader, WireFault, low_u32, put_bytes_field, put_varint_field};
use crate::limits::{
    MAX_ATTRIBUTE_KEY_BYTES, MAX_ATTRIBUTE_VALUE_BYTES, MAX_SPAN_ATTRIBUTES, MAX_SPAN_EVENTS,
    MAX_SPAN_LINKS,
};

/// The attribute that a changed span, resource or scope gets: the words of its [`ChangeReason`]s, joined by commas.
/// The name is reserved: an attribute that comes with it is merged into the mark when one is written.
pub const CHANGED_KEY: &str = "spandrel.changed";

/// Where a message keeps what a rewrite touches.
pub(super) struct Layout {
    attributes: u32,
    dropped_attributes: u32,
    children: &'static [Child],
    pads_trace_id: bool,
}

/// A repeated message with attributes of its own and a limit.
struct Child {
    number: u32,
    dropped: u32,
    most: usize,
    reason: ChangeReason,
    layout: &'static Layout,
}

const EVENT: Layout = Layout {
    attributes: 3,
    dropped_attributes: 4,
    children: &[],
    pads_trace_id: false,
};
const LINK: Layout = Layout {
    attributes: 4,
    dropped_attributes: 5,
    children: &[],
    pads_trace_id: false,
};
/// `Span`.
pub(super) const SPAN: Layout = Layout {
    attributes: 9,
    dropped_attributes: 10,
    children: &[
        Child {
            number: 11,
            dropped: 12,
            most: MAX_SPAN_EVENTS,
            reason: ChangeReason::EventDropped,
            layout: &EVENT,
        },
        Child {
            number: 13,
            dropped: 14,
            most: MAX_SPAN_LINKS,
            reason: ChangeReason::LinkDropped,
            layout: &LINK,
        },
    ],
    pads_trace_id: true,
};
/// `Resource`.
pub(super) const RESOURCE: Layout = Layout {
    attributes: 1,
    dropped_attributes: 2,
    children: &[],
    pads_trace_id: false,
};
/// `InstrumentationScope`.
pub(super) const SCOPE: Layout = Layout {
    attributes: 3,
    dropped_attributes: 4,
    children: &[],
    pads_trace_id: false,
};

/// A message that was rewritten.
pub(super) struct Rewritten {
    pub(super) bytes: Vec<u8>,
    pub(super) changes: ChangedSpans,
}

/// Applies limits and policy to a message that was walked. `None` when that changes nothing.
pub(super) fn rewrite(
    message: &[u8],
    layout: &Layout,
    policy: &CompiledPolicy,
) -> Result<Option<Rewritten>, WireFault> {
    let mut rewriter = Rewriter {
        policy,
        changes: ChangedSpans::default(),
        earlier: Vec::new(),
    };
    let mut bytes = Vec::with_capacity(message.len() + 64);
    rewriter.message(message, layout, &mut bytes)?;
    if rewriter.changes.is_empty() {
        return Ok(None);
    }
    if let Some(mark) = rewriter.mark() {
        put_attribute(
            &mut bytes,
            layout.attributes,
            CHANGED_KEY.as_bytes(),
            1,
            mark.as_bytes(),
        );
    }
    Ok(Some(Rewritten {
        bytes,
        changes: rewriter.changes,
    }))
}

struct Rewriter<'p> {
    policy: &'p CompiledPolicy,
    changes: ChangedSpans,
    /// Text of a mark that the message came with.
    earlier: Vec<u8>,
}

/// A counter of what was dropped: what the message says, and what is added.
#[derive(Clone, Copy, Default)]
struct Dropped {
    said: u32,
    added: u32,
}

impl Dropped {
    fn put(self, out: &mut Vec<u8>, number: u32) {
        let total = self.said.saturating_add(self.added);
        if total > 0 {
            put_varint_field(out, number, u64::from(total));
        }
    }
}

impl Rewriter<'_> {
    fn message(
        &mut self,
        message: &[u8],
        layout: &Layout,
        out: &mut Vec<u8>,
    ) -> Result<(), WireFault> {
        let mut attributes_kept = 0;
        let mut attributes_dropped = Dropped::default();
        let mut children: SmallVec<[(usize, Dropped); 2]> =
            SmallVec::from_elem(Default::default(), layout.children.len());
        let mut rest = Reader::new(message, 0);
        while !rest.is_empty() {
            let before = rest.rest();
            let (number, field) = rest.field()?;
            let raw = before.get(..before.len() - rest.len()).unwrap_or_default();
            if number == layout.attributes {
                let kept = self.attribute(raw, field.bytes()?, number, attributes_kept, out)?;
                match kept {
                    Kept::Yes => attributes_kept += 1,
                    Kept::PastLimit => {
                        attributes_dropped.added = attributes_dropped.added.saturating_add(1);
                    }
                    Kept::No => {}
                }
            } else if number == layout.dropped_attributes {
                attributes_dropped.said = low_u32(field.varint()?);
            } else if let Some((child, state)) = layout
                .children
                .iter()
                .zip(&mut children)
                .find(|(child, _)| child.number == number || child.dropped == number)
            {
                self.child(child, state, number, field, out)?;
            } else if layout.pads_trace_id && number == 1 && field.bytes()?.len() == 8 {
                let mut id = [0; 16];
                id[8..].copy_from_slice(field.bytes()?.rest());
                put_bytes_field(out, number, &id);
                self.changes.add(ChangeReason::TraceIdPadded, 1);
            } else {
                out.extend_from_slice(raw);
            }
        }
        attributes_dropped.put(out, layout.dropped_attributes);
        for (child, (_, dropped)) in layout.children.iter().zip(children) {
            dropped.put(out, child.dropped);
        }
        Ok(())
    }

    fn child(
        &mut self,
        child: &Child,
        (kept, dropped): &mut (usize, Dropped),
        number: u32,
        field: Field<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), WireFault> {
        if number == child.dropped {
            dropped.said = low_u32(field.varint()?);
        } else if *kept >= child.most {
            dropped.added = dropped.added.saturating_add(1);
            self.changes.add(child.reason, 1);
        } else {
            *kept += 1;
            let content = field.bytes()?.rest();
            let before = self.changes;
            let mut rewritten = Vec::with_capacity(content.len());
            self.message(content, child.layout, &mut rewritten)?;
            let unchanged = self.changes == before;
            put_bytes_field(out, number, if unchanged { content } else { &rewritten });
        }
        Ok(())
    }

    fn attribute(
        &mut self,
        raw: &[u8],
        message: Reader<'_>,
        number: u32,
        kept: usize,
        out: &mut Vec<u8>,
    ) -> Result<Kept, WireFault> {
        let (key, value) = walk_key_value(message, 0)?;
        let key = key.rest();
        if key == CHANGED_KEY.as_bytes() {
            if let Value::Text(text) = value {
                self.earlier = text.rest().to_vec();
            }
            return Ok(Kept::No);
        }
        let action = self.policy.action(key);
        if action == AttributeAction::Drop {
            self.changes.add(ChangeReason::PolicyDropped, 1);
            return Ok(Kept::No);
        }
        if kept >= MAX_SPAN_ATTRIBUTES || key.len() > MAX_ATTRIBUTE_KEY_BYTES {
            self.changes.add(ChangeReason::AttributeDropped, 1);
            return Ok(Kept::PastLimit);
        }
        if action == AttributeAction::Hash {
            self.changes.add(ChangeReason::PolicyHashed, 1);
            put_attribute(out, number, key, 1, hash_text(value).as_bytes());
            return Ok(Kept::Yes);
        }
        let (limit, reason) = match action {
            AttributeAction::Truncate { max_bytes }
                if (max_bytes as usize) < MAX_ATTRIBUTE_VALUE_BYTES =>
            {
                (max_bytes as usize, ChangeReason::PolicyTruncated)
            }
            _ => (MAX_ATTRIBUTE_VALUE_BYTES, ChangeReason::ValueTruncated),
        };
        match cut(message, value, limit)? {
            None => out.extend_from_slice(raw),
            Some((value_number, content)) => {
                self.changes.add(reason, 1);
                put_attribute(out, number, key, value_number, &content);
            }
        }
        Ok(Kept::Yes)
    }

    /// The text of the mark: reasons of now and of before. Padding an id loses nothing and is not marked.
    fn mark(&self) -> Option<String> {
        let earlier: Vec<&[u8]> = self.earlier.split(|&byte| byte == b',').collect();
        let words: Vec<&str> = ChangeReason::ALL
            .iter()
            .filter(|&&reason| reason != ChangeReason::TraceIdPadded)
            .filter(|&&reason| {
                self.changes.count(reason) > 0 || earlier.contains(&reason.as_str().as_bytes())
            })
            .map(|reason| reason.as_str())
            .collect();
        (!words.is_empty()).then(|| words.join(","))
    }
}

enum Kept {
    Yes,
    No,
    PastLimit,
}

/// Appends a `KeyValue` field whose `AnyValue` has `content` in its field `value_number`.
fn put_attribute(out: &mut Vec<u8>, number: u32, key: &[u8], value_number: u32, content: &[u8]) {
    let mut value = Vec::with_capacity(content.len() + 8);
    put_bytes_field(&mut value, value_number, content);
    let mut message = Vec::with_capacity(key.len() + value.len() + 16);
    put_bytes_field(&mut message, 1, key);
    put_bytes_field(&mut message, 2, &value);
    put_bytes_field(out, number, &message);
}

fn hash_text(value: Value<'_>) -> String {
    let raw = value.raw();
    let hash = match (raw.text(), raw) {
        (Some(text), _) => xxh3_64(text.as_bytes()),
        (None, super::RawValue::Other(bytes)) => xxh3_64(bytes),
        // Every value but `Other` has a text.
        (None, _) => xxh3_64(&[]),
    };
    format!("{hash:016x}")
}

/// The value cut to `limit` bytes, as field of an `AnyValue`; `None` when it is not longer.
fn cut(
    message: Reader<'_>,
    value: Value<'_>,
    limit: usize,
) -> Result<Option<(u32, Vec<u8>)>, WireFault> {
    let (number, content) = match value {
        Value::Text(text) if text.len() > limit => (1, cut_text(text.rest(), limit).to_vec()),
        Value::Bytes(bytes) if bytes.len() > limit => {
            (7, bytes.rest().get(..limit).unwrap_or_default().to_vec())
        }
        Value::Array(_) => match cut_entries(message, 5, limit)? {
            Some(entries) => (5, entries),
            None => return Ok(None),
        },
        Value::Map(_) => match cut_entries(message, 6, limit)? {
            Some(entries) => (6, entries),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some((number, content)))
}

/// The longest beginning of at most `limit` bytes that ends at a character, also of text that is not UTF-8.
fn cut_text(text: &[u8], limit: usize) -> &[u8] {
    let is_continuation = |at: &usize| text.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let end = (limit.saturating_sub(3)..=limit)
        .rev()
        .find(|at| !is_continuation(at))
        .unwrap_or(limit);
    text.get(..end).unwrap_or(text)
}

/// The first entries of an array or map (field `number` of the `AnyValue`) that fit `limit` bytes, whole ones only;
/// `None` when all do. Entries of repeated values are merged as protobuf does.
fn cut_entries(
    mut message: Reader<'_>,
    number: u32,
    limit: usize,
) -> Result<Option<Vec<u8>>, WireFault> {
    let mut contents: SmallVec<[Reader<'_>; 1]> = SmallVec::new();
    while !message.is_empty() {
        let (2, field) = message.field()? else {
            continue;
        };
        let mut value = field.bytes()?;
        while !value.is_empty() {
            match value.field()? {
                (found, field) if found == number => contents.push(field.bytes()?),
                // Another kind of value replaces what came before it.
                (1..=8, _) => contents.clear(),
                _ => {}
            }
        }
    }
    if contents.iter().map(Reader::len).sum::<usize>() <= limit {
        return Ok(None);
    }
    let mut kept = Vec::new();
    for mut content in contents {
        while !content.is_empty() {
            let before = content.rest();
            let (entry, _) = content.field()?;
            let raw = before
                .get(..before.len() - content.len())
                .unwrap_or_default();
            if kept.len() + raw.len() > limit {
                return Ok(Some(kept));
            }
            if entry == 1 {
                kept.extend_from_slice(raw);
            }
        }
    }
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_a_character() {
        let text = "aä€😀".as_bytes(); // 1 + 2 + 3 + 4 bytes
        for (limit, expected) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (3, 3),
            (5, 3),
            (6, 6),
            (9, 6),
            (10, 10),
        ] {
            assert_eq!(cut_text(text, limit).len(), expected, "{limit}");
        }
        assert_eq!(cut_text(&[0x80; 9], 5).len(), 5);
    }
}
