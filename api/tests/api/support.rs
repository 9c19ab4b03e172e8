//! A node whose ports are fakes, and a plain HTTP client for it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use prost::Message;
use spandrel_api::{Listeners, Ports, serve};
use spandrel_model::batch::{SpanKind, StatusCode as SpanStatus};
use spandrel_model::cluster::{ClusterView, NewJoinToken, NodeRole, NodeUse, NodeView, ShardLack};
use spandrel_model::credit::{Credit, CreditPool};
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{
    Admin, DecisionView, ExportOutcome, Ingest, NodeStatus, PolicyView, Query, TraceAbsence,
    TraceAnswer, TraceLookup, TraceReader,
};
use spandrel_model::search::{
    Cursor, FoundTrace, MissingPart, Name, NamesAnswer, NamesKind, NamesRequest, Receipt,
    SearchAnswer, SearchRequest, TraceState,
};
use spandrel_model::verdict::{Trigger, Verdict};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// A trace that the fake holds; its id is 0xaa sixteen times.
pub const KEPT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// One that was dropped and is gone.
pub const GONE: &str = "dddddddddddddddddddddddddddddddd";
/// One that breaks off after its first piece.
pub const BROKEN: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A free port of this machine.
pub async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// What the fakes answer and what they saw.
pub struct Fake {
    pub pool: Arc<CreditPool>,
    pub exports: Mutex<Vec<(TenantId, Bytes)>>,
    pub export_reply: Mutex<Result<ExportOutcome, PortError>>,
    pub export_hangs: bool,
    /// When it is there, an export waits for a permit of it.
    pub gate: Option<Arc<Semaphore>>,
    pub pieces: Vec<Bytes>,
    pub complete: bool,
    pub search: Mutex<Option<SearchRequest>>,
    pub search_reply: Mutex<Result<(), PortError>>,
    pub names: Mutex<Option<NamesRequest>>,
    pub not_ready: Option<String>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            pool: CreditPool::new(256 << 20),
            exports: Mutex::default(),
            export_reply: Mutex::new(Ok(ExportOutcome::default())),
            export_hangs: false,
            gate: None,
            pieces: vec![piece("first"), piece("<second>")],
            complete: true,
            search: Mutex::default(),
            search_reply: Mutex::new(Ok(())),
            names: Mutex::default(),
            not_ready: None,
        }
    }
}

/// `TracesData` with one span of this name.
pub fn piece(name: &str) -> Bytes {
    TracesData {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![KeyValue {
                    key: "service.name".to_owned(),
                    value: Some(AnyValue {
                        value: Some(Value::StringValue("shop".to_owned())),
                    }),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![Span {
                    trace_id: vec![0xaa; 16],
                    span_id: vec![1; 8],
                    name: name.to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
    .encode_to_vec()
    .into()
}

pub fn decision() -> DecisionView {
    DecisionView {
        verdict: Verdict::Keep,
        policy: "errors".to_owned(),
        trigger: Trigger::Idle,
        policy_version: 3,
        probability: 1.0,
        decided_at: UnixNanos(1_700_000_000_000_000_000),
        recoverable_until: None,
    }
}

pub fn receipt() -> Receipt {
    Receipt {
        complete: false,
        from: UnixNanos(1),
        to: UnixNanos(2),
        index_watermark: UnixNanos(3),
        missing: vec![MissingPart {
            node: NodeId(7),
            shards: vec![ShardId(1)],
            from: UnixNanos(1),
            to: UnixNanos(2),
            reason: "down".to_owned(),
        }],
        inspected_spans: u64::MAX,
        inspected_bytes: 9,
    }
}

pub fn found() -> FoundTrace {
    FoundTrace {
        trace_id: TraceId([0xaa; 16]),
        root_service: "shop".to_owned(),
        root_operation: "<script>alert(1)</script>".to_owned(),
        start: UnixNanos(1_700_000_000_000_000_000),
        earliest: UnixNanos(1_700_000_000_000_000_000),
        duration: 12_500_000,
        status: SpanStatus::Error,
        span_count: 12,
        error_count: 1,
        services: vec!["shop".to_owned()],
        state: TraceState::Kept,
        matched_spans: vec![SpanId([1; 8])],
    }
}

#[async_trait]
impl Ingest for Fake {
    fn tenant(&self, name: Option<&str>) -> Result<TenantId, PortError> {
        match name {
            None => Ok(TenantId::default()),
            Some("unknown") => Err(PortError::new(
                ErrorClass::Forbidden,
                "unknown_tenant",
                "the tenant `unknown` does not exist",
            )),
            Some(name) => name
                .parse()
                .map_err(|_| PortError::invalid("tenant", "no tenant's name")),
        }
    }

    fn admit(&self, tenant: &TenantId, bytes: u64) -> Result<Credit, PortError> {
        self.pool.try_take(bytes).ok_or_else(|| {
            PortError::unavailable("pressure", "no credit is left", 1_500).with_tenant(tenant)
        })
    }

    async fn export(
        &self,
        tenant: &TenantId,
        request: Bytes,
        credit: Credit,
    ) -> Result<ExportOutcome, PortError> {
        assert!(
            credit.bytes() >= request.len() as u64,
            "bytes came without credit"
        );
        if self.export_hangs {
            std::future::pending::<()>().await;
        }
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        self.exports.lock().unwrap().push((tenant.clone(), request));
        self.export_reply.lock().unwrap().clone()
    }
}

struct FakeReader {
    pieces: std::vec::IntoIter<Bytes>,
    breaks: bool,
}

#[async_trait]
impl TraceReader for FakeReader {
    async fn next(&mut self) -> Result<Option<Bytes>, PortError> {
        match self.pieces.next() {
            None if self.breaks => Err(PortError::internal("the disk is gone")),
            next => Ok(next),
        }
    }
}

#[async_trait]
impl Query for Fake {
    async fn trace(&self, _: &TenantId, trace_id: TraceId) -> Result<TraceLookup, PortError> {
        let id = trace_id.to_string();
        if id == GONE {
            return Ok(TraceLookup::Absent(TraceAbsence::Dropped(decision())));
        }
        if id != KEPT && id != BROKEN {
            let retained_since = UnixNanos(1_600_000_000_000_000_000);
            return Ok(TraceLookup::Absent(TraceAbsence::Unknown {
                retained_since,
            }));
        }
        Ok(TraceLookup::Found(TraceAnswer {
            state: TraceState::Kept,
            complete: self.complete,
            missing: Vec::new(),
            decision: Some(decision()),
            span_count: 2,
            reader: Box::new(FakeReader {
                pieces: self.pieces.clone().into_iter(),
                breaks: id == BROKEN,
            }),
        }))
    }

    async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, PortError> {
        *self.search.lock().unwrap() = Some(request);
        self.search_reply.lock().unwrap().clone()?;
        let trace = found();
        Ok(SearchAnswer {
            next: Some(Cursor {
                start: trace.start,
                trace_id: trace.trace_id,
            }),
            traces: vec![trace],
            receipt: receipt(),
        })
    }

    async fn names(&self, request: NamesRequest) -> Result<NamesAnswer, PortError> {
        let details = match &request.kind {
            NamesKind::Services => (None, None, None),
            NamesKind::Operations { .. } => (Some(SpanKind::Server), None, None),
            NamesKind::Tags => (None, Some("span"), Some(true)),
            NamesKind::TagValues { .. } => (None, Some("int"), None),
        };
        *self.names.lock().unwrap() = Some(request);
        Ok(NamesAnswer {
            names: vec![Name {
                name: "a name".to_owned(),
                kind: details.0,
                scope: details.1,
                indexed: details.2,
            }],
            receipt: receipt(),
        })
    }

    async fn promote(&self, tenant: &TenantId, id: TraceId) -> Result<DecisionView, PortError> {
        if id.to_string() == KEPT {
            return Ok(decision());
        }
        let error = PortError::new(ErrorClass::NotFound, "not_found", "the spans are gone");
        Err(error.with_tenant(tenant))
    }
}

#[async_trait]
impl Admin for Fake {
    async fn status(&self) -> NodeStatus {
        NodeStatus {
            node: NodeId(7),
            cluster: "test<b>".to_owned(),
            version: "0.1.0".to_owned(),
            ready: self.not_ready.is_none(),
            not_ready_because: self.not_ready.clone().unwrap_or_default(),
            shards: 64,
            pressure: 0,
            credit_capacity_bytes: self.pool.capacity(),
            credit_used_bytes: self.pool.used(),
            open_traces: 1,
            unpaged_traces: 2,
            uncompared_buckets: 3,
            differing_buckets: 4,
            journal_bytes: 3,
            block_bytes: 4,
            index_bytes: 5,
            journal_since: UnixNanos(6),
            index_watermark: UnixNanos(7),
            policy_version: 3,
            policies: vec!["errors: keep".to_owned()],
            retention_seconds: 604_800,
        }
    }

    async fn policy(&self) -> PolicyView {
        PolicyView {
            version: 3,
            yaml: "policies: []".to_owned(),
        }
    }

    async fn apply_policy(&self, yaml: String) -> Result<PolicyView, PortError> {
        if yaml.contains("bad") {
            return Err(PortError::invalid("policies", "line 1: bad"));
        }
        Ok(PolicyView { version: 4, yaml })
    }

    async fn create_tenant(&self, _: TenantId) -> Result<(), PortError> {
        Ok(())
    }

    async fn tenants(&self) -> Vec<TenantId> {
        vec![TenantId::default()]
    }

    async fn flush(&self) -> Result<(), PortError> {
        Ok(())
    }

    async fn cluster(&self) -> ClusterView {
        let node = |node: u64, role| NodeView {
            node: NodeId(node),
            state: NodeUse::Up,
            role,
            zone: "a".to_owned(),
            link_address: format!("10.0.0.{node}:7200"),
            http_address: String::new(),
            grpc_address: String::new(),
            version: (node == 7).then(|| "0.1.0".to_owned()),
            boot: 3,
            silent_ms: (node == 8).then_some(40),
            primary_shards: 32,
            in_sync_shards: 64,
            filling_shards: 0,
            needed_copies: 6,
        };
        ClusterView {
            cluster: "00000000000000ab".to_owned(),
            asked: NodeId(7),
            leader: Some(NodeId(8)),
            epoch: 12,
            shards: 64,
            replication: 3,
            effective_replication: 2,
            nodes: vec![node(7, NodeRole::Voter), node(8, NodeRole::Leader)],
            lacking: vec![ShardLack {
                shard: ShardId(5),
                copies: 1,
            }],
            lacking_copies: 9,
        }
    }

    async fn leave_node(&self) -> Result<(), PortError> {
        let message = "no other node is up";
        Err(PortError::new(ErrorClass::Invalid, "last_node", message))
    }

    async fn remove_node(&self, node: NodeId, accepts_loss: bool) -> Result<(), PortError> {
        if node == NodeId(8) && accepts_loss {
            return Ok(());
        }
        if node == NodeId(8) {
            let message = "nobody else holds it";
            return Err(PortError::new(ErrorClass::Invalid, "only_copy", message));
        }
        let message = "it is not in the cluster";
        Err(PortError::new(
            ErrorClass::NotFound,
            "unknown_node",
            message,
        ))
    }

    async fn repair(&self) -> Result<(), PortError> {
        Ok(())
    }

    async fn create_join_token(&self) -> Result<NewJoinToken, PortError> {
        Ok(NewJoinToken {
            token: "spandrel-join-1".to_owned(),
            expires: UnixNanos(8),
        })
    }
}

/// A served fake.
pub struct Node {
    pub fake: Arc<Fake>,
    pub http: SocketAddr,
    pub otlp_grpc: SocketAddr,
    pub otlp_http: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<()>>,
}

impl Node {
    pub async fn start(fake: Fake) -> Self {
        Self::start_on(bind().await, fake).await
    }

    /// With a listener of the native API that is there already.
    pub async fn start_on(http: TcpListener, fake: Fake) -> Self {
        let listeners = Listeners {
            http,
            otlp_grpc: bind().await,
            otlp_http: bind().await,
        };
        let fake = Arc::new(fake);
        let ports = Ports {
            ingest: fake.clone(),
            query: fake.clone(),
            admin: fake.clone(),
            metrics: Arc::new(|| "spandrel_test 1\n".to_owned()),
        };
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let (http, otlp_grpc, otlp_http) = (
            address(&listeners.http),
            address(&listeners.otlp_grpc),
            address(&listeners.otlp_http),
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let shutdown = async { stopped.await.unwrap_or_default() };
            serve(listeners, ports, Box::pin(shutdown)).await.unwrap();
        });
        Self {
            fake,
            http,
            otlp_grpc,
            otlp_http,
            stop: Some(stop),
            served: Some(served),
        }
    }

    /// Begins to shut down; the handle ends when all is served.
    pub fn stop(&mut self) -> JoinHandle<()> {
        drop(self.stop.take());
        self.served.take().unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(Request::get(format!("http://{}{path}", self.http)), "")
            .await
            .unwrap()
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        let request = Request::post(format!("http://{}{path}", self.http))
            .header("content-type", "application/json");
        send(request, body.to_owned()).await.unwrap()
    }

    pub async fn export(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::post(format!("http://{}/v1/traces", self.otlp_http));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(request, body).await.unwrap()
    }

    pub fn exported(&self) -> Vec<(TenantId, Bytes)> {
        self.fake.exports.lock().unwrap().clone()
    }
}

/// An answer that was read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no json: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends a request; an error when the answer breaks off.
pub async fn send(
    request: http::request::Builder,
    body: impl Into<Bytes>,
) -> Result<Answer, Box<dyn std::error::Error>> {
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .request(request.body(Full::new(body.into()))?)
        .await?;
    let (parts, body) = response.into_parts();
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await?.to_bytes(),
    })
}
