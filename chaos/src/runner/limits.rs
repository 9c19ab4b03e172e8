//! Every bound of the runner, with its unit and its reason.

use std::time::Duration;

/// Nodes that join in a run: each of them is one more to be asked for everything at the end.
pub(crate) const MOST_JOINS: usize = 2;
/// Milliseconds that a fault lasts at least: less than it takes the others to notice.
pub(crate) const SHORTEST_HOLD_MS: u64 = 2_000;
/// And at most: long enough that the others go on without the node.
pub(crate) const LONGEST_HOLD_MS: u64 = 12_000;
/// What a slow node and the others send each other takes so long in each direction: less than makes it count as down.
pub(crate) const SLOW_DELAY: Duration = Duration::from_millis(200);
/// Bytes of a file that rot at once.
pub(crate) const ROTTEN_BYTES: usize = 8;
/// Milliseconds that a clock jumps at least: past what a trace waits for its end.
pub(crate) const SMALLEST_JUMP_MS: i64 = 20_000;
/// And at most.
pub(crate) const LARGEST_JUMP_MS: i64 = 60_000;
/// Seconds that a clock that runs off gains in each: it is a minute ahead after the longest hold.
pub(crate) const CLOCK_GAIN: i64 = 5;
/// By how much a clock is ahead at most, by a jump or by what it gains in the longest hold.
pub(crate) const FURTHEST_AHEAD: Duration = Duration::from_mins(1);
/// Pause between two steps of a clock that runs off.
pub(crate) const CLOCK_STEP: Duration = Duration::from_millis(100);
/// Calm after a fault. What was seen as settled right after it must still be so: a node may be declared down when it is
/// back already.
pub(crate) const CALM: Duration = Duration::from_secs(3);
/// Milliseconds after a strike that count as its consequence: a failure later needs another excuse.
pub(crate) const STRIKE_WINDOW_MS: u64 = 3_000;
/// Requests that are acknowledged before the first fault.
pub(crate) const FIRST_REQUESTS: usize = 30;
/// Requests that are acknowledged after each fault.
pub(crate) const FURTHER_REQUESTS: usize = 10;
/// Clients that export.
pub(crate) const CLIENTS: u64 = 4;
/// Characters of a failure that the report shows; the rest, logs included, is in a file.
pub(crate) const SHOWN_FAILURE: usize = 600;
