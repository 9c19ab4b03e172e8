//! Sealing a slice: its indexes go to disk, and it opens without reading its frames from then on.

use redb::WriteTransaction;

use super::filter::Filter;
use super::slice::{Index, Slice, State, decoded};
use super::slice_rows::{FILTER, LOCATIONS, META, SEALED, Sealed, VERDICTS};
use super::store::{self, Commit, StoreError, open_blob, seal_blob};
use super::verdict_index;
use crate::limits::FRAME_CHUNK_BYTES;

impl Slice {
    /// Stores the indexes of a closed slice and lets go of their open form.
    pub(crate) fn seal(&self) -> Result<(), StoreError> {
        let (sealed, filter, verdicts, locations) = {
            let state = self.state();
            let Index::Open {
                locations,
                verdicts,
            } = &state.index
            else {
                return Ok(());
            };
            let mut filter = Filter::with_capacity(verdicts.len());
            verdicts.entries().for_each(|(hash, _)| filter.insert(hash));
            let chunks = verdict_index::encode_chunks(verdicts.entries());
            let sealed = Sealed {
                first_sequence: state.first_sequence,
                frames: state.frames,
                bytes: state.bytes,
                first_commit: state.first_commit,
                last_commit: state.last_commit,
                ranges: state.ranges.clone(),
            };
            (sealed, filter, chunks, locations.encode_chunks())
        };
        // Quick repair: the file stays open for an hour, and no start after a crash may read all of it.
        store::write(&self.database, Commit::QuickRepair, |transaction| {
            let mut table = transaction.open_table(VERDICTS)?;
            for (first, chunk) in &verdicts {
                table.insert(*first, &*seal_blob(chunk))?;
            }
            let mut table = transaction.open_table(LOCATIONS)?;
            for (shard, first, chunk) in &locations {
                table.insert((shard.0, *first), &*seal_blob(chunk))?;
            }
            write_filter(transaction, &filter)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(SEALED, &*seal_blob(&sealed.encode()))?;
            Ok(())
        })?;
        let open = std::mem::replace(&mut self.state_mut().index, Index::Sealed(filter));
        drop(open); // after the lock is released
        Ok(())
    }
}

/// Takes the sums and the filter of a sealed slice.
pub(super) fn restore(
    state: &mut State,
    sealed: Sealed,
    transaction: &redb::ReadTransaction,
) -> Result<(), StoreError> {
    state.first_sequence = sealed.first_sequence;
    state.frames = sealed.frames;
    state.bytes = sealed.bytes;
    state.first_commit = sealed.first_commit;
    state.last_commit = sealed.last_commit;
    state.ranges = sealed.ranges;
    state.closed = true;
    state.index = Index::Sealed(read_filter(transaction)?);
    Ok(())
}

fn write_filter(transaction: &WriteTransaction, filter: &Filter) -> Result<(), StoreError> {
    let mut table = transaction.open_table(FILTER)?;
    let bytes = filter.to_bytes();
    for (number, piece) in (0_u32..).zip(bytes.chunks(FRAME_CHUNK_BYTES)) {
        table.insert(number, &*seal_blob(piece))?;
    }
    Ok(())
}

fn read_filter(transaction: &redb::ReadTransaction) -> Result<Filter, StoreError> {
    let mut bytes = Vec::new();
    for piece in transaction.open_table(FILTER)?.range::<u32>(..)? {
        bytes.extend_from_slice(open_blob(piece?.1.value())?);
    }
    decoded(Filter::from_bytes(&bytes))
}
