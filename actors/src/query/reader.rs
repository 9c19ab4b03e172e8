//! Reads the spans of one trace, from the journal's frames and from blocks, each span once.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashSet;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{Lsn, ShardId, TenantId, TraceId};
use spandrel_model::otlp::{RawContext, with_sampling_threshold};
use spandrel_model::ports::TraceReader;
use spandrel_model::verdict::CERTAIN;
use spandrel_storage::block::FragmentLocation;
use xxhash_rust::xxh3::xxh3_64;

use super::pieces::PieceWriter;
use super::{block_error, storage_error};
use crate::facts::TraceSpans;
use crate::meters::Stage;
use crate::shared::Shared;

/// Where the spans of a trace are.
#[derive(Debug, Clone)]
pub(crate) struct TraceParts {
    pub(crate) tenant: TenantId,
    pub(crate) shard: ShardId,
    pub(crate) trace_id: TraceId,
    /// Records of the journal.
    pub(crate) references: VecDeque<Lsn>,
    /// Fragments in blocks.
    pub(crate) fragments: VecDeque<FragmentLocation>,
    /// The probability in 2^-32 with which such a trace is kept: rendered as `ot=th`.
    pub(crate) probability: u64,
}

impl TraceParts {
    /// The spans as they came: who puts them together with those of other nodes marks them.
    pub(crate) fn unmarked(self) -> Self {
        Self {
            probability: CERTAIN,
            ..self
        }
    }
}

/// A reader over [`TraceParts`].
pub(crate) struct PartsReader {
    shared: Arc<Shared>,
    /// `None` while a piece is being read.
    progress: Option<Progress>,
}

struct Progress {
    parts: TraceParts,
    seen: HashSet<u64, FixedState>,
    pieces: PieceWriter,
}

impl PartsReader {
    pub(crate) fn new(shared: Arc<Shared>, parts: TraceParts) -> Self {
        let seen = HashSet::default();
        Self {
            shared,
            progress: Some(Progress {
                parts,
                seen,
                pieces: PieceWriter::default(),
            }),
        }
    }
}

#[async_trait]
impl TraceReader for PartsReader {
    async fn next(&mut self) -> Result<Option<Bytes>, PortError> {
        let Some(mut progress) = self.progress.take() else {
            return Ok(None);
        };
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let piece = progress.piece(&shared);
            (piece, progress)
        };
        let (piece, progress) = self.shared.block(Stage::Query, read).await;
        if matches!(piece, Ok(Some(_))) {
            self.progress = Some(progress);
        }
        piece
    }
}

impl Progress {
    fn piece(&mut self, shared: &Shared) -> Result<Option<Bytes>, PortError> {
        while !self.pieces.has_piece() {
            let (seen, probability) = (&mut self.seen, self.parts.probability);
            let pieces = &mut self.pieces;
            let mut push = |context: &RawContext<'_>, span: &[u8]| {
                if seen.insert(xxh3_64(span)) {
                    pieces.push(context, &with_sampling_threshold(span, probability));
                }
            };
            if let Some(lsn) = self.parts.references.pop_front() {
                visit_record(shared, &self.parts, lsn, &mut push)?;
            } else if let Some(fragment) = self.parts.fragments.pop_front() {
                let mut push = |context: &RawContext<'_>, _, span: &[u8]| push(context, span);
                shared
                    .blocks
                    .visit(&fragment, &mut push)
                    .map_err(block_error)?;
            } else {
                return Ok(self.pieces.rest());
            }
        }
        Ok(self.pieces.next())
    }
}

/// Visits the trace's spans of one record; false when the journal does not hold it any more.
fn visit_record(
    shared: &Shared,
    parts: &TraceParts,
    lsn: Lsn,
    visit: &mut dyn FnMut(&RawContext<'_>, &[u8]),
) -> Result<bool, PortError> {
    let Some(id) = shared
        .journal
        .locate(parts.shard, lsn)
        .map_err(storage_error)?
    else {
        return Ok(false);
    };
    let frame = match shared.journal.frame(id) {
        Ok(frame) => frame,
        Err(error) if error.class() == ErrorClass::Corrupt => {
            return Err(PortError::new(
                ErrorClass::Corrupt,
                "corrupt_frame",
                error.to_string(),
            ));
        }
        Err(error) => return Err(storage_error(error)),
    };
    let Some(number) = frame.find(parts.shard, lsn) else {
        return Ok(false);
    };
    if frame.tenant(number) != Some(&parts.tenant) {
        return Ok(false);
    }
    frame.visit_spans(
        number,
        &mut |context: &RawContext<'_>, trace_id, span: &[u8]| {
            if trace_id == parts.trace_id {
                visit(context, span);
            }
        },
    );
    Ok(true)
}

/// Whether the journal can serve a record: readable, and there.
pub(crate) fn holds(shared: &Shared, parts: &TraceParts, lsn: Lsn) -> bool {
    visit_record(shared, parts, lsn, &mut |_, _| {}).unwrap_or(false)
}

/// How many spans the records of a trace up to `last` hold, each counted once; those that cannot be read hold none.
pub(crate) fn distinct_spans(shared: &Shared, parts: &TraceParts, last: Lsn) -> usize {
    let mut seen: HashSet<u64, FixedState> = HashSet::default();
    for &lsn in parts.references.iter().filter(|lsn| **lsn <= last) {
        // What was read before a failure counts: it is there.
        let _ = visit_record(shared, parts, lsn, &mut |_, span| {
            seen.insert(xxh3_64(span));
        });
    }
    seen.len()
}

/// All spans of a trace at once, for conditions that only they can answer; what cannot be read is left out and counted.
pub(crate) fn all_spans(shared: &Shared, parts: &TraceParts) -> (TraceSpans, u64) {
    let mut spans = TraceSpans::default();
    let mut unreadable = 0;
    let mut seen: HashSet<u64, FixedState> = HashSet::default();
    for &lsn in &parts.references {
        let read = visit_record(shared, parts, lsn, &mut |context, span| {
            if seen.insert(xxh3_64(span)) {
                spans.push(context, span);
            }
        });
        if let Err(error) = read {
            unreadable += 1;
            tracing::warn!(%error, trace = %parts.trace_id, "record left out of a search");
        }
    }
    for fragment in &parts.fragments {
        let read = shared.blocks.visit(fragment, &mut |context, _, span| {
            if seen.insert(xxh3_64(span)) {
                spans.push(context, span);
            }
        });
        if let Err(error) = read {
            unreadable += 1;
            tracing::warn!(%error, trace = %parts.trace_id, "fragment left out of a search");
        }
    }
    (spans, unreadable)
}
