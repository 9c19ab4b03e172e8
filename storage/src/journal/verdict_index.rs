//! Where the verdicts of a slice are: exact and in memory while the slice is open, sorted on disk once it is sealed.

use std::collections::BTreeMap;

use hashbrown::HashTable;
use spandrel_model::ids::ShardId;

use super::wire::{Reader, put_varint};
use crate::limits::VERDICT_INDEX_CHUNK_ENTRIES;

/// A verdict's place: frame and index among the frame's verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Number of the frame in its slice.
    pub(crate) frame: u32,
    /// Number of the verdict in its frame.
    pub(crate) index: u32,
}

/// Bits of a hash that the sealed index keeps: of millions of verdicts hardly two agree in 48 bits, and the frame
/// that they point to decides.
const STORED_HASH_SHIFT: u32 = 16;
/// No older entry.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    position: Position,
    /// The entry of the same hash before this one.
    older: u32,
}

/// The verdicts of one shard in commit order, found by hash.
///
/// Invariants: `newest` holds, for each hash, the index of its last entry.
#[derive(Debug, Default)]
struct ShardVerdicts {
    entries: Vec<Entry>,
    newest: HashTable<u32>,
}

impl ShardVerdicts {
    fn insert(&mut self, hash: u64, position: Position) {
        let Ok(index) = u32::try_from(self.entries.len()) else {
            return; // 2^32 verdicts do not fit a slice
        };
        let Self { entries, newest } = self;
        let hash_of = |index: &u32| entries.get(*index as usize).map_or(0, |entry| entry.hash);
        let slot = newest.entry(hash, |other| hash_of(other) == hash, hash_of);
        let older = match slot {
            hashbrown::hash_table::Entry::Occupied(mut found) => {
                std::mem::replace(found.get_mut(), index)
            }
            hashbrown::hash_table::Entry::Vacant(free) => {
                free.insert(index);
                NONE
            }
        };
        entries.push(Entry {
            hash,
            position,
            older,
        });
    }

    fn newest(&self, hash: u64) -> Option<u32> {
        let same = |index: &u32| {
            let entry = self.entries.get(*index as usize);
            entry.is_some_and(|entry| entry.hash == hash)
        };
        self.newest.find(hash, same).copied()
    }
}

/// The verdicts of a slice that is open or not sealed yet. Split by shard, so that no insertion moves more than one
/// shard's table.
#[derive(Debug, Default)]
pub(crate) struct OpenVerdicts {
    shards: BTreeMap<ShardId, ShardVerdicts>,
}

impl OpenVerdicts {
    pub(crate) fn insert(&mut self, shard: ShardId, hash: u64, position: Position) {
        self.shards.entry(shard).or_default().insert(hash, position);
    }

    pub(crate) fn contains(&self, shard: ShardId, hash: u64) -> bool {
        let shard = self.shards.get(&shard);
        shard.is_some_and(|shard| shard.newest(hash).is_some())
    }

    /// Places of verdicts with this hash, newest first.
    pub(crate) fn positions(&self, shard: ShardId, hash: u64) -> Vec<Position> {
        let Some(shard) = self.shards.get(&shard) else {
            return Vec::new();
        };
        let mut positions = Vec::new();
        let mut next = shard.newest(hash);
        while let Some(entry) = next.and_then(|index| shard.entries.get(index as usize)) {
            positions.push(entry.position);
            next = Some(entry.older);
        }
        positions
    }

    /// All hashes with their places.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, Position)> {
        let entries = self.shards.values().flat_map(|shard| &shard.entries);
        entries.map(|entry| (entry.hash, entry.position))
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.values().map(|shard| shard.entries.len()).sum()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let shards = self.shards.values();
        shards
            .map(|shard| {
                let entries = shard.entries.capacity() * size_of::<Entry>();
                entries + shard.newest.capacity() * (size_of::<u32>() + 1)
            })
            .sum()
    }
}

/// The form of a hash under which the sealed index knows it.
pub(crate) fn stored_hash(hash: u64) -> u64 {
    hash >> STORED_HASH_SHIFT
}

/// Cuts the entries of a slice into the chunks of its sealed index: first stored hash, bytes. Entries of one hash
/// stay together.
pub(crate) fn encode_chunks(entries: impl Iterator<Item = (u64, Position)>) -> Vec<(u64, Vec<u8>)> {
    let mut sorted: Vec<_> = entries
        .map(|(hash, position)| (stored_hash(hash), position))
        .collect();
    sorted.sort_unstable();
    let mut chunks = Vec::new();
    let mut rest = sorted.as_slice();
    while let Some((first, _)) = rest.first() {
        let mut end = rest.len().min(VERDICT_INDEX_CHUNK_ENTRIES);
        let last = rest.get(end - 1).map(|(hash, _)| *hash);
        while rest.get(end).map(|(hash, _)| *hash) == last && end < rest.len() {
            end += 1;
        }
        let (chunk, after) = rest.split_at(end);
        chunks.push((*first, encode_chunk(*first, chunk)));
        rest = after;
    }
    chunks
}

fn encode_chunk(first: u64, entries: &[(u64, Position)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut previous = first;
    for (hash, position) in entries {
        put_varint(&mut out, hash - previous);
        put_varint(&mut out, u64::from(position.frame));
        put_varint(&mut out, u64::from(position.index));
        previous = *hash;
    }
    out
}

/// Places of verdicts with this hash in a chunk, newest first; `None` when the bytes do not follow the format.
pub(crate) fn find_in_chunk(first: u64, bytes: &[u8], hash: u64) -> Option<Vec<Position>> {
    let wanted = stored_hash(hash);
    let mut reader = Reader::new(bytes);
    let mut current = first;
    let mut positions = Vec::new();
    while reader.remaining() > 0 {
        current = current.checked_add(reader.varint()?)?;
        let position = Position {
            frame: reader.varint_u32()?,
            index: reader.varint_u32()?,
        };
        if current > wanted {
            break;
        }
        if current == wanted {
            positions.push(position);
        }
    }
    positions.reverse();
    Some(positions)
}
