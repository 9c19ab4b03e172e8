//! Links in memory: every node of a test in one process, each of which can be cut off. They take a call to whoever
//! listens at the address, even if it is another node by now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use spandrel_actors::link::{
    Caller, IncomingCall, Link, LinkClass, LinkError, MAX_LINK_MESSAGE_BYTES, PeerHandler,
    PeerService, Peers, Reachability,
};
use spandrel_actors::membership::{LinkFactory, LinkIdentity, LinkStartError};
use spandrel_model::ids::NodeId;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Milliseconds between two pings.
const PING_MS: u64 = 100;

/// Who listens where.
#[derive(Default)]
pub struct Network {
    nodes: Mutex<BTreeMap<String, Attached>>,
    cut_off: Mutex<BTreeSet<String>>,
    /// By service, the first requests that differ in length: those of a kind do.
    heard: Mutex<BTreeMap<PeerService, Vec<Bytes>>>,
}

/// Requests of a service that are kept.
const HEARD: usize = 64;

#[derive(Clone)]
struct Attached {
    identity: LinkIdentity,
    handler: Arc<dyn PeerHandler>,
}

impl Attached {
    fn deliver(
        &self,
        from: Caller,
        service: PeerService,
        class: LinkClass,
        request: Bytes,
    ) -> oneshot::Receiver<Result<Bytes, String>> {
        let (reply, answer) = oneshot::channel();
        self.handler.deliver(IncomingCall {
            from,
            service,
            class,
            request,
            reply,
        });
        answer
    }
}

impl Network {
    /// The links of the node at an address.
    pub fn links(self: &Arc<Self>, address: &str) -> Arc<dyn LinkFactory> {
        Arc::new(MemoryLinks {
            network: Arc::clone(self),
            address: address.to_owned(),
        })
    }

    /// Nothing reaches the address or comes from it.
    pub fn cut_off(&self, address: &str) {
        self.cut_off.lock().unwrap().insert(address.to_owned());
    }

    /// Nobody listens at the address any more: its process has died.
    pub fn detach(&self, address: &str) {
        self.nodes.lock().unwrap().remove(address);
    }

    pub fn heal(&self, address: &str) {
        self.cut_off.lock().unwrap().remove(address);
    }

    /// Requests of a service that nodes have sent.
    #[allow(dead_code)] // not every test listens
    pub fn heard(&self, service: PeerService) -> Vec<Bytes> {
        let heard = self.heard.lock().unwrap();
        heard.get(&service).cloned().unwrap_or_default()
    }

    /// Hands a request to the node at an address as if another node had sent it.
    #[allow(dead_code)] // not every test speaks
    pub fn say(
        &self,
        address: &str,
        from: NodeId,
        service: PeerService,
        request: Bytes,
    ) -> oneshot::Receiver<Result<Bytes, String>> {
        let peer = self.reach(address, address).unwrap();
        peer.deliver(Caller::Node(from), service, LinkClass::Bulk, request)
    }

    fn hear(&self, service: PeerService, request: &Bytes) {
        let mut heard = self.heard.lock().unwrap();
        let heard = heard.entry(service).or_default();
        let is_new = heard.iter().all(|other| other.len() != request.len());
        if is_new && heard.len() < HEARD {
            heard.push(request.clone());
        }
    }

    fn reach(&self, from: &str, to: &str) -> Option<Attached> {
        let cut_off = self.cut_off.lock().unwrap();
        if cut_off.contains(from) || cut_off.contains(to) {
            return None;
        }
        self.nodes.lock().unwrap().get(to).cloned()
    }
}

struct MemoryLinks {
    network: Arc<Network>,
    address: String,
}

#[async_trait]
impl LinkFactory for MemoryLinks {
    async fn start(
        &self,
        identity: LinkIdentity,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Arc<dyn Link>, LinkStartError> {
        let address = self.address.clone();
        if identity.node.is_some() {
            let attached = Attached { identity, handler };
            let mut nodes = self.network.nodes.lock().unwrap();
            if nodes.insert(address.clone(), attached).is_some() {
                let reason = format!("{address} is taken");
                return Err(LinkStartError { reason });
            }
        }
        let inner = Arc::new(Inner {
            network: Arc::clone(&self.network),
            address,
            identity,
            addresses: Mutex::default(),
            peers: watch::Sender::new(Arc::default()),
        });
        let pinging = Arc::clone(&inner);
        let pings = tokio::spawn(async move {
            loop {
                pinging.ping();
                tokio::time::sleep(Duration::from_millis(PING_MS)).await;
            }
        });
        Ok(Arc::new(MemoryLink { inner, pings }))
    }
}

struct Inner {
    network: Arc<Network>,
    address: String,
    identity: LinkIdentity,
    addresses: Mutex<BTreeMap<NodeId, String>>,
    peers: watch::Sender<Peers>,
}

impl Inner {
    /// What a heartbeat finds: a node, or somebody else at its address, or nobody.
    fn ping(&self) {
        let addresses = self.addresses.lock().unwrap().clone();
        let before = self.peers.borrow().clone();
        let now = Instant::now();
        let mut after = BTreeMap::new();
        for (id, address) in addresses {
            let known = before.get(&id).copied().unwrap_or(Reachability {
                connected: false,
                last_heard: now,
                boot: 0,
            });
            let reached = self.network.reach(&self.address, &address);
            let reached = reached.filter(|peer| peer.identity.node == Some(id));
            let heard = reached.map(|peer| Reachability {
                connected: true,
                last_heard: now,
                boot: peer.identity.boot,
            });
            let lost = Reachability {
                connected: false,
                ..known
            };
            after.insert(id, heard.unwrap_or(lost));
        }
        self.peers.send_replace(Arc::new(after));
    }

    async fn ask(
        &self,
        to: NodeId,
        address: &str,
        service: PeerService,
        class: LinkClass,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        let bytes = request.len();
        if bytes > MAX_LINK_MESSAGE_BYTES {
            return Err(LinkError::TooLarge { bytes });
        }
        let unreachable = || LinkError::Unreachable {
            to,
            reason: "cut off".to_owned(),
        };
        let peer = self
            .network
            .reach(&self.address, address)
            .ok_or_else(unreachable)?;
        let same_cluster = peer.identity.cluster_id == self.identity.cluster_id;
        if self.identity.node.is_some() && !same_cluster {
            let reason = "another cluster".to_owned();
            return Err(LinkError::Refused { to, reason });
        }
        self.network.hear(service, &request);
        let from = self.identity.node.map_or(Caller::Joining, Caller::Node);
        let answer = peer.deliver(from, service, class, request);
        let no_answer = |reason: &str| LinkError::NoAnswer {
            to,
            reason: reason.to_owned(),
        };
        let answer = tokio::time::timeout(deadline, answer).await;
        let answer = answer.map_err(|_| no_answer("in time"))?;
        let answer = answer.map_err(|_| no_answer("it stops"))?;
        // What was cut off meanwhile does not come back.
        if self.network.reach(&self.address, address).is_none() {
            return Err(no_answer("cut off"));
        }
        answer.map_err(|reason| LinkError::Refused { to, reason })
    }
}

struct MemoryLink {
    inner: Arc<Inner>,
    pings: JoinHandle<()>,
}

#[async_trait]
impl Link for MemoryLink {
    async fn call(
        &self,
        to: NodeId,
        service: PeerService,
        class: LinkClass,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        let address = self.inner.addresses.lock().unwrap().get(&to).cloned();
        let Some(address) = address else {
            let reason = "it is not known here".to_owned();
            return Err(LinkError::Unreachable { to, reason });
        };
        let asked = self
            .inner
            .ask(to, &address, service, class, request, deadline);
        asked.await
    }

    async fn call_address(
        &self,
        address: &str,
        service: PeerService,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, LinkError> {
        let (nobody, class) = (NodeId(0), LinkClass::Control);
        let asked = self
            .inner
            .ask(nobody, address, service, class, request, deadline);
        asked.await
    }

    fn peers(&self) -> watch::Receiver<Peers> {
        self.inner.peers.subscribe()
    }

    fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        *self.inner.addresses.lock().unwrap() = peers;
        self.inner.ping();
    }

    fn set_apart(&self, reason: Option<String>) {
        let (network, address) = (&self.inner.network, &self.inner.address);
        match reason {
            Some(_) => network.cut_off(address),
            None => network.heal(address),
        }
    }

    async fn close(&self) {
        self.pings.abort();
        if self.inner.identity.node.is_some() {
            self.inner
                .network
                .nodes
                .lock()
                .unwrap()
                .remove(&self.inner.address);
        }
    }
}
