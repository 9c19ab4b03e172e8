//! openraft's types, made ours. Nothing here is public.

use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use serde::{Deserialize, Serialize};

use crate::state::{Applied, Command, Conflict};
use crate::store::StateMachine;

/// What applying an entry gives: of a blank entry or a change of members, `Applied::Done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome(pub(crate) Result<Applied, Conflict>);

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Ok(applied) => write!(f, "{applied:?}"),
            Err(conflict) => conflict.fmt(f),
        }
    }
}

openraft::declare_raft_types!(
    /// Node ids are plain numbers (openraft's storage suite wants that); addresses are in the replicated state.
    pub(crate) TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = openraft::EmptyNode,
);

pub(crate) type Entry = EntryOf<TypeConfig>;
pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Vote = VoteOf<TypeConfig>;
pub(crate) type Membership = StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = SnapshotOf<TypeConfig, Vec<u8>>;
pub(crate) type Group = openraft::Raft<TypeConfig, StateMachine>;
