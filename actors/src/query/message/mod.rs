//! Questions and answers between nodes, as bytes: typed at once when they arrive. No bytes make a decoder panic.

mod names;
mod refusal;
mod search;
mod trace;

#[cfg(test)]
mod message_oracle;
#[cfg(test)]
mod message_test;

use spandrel_model::ids::{NodeId, ShardId, TraceId, UnixNanos};
use spandrel_model::search::{Cursor, MissingPart, Receipt};
use spandrel_model::shard_set::ShardSet;

use super::part::NodePart;
use crate::limits::{MAX_MISSING_REASON_BYTES, MAX_PEER_MISSING_PARTS};
use crate::wire::{QueryMissing, QueryReceipt, SearchCursor, ShardPart};

pub(super) use names::{decode_names, decode_names_request, encode_names, encode_names_request};
pub(super) use refusal::{decode_refusal, encode_refusal};
pub(super) use search::{decode_request, decode_search, encode_request, encode_search};
pub(super) use trace::{
    OpenedPart, OpenedTrace, decode_decision, decode_trace, encode_decision, encode_trace,
};

/// Bytes of a peer that are no question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is missing or out of its range")]
pub(super) struct Malformed {
    pub(super) field: &'static str,
}

pub(super) fn malformed(field: &'static str) -> impl Fn() -> Malformed {
    move || Malformed { field }
}

pub(super) fn encode_part(part: &NodePart) -> ShardPart {
    let numbers = |set: &ShardSet| set.iter().map(|shard| u32::from(shard.0)).collect();
    ShardPart {
        live: numbers(&part.live),
        stored: numbers(&part.stored.without(&part.live)),
    }
}

/// `shards`: how many the cluster has; others are refused.
pub(super) fn decode_part(part: Option<ShardPart>, shards: u16) -> Result<NodePart, Malformed> {
    let refused = malformed("part");
    let part = part.ok_or_else(&refused)?;
    let set = |numbers: &[u32]| {
        let parsed = numbers.iter().map(|number| {
            let number = u16::try_from(*number).map_err(|_| refused())?;
            (number < shards)
                .then_some(ShardId(number))
                .ok_or_else(&refused)
        });
        parsed.collect::<Result<ShardSet, Malformed>>()
    };
    let (live, mut stored) = (set(&part.live)?, set(&part.stored)?);
    stored.extend(&live);
    if stored.is_empty() {
        return Err(refused());
    }
    Ok(NodePart { live, stored })
}

pub(super) fn decode_trace_id(bytes: &[u8]) -> Result<TraceId, Malformed> {
    let id = bytes.try_into().map_err(|_| malformed("trace_id")())?;
    if id == [0; 16] {
        return Err(malformed("trace_id")());
    }
    Ok(TraceId(id))
}

fn encode_cursor(cursor: Cursor) -> SearchCursor {
    SearchCursor {
        start: cursor.start.0,
        trace_id: cursor.trace_id.0.to_vec().into(),
    }
}

/// A cursor may lie between traces: its id need not be one of a trace.
fn decode_cursor(cursor: &SearchCursor) -> Result<Cursor, Malformed> {
    let id = cursor.trace_id.as_ref().try_into();
    Ok(Cursor {
        start: UnixNanos(cursor.start),
        trace_id: TraceId(id.map_err(|_| malformed("cursor")())?),
    })
}

fn encode_missing(parts: &[MissingPart]) -> Vec<QueryMissing> {
    let parts = parts.iter().take(MAX_PEER_MISSING_PARTS);
    parts.map(encode_missing_part).collect()
}

fn encode_missing_part(part: &MissingPart) -> QueryMissing {
    QueryMissing {
        node: part.node.0,
        shards: part.shards.iter().map(|shard| shard.0.into()).collect(),
        from: part.from.0,
        to: part.to.0,
        reason: cut(&part.reason).to_owned(),
        damaged: false,
    }
}

/// Puts what a node cannot read first, so that it is never one part too many. A node of the version before sees a missing
/// part like any other.
fn encode_damage(receipt: &mut QueryReceipt, damage: &MissingPart) {
    let part = QueryMissing {
        damaged: true,
        ..encode_missing_part(damage)
    };
    receipt.missing.truncate(MAX_PEER_MISSING_PARTS - 1);
    receipt.missing.insert(0, part);
}

/// Takes out what [`encode_damage`] has put in.
fn decode_damage(receipt: Option<&mut QueryReceipt>) -> Result<Option<MissingPart>, Malformed> {
    let Some(receipt) = receipt else {
        return Ok(None);
    };
    if receipt.missing.len() > MAX_PEER_MISSING_PARTS {
        return Err(malformed("missing")());
    }
    let damage = receipt.missing.iter().position(|part| part.damaged);
    let damage = damage.map(|at| receipt.missing.remove(at));
    Ok(decode_missing(damage.into_iter().collect())?.pop())
}

fn decode_missing(parts: Vec<QueryMissing>) -> Result<Vec<MissingPart>, Malformed> {
    if parts.len() > MAX_PEER_MISSING_PARTS {
        return Err(malformed("missing")());
    }
    let decoded = parts.into_iter().map(|part| {
        let shards = part.shards.iter().map(|number| {
            let number = u16::try_from(*number).map_err(|_| malformed("missing")());
            number.map(ShardId)
        });
        Ok(MissingPart {
            node: NodeId(part.node),
            shards: shards.collect::<Result<_, _>>()?,
            from: UnixNanos(part.from),
            to: UnixNanos(part.to),
            reason: cut(&part.reason).to_owned(),
        })
    });
    decoded.collect()
}

/// The first bytes of a text, at a character's end.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_MISSING_REASON_BYTES))
        .unwrap_or(text)
}

fn encode_receipt(receipt: &Receipt) -> QueryReceipt {
    QueryReceipt {
        index_watermark: receipt.index_watermark.0,
        missing: encode_missing(&receipt.missing),
        inspected_spans: receipt.inspected_spans,
        inspected_bytes: receipt.inspected_bytes,
    }
}

/// The receipt of an answer to a question about a range.
fn decode_receipt(
    receipt: Option<QueryReceipt>,
    from: UnixNanos,
    to: UnixNanos,
) -> Result<Receipt, Malformed> {
    let receipt = receipt.ok_or_else(malformed("receipt"))?;
    let missing = decode_missing(receipt.missing)?;
    Ok(Receipt {
        complete: missing.is_empty(),
        from,
        to,
        index_watermark: UnixNanos(receipt.index_watermark),
        missing,
        inspected_spans: receipt.inspected_spans,
        inspected_bytes: receipt.inspected_bytes,
    })
}
