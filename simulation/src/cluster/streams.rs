//! The links of a simulated node: the production Hub over turmoil's connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use spandrel_actors::link::{
    Hub, HubOptions, Incoming, Link, LinkIdentity as HubIdentity, LinkStream, PeerHandler, Streams,
};
use spandrel_actors::membership::{LinkFactory, LinkIdentity, LinkStartError};
use tokio::sync::{Mutex, mpsc};
use turmoil::net::{TcpListener, TcpStream};

/// The port of the links on every host.
const PORT: u16 = 7200;

/// The address at which the node at a place is reached.
pub(super) fn address(place: usize) -> String {
    format!("{}:{PORT}", host(place))
}

/// The name of a place in the simulated network.
pub(super) fn host(place: usize) -> String {
    format!("node-{}", place + 1)
}

/// Opens the links of the node at a place.
pub(super) struct SimulatedLinks {
    pub(super) place: usize,
    /// Seeds the secrets of sessions.
    pub(super) seed: [u8; 32],
    pub(super) halt: Arc<dyn Fn(&str) + Send + Sync>,
}

#[async_trait]
impl LinkFactory for SimulatedLinks {
    async fn start(
        &self,
        identity: LinkIdentity,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Arc<dyn Link>, LinkStartError> {
        let refused = |reason: String| LinkStartError { reason };
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await;
        let listener = listener.map_err(|error| refused(error.to_string()))?;
        let options = HubOptions {
            identity: identity.node.map(|node| HubIdentity {
                cluster_id: identity.cluster_id,
                node,
            }),
            boot: identity.boot,
            advertised: address(self.place),
            streams: Arc::new(SimulatedStreams::new(listener)),
            newest_version: spandrel_actors::link::NEWEST_VERSION,
            seed: self.seed,
            halt: Arc::clone(&self.halt),
        };
        let hub = Hub::start(options, handler).await;
        Ok(Arc::new(hub.map_err(|error| refused(error.to_string()))?))
    }
}

struct SimulatedStreams {
    accepted: Mutex<mpsc::Receiver<(TcpStream, SocketAddr)>>,
}

impl SimulatedStreams {
    /// The listener is a task's own: what a killed process still refers to would keep its port.
    fn new(listener: TcpListener) -> Self {
        let (sender, accepted) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = sender.closed() => return,
                    taken = listener.accept() => match taken {
                        Ok(taken) => if sender.send(taken).await.is_err() { return },
                        Err(_) => return,
                    },
                }
            }
        });
        Self {
            accepted: Mutex::new(accepted),
        }
    }
}

fn stream(stream: TcpStream, peer: String) -> LinkStream {
    let (reader, writer) = stream.into_split();
    LinkStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        certificate: None,
        peer,
    }
}

#[async_trait]
impl Streams for SimulatedStreams {
    async fn dial(&self, address: &str) -> io::Result<LinkStream> {
        let connected = TcpStream::connect(address).await?;
        Ok(stream(connected, address.to_owned()))
    }

    async fn accept(&self) -> io::Result<Incoming> {
        let accepted = self.accepted.lock().await.recv().await;
        let Some((accepted, from)) = accepted else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let peer = from.to_string();
        Ok(Box::pin(async move { Ok(stream(accepted, peer)) }))
    }
}
