//! Searches between nodes.

use prost::Message;
use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{SpanId, TenantId, UnixNanos};
use spandrel_model::limits::{MAX_MATCHED_SPANS, MAX_SEARCH_LIMIT};
use spandrel_model::search::{
    Cursor, FoundTrace, SearchAnswer, SearchFilter, SearchRequest, TagCondition, TraceState,
};

use super::super::found::{Reached, SearchPart};
use super::super::part::NodePart;
use super::{
    Malformed, decode_cursor, decode_damage, decode_part, decode_receipt, decode_trace_id,
    encode_cursor, encode_damage, encode_part, encode_receipt, malformed,
};
use crate::limits::MAX_ANSWER_BYTES;
use crate::wire;

pub(crate) fn encode_request(request: &SearchRequest, part: &NodePart) -> wire::SearchQuestion {
    let filter = &request.filter;
    let tags = filter.tags.iter().map(|tag| wire::TagCondition {
        key: tag.key.clone(),
        value: tag.value.clone(),
    });
    wire::SearchQuestion {
        part: Some(encode_part(part)),
        services: filter.services.clone(),
        operation: filter.operation.clone(),
        status: filter.status.map(|status| status as u32),
        tags: tags.collect(),
        min_duration: filter.min_duration,
        max_duration: filter.max_duration,
        from: filter.from.0,
        to: filter.to.0,
        limit: u32::try_from(request.limit).unwrap_or(u32::MAX),
        cursor: request.cursor.map(encode_cursor),
        include_dropped: request.include_dropped,
    }
}

pub(crate) fn decode_request(
    question: wire::SearchQuestion,
    tenant: TenantId,
    shards: u16,
    timeout_ms: u64,
) -> Result<(SearchRequest, NodePart), Malformed> {
    let part = decode_part(question.part, shards)?;
    let limit = usize::try_from(question.limit).ok();
    let limit = limit.filter(|limit| (1..=MAX_SEARCH_LIMIT).contains(limit));
    let tags = question.tags.into_iter().map(|tag| TagCondition {
        key: tag.key,
        value: tag.value,
    });
    let request = SearchRequest {
        tenant,
        filter: SearchFilter {
            services: question.services,
            operation: question.operation,
            status: question.status.map(decode_status).transpose()?,
            tags: tags.collect(),
            min_duration: question.min_duration,
            max_duration: question.max_duration,
            from: UnixNanos(question.from),
            to: UnixNanos(question.to),
        },
        limit: limit.ok_or_else(malformed("limit"))?,
        cursor: question.cursor.as_ref().map(decode_cursor).transpose()?,
        include_dropped: question.include_dropped,
        timeout_ms,
    };
    Ok((request, part))
}

/// The answer in one message: what does not fit is left for the next question.
pub(crate) fn encode_search(part: SearchPart) -> wire::SearchAnswer {
    let (mut exhausted, mut reached) = match part.reached {
        Reached::End => (true, None),
        Reached::Until(cursor) => (false, cursor.map(encode_cursor)),
    };
    let mut receipt = encode_receipt(&part.answer.receipt);
    if let Some(damage) = &part.damage {
        encode_damage(&mut receipt, damage);
    }
    let mut bytes = receipt.encoded_len();
    let mut traces: Vec<wire::FoundTrace> = Vec::with_capacity(part.answer.traces.len());
    let mut last = None;
    for found in part.answer.traces {
        let cursor = Cursor {
            start: found.start,
            trace_id: found.trace_id,
        };
        let trace = encode_found(found);
        // The field's key and length take 6 bytes at most.
        bytes += trace.encoded_len() + 6;
        if bytes > MAX_ANSWER_BYTES {
            (exhausted, reached) = (false, last.map(encode_cursor));
            break;
        }
        last = Some(cursor);
        traces.push(trace);
    }
    wire::SearchAnswer {
        traces,
        exhausted,
        reached,
        receipt: Some(receipt),
    }
}

pub(crate) fn decode_search(
    mut answer: wire::SearchAnswer,
    filter: &SearchFilter,
) -> Result<SearchPart, Malformed> {
    let damage = decode_damage(answer.receipt.as_mut())?;
    let reached = answer.reached.as_ref().map(decode_cursor).transpose()?;
    let traces = answer.traces.into_iter().map(decode_found);
    Ok(SearchPart {
        reached: match answer.exhausted {
            true => Reached::End,
            false => Reached::Until(reached),
        },
        answer: SearchAnswer {
            traces: traces.collect::<Result<_, _>>()?,
            next: None,
            receipt: decode_receipt(answer.receipt, filter.from, filter.to)?,
        },
        damage,
    })
}

fn encode_found(found: FoundTrace) -> wire::FoundTrace {
    let spans = found.matched_spans.iter().flat_map(|span| span.0);
    wire::FoundTrace {
        trace_id: found.trace_id.0.to_vec().into(),
        root_service: found.root_service,
        root_operation: found.root_operation,
        start: found.start.0,
        duration: found.duration,
        status: found.status as u32,
        span_count: found.span_count,
        error_count: found.error_count,
        services: found.services,
        state: encode_state(found.state),
        matched_spans: spans.collect::<Vec<u8>>().into(),
        lead: found.start.since(found.earliest),
    }
}

fn decode_found(found: wire::FoundTrace) -> Result<FoundTrace, Malformed> {
    let (spans, rest) = found.matched_spans.as_chunks::<8>();
    if !rest.is_empty() || spans.len() > MAX_MATCHED_SPANS {
        return Err(malformed("matched_spans")());
    }
    Ok(FoundTrace {
        trace_id: decode_trace_id(&found.trace_id)?,
        root_service: found.root_service,
        root_operation: found.root_operation,
        start: UnixNanos(found.start),
        earliest: UnixNanos(found.start).minus(found.lead),
        duration: found.duration,
        status: decode_status(found.status)?,
        span_count: found.span_count,
        error_count: found.error_count,
        services: found.services,
        state: decode_state(found.state)?,
        matched_spans: spans.iter().copied().map(SpanId).collect(),
    })
}

fn decode_status(number: u32) -> Result<StatusCode, Malformed> {
    match number {
        0 => Ok(StatusCode::Unset),
        1 => Ok(StatusCode::Ok),
        2 => Ok(StatusCode::Error),
        _ => Err(malformed("status")()),
    }
}

pub(super) fn encode_state(state: TraceState) -> u32 {
    match state {
        TraceState::Open => 1,
        TraceState::Kept => 2,
        TraceState::Dropped => 3,
    }
}

pub(super) fn decode_state(number: u32) -> Result<TraceState, Malformed> {
    match number {
        1 => Ok(TraceState::Open),
        2 => Ok(TraceState::Kept),
        3 => Ok(TraceState::Dropped),
        _ => Err(malformed("state")()),
    }
}
