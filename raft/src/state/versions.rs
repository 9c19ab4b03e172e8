//! The state as earlier versions stored it: the first without join tokens, the second without the lives of nodes
//! and those that leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spandrel_model::ids::{Bucket, NodeId, TenantId, UnixNanos};

use super::{
    AttributeSettings, BucketHolders, ClusterState, NodeRecord, PolicyDocument, ShardRecord,
    SpanLimits, TenantSettings, TokenHash,
};
use crate::codec::{CodecError, Kind, unseal};

/// What the second version added to the first. Fields as in [`ClusterState`], in the order of the bytes: bincode writes
/// a struct in a struct as its fields. Never changes.
#[derive(Serialize, Deserialize)]
struct ClusterState2 {
    first: ClusterState1,
    join_tokens: BTreeMap<TokenHash, UnixNanos>,
}

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
    /// Decodes a sealed state of this version or an earlier one.
    pub(crate) fn unseal(bytes: &[u8]) -> Result<Self, CodecError> {
        let (first, second) = (Kind::State1 as u8, Kind::State2 as u8);
        match unseal::<Self>(Kind::State, bytes) {
            Err(CodecError::Kind { actual, .. }) if actual == first => {
                unseal::<ClusterState1>(Kind::State1, bytes).map(Self::from)
            }
            Err(CodecError::Kind { actual, .. }) if actual == second => {
                unseal::<ClusterState2>(Kind::State2, bytes).map(Self::from)
            }
            decoded => decoded,
        }
    }
}

impl From<ClusterState2> for ClusterState {
    fn from(old: ClusterState2) -> Self {
        Self {
            join_tokens: old.join_tokens,
            ..Self::from(old.first)
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
            lives: BTreeMap::new(),
            leaving: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spandrel_model::ids::Term;

    use super::*;
    use crate::codec::seal;
    use crate::codec_oracle::{read_state, resealed};
    use crate::state::{NodeAddresses, NodeState};

    fn old() -> ClusterState1 {
        ClusterState1 {
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
        }
    }

    #[test]
    fn a_state_of_an_earlier_version_is_read() {
        let bytes = seal(Kind::State1, &old()).unwrap();
        let mut expected = ClusterState::from(old());
        assert_eq!(ClusterState::unseal(&bytes).unwrap(), expected);

        let tokens = BTreeMap::from([(TokenHash([3; 32]), UnixNanos(4))]);
        let second = ClusterState2 {
            first: old(),
            join_tokens: tokens.clone(),
        };
        let bytes = seal(Kind::State2, &second).unwrap();
        expected.join_tokens = tokens;
        assert_eq!(ClusterState::unseal(&bytes).unwrap(), expected);

        // and one of this version as well
        expected.lives.insert(NodeId(1), 6);
        expected.leaving.insert(NodeId(1));
        let bytes = seal(Kind::State, &expected).unwrap();
        assert_eq!(ClusterState::unseal(&bytes).unwrap(), expected);
        assert!(ClusterState::unseal(&seal(Kind::Vote, &expected).unwrap()).is_err());
    }

    /// The bytes of a state that the second version wrote, but for its version, kind and checksum.
    #[test]
    fn the_second_version_is_the_first_with_tokens_behind_it() {
        let second = ClusterState2 {
            first: old(),
            join_tokens: BTreeMap::new(),
        };
        let of_second = seal(Kind::State2, &second).unwrap();
        let of_first = seal(Kind::State1, &old()).unwrap();
        let value = |bytes: &[u8]| bytes[2..bytes.len() - 8].to_vec();
        assert_eq!(value(&of_second), [value(&of_first), vec![0]].concat());
    }

    /// A state with something in every part that has a length.
    fn full() -> ClusterState {
        let node = NodeRecord {
            addresses: NodeAddresses {
                link: "a:1".to_owned(),
                http: "a:2".to_owned(),
                grpc: "a:3".to_owned(),
            },
            zone: "z".to_owned(),
            incarnation: 1,
            disk_id: 2,
            boot: 3,
            state: NodeState::Up,
        };
        let shard = ShardRecord {
            term: Term(4),
            primary: NodeId(1),
            isr: vec![NodeId(1)],
            filling: vec![NodeId(2)],
            moving_to: Some(NodeId(2)),
        };
        let mut state = ClusterState::from(old());
        state
            .tenants
            .insert(TenantId::default(), TenantSettings::default());
        state.nodes.insert(NodeId(1), node);
        state.shard_map = vec![shard; 4];
        state.join_tokens.insert(TokenHash([3; 32]), UnixNanos(4));
        state.lives.insert(NodeId(1), 6);
        state.leaving.insert(NodeId(1));
        state
    }

    proptest! {
        /// A snapshot comes from another node: behind a right checksum anything may stand.
        #[test]
        fn a_damaged_state_is_read_or_refused(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            is_old: bool,
        ) {
            let bytes = match is_old {
                true => seal(Kind::State1, &old()).unwrap(),
                false => seal(Kind::State, &full()).unwrap(),
            };
            let damaged = resealed(&bytes, |value| {
                for (at, byte) in &damage {
                    *at.get_mut(value) = *byte;
                }
            });
            read_state(&damaged);
        }
    }
}
