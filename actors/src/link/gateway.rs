//! The one actor of a Hub that other nodes can address: takes their calls and pings.

use std::sync::Arc;

use ractor::concurrency::OneshotSender;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use super::outbox::Outgoing;
use super::switchboard::Switchboard;

/// The variant's name on the wire.
const VARIANT: &str = "link";

/// A call or a ping. Encoded by hand rather than by ractor_cluster's derive, which would copy the payload and start a
/// task for each reply.
#[derive(Debug)]
pub(crate) struct GatewayMessage {
    header: Vec<u8>,
    payload: Vec<u8>,
    reply: RpcReplyPort<Vec<u8>>,
}

impl GatewayMessage {
    /// The port has no timeout: the other side answers each call within the deadline in its header, and an answer
    /// that nobody waits for still gives the credit back.
    pub(crate) fn new(outgoing: Outgoing, reply: OneshotSender<Vec<u8>>) -> Self {
        Self {
            header: outgoing.header,
            payload: outgoing.payload,
            reply: reply.into(),
        }
    }
}

impl ractor::Message for GatewayMessage {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        Ok(SerializedMessage::Call {
            variant: VARIANT.to_owned(),
            args: self.payload,
            reply: self.reply,
            metadata: Some(self.header),
        })
    }

    /// What is no call of ours is dropped by the actor's runtime.
    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Call {
                variant,
                args,
                reply,
                metadata: Some(header),
            } if variant == VARIANT => Ok(Self {
                header,
                payload: args,
                reply,
            }),
            _ => Err(BoxedDowncastErr),
        }
    }
}

/// See the module.
pub(crate) struct Gateway(pub(crate) Arc<Switchboard>);

impl Gateway {
    /// The process group by which the sessions tell the other side of a gateway: actor numbers are unique in a process,
    /// which may hold several Hubs.
    pub(crate) fn group(number: u64) -> String {
        format!("spandrel-link-{number}")
    }
}

impl Actor for Gateway {
    type Msg = GatewayMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<GatewayMessage>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        let group = Self::group(myself.get_id().pid());
        ractor::pg::join(group, vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<GatewayMessage>,
        message: GatewayMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let GatewayMessage {
            header,
            payload,
            reply,
        } = message;
        self.0.deliver(&header, payload, reply);
        Ok(())
    }
}
