//! The distance between commits.
//!
//! Each commit costs a third of a millisecond of processor time, however little it holds (measured, redb and fsync). A
//! node of several gets records from clients, from entry nodes and from primaries in small pieces: each by itself would
//! make a commit. A lone request is committed at once all the same, because the last commit was long ago.

use std::time::Duration;

use ractor::ActorRef;
use tokio::time::Instant;

use super::{WriterMessage, WriterState};
use crate::limits::COMMIT_PACE_MS;

/// When commits may begin.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    /// A [`WriterMessage::Paced`] is on its way.
    pub(super) waits: bool,
    /// The commit waits for the build that is under way.
    pub(super) joins: bool,
}

impl Pace {
    /// A commit begins.
    pub(super) fn began(&mut self) {
        self.last = Some(Instant::now());
    }

    fn next(&self) -> Option<Instant> {
        Some(self.last? + Duration::from_millis(COMMIT_PACE_MS))
    }
}

impl WriterState {
    /// Whether other nodes send frames here, or get frames.
    pub(super) fn has_peers(&self) -> bool {
        self.map.nodes.len() > 1
    }

    /// Whether it is too early for the next commit. Then a message comes when it is time.
    pub(super) fn is_early(&mut self, myself: &ActorRef<WriterMessage>) -> bool {
        let next = self.pace.next().filter(|_| self.has_peers());
        let Some(next) = next.filter(|next| Instant::now() < *next) else {
            return false;
        };
        if !self.pace.waits {
            self.pace.waits = true;
            let myself = myself.clone();
            let wait = async move {
                tokio::time::sleep_until(next).await;
                // The node is stopping when nobody listens.
                let _ = myself.cast(WriterMessage::Paced);
            };
            self.shared.spawn_job("writer", wait);
        }
        true
    }
}
