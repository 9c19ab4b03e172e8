//! Writing spans back as `TracesData`.

use bytes::Bytes;

use super::number;
use super::wire::{bytes_field_len, put_bytes_field};

/// A resource and a scope as bytes: message contents, and the text of the schema urls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawContext<'a> {
    /// Content of the `Resource`; empty when absent.
    pub resource: &'a [u8],
    /// `ResourceSpans.schema_url`.
    pub resource_schema_url: &'a [u8],
    /// Content of the `InstrumentationScope`; empty when absent.
    pub scope: &'a [u8],
    /// `ScopeSpans.schema_url`.
    pub scope_schema_url: &'a [u8],
}

/// Builds a `TracesData` (or `ExportTraceServiceRequest`: the same wire form) from spans. Spans with equal contexts
/// that follow each other share one `ResourceSpans` and `ScopeSpans`. Spans are not checked.
///
/// Invariant: while `resource` is `None` nothing is pending, and the pending buffers are empty.
#[derive(Debug, Default)]
pub struct TracesDataWriter {
    /// Finished `ResourceSpans`.
    done: Vec<u8>,
    /// `ScopeSpans` of the resource under way.
    scopes: Vec<u8>,
    /// Spans of the scope under way.
    spans: Vec<u8>,
    resource: Option<Level>,
    scope: Option<Level>,
    span_count: usize,
}

/// A resource or scope under way, with its schema url.
#[derive(Debug, PartialEq, Eq)]
struct Level {
    message: Vec<u8>,
    schema_url: Vec<u8>,
}

impl Level {
    fn is(&self, message: &[u8], schema_url: &[u8]) -> bool {
        self.message == message && self.schema_url == schema_url
    }

    fn len_with(&self, children_len: usize) -> usize {
        let field = |bytes: &[u8]| match bytes.len() {
            0 => 0,
            len => bytes_field_len(len),
        };
        field(&self.message) + children_len + field(&self.schema_url)
    }

    /// Moves the message with its children into `out` as field `number`.
    fn put(&self, children: &mut Vec<u8>, number: u32, out: &mut Vec<u8>) {
        let mut content = Vec::with_capacity(self.len_with(children.len()));
        if !self.message.is_empty() {
            put_bytes_field(&mut content, number::CONTEXT, &self.message);
        }
        content.append(children);
        if !self.schema_url.is_empty() {
            put_bytes_field(&mut content, number::SCHEMA_URL, &self.schema_url);
        }
        put_bytes_field(out, number, &content);
    }
}

impl TracesDataWriter {
    /// A writer without spans.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a span.
    pub fn push(&mut self, context: &RawContext<'_>, span: &[u8]) {
        let same_resource = self
            .resource
            .as_ref()
            .is_some_and(|level| level.is(context.resource, context.resource_schema_url));
        if !same_resource {
            self.close_resource();
            self.resource = Some(Level {
                message: context.resource.to_vec(),
                schema_url: context.resource_schema_url.to_vec(),
            });
        }
        let same_scope = self
            .scope
            .as_ref()
            .is_some_and(|level| level.is(context.scope, context.scope_schema_url));
        if !same_scope {
            self.close_scope();
            self.scope = Some(Level {
                message: context.scope.to_vec(),
                schema_url: context.scope_schema_url.to_vec(),
            });
        }
        put_bytes_field(&mut self.spans, number::CHILDREN, span);
        self.span_count += 1;
    }

    /// Bytes that [`Self::finish`] would return now.
    #[must_use]
    pub fn len(&self) -> usize {
        let scope = match &self.scope {
            Some(level) => bytes_field_len(level.len_with(self.spans.len())),
            None => 0,
        };
        let resource = match &self.resource {
            Some(level) => bytes_field_len(level.len_with(self.scopes.len() + scope)),
            None => 0,
        };
        self.done.len() + resource
    }

    /// True when no span was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span_count == 0
    }

    /// Spans pushed.
    #[must_use]
    pub fn span_count(&self) -> usize {
        self.span_count
    }

    /// The message.
    #[must_use]
    pub fn finish(mut self) -> Bytes {
        self.close_resource();
        Bytes::from(self.done)
    }

    fn close_scope(&mut self) {
        if let Some(level) = self.scope.take() {
            level.put(&mut self.spans, number::CHILDREN, &mut self.scopes);
        }
    }

    fn close_resource(&mut self) {
        self.close_scope();
        if let Some(level) = self.resource.take() {
            level.put(&mut self.scopes, number::RESOURCE_SPANS, &mut self.done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contexts_that_follow_each_other_are_shared() {
        let context = |resource, scope| RawContext {
            resource,
            scope,
            ..RawContext::default()
        };
        let mut writer = TracesDataWriter::new();
        assert!(writer.is_empty());
        for (resource, scope, expected_len) in [
            // span 4 + 2, scope 2, resource 2 + 2; the scope and resource messages take 3 each.
            (b"r", b"s", 16),
            (b"r", b"s", 22),
            (b"r", b"t", 33),
            (b"q", b"t", 49),
        ] {
            writer.push(&context(resource, scope), b"span");
            assert_eq!(writer.len(), expected_len);
        }
        assert_eq!(writer.span_count(), 4);
        assert_eq!(writer.finish().len(), 49);
    }
}
