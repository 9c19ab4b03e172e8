//! A node in a test: real files, virtual time, spans made by hand.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

pub mod counts;
pub mod members;
pub mod network;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};
use prost::Message;
use spandrel_actors::membership::{NoLinks, NodeStart};
use spandrel_actors::{BlockingMode, Buggify, Clock, Env, Node, NodeOptions};
use spandrel_model::error::PortError;
use spandrel_model::ids::{SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{ExportOutcome, Query, TraceAnswer, TraceLookup};
use spandrel_model::search::{FoundTrace, SearchFilter, SearchRequest};
use spandrel_raft::ClusterSeed;
use spandrel_storage::disk::RealDisk;

pub const HOUR: u64 = 3_600 * UnixNanos::PER_SECOND;
/// Keeps errors, drops everything else.
pub const ERRORS_ONLY: &str =
    "policies:\n  - {name: errors, type: status_code, status_codes: [ERROR]}\n";

/// Wall time that follows tokio's paused clock, and can be moved.
pub struct TestClock {
    start: tokio::time::Instant,
    base: AtomicU64,
}

impl TestClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: tokio::time::Instant::now(),
            base: AtomicU64::new(1_800_000_000 * UnixNanos::PER_SECOND),
        })
    }

    pub fn jump(&self, nanos: u64) {
        self.base.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixNanos {
        let passed = u64::try_from(self.start.elapsed().as_nanos()).unwrap();
        UnixNanos(self.base.load(Ordering::Relaxed) + passed)
    }
}

pub struct TestNode {
    pub node: Node,
    pub clock: Arc<TestClock>,
}

pub fn options(dir: &Path, policy: &str) -> NodeOptions {
    NodeOptions {
        data_dir: dir.to_owned(),
        credit_bytes: 64 << 20,
        frame_cache_bytes: 4 << 20,
        store_cache_bytes: 4 << 20,
        recovery_window_seconds: 3_600,
        journal_max_bytes: 1 << 30,
        disk_reserve_bytes: Some(0),
        bucket_nanos: HOUR,
        require_tenant: false,
        start: NodeStart::Found,
        require_join_token: false,
        seed: ClusterSeed {
            cluster_id: 1,
            routing_key: 2,
            shards: 4,
            replication: 1,
            retention_seconds: 7 * 24 * 3_600,
            policy_yaml: policy.to_owned(),
        },
        new_disk_id: 3,
        addresses: Default::default(),
        zone: String::new(),
    }
}

pub fn environment(clock: &Arc<TestClock>) -> Env {
    Env {
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        disk: Arc::new(RealDisk),
        blocking: BlockingMode::inline(),
        halt: Arc::new(|reason| panic!("the node halted: {reason}")),
        links: Arc::new(NoLinks),
        buggify: Buggify::default(),
        secret: Arc::new(|| {
            // Another one each time, as at random: all starts of a test binary differ.
            static DRAWN: AtomicU64 = AtomicU64::new(1);
            let mut secret = [7; 32];
            let drawn = DRAWN.fetch_add(1, Ordering::Relaxed);
            secret[..8].copy_from_slice(&drawn.to_le_bytes());
            secret
        }),
        start_phase: Arc::new(drop),
    }
}

pub async fn start(dir: &Path, clock: &Arc<TestClock>, policy: &str) -> TestNode {
    let node = Node::start(options(dir, policy), environment(clock))
        .await
        .unwrap();
    TestNode {
        node,
        clock: Arc::clone(clock),
    }
}

pub fn trace_id(number: u8) -> TraceId {
    let mut id = [number; 16];
    id[0] = 0xa0;
    TraceId(id)
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// One span of a service.
#[derive(Debug, Clone)]
pub struct Sent {
    pub trace: u8,
    pub id: u8,
    pub parent: u8,
    pub service: &'static str,
    pub name: &'static str,
    pub error: bool,
    pub note: &'static str,
    /// Milliseconds before now at which it started.
    pub before_ms: u64,
}

pub fn span(trace: u8, id: u8, parent: u8) -> Sent {
    Sent {
        trace,
        id,
        parent,
        service: "shop",
        name: "GET /",
        error: false,
        note: "plain",
        before_ms: 0,
    }
}

impl TestNode {
    pub async fn send(&self, tenant: &TenantId, spans: &[Sent]) {
        let outcome = self.try_send(tenant, spans).await.unwrap();
        assert_eq!(outcome.accepted, spans.len() as u64, "{}", outcome.message);
    }

    pub async fn try_send(
        &self,
        tenant: &TenantId,
        spans: &[Sent],
    ) -> Result<ExportOutcome, PortError> {
        let now = self.clock.now();
        let start = |sent: &Sent| {
            let start = now.minus(sent.before_ms * UnixNanos::PER_MILLI);
            start.0 + u64::from(sent.id) * 1_000_000
        };
        let resource_spans = spans.iter().map(|sent| ResourceSpans {
            resource: Some(Resource {
                attributes: vec![text("service.name", sent.service)],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![Span {
                    trace_id: trace_id(sent.trace).0.to_vec(),
                    span_id: vec![sent.id; 8],
                    parent_span_id: if sent.parent == 0 {
                        vec![]
                    } else {
                        vec![sent.parent; 8]
                    },
                    name: sent.name.to_owned(),
                    start_time_unix_nano: start(sent),
                    end_time_unix_nano: start(sent) + 5_000_000,
                    attributes: vec![
                        text("http.route", "/items/{id}"),
                        text("shop.note", sent.note),
                    ],
                    status: sent.error.then(|| Status {
                        code: 2,
                        ..Status::default()
                    }),
                    ..Span::default()
                }],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        });
        let request = ExportTraceServiceRequest {
            resource_spans: resource_spans.collect(),
        };
        let bytes = Bytes::from(request.encode_to_vec());
        let ingest = self.node.ingest();
        let credit = ingest.admit(tenant, bytes.len() as u64)?;
        ingest.export(tenant, bytes, credit).await
    }

    pub async fn find(&self, tenant: &TenantId, trace: u8) -> Option<TraceAnswer> {
        find(self.node.query().as_ref(), tenant, trace).await
    }

    /// The span ids of a trace, as a fetch gives them; panics on doubles.
    pub async fn spans(&self, tenant: &TenantId, trace: u8) -> BTreeSet<SpanId> {
        spans_of(self.find(tenant, trace).await, trace).await
    }

    /// The same, of what the node alone holds.
    pub async fn spans_alone(&self, tenant: &TenantId, trace: u8) -> BTreeSet<SpanId> {
        let found = find(self.node.query_alone().as_ref(), tenant, trace).await;
        spans_of(found, trace).await
    }

    /// The same; `None` when a part of it cannot be read, or there is none.
    pub async fn try_spans_alone(&self, tenant: &TenantId, trace: u8) -> Option<BTreeSet<SpanId>> {
        let query = self.node.query_alone();
        match query.trace(tenant, trace_id(trace)).await {
            Ok(TraceLookup::Found(answer)) if answer.complete => {
                read_spans(answer, trace).await.ok()
            }
            _ => None,
        }
    }

    pub fn request(&self, tenant: &TenantId, filter: SearchFilter) -> SearchRequest {
        SearchRequest {
            tenant: tenant.clone(),
            filter: SearchFilter {
                to: UnixNanos(u64::MAX),
                ..filter
            },
            limit: 100,
            cursor: None,
            include_dropped: false,
            timeout_ms: 10_000,
        }
    }

    pub async fn search(&self, tenant: &TenantId, filter: SearchFilter) -> Vec<FoundTrace> {
        let answer = self
            .node
            .query()
            .search(self.request(tenant, filter))
            .await
            .unwrap();
        assert!(answer.receipt.complete, "{:?}", answer.receipt);
        answer.traces
    }

    pub async fn flush(&self) {
        self.node.admin().flush().await.unwrap();
    }
}

/// Virtual time passes; everything that is due happens.
pub async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn find(query: &dyn Query, tenant: &TenantId, trace: u8) -> Option<TraceAnswer> {
    match query.trace(tenant, trace_id(trace)).await.unwrap() {
        TraceLookup::Found(answer) => Some(answer),
        TraceLookup::Absent(_) => None,
    }
}

async fn spans_of(answer: Option<TraceAnswer>, trace: u8) -> BTreeSet<SpanId> {
    match answer {
        Some(answer) => read_spans(answer, trace).await.unwrap(),
        None => BTreeSet::new(),
    }
}

async fn read_spans(mut answer: TraceAnswer, trace: u8) -> Result<BTreeSet<SpanId>, PortError> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = answer.reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    let data = TracesData::decode(bytes.freeze()).unwrap();
    let mut ids = BTreeSet::new();
    let spans = data.resource_spans.iter().flat_map(|one| &one.scope_spans);
    for span in spans.flat_map(|scope| &scope.spans) {
        assert_eq!(span.trace_id, trace_id(trace).0);
        assert!(
            ids.insert(SpanId(span.span_id.clone().try_into().unwrap())),
            "a double"
        );
    }
    Ok(ids)
}
