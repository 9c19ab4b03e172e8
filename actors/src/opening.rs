//! Opens what a node stores.

use std::sync::Arc;

use spandrel_model::credit::CreditPool;
use spandrel_model::ids::NodeId;
use spandrel_model::otlp::AttributePolicy;
use spandrel_model::policy::PolicySet;
use spandrel_raft::ClusterState;
use spandrel_storage::block::{BlockOptions, BlockStore};
use spandrel_storage::disk::GuardedDisk;
use spandrel_storage::index::{IndexOptions, IndexStore};
use spandrel_storage::journal::{Corruption, Journal, JournalOptions};

use crate::env::Env;
use crate::node::{NodeOptions, StartError, start_error};
use crate::settings::Epoch;
use crate::shared::{Shared, SharedParts};

/// The same world, in which every failed sync stops the process and is remembered for the next start.
pub(crate) async fn guard(options: &Arc<NodeOptions>, env: Env) -> Result<Env, StartError> {
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
    let epoch = Epoch::new(&state.attributes.indexed_keys, &rules, &sets);
    Ok(epoch.with_attributes_version(state.attributes.version))
}

/// Puts the settings of a state in force on this node, unless these or newer ones are.
pub(crate) fn adopt_settings(shared: &Shared, state: &ClusterState) -> Result<(), StartError> {
    let epoch = shared.epoch();
    let (policy, attributes) = epoch.versions();
    if state.policy.version > policy || state.attributes.version > attributes {
        let earlier: Vec<Arc<PolicySet>> = epoch.sets().cloned().collect();
        shared.set_epoch(Arc::new(compile(state, &earlier)?));
    }
    Ok(())
}

pub(crate) async fn open_storage(
    options: &Arc<NodeOptions>,
    env: &Env,
    node: NodeId,
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
        node,
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
