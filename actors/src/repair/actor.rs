//! The copier: one actor per node that gets the older data which the node is to hold, piece by piece, and then has the
//! node named as its holder.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::{Bucket, NodeId};
use spandrel_raft::state::HolderChange;
use spandrel_raft::{ClusterState, Command, Conflict, ProposeError, Settings};
use tokio::time::Instant;

use super::fetch::{Fetched, Fetching, store_part};
use super::plan::{CopyJob, Situation, down};
use crate::housekeeping::expired_before;
use crate::limits::{
    COPY_BYTES_PER_SECOND, COPY_LOOK_MS, COPY_RETRY_MS, COPY_UNINDEXED, COPY_WAITS, DEAD_AFTER_MS,
};
use crate::link::Link;
use crate::shared::Shared;
use crate::wire::{CopyKey, CopyRequest};

/// Times that a claim is made again because somebody else has changed the same records.
const COPY_CLAIMS: usize = 8;

/// The copier's messages.
pub(crate) enum CopierMessage {
    /// Go on, or look for what is to be copied.
    Tick,
    /// Look now: somebody waits for it.
    Look,
}

impl ractor::Message for CopierMessage {}

/// The actor.
pub(crate) struct Copier;

/// What it needs.
pub(crate) struct CopierArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Settings,
    pub(crate) link: Arc<dyn Link>,
}

/// Invariant: one piece is under way at most, and it is taken within one message, so that nothing goes on when the node
/// has stopped.
pub(crate) struct CopierState {
    arguments: CopierArguments,
    down_since: BTreeMap<NodeId, Instant>,
    /// Holders that have refused, and until when they are not asked again.
    avoided: BTreeMap<(Bucket, NodeId), Instant>,
    running: Option<Running>,
}

/// A copy that is being made.
struct Running {
    job: CopyJob,
    fetching: Fetching,
    waits: u32,
}

/// What a step has come to.
enum Step {
    /// Bytes came; more will.
    Copied(usize),
    /// The node holds everything.
    Done,
    /// There is no room now.
    Wait,
}

impl Actor for Copier {
    type Msg = CopierMessage;
    type State = CopierState;
    type Arguments = CopierArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<CopierMessage>,
        arguments: CopierArguments,
    ) -> Result<CopierState, ActorProcessingErr> {
        let pause = Duration::from_millis(COPY_LOOK_MS);
        myself.send_after(pause, || CopierMessage::Tick);
        Ok(CopierState {
            arguments,
            down_since: BTreeMap::new(),
            avoided: BTreeMap::new(),
            running: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<CopierMessage>,
        message: CopierMessage,
        state: &mut CopierState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CopierMessage::Look => state.avoided.clear(),
            CopierMessage::Tick => {
                let pause = state.tick().await;
                myself.send_after(pause, || CopierMessage::Tick);
            }
        }
        Ok(())
    }
}

impl CopierState {
    /// Takes a step; how long to wait for the next one.
    async fn tick(&mut self) -> Duration {
        let pause = Duration::from_millis(COPY_LOOK_MS);
        let state = self.arguments.settings.state();
        self.watch_nodes(&state);
        if self.running.is_none() {
            self.running = self.next_job(&state);
        }
        let Some(mut running) = self.running.take() else {
            self.say_copying(None);
            return pause;
        };
        self.say_copying(Some(running.job.bucket));
        match self.step(&state, &mut running).await {
            Ok(Step::Copied(bytes)) => {
                self.running = Some(running);
                let millis = bytes as u64 * 1_000 / COPY_BYTES_PER_SECOND;
                Duration::from_millis(millis)
            }
            Ok(Step::Wait) if running.waits < COPY_WAITS => {
                running.waits += 1;
                self.running = Some(running);
                Duration::from_millis(COPY_RETRY_MS)
            }
            Ok(Step::Done) => Duration::ZERO,
            failed => {
                let reason = failed
                    .err()
                    .unwrap_or_else(|| "no memory for it".to_owned());
                let (bucket, from) = (running.job.bucket, running.job.from);
                tracing::debug!(bucket = bucket.0, from = from.0, reason, "no copy yet");
                let until = Instant::now() + Duration::from_millis(COPY_RETRY_MS);
                self.avoided.insert((bucket, from), until);
                Duration::ZERO
            }
        }
    }

    /// The bucket that is being copied is not sealed meanwhile.
    fn say_copying(&self, bucket: Option<Bucket>) {
        let mark = bucket.map_or(u64::MAX, |bucket| bucket.0.into());
        self.arguments.shared.copying.store(mark, Ordering::Relaxed);
    }

    fn watch_nodes(&mut self, state: &ClusterState) {
        let now = Instant::now();
        self.avoided.retain(|_, until| *until > now);
        let down = down(state);
        self.down_since.retain(|node, _| down.contains(node));
        for node in down {
            self.down_since.entry(node).or_insert(now);
        }
    }

    fn oldest(&self, state: &ClusterState) -> Bucket {
        let shared = &self.arguments.shared;
        expired_before(shared, shared.env.now(), state.retention_seconds)
    }

    fn next_job(&self, state: &ClusterState) -> Option<Running> {
        let dead_after = Duration::from_millis(DEAD_AFTER_MS);
        let lost = self.down_since.iter();
        let lost = lost.filter(|(_, since)| since.elapsed() >= dead_after);
        let lost: BTreeSet<NodeId> = lost.map(|(node, _)| *node).collect();
        let situation = Situation {
            state,
            lost: &lost,
            // The oldest one is about to go.
            oldest: Bucket(self.oldest(state).0.saturating_add(1)),
        };
        let avoided = |bucket, node| self.avoided.contains_key(&(bucket, node));
        let job = situation.next_job(self.arguments.shared.node, &avoided)?;
        let (bucket, from, records) = (job.bucket.0, job.from.0, job.keys.len());
        tracing::debug!(bucket, from, records, "older data is copied to this node");
        Some(Running {
            job,
            fetching: Fetching::default(),
            waits: 0,
        })
    }

    async fn step(&self, state: &ClusterState, running: &mut Running) -> Result<Step, String> {
        let shared = &self.arguments.shared;
        if running.job.bucket < self.oldest(state) {
            return Err("the bucket has expired".to_owned());
        }
        // Spans of clients come first, and search reads from memory what the index lacks.
        let waiting = shared.recent.waiting();
        let unindexed: usize = waiting.iter().map(|(_, count)| count).sum();
        if shared.pressure() >= 2 || unindexed > COPY_UNINDEXED {
            return Ok(Step::Wait);
        }
        let job = &running.job;
        let keys = job.keys.iter().map(|key| CopyKey {
            shard: key.shard.0.into(),
            term: key.term.0,
        });
        let request = CopyRequest {
            applied: state.applied_index,
            bucket: job.bucket.0.into(),
            keys: keys.collect(),
            ..CopyRequest::default()
        };
        let link = self.arguments.link.as_ref();
        let before = running.fetching.after;
        let (part, is_last) = match running.fetching.next(link, job.from, request).await? {
            Fetched::Piece(bytes) => return Ok(Step::Copied(bytes)),
            Fetched::Part(part, is_last) => (part, is_last),
        };
        let bytes = part.len();
        if !part.is_empty() {
            let Some(_credit) = shared.pool.try_take(part.len() as u64) else {
                running.fetching.after = before;
                return Ok(Step::Wait);
            };
            let shards = job.keys.iter().map(|key| key.shard).collect();
            store_part(shared, job.bucket, shards, part, BTreeSet::new()).await?;
        }
        if is_last {
            self.claim(&running.job).await?;
            return Ok(Step::Done);
        }
        Ok(Step::Copied(bytes))
    }

    /// Has this node named as a holder of what it has copied. Others may be named for some of it at the same moment.
    async fn claim(&self, job: &CopyJob) -> Result<(), String> {
        for _ in 0..COPY_CLAIMS {
            let state = self.arguments.settings.state();
            let changes = claims(&state, job, self.arguments.shared.node);
            if changes.is_empty() {
                return Ok(());
            }
            let (bucket, from, records) = (job.bucket.0, job.from.0, changes.len());
            let command = Command::SetHolders { changes };
            match self.arguments.settings.propose(command).await {
                Ok(_) => {
                    tracing::info!(bucket, from, records, "older data was copied to this node");
                    return Ok(());
                }
                Err(ProposeError::Conflict(Conflict::HoldersChanged { .. })) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("its holders go on changing".to_owned())
    }
}

/// Node `me` beside the holders of what it has copied, but for those that are no members any more.
fn claims(state: &ClusterState, job: &CopyJob, me: NodeId) -> Vec<HolderChange> {
    let records = state.holders.get(&job.bucket);
    let changes = job.keys.iter().filter_map(|key| {
        let expected = records.and_then(|records| records.get(key))?.clone();
        let members = expected.iter().copied();
        let members = members.filter(|node| state.nodes.contains_key(node));
        let holders: BTreeSet<NodeId> = members.chain([me]).collect();
        (!expected.contains(&me)).then(|| HolderChange {
            bucket: job.bucket,
            key: *key,
            expected,
            holders: holders.into_iter().collect(),
        })
    });
    changes.collect()
}
