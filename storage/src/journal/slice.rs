//! One slice of the journal: a redb file of frames, and the indexes over them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::{Database, Table};
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId, UnixNanos};

use super::encoded::VerdictKey;
use super::filter::{Filter, trace_hash};
use super::location::{self, OpenLocations};
use super::piece::{HEADER_BYTES, PAYLOAD_BYTES, PieceHead, PieceSeal};
use super::record::{FrameId, LsnRange, SliceInfo};
use super::slice_rows::{
    CARRIED, CREATED, Created, DIRECTORY, FILTER, FRAMES, FrameRow, LOCATIONS, META, SEALED,
    Sealed, VERDICTS, decode_carried, encode_carried,
};
use super::store::{self, Commit, StoreError, open_blob, seal_blob};
use super::verdict_index::{self, OpenVerdicts, Position};
use crate::disk::Disk;
use crate::limits::MAX_FRAME_BYTES;

/// A frame as a slice stores it. Without bytes and of no kind: one that is lost, with what was in it.
pub(crate) struct NewFrame<'a> {
    pub(crate) row: FrameRow,
    pub(crate) bytes: &'a [u8],
    pub(crate) verdict_keys: &'a [VerdictKey],
}

/// Of new files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SliceSettings {
    pub(crate) cache_bytes: usize,
    pub(crate) hash_seed: u64,
    pub(crate) commit: Commit,
}

/// A slice that is open or held.
pub(crate) struct Slice {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    pub(super) database: Database,
    pub(crate) created: Created,
    pub(crate) piece_seal: PieceSeal,
    commit: Commit,
    /// The file was closed in order when it was last open.
    pub(crate) was_closed: bool,
    state: RwLock<State>,
}

/// Invariants: frames have the sequences `first_sequence..first_sequence + frames`; `ranges` covers all their
/// records; a sealed slice is closed.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) first_sequence: u64,
    pub(crate) frames: u32,
    /// Of frames, as they were committed.
    pub(crate) bytes: u64,
    pub(crate) first_commit: UnixNanos,
    pub(crate) last_commit: UnixNanos,
    pub(crate) ranges: BTreeMap<ShardId, LsnRange>,
    /// Highest number of each shard before the slice's first frame.
    pub(crate) carried: BTreeMap<ShardId, Lsn>,
    pub(crate) closed: bool,
    pub(super) index: Index,
}

#[derive(Debug)]
pub(super) enum Index {
    Open {
        locations: OpenLocations,
        verdicts: OpenVerdicts,
    },
    Sealed(Filter),
}

impl State {
    fn new() -> Self {
        Self {
            first_sequence: 0,
            frames: 0,
            bytes: 0,
            first_commit: UnixNanos::default(),
            last_commit: UnixNanos::default(),
            ranges: BTreeMap::new(),
            carried: BTreeMap::new(),
            closed: false,
            index: Index::Open {
                locations: OpenLocations::default(),
                verdicts: OpenVerdicts::default(),
            },
        }
    }

    /// Notes a committed frame.
    fn add_frame(&mut self, sequence: u64, row: &FrameRow) {
        if self.frames == 0 {
            self.first_sequence = sequence;
            self.first_commit = row.committed_at;
        }
        let frame = self.frames;
        self.frames += 1;
        self.bytes += row.bytes;
        self.last_commit = row.committed_at;
        for range in &row.ranges {
            let whole = self.ranges.entry(range.shard).or_insert(*range);
            whole.first = whole.first.min(range.first);
            whole.last = whole.last.max(range.last);
            if let Index::Open { locations, .. } = &mut self.index {
                locations.insert(frame, range);
            }
        }
    }

    fn add_verdict(&mut self, shard: ShardId, hash: u64, position: Position) {
        if let Index::Open { verdicts, .. } = &mut self.index {
            verdicts.insert(shard, hash, position);
        }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.index, Index::Sealed(_))
    }

    pub(crate) fn last_sequence(&self) -> Option<u64> {
        let more = u64::from(self.frames).checked_sub(1)?;
        Some(self.first_sequence + more)
    }

    /// True when it holds that frame.
    pub(crate) fn contains(&self, sequence: u64) -> bool {
        let after = sequence.checked_sub(self.first_sequence);
        after.is_some_and(|after| after < u64::from(self.frames))
    }
}

impl Slice {
    /// Makes an empty slice file, durable under its name when this returns.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        settings: SliceSettings,
        now: UnixNanos,
    ) -> Result<Self, StoreError> {
        let created = Created {
            at: now,
            hash_seed: settings.hash_seed,
        };
        let database = store::create_database(disk, path, settings.cache_bytes, |transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(CREATED, &*seal_blob(&created.encode()))?;
            transaction.open_table(FRAMES)?;
            transaction.open_table(DIRECTORY)?;
            transaction.open_table(VERDICTS)?;
            transaction.open_table(LOCATIONS)?;
            transaction.open_table(FILTER)?;
            Ok(())
        })?;
        Ok(Self {
            id,
            path: path.to_owned(),
            database,
            created,
            piece_seal: PieceSeal::new(created.hash_seed),
            commit: settings.commit,
            was_closed: true,
            state: RwLock::new(State::new()),
        })
    }

    /// Opens a slice file. Of one that is not sealed, the directory is read here; [`Self::restore_verdicts`] does the
    /// rest.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        settings: SliceSettings,
    ) -> Result<Self, StoreError> {
        // Guarded as a whole: a damaged database may also assert while it is closed.
        store::guarded(|| Self::open_unguarded(disk, path, id, settings))
    }

    fn open_unguarded(
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        settings: SliceSettings,
    ) -> Result<Self, StoreError> {
        let backend = disk.open(path).map_err(redb::Error::Io)?;
        let was_closed = store::was_closed(backend.as_ref());
        let database = store::open_database(Ok(backend), settings.cache_bytes)?;
        let (created, state) = store::read(&database, |transaction| {
            let meta = transaction.open_table(META)?;
            let created = meta.get(CREATED)?;
            let created = created.ok_or_else(|| damaged("it has no row of its creation"))?;
            let created = decoded(Created::decode(open_blob(created.value())?))?;
            let mut state = State::new();
            if let Some(carried) = meta.get(CARRIED)? {
                state.carried = decoded(decode_carried(open_blob(carried.value())?))?;
            }
            match meta.get(SEALED)? {
                Some(row) => {
                    let sealed = decoded(Sealed::decode(open_blob(row.value())?))?;
                    super::slice_seal::restore(&mut state, sealed, transaction)?;
                }
                None => {
                    for row in transaction.open_table(DIRECTORY)?.range::<u64>(..)? {
                        let (sequence, row) = row?;
                        let row = decoded(FrameRow::decode(open_blob(row.value())?))?;
                        state.add_frame(sequence.value(), &row);
                    }
                }
            }
            Ok((created, state))
        })?;
        Ok(Self {
            id,
            path: path.to_owned(),
            database,
            created,
            piece_seal: PieceSeal::new(created.hash_seed),
            commit: settings.commit,
            was_closed,
            state: RwLock::new(state),
        })
    }

    /// Commits frames with the sequences from `first_sequence` on: durable when this returns. `carried` are the
    /// highest numbers of each shard before them; the slice's first commit stores them. `boot` goes into the pieces.
    pub(crate) fn commit(
        &self,
        first_sequence: u64,
        frames: &[NewFrame<'_>],
        carried: &BTreeMap<ShardId, Lsn>,
        boot: u64,
    ) -> Result<(), StoreError> {
        let is_first = self.state().frames == 0;
        store::write(&self.database, self.commit, |transaction| {
            if is_first {
                let mut meta = transaction.open_table(META)?;
                meta.insert(CARRIED, &*seal_blob(&encode_carried(carried)))?;
            }
            let mut pieces = transaction.open_table(FRAMES)?;
            let mut directory = transaction.open_table(DIRECTORY)?;
            for (sequence, frame) in (first_sequence..).zip(frames) {
                self.insert_pieces(&mut pieces, sequence, frame.bytes, boot)?;
                directory.insert(sequence, &*seal_blob(&frame.row.encode()))?;
            }
            Ok(())
        })?;
        let mut state = self.state_mut();
        if is_first {
            state.carried.clone_from(carried);
        }
        for (sequence, frame) in (first_sequence..).zip(frames) {
            let number = state.frames;
            state.add_frame(sequence, &frame.row);
            for (index, key) in (0_u32..).zip(frame.verdict_keys) {
                let hash = self.hash(key.shard, &key.tenant, key.trace_id);
                let position = Position {
                    frame: number,
                    index,
                };
                state.add_verdict(key.shard, hash, position);
            }
        }
        Ok(())
    }

    fn insert_pieces(
        &self,
        table: &mut Table<'_, (u64, u32), &'static [u8]>,
        sequence: u64,
        bytes: &[u8],
        boot: u64,
    ) -> Result<(), StoreError> {
        let too_large = || StoreError::Failed("a frame is over its limit".to_owned());
        let payloads = bytes.chunks(PAYLOAD_BYTES);
        let pieces = u16::try_from(payloads.len()).map_err(|_| too_large())?;
        for (piece, payload) in (0..pieces).zip(payloads) {
            let head = PieceHead {
                boot,
                sequence,
                piece,
                pieces,
                len: u32::try_from(payload.len()).map_err(|_| too_large())?,
            };
            let key = (sequence, u32::from(piece));
            let mut row = table.insert_reserve(key, HEADER_BYTES + payload.len())?;
            self.piece_seal.write(head, payload, row.as_mut());
        }
        Ok(())
    }

    /// The boot in which a frame was written; `None` when its first piece does not tell.
    pub(crate) fn boot_of(&self, id: FrameId) -> Result<Option<u64>, StoreError> {
        store::read(&self.database, |transaction| {
            let piece = transaction.open_table(FRAMES)?.get((id.0, 0))?;
            let head = piece.and_then(|piece| self.piece_seal.read(piece.value()));
            Ok(head.map(|sealed| sealed.head.boot))
        })
    }

    /// The bytes of a frame as they were committed, to be checked by its checksum; `None` when the slice has none of
    /// that number.
    pub(crate) fn frame_bytes(&self, id: FrameId) -> Result<Option<Vec<u8>>, StoreError> {
        if !self.state().contains(id.0) {
            return Ok(None);
        }
        store::read(&self.database, |transaction| {
            let pieces = transaction.open_table(FRAMES)?;
            let mut bytes = Vec::new();
            for (expected, piece) in (0_u32..).zip(pieces.range((id.0, 0)..=(id.0, u32::MAX))?) {
                let (key, piece) = piece?;
                let payload = piece.value().get(HEADER_BYTES..).unwrap_or_default();
                if key.value() != (id.0, expected) || bytes.len() + payload.len() > MAX_FRAME_BYTES
                {
                    return Err(damaged("pieces of the frame are missing"));
                }
                bytes.extend_from_slice(payload);
            }
            if bytes.is_empty() {
                return Err(damaged("its bytes are lost"));
            }
            Ok(Some(bytes))
        })
    }

    /// The frame that holds a record.
    pub(crate) fn locate(&self, shard: ShardId, lsn: Lsn) -> Result<Option<FrameId>, StoreError> {
        let first_sequence = {
            let state = self.state();
            let within = |range: &LsnRange| (range.first..=range.last).contains(&lsn);
            if !state.ranges.get(&shard).is_some_and(within) {
                return Ok(None);
            }
            if let Index::Open { locations, .. } = &state.index {
                let frame = locations.find(shard, lsn);
                return Ok(frame.map(|frame| FrameId(state.first_sequence + u64::from(frame))));
            }
            state.first_sequence
        };
        let frame = store::read(&self.database, |transaction| {
            let chunks = transaction.open_table(LOCATIONS)?;
            let Some(chunk) = chunks.range((shard.0, 0)..=(shard.0, lsn.0))?.next_back() else {
                return Ok(None);
            };
            let (key, chunk) = chunk?;
            let first = first_of(key.value(), shard)?;
            let chunk = open_blob(chunk.value())?;
            decoded(location::find_in_chunk(first, chunk, lsn))
        })?;
        Ok(frame.map(|frame| FrameId(first_sequence + u64::from(frame))))
    }

    /// The first record from `lsn` on, and its frame.
    pub(crate) fn locate_from(
        &self,
        shard: ShardId,
        lsn: Lsn,
    ) -> Result<Option<(Lsn, FrameId)>, StoreError> {
        let (first_sequence, lsn) = {
            let state = self.state();
            let range = state.ranges.get(&shard);
            let Some(range) = range.filter(|range| range.last >= lsn) else {
                return Ok(None);
            };
            let lsn = lsn.max(range.first);
            if let Index::Open { locations, .. } = &state.index {
                let place = locations.find_from(shard, lsn);
                let id = |frame| FrameId(state.first_sequence + u64::from(frame));
                return Ok(place.map(|(lsn, frame)| (lsn, id(frame))));
            }
            (state.first_sequence, lsn)
        };
        let place = store::read(&self.database, |transaction| {
            let table = transaction.open_table(LOCATIONS)?;
            // The chunk that may hold it, and the one behind.
            let before = table.range((shard.0, 0)..=(shard.0, lsn.0))?.next_back();
            let behind = table.range((shard.0, lsn.0.saturating_add(1))..=(shard.0, u64::MAX))?;
            for chunk in before.into_iter().chain(behind.take(1)) {
                let (key, chunk) = chunk?;
                let first = first_of(key.value(), shard)?;
                let chunk = open_blob(chunk.value())?;
                let found = decoded(location::find_from_in_chunk(first, chunk, lsn))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        })?;
        Ok(place.map(|(lsn, frame)| (lsn, FrameId(first_sequence + u64::from(frame)))))
    }

    /// The last record up to `lsn`.
    pub(crate) fn floor(&self, shard: ShardId, lsn: Lsn) -> Result<Option<Lsn>, StoreError> {
        let lsn = {
            let state = self.state();
            let range = state.ranges.get(&shard);
            let Some(range) = range.filter(|range| range.first <= lsn) else {
                return Ok(None);
            };
            if let Index::Open { locations, .. } = &state.index {
                return Ok(locations.floor(shard, lsn));
            }
            lsn.min(range.last)
        };
        store::read(&self.database, |transaction| {
            let table = transaction.open_table(LOCATIONS)?;
            let Some(chunk) = table.range((shard.0, 0)..=(shard.0, lsn.0))?.next_back() else {
                return Ok(None);
            };
            let (key, chunk) = chunk?;
            let first = first_of(key.value(), shard)?;
            let chunk = open_blob(chunk.value())?;
            decoded(location::floor_in_chunk(first, chunk, lsn))
        })
    }

    /// Whether the slice may hold a verdict with this hash. Memory only; never a false no.
    pub(crate) fn may_hold_verdict(&self, shard: ShardId, hash: u64) -> bool {
        match &self.state().index {
            Index::Open { verdicts, .. } => verdicts.contains(shard, hash),
            Index::Sealed(filter) => filter.may_contain(hash),
        }
    }

    /// Where the slice may hold verdicts with this hash, newest first.
    pub(crate) fn verdict_positions(
        &self,
        shard: ShardId,
        hash: u64,
    ) -> Result<Vec<(FrameId, u32)>, StoreError> {
        let (first_sequence, known) = {
            let state = self.state();
            let known = match &state.index {
                Index::Open { verdicts, .. } => Some(verdicts.positions(shard, hash)),
                Index::Sealed(filter) if !filter.may_contain(hash) => Some(Vec::new()),
                Index::Sealed(_) => None,
            };
            (state.first_sequence, known)
        };
        let positions = match known {
            Some(positions) => positions,
            None => store::read(&self.database, |transaction| {
                let chunks = transaction.open_table(VERDICTS)?;
                let wanted = verdict_index::stored_hash(hash);
                let Some(chunk) = chunks.range(..=wanted)?.next_back() else {
                    return Ok(Vec::new());
                };
                let (first, chunk) = chunk?;
                let chunk = open_blob(chunk.value())?;
                decoded(verdict_index::find_in_chunk(first.value(), chunk, hash))
            })?,
        };
        let place = |position: Position| {
            let id = FrameId(first_sequence + u64::from(position.frame));
            (id, position.index)
        };
        Ok(positions.into_iter().map(place).collect())
    }

    /// Adds the verdicts of a frame read back at start.
    pub(crate) fn restore_verdicts(&self, id: FrameId, hashes: &[(ShardId, u64)]) {
        let mut state = self.state_mut();
        let number = id.0.saturating_sub(state.first_sequence);
        let Ok(frame) = u32::try_from(number) else {
            return;
        };
        for (index, (shard, hash)) in (0_u32..).zip(hashes) {
            state.add_verdict(*shard, *hash, Position { frame, index });
        }
    }

    /// What was in a frame, as the commit noted it.
    pub(crate) fn frame_row(&self, id: FrameId) -> Result<FrameRow, StoreError> {
        store::read(&self.database, |transaction| {
            let row = transaction.open_table(DIRECTORY)?.get(id.0)?;
            let row = row.ok_or_else(|| damaged("the frame has no row in the directory"))?;
            decoded(FrameRow::decode(open_blob(row.value())?))
        })
    }

    pub(crate) fn hash(&self, shard: ShardId, tenant: &TenantId, trace: TraceId) -> u64 {
        trace_hash(self.created.hash_seed, shard, tenant, trace)
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// No frame will be added.
    pub(crate) fn close(&self) {
        self.state_mut().closed = true;
    }

    pub(crate) fn info(&self, allocated_bytes: u64) -> SliceInfo {
        let state = self.state();
        let when = |at| (state.frames > 0).then_some(at);
        SliceInfo {
            id: self.id,
            allocated_bytes,
            first_commit: when(state.first_commit),
            last_commit: when(state.last_commit),
            frames: u64::from(state.frames),
            shards: state.ranges.values().copied().collect(),
            closed: state.closed,
        }
    }

    pub(crate) fn index_memory_bytes(&self) -> usize {
        match &self.state().index {
            Index::Open {
                locations,
                verdicts,
            } => locations.memory_bytes() + verdicts.memory_bytes(),
            Index::Sealed(filter) => filter.memory_bytes(),
        }
    }
}

/// The first record of a chunk of locations. redb goes by what its branches say: where a page was written in the place of
/// another one, that may be a chunk of another shard.
fn first_of((of, first): (u16, u64), shard: ShardId) -> Result<u64, StoreError> {
    match of == shard.0 {
        true => Ok(first),
        false => Err(damaged("locations of another shard")),
    }
}

pub(super) fn damaged(reason: &str) -> StoreError {
    StoreError::Damaged(reason.to_owned())
}

pub(super) fn decoded<T>(value: Option<T>) -> Result<T, StoreError> {
    value.ok_or_else(|| damaged("a row does not follow the format"))
}
