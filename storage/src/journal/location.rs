//! Which frame of a slice holds a record: in memory while the slice is open, in chunks on disk once it is sealed.
//!
//! A row per shard and frame in a B-tree would touch as many leaf pages in each commit as there are shards: 64 pages
//! of 4 KiB for a frame of 35 KiB. So a frame has one row, in the order of frames, and the order by shard is made
//! once, when the slice is sealed.

use std::collections::BTreeMap;

use spandrel_model::ids::{Lsn, ShardId};

use super::record::LsnRange;
use super::wire::{Reader, put_varint};
use crate::limits::LOCATION_CHUNK_ENTRIES;

/// The records of one shard in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Number of the frame in its slice.
    pub(crate) frame: u32,
}

/// The places of a slice that is open or not sealed yet, ascending for each shard.
#[derive(Debug, Default)]
pub(crate) struct OpenLocations {
    shards: BTreeMap<ShardId, Vec<Place>>,
}

impl OpenLocations {
    pub(crate) fn insert(&mut self, frame: u32, range: &LsnRange) {
        let places = self.shards.entry(range.shard).or_default();
        let place = Place {
            first: range.first.0,
            last: range.last.0,
            frame,
        };
        if places.last().is_none_or(|last| *last < place) {
            places.push(place);
            return;
        }
        // Only a repaired replica may bring an older one later.
        let at = places.partition_point(|other| *other < place);
        places.insert(at, place);
    }

    pub(crate) fn find(&self, shard: ShardId, lsn: Lsn) -> Option<u32> {
        find(self.shards.get(&shard)?, lsn)
    }

    /// The first record from `lsn` on, and its frame.
    pub(crate) fn find_from(&self, shard: ShardId, lsn: Lsn) -> Option<(Lsn, u32)> {
        find_from(self.shards.get(&shard)?, lsn)
    }

    /// The last record up to `lsn`.
    pub(crate) fn floor(&self, shard: ShardId, lsn: Lsn) -> Option<Lsn> {
        floor(self.shards.get(&shard)?, lsn)
    }

    /// The chunks of the sealed index: shard, first number, bytes.
    pub(crate) fn encode_chunks(&self) -> Vec<(ShardId, u64, Vec<u8>)> {
        let mut chunks = Vec::new();
        for (shard, places) in &self.shards {
            for chunk in places.chunks(LOCATION_CHUNK_ENTRIES) {
                let first = chunk.first().map_or(0, |place| place.first);
                chunks.push((*shard, first, encode_chunk(first, chunk)));
            }
        }
        chunks
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let places = self.shards.values().map(Vec::capacity);
        places.sum::<usize>() * size_of::<Place>()
    }
}

fn find(places: &[Place], lsn: Lsn) -> Option<u32> {
    let after = places.partition_point(|place| place.first <= lsn.0);
    let place = places.get(after.checked_sub(1)?)?;
    (lsn.0 <= place.last).then_some(place.frame)
}

fn find_from(places: &[Place], lsn: Lsn) -> Option<(Lsn, u32)> {
    let at = places.partition_point(|place| place.last < lsn.0);
    let place = places.get(at)?;
    Some((Lsn(place.first.max(lsn.0)), place.frame))
}

fn floor(places: &[Place], lsn: Lsn) -> Option<Lsn> {
    let after = places.partition_point(|place| place.first <= lsn.0);
    let place = places.get(after.checked_sub(1)?)?;
    Some(Lsn(place.last.min(lsn.0)))
}

fn encode_chunk(first: u64, places: &[Place]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut previous, mut frame) = (first, 0);
    for place in places {
        put_varint(&mut out, place.first - previous);
        put_varint(&mut out, place.last - place.first);
        super::wire::put_difference(&mut out, frame, u64::from(place.frame));
        previous = place.first;
        frame = u64::from(place.frame);
    }
    out
}

/// The frame of a record in a chunk. The outer `None`: the bytes do not follow the format.
pub(crate) fn find_in_chunk(first: u64, bytes: &[u8], lsn: Lsn) -> Option<Option<u32>> {
    Some(find(&decode_chunk(first, bytes)?, lsn))
}

/// The first record of a chunk from `lsn` on, and its frame. The outer `None` as above.
pub(crate) fn find_from_in_chunk(first: u64, bytes: &[u8], lsn: Lsn) -> Option<Option<(Lsn, u32)>> {
    Some(find_from(&decode_chunk(first, bytes)?, lsn))
}

/// The last record of a chunk up to `lsn`. The outer `None` as above.
pub(crate) fn floor_in_chunk(first: u64, bytes: &[u8], lsn: Lsn) -> Option<Option<Lsn>> {
    Some(floor(&decode_chunk(first, bytes)?, lsn))
}

fn decode_chunk(first: u64, bytes: &[u8]) -> Option<Vec<Place>> {
    let mut reader = Reader::new(bytes);
    let mut places = Vec::new();
    let (mut previous, mut frame) = (first, 0);
    while reader.remaining() > 0 {
        previous = previous.checked_add(reader.varint()?)?;
        let last = previous.checked_add(reader.varint()?)?;
        frame = reader.difference(frame)?;
        places.push(Place {
            first: previous,
            last,
            frame: u32::try_from(frame).ok()?,
        });
    }
    Some(places)
}
