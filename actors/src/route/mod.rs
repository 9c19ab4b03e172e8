//! Brings the spans of a request to the primaries of their shards, on this node or on others.

mod forward;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::{NodeId, ShardId};
use spandrel_model::routing::ShardRouter;
use spandrel_raft::ClusterState;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::buggify::Site;
use crate::limits::{
    ENTRY_BYTES_PER_SPAN, ENTRY_BYTES_PER_TRACE, EXPORT_DEADLINE_MS, MAX_RECORD_BYTES,
    PRESSURE_RETRY_MS, ROUTE_RETRY_MS, ROW_BYTES,
};
use crate::link::Link;
use crate::settings::Epoch;
use crate::shared::Shared;
use crate::writer::{Append, NOT_DURABLE, Part, Ticket, WriterMessage};
pub(crate) use forward::{Builders, forwarded_parts};

/// A shard's part of the rows of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardRows {
    pub(crate) shard: ShardId,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Credit charged for the growth of the shard's entries.
    pub(crate) growth: u64,
}

/// A request whose rows are sorted by shard and trace.
pub(crate) struct Routed {
    pub(crate) batch: Arc<SpanBatch>,
    pub(crate) epoch: Arc<Epoch>,
    pub(crate) rows: Arc<[u32]>,
    /// Pays for the request's bytes.
    pub(crate) request: Arc<Credit>,
}

/// Takes spans to where their shards are led. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: ActorRef<WriterMessage>,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    /// For the frames of what goes to other nodes.
    pub(crate) builders: Arc<Builders>,
}

impl Dispatcher {
    /// Returns when all spans are durable on every copy. Those of shards that are changing hands are offered again.
    ///
    /// # Errors
    /// `Unavailable` when some are not durable within [`EXPORT_DEADLINE_MS`], or there is no memory for them; others
    /// may be durable then.
    pub(crate) async fn take(
        &self,
        request: &Routed,
        mut shards: Vec<ShardRows>,
    ) -> Result<(), PortError> {
        let deadline = Instant::now() + Duration::from_millis(EXPORT_DEADLINE_MS);
        let twice = self.shared.env.buggify.strikes(Site::SpansSentTwice);
        let mut once_more = twice.then(|| shards.clone());
        loop {
            let mut nodes = self.by_primary(shards);
            let here = nodes.remove(&self.shared.node).unwrap_or_default();
            let here = self.append(request, here, deadline);
            if nodes.is_empty() {
                shards = here.await?;
            } else {
                let forwards = nodes.into_iter();
                let forwards =
                    forwards.map(|(node, parts)| self.forward(request, node, parts, deadline));
                let elsewhere = futures_util::future::join_all(forwards);
                let (here, elsewhere) = futures_util::future::join(here, elsewhere).await;
                shards = here?;
                for refused in elsewhere {
                    shards.extend(refused?);
                }
            }
            if shards.is_empty() {
                let Some(again) = once_more.take() else {
                    return Ok(());
                };
                shards = again;
            }
            let pause = Duration::from_millis(ROUTE_RETRY_MS);
            if Instant::now() + pause >= deadline {
                return Err(late());
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn by_primary(&self, shards: Vec<ShardRows>) -> BTreeMap<NodeId, Vec<ShardRows>> {
        let cluster = self.cluster.borrow();
        let mut nodes: BTreeMap<NodeId, Vec<ShardRows>> = BTreeMap::new();
        for part in shards {
            let primary = cluster.shard(part.shard).map(|record| record.primary);
            let primary = primary.unwrap_or(self.shared.node);
            nodes.entry(primary).or_default().push(part);
        }
        nodes
    }

    /// Takes spans to this node's own writer. Returns the parts that it did not take.
    async fn append(
        &self,
        request: &Routed,
        parts: Vec<ShardRows>,
        deadline: Instant,
    ) -> Result<Vec<ShardRows>, PortError> {
        if parts.is_empty() {
            return Ok(parts);
        }
        let growth = parts.iter().map(|part| part.growth).sum();
        let mut growth = self.shared.pool.try_take(growth).ok_or_else(no_memory)?;
        let (ticket, answer) = Ticket::new(parts.len());
        let append = parts.iter().map(|part| Part {
            shard: part.shard,
            batch: Arc::clone(&request.batch),
            epoch: Arc::clone(&request.epoch),
            rows: Arc::clone(&request.rows),
            start: part.start,
            end: part.end,
            again: false,
            credit: growth.split(part.growth),
            request: Arc::clone(&request.request),
            ticket: ticket.clone(),
        });
        let append = append.collect();
        drop(ticket);
        let append = WriterMessage::Append(Append { parts: append });
        self.writer.cast(append).map_err(|_| stopping())?;
        let refused = match tokio::time::timeout_at(deadline, answer).await {
            // The shard has gone elsewhere meanwhile: its next primary takes the spans, and knows those it has.
            Ok(Ok(Err(error))) if error.code == NOT_DURABLE => return Ok(parts),
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => return Err(late()),
        };
        Ok(only(parts, &refused))
    }
}

/// The parts of some shards.
fn only(mut parts: Vec<ShardRows>, shards: &[ShardId]) -> Vec<ShardRows> {
    parts.retain(|part| shards.contains(&part.shard));
    parts
}

/// The code of a refusal by a node that stops.
const STOPPING: &str = "stopping";

/// The refusal of a node that stops.
pub(crate) fn stopping() -> PortError {
    PortError::unavailable(STOPPING, "the node is stopping", PRESSURE_RETRY_MS)
}

fn late() -> PortError {
    PortError::unavailable(
        "deadline",
        format!("not durable on every copy within {EXPORT_DEADLINE_MS} ms: send it again"),
        PRESSURE_RETRY_MS,
    )
}

fn no_memory() -> PortError {
    PortError::unavailable(
        "memory",
        "no memory credit left for spans",
        PRESSURE_RETRY_MS,
    )
}

/// What so many spans of a batch take of it, resources and scopes included, were all spans alike.
pub(crate) fn share_bytes(batch: &SpanBatch, spans: usize) -> usize {
    batch.buffer.len() / batch.spans.len().max(1) * spans
}

/// The rows of a batch sorted by shard and trace, and each shard's part of them: in several pieces where it is large,
/// so that a record fits a message between nodes. A context counts whenever it is another one than that of the span before:
/// the record stores it once.
pub(crate) fn route(router: ShardRouter, batch: &SpanBatch) -> (Arc<[u32]>, Vec<ShardRows>) {
    let seed = router.tenant_seed(&batch.tenant);
    let mut keyed: Vec<(u64, u32)> = (0u32..)
        .zip(&batch.spans)
        .map(|(row, span)| {
            let hash = router.hash(seed, span.trace_id);
            // The shard first, so that its rows lie together; then the rest of the hash, for its traces.
            (u64::from(router.shard(hash).0) << 48 | hash >> 16, row)
        })
        .collect();
    keyed.sort_unstable();
    let mut shards: Vec<ShardRows> = Vec::new();
    let (mut previous, mut bytes, mut context) = (None, 0, None);
    for (at, (key, row)) in keyed.iter().enumerate() {
        let span = &batch.spans[*row as usize];
        let shard = router.shard(router.hash(seed, span.trace_id));
        let new_trace = previous != Some(*key);
        previous = Some(*key);
        let growth = ENTRY_BYTES_PER_SPAN
            + u64::from(span.name.len)
            + if new_trace { ENTRY_BYTES_PER_TRACE } else { 0 };
        let alone = span.span.len as usize + ROW_BYTES;
        let beside = batch.context(span).stored_bytes();
        let is_new = context.replace(span.context) != Some(span.context);
        bytes += alone + if is_new { beside } else { 0 };
        match shards.last_mut() {
            Some(part) if part.shard == shard && bytes <= MAX_RECORD_BYTES => {
                part.end = at + 1;
                part.growth += growth;
            }
            _ => {
                bytes = alone + beside;
                shards.push(ShardRows {
                    shard,
                    start: at,
                    end: at + 1,
                    growth,
                });
            }
        }
    }
    (keyed.into_iter().map(|(_, row)| row).collect(), shards)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
    use prost::Message;
    use spandrel_model::ids::{Lsn, TenantId, Term, UnixNanos};
    use spandrel_model::interest::Interests;
    use spandrel_model::otlp::{AttributePolicy, ScanRules, scan_request};
    use spandrel_storage::journal::FrameBuilder;

    use super::*;
    use crate::writer::FRAME_LEVEL;

    /// Spans of one trace, each with a resource of its own: of so many bytes, about.
    fn batch(spans: u8, resource_bytes: usize, span_bytes: usize) -> SpanBatch {
        let of_resource = |id: u8| ResourceSpans {
            schema_url: char::from(b'A' + id).to_string().repeat(resource_bytes),
            scope_spans: vec![ScopeSpans {
                spans: vec![Span {
                    trace_id: vec![7; 16],
                    span_id: vec![id + 1; 8],
                    trace_state: "x".repeat(span_bytes),
                    ..Span::default()
                }],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        };
        let request = TracesData {
            resource_spans: (0..spans).map(of_resource).collect(),
        };
        let (now, tenant) = (UnixNanos(1_800_000_000_000_000_000), TenantId::default());
        let rules = ScanRules::new(Arc::new(Interests::default()), &AttributePolicy::default());
        let request = request.encode_to_vec().into();
        scan_request(request, tenant, now, &rules).unwrap().batch
    }

    /// Records were cut by the bytes of their spans alone: with large resources a frame did not fit a message.
    #[test]
    fn every_record_fits_a_message_with_the_resources_of_its_spans() {
        let router = ShardRouter::new(1, 1).unwrap();
        for (resource_bytes, span_bytes) in [(30_000, 10), (10, 30_000), (300_000, 200_000), (0, 0)]
        {
            let batch = batch(48, resource_bytes, span_bytes);
            assert_eq!(batch.spans.len(), 48);
            let (rows, parts) = route(router, &batch);
            let mut next = 0;
            for part in parts {
                assert_eq!(part.start, next);
                next = part.end;
                let mut builder = FrameBuilder::new(FRAME_LEVEL).unwrap();
                let rows = &rows[part.start..part.end];
                let pushed = builder.push_spans(part.shard, Term(1), Lsn(1), &batch, rows);
                pushed.unwrap();
                let head = 64;
                let bytes = builder.raw_bytes();
                assert!(bytes <= MAX_RECORD_BYTES + head, "{bytes}");
            }
            assert_eq!(next, 48);
        }
    }
}
