//! Three nodes in one process for tests of queries: each a whole node of its own, joined by a hand-made shard map and
//! links in memory that can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message;
use spandrel_model::ids::{Bucket, NodeId, ShardId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::ports::{Query, TraceAnswer, TraceLookup};
use spandrel_model::search::{SearchAnswer, SearchFilter, SearchRequest};
use spandrel_raft::ClusterState;
use spandrel_raft::state::{HolderKey, NodeAddresses, NodeRecord, NodeState, ShardRecord};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::server::QueryServer;
use super::{Coordinator, CoordinatorParts};
use crate::link::{
    Caller, IncomingCall, Link, LinkClass, LinkError, MAX_LINK_MESSAGE_BYTES, PeerHandler,
    PeerService, Peers, Reachability,
};

pub(super) use crate::test_support as support;
use support::{Sent, TestClock, TestNode, pass, span, start, trace_id};

/// One node for each shard, none with a copy.
pub(super) const ALONE: [&[u64]; 4] = [&[1], &[2], &[3], &[3]];
/// Two copies of each.
pub(super) const TWICE: [&[u64]; 4] = [&[1, 2], &[2, 3], &[3, 1], &[3, 2]];

/// What is wrong with a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    Dead,
    /// Takes calls and does not answer.
    Mute,
    Slow(Duration),
    /// Answers so many calls, then it is dead.
    DeadAfter(usize),
}

/// What all links of a cluster share.
#[derive(Default)]
pub(super) struct Network {
    servers: Mutex<BTreeMap<NodeId, QueryServer>>,
    pub(super) faults: Mutex<BTreeMap<NodeId, Fault>>,
    /// Who was called, and the bytes of the answer.
    pub(super) calls: Mutex<Vec<(NodeId, usize)>>,
}

struct MemoryLink {
    me: NodeId,
    network: Arc<Network>,
    peers: watch::Receiver<Peers>,
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
        assert!(request.len() <= MAX_LINK_MESSAGE_BYTES);
        assert_ne!(to, self.me, "a node does not call itself");
        self.network.calls.lock().unwrap().push((to, 0));
        let reason = || "test".to_owned();
        let unreachable = || LinkError::Unreachable {
            to,
            reason: reason(),
        };
        let fault = {
            let mut faults = self.network.faults.lock().unwrap();
            if let Some(Fault::DeadAfter(left)) = faults.get_mut(&to) {
                match left.checked_sub(1) {
                    Some(one_less) => *left = one_less,
                    None => return Err(unreachable()),
                }
            }
            faults.get(&to).copied()
        };
        match fault {
            Some(Fault::Dead) => return Err(unreachable()),
            Some(Fault::Mute) => tokio::time::sleep(deadline).await,
            Some(Fault::Slow(time)) => tokio::time::sleep(time.min(deadline)).await,
            Some(Fault::DeadAfter(_)) | None => {}
        }
        let server = self.network.servers.lock().unwrap().get(&to).cloned();
        let (reply, answer) = oneshot::channel();
        server.ok_or_else(unreachable)?.deliver(IncomingCall {
            from: Caller::Node(self.me),
            service,
            class,
            request,
            reply,
        });
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(Ok(answer))) => {
                assert!(answer.len() <= MAX_LINK_MESSAGE_BYTES, "{}", answer.len());
                let mut calls = self.network.calls.lock().unwrap();
                calls.push((to, answer.len()));
                Ok(answer)
            }
            Ok(Ok(Err(reason))) => Err(LinkError::Refused { to, reason }),
            _ => Err(LinkError::NoAnswer {
                to,
                reason: reason(),
            }),
        }
    }

    async fn call_address(
        &self,
        _: &str,
        _: PeerService,
        _: Bytes,
        _: Duration,
    ) -> Result<Bytes, LinkError> {
        unreachable!("queries know their nodes")
    }

    fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.clone()
    }

    fn set_peers(&self, _: BTreeMap<NodeId, String>) {}

    fn set_apart(&self, _: Option<String>) {}
}

/// Nodes 1, 2 and 3, with four shards.
pub(super) struct TestCluster {
    pub(super) nodes: BTreeMap<u64, TestNode>,
    pub(super) network: Arc<Network>,
    pub(super) state: watch::Sender<Arc<ClusterState>>,
    pub(super) has_contact: Arc<std::sync::atomic::AtomicBool>,
    peers: watch::Sender<Peers>,
    _dirs: Vec<tempfile::TempDir>,
}

pub(super) fn tenant() -> TenantId {
    TenantId::default()
}

/// The shards of a primary and its copies; the primary first.
fn record(isr: &[u64]) -> ShardRecord {
    let mut sorted: Vec<NodeId> = isr.iter().copied().map(NodeId).collect();
    sorted.sort_unstable();
    ShardRecord {
        term: Term(2),
        primary: NodeId(isr[0]),
        isr: sorted,
        filling: Vec::new(),
        moving_to: None,
    }
}

impl TestCluster {
    /// `shards`: the in-sync set of each of the four, its primary first.
    pub(super) async fn start(policy: &str, shards: [&[u64]; 4]) -> Self {
        let clock = TestClock::new();
        let (mut nodes, mut dirs) = (BTreeMap::new(), Vec::new());
        let mut state = ClusterState {
            shards: 4,
            epoch: 5,
            shard_map: shards.iter().map(|isr| record(isr)).collect(),
            ..ClusterState::default()
        };
        let mut peers = BTreeMap::new();
        for node in 1..=3u64 {
            let dir = tempfile::tempdir().unwrap();
            nodes.insert(node, start(dir.path(), &clock, policy).await);
            dirs.push(dir);
            state.nodes.insert(
                NodeId(node),
                NodeRecord {
                    addresses: NodeAddresses::default(),
                    zone: String::new(),
                    incarnation: 1,
                    disk_id: node,
                    boot: 1,
                    state: NodeState::Up,
                },
            );
            let reachability = Reachability {
                connected: true,
                last_heard: Instant::now(),
                boot: 1,
            };
            peers.insert(NodeId(node), reachability);
        }
        let network = Arc::new(Network::default());
        let state = watch::Sender::new(Arc::new(state));
        for (id, node) in &nodes {
            let local = Arc::new(node.node.query_port());
            let server = QueryServer::new(local, NodeId(*id), state.subscribe());
            let mut servers = network.servers.lock().unwrap();
            servers.insert(NodeId(*id), server);
        }
        Self {
            nodes,
            network,
            state,
            has_contact: Arc::new(true.into()),
            peers: watch::Sender::new(Arc::new(peers)),
            _dirs: dirs,
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut ClusterState)) {
        self.state.send_modify(|state| change(Arc::make_mut(state)));
    }

    /// Says that a node holds what a shard got in its first term, in the bucket of now.
    pub(super) fn holds(&self, shard: ShardId, holders: &[u64]) {
        let now = crate::Clock::now(&*self.nodes[&1].clock);
        let bucket = Bucket::containing(now, support::HOUR);
        let term = Term(1);
        self.change(|state| {
            let records = state.holders.entry(bucket).or_default();
            let holders = holders.iter().copied().map(NodeId);
            Arc::make_mut(records).insert(HolderKey { shard, term }, holders.collect());
        });
    }

    /// No session with a node.
    pub(super) fn disconnect(&self, node: u64) {
        self.peers.send_modify(|peers| {
            if let Some(peer) = Arc::make_mut(peers).get_mut(&NodeId(node)) {
                peer.connected = false;
            }
        });
    }

    pub(super) fn fault(&self, node: u64, fault: Option<Fault>) {
        let mut faults = self.network.faults.lock().unwrap();
        match fault {
            Some(fault) => faults.insert(NodeId(node), fault),
            None => faults.remove(&NodeId(node)),
        };
    }

    /// The query port that clients of a node get.
    pub(super) fn query(&self, node: u64) -> Coordinator {
        let has_contact = Arc::clone(&self.has_contact);
        Coordinator::new(CoordinatorParts {
            local: Arc::new(self.nodes[&node].node.query_port()),
            link: Some(Arc::new(MemoryLink {
                me: NodeId(node),
                network: Arc::clone(&self.network),
                peers: self.peers.subscribe(),
            })),
            cluster: self.state.subscribe(),
            node: NodeId(node),
            contact: Arc::new(move || {
                let has_contact = has_contact.load(std::sync::atomic::Ordering::Relaxed);
                Box::pin(std::future::ready(has_contact))
            }),
        })
    }

    pub(super) fn server(&self, node: u64) -> QueryServer {
        self.network.servers.lock().unwrap()[&NodeId(node)].clone()
    }

    pub(super) fn shard(&self, trace: u8) -> ShardId {
        self.nodes[&1].node.shared.shard(&tenant(), trace_id(trace))
    }

    /// The in-sync set of a trace's shard.
    pub(super) fn owners(&self, trace: u8) -> Vec<u64> {
        let state = self.state.borrow();
        let record = state.shard(self.shard(trace)).unwrap();
        record.isr.iter().map(|node| node.0).collect()
    }

    pub(super) fn primary(&self, trace: u8) -> u64 {
        let state = self.state.borrow();
        state.shard(self.shard(trace)).unwrap().primary.0
    }

    /// A trace of a shard, the first with at least this number.
    pub(super) fn trace_in(&self, shard: u16, from: u8) -> u8 {
        (from..=255)
            .find(|trace| self.shard(*trace) == ShardId(shard))
            .unwrap()
    }

    /// Gives spans to every in-sync copy of their shard.
    pub(super) async fn send(&self, spans: &[support::Sent]) {
        for sent in spans {
            for node in self.owners(sent.trace) {
                let sent = std::slice::from_ref(sent);
                self.nodes[&node].send(&tenant(), sent).await;
            }
        }
    }

    pub(super) async fn flush(&self) {
        for node in self.nodes.values() {
            node.flush().await;
        }
    }

    pub(super) async fn stop(self) {
        for node in self.nodes.into_values() {
            node.node.stop().await;
        }
    }
}

/// All spans of an answer by their ids; panics on doubles. Also the longest piece.
pub(super) async fn read(answer: TraceAnswer) -> (BTreeSet<[u8; 8]>, usize) {
    let mut reader = answer.reader;
    let (mut bytes, mut longest) = (BytesMut::new(), 0);
    while let Some(piece) = reader.next().await.unwrap() {
        longest = longest.max(piece.len());
        bytes.extend_from_slice(&piece);
    }
    let data = TracesData::decode(bytes.freeze()).unwrap();
    let mut ids = BTreeSet::new();
    let spans = data.resource_spans.iter().flat_map(|one| &one.scope_spans);
    for span in spans.flat_map(|scope| &scope.spans) {
        assert!(
            ids.insert(span.span_id.clone().try_into().unwrap()),
            "a double"
        );
    }
    (ids, longest)
}

pub(super) fn id(trace: u8) -> TraceId {
    trace_id(trace)
}

pub(super) async fn fetch(query: &Coordinator, trace: u8) -> TraceAnswer {
    match query.trace(&tenant(), id(trace)).await.unwrap() {
        TraceLookup::Found(answer) => answer,
        TraceLookup::Absent(absence) => panic!("trace {trace} is absent: {absence:?}"),
    }
}

pub(super) fn request(filter: SearchFilter, limit: usize) -> SearchRequest {
    SearchRequest {
        tenant: tenant(),
        filter: SearchFilter {
            to: UnixNanos(u64::MAX),
            ..filter
        },
        limit,
        cursor: None,
        include_dropped: false,
        timeout_ms: 10_000,
    }
}

pub(super) fn everything(limit: usize) -> SearchRequest {
    request(SearchFilter::default(), limit)
}

pub(super) async fn search(query: &Coordinator, request: SearchRequest) -> SearchAnswer {
    query.search(request).await.unwrap()
}

fn late(trace: u8, before_ms: u64) -> Sent {
    Sent {
        before_ms,
        ..span(trace, 1, 0)
    }
}

/// Traces of every shard, some with equal starts: half of them in blocks, half live.
pub(super) async fn filled(cluster: &TestCluster) {
    let traces: Vec<Sent> = (1..=60).map(|n| late(n, u64::from(n % 7) * 50)).collect();
    cluster.send(&traces[..30]).await;
    pass(12).await;
    cluster.flush().await;
    cluster.send(&traces[30..]).await;
}
