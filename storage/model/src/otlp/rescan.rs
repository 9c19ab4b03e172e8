//! The scan of spans that were accepted before: replay of the journal.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::report::InvalidRequest;
use super::scan::{check_size, normalise_times, run};
use super::walk::{KeyLengths, Walker};
use super::wire::Reader;
use crate::batch::{Context, Slice, SpanBatch, SpanHeader};
use crate::ids::{TenantId, UnixNanos};
use crate::interest::Interests;

/// Reads the headers of spans that a scan took. `buffer` holds everything; the four slices of each context point into
/// it, as do the spans, each given with the index of its context. Service, attributes and headers are filled in.
///
/// With the interests of the first scan the batch means the same as that scan's. With other interests, values that
/// are not UTF-8 are passed over: nobody had checked them. Limits and the attribute policy are not applied again.
///
/// # Errors
/// When a slice or an index points outside, or a message is not what a scan accepts.
pub fn rescan(
    buffer: Bytes,
    tenant: TenantId,
    received_at: UnixNanos,
    mut contexts: Vec<Context>,
    spans: impl Iterator<Item = (u32, Slice)>,
    interests: &Interests,
) -> Result<SpanBatch, InvalidRequest> {
    check_size(buffer.len())?;
    let walker = Walker {
        interests,
        lengths: KeyLengths::of(interests),
        policy: None,
        strict: false,
    };
    let mut attributes = Vec::new();
    let mut previous: Option<Context> = None;
    for context in &mut contexts {
        match previous {
            // The scopes of one resource follow each other.
            Some(previous) if previous.resource == context.resource => {
                context.service = previous.service;
                context.attributes = previous.attributes;
            }
            _ => {
                let before = attributes.len();
                let message = message_at(&buffer, context.resource, "Resource")?;
                let walked = walker
                    .resource(message, &mut attributes)
                    .map_err(InvalidRequest::within("Resource"))?;
                if let Some(fault) = walked.fault {
                    return Err(InvalidRequest::new("Resource", fault.description()));
                }
                context.service = walked.service;
                context.attributes = run(before, attributes.len());
            }
        }
        previous = Some(*context);
    }
    let mut headers = Vec::with_capacity(spans.size_hint().0);
    for (context, slice) in spans {
        if context as usize >= contexts.len() {
            return Err(InvalidRequest::new("Span", "its context does not exist"));
        }
        let before = attributes.len();
        let message = message_at(&buffer, slice, "Span")?;
        let mut header: SpanHeader = walker
            .span(message, &mut attributes)
            .map_err(|reason| InvalidRequest::new("Span", reason.description()))?
            .header;
        normalise_times(&mut header, received_at);
        header.context = context;
        header.hash = xxh3_64(message.rest());
        header.attributes = run(before, attributes.len());
        headers.push(header);
    }
    Ok(SpanBatch {
        tenant,
        received_at,
        buffer,
        contexts,
        spans: headers,
        attributes,
    })
}

fn message_at<'a>(
    buffer: &'a [u8],
    slice: Slice,
    part: &'static str,
) -> Result<Reader<'a>, InvalidRequest> {
    let start = slice.offset as usize;
    buffer
        .get(start..start.saturating_add(slice.len as usize))
        .map(|bytes| Reader::new(bytes, start))
        .ok_or_else(|| InvalidRequest::new(part, "it lies outside of the buffer"))
}
