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

use crate::limits::{
    ENTRY_BYTES_PER_SPAN, ENTRY_BYTES_PER_TRACE, EXPORT_DEADLINE_MS, MAX_RECORD_BYTES,
    PRESSURE_RETRY_MS, ROUTE_RETRY_MS,
};
use crate::link::Link;
use crate::settings::Epoch;
use crate::shared::Shared;
use crate::writer::{Append, NOT_DURABLE, Part, Ticket, WriterMessage};
pub(crate) use forward::forwarded_parts;

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
                return Ok(());
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

/// The rows of a batch sorted by shard and trace, and each shard's part of them: in several pieces where it is large,
/// so that a record fits a message between nodes.
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
    let (mut previous, mut bytes) = (None, 0);
    for (at, (key, row)) in keyed.iter().enumerate() {
        let span = &batch.spans[*row as usize];
        let shard = router.shard(router.hash(seed, span.trace_id));
        let new_trace = previous != Some(*key);
        previous = Some(*key);
        let growth = ENTRY_BYTES_PER_SPAN
            + u64::from(span.name.len)
            + if new_trace { ENTRY_BYTES_PER_TRACE } else { 0 };
        bytes += span.span.len as usize;
        match shards.last_mut() {
            Some(part) if part.shard == shard && bytes <= MAX_RECORD_BYTES => {
                part.end = at + 1;
                part.growth += growth;
            }
            _ => {
                bytes = span.span.len as usize;
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
