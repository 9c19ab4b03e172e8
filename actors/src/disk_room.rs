//! What is left of the disk, against the reserve that belongs to verdicts, pages, deletes and the settings. Pure, but for
//! [`Watermarks`], which hold what was seen last.

use std::sync::atomic::{AtomicBool, Ordering};

/// How much is left. The marks stand above the reserve by a half of it, and by all of it, but on a small disk by no more
/// than an eighth and a quarter of what is not reserve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskRoom {
    #[default]
    Enough,
    /// Less than the lower mark, and not the upper one since: others are to take the shards.
    Short,
    /// Less than the reserve.
    Reserve,
    /// Less than half of it.
    HalfReserve,
}

impl DiskRoom {
    /// What `free` bytes of `total` are, when it was `before`.
    pub(crate) fn of(free: u64, total: u64, reserve: u64, before: Self) -> Self {
        let above = total.saturating_sub(reserve);
        let lower = reserve.saturating_add((reserve / 2).min(above / 8));
        let upper = reserve.saturating_add(reserve.min(above / 4));
        match free {
            _ if free < reserve / 2 => Self::HalfReserve,
            _ if free < reserve => Self::Reserve,
            _ if free < lower => Self::Short,
            // What has given its shards away has a little more room: they are not to come back for that.
            _ if free < upper && before != Self::Enough => Self::Short,
            _ => Self::Enough,
        }
    }

    /// Whether spans are refused. While others can take the shards, the first half of the reserve pays for the time that
    /// it takes them.
    pub(crate) fn refuses(self, others_can: bool) -> bool {
        match self {
            Self::Enough | Self::Short => false,
            Self::Reserve => !others_can,
            Self::HalfReserve => true,
        }
    }
}

/// What this node's disk has come to, for all actors.
#[derive(Debug, Default)]
pub(crate) struct Watermarks {
    short: AtomicBool,
    refuses: AtomicBool,
}

impl Watermarks {
    pub(crate) fn set(&self, room: DiskRoom, others_can: bool) {
        self.short.store(room >= DiskRoom::Short, Ordering::Relaxed);
        self.refuses
            .store(room.refuses(others_can), Ordering::Relaxed);
    }

    /// The node is to give its shards away.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// The node takes no spans.
    pub(crate) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_given_away_before_the_reserve_and_come_back_late() {
        let room = |free, before| DiskRoom::of(free, 1_000, 100, before);
        assert_eq!(room(150, DiskRoom::Enough), DiskRoom::Enough);
        assert_eq!(room(149, DiskRoom::Enough), DiskRoom::Short);
        assert_eq!(room(199, DiskRoom::Short), DiskRoom::Short);
        assert_eq!(room(199, DiskRoom::HalfReserve), DiskRoom::Short);
        assert_eq!(room(200, DiskRoom::Short), DiskRoom::Enough);
        assert_eq!(room(99, DiskRoom::Short), DiskRoom::Reserve);
        assert_eq!(room(49, DiskRoom::Short), DiskRoom::HalfReserve);
        assert_eq!(
            DiskRoom::of(0, 1_000, 0, DiskRoom::Enough),
            DiskRoom::Enough
        );
    }

    #[test]
    fn a_small_disk_that_is_empty_has_enough() {
        for (total, short, enough) in [(400, 224, 250), (220, 202, 205)] {
            let room = |free, before| DiskRoom::of(free, total, 200, before);
            assert_eq!(room(total, DiskRoom::Short), DiskRoom::Enough);
            assert_eq!(room(short, DiskRoom::Short), DiskRoom::Short);
            assert_eq!(room(enough, DiskRoom::Short), DiskRoom::Enough);
        }
        assert_eq!(
            DiskRoom::of(150, 150, 200, DiskRoom::Enough),
            DiskRoom::Reserve
        );
    }

    #[test]
    fn the_reserve_pays_for_a_move_and_for_nothing_else() {
        assert!(!DiskRoom::Short.refuses(false));
        assert!(!DiskRoom::Reserve.refuses(true));
        assert!(DiskRoom::Reserve.refuses(false));
        assert!(DiskRoom::HalfReserve.refuses(true));
    }
}
