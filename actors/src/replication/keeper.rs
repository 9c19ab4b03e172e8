//! The keeper: one actor per node that has proposed what the shards led here want changed, and carries each new shard
//! map to the writer, and new settings into force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{Bucket, NodeId, ShardId, Term};
use spandrel_raft::state::NodeState;
use spandrel_raft::{ClusterState, Command, Settings};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::holders::holder_changes;
use super::proposals::Proposals;
use super::wishes::{Wish, wishes};
use crate::housekeeping::expired_before;
use crate::limits::{KEEPER_ALONE_TICK_MS, KEEPER_TICK_MS, REPLACE_AFTER_MS};
use crate::opening::adopt_settings;
use crate::placement::{Replicas, planned_while_away};
use crate::shared::Shared;
use crate::writer::WriterMessage;

/// Where a shard stands that is led here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardProgress {
    /// Which shard.
    pub shard: ShardId,
    /// In which term.
    pub term: Term,
    /// Joining replicas that have everything.
    pub full: Vec<NodeId>,
    /// Followers that can only be filled.
    pub unfit: Vec<NodeId>,
    /// Followers that get records as they are numbered.
    pub level: Vec<NodeId>,
    /// Traces of which earlier spans are being brought here.
    pub recalls: u64,
}

/// The keeper's messages.
pub(crate) enum Look {
    /// The map has changed.
    Changed,
    /// Time has passed: the look of this number is due.
    Again(u64),
}

impl ractor::Message for Look {}

/// The actor.
pub(crate) struct Keeper;

/// What it needs.
pub(crate) struct KeeperArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Settings,
    pub(crate) writer: ActorRef<WriterMessage>,
}

/// A look on its way.
#[derive(Debug, Clone, Copy)]
struct Next {
    number: u64,
    /// It comes when a node that is alone would look.
    is_far: bool,
}

/// Invariant: at most one round of proposals is under way.
pub(crate) struct KeeperState {
    arguments: KeeperArguments,
    /// The plan, and the epoch and nodes that were away for which it was made.
    plan: ((u64, BTreeSet<NodeId>), Vec<Replicas>),
    /// Since when nodes have been down.
    down_since: BTreeMap<NodeId, Instant>,
    proposals: Proposals,
    /// The look that comes next.
    next: Option<Next>,
    /// Counts looks that were to come.
    looks: u64,
}

impl Actor for Keeper {
    type Msg = Look;
    type State = KeeperState;
    type Arguments = KeeperArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Look>,
        arguments: KeeperArguments,
    ) -> Result<KeeperState, ActorProcessingErr> {
        let (writer, mut states) = (arguments.writer.clone(), arguments.settings.watch());
        let (shared, keeper) = (Arc::clone(&arguments.shared), myself);
        arguments.shared.spawn_job("keeper", async move {
            let mut epoch = None;
            loop {
                let state = Arc::clone(&states.borrow_and_update());
                if let Err(error) = adopt_settings(&shared, &state) {
                    // Whoever applied them has checked them: this program is older than theirs.
                    tracing::error!(%error, "the cluster's settings are not understood here");
                }
                if epoch != Some(state.epoch) {
                    epoch = Some(state.epoch);
                    let _ = keeper.cast(Look::Changed);
                    if writer.cast(WriterMessage::Map(state)).is_err() {
                        return;
                    }
                }
                if states.changed().await.is_err() {
                    return;
                }
            }
        });
        let proposals = Proposals::new(
            arguments.settings.clone(),
            arguments.writer.clone(),
            arguments.shared.env.buggify.clone(),
        );
        Ok(KeeperState {
            arguments,
            plan: Default::default(),
            down_since: BTreeMap::new(),
            proposals,
            next: None,
            looks: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Look>,
        look: Look,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        if let Look::Again(number) = look {
            // Another one may have been wanted sooner.
            if state.next.is_none_or(|next| next.number != number) {
                return Ok(());
            }
            state.next = None;
        }
        state.look().await;
        // Alone there is nothing to look after but the next bucket, until the map changes.
        let is_far = state.arguments.settings.state().nodes.len() < 2;
        if state.next.is_none_or(|next| next.is_far && !is_far) {
            state.looks += 1;
            let number = state.looks;
            state.next = Some(Next { number, is_far });
            let tick = if is_far {
                KEEPER_ALONE_TICK_MS
            } else {
                KEEPER_TICK_MS
            };
            myself.send_after(Duration::from_millis(tick), move || Look::Again(number));
        }
        Ok(())
    }
}

impl KeeperState {
    async fn look(&mut self) {
        let state = self.arguments.settings.state();
        self.note_who_is_down(&state);
        self.say_whether_full(&state).await;
        self.say_who_holds(&state).await;
        let wishes = self.wishes(&state).await.unwrap_or_default();
        self.proposals.round(wishes).await;
    }

    fn note_who_is_down(&mut self, state: &ClusterState) {
        let down = state.nodes.iter();
        let down = down.filter(|(_, node)| node.state == NodeState::Down);
        let down: BTreeSet<NodeId> = down.map(|(id, _)| *id).collect();
        self.down_since.retain(|node, _| down.contains(node));
        for node in down {
            self.down_since.entry(node).or_insert_with(Instant::now);
        }
    }

    /// Nodes that have been down for a moment only.
    fn away(&self) -> BTreeSet<NodeId> {
        let patience = Duration::from_millis(REPLACE_AFTER_MS);
        let down = self.down_since.iter();
        let away = down.filter(|(_, since)| since.elapsed() < patience);
        away.map(|(node, _)| *node).collect()
    }

    /// What the shards led here want. Nothing while the writer knows another map than this one.
    async fn wishes(&mut self, state: &ClusterState) -> Option<Vec<Wish>> {
        let me = self.arguments.shared.node;
        let leads_none = state.shard_map.iter().all(|record| record.primary != me);
        if leads_none || state.nodes.len() < 2 {
            return None;
        }
        let made_for = (state.epoch, self.away());
        if self.plan.0 != made_for || self.plan.1.is_empty() {
            let plan = planned_while_away(state, &made_for.1);
            self.plan = (made_for, plan);
        }
        let (reply, progress) = oneshot::channel();
        let asked = WriterMessage::Progress(reply);
        self.arguments.writer.cast(asked).ok()?;
        let (epoch, progress) = progress.await.ok()?;
        if epoch != state.epoch {
            // What the writer says is of another map: a replica that has left and come back is full by the older one. The
            // next look comes when the writer has this one.
            return None;
        }
        let progress: BTreeMap<ShardId, ShardProgress> =
            progress.into_iter().map(|one| (one.shard, one)).collect();
        Some(wishes(state, me, &progress, &self.plan.1))
    }

    /// Says that little of the own disk is left, so that others take its shards, and when there is more again.
    async fn say_whether_full(&self, state: &ClusterState) {
        let shared = &self.arguments.shared;
        let Some(record) = state.nodes.get(&shared.node) else {
            return;
        };
        let to = match (record.state, shared.disk.is_short()) {
            // Alone, nobody else can take them.
            (NodeState::Up, true) if state.nodes.len() > 1 => NodeState::Full,
            (NodeState::Full, false) => NodeState::Up,
            _ => return,
        };
        let command = Command::SetNodeState {
            node: shared.node,
            expected_incarnation: record.incarnation,
            expected: record.state,
            state: to,
        };
        match self.arguments.settings.propose(command).await {
            Ok(_) => tracing::info!(state = %to, "the cluster knows how the disk of this node is"),
            Err(error) => tracing::debug!(%error, "the cluster is not told how the disk is"),
        }
    }

    /// Writes down who holds what is written now, and on the leader forgets what has expired.
    async fn say_who_holds(&self, state: &ClusterState) {
        let shared = &self.arguments.shared;
        let (me, now, bucket_nanos) = (shared.node, shared.env.now(), shared.bucket_nanos);
        let settings = &self.arguments.settings;
        let changes = holder_changes(state, me, Bucket::containing(now, bucket_nanos));
        let mut commands = Vec::new();
        if !changes.is_empty() {
            commands.push(Command::SetHolders { changes });
        }
        let before = expired_before(shared, now, state.retention_seconds);
        let expired = state
            .holders
            .keys()
            .next()
            .is_some_and(|oldest| *oldest < before);
        if expired && settings.leader() == Some(me) {
            commands.push(Command::ForgetBuckets { before });
        }
        for command in commands {
            if let Err(error) = settings.propose(command).await {
                tracing::debug!(%error, "holders not written down");
            }
        }
    }
}
