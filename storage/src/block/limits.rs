//! Bounds of block files, with unit and reason.

/// Bytes of a page's chunk: with its key it just fits redb's page of 16 KiB; whole pages as one value are rounded up
/// to a power of two and took half as much disk again (measured).
pub const CHUNK_BYTES: usize = 16_300;
/// Bytes of a row of the stored filter: 62 blocks of 64 bytes, which with its key and its checksum fits redb's page of 4
/// KiB.
pub const FILTER_ROW_BYTES: usize = 62 * 64;
/// Most locators in a leaf of redb's page of 4 KiB: with a key of 28 bytes, a row of at least five and where it ends.
pub const LEAF_LOCATORS: usize = 4_096 / 37;
/// Most tenants in such a leaf: with a name of at least a byte, a number of two and where the name ends.
pub const LEAF_TENANTS: usize = 4_096 / 7;
/// Bits of the filter per trace: with seven bits set in one block of 512, one unknown trace in about 60 is looked up
/// for nothing.
pub const FILTER_BITS_PER_TRACE: usize = 11;
/// Traces of the first layer of a growing filter; each further layer holds four times as many.
pub const FIRST_FILTER_LAYER_TRACES: usize = 4_096;
/// Most summaries of one stored batch: larger ones compress little better and cost a reader of one summary more.
pub const SUMMARY_BATCH: usize = 128;
/// Most raw bytes of a stored batch of summaries: 128 of the largest size fit.
pub const MAX_SUMMARY_BATCH_BYTES: usize = 64 << 20;
/// Pages that are read at most for one part of a copy: with a few fragments of each, some hundred milliseconds.
pub const EXPORT_PAGES: usize = 16;
/// Bytes of spans at which a part of a copy is large enough; the page with which it gets there is in it whole.
pub const EXPORT_BYTES: usize = 4 << 20;
/// Most tenants of one block: their numbers are 16 bits wide and the cluster has at most 10,000.
pub const MAX_BLOCK_TENANTS: usize = 65_535;
/// Fewest files that stay open: the current bucket, the one before it and those of a query.
pub const MIN_OPEN_FILES: usize = 4;
/// Least cache of an open file in bytes; redb works with none, slowly.
pub const MIN_FILE_CACHE_BYTES: usize = 64 << 10;
/// Files that may have a writer's share of the cache at once: the current bucket and the one before it.
pub const WRITER_SHARES: usize = 2;
/// Bytes of opened batches of summaries that stay in memory: about 200 batches of 40 KB, so 25,000 traces.
pub const SUMMARY_CACHE_BYTES: usize = 8 << 20;
/// Bytes of unpacked page columns that stay in memory: the columns that tell the matching spans of hits are about 60
/// KB a page of 5,000 spans, so those of 130 pages.
pub const COLUMN_CACHE_BYTES: usize = 8 << 20;
/// Most summaries that one call returns.
pub const MAX_SUMMARIES: usize = 100_000;
/// Slices of a tenant's traces of one shard in an inventory: with 64 shards, a difference in a million traces is looked for
/// among a thousand.
pub const INVENTORY_SLICES: u8 = 16;
