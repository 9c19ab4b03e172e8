//! Every bound of the disk, with its unit and its reason.

/// Decompression contexts that are kept for the next call, about 100 KB each: as many as queries and actors decompress
/// with at once on a common machine.
pub const MAX_IDLE_DECOMPRESSORS: usize = 8;

// The journal.

/// Most bytes of a frame before compression. A frame is about 256 KiB; one request of the largest size that is
/// admitted must still fit into one.
pub const MAX_FRAME_RAW_BYTES: usize = 128 << 20;
/// Most bytes of a compressed frame: incompressible bytes grow by far less than this margin.
pub const MAX_FRAME_BYTES: usize = MAX_FRAME_RAW_BYTES + (1 << 20);
/// Bytes of a row of a frame in a slice file, header included. redb gives a value a page of 2^k times 4 KiB; this and the
/// page's own fields just fit 16 KiB.
pub const FRAME_CHUNK_BYTES: usize = 16_300;
/// Bytes of a checkpoint that one row holds: with the page's own fields just under 64 KiB.
pub const CHECKPOINT_CHUNK_BYTES: usize = 65_000;
/// Most bytes of one shard's checkpoint.
pub const MAX_CHECKPOINT_BYTES: usize = 256 << 20;
/// Entries in a chunk of a sealed verdict index: about 10 bytes each, so that a chunk stays under 16 KiB.
pub const VERDICT_INDEX_CHUNK_ENTRIES: usize = 1_500;
/// Entries in a chunk of a sealed location index: about 4 bytes each; a lookup decodes one chunk.
pub const LOCATION_CHUNK_ENTRIES: usize = 1_024;
/// Frames that [`crate::journal::Journal::frames_after`] names in one answer.
pub const MAX_FRAME_IDS: usize = 65_536;
/// Slice files that share the budget of redb's caches; the oldest are hardly ever read.
pub const CACHE_SHARES: usize = 64;
/// Smallest cache of one open redb file, in bytes: the inner pages of its trees.
pub const MIN_REDB_CACHE_BYTES: usize = 64 << 10;

// The disk.

/// Bytes of the file that names what a sync failed on: about 150 names. A process that meets more failed syncs than
/// that before it has stopped trusts nothing that the system holds in memory.
pub const SUSPICION_FILE_BYTES: usize = 8 << 10;
/// Bytes of a file that are rewritten at a time after a failed sync.
pub const REWRITE_CHUNK_BYTES: usize = 1 << 20;

// The journal's salvage.

/// Bytes of a damaged file that are searched at a time.
pub const SALVAGE_WINDOW_BYTES: usize = 4 << 20;
/// Bytes of frames that are taken back in one transaction: the store holds about as much in memory.
pub const SALVAGE_COMMIT_BYTES: usize = 8 << 20;
