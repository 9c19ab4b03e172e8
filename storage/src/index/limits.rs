//! Every bound of the index, with its unit and its reason.

/// Documents of a segment as it is first built. Larger ones cost memory while building (about 0.5 KiB a document),
/// smaller ones cost twice the CPU per document (measured: 27 us at 500 documents, 12 us at 10,000 and more).
pub const MAX_SEGMENT_DOCUMENTS: usize = 50_000;
/// Bytes that a segment under construction may hold in memory before it is finished early, whatever its summaries
/// hold. Finishing it takes about as much again for the blob.
pub(super) const MAX_BUILD_BYTES: usize = 64 << 20;
/// Longest index term in bytes. Names are at most 1 KiB each and a class joins two; tantivy's own limit is near
/// 64 KiB. A summary with a longer term is indexed as truncated, so that a search verifies it.
pub(super) const MAX_TERM_BYTES: usize = 8 << 10;
/// Documents from which on a segment is left alone: merging it again would save little.
pub(super) const SMALL_SEGMENT_DOCUMENTS: u32 = 100_000;
/// Small segments that a bucket keeps before they are merged: each costs a search one more set of lookups.
pub(super) const MAX_SMALL_SEGMENTS: usize = 8;
/// Bytes of the segments that one merge takes together: the result is held in memory before it is written.
pub(super) const MAX_MERGE_BYTES: u64 = 64 << 20;
/// Segments held open: each keeps its readers (tens of KiB) beside its mapped file.
pub const DEFAULT_OPEN_SEGMENTS: usize = 512;
/// Most hits of one search: they are held in memory (about 56 bytes each, up to three times as many while merging).
pub const MAX_HITS: usize = 100_000;
/// Most names of one answer: as for hits, with up to 1 KiB each.
pub const MAX_INDEX_NAMES: usize = 10_000;
/// Times that a reader takes a fresh manifest because a merge removed a segment under it.
pub(super) const MAX_SNAPSHOT_RETRIES: usize = 8;
