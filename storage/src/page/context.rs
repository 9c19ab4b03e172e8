//! Resources and scopes: stored once per block under the hash of their content.

use bytes::Bytes;
use spandrel_model::limits::UNKNOWN_SERVICE;
use spandrel_model::otlp::{RawContext, RawValue, visit_resource_attributes};
use xxhash_rust::xxh3::xxh3_128;

use super::wire::{Wire, put_bytes};

/// XXH3-128 of a context's stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextHash(pub [u8; 16]);

impl ContextHash {
    /// The hash of a stored form.
    #[must_use]
    pub fn of(stored: &[u8]) -> Self {
        Self(xxh3_128(stored).to_be_bytes())
    }
}

/// A resource and a scope in their stored form: four byte strings, each with its length as a varint before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContext {
    /// The hash of `bytes`.
    pub hash: ContextHash,
    /// The stored form.
    pub bytes: Bytes,
}

/// Appends the stored form of a context.
pub(super) fn put_context(out: &mut Vec<u8>, context: &RawContext<'_>) {
    put_bytes(out, context.resource);
    put_bytes(out, context.resource_schema_url);
    put_bytes(out, context.scope);
    put_bytes(out, context.scope_schema_url);
}

/// The context in a stored form; `None` when it is malformed.
#[must_use]
pub fn read_context(stored: &[u8]) -> Option<RawContext<'_>> {
    let mut wire = Wire::new(stored);
    let context = RawContext {
        resource: wire.minimal_bytes()?,
        resource_schema_url: wire.minimal_bytes()?,
        scope: wire.minimal_bytes()?,
        scope_schema_url: wire.minimal_bytes()?,
    };
    wire.is_empty().then_some(context)
}

/// The service of a resource: the first `service.name` that is text, as the scanner takes it; the placeholder when
/// there is none or it is empty.
pub(crate) fn service_of(resource: &[u8]) -> &str {
    let mut service = None;
    // What follows a fault is unknown to everybody else too.
    let _ = visit_resource_attributes(resource, &mut |key, value| {
        if let ("service.name", RawValue::Text(text)) = (key, value) {
            service.get_or_insert(text);
        }
    });
    match service {
        None | Some("") => UNKNOWN_SERVICE,
        Some(known) => known,
    }
}
