//! Every bound of this crate, with its unit and its reason.

use std::time::Duration;

/// How long a node may take to be ready. Generous: a debug build that replays its journal on a busy machine; a test
/// that fails by it has a node that hangs.
pub const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long a node may take to stop after SIGTERM, for the same reason.
pub const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks at a condition that is waited for.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Choices of free ports before giving up: another process may take a port between the choice and the start.
pub const PORT_ATTEMPTS: usize = 5;
/// Most bytes of an HTTP answer that is read: the largest here is a trace or the metrics.
pub const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Milliseconds that one call of a client may take before it counts as unanswered.
pub const CALL_TIMEOUT_MS: u64 = 15_000;
/// Lines of a node's output that a failure shows.
pub const SHOWN_LOG_LINES: usize = 30;
/// The first port that nodes listen on, and how many follow: below those that systems give to connections that go out
/// (32768 and up on Linux).
pub const FIRST_PORT: u16 = 12_000;
/// See [`FIRST_PORT`].
pub const PORTS: u16 = 20_000;
/// How long a cluster may take until every shard has its copies and no node leads too many of them. Generous, as
/// [`READY_DEADLINE`] is.
pub const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long an export may be offered again and again. A dead node is replaced within 5 s.
pub const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(60);
/// Milliseconds that one attempt of an export may take: less than an SDK's usual time, so that a paused node does not
/// hold up every client for most of a test.
pub const EXPORT_TIMEOUT_MS: u64 = 3_000;
/// How long everything may take to be decided: the policies of tests decide within 12 s.
pub const DECIDED_DEADLINE: Duration = Duration::from_secs(30);
/// Requests of a client during which it leaves out a node that did not answer.
pub const LEFT_OUT_REQUESTS: u64 = 20;
/// Violations that a failure shows.
pub const SHOWN_VIOLATIONS: usize = 20;
/// Traces of which a failure shows what every node says.
pub const SHOWN_TRACES: usize = 4;
/// How long a node that leaves may take to hand over its shards and the older data that nobody else has.
pub const LEAVE_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of the disk that a node has for itself: a run of some minutes is a small part of it.
pub const SMALL_DISK_BYTES: u64 = 512 << 20;
/// Bytes of it that the node is told to keep free: more than it writes from one look at the disk to the next, a second
/// later.
pub const SMALL_DISK_RESERVE_BYTES: u64 = 64 << 20;
/// Times that room is taken before giving up: the node may make room or take it meanwhile.
pub const FILL_ATTEMPTS: usize = 100;
