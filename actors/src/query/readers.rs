//! Traces that other nodes read, piece by piece: each is held until it was read, or nobody has read on for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, TenantId, TraceId};
use spandrel_model::ports::TraceReader;
use tokio::time::Instant;

use crate::limits::{HOLDERS_RETRY_MS, MAX_ANSWER_BYTES, MAX_PEER_READERS, PEER_READER_IDLE_MS};
use crate::wire::TracePiece;

/// Cuts the pieces of a reader to what a message takes, and knows which one is the last.
pub(super) struct Chunks {
    reader: Box<dyn TraceReader>,
    /// What is left of the piece under way.
    rest: Bytes,
    /// The piece behind it.
    next: Option<Bytes>,
}

impl Chunks {
    pub(super) async fn open(mut reader: Box<dyn TraceReader>) -> Result<Self, PortError> {
        let rest = reader.next().await?.unwrap_or_default();
        let next = reader.next().await?;
        Ok(Self { reader, rest, next })
    }

    pub(super) async fn next(&mut self) -> Result<TracePiece, PortError> {
        let bytes = self.rest.split_to(self.rest.len().min(MAX_ANSWER_BYTES));
        let goes_on = !self.rest.is_empty();
        let last = !goes_on && self.next.is_none();
        if !goes_on && let Some(next) = self.next.take() {
            self.rest = next;
            self.next = self.reader.next().await?;
        }
        Ok(TracePiece {
            bytes,
            goes_on,
            last,
        })
    }
}

/// Who reads which trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReaderOwner {
    pub(super) node: NodeId,
    pub(super) tenant: TenantId,
    pub(super) trace_id: TraceId,
}

struct Held {
    owner: ReaderOwner,
    /// Pulls so far.
    pulls: u64,
    used: Instant,
    /// `None` while it is read.
    chunks: Option<Chunks>,
}

/// The readers that this node holds for others.
///
/// Invariants: at most [`MAX_PEER_READERS`]; ids are not used twice while the process lives, and only the owner that a
/// reader was opened for reads it: after a restart an old id cannot show another trace.
#[derive(Default)]
pub(super) struct Readers {
    held: Mutex<HeldReaders>,
}

#[derive(Default)]
struct HeldReaders {
    last_id: u64,
    by_id: BTreeMap<u64, Held>,
}

impl Readers {
    /// Holds a reader and returns its id.
    pub(super) fn hold(
        self: &Arc<Self>,
        owner: ReaderOwner,
        chunks: Chunks,
    ) -> Result<u64, PortError> {
        let id = {
            let mut held = self.lock();
            if held.by_id.len() >= MAX_PEER_READERS {
                let message = format!("{MAX_PEER_READERS} traces are read here already");
                return Err(PortError::unavailable(
                    "too_many_readers",
                    message,
                    HOLDERS_RETRY_MS,
                ));
            }
            held.last_id += 1;
            let (id, used) = (held.last_id, Instant::now());
            let reader = Held {
                owner,
                pulls: 0,
                used,
                chunks: Some(chunks),
            };
            held.by_id.insert(id, reader);
            id
        };
        let readers = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(until) = readers.expire(id) {
                tokio::time::sleep_until(until).await;
            }
        });
        Ok(id)
    }

    /// Reads on: pull `number` of a reader.
    pub(super) async fn pull(
        &self,
        owner: &ReaderOwner,
        id: u64,
        number: u64,
    ) -> Result<TracePiece, PortError> {
        let gone = || {
            let message = "nobody read on for a while, or the node was restarted";
            PortError::new(ErrorClass::NotFound, "reader_gone", message)
        };
        let mut chunks = {
            let mut held = self.lock();
            let reader = held.by_id.get_mut(&id).ok_or_else(gone)?;
            if reader.owner != *owner || reader.pulls.checked_add(1) != Some(number) {
                return Err(gone());
            }
            reader.pulls = number;
            reader.used = Instant::now();
            reader.chunks.take().ok_or_else(gone)?
        };
        let piece = chunks.next().await;
        let mut held = self.lock();
        match (&piece, held.by_id.get_mut(&id)) {
            (Ok(piece), Some(reader)) if !piece.last => {
                reader.used = Instant::now();
                reader.chunks = Some(chunks);
            }
            _ => {
                held.by_id.remove(&id);
            }
        }
        piece
    }

    /// Lets a reader go when it was not used for long. Returns when to look again; `None` when it is gone.
    fn expire(&self, id: u64) -> Option<Instant> {
        let mut held = self.lock();
        let until = held.by_id.get(&id)?.used + Duration::from_millis(PEER_READER_IDLE_MS);
        if until > Instant::now() {
            return Some(until);
        }
        held.by_id.remove(&id);
        None
    }

    fn lock(&self) -> MutexGuard<'_, HeldReaders> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().by_id.len()
    }
}
