//! Makes a run that fails small: as few faults and requests as still break the same invariant.

use super::plan::MessagePlan;
use super::run_messages;
use crate::fewer::fewer;

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
