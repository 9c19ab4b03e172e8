//! What the journal can be told.

use spandrel_model::ids::UnixNanos;

/// Settings of a journal. [`Default`] is what a node uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalOptions {
    /// A slice is closed after this many bytes of frames. Default 256 MiB. At most 4,294,967,295 frames.
    pub slice_bytes: u64,
    /// A slice is closed this long after its first frame, in nanoseconds. Default 5 minutes.
    pub slice_nanos: u64,
    /// Commit in two phases: one more fsync, which protects against bytes that were made to collide with redb's own
    /// checksums. Default false: each frame has its own checksum besides.
    pub two_phase: bool,
    /// Memory for decoded frames, in bytes. Default 16 MiB.
    pub frame_cache_bytes: usize,
    /// Memory for redb's own caches of all slices together, in bytes. Default 32 MiB.
    pub redb_cache_bytes: usize,
    /// Secret of the cluster that seeds the hashes of trace keys in new slices, so that no client can make traces
    /// that collide. Default 0.
    pub hash_seed: u64,
    /// How often the node's directory was opened: tells the frames of this process from those that an earlier one
    /// could not commit. Default 0.
    pub boot: u64,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            slice_bytes: 256 << 20,
            slice_nanos: 300 * UnixNanos::PER_SECOND,
            two_phase: false,
            frame_cache_bytes: 16 << 20,
            redb_cache_bytes: 32 << 20,
            hash_seed: 0,
            boot: 0,
        }
    }
}
