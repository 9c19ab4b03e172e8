//! What followers say of themselves with each answer. They hold the entries of their shards too and decide nothing: their
//! primaries do it for them, and refuse spans for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use spandrel_model::ids::NodeId;
use tokio::time::Instant;

use crate::limits::FOLLOWER_PRESSURE_MS;

/// What a follower says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FollowerState {
    /// Its memory pressure, 0 to 3.
    pub(crate) pressure: u8,
    /// Its disk has no room for spans.
    pub(crate) disk_is_full: bool,
}

/// What followers said last.
#[derive(Debug, Default)]
pub(crate) struct FollowerPressure {
    said: Mutex<BTreeMap<NodeId, (FollowerState, Instant)>>,
}

impl FollowerPressure {
    /// A follower says how it is.
    pub(crate) fn note(&self, node: NodeId, state: FollowerState) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(node, (state, Instant::now()));
    }

    /// The highest memory pressure of a follower that has said something lately.
    pub(crate) fn highest(&self) -> u8 {
        let states = self.lately().into_iter();
        states.map(|(_, state)| state.pressure).max().unwrap_or(0)
    }

    /// The followers that have said lately that their disk has no room.
    pub(crate) fn full(&self) -> Vec<NodeId> {
        let states = self.lately().into_iter();
        let full = states.filter(|(_, state)| state.disk_is_full);
        full.map(|(node, _)| node).collect()
    }

    fn lately(&self) -> Vec<(NodeId, FollowerState)> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = Duration::from_millis(FOLLOWER_PRESSURE_MS);
        said.retain(|_, (_, at)| at.elapsed() < lately);
        said.iter()
            .map(|(node, (state, _))| (*node, *state))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_highest_counts_and_what_was_said_long_ago_does_not() {
        let pressed = |pressure| FollowerState {
            pressure,
            disk_is_full: false,
        };
        let followers = FollowerPressure::default();
        assert_eq!(followers.highest(), 0);
        followers.note(NodeId(1), pressed(3));
        followers.note(NodeId(2), pressed(1));
        assert_eq!(followers.highest(), 3);
        followers.note(NodeId(1), pressed(0));
        assert_eq!(followers.highest(), 1);
        let full = FollowerState {
            pressure: 0,
            disk_is_full: true,
        };
        followers.note(NodeId(1), full);
        assert_eq!(
            (followers.highest(), followers.full()),
            (1, vec![NodeId(1)])
        );
        tokio::time::sleep(Duration::from_millis(FOLLOWER_PRESSURE_MS)).await;
        assert_eq!((followers.highest(), followers.full()), (0, vec![]));
    }
}
