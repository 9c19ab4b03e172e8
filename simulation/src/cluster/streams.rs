//! The links of a simulated node: the production Hub over the connections of its machine.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use spandrel_actors::link::{
    Hub, HubOptions, Incoming, Link, LinkIdentity as HubIdentity, LinkStream, PeerHandler, Streams,
};
use spandrel_actors::membership::{LinkFactory, LinkIdentity, LinkStartError};
use tokio::io::DuplexStream;
use tokio::sync::{Mutex, mpsc};

use super::kernel::{Accepted, Kernel};

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
    pub(super) kernel: Kernel,
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
        let accepted = self.kernel.listen(PORT).await;
        let accepted = accepted.map_err(|error| refused(error.to_string()))?;
        let options = HubOptions {
            identity: identity.node.map(|node| HubIdentity {
                cluster_id: identity.cluster_id,
                node,
            }),
            boot: identity.boot,
            advertised: address(self.place),
            streams: Arc::new(SimulatedStreams {
                kernel: self.kernel.clone(),
                accepted: Mutex::new(accepted),
            }),
            newest_version: spandrel_actors::link::NEWEST_VERSION,
            seed: self.seed,
            halt: Arc::clone(&self.halt),
        };
        let hub = Hub::start(options, handler).await;
        Ok(Arc::new(hub.map_err(|error| refused(error.to_string()))?))
    }
}

struct SimulatedStreams {
    kernel: Kernel,
    accepted: Mutex<mpsc::Receiver<Accepted>>,
}

fn stream(stream: DuplexStream, peer: String) -> LinkStream {
    let (reader, writer) = tokio::io::split(stream);
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
        let connected = self.kernel.dial(address).await?;
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
