//! Every bound of the edge, with its unit and its reason.

/// Most bytes of an export request on the wire: four times what collectors send by default.
pub const MAX_WIRE_BYTES: usize = 16 << 20;
/// Most bytes of an export request after decompression.
pub const MAX_DECODED_BYTES: usize = 64 << 20;
/// Most bytes out per byte in: spans compress 10 to 40 times, a bomb a thousand times.
pub const MAX_UNFOLD_RATIO: usize = 200;
/// The ratio is not looked at below this many bytes: small repetitive requests compress extremely well.
pub const RATIO_FREE_BYTES: usize = 1 << 20;
/// Largest zstd window as a power of two: 8 MiB, what level 19 uses; each request may have its own.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 23;
/// Bytes by which a buffer and its credit grow while a body is read or unfolded.
pub const GROWTH_STEP_BYTES: usize = 64 << 10;
/// JSON bodies above this many bytes are transcoded off the network threads.
pub const OFFLOAD_BYTES: usize = 256 << 10;
/// Compressed bodies above this many bytes are unfolded off the network threads: at the greatest ratio it is 6 MiB.
pub const OFFLOAD_COMPRESSED_BYTES: usize = 32 << 10;
/// Deepest nesting of JSON that is transcoded: seven messages lead to an attribute value, which nests at most 16
/// deep (two levels of JSON each); serde_json itself stops at 128.
pub const MAX_JSON_DEPTH: usize = 96;
/// Deepest nesting of attribute values that is rendered as JSON; deeper ones are rendered as null.
pub const MAX_RENDER_DEPTH: usize = 96;
/// Longest body of an admin call in bytes: a policy file.
pub const MAX_ADMIN_BODY_BYTES: usize = 1 << 20;

/// Milliseconds that an export may take when the client gives no deadline (API.md).
pub const DEFAULT_EXPORT_DEADLINE_MS: u64 = 10_000;
/// Milliseconds that an export may take whatever the client says, so that credit comes back.
pub const MAX_EXPORT_DEADLINE_MS: u64 = 60_000;
/// What an export that took too long is told to wait, in milliseconds.
pub const TIMED_OUT_RETRY_MS: u64 = 1_000;
/// What a refusal that passes is told when the port gave no hint, in milliseconds: without one collectors take
/// RESOURCE_EXHAUSTED for permanent and drop the spans.
pub const DEFAULT_RETRY_MS: u64 = 1_000;
/// What is told when there is no room for a growing body, in milliseconds.
pub const NO_CREDIT_RETRY_MS: u64 = 1_000;

/// Milliseconds that a query may take by default (API.md).
pub const DEFAULT_QUERY_TIMEOUT_MS: u64 = 10_000;
/// Milliseconds that a query may take at most (API.md).
pub const MAX_QUERY_TIMEOUT_MS: u64 = 60_000;
/// Milliseconds that the edge waits past a query's own limit before it gives up on the port.
pub const QUERY_GRACE_MS: u64 = 2_000;
/// Traces of a page by default (API.md).
pub const DEFAULT_SEARCH_LIMIT: usize = 20;
/// Names by default.
pub const DEFAULT_NAMES_LIMIT: usize = 1_000;
/// Most names of an answer.
pub const MAX_NAMES_LIMIT: usize = 10_000;
/// Nanoseconds that a search looks back by default (API.md): an hour.
pub const DEFAULT_LOOKBACK_NANOS: u64 = 3_600 * 1_000_000_000;
/// Longest query string in bytes.
pub const MAX_QUERY_STRING_BYTES: usize = 16 << 10;
/// Most parameters of a query string.
pub const MAX_PARAMETERS: usize = 128;
/// Most services, and most tags, of a search.
pub const MAX_CONDITIONS: usize = 32;
/// Longest text of one condition in bytes: attribute values end at 2,048.
pub const MAX_CONDITION_BYTES: usize = 4_096;
/// Traces that the first page shows.
pub const FIRST_PAGE_TRACES: usize = 20;
/// Milliseconds that the first page waits for its traces.
pub const FIRST_PAGE_TIMEOUT_MS: u64 = 2_000;

/// HTTP/2 window of a stream: the default of 64 KiB costs 0.6 us a span (measured).
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// HTTP/2 window of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Connections of a listener that get the wide windows: what they may hold before credit admits it stays at 64 MiB.
/// A collector uses one connection; those beyond get the standard's 64 KiB.
pub const WIDE_CONNECTIONS: usize = 16;
/// Window of the connections beyond [`WIDE_CONNECTIONS`].
pub const NARROW_WINDOW_BYTES: u32 = 65_535;
/// Largest HTTP/2 frame of a wide connection: a message that comes in one frame is not copied.
pub const FRAME_BYTES: u32 = 1 << 20;
/// Largest HTTP/2 frame of a narrow connection: the standard's.
pub const NARROW_FRAME_BYTES: u32 = 16_384;
/// Streams of a connection at once.
pub const MAX_CONCURRENT_STREAMS: u32 = 128;
/// Connections of a listener at once; further ones wait to be accepted.
pub const MAX_CONNECTIONS: usize = 1_000;
/// Bytes of the headers of one request.
pub const MAX_HEADER_BYTES: u32 = 32 << 10;
/// Headers of one HTTP/1 request.
pub const MAX_HEADERS: usize = 64;
/// Bytes that HTTP/1 buffers of a connection.
pub const HTTP1_BUFFER_BYTES: usize = 64 << 10;
/// Milliseconds that the headers of an HTTP/1 request may take.
pub const HEADER_TIMEOUT_MS: u64 = 10_000;
/// Milliseconds between HTTP/2 pings on a connection.
pub const KEEPALIVE_MS: u64 = 30_000;
/// Milliseconds that the answer to a ping may take.
pub const KEEPALIVE_TIMEOUT_MS: u64 = 20_000;
/// Milliseconds that open requests get to end after shutdown began.
pub const DRAIN_MS: u64 = 15_000;
/// Milliseconds to wait after accepting failed (out of file descriptors).
pub const ACCEPT_PAUSE_MS: u64 = 50;

/// Most bytes of one gRPC request of the query service.
pub const MAX_QUERY_MESSAGE_BYTES: usize = 256 << 10;
/// Most bytes of one answer that our client takes.
pub const MAX_CLIENT_ANSWER_BYTES: usize = 16 << 20;
/// Most bytes of one trace that our client takes: a trace is at most 5 MB, late spans and contexts come on top.
pub const MAX_CLIENT_TRACE_BYTES: usize = 256 << 20;
/// Messages that wait in a stream of the query service.
pub const STREAM_QUEUE: usize = 4;
