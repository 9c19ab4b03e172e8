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
