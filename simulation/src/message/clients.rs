//! Clients: each request goes to whoever leads its shard, again until it is acknowledged.

use std::sync::Arc;

use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{TenantId, TraceId, UnixNanos};

use super::spans;
use super::world::{Event, MS, World};

/// A request of a client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) shard: usize,
    pub(crate) trace_id: TraceId,
    pub(crate) batch: Arc<SpanBatch>,
    pub(crate) values: Vec<u64>,
    pub(crate) is_acknowledged: bool,
    /// When it was sent last, and is answered to.
    pub(crate) asked: u64,
}

impl World {
    pub(crate) fn make_request(&mut self, number: usize) {
        let request = self.plan.requests[number];
        let mut id = [0; 16];
        id[12..].copy_from_slice(&(request.trace + 1).to_be_bytes());
        let trace_id = TraceId(id);
        let tenant = TenantId::default();
        let shard = self
            .router
            .shard(self.router.hash(self.router.tenant_seed(&tenant), trace_id));
        let values: Vec<u64> = (0..u64::from(request.spans))
            .map(|span| (number as u64) << 8 | (span + 1))
            .collect();
        let batch = spans::batch(&spans::Wanted {
            trace_id,
            values: &values,
            error: request.error,
            at: UnixNanos(self.clock().0 + request.at_ms * UnixNanos::PER_MILLI),
            epoch: &self.epoch,
        });
        self.clients.push(Client {
            shard: usize::from(shard.0),
            trace_id,
            batch: Arc::new(batch),
            values,
            is_acknowledged: false,
            asked: 0,
        });
    }

    /// Sends a request to who leads its shard by the map of some node, again until it is acknowledged.
    pub(crate) fn ask(&mut self, number: usize) {
        if self.clients[number].is_acknowledged {
            return;
        }
        self.clients[number].asked = self.now;
        self.soon(80 * MS, 400 * MS, Event::Request(number));
        let node = self.dice.index(self.nodes.len());
        let state = match self.dice.chance(300) {
            true => self.map_of(node),
            false => Arc::clone(self.newest()),
        };
        let shard = self.clients[number].shard;
        let Some(record) = state.shard_map.get(shard) else {
            return;
        };
        let primary = record.primary;
        if let Some(at) = self.nodes.iter().position(|node| node.id == primary)
            && self.nodes[at].paused_until <= self.now
        {
            self.take_request(at, number);
            self.pump(at);
        }
    }
}
