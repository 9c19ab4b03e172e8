//! What answers of a cluster must hold once its faults are over.
//!
//! Not verified: that what is let off here is really gone. A shard of which some part has no holder any more is let off
//! as a whole.

use std::collections::BTreeSet;

use spandrel_model::ids::{NodeId, ShardId, TenantId, TraceId};
use spandrel_model::routing::ShardRouter;
use spandrel_raft::ClusterState;

/// What a run may not demand any more. Nothing by default: everything is demanded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demands {
    /// Shards of which something lies on nobody any more.
    unheld: BTreeSet<ShardId>,
    router: Option<ShardRouter>,
    /// Nodes of which pages have rotted: they say that they cannot read them, and others are asked.
    pub(crate) rotted: BTreeSet<NodeId>,
    /// Something is only on nodes that are gone or of which pages have rotted.
    may_be_rotten: bool,
    /// Clocks of nodes have differed: which of two decisions is the later one, their times do not say.
    pub(crate) clocks_differ: bool,
}

impl Demands {
    /// Lets off what only nodes had that are gone for good. Nobody copies it elsewhere yet: this is the one place that
    /// becomes strict once somebody does.
    pub(crate) fn let_off_what_is_gone(&mut self, state: &ClusterState, gone: &BTreeSet<NodeId>) {
        self.router = state.router();
        let records = state.holders.values().flat_map(|records| records.iter());
        for (key, holders) in records {
            if holders.iter().all(|node| gone.contains(node)) {
                self.unheld.insert(key.shard);
            }
            let is_unfit = |node: &NodeId| gone.contains(node) || self.rotted.contains(node);
            self.may_be_rotten |= !self.rotted.is_empty() && holders.iter().all(is_unfit);
        }
    }

    /// Answers may name what is missing.
    pub(crate) fn allow_gaps(&self) -> bool {
        self.may_be_rotten || !self.unheld.is_empty()
    }

    /// Everything of the trace is on some node.
    pub(crate) fn is_held(&self, tenant: &TenantId, trace_id: TraceId) -> bool {
        self.unheld.is_empty() || !self.unheld.contains(&self.shard(tenant, trace_id))
    }

    pub(crate) fn shard(&self, tenant: &TenantId, trace_id: TraceId) -> ShardId {
        let Some(router) = &self.router else {
            return ShardId(0);
        };
        router.shard(router.hash(router.tenant_seed(tenant), trace_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spandrel_model::ids::{Bucket, Term};
    use spandrel_raft::state::HolderKey;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn a_shard_is_let_off_only_when_all_holders_of_a_part_are_gone() {
        let key = |shard| HolderKey {
            shard: ShardId(shard),
            term: Term(2),
        };
        let (one, two) = (NodeId(1), NodeId(2));
        let records = BTreeMap::from([(key(0), vec![one, two]), (key(1), vec![two])]);
        let state = ClusterState {
            shards: 2,
            routing_key: 7,
            holders: BTreeMap::from([(Bucket(0), Arc::new(records))]),
            ..ClusterState::default()
        };
        let mut demands = Demands::default();
        demands.let_off_what_is_gone(&state, &BTreeSet::from([one]));
        assert!(!demands.allow_gaps());
        let mut rotten = Demands::default();
        rotten.rotted.insert(one);
        rotten.let_off_what_is_gone(&state, &BTreeSet::new());
        assert!(!rotten.allow_gaps(), "node 2 has everything");
        rotten.rotted.insert(two);
        rotten.let_off_what_is_gone(&state, &BTreeSet::new());
        assert!(rotten.allow_gaps() && rotten.unheld.is_empty());
        demands.let_off_what_is_gone(&state, &BTreeSet::from([two]));
        assert!(demands.allow_gaps());
        let tenant = TenantId::default();
        for number in 0..8 {
            let id = TraceId([number; 16]);
            let held = demands.shard(&tenant, id) == ShardId(0);
            assert_eq!(demands.is_held(&tenant, id), held);
        }
    }
}
