//! The shipper: one actor per node that gives followers the pages which its pager has built, to each one shipment after
//! the other. What a follower does not get, or does not take, it builds itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::NodeId;

use super::shipment::Shipment;
use crate::buggify::Site;
use crate::limits::{MAX_SHIPMENTS_WAITING, PAGES_PIECE_BYTES, SHIPMENT_CALL_MS};
use crate::link::{Link, LinkClass, PeerService};
use crate::meters;
use crate::shared::Shared;
use crate::wire::{PagesAnswer, PagesRequest};

pub(crate) enum ShipperMessage {
    Ship(Vec<Shipment>),
    /// The shipment to this node has come to an end, or was in vain: the next ones would be too.
    Over(NodeId, bool),
}

impl ractor::Message for ShipperMessage {}

/// The actor.
pub(crate) struct Shipper;

/// What it needs.
pub(crate) struct ShipperArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<dyn Link>,
}

/// Invariant: a node is in `queues` as long as a shipment is on its way to it.
pub(crate) struct ShipperState {
    arguments: ShipperArguments,
    queues: BTreeMap<NodeId, VecDeque<Shipment>>,
    shipments: u64,
}

impl Actor for Shipper {
    type Msg = ShipperMessage;
    type State = ShipperState;
    type Arguments = ShipperArguments;

    async fn pre_start(
        &self,
        _: ActorRef<ShipperMessage>,
        arguments: ShipperArguments,
    ) -> Result<ShipperState, ActorProcessingErr> {
        Ok(ShipperState {
            arguments,
            queues: BTreeMap::new(),
            shipments: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ShipperMessage>,
        message: ShipperMessage,
        state: &mut ShipperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShipperMessage::Ship(shipments) => {
                for shipment in shipments {
                    for node in shipment.to.iter() {
                        state.ship(&myself, *node, shipment.clone());
                    }
                }
            }
            ShipperMessage::Over(node, came) => {
                if !came {
                    state.give_up(node);
                }
                state.next(&myself, node);
            }
        }
        Ok(())
    }
}

impl ShipperState {
    fn ship(&mut self, myself: &ActorRef<ShipperMessage>, node: NodeId, shipment: Shipment) {
        let is_lost = self
            .arguments
            .shared
            .env
            .buggify
            .strikes(Site::PagesNotShipped);
        match self.queues.get_mut(&node) {
            _ if is_lost => meters::pages_shipped("skipped"),
            None => {
                self.queues.insert(node, VecDeque::new());
                self.send(myself, node, shipment);
            }
            Some(queue) if queue.len() < MAX_SHIPMENTS_WAITING => queue.push_back(shipment),
            Some(_) => meters::pages_shipped("skipped"),
        }
    }

    /// Lets go of what waits for a node: it takes nothing now, and the bytes are credit.
    fn give_up(&mut self, node: NodeId) {
        let waiting = self.queues.get_mut(&node);
        let waiting = waiting.map(std::mem::take).unwrap_or_default();
        waiting
            .iter()
            .for_each(|_| meters::pages_shipped("skipped"));
    }

    fn next(&mut self, myself: &ActorRef<ShipperMessage>, node: NodeId) {
        match self.queues.get_mut(&node).and_then(VecDeque::pop_front) {
            Some(shipment) => self.send(myself, node, shipment),
            None => {
                self.queues.remove(&node);
            }
        }
    }

    fn send(&mut self, myself: &ActorRef<ShipperMessage>, node: NodeId, shipment: Shipment) {
        self.shipments += 1;
        let (number, link) = (self.shipments, Arc::clone(&self.arguments.link));
        let myself = myself.clone();
        self.arguments.shared.spawn_job("shipper", async move {
            let sent = send(&*link, node, number, &shipment).await;
            let came = sent.is_ok();
            let outcome = match sent {
                Ok(0) => "taken",
                Ok(pages) => {
                    tracing::debug!(node = node.0, pages, "a follower builds pages itself");
                    "refused"
                }
                Err(reason) => {
                    tracing::debug!(node = node.0, reason, "pages were not shipped");
                    "failed"
                }
            };
            meters::pages_shipped(outcome);
            drop(shipment);
            let _ = myself.cast(ShipperMessage::Over(node, came));
        });
    }
}

/// Sends a shipment piece by piece; the number of pages that the follower does not take.
async fn send(
    link: &dyn Link,
    node: NodeId,
    number: u64,
    shipment: &Shipment,
) -> Result<u32, String> {
    let bytes = &shipment.bytes;
    let mut offset = 0;
    loop {
        let end = (offset + PAGES_PIECE_BYTES).min(bytes.len());
        let request = PagesRequest {
            shipment: number,
            total: bytes.len() as u64,
            offset: offset as u64,
            piece: bytes.slice(offset..end),
        };
        let request = request.encode_to_vec().into();
        let deadline = Duration::from_millis(SHIPMENT_CALL_MS);
        let (service, class) = (PeerService::Pages, LinkClass::Bulk);
        let answer = link.call(node, service, class, request, deadline).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer = PagesAnswer::decode(answer).map_err(|error| error.to_string())?;
        if !answer.refused.is_empty() {
            return Err(answer.refused);
        }
        if end == bytes.len() {
            return Ok(answer.refused_pages);
        }
        offset = end;
    }
}
