//! Spans on their way through a node: the bytes as they came, and what the scanner read from them.
//!
//! Nothing here owns a span's strings: everything points into one buffer. Copy out what outlives the commit, for a
//! slice of the buffer pins the whole request.

use bytes::Bytes;

use crate::ids::{SpanId, TenantId, TraceId, UnixNanos};

/// A piece of [`SpanBatch::buffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slice {
    /// First byte.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Slice {
    /// The bytes, or nothing when the slice does not lie inside `buffer`.
    #[must_use]
    pub fn of(self, buffer: &[u8]) -> &[u8] {
        let start = self.offset as usize;
        buffer
            .get(start..start.saturating_add(self.len as usize))
            .unwrap_or_default()
    }

    /// True when it holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// A run of entries of [`SpanBatch::attributes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// First entry.
    pub start: u32,
    /// One past the last entry.
    pub end: u32,
}

/// `SpanKind` of OTLP; numbers outside 0 to 5 are read as `Unspecified`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum SpanKind {
    /// Not given.
    #[default]
    Unspecified = 0,
    /// Inside an application.
    Internal = 1,
    /// The server's side of a call.
    Server = 2,
    /// The client's side of a call.
    Client = 3,
    /// Puts a message on a queue.
    Producer = 4,
    /// Takes a message from a queue.
    Consumer = 5,
}

impl SpanKind {
    /// From OTLP's number.
    #[must_use]
    pub fn from_wire(number: i32) -> Self {
        match number {
            1 => Self::Internal,
            2 => Self::Server,
            3 => Self::Client,
            4 => Self::Producer,
            5 => Self::Consumer,
            _ => Self::Unspecified,
        }
    }

    /// The lowercase word that our API and Tempo's use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// `Status.StatusCode` of OTLP; numbers outside 0 to 2 are read as `Unset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum StatusCode {
    /// The default.
    #[default]
    Unset = 0,
    /// Marked as a success by the application.
    Ok = 1,
    /// An error.
    Error = 2,
}

impl StatusCode {
    /// From OTLP's number.
    #[must_use]
    pub fn from_wire(number: i32) -> Self {
        match number {
            1 => Self::Ok,
            2 => Self::Error,
            _ => Self::Unset,
        }
    }

    /// The lowercase word that our API uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// The value of an attribute that somebody asked for. Arrays, maps and bytes are not compared and not indexed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AttributeValue {
    /// UTF-8 text (checked).
    Text(Slice),
    /// A 64-bit integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A boolean.
    Bool(bool),
}

/// One attribute whose key is in the [`Interests`](crate::interest::Interests) of the scan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attribute {
    /// Index of the key in the interests.
    pub key: u16,
    /// Its value.
    pub value: AttributeValue,
}

/// A resource and an instrumentation scope, as one `(ResourceSpans, ScopeSpans)` pair of the request gave them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Context {
    /// The bytes of the `Resource` message (all occurrences, concatenated: protobuf merges them).
    pub resource: Slice,
    /// `ResourceSpans.schema_url`.
    pub resource_schema_url: Slice,
    /// The bytes of the `InstrumentationScope` message.
    pub scope: Slice,
    /// `ScopeSpans.schema_url`.
    pub scope_schema_url: Slice,
    /// Text of the resource's `service.name`; empty when absent.
    pub service: Slice,
    /// The resource's attributes of interest.
    pub attributes: Run,
}

impl Context {
    /// Bytes that are stored of it.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        let parts = [
            self.resource,
            self.resource_schema_url,
            self.scope,
            self.scope_schema_url,
        ];
        parts.iter().map(|part| part.len as usize).sum()
    }
}

/// What the scanner read of one span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanHeader {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// The parent; zero for a root.
    pub parent_span_id: SpanId,
    /// Index into [`SpanBatch::contexts`].
    pub context: u32,
    /// The bytes of the `Span` message, after the attribute policy.
    pub span: Slice,
    /// The name (checked UTF-8).
    pub name: Slice,
    /// `trace_state`, verbatim.
    pub trace_state: Slice,
    /// Start, as the client said.
    pub start: UnixNanos,
    /// End, as the client said; never before `start` (an earlier end is raised to the start for the header and counted).
    pub end: UnixNanos,
    /// Kind.
    pub kind: SpanKind,
    /// Status code.
    pub status: StatusCode,
    /// W3C trace flags and more, as OTLP's `flags`.
    pub flags: u32,
    /// XXH3-64 of the bytes of `span`, seed 0: with the ids, the key by which duplicates are known.
    pub hash: u64,
    /// The span's attributes of interest.
    pub attributes: Run,
}

/// Spans of one tenant that arrived together.
///
/// Invariants: every slice lies inside `buffer`, every run inside `attributes`, every context index inside
/// `contexts`; no trace id and no span id is zero.
#[derive(Debug, Clone)]
pub struct SpanBatch {
    /// Whose spans.
    pub tenant: TenantId,
    /// When the node had received them, by its own clock.
    pub received_at: UnixNanos,
    /// What every slice points into.
    pub buffer: Bytes,
    /// Resources and scopes.
    pub contexts: Vec<Context>,
    /// The spans, in the order of the request.
    pub spans: Vec<SpanHeader>,
    /// Attributes of interest of spans and resources.
    pub attributes: Vec<Attribute>,
}

impl SpanBatch {
    /// The bytes of a slice.
    #[must_use]
    pub fn bytes(&self, slice: Slice) -> &[u8] {
        slice.of(&self.buffer)
    }

    /// The text of a slice; empty when it is not UTF-8.
    #[must_use]
    pub fn text(&self, slice: Slice) -> &str {
        std::str::from_utf8(slice.of(&self.buffer)).unwrap_or_default()
    }

    /// The context of a span.
    #[must_use]
    pub fn context(&self, span: &SpanHeader) -> Context {
        self.contexts
            .get(span.context as usize)
            .copied()
            .unwrap_or_default()
    }

    /// The attributes of a run.
    #[must_use]
    pub fn attributes(&self, run: Run) -> &[Attribute] {
        self.attributes
            .get(run.start as usize..run.end as usize)
            .unwrap_or_default()
    }
}
