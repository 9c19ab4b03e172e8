//! Builds segments in memory, and merges them.

use spandrel_model::summary::TraceSummary;
use tantivy::directory::{OwnedBytes, RamDirectory};
use tantivy::fastfield::{AliveBitSet, write_alive_bitset};
use tantivy::indexer::merge_filtered_segments;
use tantivy::{BitSet, Index, SingleSegmentIndexWriter, TantivyError};
use xxhash_rust::xxh3::xxh3_64;

use super::blob::pack;
use super::limits::MAX_BUILD_BYTES;
use super::schema::{DocumentSchema, build_settings, merge_settings};
use super::segment::OpenSegment;

/// Documents between two looks at the memory that a segment takes.
const DOCUMENTS_PER_CHECK: usize = 64;
/// Bytes of tantivy's budget per document: it sizes the first hash table by it.
const BUDGET_BYTES_PER_DOCUMENT: usize = 1 << 10;
/// Bounds of that budget in bytes; below the first tantivy refuses.
const BUDGET_BYTES: std::ops::RangeInclusive<usize> = (1 << 20)..=(64 << 20);

/// A finished segment, not on disk yet.
pub(super) struct Built {
    pub(super) blob: Vec<u8>,
    pub(super) hash: u64,
    pub(super) documents: u32,
}

/// Builds one segment of as many of the first `summaries` as its memory allows, at least one, and returns how many
/// they were. `summaries` are ordered by start, newest first, and not empty.
pub(super) fn build(
    schema: &DocumentSchema,
    summaries: &[&TraceSummary],
) -> Result<(Built, usize), TantivyError> {
    let raw = RamDirectory::create();
    let budget = (summaries.len() * BUDGET_BYTES_PER_DOCUMENT)
        .clamp(*BUDGET_BYTES.start(), *BUDGET_BYTES.end());
    let mut writer: SingleSegmentIndexWriter = Index::builder()
        .schema(schema.schema.clone())
        .settings(build_settings())
        .single_segment_index_writer(raw.clone(), budget)?;
    let mut taken = 0;
    for chunk in summaries.chunks(DOCUMENTS_PER_CHECK) {
        for summary in chunk {
            writer.add_document(schema.document(summary))?;
        }
        taken += chunk.len();
        if writer.mem_usage() >= MAX_BUILD_BYTES {
            break;
        }
    }
    let index = writer.finalize()?;
    Ok((finish(&index, &raw)?, taken))
}

/// Merges segments into one without the documents that are named beside each, ascending. At least one must remain.
pub(super) fn merge(sources: &[(&OpenSegment, &[u32])]) -> Result<Built, TantivyError> {
    let raw = RamDirectory::create();
    let segments: Vec<_> = sources
        .iter()
        .map(|(open, _)| open.merge_source())
        .collect();
    let mut alive = Vec::with_capacity(sources.len());
    for (open, stale) in sources {
        alive.push(alive_without(stale, open.documents())?);
    }
    let index = merge_filtered_segments(&segments, merge_settings(), alive, raw.clone())?;
    finish(&index, &raw)
}

fn alive_without(stale: &[u32], documents: u32) -> Result<Option<AliveBitSet>, TantivyError> {
    if stale.is_empty() {
        return Ok(None);
    }
    let mut alive = BitSet::with_max_value_and_full(documents);
    for &document in stale.iter().filter(|&&document| document < documents) {
        alive.remove(document);
    }
    let mut bytes = Vec::new();
    write_alive_bitset(&alive, &mut bytes)?;
    Ok(Some(AliveBitSet::open(OwnedBytes::new(bytes))))
}

fn finish(index: &Index, raw: &RamDirectory) -> Result<Built, TantivyError> {
    let segments = index.searchable_segment_metas()?;
    let blob = pack(index, raw)?;
    Ok(Built {
        hash: xxh3_64(&blob),
        documents: segments.iter().map(|segment| segment.max_doc()).sum(),
        blob,
    })
}
