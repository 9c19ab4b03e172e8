//! What a document of the index is: the terms of a summary, and the columns that a hit is built from.

use spandrel_model::ids::{TenantId, TraceId};
use spandrel_model::limits::MAX_INDEXED_VALUE_BYTES;
use spandrel_model::summary::TraceSummary;
use tantivy::TantivyDocument;
use tantivy::schema::{BytesOptions, FAST, Field, Schema};
use tantivy::store::Compressor;
use tantivy::{IndexSettings, IndexSortByField, Order};

use super::limits::MAX_TERM_BYTES;
use super::terms::TenantTerms;

pub(super) const TERMS: &str = "terms";
pub(super) const START: &str = "start";
pub(super) const DURATION: &str = "duration";
pub(super) const TRACE_HIGH: &str = "trace_high";
pub(super) const TRACE_LOW: &str = "trace_low";
pub(super) const SHARD: &str = "shard";
pub(super) const FRAGMENT: &str = "fragment";

/// The schema with its fields resolved.
pub(super) struct DocumentSchema {
    pub(super) schema: Schema,
    terms: Field,
    start: Field,
    duration: Field,
    trace_high: Field,
    trace_low: Field,
    shard: Field,
    fragment: Field,
}

impl DocumentSchema {
    pub(super) fn new() -> Self {
        let mut builder = Schema::builder();
        Self {
            terms: builder.add_bytes_field(TERMS, BytesOptions::default().set_indexed()),
            start: builder.add_u64_field(START, FAST),
            duration: builder.add_u64_field(DURATION, FAST),
            trace_high: builder.add_u64_field(TRACE_HIGH, FAST),
            trace_low: builder.add_u64_field(TRACE_LOW, FAST),
            shard: builder.add_u64_field(SHARD, FAST),
            fragment: builder.add_u64_field(FRAGMENT, FAST),
            schema: builder.build(),
        }
    }

    pub(super) fn document(&self, summary: &TraceSummary) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        for term in terms_of(summary) {
            document.add_bytes(self.terms, &term);
        }
        let (high, low) = trace_halves(summary.trace_id);
        document.add_u64(self.start, summary.start.0);
        document.add_u64(self.duration, summary.duration_nanos());
        document.add_u64(self.trace_high, high);
        document.add_u64(self.trace_low, low);
        document.add_u64(self.shard, u64::from(summary.shard.0));
        document.add_u64(self.fragment, summary.fragment.0);
        document
    }
}

/// Settings of a segment as it is built: documents are added in order already, which spares tantivy's own sort.
pub(super) fn build_settings() -> IndexSettings {
    IndexSettings {
        // Nothing is stored, and the engine would otherwise compress on a thread of its own.
        docstore_compression: Compressor::None,
        docstore_compress_dedicated_thread: false,
        ..IndexSettings::default()
    }
}

/// Settings of a merge: keeps the newest start first.
pub(super) fn merge_settings() -> IndexSettings {
    IndexSettings {
        sort_by_field: Some(IndexSortByField {
            field: START.to_owned(),
            order: Order::Desc,
        }),
        ..build_settings()
    }
}

/// A trace id as the two columns hold it: both big-endian, so that pairs sort as ids do.
pub(super) fn trace_halves(trace_id: TraceId) -> (u64, u64) {
    let number = u128::from_be_bytes(trace_id.0);
    // The shift leaves 64 bits, and the low half is what is wanted of the other.
    #[allow(clippy::cast_possible_truncation)]
    ((number >> 64) as u64, number as u64)
}

/// The inverse of [`trace_halves`].
pub(super) fn trace_of_halves(high: u64, low: u64) -> TraceId {
    TraceId((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

/// True when the index does not name all that the summary stands for.
fn is_truncated(summary: &TraceSummary, longest_term: usize) -> bool {
    summary.truncated || longest_term > MAX_TERM_BYTES
}

/// The distinct terms of a summary.
fn terms_of(summary: &TraceSummary) -> Vec<Vec<u8>> {
    let tenant: &TenantId = &summary.tenant;
    let terms = TenantTerms::of(tenant);
    let mut found = Vec::with_capacity(2 + 4 * summary.classes.len() + summary.attributes.len());
    for class in &summary.classes {
        let (service, operation) = (&*class.service, &*class.operation);
        found.push(terms.status(class.status));
        found.push(terms.service_status(service, class.status));
        found.push(terms.operation_status(operation, class.status));
        found.push(terms.class(service, operation, class.kind, class.status));
    }
    for attribute in &summary.attributes {
        found.push(terms.attribute(&attribute.key, &attribute.value));
    }
    let longest = found.iter().map(Vec::len).max().unwrap_or_default();
    if is_truncated(summary, longest) {
        found.retain(|term| term.len() <= MAX_TERM_BYTES);
        found.push(terms.truncated());
    }
    found.push(terms.document());
    found.sort_unstable();
    found.dedup();
    found
}

/// True when an indexed text equal to `value` may be the cut beginning of a longer one.
pub(super) fn may_be_cut(value: &str) -> bool {
    // A cut keeps whole characters, of at most four bytes.
    value.len() + 4 > MAX_INDEXED_VALUE_BYTES
}
