//! Makes a run that fails small: as few faults and requests as still break the same invariant.

use super::plan::MessagePlan;
use super::run_messages;

/// Runs of one shrinking at most: some seconds.
const MOST_RUNS: usize = 4_000;

/// The smallest plan that is found which breaks the invariant that `plan` breaks; nothing when it breaks none.
#[must_use]
pub fn shrink(plan: &MessagePlan) -> Option<MessagePlan> {
    let broken = run_messages(plan, false).broken?;
    let mut runs = 0;
    let mut still_fails = |plan: &MessagePlan| {
        runs += 1;
        runs <= MOST_RUNS && run_messages(plan, false).broken == Some(broken)
    };
    let mut best = plan.clone();
    loop {
        let before = best.faults.len() + best.requests.len();
        best.faults = fewer(&best.faults.clone(), |faults| {
            still_fails(&MessagePlan {
                faults,
                ..best.clone()
            })
        });
        best.requests = fewer(&best.requests.clone(), |requests| {
            still_fails(&MessagePlan {
                requests,
                ..best.clone()
            })
        });
        if best.faults.len() + best.requests.len() == before {
            return Some(best);
        }
    }
}

/// Leaves out halves, then quarters, down to single ones, as long as it fails without them.
fn fewer<T: Clone>(all: &[T], mut fails: impl FnMut(Vec<T>) -> bool) -> Vec<T> {
    let mut kept = all.to_vec();
    let mut size = kept.len().div_ceil(2);
    while size > 0 && !kept.is_empty() {
        let mut at = 0;
        while at < kept.len() {
            let end = (at + size).min(kept.len());
            let without: Vec<T> = [&kept[..at], &kept[end..]].concat();
            if fails(without.clone()) {
                kept = without;
            } else {
                at = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let all: Vec<u32> = (0..50).collect();
        let needed = [3, 17, 44];
        let small = fewer(&all, |some| needed.iter().all(|one| some.contains(one)));
        assert_eq!(small, needed);
    }
}
