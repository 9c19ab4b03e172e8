//! Stands in for ractor_cluster's `NodeServer` towards one session: starts it over a stream of ours, hears when it is
//! ready, and ends with it. And the root of a Hub's actors.

use std::sync::Arc;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation, SessionCheckReply};
use ractor_cluster::{NetworkStream, NodeServerMessage, NodeSession};
use tokio::sync::oneshot;

use super::gateway::{Gateway, GatewayMessage};
use super::lifeline::{Lifeline, WatchedReader, WatchedWriter};
use super::streams::LinkStream;
use super::{MAX_LINK_MESSAGE_BYTES, hello::Token};
use crate::limits::LINK_FRAME_OVERHEAD_BYTES;

/// See the module.
pub(crate) struct Keeper;

/// What a session is started with.
pub(crate) struct KeeperArguments {
    pub(crate) stream: LinkStream,
    pub(crate) lifeline: Arc<Lifeline>,
    /// Unique in the process: the proxies of the session bear it.
    pub(crate) number: u64,
    /// Whether this side has opened the connection.
    pub(crate) dialled: bool,
    /// Both tokens of the handshake, that of the side that dialled first: no other session passes for this one.
    pub(crate) tokens: (Token, Token),
    /// The gateway of the other side.
    pub(crate) gateway: u64,
    /// Gets the proxy of the other side's gateway.
    pub(crate) ready: oneshot::Sender<ActorRef<GatewayMessage>>,
}

pub(crate) struct KeeperState {
    number: u64,
    gateway: u64,
    ready: Option<oneshot::Sender<ActorRef<GatewayMessage>>>,
}

impl Actor for Keeper {
    type Msg = NodeServerMessage;
    type State = KeeperState;
    type Arguments = KeeperArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<NodeServerMessage>,
        arguments: KeeperArguments,
    ) -> Result<KeeperState, ActorProcessingErr> {
        let KeeperArguments {
            stream,
            lifeline,
            number,
            dialled,
            tokens,
            gateway,
            ready,
        } = arguments;
        // The type of a name is not exported; the roles make the two sides' names differ, as the transport demands.
        let none: Option<NodeServerSessionInformation> = None;
        let mut name = none.and_then(|none| none.peer_name).unwrap_or_default();
        let role = if dialled { "dialled" } else { "accepted" };
        role.clone_into(&mut name.name);
        role.clone_into(&mut name.connection_string);
        let session = NodeSession::new(
            number,
            !dialled,
            cookie(tokens),
            myself.clone(),
            name,
            NodeConnectionMode::Isolated,
        );
        let largest = u64::try_from(MAX_LINK_MESSAGE_BYTES)?;
        let session = session.with_max_inbound_frame_size(largest + LINK_FRAME_OVERHEAD_BYTES);
        let reader = WatchedReader {
            inner: stream.reader,
            lifeline: Arc::clone(&lifeline),
        };
        let writer = WatchedWriter {
            inner: stream.writer,
            lifeline,
        };
        let stream = NetworkStream::External {
            peer_label: Some(stream.peer),
            local_label: None,
            reader: Box::new(reader),
            writer: Box::new(writer),
        };
        Actor::spawn_linked(None, session, stream, myself.get_cell()).await?;
        Ok(KeeperState {
            number,
            gateway,
            ready: Some(ready),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<NodeServerMessage>,
        message: NodeServerMessage,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeServerMessage::CheckSession { reply, .. } => {
                let _ = reply.send(SessionCheckReply::NoOtherConnection);
            }
            NodeServerMessage::ConnectionReady(_) => {
                // The other side has told of its actors before it said that it is ready.
                let proxy = find(state.number, state.gateway);
                match (proxy, state.ready.take()) {
                    (Some(proxy), Some(ready)) => drop(ready.send(proxy)),
                    _ => myself.stop(None),
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<NodeServerMessage>,
        event: SupervisionEvent,
        _: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorTerminated(..) | SupervisionEvent::ActorFailed(..) = event {
            myself.stop(None);
        }
        Ok(())
    }
}

/// The transport's own secret, another for each session.
fn cookie((dialled, accepted): (Token, Token)) -> String {
    let bytes = dialled.0.iter().chain(&accepted.0);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// The proxy of a gateway behind a session. Other sessions of the process have proxies in the same group.
fn find(session: u64, gateway: u64) -> Option<ActorRef<GatewayMessage>> {
    let wanted = ActorId::Remote {
        node_id: session,
        pid: gateway,
    };
    let members = ractor::pg::get_members(&Gateway::group(gateway));
    let found = members.into_iter().find(|cell| cell.get_id() == wanted);
    found.map(ActorRef::from)
}

/// The root of a Hub's actors: ends with all of them, and stops the node when the gateway fails.
pub(crate) struct Root(pub(crate) Arc<dyn Fn(&str) + Send + Sync>);

/// The root takes no messages.
pub(crate) struct RootMessage;

impl ractor::Message for RootMessage {}

impl Actor for Root {
    type Msg = RootMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<RootMessage>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RootMessage>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            // Only the gateway can be addressed from elsewhere; a session that fails is dialled again.
            if actor.supports_remoting() {
                (self.0)(&format!("the gateway of the links failed: {error}"));
            } else {
                tracing::warn!(%error, "a session between nodes failed");
            }
        }
        Ok(())
    }
}
