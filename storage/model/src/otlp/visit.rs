//! All attributes of one span or resource: for conditions that the index cannot answer.

use super::number;
use super::report::InvalidRequest;
use super::value::{RawValue, walk_key_value};
use super::wire::{Reader, WireFault};

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
