//! The spans of one trace from several nodes, each span once.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashSet;
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, ShardId, TenantId, TraceId};
use spandrel_model::otlp::{visit_spans, with_sampling_threshold};
use spandrel_model::ports::TraceReader;
use xxhash_rust::xxh3::xxh3_64;

use super::super::pieces::PieceWriter;
use super::super::plan::Standing;
use super::Coordinator;
use super::trace::{HolderAnswer, Marks, TraceQuestion};

/// What one node has of the trace.
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) reader: Box<dyn TraceReader>,
}

/// Reads one source after the other. When a node fails within its spans, the next holder is read from its beginning: the
/// spans that are known already are passed over.
///
/// Memory: a piece that was read, one that is made of it, and 8 bytes a span.
pub(super) struct MergedReader {
    coordinator: Coordinator,
    tenant: TenantId,
    trace_id: TraceId,
    shard: ShardId,
    sources: VecDeque<Source>,
    /// The mark of sampling in 2^-32.
    probability: u64,
    standing: Standing,
    seen: HashSet<u64, FixedState>,
    pieces: PieceWriter,
}

impl MergedReader {
    pub(super) fn new(
        question: &TraceQuestion<'_>,
        sources: Vec<Source>,
        probability: u64,
        standing: Standing,
    ) -> Self {
        Self {
            coordinator: question.coordinator.clone(),
            tenant: question.tenant.clone(),
            trace_id: question.trace_id,
            shard: question.shard,
            sources: sources.into(),
            probability,
            standing,
            seen: HashSet::default(),
            pieces: PieceWriter::default(),
        }
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), PortError> {
        let (seen, pieces, probability) = (&mut self.seen, &mut self.pieces, self.probability);
        let walked = visit_spans(piece, &mut |context, span| {
            if seen.insert(xxh3_64(span)) {
                pieces.push(context, &with_sampling_threshold(span, probability));
            }
        });
        walked.map_err(|error| PortError::new(ErrorClass::Corrupt, "peer", error.to_string()))
    }

    /// Asks who else holds what a node could not give.
    async fn replace(&mut self, node: NodeId, error: &PortError) -> Result<(), PortError> {
        self.standing.answered.remove(&node);
        self.standing.failed.insert(node, error.to_string());
        let coordinator = self.coordinator.clone();
        let question = TraceQuestion {
            coordinator: &coordinator,
            tenant: &self.tenant,
            trace_id: self.trace_id,
            shard: self.shard,
            // It is applied to what this reader returns.
            marks: Marks::None,
        };
        let state = coordinator.state();
        let demand = question.demand(&state);
        let scattered = question.ask_holders(&demand, &mut self.standing).await;
        if !scattered.missing.is_empty() {
            return Err(error.clone());
        }
        for reply in scattered.replies {
            if let HolderAnswer::Found(part) = reply.answer {
                self.sources.push_back(Source {
                    node: reply.node,
                    reader: part.reader,
                });
            }
        }
        Ok(())
    }
}

#[async_trait]
impl TraceReader for MergedReader {
    async fn next(&mut self) -> Result<Option<Bytes>, PortError> {
        while !self.pieces.has_piece() {
            let Some(source) = self.sources.front_mut() else {
                return Ok(self.pieces.rest());
            };
            let node = source.node;
            let piece = source.reader.next().await;
            let added = match piece {
                Ok(Some(piece)) => self.add(&piece),
                Ok(None) => {
                    self.sources.pop_front();
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = added {
                self.sources.pop_front();
                self.replace(node, &error).await?;
            }
        }
        Ok(self.pieces.next())
    }
}
