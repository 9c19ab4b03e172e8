//! The bodies about a cluster's members.

use serde::{Deserialize, Serialize};
use spandrel_model::cluster::{ClusterView, NewJoinToken, NodeView};

use crate::time::Instant;

/// One node of `GET /v1/cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNode {
    /// Its id.
    pub node: String,
    /// `up`, `draining`, `full` or `down`.
    pub state: String,
    /// `leader`, `voter`, `learner` or `none`: its part in the group of the settings.
    pub role: String,
    /// Where it stands; may be empty.
    pub zone: String,
    /// Where other nodes reach it.
    pub link_address: String,
    /// Where clients reach it by HTTP.
    pub http_address: String,
    /// Where clients send OTLP by gRPC.
    pub grpc_address: String,
    /// The version of its program; null when it did not say.
    pub version: Option<String>,
    /// How often its data directory was opened.
    pub boot: u64,
    /// For how long the node that was asked has not heard of it; null of itself, or when it was never reached.
    pub silent_ms: Option<u64>,
    /// Shards that it leads.
    pub primary_shards: u32,
    /// Shards of which it has a full copy, those that it leads included.
    pub in_sync_shards: u32,
    /// Shards of which its copy is being filled.
    pub filling_shards: u32,
    /// Pieces of older data (of one shard, term and hour) that have too few copies without it.
    pub needed_copies: u32,
}

/// A shard with fewer full copies than there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LackingShard {
    /// The shard.
    pub shard: u16,
    /// Full copies on nodes that are not down; 0: it waits for one of its nodes and takes no spans.
    pub copies: u32,
}

/// `GET /v1/cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterResponse {
    /// The cluster's name.
    pub cluster: String,
    /// The node that was asked.
    pub asked: String,
    /// Who leads the settings; null when the node that was asked does not know.
    pub leader: Option<String>,
    /// Counts the changes of nodes and shards.
    pub epoch: u64,
    /// Shards.
    pub shards: u16,
    /// Copies of each shard that are wanted.
    pub replication: u8,
    /// Copies that there can be: no more than nodes.
    pub effective_replication: u32,
    /// By id.
    pub nodes: Vec<ClusterNode>,
    /// Shards with fewer full copies than there can be.
    pub lacking: Vec<LackingShard>,
    /// Pieces of older data (of one shard, term and hour) that have fewer copies than there can be.
    pub lacking_copies: u32,
}

/// `POST /v1/admin/nodes/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoveNodeRequest {
    /// The node's id.
    pub node: String,
    /// Remove it also when nobody else holds some of what it holds.
    #[serde(default)]
    pub accept_loss: bool,
}

/// `POST /v1/admin/tokens/join`. Never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenResponse {
    /// The token: nobody can show it again.
    pub token: String,
    /// It lets nodes in until then.
    pub expires: Instant,
}

impl From<NodeView> for ClusterNode {
    fn from(view: NodeView) -> Self {
        Self {
            node: view.node.0.to_string(),
            state: view.state.to_string(),
            role: view.role.to_string(),
            zone: view.zone,
            link_address: view.link_address,
            http_address: view.http_address,
            grpc_address: view.grpc_address,
            version: view.version,
            boot: view.boot,
            silent_ms: view.silent_ms,
            primary_shards: view.primary_shards,
            in_sync_shards: view.in_sync_shards,
            filling_shards: view.filling_shards,
            needed_copies: view.needed_copies,
        }
    }
}

impl From<ClusterView> for ClusterResponse {
    fn from(view: ClusterView) -> Self {
        let lacking = view.lacking.into_iter();
        let lacking = lacking.map(|lack| LackingShard {
            shard: lack.shard.0,
            copies: lack.copies,
        });
        Self {
            cluster: view.cluster,
            asked: view.asked.0.to_string(),
            leader: view.leader.map(|leader| leader.0.to_string()),
            epoch: view.epoch,
            shards: view.shards,
            replication: view.replication,
            effective_replication: view.effective_replication,
            nodes: view.nodes.into_iter().map(Into::into).collect(),
            lacking: lacking.collect(),
            lacking_copies: view.lacking_copies,
        }
    }
}

impl From<NewJoinToken> for JoinTokenResponse {
    fn from(token: NewJoinToken) -> Self {
        Self {
            token: token.token,
            expires: Instant(token.expires),
        }
    }
}
