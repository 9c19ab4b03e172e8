//! The state as the first version stored it: without join tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{Bucket, NodeId, TenantId};

use super::{
    AttributeSettings, BucketHolders, ClusterState, NodeRecord, PolicyDocument, ShardRecord,
    SpanLimits, TenantSettings,
};
use crate::codec::{CodecError, Kind, unseal};

/// Fields as in [`ClusterState`], in the order of the bytes. Never changes.
#[derive(Serialize, Deserialize)]
struct ClusterState1 {
    cluster_id: u64,
    routing_key: u64,
    shards: u16,
    replication: u8,
    retention_seconds: u64,
    policy: PolicyDocument,
    attributes: AttributeSettings,
    limits: SpanLimits,
    tenants: BTreeMap<TenantId, TenantSettings>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    next_node: u64,
    shard_map: Vec<ShardRecord>,
    holders: BTreeMap<Bucket, Arc<BucketHolders>>,
    epoch: u64,
    applied_index: u64,
}

impl ClusterState {
    /// Decodes a sealed state of this version or the first.
    pub(crate) fn unseal(bytes: &[u8]) -> Result<Self, CodecError> {
        let first = Kind::State1 as u8;
        match unseal::<Self>(Kind::State, bytes) {
            Err(CodecError::Kind { actual, .. }) if actual == first => {
                unseal::<ClusterState1>(Kind::State1, bytes).map(Self::from)
            }
            decoded => decoded,
        }
    }
}

impl From<ClusterState1> for ClusterState {
    fn from(old: ClusterState1) -> Self {
        Self {
            cluster_id: old.cluster_id,
            routing_key: old.routing_key,
            shards: old.shards,
            replication: old.replication,
            retention_seconds: old.retention_seconds,
            policy: old.policy,
            attributes: old.attributes,
            limits: old.limits,
            tenants: old.tenants,
            nodes: old.nodes,
            next_node: old.next_node,
            shard_map: old.shard_map,
            holders: old.holders,
            epoch: old.epoch,
            applied_index: old.applied_index,
            join_tokens: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::seal;

    #[test]
    fn a_state_of_the_first_version_is_read() {
        let old = ClusterState1 {
            cluster_id: 5,
            routing_key: 7,
            shards: 4,
            replication: 3,
            retention_seconds: 7_200,
            policy: PolicyDocument::default(),
            attributes: AttributeSettings::default(),
            limits: SpanLimits::default(),
            tenants: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next_node: 2,
            shard_map: Vec::new(),
            holders: BTreeMap::new(),
            epoch: 8,
            applied_index: 9,
        };
        let bytes = seal(Kind::State1, &old).unwrap();
        let expected = ClusterState::from(old);
        assert_eq!(ClusterState::unseal(&bytes).unwrap(), expected);
        // and one of this version as well
        let bytes = seal(Kind::State, &expected).unwrap();
        assert_eq!(ClusterState::unseal(&bytes).unwrap(), expected);
        assert!(ClusterState::unseal(&seal(Kind::Vote, &expected).unwrap()).is_err());
    }
}
