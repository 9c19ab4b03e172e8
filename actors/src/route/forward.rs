//! Spans for the primary of their shards on another node, as journal frames whose records have no number yet.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use spandrel_model::batch::SpanBatch;
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::{Lsn, NodeId, ShardId, Term};
use spandrel_storage::journal::{EncodedFrame, Frame, FrameBatch, FrameBuilder, JournalError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Dispatcher, Routed, STOPPING, ShardRows, late, no_memory, only, share_bytes};
use crate::limits::{FORWARD_DEADLINE_MS, FRAME_RAW_BYTES, MAX_IDLE_BUILDERS, PRESSURE_RETRY_MS};
use crate::link::{LinkClass, LinkError, PeerService};
use crate::meters::Stage;
use crate::replication::growth;
use crate::shared::Shared;
use crate::wire;
use crate::writer::{
    AppendAnswer, DISK_RESERVE, FRAME_LEVEL, NOT_DURABLE, Part, Ticket, disk_reserve,
};

impl Dispatcher {
    /// Takes spans to another node. Returns the parts that it did not take, or all of them when it cannot be reached.
    pub(super) async fn forward(
        &self,
        request: &Routed,
        node: NodeId,
        parts: Vec<ShardRows>,
        deadline: Instant,
    ) -> Result<Vec<ShardRows>, PortError> {
        let (batch, rows) = (Arc::clone(&request.batch), Arc::clone(&request.rows));
        let (wanted, builders) = (parts.clone(), Arc::clone(&self.builders));
        let spans: usize = parts.iter().map(|part| part.end - part.start).sum();
        let bytes = share_bytes(&batch, spans);
        let build = move || builders.build(&batch, &rows, &wanted);
        let frames = self.shared.compute(Stage::Frame, bytes, build).await;
        let frames = frames.map_err(|error| PortError::internal(error.to_string()))?;
        let calls = frames
            .into_iter()
            .map(|frame| self.call(node, frame, deadline));
        let mut refused = Vec::new();
        for answer in futures_util::future::join_all(calls).await {
            match answer? {
                Some(shards) => refused.extend(shards),
                None => return Ok(parts),
            }
        }
        Ok(only(parts, &refused))
    }

    /// The shards that were not taken; `None` when the node cannot be reached, or did not answer: it may have taken
    /// them, and recognises them when they come again.
    async fn call(
        &self,
        node: NodeId,
        frame: EncodedFrame,
        deadline: Instant,
    ) -> Result<Option<Vec<ShardId>>, PortError> {
        let forward = wire::Forward {
            frame: frame.bytes().clone(),
        };
        let request = wire::ShardsRequest {
            body: Some(wire::shards_request::Body::Forward(forward)),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let left = left.min(Duration::from_millis(FORWARD_DEADLINE_MS));
        let request = Bytes::from(request.encode_to_vec());
        let called = self
            .link
            .call(node, PeerService::Shards, LinkClass::Bulk, request, left);
        let answer = match called.await {
            Ok(answer) => answer,
            // No span that was taken is that large, and no record has more than one of that size.
            Err(error @ LinkError::TooLarge { .. }) => {
                return Err(PortError::internal(error.to_string()));
            }
            Err(error) => {
                tracing::debug!(node = node.0, %error, "spans not forwarded");
                return Ok(None);
            }
        };
        let answer = wire::ShardsAnswer::decode(answer).map(|answer| answer.body);
        let Ok(Some(wire::shards_answer::Body::Forward(answer))) = answer else {
            return Ok(None);
        };
        if !answer.unavailable.is_empty() {
            return Err(match answer.code.as_str() {
                // The primary has lost its shards or stops: the next one takes the spans, and knows those it has.
                NOT_DURABLE | STOPPING => return Ok(None),
                "memory" => no_memory(),
                DISK_RESERVE => disk_reserve(),
                _ => PortError::unavailable("forward", answer.unavailable, PRESSURE_RETRY_MS),
            });
        }
        let refused = answer.refused.into_iter();
        let refused = refused.filter_map(|shard| u16::try_from(shard).ok().map(ShardId));
        Ok(Some(refused.collect()))
    }
}

/// Builders for the frames of spans that are forwarded, kept for the next request: each has a compressor and buffers of
/// about a megabyte.
#[derive(Default)]
pub(crate) struct Builders(Mutex<Vec<FrameBuilder>>);

impl Builders {
    fn build(
        &self,
        batch: &SpanBatch,
        rows: &[u32],
        parts: &[ShardRows],
    ) -> Result<Vec<EncodedFrame>, JournalError> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut builder = match idle {
            Some(builder) => builder,
            None => FrameBuilder::new(FRAME_LEVEL)?,
        };
        let mut frames = Vec::new();
        for part in parts {
            let rows = rows.get(part.start..part.end).unwrap_or_default();
            builder.push_spans(part.shard, Term(0), Lsn(0), batch, rows)?;
            if builder.raw_bytes() >= FRAME_RAW_BYTES {
                frames.push(builder.finish()?);
            }
        }
        if !builder.is_empty() {
            frames.push(builder.finish()?);
        }
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_BUILDERS {
            idle.push(builder);
        }
        Ok(frames)
    }
}

/// The spans of a forwarded frame, read and paid for, and where the answer about them comes. They count as received
/// now: times of traces are by the clock of their primary.
pub(crate) fn forwarded_parts(
    shared: &Shared,
    bytes: &Bytes,
) -> Result<(Vec<Part>, oneshot::Receiver<AppendAnswer>), PortError> {
    let invalid = |error: &dyn std::fmt::Display| PortError::invalid("frame", error.to_string());
    let frame = Frame::decode(bytes).map_err(|error| invalid(&error))?;
    let (epoch, now) = (shared.epoch(), shared.env.now());
    let batches = frame.batches(epoch.rules().interests());
    let batches = batches.map_err(|error| invalid(&error))?;
    let parts = batches.iter().flat_map(|one| &one.records);
    let count = parts.clone().count();
    let bytes = frame.raw_bytes() as u64 + parts.map(|(_, rows)| growth(rows.len())).sum::<u64>();
    let mut request = shared.pool.try_take(bytes).ok_or_else(no_memory)?;
    let grown = batches.iter().flat_map(|one| &one.records);
    let credits: Vec<Credit> = grown
        .map(|(_, rows)| request.split(growth(rows.len())))
        .collect();
    let (ticket, answer) = Ticket::new(count);
    let (mut credits, request) = (credits.into_iter(), Arc::new(request));
    let mut parts = Vec::with_capacity(count);
    for FrameBatch { mut batch, records } in batches {
        batch.received_at = now;
        let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
        let (batch, rows): (_, Arc<[u32]>) = (Arc::new(batch), rows.into());
        for ((number, part), credit) in records.into_iter().zip(credits.by_ref()) {
            let Some(head) = frame.records().get(number) else {
                continue;
            };
            parts.push(Part {
                shard: head.shard,
                start: part.start,
                end: part.end,
                batch: Arc::clone(&batch),
                epoch: Arc::clone(&epoch),
                rows: Arc::clone(&rows),
                again: false,
                credit,
                request: Arc::clone(&request),
                ticket: ticket.clone(),
            });
        }
    }
    Ok((parts, answer))
}
