//! openraft's state machine: the replicated state in memory, published to readers after each batch of entries, and
//! its snapshot in the redb file.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::watch;

use super::Database;
use super::database::{StoreError, key, put, put_bytes};
use crate::codec::{self, Kind};
use crate::state::{Applied, ClusterState};
use crate::types::{LogId, Membership, Outcome, Snapshot, SnapshotMeta, TypeConfig};

/// The state with the log id and the members that belong to it.
///
/// Invariant: `state.applied_index` is the index of `last_applied`, 0 when there is none.
#[derive(Clone)]
pub(crate) struct StateMachine {
    database: Database,
    last_applied: Option<LogId>,
    membership: Membership,
    state: Arc<ClusterState>,
    published: watch::Sender<Arc<ClusterState>>,
}

impl StateMachine {
    /// The state of the stored snapshot, or the empty one. openraft applies the committed entries after it.
    pub(crate) fn load(database: Database) -> Result<Self, StoreError> {
        let mut machine = Self {
            database,
            last_applied: None,
            membership: Membership::default(),
            state: Arc::default(),
            published: watch::Sender::new(Arc::default()),
        };
        let meta = machine
            .database
            .get(key::SNAPSHOT_META, Kind::SnapshotMeta)?;
        let state = machine.database.get_bytes(key::SNAPSHOT_STATE)?;
        if let (Some(meta), Some(state)) = (meta, state) {
            let state = ClusterState::unseal(&state)
                .map_err(|error| machine.database.corrupt(key::SNAPSHOT_STATE, error))?;
            machine.replace(meta, state);
        }
        Ok(machine)
    }

    /// The state after each batch of entries.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.published.subscribe()
    }

    /// The state after the last entry of the log, committed or not, and that entry. Not for a group that runs.
    pub(crate) fn into_end(mut self) -> Result<(Arc<ClusterState>, Option<LogId>), StoreError> {
        let first = self.last_applied.map_or(0, |last| last.index + 1);
        let database = self.database.clone();
        database.entries(first..=u64::MAX, usize::MAX, &mut |entry| {
            self.apply_entry(entry.log_id, entry.payload);
            Ok(())
        })?;
        Ok((self.state, self.last_applied))
    }

    fn replace(&mut self, meta: SnapshotMeta, state: ClusterState) {
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership;
        self.state = Arc::new(state);
        self.published.send_replace(self.state.clone());
    }

    /// Stores a snapshot unless a newer one is there: one that a peer sent may overtake one that is being built.
    fn store_snapshot(&self, meta: &SnapshotMeta, state: &[u8]) -> Result<bool, StoreError> {
        let stored: Option<SnapshotMeta> =
            self.database.get(key::SNAPSHOT_META, Kind::SnapshotMeta)?;
        if stored.is_some_and(|stored| stored.last_log_id > meta.last_log_id) {
            return Ok(false);
        }
        self.database.write(|transaction| {
            put(transaction, key::SNAPSHOT_META, Kind::SnapshotMeta, meta)?;
            put_bytes(transaction, key::SNAPSHOT_STATE, state)
        })?;
        Ok(true)
    }

    fn apply_entry(&mut self, log_id: LogId, payload: EntryPayloadOf) -> Outcome {
        self.last_applied = Some(log_id);
        let state = Arc::make_mut(&mut self.state);
        let outcome = match payload {
            EntryPayload::Normal(command) => {
                let outcome = state.apply_at(log_id.index, &command);
                if let Err(conflict) = &outcome {
                    tracing::debug!(index = log_id.index, %command, %conflict, "command refused");
                }
                outcome
            }
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(log_id), membership);
                state.applied_index = log_id.index;
                Ok(Applied::Done)
            }
            EntryPayload::Blank => {
                state.applied_index = log_id.index;
                Ok(Applied::Done)
            }
        };
        Outcome(outcome)
    }
}

type EntryPayloadOf = openraft::alias::EntryPayloadOf<TypeConfig>;

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = self.apply_entry(entry.log_id, entry.payload);
            answers.extend(responder.map(|responder| (responder, outcome)));
        }
        // Published first: whoever gets an answer then also sees the state that it is about.
        self.published.send_replace(self.state.clone());
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: Vec<u8>) -> io::Result<()> {
        let state: ClusterState = ClusterState::unseal(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.store_snapshot(meta, &bytes)?;
        self.replace(meta.clone(), state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let meta = self.database.get(key::SNAPSHOT_META, Kind::SnapshotMeta)?;
        let state = self.database.get_bytes(key::SNAPSHOT_STATE)?;
        Ok(meta
            .zip(state)
            .map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;

    /// The builder is a clone of the state machine at one point in the log.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let meta = SnapshotMeta {
            last_log_id: self.last_applied,
            last_membership: self.membership.clone(),
        };
        let snapshot = codec::seal(Kind::State, &*self.state).map_err(io::Error::other)?;
        if self.store_snapshot(&meta, &snapshot)? {
            return Ok(Snapshot { meta, snapshot });
        }
        let newer = self.get_current_snapshot().await?;
        newer.ok_or_else(|| io::Error::other("the stored snapshot has gone"))
    }
}
