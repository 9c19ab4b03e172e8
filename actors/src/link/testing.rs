//! A network in memory, and nodes on it, for the tests of the links.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spandrel_model::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::streams::{Incoming, LinkStream, Streams};
use super::{
    Hub, HubOptions, IncomingCall, Link, LinkClass, LinkError, LinkIdentity, PeerHandler,
    PeerService, Reachability,
};

/// The cluster of the tests.
pub(crate) const CLUSTER: u64 = 0xC1;
/// Bytes that a stream in memory holds in each direction, as a kernel's buffers would.
const STREAM_BYTES: usize = 64 << 10;
/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

/// What becomes of bytes between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// They arrive.
    Open,
    /// They neither arrive nor are refused, as behind a partition or at a stopped process.
    Stalled,
}

/// A network: hosts by name, and a valve between each two.
#[derive(Default)]
pub(crate) struct MemoryNetwork {
    hosts: Mutex<BTreeMap<String, mpsc::UnboundedSender<DuplexStream>>>,
    valves: Mutex<BTreeMap<(String, String), watch::Sender<Flow>>>,
}

impl MemoryNetwork {
    pub(crate) fn set_flow(&self, a: &str, b: &str, flow: Flow) {
        self.valve(a, b, |valve| valve.send_replace(flow));
    }

    fn valve<T>(&self, a: &str, b: &str, act: impl FnOnce(&watch::Sender<Flow>) -> T) -> T {
        let key = (a.min(b).to_owned(), a.max(b).to_owned());
        let mut valves = self.valves.lock().unwrap();
        act(valves
            .entry(key)
            .or_insert_with(|| watch::Sender::new(Flow::Open)))
    }

    /// The streams of a host.
    pub(crate) fn host(self: &Arc<Self>, name: &str) -> Arc<MemoryStreams> {
        let (sender, inbox) = mpsc::unbounded_channel();
        self.hosts.lock().unwrap().insert(name.to_owned(), sender);
        Arc::new(MemoryStreams {
            network: Arc::clone(self),
            name: name.to_owned(),
            inbox: tokio::sync::Mutex::new(inbox),
        })
    }

    async fn connect(&self, from: &str, to: &str) -> io::Result<DuplexStream> {
        let mut flow = self.valve(from, to, watch::Sender::subscribe);
        let _ = flow.wait_for(|flow| *flow == Flow::Open).await;
        let inbox = self.hosts.lock().unwrap().get(to).cloned();
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens");
        let inbox = inbox.ok_or_else(refused)?;
        let (near, near_relay) = tokio::io::duplex(STREAM_BYTES);
        let (far, far_relay) = tokio::io::duplex(STREAM_BYTES);
        inbox.send(far).map_err(|_| refused())?;
        let (near_read, near_write) = tokio::io::split(near_relay);
        let (far_read, far_write) = tokio::io::split(far_relay);
        tokio::spawn(relay(near_read, far_write, flow.clone()));
        tokio::spawn(relay(far_read, near_write, flow));
        Ok(near)
    }
}

async fn relay(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut flow: watch::Receiver<Flow>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        if flow.wait_for(|flow| *flow == Flow::Open).await.is_err() {
            return;
        }
        let read = tokio::select! {
            biased;
            _ = flow.changed() => continue,
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(bytes) if bytes > 0 => {
                let _ = flow.wait_for(|flow| *flow == Flow::Open).await;
                if to.write_all(&buffer[..bytes]).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

/// See [`MemoryNetwork::host`].
pub(crate) struct MemoryStreams {
    network: Arc<MemoryNetwork>,
    name: String,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<DuplexStream>>,
}

impl MemoryStreams {
    pub(crate) async fn raw(&self, to: &str) -> DuplexStream {
        self.network.connect(&self.name, to).await.unwrap()
    }
}

#[async_trait]
impl Streams for MemoryStreams {
    async fn dial(&self, address: &str) -> io::Result<LinkStream> {
        let stream = self.network.connect(&self.name, address).await?;
        Ok(link_stream(stream, address))
    }

    async fn accept(&self) -> io::Result<Incoming> {
        let stream = self.inbox.lock().await.recv().await;
        let stream = stream.ok_or_else(|| io::Error::other("replaced by another host"))?;
        Ok(Box::pin(async move { Ok(link_stream(stream, "memory")) }))
    }
}

fn link_stream(stream: DuplexStream, peer: &str) -> LinkStream {
    let (reader, writer) = tokio::io::split(stream);
    LinkStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        certificate: None,
        peer: peer.to_owned(),
    }
}

/// Hands the calls to the test.
struct Recorder(mpsc::UnboundedSender<IncomingCall>);

impl PeerHandler for Recorder {
    fn deliver(&self, call: IncomingCall) {
        let _ = self.0.send(call);
    }
}

/// Answers each call with its request.
pub(crate) struct Echo;

impl PeerHandler for Echo {
    fn deliver(&self, call: IncomingCall) {
        let _ = call.reply.send(Ok(call.request));
    }
}

/// A node of a test.
pub(crate) struct TestNode {
    pub(crate) hub: Arc<Hub>,
    pub(crate) calls: mpsc::UnboundedReceiver<IncomingCall>,
}

pub(crate) fn options(
    identity: Option<LinkIdentity>,
    boot: u64,
    address: &str,
    streams: Arc<dyn Streams>,
) -> HubOptions {
    let mut seed = [0; 32];
    for (place, byte) in seed.iter_mut().zip(address.bytes()) {
        *place = byte;
    }
    seed[31] = u8::try_from(boot).unwrap();
    HubOptions {
        identity,
        boot,
        advertised: address.to_owned(),
        streams,
        newest_version: super::NEWEST_VERSION,
        seed,
        halt: Arc::new(|reason| panic!("halted: {reason}")),
    }
}

pub(crate) fn identity(node: u64) -> LinkIdentity {
    LinkIdentity {
        cluster_id: CLUSTER,
        node: NodeId(node),
    }
}

/// The name of a node's host.
pub(crate) fn host(node: u64) -> String {
    format!("node-{node}:7200")
}

impl TestNode {
    /// A node on the network whose calls the test answers.
    pub(crate) async fn start(network: &Arc<MemoryNetwork>, node: u64, boot: u64) -> Self {
        Self::start_as(network, Some(identity(node)), node, boot).await
    }

    pub(crate) async fn start_as(
        network: &Arc<MemoryNetwork>,
        identity: Option<LinkIdentity>,
        node: u64,
        boot: u64,
    ) -> Self {
        let streams = network.host(&host(node));
        Self::start_with(options(identity, boot, &host(node), streams)).await
    }

    pub(crate) async fn start_with(options: HubOptions) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let hub = Hub::start(options, Arc::new(Recorder(sender)))
            .await
            .unwrap();
        Self {
            hub: Arc::new(hub),
            calls,
        }
    }

    /// Calls a service of another node in the background.
    pub(crate) fn ask(
        &self,
        to: u64,
        class: LinkClass,
        request: impl Into<Bytes>,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, LinkError>> + Send + 'static {
        let hub = Arc::clone(&self.hub);
        let request = request.into();
        async move {
            hub.call(NodeId(to), PeerService::Shards, class, request, deadline)
                .await
        }
    }

    /// The next call that came in.
    pub(crate) async fn next_call(&mut self) -> IncomingCall {
        let next = tokio::time::timeout(PATIENCE, self.calls.recv()).await;
        next.expect("no call has come").unwrap()
    }
}

/// Makes nodes peers of each other.
pub(crate) fn introduce(nodes: &[(u64, &TestNode)]) {
    for (_, node) in nodes {
        let peers = nodes.iter().map(|(id, _)| (NodeId(*id), host(*id)));
        node.hub.set_peers(peers.collect());
    }
}

/// Waits until a node sees another one as the test wants it.
pub(crate) async fn until(hub: &Hub, node: u64, wanted: impl Fn(&Reachability) -> bool) {
    let mut peers = hub.peers();
    let seen = peers.wait_for(|peers| peers.get(&NodeId(node)).is_some_and(&wanted));
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    seen.expect("the node does not see it").unwrap();
}

/// Waits until nodes are connected with each other.
pub(crate) async fn until_connected(nodes: &[(u64, &TestNode)]) {
    for (own, node) in nodes {
        for (other, _) in nodes.iter().filter(|(other, _)| other != own) {
            until(&node.hub, *other, |peer| peer.connected).await;
        }
    }
}
