//! `waits`: while one node at a time is at fault, joins or leaves, what clients send to the others is acknowledged soon,
//! and a trace that is asked for there is answered soon.
//!
//! Not verified: runs in which several nodes are at fault at once, or rare things happen within nodes; requests at the
//! node that is at fault; how many attempts a request takes; searches; whether an answer is complete.

use std::ops::Range;

use super::{Violation, violation};

/// Milliseconds within which a request is acknowledged though a node has died, stands still or is cut off: it is silent
/// for 750 ms, another leads the settings if it did, its shards get other primaries, and the client tries once more.
const WAIT_MS: u64 = 5_000;
/// The same where a disk does not answer, which is noticed after five seconds.
const HANG_WAIT_MS: u64 = 11_000;

/// Milliseconds within which a fetch of a trace is answered, whoever is at fault: where a node is silent the next holder
/// is asked.
const READ_WAIT_MS: u64 = 5_000;

/// What the clients of a place may expect.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patience {
    /// Since when the cluster is whole.
    pub(crate) from_ms: u64,
    /// When the node of this place is at fault, or comes back.
    pub(crate) away: Vec<Range<u64>>,
    /// When the disk of another one does not answer.
    pub(crate) hangs: Vec<Range<u64>>,
}

impl Patience {
    /// A request was tried first at `first_ms` and is, or is not, acknowledged by `now_ms`.
    pub(crate) fn check(&self, first_ms: u64, now_ms: u64) -> Result<(), Violation> {
        let most_ms = match meets(&self.hangs, first_ms, now_ms) {
            true => HANG_WAIT_MS,
            false => WAIT_MS,
        };
        self.bound("a request", first_ms, now_ms, most_ms)
    }

    /// A trace was asked for at `first_ms`, and the answer is there.
    pub(crate) fn check_read(&self, first_ms: u64, now_ms: u64) -> Result<(), Violation> {
        self.bound("a fetch", first_ms, now_ms, READ_WAIT_MS)
    }

    fn bound(&self, what: &str, first_ms: u64, now_ms: u64, most_ms: u64) -> Result<(), Violation> {
        let waited_ms = now_ms - first_ms;
        let is_excused = first_ms < self.from_ms || meets(&self.away, first_ms, now_ms);
        if is_excused || waited_ms <= most_ms {
            return Ok(());
        }
        let problem = format!("{what} waits for {waited_ms} ms, {most_ms} at most");
        Err(violation("waits", problem))
    }
}

fn meets(spans: &[Range<u64>], first_ms: u64, now_ms: u64) -> bool {
    let mut spans = spans.iter();
    spans.any(|span| span.start <= now_ms && first_ms < span.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_at_fault_has_to_do_with_may_wait_long() {
        let patience = Patience {
            from_ms: 4_000,
            away: std::iter::once(10_000..20_000).collect(),
            hangs: std::iter::once(40_000..50_000).collect(),
        };
        let kept = |first_ms, waited_ms| patience.check(first_ms, first_ms + waited_ms).is_ok();
        assert!(kept(30_000, WAIT_MS) && !kept(30_000, WAIT_MS + 1));
        assert!(kept(3_999, 60_000), "the cluster is being founded");
        assert!(
            kept(4_000, 60_000) && kept(19_999, 60_000),
            "its node is away"
        );
        assert!(!kept(20_000, WAIT_MS + 1));
        assert!(kept(41_000, HANG_WAIT_MS) && !kept(41_000, HANG_WAIT_MS + 1));
        let read =
            |first_ms, waited_ms| patience.check_read(first_ms, first_ms + waited_ms).is_ok();
        assert!(read(41_000, READ_WAIT_MS) && !read(41_000, READ_WAIT_MS + 1));
        assert!(read(15_000, 60_000), "its node is away");
    }
}
