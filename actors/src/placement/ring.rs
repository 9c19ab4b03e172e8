//! The order in which nodes are asked to hold a shard: a ring of virtual nodes, hashed byte by byte.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use consistent_hash::{Node, RingHash, StaticHashRing};
use spandrel_model::ids::{NodeId, ShardId};
use xxhash_rust::xxh3::Xxh3;

use super::PlacementNode;
use crate::limits::VIRTUAL_NODES;

/// What a hash is of, so that a node and a shard of the same number lie apart.
#[derive(Clone, Copy)]
enum Domain {
    Node = 1,
    Shard = 2,
}

/// A key of the ring. Its hash is that of its bytes: what the standard library feeds a hasher for a type may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RingKey([u8; 9]);

impl RingKey {
    fn new(domain: Domain, number: u64) -> Self {
        let mut bytes = [domain as u8; 9];
        bytes[1..].copy_from_slice(&number.to_le_bytes());
        Self(bytes)
    }
}

impl Hash for RingKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.0);
    }
}

/// XXH3-64 of the bytes of a key, seeded with the cluster's secret.
#[derive(Debug, Clone, Copy)]
struct KeyedHash(u64);

impl RingHash for KeyedHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = Xxh3::with_seed(self.0);
        item.hash(&mut hasher);
        hasher.digest()
    }

    fn hash_vnode<K: Hash>(&self, node: &K, number: usize) -> u64 {
        let mut hasher = Xxh3::with_seed(self.0);
        node.hash(&mut hasher);
        hasher.write(&(number as u64).to_le_bytes());
        hasher.digest()
    }
}

/// Nodes on a ring, each as often as its weight says.
pub(super) struct Ring(StaticHashRing<'static, RingKey, NodeId, KeyedHash>);

impl Ring {
    pub(super) fn new(nodes: &BTreeMap<NodeId, &PlacementNode>, seed: u64) -> Self {
        let nodes = nodes.values().map(|node| {
            Node::new(RingKey::new(Domain::Node, node.id.0))
                .value(node.id)
                .quantity(VIRTUAL_NODES * usize::from(node.weight.get()))
        });
        Self(StaticHashRing::new(KeyedHash(seed), nodes))
    }

    /// All nodes, in the order in which they are asked to hold a shard.
    pub(super) fn candidates(&self, shard: ShardId) -> impl Iterator<Item = NodeId> {
        let key = RingKey::new(Domain::Shard, u64::from(shard.0));
        self.0.calc_candidates(&key).map(|node| node.value)
    }
}
