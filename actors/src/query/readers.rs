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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    /// Gives its pieces, then an error if it has one.
    struct Pieces(Vec<Bytes>, Option<PortError>);

    #[async_trait]
    impl TraceReader for Pieces {
        async fn next(&mut self) -> Result<Option<Bytes>, PortError> {
            match (self.0.pop(), self.1.take()) {
                (Some(piece), error) => {
                    self.1 = error;
                    Ok(Some(piece))
                }
                (None, Some(error)) => Err(error),
                (None, None) => Ok(None),
            }
        }
    }

    async fn chunks(pieces: &[usize]) -> Chunks {
        let pieces = pieces.iter().rev().map(|len| Bytes::from(vec![7; *len]));
        let pieces = Pieces(pieces.collect(), None);
        Chunks::open(Box::new(pieces)).await.unwrap()
    }

    fn owner(node: u64) -> ReaderOwner {
        ReaderOwner {
            node: NodeId(node),
            tenant: TenantId::default(),
            trace_id: TraceId([1; 16]),
        }
    }

    #[tokio::test]
    async fn pieces_are_cut_to_messages_and_the_last_one_says_so() {
        let mut chunks = chunks(&[10, 2 * MAX_ANSWER_BYTES + 1, MAX_ANSWER_BYTES]).await;
        let expected = [
            (10, false, false),
            (MAX_ANSWER_BYTES, true, false),
            (MAX_ANSWER_BYTES, true, false),
            (1, false, false),
            (MAX_ANSWER_BYTES, false, true),
        ];
        for expected in expected {
            let piece = chunks.next().await.unwrap();
            assert_eq!((piece.bytes.len(), piece.goes_on, piece.last), expected);
        }
        let nothing = super::tests::chunks(&[]).await.next().await.unwrap();
        assert!(nothing.bytes.is_empty() && nothing.last);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_owner_reads_each_piece_once_until_the_end() {
        let readers = Arc::new(Readers::default());
        let id = readers.hold(owner(2), chunks(&[1, 2]).await).unwrap();
        assert!(
            readers.pull(&owner(3), id, 1).await.is_err(),
            "of another node"
        );
        assert!(readers.pull(&owner(2), id + 1, 1).await.is_err());
        assert!(readers.pull(&owner(2), id, 0).await.is_err());
        assert!(
            readers.pull(&owner(2), id, 2).await.is_err(),
            "a pull was lost"
        );
        assert_eq!(readers.pull(&owner(2), id, 1).await.unwrap().bytes.len(), 1);
        assert!(readers.pull(&owner(2), id, 1).await.is_err(), "asked again");
        assert!(readers.pull(&owner(2), id, 2).await.unwrap().last);
        assert_eq!(readers.len(), 0);
        assert_eq!(
            readers.pull(&owner(2), id, 3).await.unwrap_err().code,
            "reader_gone"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn readers_are_bounded_and_expire() {
        let readers = Arc::new(Readers::default());
        let mut last = 0;
        for _ in 0..MAX_PEER_READERS {
            last = readers.hold(owner(2), chunks(&[1, 2, 3]).await).unwrap();
        }
        let refused = readers.hold(owner(2), chunks(&[1, 2]).await).unwrap_err();
        assert_eq!(refused.code, "too_many_readers");
        tokio::time::sleep(Duration::from_millis(PEER_READER_IDLE_MS - 1)).await;
        readers.pull(&owner(2), last, 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(readers.len(), 1, "the one that is read stays");
        tokio::time::sleep(Duration::from_millis(PEER_READER_IDLE_MS)).await;
        assert_eq!(readers.len(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_fails_is_let_go() {
        let readers = Arc::new(Readers::default());
        let error = PortError::internal("broken");
        let pieces = vec![Bytes::from_static(b"b"), Bytes::from_static(b"a")];
        let pieces = Chunks::open(Box::new(Pieces(pieces, Some(error.clone())))).await;
        let id = readers.hold(owner(2), pieces.unwrap()).unwrap();
        assert_eq!(readers.pull(&owner(2), id, 1).await, Err(error));
        assert_eq!(readers.len(), 0);
    }
}
