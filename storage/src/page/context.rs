//! Resources and scopes: stored once per block under the hash of their content.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::compare::{AnyScalar, key_values};
use super::wire::{Field, Wire, put_bytes};
use spandrel_model::limits::UNKNOWN_SERVICE;

/// A resource and a scope as they came, with their schema URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawContext<'a> {
    /// The bytes of the `Resource` message.
    pub resource: &'a [u8],
    /// `ResourceSpans.schema_url`.
    pub resource_schema_url: &'a [u8],
    /// The bytes of the `InstrumentationScope` message.
    pub scope: &'a [u8],
    /// `ScopeSpans.schema_url`.
    pub scope_schema_url: &'a [u8],
}

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

/// Calls `visit` for each attribute of a `Resource` message.
pub(crate) fn resource_attributes<'a>(
    resource: &'a [u8],
    visit: &mut dyn FnMut(&'a [u8], AnyScalar<'a>),
) {
    let mut wire = Wire::new(resource);
    while !wire.is_empty() {
        match wire.field() {
            Some((1, Field::Bytes(pair))) => {
                let (key, value) = key_values(pair);
                visit(key, value);
            }
            Some(_) => {}
            None => return,
        }
    }
}

/// The service of a resource: its `service.name`, if that is text and not empty, else the placeholder.
pub(crate) fn service_of(resource: &[u8]) -> &[u8] {
    let mut service = &b""[..];
    resource_attributes(resource, &mut |key, value| {
        if let (b"service.name", AnyScalar::Text(text)) = (key, value)
            && service.is_empty()
        {
            service = text;
        }
    });
    match service {
        b"" => UNKNOWN_SERVICE.as_bytes(),
        known => known,
    }
}
