//! The shell around the duties: looks every [`CONTROLLER_TICK_MS`], performs what is to be done beside itself, one
//! round at a time, and looks again as soon as the commands of a round are done.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use metrics::{counter, gauge};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::NodeId;
use spandrel_raft::state::NodeState;
use spandrel_raft::{ClusterState, Command, Conflict, ProposeError, Response, Settings};
use tokio::time::Instant;

use super::duties::{Duty, View, duties};
use super::failover::waiting_shards;
use super::leadership::Leadership;
use crate::buggify::Site;
use crate::env::Env;
use crate::limits::{CONTROLLER_TICK_MS, DOWN_AFTER_MS, LIFE_MS, REGISTER_RETRY_MS};
use crate::link::Link;
use crate::membership::{Registration, refused};

pub(crate) struct Controller;

pub(crate) struct ControllerArguments {
    pub(crate) env: Env,
    pub(crate) settings: Settings,
    pub(crate) link: Arc<dyn Link>,
    /// What the node has registered with.
    pub(crate) registration: Registration,
    /// The other nodes and their addresses, as the state said when the links were told.
    pub(crate) peers: BTreeMap<NodeId, String>,
    /// The node stops: it was set down by itself.
    pub(crate) stopping: Arc<AtomicBool>,
}

/// What runs beside the actor: one of each kind at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// The commands of a round.
    Commands,
    /// A change of the group's members, which may wait for a node.
    Members,
    /// This node registers again.
    Registration,
    /// It begins another life.
    Life,
}

pub(crate) enum ControllerMessage {
    Tick,
    /// The flag: it has changed the state.
    Done(Job, bool),
}

impl ractor::Message for ControllerMessage {}

/// Invariant: `running` holds each job at most once.
pub(crate) struct ControllerState {
    arguments: ControllerArguments,
    leadership: Leadership,
    registered_at: Option<Instant>,
    /// When the last life began.
    lives_since: Instant,
    running: Vec<Job>,
    waiting_shards: usize,
}

impl Actor for Controller {
    type Msg = ControllerMessage;
    type State = ControllerState;
    type Arguments = ControllerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ControllerMessage>,
        arguments: ControllerArguments,
    ) -> Result<ControllerState, ActorProcessingErr> {
        myself.send_after(Duration::ZERO, || ControllerMessage::Tick);
        watch_settings(&arguments);
        Ok(ControllerState {
            arguments,
            leadership: Leadership::default(),
            registered_at: None,
            lives_since: Instant::now(),
            running: Vec::new(),
            waiting_shards: 0,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ControllerMessage>,
        message: ControllerMessage,
        state: &mut ControllerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ControllerMessage::Tick => {
                let pause = Duration::from_millis(CONTROLLER_TICK_MS);
                myself.send_after(pause, || ControllerMessage::Tick);
            }
            ControllerMessage::Done(job, has_changed) => {
                state.running.retain(|other| *other != job);
                // A failover follows its cause at once. What was in vain, or waits for others, is tried again at the next
                // tick.
                if job != Job::Commands || !has_changed {
                    return Ok(());
                }
            }
        }
        state.look(&myself);
        Ok(())
    }
}

impl ControllerState {
    fn look(&mut self, myself: &ActorRef<ControllerMessage>) {
        let cluster = self.arguments.settings.state();
        if !cluster.is_seeded() {
            return;
        }
        self.connect(&cluster);
        self.stay_in(&cluster, myself);
        self.report(&cluster);
        let leads = self.arguments.settings.leads();
        if let Some(leading_for) = self.leadership.look(leads, Instant::now()) {
            self.lead(&cluster, leading_for, myself);
        }
    }

    /// Tells the links who is in the cluster.
    fn connect(&mut self, cluster: &ClusterState) {
        let peers = peer_addresses(cluster, self.arguments.registration.node.node);
        if peers != self.arguments.peers {
            self.arguments.link.set_peers(peers.clone());
            self.arguments.peers = peers;
        }
    }

    /// Registers again when the others took this node for dead, and stops it when they took it out.
    fn stay_in(&mut self, cluster: &ClusterState, myself: &ActorRef<ControllerMessage>) {
        let registration = &self.arguments.registration;
        let node = registration.node.node;
        let Some(record) = cluster.nodes.get(&node) else {
            let (node, id) = (node.0, cluster.cluster_id);
            (self.arguments.env.halt)(&format!(
                "node {node} was removed from cluster {id:016x}: to come back as a new node, `spandrel node join` with an empty data directory"
            ));
            return;
        };
        let stopping = self.arguments.stopping.load(Ordering::Relaxed);
        // One at a time: what one says of the lives must not come too late for the other.
        if stopping || self.runs(Job::Registration) || self.runs(Job::Life) {
            return;
        }
        if record.state != NodeState::Down {
            return self.live_on(cluster, myself);
        }
        let pause = Duration::from_millis(REGISTER_RETRY_MS);
        if self.registered_at.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        self.registered_at = Some(Instant::now());
        tracing::warn!(
            node = node.0,
            "the others took this node for dead: it registers again"
        );
        counter!("spandrel_node_returns_total").increment(1);
        let command = registration.command();
        let settings = self.arguments.settings.clone();
        let halt = Arc::clone(&self.arguments.env.halt);
        self.run(Job::Registration, myself, async move {
            let proposed = settings.propose(command).await;
            // An image of the directory has been started and registered meanwhile: there is one node of this id too many.
            if let Err(ProposeError::Conflict(conflict)) = &proposed {
                halt(&refused(conflict));
            }
            note("register node", proposed)
        });
    }

    /// Begins another life once a minute, so that an image of the directory from before is known for one. A node that
    /// is alone is the only one that could know.
    fn live_on(&mut self, cluster: &ClusterState, myself: &ActorRef<ControllerMessage>) {
        let env = &self.arguments.env;
        let is_due = self.lives_since.elapsed() >= Duration::from_millis(LIFE_MS)
            || env.buggify.strikes(Site::LifeRenewed);
        if cluster.nodes.len() < 2 || !is_due {
            return;
        }
        self.lives_since = Instant::now();
        let (env, settings) = (env.clone(), self.arguments.settings.clone());
        let registration = self.arguments.registration.clone();
        self.run(Job::Life, myself, async move {
            renew_life(&env, &settings, &registration).await
        });
    }

    fn lead(
        &mut self,
        cluster: &ClusterState,
        leading_for: Duration,
        myself: &ActorRef<ControllerMessage>,
    ) {
        let settings = &self.arguments.settings;
        let members = settings.members();
        let peers = self.arguments.link.peers().borrow().clone();
        let silences = peers.iter();
        let buggify = &self.arguments.env.buggify;
        let silent_for = silences.map(|(id, peer)| match buggify.strikes(Site::FalseAlarm) {
            true => (*id, Duration::from_millis(2 * DOWN_AFTER_MS)),
            false => (*id, peer.last_heard.elapsed()),
        });
        let all = duties(&View {
            this: settings.node(),
            leading_for,
            state: cluster,
            members: &members,
            silent_for: &silent_for.collect(),
        });
        let mut commands = Vec::new();
        let mut change = None;
        for duty in all {
            match duty {
                Duty::Propose(command) => commands.push(command),
                other => change = Some(other),
            }
        }
        if !commands.is_empty() && !self.runs(Job::Commands) {
            let settings = settings.clone();
            self.run(Job::Commands, myself, async move {
                let mut has_changed = false;
                for command in commands {
                    log_command(&command);
                    let name = command.name();
                    has_changed |= note(name, settings.propose_as_leader(command).await);
                }
                has_changed
            });
        }
        if let Some(change) = change
            && !self.runs(Job::Members)
        {
            let settings = self.arguments.settings.clone();
            self.run(Job::Members, myself, async move {
                change_members(&settings, change).await
            });
        }
    }

    /// Logs shards that wait for their last full copy, when there come to be more or fewer.
    #[allow(clippy::cast_precision_loss)] // a gauge for people
    fn report(&mut self, cluster: &ClusterState) {
        let waiting = waiting_shards(cluster);
        if waiting.len() == self.waiting_shards {
            return;
        }
        self.waiting_shards = waiting.len();
        gauge!("spandrel_waiting_shards").set(waiting.len() as f64);
        let first = waiting.first().map(|shard| shard.0);
        tracing::warn!(
            shards = waiting.len(),
            first,
            "shards wait: every node with a full copy of them is down"
        );
    }

    fn runs(&self, job: Job) -> bool {
        self.running.contains(&job)
    }

    /// Runs a job beside the actor. A panic in it would leave its duty undone for ever, so it stops the node.
    fn run(
        &mut self,
        job: Job,
        myself: &ActorRef<ControllerMessage>,
        work: impl Future<Output = bool> + Send + 'static,
    ) {
        self.running.push(job);
        let (myself, halt) = (myself.clone(), Arc::clone(&self.arguments.env.halt));
        tokio::spawn(async move {
            let done = AssertUnwindSafe(work).catch_unwind().await;
            if done.is_err() {
                halt(&format!("the controller's job {job:?} panicked"));
            }
            let has_changed = done.unwrap_or(false);
            let _ = myself.cast(ControllerMessage::Done(job, has_changed));
        });
    }
}

/// Begins another life and tells the cluster; whether it has heard.
async fn renew_life(env: &Env, settings: &Settings, registration: &Registration) -> bool {
    let lives = &registration.lives;
    let (drawn, worker) = (env.random_number(), Arc::clone(lives));
    let life = match env.block(move || worker.renew(drawn)).await {
        Ok(life) => life,
        Err(error) => {
            tracing::warn!(%error, "no further life begins");
            return false;
        }
    };
    let renewed = life.life;
    let node = registration.node.node;
    let proposed = settings.propose(Command::RenewLife { node, life }).await;
    if let Err(ProposeError::Conflict(conflict @ Conflict::ImageOfNode { .. })) = &proposed {
        (env.halt)(&refused(conflict));
    }
    let has_changed = note("renew life", proposed);
    let worker = Arc::clone(lives);
    if has_changed && let Err(error) = env.block(move || worker.confirm(renewed)).await {
        tracing::warn!(%error, "earlier lives are not forgotten yet");
    }
    has_changed
}

/// Stops the process when its settings have stopped: without them it would neither learn who leads its shards nor tell
/// the others that it is gone.
fn watch_settings(arguments: &ControllerArguments) {
    let (settings, halt) = (arguments.settings.clone(), Arc::clone(&arguments.env.halt));
    tokio::spawn(async move {
        if let Some(reason) = settings.stopped().await {
            halt(&format!("the settings have stopped: {reason}"));
        }
    });
}

/// The link addresses of all nodes but one.
pub(crate) fn peer_addresses(cluster: &ClusterState, this: NodeId) -> BTreeMap<NodeId, String> {
    let others = cluster.nodes.iter();
    let others = others.filter(|(id, node)| **id != this && !node.addresses.link.is_empty());
    others
        .map(|(id, node)| (*id, node.addresses.link.clone()))
        .collect()
}

fn log_command(command: &Command) {
    match command {
        Command::SetNodeState { node, state, .. } => {
            tracing::warn!(node = node.0, %state, "a node is silent");
        }
        Command::SetShards { changes } => {
            counter!("spandrel_failovers_total").increment(changes.len() as u64);
            tracing::warn!(
                shards = changes.len(),
                "primaries are down: in-sync copies take over"
            );
        }
        _ => {}
    }
}

/// Whether a proposal has changed the state; what else became of it is logged.
fn note(name: &str, proposed: Result<Response, ProposeError>) -> bool {
    let has_changed = proposed.is_ok();
    match proposed {
        Ok(_) => {}
        // Something has changed since the look: the next one sees it.
        Err(ProposeError::Conflict(conflict)) => {
            tracing::debug!(command = name, %conflict, "a duty came too late");
        }
        Err(error) => tracing::warn!(command = name, %error, "a duty is not done"),
    }
    has_changed
}

async fn change_members(settings: &Settings, change: Duty) -> bool {
    let changed = match change {
        Duty::AddLearner(node) => {
            tracing::info!(node = node.0, "a node follows the settings from now on");
            settings.announce_learner(node).await
        }
        Duty::SetVoters(voters) => {
            let ids: Vec<u64> = voters.iter().map(|node| node.0).collect();
            tracing::info!(?ids, "the voters change");
            settings.set_voters(voters).await
        }
        Duty::RemoveLearners(nodes) => settings.remove_learners(nodes).await,
        // The caller keeps these apart.
        Duty::Propose(_) => Ok(()),
    };
    if let Err(error) = &changed {
        tracing::warn!(%error, "the group's members are not changed yet");
    }
    changed.is_ok()
}
