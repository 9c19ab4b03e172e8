//! Every bound of this crate, with its unit and its reason.

use spandrel_model::limits::MAX_SPAN_BYTES;
use spandrel_raft::limits::MAX_SHARDS;

use crate::link::MAX_LINK_MESSAGE_BYTES;

/// Raw bytes of spans up to which they are framed or read by whoever has them, rather than on another thread: some 300
/// spans, 0.3 ms, which is what the scan of a common request takes (measured).
pub const INLINE_WORK_BYTES: usize = 256 * 1024;
/// The same in the simulation: some 20 of its spans.
pub const SIMULATED_INLINE_WORK_BYTES: usize = 6 * 1024;
/// How many raw bytes a compressed one stands for, about, where the frame has not been opened yet (measured: 87 of 742).
pub const FRAME_RATIO: usize = 8;
/// Builders of frames that an entry node keeps for the next request: as many as are used at once on a common machine.
pub const MAX_IDLE_BUILDERS: usize = 4;
/// Raw bytes at which a journal frame is closed: reading one back costs about 0.16 ms (measured).
pub const FRAME_RAW_BYTES: usize = 256 * 1024;
/// Most frames that wait for the commit in flight: enough to keep the disk busy, few enough to bound the memory.
pub const MAX_READY_FRAMES: usize = 32;
/// Bytes of credit charged per span for the growth of its entry: a row of 18 bytes, a class, some attributes.
pub const ENTRY_BYTES_PER_SPAN: u64 = 96;
/// Bytes of credit charged per trace of a request for the growth of its shard: an entry without its rows.
pub const ENTRY_BYTES_PER_TRACE: u64 = 512;
/// One in so many messages of an assembler is measured, and counts for all of them.
pub const MEASURED_OF_MESSAGES: u64 = 8;
/// Milliseconds between two looks of an assembler at its entries.
pub const ASSEMBLER_TICK_MS: u64 = 500;
/// Turns in which they do that: verdicts of shards that have the same turn share frames, and not all shards decide at
/// the same moment.
pub const ASSEMBLER_TICK_TURNS: u8 = 8;
/// Milliseconds after which a node takes it that a shard that is elsewhere is not filled here again: what it kept last
/// before it stopped is written to a block.
pub const LEFT_MS: u64 = 60_000;
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
/// Places of dropped traces that a search remembers of its walk over the journal's verdicts: about 1 MiB. When it needs
/// more, it walks again.
pub const MAX_DROPPED_PLACES: usize = 8_192;
/// Policy sets that entries may still refer to; older entries are decided by the oldest of these.
pub const MAX_LIVE_POLICIES: usize = 8;
/// The part of the credit pool, in percent, from which traces are decided early.
pub const PRESSURE_EARLY_PERCENT: u64 = 80;
/// The part from which the sampling of healthy traces is tightened.
pub const PRESSURE_TIGHTEN_PERCENT: u64 = 90;
/// The part below which the measures end again (hysteresis).
pub const PRESSURE_RELEASE_PERCENT: u64 = 75;
/// Milliseconds between two looks whether the disk answers.
pub const DISK_LOOK_MS: u64 = 500;
/// Looks that find the same commit under way, five seconds, after which the disk counts as hung: longer than a disk that is
/// only busy takes for some megabytes, and shorter than clients wait for an export (10 s by the OTLP exporters' default).
pub const DISK_HANG_LOOKS: u32 = 10;
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
/// Least milliseconds between the beginnings of two commits of a node of several, on average: with 5 a cluster of three
/// spends two thirds on commits of what it did, with 10 its throughput under few clients falls (measured,
/// docs/benchmarks.md). Where commits take longer it is twice that, up to [`COMMIT_PACE_MAX_MS`].
pub const COMMIT_PACE_MS: u64 = 5;
/// The longest distance: a batch of spans waits for it twice on its way, at its primary and at a follower.
pub const COMMIT_PACE_MAX_MS: u64 = 15;
/// Commits that may come at once after a pause: a request brings a node three or four.
pub const COMMIT_BURST: u32 = 6;
/// Milliseconds between two looks of the writer at its followers: how late a follower, and a reader there, hears that
/// records are on every copy when no frame tells it.
pub const REPLICATION_TICK_MS: u64 = 20;
/// The same while all followers are level and know everything.
pub const REPLICATION_QUIET_TICK_MS: u64 = 200;
/// Messages with frames that are on their way to one follower at once: enough to keep a link busy over a round trip.
pub const FEEDER_MESSAGES: usize = 8;
/// Bytes of frames and notices in one message, unless a single frame has more: messages between nodes have at most 1 MiB.
pub const REPLICATE_MESSAGE_BYTES: usize = 512 * 1024;
/// Raw bytes that one record holds at most: as much as the largest span, so that a frame with it fits a message even when
/// its content does not compress. A frame is closed at [`FRAME_RAW_BYTES`]: it has at most that and a record.
pub const MAX_RECORD_BYTES: usize = MAX_SPAN_BYTES;
const _: () =
    assert!(FRAME_RAW_BYTES + MAX_RECORD_BYTES + MAX_NOTICES_BYTES < MAX_LINK_MESSAGE_BYTES);
/// Raw bytes that a record has of a span beside the span, its context and its trace id, at most: three numbers.
pub const ROW_BYTES: usize = 16;
/// Bytes of a notice of how far a shard's records count, at most, in a message with frames.
pub const NOTICE_BYTES: usize = 36;
/// Bytes of notices that come with one frame at most: one of each shard.
pub const MAX_NOTICES_BYTES: usize = MAX_SHARDS as usize * NOTICE_BYTES;
/// Milliseconds after which a message with frames counts as lost: an fsync on a busy disk, some times over.
pub const REPLICATE_DEADLINE_MS: u64 = 2_000;
/// Milliseconds before frames that were lost are sent again.
pub const FEEDER_RETRY_MS: u64 = 50;
/// Milliseconds that an answer to one step of a beginning may take.
pub const BEGIN_DEADLINE_MS: u64 = 5_000;
/// Shards of one beginning: a message of some kilobytes.
pub const BEGIN_SHARDS: usize = 256;
/// Milliseconds before a follower that could not be brought level is tried again.
pub const ATTACH_RETRY_MS: u64 = 200;
/// How often a follower is brought up to what the journal holds by then, each time a smaller part, before the shard is held
/// for the rest.
pub const CATCH_UP_ROUNDS: u32 = 8;
/// Most frames of one shard in a call that brings a follower up: spans and verdicts stand in frames of their own.
pub const CATCH_UP_FRAMES: usize = 32;
/// Milliseconds between two tries to take frames when there is no memory credit for them.
pub const INTAKE_RETRY_MS: u64 = 10;
/// Milliseconds between two looks of the keeper at the shards that its node leads.
pub const KEEPER_TICK_MS: u64 = 100;
/// The same while the node is alone: a bucket is an hour long.
pub const KEEPER_ALONE_TICK_MS: u64 = 10_000;
/// Shards of one node that are filled at once: each sends its open state again, some megabytes.
pub const MAX_FILLS: usize = 8;
/// Milliseconds for which a node that is down is not replaced where a shard has copies enough without it: a restart takes
/// seconds, and it goes on then; another replica is filled.
pub const REPLACE_AFTER_MS: u64 = 10_000;
/// Shards of one node that are handed over at once: each pauses for some milliseconds.
pub const MAX_HANDOVERS: usize = 4;
/// Milliseconds that a shard is held at most until nothing of it is on its way: usually some. The keeper does nothing
/// else meanwhile, and a node that dies just then is to leave the in-sync sets within a failover's 3 s.
pub const HOLD_DEADLINE_MS: u64 = 1_000;
/// Milliseconds that a shard of which nothing is on its way waits for the next one to be changed with it: about as long
/// as a record takes to every copy.
pub const HOLD_TOGETHER_MS: u64 = 20;
/// Milliseconds before spans for a shard that nobody took are offered again.
pub const ROUTE_RETRY_MS: u64 = 10;
/// Records of a fill that are on their way at once: enough that a fill does not wait for each fsync.
pub const MAX_REFILL_RECORDS: usize = 32;
/// Milliseconds for which spans of a fill that the shard does not take are offered again: longer than a change of owners.
pub const REFILL_PATIENCE_MS: u64 = 10_000;
/// Milliseconds that an answer to forwarded spans may take before they are offered again, to whoever leads by then: a
/// dead primary is replaced within 3 s.
pub const FORWARD_DEADLINE_MS: u64 = 4_000;
/// Milliseconds of silence after which a node is set down (DESIGN.md section 4): three pings of the links are lost.
pub const DOWN_AFTER_MS: u64 = 750;
/// Milliseconds for which a map of the cluster that the majority has confirmed counts as the newest: shorter than
/// [`DOWN_AFTER_MS`], so that a node knows before the others go on without it.
pub const CONTACT_MS: u64 = 300;
/// Milliseconds that a question waits for such a confirmation before it is answered by an old map, and says so.
pub const CONTACT_WAIT_MS: u64 = 500;
/// Milliseconds that a new leader waits before it judges the others: as long as silence may last, and one ping more. A
/// leader that was itself cut off has heard nobody.
pub const LEADER_GRACE_MS: u64 = 1_000;
/// Milliseconds between two looks of the controller at the cluster: a quarter of the silence that it must notice.
pub const CONTROLLER_TICK_MS: u64 = 200;
/// Commands that one round of the controller proposes at most: a round is some fsyncs long, and what is urgent in the
/// next one must not wait for more.
pub const MAX_ROUND_COMMANDS: usize = 16;
/// Shards that one command changes at most: with seven copies and seven that fill, and ids of full length, it has 340
/// KiB of the 512 that a command may have.
pub const MAX_SHARD_CHANGES: usize = 1_024;
/// Milliseconds before a node that is taken for dead registers again: by then the leader has heard it, or will set it
/// down again only after [`DOWN_AFTER_MS`].
pub const REGISTER_RETRY_MS: u64 = 1_000;
/// Milliseconds between two lives of a node that runs: an image of its directory that is older than this is known for
/// one. Each is a command and two small files.
pub const LIFE_MS: u64 = 60_000;
/// Requests of the settings' group, and of membership, that are answered at once: a few a peer; beyond it they are
/// refused and come again.
pub const MAX_PEER_CALLS: usize = 256;
/// Longest sentence of a refusal between nodes, in bytes.
pub const MAX_REASON_BYTES: usize = 1_024;
/// Longest join token in bytes: ours have 78.
pub const MAX_TOKEN_BYTES: usize = 256;
/// Longest version of a program in bytes.
pub const MAX_VERSION_BYTES: usize = 64;
/// Seconds for which a join token lets nodes in: a day's work at a cluster.
pub const JOIN_TOKEN_SECONDS: u64 = 86_400;
/// Milliseconds that a member gets to answer a request to join: it asks the leader, which may just be elected
/// ([`PROPOSE_DEADLINE_MS`](spandrel_raft::limits::PROPOSE_DEADLINE_MS)).
pub const JOIN_CALL_MS: u64 = 7_000;
/// Milliseconds after which a node that nobody lets in gives up: several rounds over all addresses.
pub const JOIN_DEADLINE_MS: u64 = 30_000;
/// Pause between two rounds over the addresses, in milliseconds.
pub const JOIN_PAUSE_MS: u64 = 500;
/// Milliseconds that a member gets to say whether a used directory is its cluster's: the node starts without an answer.
pub const REJOIN_CALL_MS: u64 = 2_000;
/// Milliseconds between two lines of the log while a node waits for its cluster.
pub const WAITING_LOG_MS: u64 = 5_000;
/// Milliseconds that another node gets to describe itself for a table that people wait for.
pub const DESCRIBE_MS: u64 = 500;
/// Milliseconds without a look of the controller after which it takes itself for stalled: two ticks are late, and still
/// less than the silence that sets a node down.
pub const STALL_MS: u64 = 500;
/// Milliseconds between two pings of a session between nodes.
pub const LINK_PING_MS: u64 = 250;
/// Pings in a row without a sign of life after which a session ends: a stopped peer is noticed after 500 to 750 ms.
pub const LINK_MISSED_PINGS: u32 = 2;
/// Milliseconds after which an unanswered ping ends a session though bytes still come: a full credit of bulk bytes is
/// ahead of it at 4 MB/s, or the peer's gateway hangs.
pub const LINK_PING_ANSWER_MS: u64 = 3_000;
/// Bytes of requests that one node may have unanswered at another, in the control session: a second of heartbeats and
/// questions, gone in 10 ms at 1 Gbit/s.
pub const LINK_CONTROL_CREDIT_BYTES: usize = 1 << 20;
/// The same in the bulk session: keeps 10 Gbit/s busy for a round trip of 6 ms.
pub const LINK_BULK_CREDIT_BYTES: usize = 8 << 20;
/// Bytes of credit that a call takes at least in the control session: at most 512 calls are unanswered.
pub const LINK_CONTROL_CALL_BYTES: usize = 2 << 10;
/// The same in the bulk session: at most 128 calls, so that their answers of up to 1 MiB stay below 128 MiB.
pub const LINK_BULK_CALL_BYTES: usize = 64 << 10;
/// Calls that may wait for credit in one session; their bytes are the callers'.
pub const MAX_LINK_WAITING_CALLS: usize = 4_096;
/// Bytes of a frame of the transport beyond the message: header, tags, lengths, names.
pub const LINK_FRAME_OVERHEAD_BYTES: u64 = 4_096;
/// Milliseconds for connecting, TLS and the handshake together: some round trips to another continent.
pub const LINK_HANDSHAKE_MS: u64 = 2_000;
/// First pause in milliseconds before a node is dialled again; doubles with each failure.
pub const LINK_REDIAL_MIN_MS: u64 = 50;
/// Longest such pause in milliseconds: a node that comes back is found within about a second.
pub const LINK_REDIAL_MAX_MS: u64 = 1_000;
/// Milliseconds for which the node with the higher id lets the other one dial first: both at once would cost a session.
pub const LINK_YIELD_MS: u64 = 300;
/// Incoming connections of which it is not known yet that they are a member's, those of joining nodes included.
pub const MAX_LINK_STRANGERS: usize = 64;
/// Milliseconds after which a session for single calls (of a joining node) ends: longer than any such call.
pub const LINK_PASSING_MS: u64 = 30_000;
/// Milliseconds for which a session is given time to end by itself before its actors are killed.
pub const LINK_END_MS: u64 = 1_000;
/// Removed nodes that are remembered in order to be refused: as many as a cluster may have nodes.
pub const MAX_LINK_REMOVED: usize = 256;
/// Bytes of an advertised address in a handshake: as in the settings (a DNS name and a port).
pub const MAX_LINK_ADDRESS_BYTES: usize = 260;
/// Bytes of a reason in a refusal: a sentence.
pub const MAX_LINK_REASON_BYTES: usize = 512;
/// Milliseconds between two looks for shards whose records wait for a copy: longer than a failover takes.
pub const STALL_LOG_MS: u64 = 5_000;
/// Milliseconds that a node which stops waits for others to lead its shards: a commit of the settings and a look of the
/// controller, some times over.
pub const STEP_DOWN_MS: u64 = 5_000;
/// Milliseconds that a node which stops waits for what was accepted to be durable.
pub const DRAIN_MS: u64 = 10_000;
/// Milliseconds after its arrival for which the frames of a primary's call, up to [`CATCH_UP_FRAMES`], wait for memory
/// credit before they are taken without: while they wait, so do the verdicts behind them, which let go of memory, and the
/// clients of the whole cluster. Their primaries take less as soon as they hear that memory is short here (measured in
/// docs/benchmarks.md, with a second too).
pub const INTAKE_PATIENCE_MS: u64 = 100;
/// Milliseconds for which the memory pressure that a follower told counts: it tells it with each answer.
pub const FOLLOWER_PRESSURE_MS: u64 = 3_000;
/// Share of the own entries, in percent, that is decided early in each round of housekeeping while a follower has no
/// memory: its excess is not known here.
pub const FOLLOWER_RELIEF_PERCENT: u64 = 10;
/// Bytes of the journal, the newest, whose verdicts a replica which joins is told of: about 170,000 of all shards. Where
/// little is sent, that is the whole recovery window.
pub const REPEATED_JOURNAL_BYTES: u64 = 256 << 20;
/// Milliseconds of verdicts that it is told of in any case: nearly all late spans come within it, and 12,500 verdicts a
/// second over an hour would be 45 million.
pub const REPEATED_VERDICTS_MS: u64 = 120_000;
/// Milliseconds for which a shard remembers of which dropped traces late spans are being repeated: a fill waits for memory
/// no longer.
pub const LATE_AGAIN_MS: u64 = 120_000;
/// Traces of one shard whose earlier spans wait to be brought here: some 300 KB of memory.
pub const MAX_RECALLS: usize = 1_024;
/// Traces of one shard that were kept after spans had come late, which its next primary brings to all copies: with ten
/// records each, 20 KB of memory.
pub const MAX_LATE_KEEPS: usize = 64;
/// Milliseconds until the primary has brought one to all copies, or has been replaced by one that does. Some failovers,
/// one after the other.
pub const LATE_KEEP_MS: u64 = 60_000;
/// Milliseconds between two tries to read a verdict that the disk does not give.
pub const UNREADABLE_PAUSE_MS: u64 = 1_000;
/// Tries to bring earlier spans of a trace here: holders may be down.
pub const RECALL_TRIES: u32 = 10;
/// Milliseconds after one in vain.
pub const RECALL_PAUSE_MS: u64 = 1_000;
/// Verdicts of one record: some 40 KiB.
pub const RECORD_VERDICTS: usize = 1_000;
/// Milliseconds after which a bucket is compared with other nodes again: rot is found within a day.
pub const COMPARE_EVERY_MS: u64 = 24 * 3_600 * 1_000;
/// Milliseconds before a bucket that could not be compared is tried again.
pub const COMPARE_RETRY_MS: u64 = 600_000;
/// Milliseconds between two looks at what is to be compared, and between two questions to a node that is not ready.
pub const COMPARE_LOOK_MS: u64 = 5_000;
/// Times that a node is waited for: it may have an hour's block to count first.
pub const COMPARE_WAITS: u32 = 240;
/// Spans a second that are counted in the background: each takes about 1.5 us, so a twentieth of a core.
pub const COUNT_SPANS_PER_SECOND: u64 = 30_000;
/// The same when somebody waits for it.
pub const COUNT_SPANS_PER_SECOND_HURRIED: u64 = 10 * COUNT_SPANS_PER_SECOND;
/// Times that a bucket is counted and compared until nothing more comes of it.
pub const COMPARE_ROUNDS: u32 = 3;
/// Inventories that a node has at hand: of the bucket that it compares, and of those that others do.
pub const MAX_INVENTORIES: usize = 4;
/// Slices of one inventory: some 10 MB of memory. A bucket with more is not compared.
pub const MAX_INVENTORY_SLICES: usize = 100_000;
/// Slices in one answer: some 300 KB with the longest tenants.
pub const INVENTORY_SLICES_SENT: usize = 2_000;
/// Traces in one question or answer: of each, a page or more is read, some milliseconds on a slow disk.
pub const INVENTORY_TRACES: usize = 64;
/// Answers that a node makes at once about its inventory.
pub const MAX_INVENTORY_ANSWERS: usize = 2;
/// Milliseconds between two looks of the copier at what this node is to hold.
pub const COPY_LOOK_MS: u64 = 2_000;
/// Milliseconds before a holder that has refused is asked for the same bucket again: mostly a page is waited for.
pub const COPY_RETRY_MS: u64 = 5_000;
/// Bytes a second that a node copies at most: an hour of 20,000 kept spans a second (4 GB) in three and a half minutes.
pub const COPY_BYTES_PER_SECOND: u64 = 20 << 20;
/// Bytes of one part of a copy: a page of the largest trace, packed, some times over.
pub const MAX_COPY_PART_BYTES: u64 = 256 << 20;
/// Bytes of memory credit that a part takes where it is made: its spans (4 MiB and a page) and the page of them.
pub const COPY_CREDIT_BYTES: u64 = 16 << 20;
/// Times that a copy waits for memory or the index before it is given up, and another one gets its turn.
pub const COPY_WAITS: u32 = 24;
/// Milliseconds that a holder takes for one piece at most: it reads up to 16 pages.
pub const COPY_DEADLINE_MS: u64 = 4_000;
/// Milliseconds that the copier waits for it.
pub const COPY_CALL_MS: u64 = 5_000;
/// Pieces that a node makes at once for others: each reads and encodes pages.
pub const MAX_COPIES_GIVEN: usize = 2;
/// Summaries that wait for the index at which a copy waits too: some 20 MB of memory.
pub const COPY_UNINDEXED: usize = 20_000;
/// Milliseconds after which a node that is down counts for lost: what it held is copied by others (DESIGN.md, 4).
pub const DEAD_AFTER_MS: u64 = 600_000;
/// Bytes of pages from which a shipment to a follower is closed: some pages, which it commits at once.
pub const SHIPMENT_BYTES: usize = 4 << 20;
/// Bytes that a shipment has at most: a page of the largest trace.
pub const MAX_SHIPMENT_BYTES: u64 = 64 << 20;
/// Bytes of one piece of a shipment, or of older data: half of what a message between nodes may have.
pub const PAGES_PIECE_BYTES: usize = 512 * 1024;
/// Shipments that wait for one follower: what comes beyond it builds its pages itself.
pub const MAX_SHIPMENTS_WAITING: usize = 16;
/// Milliseconds that a follower takes for a piece at most: the last one of a shipment waits for a commit.
pub const SHIPMENT_CALL_MS: u64 = 10_000;
/// Milliseconds that a follower waits until it knows that all records of a shipment count: it hears so within
/// [`REPLICATION_TICK_MS`].
pub const SHIPMENT_PATIENCE_MS: u64 = 2_000;
/// Milliseconds between two looks whether it does.
pub const SHIPMENT_RETRY_MS: u64 = 50;
/// Milliseconds that a follower waits for a primary's pages beyond the time at which it would have built them itself.
pub const SHIPMENT_WAIT_MS: u64 = 10_000;
