//! Shards with copies: three nodes in one process over links in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use prost::Message;
use spandrel_actors::membership::NodeStart;
use spandrel_actors::{Env, Node, NodeOptions};
use spandrel_model::ids::{NodeId, SpanId, TenantId};
use spandrel_model::policy::KEEP_ALL_POLICY;
use spandrel_model::ports::ExportOutcome;
use spandrel_raft::ClusterState;
use spandrel_raft::state::NodeAddresses;
use support::network::Network;
use support::{Sent, TestClock, TestNode, environment, options, span, trace_id};
use tempfile::TempDir;

/// Longest wait for something that the cluster does by itself, in seconds.
const PATIENCE_S: u64 = 30;
const SHARDS: u16 = 8;

struct Cluster {
    network: Arc<Network>,
    clock: Arc<TestClock>,
    dir: TempDir,
    replication: u8,
}

fn address(number: u64) -> String {
    format!("node-{number}:7200")
}

impl Cluster {
    fn new(replication: u8) -> Self {
        Self {
            network: Arc::default(),
            clock: TestClock::new(),
            dir: TempDir::new().unwrap(),
            replication,
        }
    }

    fn options(&self, number: u64, start: NodeStart) -> NodeOptions {
        let dir = self.dir.path().join(number.to_string());
        let mut options = options(&dir, KEEP_ALL_POLICY);
        options.seed.replication = self.replication;
        options.seed.shards = SHARDS;
        NodeOptions {
            start,
            new_disk_id: number + 100,
            addresses: NodeAddresses {
                link: address(number),
                ..NodeAddresses::default()
            },
            ..options
        }
    }

    async fn start(&self, number: u64, start: NodeStart) -> TestNode {
        let environment = Env {
            links: self.network.links(&address(number)),
            ..environment(&self.clock)
        };
        let node = Node::start(self.options(number, start), environment);
        TestNode {
            node: node.await.unwrap(),
            clock: Arc::clone(&self.clock),
        }
    }

    async fn join(&self, number: u64) -> TestNode {
        let join = NodeStart::Join {
            addresses: vec![address(1)],
            token: None,
            expected_shards: None,
        };
        self.start(number, join).await
    }

    /// Three nodes, each shard with its copies.
    async fn three(&self) -> [TestNode; 3] {
        let nodes = [
            self.start(1, NodeStart::Found).await,
            self.join(2).await,
            self.join(3).await,
        ];
        until(&nodes[0], |state| is_settled(state, self.replication)).await;
        nodes
    }
}

/// Every shard has its copies, and nobody leads more than a third of them and one.
fn is_settled(state: &ClusterState, copies: u8) -> bool {
    let full = state
        .shard_map
        .iter()
        .all(|record| record.isr.len() == usize::from(copies) && record.filling.is_empty());
    let nodes: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
    let led = |node: &NodeId| {
        state
            .shard_map
            .iter()
            .filter(|record| record.primary == *node)
            .count()
    };
    let most = usize::from(SHARDS).div_ceil(nodes.len()) + 1;
    full && nodes.iter().all(|node| led(node) <= most)
}

async fn until(node: &TestNode, is_so: impl Fn(&ClusterState) -> bool) {
    let watching = async {
        while !is_so(&node.node.cluster()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(PATIENCE_S), watching).await;
    assert!(
        waited.is_ok(),
        "not in time: {:#?}",
        node.node.cluster().shard_map
    );
}

/// Waits until the settings survive the loss of any node: shards may be settled before that.
async fn until_all_vote(nodes: &[TestNode]) {
    let settings = nodes[0].node.settings();
    let watching = async {
        while settings.members().voters.len() < nodes.len() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_secs(PATIENCE_S);
    tokio::time::timeout(limit, watching)
        .await
        .expect("in time");
}

/// Waits until a node finds these spans of a trace itself.
async fn until_spans(node: &TestNode, trace: u8, wanted: &BTreeSet<SpanId>) {
    let tenant = TenantId::default();
    let watching = async {
        while node.spans_alone(&tenant, trace).await != *wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(PATIENCE_S), watching).await;
    let found = node.spans_alone(&tenant, trace).await;
    assert!(waited.is_ok(), "trace {trace}: {found:?} of {wanted:?}");
}

fn ids(numbers: &[u8]) -> BTreeSet<SpanId> {
    numbers.iter().map(|id| SpanId([*id; 8])).collect()
}

/// Spans of many traces: some fall on each shard.
fn spans(traces: std::ops::Range<u8>, id: u8, parent: u8) -> Vec<Sent> {
    traces.map(|trace| span(trace, id, parent)).collect()
}

/// The shards of traces are not known here: a node holds a trace if it is told to by the map, so ask all.
async fn holders(nodes: &[&TestNode], trace: u8, wanted: &BTreeSet<SpanId>) -> usize {
    let tenant = TenantId::default();
    let mut holders = 0;
    for node in nodes {
        holders += usize::from(node.spans_alone(&tenant, trace).await == *wanted);
    }
    holders
}

async fn until_held(nodes: &[&TestNode], trace: u8, wanted: &BTreeSet<SpanId>, copies: usize) {
    let watching = async {
        while holders(nodes, trace, wanted).await < copies {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(PATIENCE_S), watching).await;
    assert!(
        waited.is_ok(),
        "trace {trace} is held {} times",
        holders(nodes, trace, wanted).await
    );
}

#[tokio::test(start_paused = true)]
async fn spans_sent_to_any_node_are_on_every_copy_of_their_shard() {
    for replication in [2, 3] {
        // given: three nodes
        let cluster = Cluster::new(replication);
        let nodes = cluster.three().await;
        let tenant = TenantId::default();

        // when: the spans of each trace arrive at different nodes
        nodes[0].send(&tenant, &spans(0..20, 1, 0)).await;
        nodes[1].send(&tenant, &spans(0..20, 2, 1)).await;
        nodes[2].send(&tenant, &spans(0..20, 3, 1)).await;

        // then: each trace is whole on as many nodes as there are copies, and on no other
        let all: Vec<&TestNode> = nodes.iter().collect();
        for trace in 0..20 {
            until_held(&all, trace, &ids(&[1, 2, 3]), usize::from(replication)).await;
            let held = holders(&all, trace, &ids(&[1, 2, 3])).await;
            assert_eq!(held, usize::from(replication));
        }
        for node in nodes {
            node.node.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_survives_the_loss_of_any_node() {
    for lost in 0..3 {
        // given: three nodes, two copies, traces that are open, some of them with spans of before the joins
        let cluster = Cluster::new(2);
        let tenant = TenantId::default();
        let first = cluster.start(1, NodeStart::Found).await;
        first.send(&tenant, &spans(0..20, 1, 0)).await;
        let nodes = [first, cluster.join(2).await, cluster.join(3).await];
        until(&nodes[0], |state| is_settled(state, 2)).await;
        until_all_vote(&nodes).await;
        nodes[1].send(&tenant, &spans(0..20, 2, 1)).await;

        // when: one is lost
        cluster.network.cut_off(&address(lost + 1));
        let lost_id = NodeId(lost + 1);
        let rest: Vec<&TestNode> = (0..3)
            .filter(|node| *node != lost)
            .map(|node| &nodes[usize::try_from(node).unwrap()])
            .collect();
        until(rest[0], |state| {
            let mut records = state.shard_map.iter();
            records.all(|record| {
                record.primary != lost_id && record.isr.len() == 2 && !record.isr.contains(&lost_id)
            })
        })
        .await;

        // then: both others hold everything, and take more
        rest[0].send(&tenant, &spans(0..20, 3, 1)).await;
        for trace in 0..20 {
            until_spans(rest[0], trace, &ids(&[1, 2, 3])).await;
            until_spans(rest[1], trace, &ids(&[1, 2, 3])).await;
        }
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// A span of about so many times 128,000 bytes, none of which compress.
fn large_span(trace: u8, times: u64) -> Span {
    let value = |seed| AnyValue {
        value: Some(any_value::Value::BytesValue(noise(seed, 2_000))),
    };
    let attribute = |seed| KeyValue {
        key: format!("noise.{seed}"),
        value: Some(value(seed)),
        ..KeyValue::default()
    };
    let event = |number: u64| Event {
        name: "noise".to_owned(),
        attributes: (0..times)
            .map(|at| attribute(number * times + at + 1))
            .collect(),
        ..Event::default()
    };
    Span {
        trace_id: trace_id(trace).0.to_vec(),
        span_id: vec![1; 8],
        name: "large".to_owned(),
        start_time_unix_nano: 1_800_000_000_000_000_000,
        end_time_unix_nano: 1_800_000_000_000_000_001,
        events: (0..64).map(event).collect(),
        ..Span::default()
    }
}

async fn export(node: &TestNode, spans: Vec<Span>) -> ExportOutcome {
    let request = TracesData {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let (tenant, bytes) = (TenantId::default(), Bytes::from(request.encode_to_vec()));
    let ingest = node.node.ingest();
    let credit = ingest.admit(&tenant, bytes.len() as u64).unwrap();
    ingest.export(&tenant, bytes, credit).await.unwrap()
}

/// A frame with one span of more than a message between nodes was sent again for ever, and its shard stood still; sent
/// to another node than its primary, the whole request was refused.
#[tokio::test(start_paused = true)]
async fn the_largest_spans_are_copied_and_larger_ones_rejected_alone() {
    let cluster = Cluster::new(3);
    let nodes = cluster.three().await;
    for (number, node) in (0u8..).zip(&nodes) {
        // many at once, some for each node, and one that is too large among them
        let traces = number * 20..number * 20 + 12;
        let mut large: Vec<Span> = traces.clone().map(|trace| large_span(trace, 4)).collect();
        large.insert(5, large_span(200, 9));
        let outcome = export(node, large).await;
        assert_eq!((outcome.accepted, outcome.rejected), (12, 1));
        for named in ["`default`", "524288 bytes", "resource and scope"] {
            assert!(outcome.message.contains(named), "{}", outcome.message);
        }
        // then they are on every copy, and what comes after them as well
        let last = number * 20 + 12;
        node.send(&TenantId::default(), &spans(last..last + 8, 1, 0))
            .await;
        for trace in traces.start..last + 8 {
            until_held(&nodes.each_ref(), trace, &ids(&[1]), 3).await;
        }
    }
    for node in nodes {
        node.node.stop().await;
    }
}
