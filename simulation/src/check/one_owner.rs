//! One owner per shard and term, over all that any node has ever seen of the settings: in a term the primary is one and
//! the same, and the in-sync set only shrinks; a node never sees a term, a version or an index go back; a version of the
//! policy is one text.
//!
//! Not verified: states that a node replaced within one step of a millisecond, and that a primary obeys the settings
//! (P1 and P2 would break).

use std::collections::BTreeMap;

use spandrel_model::ids::{NodeId, ShardId, Term};
use spandrel_raft::ClusterState;

use super::{Violation, violation};

/// What was seen of the settings so far.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    terms: BTreeMap<(ShardId, Term), (NodeId, Vec<NodeId>)>,
    policies: BTreeMap<u32, String>,
}

impl Owners {
    /// The texts of all policies that were ever in force.
    pub(crate) fn policies(&self) -> &BTreeMap<u32, String> {
        &self.policies
    }

    /// A node has seen `state`, and `before` that the state `earlier` in the same life.
    pub(crate) fn see(
        &mut self,
        state: &ClusterState,
        earlier: Option<&ClusterState>,
    ) -> Result<(), Violation> {
        let told = |problem: String| violation("one_owner", problem);
        if let Some(earlier) = earlier {
            never_back(state, earlier).map_err(told)?;
        }
        for (number, record) in (0u16..).zip(&state.shard_map) {
            let key = (ShardId(number), record.term);
            let set = record.isr.clone();
            let (primary, members) = self
                .terms
                .entry(key)
                .or_insert_with(|| (record.primary, set));
            if *primary != record.primary {
                return Err(told(format!(
                    "shard {number} has two primaries in term {}: node {} and node {}",
                    record.term.0, primary.0, record.primary.0
                )));
            }
            // Two nodes may see a shrinking set in any order.
            let (small, large) = match members.len() <= record.isr.len() {
                true => (&*members, &record.isr),
                false => (&record.isr, &*members),
            };
            if !small.iter().all(|node| large.contains(node)) {
                return Err(told(format!(
                    "the in-sync set of shard {number} changes within term {} from {members:?} to {:?}",
                    record.term.0, record.isr
                )));
            }
        }
        if state.policy.version > 0 {
            let known = self
                .policies
                .entry(state.policy.version)
                .or_insert_with(|| state.policy.yaml.clone());
            if *known != state.policy.yaml {
                let version = state.policy.version;
                return Err(told(format!(
                    "version {version} of the policy is two texts"
                )));
            }
        }
        Ok(())
    }
}

fn never_back(state: &ClusterState, earlier: &ClusterState) -> Result<(), String> {
    let pairs = [
        ("index", earlier.applied_index, state.applied_index),
        ("epoch", earlier.epoch, state.epoch),
        ("next node", earlier.next_node, state.next_node),
        (
            "version of the policy",
            earlier.policy.version.into(),
            state.policy.version.into(),
        ),
    ];
    for (what, before, now) in pairs {
        if now < before {
            return Err(format!("the {what} goes back from {before} to {now}"));
        }
    }
    for (shard, (before, now)) in earlier.shard_map.iter().zip(&state.shard_map).enumerate() {
        let grows = now.term == before.term && now.isr.len() > before.isr.len();
        if now.term < before.term || grows {
            return Err(format!("shard {shard} goes from {before:?} to {now:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_raft::state::ShardRecord;

    fn state(index: u64, term: u64, primary: u64, isr: &[u64]) -> ClusterState {
        ClusterState {
            applied_index: index,
            shard_map: vec![ShardRecord {
                term: Term(term),
                primary: NodeId(primary),
                isr: isr.iter().map(|node| NodeId(*node)).collect(),
                filling: Vec::new(),
                moving_to: None,
            }],
            ..ClusterState::default()
        }
    }

    #[test]
    fn two_primaries_of_a_term_and_sets_that_grow_within_one_are_found() {
        let mut owners = Owners::default();
        let first = state(1, 1, 1, &[1, 2, 3]);
        owners.see(&first, None).unwrap();
        let shrunk = state(2, 1, 1, &[1, 3]);
        owners.see(&shrunk, Some(&first)).unwrap();
        owners.see(&first, None).unwrap();
        let next = state(3, 2, 3, &[1, 3]);
        owners.see(&next, Some(&shrunk)).unwrap();

        assert!(owners.see(&state(4, 2, 1, &[1, 3]), None).is_err());
        assert!(owners.see(&state(4, 1, 1, &[1, 4]), None).is_err());
        let grown = state(4, 1, 1, &[1, 2, 3]);
        assert!(owners.see(&grown, Some(&shrunk)).is_err());
        assert!(owners.see(&state(4, 1, 1, &[1, 3]), Some(&next)).is_err());
    }
}
