//! Collects the spans of kept traces and encodes them as a page.

use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;
use spandrel_model::ids::{Lsn, ShardId, TraceId, UnixNanos};
use spandrel_model::otlp::RawContext;

use super::cardinality::Cardinality;
use super::context::{ContextHash, StoredContext, put_context};
use super::encoder::{Encoder, Row};
use super::error::PageFull;
use super::limits::{MAX_PAGE_SPAN_BYTES, MAX_PAGE_SPANS};

/// What one verdict or late record stored of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentHead {
    /// The trace's shard.
    pub shard: ShardId,
    /// The trace.
    pub trace_id: TraceId,
    /// The lsn of the verdict or late record.
    pub fragment: Lsn,
    /// When the node had received the fragment's spans.
    pub received_at: UnixNanos,
}

impl FragmentHead {
    /// The order of a page.
    #[must_use]
    pub fn key(&self) -> (ShardId, TraceId, Lsn) {
        (self.shard, self.trace_id, self.fragment)
    }
}

/// A span with its resource and scope.
#[derive(Debug, Clone, Copy)]
pub struct PageSpan<'a> {
    /// The resource and scope.
    pub context: RawContext<'a>,
    /// The bytes of the `Span` message.
    pub span: &'a [u8],
}

/// A fragment and where its spans lie in the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedFragment {
    /// The fragment.
    pub head: FragmentHead,
    /// Its first row.
    pub first_row: u32,
    /// Its number of rows, at least 1.
    pub rows: u32,
}

/// A page, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPage {
    /// The page: versioned, checksummed. docs/formats/page.md.
    pub bytes: Bytes,
    /// Its fragments in order of (shard, trace id, fragment), each once.
    pub fragments: Vec<PlacedFragment>,
    /// The resources and scopes that the block must hold, each once.
    pub contexts: Vec<StoredContext>,
    /// Earliest start of its spans.
    pub min_start: UnixNanos,
    /// Latest start of its spans.
    pub max_start: UnixNanos,
    /// Number of its spans.
    pub span_count: u32,
}

/// Contexts of a fragment that are known again by where they lie in memory.
const SEEN_CONTEXTS: usize = 16;

#[derive(Debug)]
struct Pending {
    head: FragmentHead,
    first: usize,
    count: usize,
}

/// Builds pages, one after another: its memory is reused. Blocks the thread only for computing.
///
/// Invariants: every row lies inside the arena and names a known context; rows of a fragment are consecutive.
#[derive(Debug, Default)]
pub struct PageBuilder {
    arena: Vec<u8>,
    rows: Vec<Row>,
    pending: Vec<Pending>,
    contexts: Vec<StoredContext>,
    context_numbers: HashMap<ContextHash, u32, foldhash::fast::FixedState>,
    context_buffer: Vec<u8>,
    encoder: Encoder,
}

impl PageBuilder {
    /// An empty builder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of spans so far.
    #[must_use]
    pub fn span_count(&self) -> u32 {
        // `push` keeps the number below its limit.
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of span messages so far.
    #[must_use]
    pub fn span_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Adds the spans of a fragment, copying them. Spans of a fragment that was added before join it. A fragment
    /// without spans adds nothing.
    ///
    /// # Errors
    /// When the page would pass [`MAX_PAGE_SPANS`] or [`MAX_PAGE_SPAN_BYTES`]; nothing is added then.
    pub fn push(&mut self, head: FragmentHead, spans: &[PageSpan<'_>]) -> Result<(), PageFull> {
        let bytes: usize = spans.iter().map(|span| span.span.len()).sum();
        check(
            "spans",
            self.rows.len() + spans.len(),
            MAX_PAGE_SPANS as usize,
        )?;
        check("span bytes", self.arena.len() + bytes, MAX_PAGE_SPAN_BYTES)?;
        if spans.is_empty() {
            return Ok(());
        }
        self.pending.push(Pending {
            head,
            first: self.rows.len(),
            count: spans.len(),
        });
        // A trace has few contexts, and goes back and forth between them.
        let mut seen: SmallVec<[(&RawContext<'_>, u32); SEEN_CONTEXTS]> = SmallVec::new();
        for span in spans {
            let mut known = seen.iter();
            let context = match known.find(|(known, _)| same_slices(known, &span.context)) {
                Some((_, number)) => *number,
                None => {
                    let number = self.context_number(&span.context);
                    if seen.len() < SEEN_CONTEXTS {
                        seen.push((&span.context, number));
                    }
                    number
                }
            };
            // Checked above: the arena is shorter than 2^32.
            let offset = u32::try_from(self.arena.len()).unwrap_or(u32::MAX);
            let len = u32::try_from(span.span.len()).unwrap_or(u32::MAX);
            self.arena.extend_from_slice(span.span);
            self.rows.push(Row {
                offset,
                len,
                context,
            });
        }
        Ok(())
    }

    fn context_number(&mut self, context: &RawContext<'_>) -> u32 {
        self.context_buffer.clear();
        put_context(&mut self.context_buffer, context);
        let hash = ContextHash::of(&self.context_buffer);
        // There are at most as many contexts as spans.
        let next = u32::try_from(self.contexts.len()).unwrap_or(u32::MAX);
        let number = *self.context_numbers.entry(hash).or_insert(next);
        if number == next {
            self.contexts.push(StoredContext {
                hash,
                bytes: Bytes::copy_from_slice(&self.context_buffer),
            });
        }
        number
    }

    /// How many values the attribute keys had in the pages so far.
    pub fn cardinality(&mut self) -> &mut Cardinality {
        &mut self.encoder.cardinality
    }

    /// Encodes what was added; `None` when that was nothing. The builder is empty afterwards.
    ///
    /// # Errors
    /// When zstd cannot work, which means that memory is short.
    pub fn finish(&mut self) -> std::io::Result<Option<EncodedPage>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        self.pending.sort_by_key(|pending| pending.head.key());
        let mut rows = Vec::with_capacity(self.rows.len());
        let mut fragments: Vec<PlacedFragment> = Vec::with_capacity(self.pending.len());
        for pending in &self.pending {
            let first_row = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            let of_fragment = self.rows.get(pending.first..pending.first + pending.count);
            rows.extend_from_slice(of_fragment.unwrap_or_default());
            let count = u32::try_from(pending.count).unwrap_or(u32::MAX);
            match fragments.last_mut() {
                Some(last) if last.head.key() == pending.head.key() => last.rows += count,
                _ => fragments.push(PlacedFragment {
                    head: pending.head,
                    first_row,
                    rows: count,
                }),
            }
        }
        let hashes: Vec<ContextHash> = self.contexts.iter().map(|context| context.hash).collect();
        let encoded = self
            .encoder
            .encode(&self.arena, &rows, &fragments, &hashes)?;
        let page = EncodedPage {
            bytes: Bytes::from(encoded.bytes),
            fragments,
            contexts: std::mem::take(&mut self.contexts),
            min_start: UnixNanos(encoded.counts.min_start),
            max_start: UnixNanos(encoded.counts.max_start),
            span_count: encoded.counts.spans,
        };
        self.arena.clear();
        self.rows.clear();
        self.pending.clear();
        self.context_numbers.clear();
        Ok(Some(page))
    }
}

/// True when both are the very same bytes in memory, which is cheaper to see than equality.
fn same_slices(left: &RawContext<'_>, right: &RawContext<'_>) -> bool {
    std::ptr::eq(left.resource, right.resource)
        && std::ptr::eq(left.scope, right.scope)
        && std::ptr::eq(left.resource_schema_url, right.resource_schema_url)
        && std::ptr::eq(left.scope_schema_url, right.scope_schema_url)
}

fn check(what: &'static str, value: usize, limit: usize) -> Result<(), PageFull> {
    if value <= limit {
        return Ok(());
    }
    Err(PageFull {
        what,
        value: value as u64,
        limit: limit as u64,
    })
}
