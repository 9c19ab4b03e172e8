//! A file of the simulated disk: the bytes that programs see, the bytes that are safe, and what lies between.

use std::io::{self, ErrorKind};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A seeded source of choices (splitmix64).
#[derive(Debug)]
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        let below = self.next() % bound.max(1) as u64;
        usize::try_from(below).unwrap_or_default()
    }
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => overwrite(bytes, *offset, data),
            Self::Len(len) => bytes.resize(*len, 0),
        }
    }
}

fn overwrite(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(place) = bytes.get_mut(offset..end) {
        place.copy_from_slice(data);
    }
}

/// Invariants: `durable` with `unsynced` applied in order is `bytes`, unless a sync failed.
#[derive(Debug, Default)]
pub(super) struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

impl Inode {
    /// A file whose bytes are safe.
    pub(super) fn durable(bytes: Vec<u8>) -> Self {
        Self {
            durable: bytes.clone(),
            bytes,
            unsynced: Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = index(offset)?;
        let found = self.bytes.get(start..start.saturating_add(out.len()));
        out.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let change = Change::Write(index(offset)?, data.to_vec());
        change.apply(&mut self.bytes);
        self.unsynced.push(change);
        Ok(())
    }

    pub(super) fn set_len(&mut self, len: u64) -> io::Result<()> {
        let change = Change::Len(index(len)?);
        change.apply(&mut self.bytes);
        self.unsynced.push(change);
        Ok(())
    }

    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Decides what of the unsynced changes is on the disk; the rest will never be. Returns how many writes are there in
    /// part.
    pub(super) fn lose_unsynced(&mut self, numbers: &mut Numbers) -> u64 {
        let mut changes = std::mem::take(&mut self.unsynced);
        let (keeps_none, tears) = match numbers.below(4) {
            0 => (true, false),
            1 => (false, false),
            _ => (false, true),
        };
        let mut torn = 0;
        if keeps_none {
            return torn;
        }
        if tears {
            shuffle_writes(&mut changes, numbers);
        }
        for change in changes {
            match change {
                Change::Write(offset, data) if tears => {
                    torn += u64::from(self.tear(offset, &data, numbers));
                }
                whole if numbers.coin() => whole.apply(&mut self.durable),
                _ => {}
            }
        }
        torn
    }

    /// Keeps a random half of the sectors that a write touches. True when these are some and not all.
    fn tear(&mut self, offset: usize, data: &[u8], numbers: &mut Numbers) -> bool {
        let mut at = offset;
        let mut rest = data;
        let (mut kept, mut lost) = (false, false);
        while !rest.is_empty() {
            let in_sector = SECTOR_BYTES - at % SECTOR_BYTES;
            let (piece, after) = rest.split_at(in_sector.min(rest.len()));
            if numbers.coin() {
                overwrite(&mut self.durable, at, piece);
                kept = true;
            } else {
                lost = true;
            }
            at += piece.len();
            rest = after;
        }
        kept && lost
    }

    /// After a power loss programs see what is durable.
    pub(super) fn restart(&mut self) {
        self.bytes.clone_from(&self.durable);
        self.unsynced.clear();
    }

    pub(super) fn flip(&mut self, offset: u64, mask: u8) -> bool {
        let Ok(offset) = index(offset) else {
            return false;
        };
        let mut found = false;
        for image in [&mut self.bytes, &mut self.durable] {
            if let Some(byte) = image.get_mut(offset) {
                *byte ^= mask;
                found = true;
            }
        }
        found
    }

    /// What is at `from` lies at `to` as well. False when that changes nothing, or one of them was never written.
    pub(super) fn misdirect(&mut self, from: u64, to: u64, len: usize) -> bool {
        let (Ok(from), Ok(to)) = (index(from), index(to)) else {
            return false;
        };
        let mut has_changed = false;
        for image in [&mut self.bytes, &mut self.durable] {
            let written = image.get(from..from + len).map(<[u8]>::to_vec);
            let Some((written, place)) = written.zip(image.get_mut(to..to + len)) else {
                continue;
            };
            if [&written[..], place]
                .iter()
                .any(|bytes| bytes.iter().all(|byte| *byte == 0))
            {
                continue;
            }
            has_changed |= written != place;
            place.copy_from_slice(&written);
        }
        has_changed
    }
}

/// Puts writes in another order, but none across a change of the length: file systems keep that order.
fn shuffle_writes(changes: &mut [Change], numbers: &mut Numbers) {
    for run in changes.split_mut(|change| matches!(change, Change::Len(_))) {
        for last in (1..run.len()).rev() {
            run.swap(last, numbers.below(last + 1));
        }
    }
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_synced_bytes_are_certain_and_lost_ones_go_by_sectors() {
        let mut torn = 0;
        for seed in 0..200 {
            // Given a synced file and an unsynced overwrite of four sectors
            let mut inode = Inode::default();
            inode.write(0, &[1; 4 * SECTOR_BYTES]).unwrap();
            inode.sync();
            inode.write(0, &[2; 4 * SECTOR_BYTES]).unwrap();
            // When the power fails
            inode.lose_unsynced(&mut Numbers(seed));
            inode.restart();
            // Then each sector is whole
            let sectors = inode.bytes().chunks(SECTOR_BYTES);
            let mut new = 0;
            for sector in sectors {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                new += usize::from(sector[0] == 2);
            }
            torn += usize::from((1..4).contains(&new));
        }
        assert!(torn > 50, "{torn}");
    }
}
