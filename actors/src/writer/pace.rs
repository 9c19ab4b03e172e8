//! The distance between commits.
//!
//! Each commit costs a third of a millisecond of processor time, however little it holds (measured, redb and fsync). A
//! node of several gets records from clients, from entry nodes and from primaries in small pieces: each by itself would
//! make a commit. Some commits in a row may come at once, as a lone request brings them to each node, which then leads
//! some of its shards and follows others: that one does not wait.
//!
//! A commit that takes long shows a machine with much to do, where larger commits leave more of it for everything else:
//! the distance follows how long commits take.

use std::time::Duration;

use ractor::ActorRef;
use tokio::time::Instant;

use super::{WriterMessage, WriterState};
use crate::limits::{COMMIT_BURST, COMMIT_PACE_MAX_MS, COMMIT_PACE_MS};

/// When commits may begin.
#[derive(Debug)]
pub(super) struct Pace {
    /// Between the beginnings of two.
    distance: Duration,
    /// When the last one began.
    began: Option<Instant>,
    /// When the next one would begin if all had kept their distance; never later than a burst from now.
    due: Option<Instant>,
    /// A [`WriterMessage::Paced`] is on its way.
    pub(super) waits: bool,
    /// The commit waits for the build that is under way.
    pub(super) joins: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            distance: LEAST,
            began: None,
            due: None,
            waits: false,
            joins: false,
        }
    }
}

impl Pace {
    /// A commit begins.
    pub(super) fn began(&mut self) {
        let now = Instant::now();
        self.began = Some(now);
        let due = self.due.map_or(now, |due| due.max(now)) + self.distance;
        // A node that is alone does not wait, and must owe nothing when another one joins.
        self.due = Some(due.min(now + self.distance * COMMIT_BURST));
    }

    /// It has come to the disk. The distance goes to twice what commits take, an eighth of the way each time.
    pub(super) fn ended(&mut self) {
        if let Some(began) = self.began.take() {
            let wanted = (began.elapsed() * 2).clamp(LEAST, MOST);
            self.distance = (self.distance * 7 + wanted) / 8;
        }
    }

    fn next(&self) -> Option<Instant> {
        self.due?.checked_sub(self.distance * (COMMIT_BURST - 1))
    }
}

const LEAST: Duration = Duration::from_millis(COMMIT_PACE_MS);
const MOST: Duration = Duration::from_millis(COMMIT_PACE_MAX_MS);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_commits_come_at_once_and_many_at_their_distance() {
        tokio::time::advance(LEAST * 100).await;
        let mut pace = Pace::default();
        let mut began = Vec::new();
        let start = Instant::now();
        while began.len() < 20 {
            if let Some(next) = pace.next() {
                tokio::time::sleep_until(next).await;
            }
            pace.began();
            began.push(start.elapsed());
        }
        let at_once = began.iter().filter(|at| at.is_zero()).count();
        assert_eq!(at_once, COMMIT_BURST as usize);
        let last = began.last().copied().unwrap_or_default();
        assert_eq!(last, LEAST * (20 - COMMIT_BURST));

        // and: what did not wait owes no more than a burst
        (0..1_000).for_each(|_| pace.began());
        assert!(pace.next() <= Some(Instant::now() + LEAST));

        // and: after a pause some may come at once again
        tokio::time::sleep(LEAST * 50).await;
        assert!(pace.next() <= Some(Instant::now()));
        pace.began();
        assert!(pace.next() <= Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_distance_follows_how_long_commits_take() {
        let mut pace = Pace::default();
        let commits = async |pace: &mut Pace, takes: Duration| {
            for _ in 0..100 {
                pace.began();
                tokio::time::sleep(takes).await;
                pace.ended();
            }
            pace.distance
        };
        let near = |distance: Duration, wanted: Duration| distance.abs_diff(wanted) < LEAST / 10;
        let distance = commits(&mut pace, LEAST).await;
        assert!(near(distance, LEAST * 2), "{distance:?}");
        let distance = commits(&mut pace, MOST).await;
        assert!(near(distance, MOST), "{distance:?}");
        let distance = commits(&mut pace, LEAST / 5).await;
        assert!(near(distance, LEAST), "{distance:?}");
    }
}
