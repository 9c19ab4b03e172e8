//! The ports: what `api` calls and `actors` implements. Nothing else joins the two.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterView, NewJoinToken};
use crate::credit::Credit;
use crate::error::PortError;
use crate::ids::{NodeId, TenantId, TraceId, UnixNanos};
use crate::search::{
    MissingPart, NamesAnswer, NamesRequest, SearchAnswer, SearchRequest, TraceState,
};
use crate::verdict::{Trigger, Verdict};

/// What became of an acknowledged export request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportOutcome {
    /// Spans that are durable now.
    pub accepted: u64,
    /// Spans that are bad in themselves and were not taken.
    pub rejected: u64,
    /// Why, for people: the reasons with their counts; empty when none was rejected and nothing was changed.
    pub message: String,
}

/// Takes spans.
#[async_trait]
pub trait Ingest: Send + Sync {
    /// Resolves and checks the tenant that a request names (`None`: it names none).
    ///
    /// # Errors
    /// `Unauthenticated` when one is required, `Forbidden` when it is unknown, `Invalid` when it is no tenant's name.
    fn tenant(&self, name: Option<&str>) -> Result<TenantId, PortError>;

    /// Admits `bytes` of a request before they are read. Call again with [`Credit::try_grow`] while a compressed
    /// request unfolds.
    ///
    /// # Errors
    /// `Unavailable` with a retry hint when the node has no credit left.
    fn admit(&self, tenant: &TenantId, bytes: u64) -> Result<Credit, PortError>;

    /// Takes one `ExportTraceServiceRequest` in protobuf. Returns when each accepted span is durable, and visible by
    /// trace id.
    ///
    /// # Errors
    /// `Invalid` for bytes that are no such message; `Unavailable` and `OverLimit` as API.md says.
    async fn export(
        &self,
        tenant: &TenantId,
        request: Bytes,
        credit: Credit,
    ) -> Result<ExportOutcome, PortError>;
}

/// The decision about a trace, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionView {
    /// What was decided.
    pub verdict: Verdict,
    /// Name of the policy that decided; empty when none voted.
    pub policy: String,
    /// Why then.
    pub trigger: Trigger,
    /// Version of the policy set.
    pub policy_version: u32,
    /// Probability with which such a trace is kept, 0 to 1.
    pub probability: f64,
    /// By the clock of the node that decided.
    pub decided_at: UnixNanos,
    /// Of a dropped trace: the journal holds it until about then.
    pub recoverable_until: Option<UnixNanos>,
}

/// The spans of a trace, a piece at a time.
#[async_trait]
pub trait TraceReader: Send {
    /// The next piece: the bytes of a protobuf `TracesData` (its `resource_spans`, about 1 MiB at most); pieces
    /// concatenated are one `TracesData`. `None` at the end.
    ///
    /// # Errors
    /// `Corrupt` or `Unavailable` when the rest cannot be read.
    async fn next(&mut self) -> Result<Option<Bytes>, PortError>;
}

/// A trace that was found.
pub struct TraceAnswer {
    /// Where it stands.
    pub state: TraceState,
    /// Every replica set that may hold part of it answered.
    pub complete: bool,
    /// What was not reached.
    pub missing: Vec<MissingPart>,
    /// The decision; `None` while open.
    pub decision: Option<DecisionView>,
    /// Spans, duplicates not counted.
    pub span_count: u32,
    /// The spans.
    pub reader: Box<dyn TraceReader>,
}

/// Why a trace is not there.
#[derive(Debug, Clone, PartialEq)]
pub enum TraceAbsence {
    /// It was dropped, its spans are gone, its verdict is still held.
    Dropped(DecisionView),
    /// Nothing is known of it.
    Unknown {
        /// What was acknowledged since then would be known.
        retained_since: UnixNanos,
    },
}

/// A trace, or why there is none.
pub enum TraceLookup {
    /// Found.
    Found(TraceAnswer),
    /// Not there.
    Absent(TraceAbsence),
}

/// Answers questions.
#[async_trait]
pub trait Query: Send + Sync {
    /// One trace by id.
    ///
    /// # Errors
    /// `Unavailable` (`holders_unreachable`) when nothing was found while some holder did not answer.
    async fn trace(&self, tenant: &TenantId, trace_id: TraceId) -> Result<TraceLookup, PortError>;

    /// Traces by conditions.
    ///
    /// # Errors
    /// `OverLimit` when too many queries of the tenant run.
    async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, PortError>;

    /// Services, operations, tags, values.
    ///
    /// # Errors
    /// As [`Query::search`].
    async fn names(&self, request: NamesRequest) -> Result<NamesAnswer, PortError>;

    /// Keeps a trace that is open or was dropped. Returns its decision afterwards.
    ///
    /// # Errors
    /// `NotFound` when the journal does not hold it any more.
    async fn promote(
        &self,
        tenant: &TenantId,
        trace_id: TraceId,
    ) -> Result<DecisionView, PortError>;
}

/// The state of a node, for people and for `/ready`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// The cluster's name.
    pub cluster: String,
    /// The program's version.
    pub version: String,
    /// Settings applied, journal replayed, listeners open.
    pub ready: bool,
    /// Why it is not ready, for people; empty when it is.
    pub not_ready_because: String,
    /// Shards of the cluster.
    pub shards: u16,
    /// Memory pressure, 0 (none) to 4 (refusing).
    pub pressure: u8,
    /// Bytes of the credit pool and bytes taken.
    pub credit_capacity_bytes: u64,
    /// See `credit_capacity_bytes`.
    pub credit_used_bytes: u64,
    /// Open traces.
    pub open_traces: u64,
    /// Kept traces that are not in a block yet.
    pub unpaged_traces: u64,
    /// Buckets whose data is still to be compared with that of other nodes: once a day, and when somebody asks for it.
    pub uncompared_buckets: u64,
    /// Buckets that could not be compared, or of which something is lacking still: the log says why.
    pub differing_buckets: u64,
    /// Bytes of the journal on disk.
    pub journal_bytes: u64,
    /// Bytes of the block files.
    pub block_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Oldest instant that the journal still covers.
    pub journal_since: UnixNanos,
    /// Everything kept before is in the index.
    pub index_watermark: UnixNanos,
    /// Version of the policy set in force.
    pub policy_version: u32,
    /// One line per policy in force, for people.
    pub policies: Vec<String>,
    /// Period after which kept traces expire, in seconds.
    pub retention_seconds: u64,
}

/// A policy file in force, or the outcome of checking one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Version; 0 for a file that is only checked.
    pub version: u32,
    /// The YAML text as it was applied.
    pub yaml: String,
}

/// Changes and shows the cluster's settings.
#[async_trait]
pub trait Admin: Send + Sync {
    /// The node's state.
    async fn status(&self) -> NodeStatus;

    /// The policy in force.
    async fn policy(&self) -> PolicyView;

    /// Checks and applies a policy file.
    ///
    /// # Errors
    /// `Invalid`, naming line and field; `Unavailable` when the settings cannot be replicated now.
    async fn apply_policy(&self, yaml: String) -> Result<PolicyView, PortError>;

    /// Makes a tenant known.
    ///
    /// # Errors
    /// `OverLimit` at 10,000 tenants.
    async fn create_tenant(&self, tenant: TenantId) -> Result<(), PortError>;

    /// The tenants, sorted.
    async fn tenants(&self) -> Vec<TenantId>;

    /// The cluster as this node sees it. Asks the others for their versions, briefly.
    async fn cluster(&self) -> ClusterView;

    /// Lets this node hand over its shards and take none; once no shard names it, it may be stopped and removed.
    ///
    /// # Errors
    /// `Invalid` when no other node is up; `Unavailable` when the settings cannot be replicated now.
    async fn leave_node(&self) -> Result<(), PortError>;

    /// Takes a node out of the cluster for good.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it is this node, is up, or a shard still names it, and, unless the caller
    /// `accepts_loss`, when nobody else holds some of the older data that it holds; `Unavailable`.
    async fn remove_node(&self, node: NodeId, accepts_loss: bool) -> Result<(), PortError>;

    /// Lets this node look at once for older data that it is to copy, also from holders that have just refused.
    ///
    /// # Errors
    /// `Unavailable` when the node is stopping.
    async fn repair(&self) -> Result<(), PortError>;

    /// Creates a token that lets nodes join for a day.
    ///
    /// # Errors
    /// `Invalid` when too many are valid; `Unavailable`.
    async fn create_join_token(&self) -> Result<NewJoinToken, PortError>;

    /// Writes what is decided and kept to blocks and the index now, rather than when pages are full.
    ///
    /// # Errors
    /// `Unavailable` when the disk refuses.
    async fn flush(&self) -> Result<(), PortError>;
}
