//! All attributes of one span or resource, for conditions that the index cannot answer; all spans of a `TracesData`,
//! for answers that are put together from several.

use super::number;
use super::report::InvalidRequest;
use super::value::{RawValue, walk_key_value};
use super::wire::{Reader, WireFault};
use super::writer::RawContext;

/// Calls `visit` with each attribute of a span, in order. Attributes whose key is not UTF-8 are passed over.
///
/// # Errors
/// When the bytes are no `Span` message; attributes before the fault were visited.
pub fn visit_attributes<'a>(
    span: &'a [u8],
    visit: &mut dyn FnMut(&'a str, RawValue<'a>),
) -> Result<(), InvalidRequest> {
    visit_field(span, number::SPAN_ATTRIBUTES, visit).map_err(InvalidRequest::within("Span"))
}

/// Calls `visit` with each attribute of a resource, in order. Attributes whose key is not UTF-8 are passed over.
///
/// # Errors
/// When the bytes are no `Resource` message; attributes before the fault were visited.
pub fn visit_resource_attributes<'a>(
    resource: &'a [u8],
    visit: &mut dyn FnMut(&'a str, RawValue<'a>),
) -> Result<(), InvalidRequest> {
    visit_field(resource, number::RESOURCE_ATTRIBUTES, visit)
        .map_err(InvalidRequest::within("Resource"))
}

fn visit_field<'a>(
    message: &'a [u8],
    wanted: u32,
    visit: &mut dyn FnMut(&'a str, RawValue<'a>),
) -> Result<(), WireFault> {
    let mut rest = Reader::new(message, 0);
    while !rest.is_empty() {
        let (number, field) = rest.field()?;
        if number == wanted {
            let (key, value) = walk_key_value(field.bytes()?, 0)?;
            if let Ok(key) = std::str::from_utf8(key.rest()) {
                visit(key, value.raw());
            }
        }
    }
    Ok(())
}

/// Calls `visit` with each span of a `TracesData` and its context, in order: what `TracesDataWriter` was given.
///
/// # Errors
/// When the bytes are no `TracesData` message; spans before the fault were visited.
pub fn visit_spans<'a>(
    traces: &'a [u8],
    visit: &mut dyn FnMut(&RawContext<'a>, &'a [u8]),
) -> Result<(), InvalidRequest> {
    let mut rest = Reader::new(traces, 0);
    let mut walk = || {
        while !rest.is_empty() {
            let (number, field) = rest.field()?;
            if number == number::RESOURCE_SPANS {
                visit_resource_spans(field.bytes()?.rest(), visit)?;
            }
        }
        Ok(())
    };
    walk().map_err(InvalidRequest::within("TracesData"))
}

fn visit_resource_spans<'a>(
    message: &'a [u8],
    visit: &mut dyn FnMut(&RawContext<'a>, &'a [u8]),
) -> Result<(), WireFault> {
    let (resource, resource_schema_url) = context_of(message)?;
    each_child(message, &mut |scope_spans| {
        let (scope, scope_schema_url) = context_of(scope_spans)?;
        let context = RawContext {
            resource,
            resource_schema_url,
            scope,
            scope_schema_url,
        };
        each_child(scope_spans, &mut |span| {
            visit(&context, span);
            Ok(())
        })
    })
}

/// Resource or scope of a message, and its schema url: they may come behind the children.
fn context_of(message: &[u8]) -> Result<(&[u8], &[u8]), WireFault> {
    let mut rest = Reader::new(message, 0);
    let (mut context, mut schema_url): (&[u8], &[u8]) = (&[], &[]);
    while !rest.is_empty() {
        match rest.field()? {
            (number::CONTEXT, field) => context = field.bytes()?.rest(),
            (number::SCHEMA_URL, field) => schema_url = field.bytes()?.rest(),
            _ => {}
        }
    }
    Ok((context, schema_url))
}

fn each_child<'a>(
    message: &'a [u8],
    visit: &mut dyn FnMut(&'a [u8]) -> Result<(), WireFault>,
) -> Result<(), WireFault> {
    let mut rest = Reader::new(message, 0);
    while !rest.is_empty() {
        let (number, field) = rest.field()?;
        if number == number::CHILDREN {
            visit(field.bytes()?.rest())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::writer::TracesDataWriter;
    use super::*;

    proptest! {
        #[test]
        fn spans_are_visited_as_they_were_written(
            spans in proptest::collection::vec((0u8..3, 0u8..3, any::<[u8; 4]>()), 0..20),
        ) {
            let mut writer = TracesDataWriter::new();
            let text = [b"".as_slice(), b"one", b"two"];
            let context = |resource: u8, scope: u8| RawContext {
                resource: text[usize::from(resource)],
                resource_schema_url: text[usize::from(scope)],
                scope: text[usize::from(scope)],
                scope_schema_url: text[usize::from(resource)],
            };
            for (resource, scope, span) in &spans {
                writer.push(&context(*resource, *scope), span);
            }
            let bytes = writer.finish();
            let mut seen = Vec::new();
            visit_spans(&bytes, &mut |context, span| seen.push((*context, span.to_vec()))).unwrap();
            let given = spans
                .iter()
                .map(|(resource, scope, span)| (context(*resource, *scope), span.to_vec()));
            prop_assert_eq!(seen, given.collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = visit_spans(&bytes, &mut |_, _| {});
        }
    }
}
