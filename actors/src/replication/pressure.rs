//! The memory pressure of followers. They hold the entries of their shards too and decide nothing: their primaries do it
//! for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use spandrel_model::ids::NodeId;
use tokio::time::Instant;

use crate::limits::FOLLOWER_PRESSURE_MS;

/// What followers said last.
#[derive(Debug, Default)]
pub(crate) struct FollowerPressure {
    said: Mutex<BTreeMap<NodeId, (u8, Instant)>>,
}

impl FollowerPressure {
    /// A follower says what its pressure is, 0 to 4.
    pub(crate) fn note(&self, node: NodeId, level: u8) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(node, (level, Instant::now()));
    }

    /// The highest pressure of a follower that has said something lately.
    pub(crate) fn highest(&self) -> u8 {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = Duration::from_millis(FOLLOWER_PRESSURE_MS);
        said.retain(|_, (_, at)| at.elapsed() < lately);
        said.values().map(|(level, _)| *level).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_highest_counts_and_what_was_said_long_ago_does_not() {
        let followers = FollowerPressure::default();
        assert_eq!(followers.highest(), 0);
        followers.note(NodeId(1), 3);
        followers.note(NodeId(2), 1);
        assert_eq!(followers.highest(), 3);
        followers.note(NodeId(1), 0);
        assert_eq!(followers.highest(), 1);
        tokio::time::sleep(Duration::from_millis(FOLLOWER_PRESSURE_MS)).await;
        assert_eq!(followers.highest(), 0);
    }
}
