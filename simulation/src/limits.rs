//! Every bound of this crate, with its unit and its reason.

/// The instant at which every simulation begins, in seconds since the Unix epoch: 2026-01-01T00:00:00Z.
pub(crate) const EPOCH_SECONDS: u64 = 1_767_225_600;
/// Events that a report of a failure shows.
pub(crate) const REPORTED_EVENTS: usize = 50;
/// Stack of the thread of a run in bytes: debug builds of deep futures need more than the default.
pub(crate) const STACK_BYTES: usize = 64 << 20;
/// Tries of one request before its client gives up.
pub(crate) const MAX_TRIES: u32 = 40;
/// Spans of one export request at most.
pub(crate) const MAX_REQUEST_SPANS: usize = 60;
/// The same in a large run: each acknowledgement is followed by a fetch of every trace in it.
pub(crate) const MAX_LARGE_REQUEST_SPANS: usize = 600;
/// Milliseconds of a client's buffer: spans that end within it travel in one request.
pub(crate) const BATCH_MS: u64 = 400;
/// Milliseconds after a failed sync within which the node must have stopped.
pub(crate) const HALT_MS: u64 = 2_000;
/// Starts of the node within one run at most: a run that needs more does not terminate.
pub(crate) const MAX_LIVES: usize = 16;
/// Free bytes of the disk below which the node refuses spans.
pub(crate) const DISK_RESERVE_BYTES: u64 = 12 << 20;
/// Seconds after the end of its last bucket within which what has expired is removed: the node looks every 5 s.
pub(crate) const EXPIRY_SLACK_SECONDS: u64 = 10;
/// Times that an answer is asked for again while faults strike a cluster: a replica whose primary is out of reach does not
/// know yet what counts, for as long as that fault lasts (12 s at most, and another one may follow).
pub(crate) const LATE_TRIES: u32 = 20;
/// Milliseconds between two of them.
pub(crate) const LATE_MS: u64 = 1_000;
/// Acknowledged spans up to which a trace is read after each acknowledgement.
pub(crate) const ALWAYS_READ_SPANS: usize = 500;
/// Results of one page of a search.
pub(crate) const SEARCH_PAGE: usize = 7;
/// Pages of one search at most.
pub(crate) const MAX_SEARCH_PAGES: usize = 1_000;
/// Milliseconds that a search may take: nothing takes virtual time, so it never ends early.
pub(crate) const SEARCH_TIMEOUT_MS: u64 = 60_000;
