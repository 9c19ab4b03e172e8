//! A node: opens its directory, recovers, starts its actors, and hands out the ports.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use spandrel_model::credit::CreditPool;
use spandrel_model::ids::{NodeId, ShardId, Term, UnixNanos};
use spandrel_model::otlp::AttributePolicy;
use spandrel_model::policy::PolicySet;
use spandrel_model::ports::{Admin, Ingest, Query};
use spandrel_raft::state::{NodeAddresses, NodeRegistration, ShardRecord};
use spandrel_raft::{ClusterSeed, ClusterState, Command, NoPeers, RaftOptions, Settings, Start};
use spandrel_storage::block::{BlockOptions, BlockStore};
use spandrel_storage::disk::GuardedDisk;
use spandrel_storage::index::{IndexOptions, IndexStore};
use spandrel_storage::journal::{Corruption, Journal, JournalOptions};
use tokio::sync::oneshot;

use crate::admin::AdminPort;
use crate::assembler::{ShardOptions, ShardState};
use crate::assembler_actor::{Assembler, AssemblerArguments, AssemblerMessage};
use crate::credit_account::CreditAccount;
use crate::env::Env;
use crate::housekeeping::{Housekeeper, HousekeeperArguments};
use crate::identity::Identity;
use crate::indexer::{Indexer, IndexerMessage};
use crate::ingest::IngestPort;
use crate::pager::{Pager, PagerArguments, PagerMessage};
use crate::query::{Gate, QueryPort};
use crate::recovery::{Recovery, report_damage};
use crate::replay::{Recovered, replay};
use crate::settings::Epoch;
use crate::shared::{Shared, SharedParts};
use crate::writer::{Writer, WriterArguments, WriterMessage};

/// The node of a group of one; others get their ids from the cluster.
const FIRST_NODE: NodeId = NodeId(1);

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Everything that the node stores lies under it.
    pub data_dir: PathBuf,
    /// Bytes of the credit pool: requests in flight, entries and queries.
    pub credit_bytes: u64,
    /// Bytes of decoded journal frames held in memory.
    pub frame_cache_bytes: usize,
    /// Bytes of the page caches of journal and blocks, each.
    pub store_cache_bytes: usize,
    /// Seconds for which the journal holds what was dropped.
    pub recovery_window_seconds: u64,
    /// Bytes at which the journal gives up its recovery window.
    pub journal_max_bytes: u64,
    /// Free bytes of the disk below which spans are refused; `None`: the larger of 2 GiB and 5 % of the disk.
    pub disk_reserve_bytes: Option<u64>,
    /// Length of a time bucket in nanoseconds.
    pub bucket_nanos: u64,
    /// Requests that name no tenant are refused.
    pub require_tenant: bool,
    /// What a new cluster starts with; ignored on a used directory.
    pub seed: ClusterSeed,
    /// Random; the identity of a new data directory.
    pub new_disk_id: u64,
    /// Where the node is reached.
    pub addresses: NodeAddresses,
    /// Its zone; may be empty.
    pub zone: String,
}

/// A node cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct StartError {
    /// What was tried.
    pub what: &'static str,
    /// Why it failed.
    pub reason: String,
}

fn start_error(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> StartError {
    move |reason| StartError {
        what,
        reason: reason.to_string(),
    }
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    settings: Settings,
    supervisor: ActorRef<Stop>,
    writer: ActorRef<WriterMessage>,
    pager: ActorRef<PagerMessage>,
    indexer: ActorRef<IndexerMessage>,
    shards: Arc<[ActorRef<AssemblerMessage>]>,
    options: Arc<NodeOptions>,
    /// What recovery found.
    pub recovery: Recovery,
}

/// Supervises the actors of a node: each is rebuilt by a restart of the process, from what is durable.
struct Supervisor {
    env: Env,
}

struct Stop;

impl ractor::Message for Stop {}

impl Actor for Supervisor {
    type Msg = Stop;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Stop>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Stop>,
        _: Stop,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        myself.stop_children(None);
        myself.stop(None);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Stop>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            (self.env.halt)(&format!("actor {} failed: {error}", actor.get_id()));
        }
        Ok(())
    }
}

impl Node {
    /// Starts a node: opens or creates its directory, replays the journal, starts the actors.
    ///
    /// # Errors
    /// When a file cannot be opened; damage that replay can skip is logged and no error.
    pub async fn start(options: NodeOptions, env: Env) -> Result<Self, StartError> {
        let options = Arc::new(options);
        let env = guard(&options, env).await?;
        let identity = Identity::open(env.disk.as_ref(), &options.data_dir, options.new_disk_id)
            .map_err(|error| start_error("open the data directory")(&error))?;
        let (settings, created) = open_settings(&options, &env, &identity).await?;
        let state = settings.state();
        let epoch = Arc::new(compile(&state, &[])?);
        let opened = open_storage(&options, &env, identity.boot, &state, Arc::clone(&epoch));
        let (shared, damage) = opened.await?;
        let shared = Arc::new(shared);
        let worker = Arc::clone(&shared);
        let (recovered, cost) = env
            .block(move || {
                let states = empty_states(&worker);
                replay(&worker, &epoch, states)
            })
            .await
            .map_err(|error| start_error("replay the journal")(&error))?;
        let (lost_frames, lost_slices) = report_damage(damage, cost.skipped);
        let recovery = Recovery {
            created,
            frames: cost.frames,
            spans: cost.spans,
            lost_frames,
            lost_slices,
        };
        start_actors(shared, settings, options, recovered, recovery)
            .await
            .map_err(|error| start_error("start the actors")(&error))
    }

    /// Takes spans.
    #[must_use]
    pub fn ingest(&self) -> Arc<dyn Ingest> {
        Arc::new(IngestPort {
            shared: Arc::clone(&self.shared),
            writer: self.writer.clone(),
            cluster: self.settings.watch(),
            require_tenant: self.options.require_tenant,
        })
    }

    /// Answers questions.
    #[must_use]
    pub fn query(&self) -> Arc<dyn Query> {
        Arc::new(self.query_port())
    }

    fn query_port(&self) -> QueryPort {
        QueryPort {
            shared: Arc::clone(&self.shared),
            shards: Arc::clone(&self.shards),
            gate: Arc::new(Gate::default()),
            recovery_window_nanos: self.options.recovery_window_seconds * UnixNanos::PER_SECOND,
        }
    }

    /// Changes and shows settings.
    #[must_use]
    pub fn admin(&self) -> Arc<dyn Admin> {
        Arc::new(AdminPort {
            shared: Arc::clone(&self.shared),
            settings: self.settings.clone(),
            pager: self.pager.clone(),
            indexer: self.indexer.clone(),
            query: self.query_port(),
        })
    }

    /// The settings as this node knows them.
    #[must_use]
    pub fn cluster(&self) -> Arc<ClusterState> {
        self.settings.state()
    }

    /// The credit pool and who holds of it.
    #[must_use]
    pub fn credit(&self) -> CreditAccount {
        CreditAccount::of(&self.shared)
    }

    /// Stops: what was accepted becomes durable first. Pages are not built; the journal holds what waits for one.
    pub async fn stop(self) {
        let (done, drained) = oneshot::channel();
        if self.writer.cast(WriterMessage::Drain(done)).is_ok() {
            let _ = drained.await;
        }
        let _ = self.supervisor.cast(Stop);
        let _ = self.supervisor.wait(Some(Duration::from_secs(5))).await;
        self.settings.shutdown().await;
    }
}

/// The same world, in which every failed sync stops the process and is remembered for the next start.
async fn guard(options: &Arc<NodeOptions>, env: Env) -> Result<Env, StartError> {
    let (inner, halt) = (Arc::clone(&env.disk), Arc::clone(&env.halt));
    let data_dir = options.data_dir.clone();
    let guarded = env
        .block(move || GuardedDisk::open(inner, &data_dir, Box::new(move |reason| halt(reason))))
        .await
        .map_err(|error| start_error("open the data directory")(&error))?;
    Ok(Env {
        disk: Arc::new(guarded),
        ..env
    })
}

async fn open_settings(
    options: &NodeOptions,
    env: &Env,
    identity: &Identity,
) -> Result<(Settings, bool), StartError> {
    let error = start_error("open the settings");
    let raft = RaftOptions {
        disk: Arc::clone(&env.disk),
        dir: options.data_dir.join("raft"),
        node: FIRST_NODE,
        start: Start::Found(options.seed.clone()),
    };
    let settings = Settings::open(raft, Arc::new(NoPeers))
        .await
        .map_err(|reason| error(&reason))?;
    let created = settings.created();
    let state = settings.state();
    if state.nodes.is_empty() {
        let admit = Command::AdmitNode {
            disk_id: identity.disk_id,
            addresses: options.addresses.clone(),
            zone: options.zone.clone(),
        };
        settings
            .propose(admit)
            .await
            .map_err(|reason| error(&reason))?;
    }
    let register = Command::RegisterNode(NodeRegistration {
        node: FIRST_NODE,
        addresses: options.addresses.clone(),
        zone: options.zone.clone(),
        disk_id: identity.disk_id,
        boot: identity.boot,
    });
    settings
        .propose(register)
        .await
        .map_err(|reason| error(&reason))?;
    if state.shard_map.is_empty() {
        let record = ShardRecord {
            term: Term(1),
            primary: FIRST_NODE,
            isr: vec![FIRST_NODE],
            filling: Vec::new(),
            moving_to: None,
        };
        let records = vec![record; usize::from(settings.state().shards)];
        settings
            .propose(Command::StartShards { records })
            .await
            .map_err(|reason| error(&reason))?;
    }
    Ok((settings, created))
}

/// The settings of a state, compiled; `earlier` are policy sets that entries may still refer to.
pub(crate) fn compile(
    state: &ClusterState,
    earlier: &[Arc<PolicySet>],
) -> Result<Epoch, StartError> {
    let error = start_error("compile the settings");
    let set = PolicySet::parse(&state.policy.yaml, state.policy.version)
        .map_err(|reason| error(&reason))?;
    let mut sets: Vec<Arc<PolicySet>> = earlier.to_vec();
    sets.retain(|other| other.version() != state.policy.version);
    sets.push(Arc::new(set));
    let rules = AttributePolicy {
        rules: state.attributes.rules.clone(),
    };
    Ok(Epoch::new(&state.attributes.indexed_keys, &rules, &sets))
}

async fn open_storage(
    options: &Arc<NodeOptions>,
    env: &Env,
    boot: u64,
    state: &ClusterState,
    epoch: Arc<Epoch>,
) -> Result<(Shared, Vec<Corruption>), StartError> {
    let router = state
        .router()
        .ok_or_else(|| start_error("route traces")(&"no shards"))?;
    let (worker, outside, seed) = (Arc::clone(options), env.clone(), state.routing_key);
    let opened = env.block(move || {
        let (dir, disk, now) = (&worker.data_dir, &outside.disk, outside.now());
        let journal = JournalOptions {
            frame_cache_bytes: worker.frame_cache_bytes,
            redb_cache_bytes: worker.store_cache_bytes,
            hash_seed: seed,
            boot,
            ..JournalOptions::default()
        };
        let journal = Journal::open(Arc::clone(disk), &dir.join("journal"), journal, now);
        let (journal, damage) =
            journal.map_err(|reason| start_error("open the journal")(&reason))?;
        let blocks = BlockOptions {
            cache_bytes: worker.store_cache_bytes,
            boot,
            ..BlockOptions::default()
        };
        let blocks = BlockStore::open(Arc::clone(disk), &dir.join("blocks"), blocks);
        let blocks = blocks.map_err(|reason| start_error("open the blocks")(&reason))?;
        let index = IndexStore::open(
            Arc::clone(disk),
            &dir.join("index"),
            IndexOptions::default(),
        );
        let index = index.map_err(|reason| start_error("open the index")(&reason))?;
        Ok::<_, StartError>((journal, damage, blocks, index))
    });
    let (journal, damage, blocks, index) = opened.await?;
    let shared = Shared::new(SharedParts {
        env: env.clone(),
        node: FIRST_NODE,
        router,
        bucket_nanos: options.bucket_nanos,
        journal: Arc::new(journal),
        blocks: Arc::new(blocks),
        index: Arc::new(index),
        pool: CreditPool::new(options.credit_bytes),
        epoch,
    });
    Ok((shared, damage))
}

/// One state per shard, at its checkpoint.
fn empty_states(shared: &Shared) -> Vec<ShardState> {
    let shards = (0..shared.router.shards()).map(ShardId);
    let states = shards.map(|shard| {
        let options = ShardOptions {
            shard,
            term: Term(1),
            router: shared.router,
            bucket_nanos: shared.bucket_nanos,
        };
        ShardState::new(options, shared.checkpoints.mark(shard))
    });
    states.collect()
}

async fn start_actors(
    shared: Arc<Shared>,
    settings: Settings,
    options: Arc<NodeOptions>,
    recovered: Vec<Recovered>,
    recovery: Recovery,
) -> Result<Node, ractor::SpawnErr> {
    let supervisor = Supervisor {
        env: shared.env.clone(),
    };
    let (supervisor, _) = Actor::spawn(None, supervisor, ()).await?;
    let cell = || supervisor.get_cell();
    let mut shards = Vec::with_capacity(recovered.len());
    for (number, one) in (0u16..).zip(recovered) {
        let memory = one.state.memory_bytes();
        let credit = shared
            .pool
            .try_take(memory)
            .or_else(|| shared.pool.try_take(0));
        let Some(credit) = credit else { continue };
        let arguments = AssemblerArguments {
            shared: Arc::clone(&shared),
            shard: ShardId(number),
            state: one.state,
            effects: one.effects,
            credit,
        };
        shards.push(
            Actor::spawn_linked(None, Assembler, arguments, cell())
                .await?
                .0,
        );
    }
    let arguments = WriterArguments {
        shared: Arc::clone(&shared),
        shards: shards.clone(),
        term: Term(1),
    };
    let (writer, _) = Actor::spawn_linked(None, Writer, arguments, cell()).await?;
    for shard in &shards {
        let _ = shard.cast(AssemblerMessage::Writer(writer.clone()));
    }
    let arguments = PagerArguments {
        shared: Arc::clone(&shared),
        shards: shards.clone(),
        max_age_ms: options.recovery_window_seconds * 1_000 / 2,
    };
    let (pager, _) = Actor::spawn_linked(None, Pager, arguments, cell()).await?;
    let (indexer, _) = Actor::spawn_linked(None, Indexer, Arc::clone(&shared), cell()).await?;
    let arguments = HousekeeperArguments {
        shared: Arc::clone(&shared),
        shards: shards.clone(),
        cluster: settings.watch(),
        options: Arc::clone(&options),
    };
    Actor::spawn_linked(None, Housekeeper, arguments, cell()).await?;
    Ok(Node {
        shared,
        settings,
        supervisor,
        writer,
        pager,
        indexer,
        shards: shards.into(),
        options,
        recovery,
    })
}
