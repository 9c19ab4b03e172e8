//! Every bound of this crate, with its unit and its reason.

use crate::link::MAX_LINK_MESSAGE_BYTES;

/// Raw bytes at which a journal frame is closed: reading one back costs about 0.16 ms (measured).
pub const FRAME_RAW_BYTES: usize = 256 * 1024;
/// Most frames that wait for the commit in flight: enough to keep the disk busy, few enough to bound the memory.
pub const MAX_READY_FRAMES: usize = 32;
/// Bytes of credit charged per span for the growth of its entry: a row of 18 bytes, a class, some attributes.
pub const ENTRY_BYTES_PER_SPAN: u64 = 96;
/// Bytes of credit charged per trace of a request for the growth of its shard: an entry without its rows.
pub const ENTRY_BYTES_PER_TRACE: u64 = 512;
/// Milliseconds between two looks of an assembler at its entries.
pub const ASSEMBLER_TICK_MS: u64 = 500;
/// Milliseconds between two rounds of the node's housekeeping.
pub const HOUSEKEEPING_TICK_MS: u64 = 1_000;
/// Milliseconds after which a request that is not durable is given up; the edge keeps the client's own deadline, which
/// is shorter.
pub const EXPORT_DEADLINE_MS: u64 = 60_000;
/// Retry hint of a refusal for pressure, in milliseconds: SDKs export every 5 s, the pressure is read every 0.5 s.
pub const PRESSURE_RETRY_MS: u64 = 1_000;
/// Spans of a full page: 45 bytes a span and 0.6 ms to decode one (measured).
pub const PAGE_SPANS: usize = 5_000;
/// Milliseconds that a kept trace waits for its page to fill (DESIGN.md: 10 minutes).
pub const PAGE_MAX_AGE_MS: u64 = 600_000;
/// Records of a shard that lie between the oldest kept trace that waits for a page and the oldest open one, from which
/// pages are written though they are not full: a restart reads all records from there on. About 3 s at 200,000 spans a
/// second; what is written so is rewritten as full pages when its bucket is sealed.
pub const PAGE_MAX_RECORDS: u64 = 600;
/// Share of the credit pool, in 1/256, that one paging job may hold as span bytes.
pub const PAGING_SHARE_256: u64 = 24;
/// Summaries that wait in memory before they become a segment of the index: smaller segments cost 2 to 3 times
/// the CPU per trace (measured).
pub const INDEX_STEP_SUMMARIES: usize = 10_000;
/// Queries of one tenant at once (API.md).
pub const MAX_TENANT_QUERIES: usize = 16;
/// Milliseconds that a query waits for its turn (API.md).
pub const QUERY_QUEUE_MS: u64 = 1_000;
/// Pieces of a streamed trace, in bytes: with one more span of the usual size a piece still fits into one message of the
/// links, which is 1 MiB at most.
pub const TRACE_PIECE_BYTES: usize = (1 << 20) - (64 << 10);
/// Bytes of credit that one query holds: a page's columns or some frames, and its results.
pub const QUERY_CREDIT_BYTES: u64 = 4 << 20;
/// Live candidates that one round of a search asks of a shard at most, beyond a page's own limit: 64 shards' are about
/// 4 MB.
pub const MAX_SHARD_CANDIDATES: usize = 512;
/// Candidates of a search that are read together: enough that one page of a block serves several, few enough that the
/// deadline is looked at every some milliseconds.
pub const SEARCH_GROUP: usize = 64;
/// Parts that an answer names as missing, each with its own range, before there is one for each node: people read them.
pub const MAX_MISSING_PARTS: usize = 64;
/// Missing parts that one node may name to another: its own are few.
pub const MAX_PEER_MISSING_PARTS: usize = 64;
/// Bytes of the reason of a missing part, and of a refusal between nodes: a sentence or two.
pub const MAX_MISSING_REASON_BYTES: usize = 512;
/// Bytes of an answer between nodes, with room for what is around it in a message of the links.
pub const MAX_ANSWER_BYTES: usize = MAX_LINK_MESSAGE_BYTES - (16 << 10);
/// Most names that one node asks of another: as many as an index gives.
pub const MAX_PEER_NAMES: usize = 10_000;
/// Questions of other nodes that run at once: as many as two tenants may ask here.
pub const MAX_PEER_QUERIES: usize = 32;
/// Questions of other nodes that run or wait: each holds its request, 1 MiB at most and some 100 bytes mostly.
pub const MAX_PEER_QUERIES_WAITING: usize = 256;
/// Milliseconds that a question of another node may take at most (API.md, `timeoutMs`).
pub const MAX_PEER_QUERY_MS: u64 = 60_000;
/// Traces that other nodes read at once: each holds up to two pieces, a fragment, and 8 bytes a span.
pub const MAX_PEER_READERS: usize = 128;
/// Milliseconds after which a trace that another node does not read on is let go: its client is slow or gone.
pub const PEER_READER_IDLE_MS: u64 = 30_000;
/// Bytes of a piece of a trace that another node sends in several messages: a span is smaller than its trace, which is
/// 5 MB at most.
pub const MAX_PEER_PIECE_BYTES: usize = 16 << 20;
/// Milliseconds after which an answer of a node is late and another holder is asked as well, at most: half of the time
/// that is left where that is less. A search of a warm node takes some milliseconds.
pub const LATE_ANSWER_MS: u64 = 1_000;
/// Milliseconds of a question's time that are kept for the way back, at most: a tenth where that is less.
pub const ANSWER_MARGIN_MS: u64 = 200;
/// Milliseconds that names and a trace by id may take; the edge gives up at about the same time (API.md).
pub const LOOKUP_TIMEOUT_MS: u64 = 10_000;
/// Bytes of credit that a search holds for one result of another node: about 300 bytes mostly.
pub const RESULT_CREDIT_BYTES: u64 = 1 << 10;
/// Results from which an answer travels with the data, so that it holds up no heartbeat: about 100 KiB.
pub const BULK_RESULTS: usize = 300;
/// Retry hint in milliseconds when holders cannot be reached: a failover takes about 3 s.
pub const HOLDERS_RETRY_MS: u64 = 2_000;
/// Raw bytes of the journal's frames that one search walks at most: about a second of decompression.
pub const MAX_SEARCH_FRAME_BYTES: u64 = 1 << 30;
/// Policy sets that entries may still refer to; older entries are decided by the oldest of these.
pub const MAX_LIVE_POLICIES: usize = 8;
/// The part of the credit pool, in percent, from which traces are decided early.
pub const PRESSURE_EARLY_PERCENT: u64 = 80;
/// The part from which the sampling of healthy traces is tightened.
pub const PRESSURE_TIGHTEN_PERCENT: u64 = 90;
/// The part below which the measures end again (hysteresis).
pub const PRESSURE_RELEASE_PERCENT: u64 = 75;
/// Least bytes and least part (in percent) of the disk that admission leaves free for verdicts, pages and deletes.
pub const DISK_RESERVE_BYTES: u64 = 2 << 30;
/// See [`DISK_RESERVE_BYTES`].
pub const DISK_RESERVE_PERCENT: u64 = 5;
/// Attribute keys in the metric of the most values.
pub const TOP_ATTRIBUTES: usize = 20;
/// Places of a node of weight 1 on the ring of placement: more do not even it out better once loads are bounded
/// (measured on 3 to 50 nodes).
pub const VIRTUAL_NODES: usize = 128;
/// Percent above its share up to which a node is primary of shards.
pub const PRIMARIES_SLACK_PERCENT: u64 = 10;
/// Percent above its share up to which a node holds copies of shards.
pub const COPIES_SLACK_PERCENT: u64 = 5;
