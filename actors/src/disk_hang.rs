//! Notices that the disk does not answer: a commit of the journal does not come to an end. The links of such a node would go
//! on as if nothing were, so that the shards that it has would wait for it without end, and nobody would take their lead.
//! So it leaves the links until the disk answers, and is down for the others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use metrics::gauge;
use tokio::time::sleep;

use crate::limits::{DISK_HANG_LOOKS, DISK_LOOK_MS};
use crate::link::Link;
use crate::shared::Shared;

/// What is known of the disk's answers.
#[derive(Debug, Default)]
pub(crate) struct DiskHang {
    /// Beginnings and ends of commits: odd while one is under way.
    turns: AtomicU64,
    hangs: AtomicBool,
}

impl DiskHang {
    /// A commit goes to the disk. There is one at a time.
    pub(crate) fn begins(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// It has come to an end.
    pub(crate) fn ends(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// The disk does not answer.
    pub(crate) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }
}

/// What the looks have seen. They are counted, not timed: a process that stood still does not take its own pause for the
/// disk's.
#[derive(Debug, Default)]
struct Looks {
    turn: u64,
    same: u32,
}

impl Looks {
    /// Whether the commit that is under way has been for too long.
    fn look(&mut self, turn: u64) -> bool {
        let is_same = turn == self.turn && turn % 2 == 1;
        self.same = if is_same { self.same + 1 } else { 0 };
        self.turn = turn;
        self.same >= DISK_HANG_LOOKS
    }
}

/// Looks again and again, until the node has ended.
pub(crate) async fn watch(shared: Weak<Shared>, link: Weak<dyn Link>) {
    let mut looks = Looks::default();
    loop {
        sleep(Duration::from_millis(DISK_LOOK_MS)).await;
        let (Some(shared), Some(link)) = (shared.upgrade(), link.upgrade()) else {
            return;
        };
        let disk = &shared.disk_hang;
        let hangs = looks.look(disk.turns.load(Ordering::Relaxed));
        if disk.hangs.swap(hangs, Ordering::Relaxed) != hangs {
            tell(link.as_ref(), hangs);
        }
    }
}

fn tell(link: &dyn Link, hangs: bool) {
    gauge!("spandrel_disk_hangs").set(f64::from(u8::from(hangs)));
    link.set_apart(hangs.then(|| NO_ANSWER.to_owned()));
    if hangs {
        tracing::error!("{NO_ANSWER}: the node leaves the links until it does");
    } else {
        tracing::info!("the disk answers again");
    }
}

/// Why the node is not to be had.
pub(crate) const NO_ANSWER: &str = "its disk does not answer";

/// Watches the disk of a node with these links.
pub(crate) fn begin(shared: &Arc<Shared>, link: &Arc<dyn Link>) {
    gauge!("spandrel_disk_hangs").set(0.0);
    shared.spawn_job("disk", watch(Arc::downgrade(shared), Arc::downgrade(link)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_hangs_when_one_commit_is_seen_often() {
        let mut looks = Looks::default();
        for _ in 0..DISK_HANG_LOOKS * 3 {
            assert!(!looks.look(0), "nothing is under way");
        }
        // Another one at each look: the disk is busy, and answers.
        for turn in 0..u64::from(DISK_HANG_LOOKS) * 3 {
            assert!(!looks.look(turn * 2 + 1));
        }
        for _ in 0..DISK_HANG_LOOKS {
            assert!(!looks.look(7));
        }
        assert!(looks.look(7) && looks.look(7));
        assert!(!looks.look(8) && !looks.look(9));
    }
}
