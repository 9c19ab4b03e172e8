//! Starts the actors of a node over what was opened and recovered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use spandrel_model::ids::{ShardId, Term};

use crate::assembler::{ShardOptions, ShardState};
use crate::assembler_actor::{Assembler, AssemblerArguments};
use crate::assembler_message::AssemblerMessage;
use crate::controller::Controller;
use crate::disk_hang;
use crate::env::Env;
use crate::housekeeping::{Housekeeper, HousekeeperArguments};
use crate::indexer::Indexer;
use crate::inventory::{Comparer, ComparerArguments, InventoryServer, Ledger};
use crate::link::PeerService;
use crate::membership::Member;
use crate::node::{Node, NodeOptions};
use crate::pager::{PageIntake, Pager, PagerArguments, Shipper, ShipperArguments};
use crate::recovery::Recovery;
use crate::repair::{Copier, CopierArguments, CopyServer};
use crate::replay::Recovered;
use crate::replication::{Intake, Keeper, KeeperArguments};
use crate::shared::Shared;
use crate::ticker::tick;
use crate::writer::{Writer, WriterArguments};

/// Supervises the actors of a node: each is rebuilt by a restart of the process, from what is durable.
struct Supervisor {
    env: Env,
}

pub(crate) struct Stop;

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

/// One state per shard, at its checkpoint.
pub(crate) fn empty_states(shared: &Shared) -> Vec<ShardState> {
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

/// Starts what keeps the node in its cluster, before its data is there: replay takes seconds, in which others may need
/// a leader. All other actors come under the same supervisor.
pub(crate) async fn start_controller(
    member: &Member,
    env: &Env,
) -> Result<ActorRef<Stop>, ractor::SpawnErr> {
    let supervisor = Supervisor { env: env.clone() };
    let (supervisor, _) = Actor::spawn(None, supervisor, ()).await?;
    let cell = supervisor.get_cell();
    Actor::spawn_linked(None, Controller, member.controller(env), cell).await?;
    Ok(supervisor)
}

pub(crate) async fn start_actors(
    shared: Arc<Shared>,
    member: Member,
    supervisor: ActorRef<Stop>,
    options: Arc<NodeOptions>,
    recovered: Vec<Recovered>,
    recovery: Recovery,
) -> Result<Node, ractor::SpawnErr> {
    let cell = || supervisor.get_cell();
    if recovery.lost_frames > 0 || recovery.lost_slices > 0 {
        shared.has_holes.store(true, Ordering::Relaxed);
        shared.checkpoints.lose_records();
    }
    let mut shards = Vec::with_capacity(recovered.len());
    let alone = member.settings.state().nodes.len() < 2;
    for (number, mut one) in (0u16..).zip(recovered) {
        if !alone {
            one.state.doubt();
        }
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
        link: Arc::clone(&member.link),
        state: member.settings.state(),
    };
    let (writer, _) = Actor::spawn_linked(None, Writer, arguments, cell()).await?;
    for shard in &shards {
        let _ = shard.cast(AssemblerMessage::Writer(writer.clone()));
    }
    let intake = Intake::new(Arc::clone(&shared), writer.clone(), member.settings.watch());
    member.router.set(PeerService::Shards, Arc::new(intake));
    let arguments = ShipperArguments {
        shared: Arc::clone(&shared),
        link: Arc::clone(&member.link),
    };
    let (shipper, _) = Actor::spawn_linked(None, Shipper, arguments, cell()).await?;
    let arguments = PagerArguments {
        shared: Arc::clone(&shared),
        shards: shards.clone(),
        max_age_ms: options.recovery_window_seconds * 1_000 / 2,
        shipper,
        cluster: member.settings.watch(),
    };
    let (pager, _) = Actor::spawn_linked(None, Pager, arguments, cell()).await?;
    let (indexer, _) = Actor::spawn_linked(None, Indexer, Arc::clone(&shared), cell()).await?;
    let arguments = KeeperArguments {
        shared: Arc::clone(&shared),
        settings: member.settings.clone(),
        writer: writer.clone(),
    };
    Actor::spawn_linked(None, Keeper, arguments, cell()).await?;
    let arguments = HousekeeperArguments {
        shared: Arc::clone(&shared),
        shards: shards.clone(),
        cluster: member.settings.watch(),
        options: Arc::clone(&options),
    };
    Actor::spawn_linked(None, Housekeeper, arguments, cell()).await?;
    let arguments = CopierArguments {
        shared: Arc::clone(&shared),
        settings: member.settings.clone(),
        link: Arc::clone(&member.link),
    };
    let (copier, _) = Actor::spawn_linked(None, Copier, arguments, cell()).await?;
    let shards: Arc<[_]> = shards.into();
    shared.spawn_job("assemblers", tick(Arc::clone(&shards)));
    disk_hang::begin(&shared, &member.link);
    let ledger = Arc::new(Ledger::default());
    let arguments = ComparerArguments {
        shared: Arc::clone(&shared),
        settings: member.settings.clone(),
        link: Arc::clone(&member.link),
        shards: Arc::clone(&shards),
        ledger: Arc::clone(&ledger),
    };
    let (comparer, _) = Actor::spawn_linked(None, Comparer, arguments, cell()).await?;
    let node = Node {
        shared,
        copier,
        comparer,
        member,
        supervisor,
        writer,
        pager,
        indexer,
        shards,
        options,
        recovery,
    };
    let cluster = Arc::new(node.coordinator());
    for shard in node.shards.iter() {
        let _ = shard.cast(AssemblerMessage::Cluster(Arc::clone(&cluster)));
    }
    let questions = Arc::new(node.query_server());
    node.member.router.set(PeerService::Query, questions);
    let copies = CopyServer::new(
        Arc::clone(&node.shared),
        Arc::clone(&node.shards),
        node.pager.clone(),
        node.member.settings.watch(),
    );
    node.member
        .router
        .set(PeerService::Copies, Arc::new(copies));
    let inventory = InventoryServer::new(
        Arc::clone(&node.shared),
        Arc::clone(&node.shards),
        ledger,
        node.comparer.clone(),
    );
    let inventory = Arc::new(inventory);
    node.member.router.set(PeerService::Inventory, inventory);
    let pages = PageIntake::new(Arc::clone(&node.shared), Arc::clone(&node.shards));
    node.member.router.set(PeerService::Pages, Arc::new(pages));
    Ok(node)
}
