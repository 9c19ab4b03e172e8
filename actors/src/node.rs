//! A node: opens its directory, recovers, starts its actors, and hands out the ports.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ractor::ActorRef;
use spandrel_model::ids::UnixNanos;
use spandrel_model::ports::{Admin, Ingest, Query};
use spandrel_raft::state::NodeAddresses;
use spandrel_raft::{ClusterSeed, ClusterState, Settings};
use tokio::sync::oneshot;

use crate::admin::AdminPort;
use crate::assembler_message::AssemblerMessage;
use crate::credit_account::CreditAccount;
use crate::env::Env;
use crate::identity::{Drawn, Identity, Lives};
use crate::indexer::IndexerMessage;
use crate::ingest::IngestPort;
use crate::inventory::ComparerMessage;
use crate::limits::DRAIN_MS;
use crate::link::Link;
use crate::membership::{Contact, Member, NodeStart};
use crate::opening::{compile, guard, open_storage};
use crate::pager::PagerMessage;
use crate::query::{Coordinator, CoordinatorParts, QueryPort, QueryServer};
use crate::recovery::{Recovery, report_damage};
use crate::repair::CopierMessage;
use crate::replay::{Recovered, replay};
use crate::route::Dispatcher;
use crate::shared::Shared;
use crate::start_phase::StartPhase;
use crate::starting::{Stop, empty_states, start_actors, start_controller};
use crate::writer::WriterMessage;

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
    /// What a node with a new directory does.
    pub start: NodeStart,
    /// Who joins at this node must show a token.
    pub require_join_token: bool,
    /// What a new cluster starts with; ignored on a used directory and by a node that joins.
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

pub(crate) fn start_error(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> StartError {
    move |reason| StartError {
        what,
        reason: reason.to_string(),
    }
}

/// A running node.
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) member: Member,
    pub(crate) supervisor: ActorRef<Stop>,
    pub(crate) writer: ActorRef<WriterMessage>,
    pub(crate) pager: ActorRef<PagerMessage>,
    pub(crate) indexer: ActorRef<IndexerMessage>,
    pub(crate) copier: ActorRef<CopierMessage>,
    pub(crate) comparer: ActorRef<ComparerMessage>,
    pub(crate) shards: Arc<[ActorRef<AssemblerMessage>]>,
    pub(crate) options: Arc<NodeOptions>,
    /// What recovery found.
    pub recovery: Recovery,
}

impl Node {
    /// Starts a node: opens or creates its directory, replays the journal, starts the actors.
    ///
    /// Boxed, as [`Node::stop`] is: else every crate that awaits it compiles the whole node again.
    ///
    /// # Errors
    /// When a file cannot be opened; damage that replay can skip is logged and no error.
    pub fn start(options: NodeOptions, env: Env) -> BoxFuture<'static, Result<Self, StartError>> {
        async move {
            let options = Arc::new(options);
            let env = guard(&options, env).await?;
            let drawn = Drawn {
                disk_id: options.new_disk_id,
                life: env.random_number(),
            };
            let (disk, data_dir) = (env.disk.as_ref(), &options.data_dir);
            let identity = Identity::open(disk, data_dir, drawn)
                .map_err(|error| start_error("open the data directory")(&error))?;
            let lives = Lives::new(Arc::clone(&env.disk), data_dir.clone(), identity);
            let lives = Arc::new(lives);
            let member = Member::open(&options, &env, &lives).await?;
            let started = match lives.confirm(lives.life().life) {
                Ok(()) => Self::start_registered(&member, options, &env, lives.boot()).await,
                Err(error) => Err(start_error("open the data directory")(&error)),
            };
            if started.is_err() {
                member.close().await;
            }
            started
        }
        .boxed()
    }

    /// The rest of the start, once the node is in its cluster.
    async fn start_registered(
        member: &Member,
        options: Arc<NodeOptions>,
        env: &Env,
        boot: u64,
    ) -> Result<Self, StartError> {
        let supervisor = start_controller(member, env)
            .await
            .map_err(|error| start_error("start the actors")(&error))?;
        let recovered = Self::recover(member, &options, env, boot).await;
        let (shared, recovered, recovery) = match recovered {
            Ok(recovered) => recovered,
            Err(error) => {
                let _ = supervisor.cast(Stop);
                return Err(error);
            }
        };
        start_actors(
            shared,
            member.clone(),
            supervisor,
            options,
            recovered,
            recovery,
        )
        .await
        .map_err(|error| start_error("start the actors")(&error))
    }

    async fn recover(
        member: &Member,
        options: &Arc<NodeOptions>,
        env: &Env,
        boot: u64,
    ) -> Result<(Arc<Shared>, Vec<Recovered>, Recovery), StartError> {
        (env.start_phase)(StartPhase::Replaying);
        let state = member.settings.state();
        let epoch = Arc::new(compile(&state, &[])?);
        let node = member.node();
        let opened = open_storage(options, env, node, boot, &state, Arc::clone(&epoch));
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
            created: member.settings.created(),
            frames: cost.frames,
            spans: cost.spans,
            lost_frames,
            lost_slices,
        };
        Ok((shared, recovered, recovery))
    }

    /// Takes spans.
    #[must_use]
    pub fn ingest(&self) -> Arc<dyn Ingest> {
        Arc::new(IngestPort {
            shared: Arc::clone(&self.shared),
            dispatcher: Dispatcher {
                shared: Arc::clone(&self.shared),
                writer: self.writer.clone(),
                link: Arc::clone(&self.member.link),
                cluster: self.member.settings.watch(),
                builders: Arc::default(),
            },
            cluster: self.member.settings.watch(),
            require_tenant: self.options.require_tenant,
        })
    }

    /// Answers questions.
    #[must_use]
    pub fn query(&self) -> Arc<dyn Query> {
        Arc::new(self.coordinator())
    }

    /// Asks the cluster.
    pub(crate) fn coordinator(&self) -> Coordinator {
        self.coordinator_over(Some(Arc::clone(&self.member.link)))
    }

    /// Answers questions from what this node alone holds: for checks of the copies.
    #[must_use]
    pub fn query_alone(&self) -> Arc<dyn Query> {
        Arc::new(self.coordinator_over(None))
    }

    fn coordinator_over(&self, link: Option<Arc<dyn Link>>) -> Coordinator {
        let contact = Contact::new(self.member.settings.clone());
        Coordinator::new(CoordinatorParts {
            local: Arc::new(self.query_port()),
            link,
            cluster: self.member.settings.watch(),
            node: self.shared.node,
            contact: Arc::new(move || {
                let contact = contact.clone();
                async move { contact.is_fresh().await }.boxed()
            }),
        })
    }

    /// Answers the questions of other nodes' queries.
    pub(crate) fn query_server(&self) -> QueryServer {
        let local = Arc::new(self.query_port());
        QueryServer::new(local, self.shared.node, self.member.settings.watch())
    }

    pub(crate) fn query_port(&self) -> QueryPort {
        QueryPort {
            cluster: self.member.settings.watch(),
            shared: Arc::clone(&self.shared),
            shards: Arc::clone(&self.shards),
            recovery_window_nanos: self.options.recovery_window_seconds * UnixNanos::PER_SECOND,
        }
    }

    /// Changes and shows settings.
    #[must_use]
    pub fn admin(&self) -> Arc<dyn Admin> {
        Arc::new(AdminPort {
            shared: Arc::clone(&self.shared),
            member: self.member.clone(),
            pager: self.pager.clone(),
            indexer: self.indexer.clone(),
            copier: self.copier.clone(),
            comparer: self.comparer.clone(),
            query: self.query_port(),
        })
    }

    /// The settings as this node knows them.
    #[must_use]
    pub fn cluster(&self) -> Arc<ClusterState> {
        self.member.settings.state()
    }

    /// The replicated settings themselves, for tests and the simulation: all else goes through the ports.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.member.settings
    }

    /// The credit pool and who holds of it.
    #[must_use]
    pub fn credit(&self) -> CreditAccount {
        CreditAccount::of(&self.shared)
    }

    /// Stops: others lead its shards, and what was accepted becomes durable first. Pages are not built; the journal holds what waits for one.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        async move {
            self.member.step_down().await;
            let (done, drained) = oneshot::channel();
            if self.writer.cast(WriterMessage::Drain(done)).is_ok() {
                let _ = tokio::time::timeout(Duration::from_millis(DRAIN_MS), drained).await;
            }
            let _ = self.supervisor.cast(Stop);
            let _ = self.supervisor.wait(Some(Duration::from_secs(5))).await;
            self.member.close().await;
            self.shared.end_jobs().await;
        }
        .boxed()
    }
}
