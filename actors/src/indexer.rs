//! The indexer: follows the summaries of the blocks and adds them to the index in large steps. It may lag: search
//! reads what it has not reached.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::Bucket;
use spandrel_model::summary::TraceSummary;
use tokio::sync::oneshot;

use crate::limits::INDEX_STEP_SUMMARIES;
use crate::meters::Stage;
use crate::shared::Shared;

/// Milliseconds between two looks at what waits.
const INDEXER_TICK_MS: u64 = 500;
/// Summaries of one segment at most: bounds the memory of a step (about 1 KB each).
const INDEX_MAX_STEP: usize = 10_000;

pub(crate) enum IndexerMessage {
    Tick,
    /// Index everything that is in blocks, then answer.
    Flush(oneshot::Sender<Result<(), String>>),
}

impl ractor::Message for IndexerMessage {}

/// The actor.
pub(crate) struct Indexer;

/// What it knows from tick to tick.
pub(crate) struct IndexerState {
    shared: Arc<Shared>,
    /// Said once, not at each tick: what is damaged stays so.
    last_error: Option<String>,
}

impl Actor for Indexer {
    type Msg = IndexerMessage;
    type State = IndexerState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<IndexerMessage>,
        shared: Arc<Shared>,
    ) -> Result<IndexerState, ActorProcessingErr> {
        myself.send_after(Duration::from_millis(INDEXER_TICK_MS), || {
            IndexerMessage::Tick
        });
        Ok(IndexerState {
            shared,
            last_error: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<IndexerMessage>,
        message: IndexerMessage,
        state: &mut IndexerState,
    ) -> Result<(), ActorProcessingErr> {
        let IndexerState { shared, last_error } = state;
        match message {
            IndexerMessage::Tick => {
                let error = catch_up(shared, false).await.err();
                if let Some(error) = error.as_ref().filter(|_| error != *last_error) {
                    tracing::error!(error, "index not written, search reads the summaries");
                }
                *last_error = error;
                myself.send_after(Duration::from_millis(INDEXER_TICK_MS), || {
                    IndexerMessage::Tick
                });
            }
            IndexerMessage::Flush(reply) => {
                let _ = reply.send(catch_up(shared, true).await);
            }
        }
        Ok(())
    }
}

/// Takes one step for each bucket that has enough to index; with `all`, steps until nothing waits. A block of which the
/// summaries cannot be read keeps no other one waiting; the first such error is returned.
async fn catch_up(shared: &Arc<Shared>, all: bool) -> Result<(), String> {
    let current = Bucket::containing(shared.env.now(), shared.bucket_nanos);
    let mut first_error = None;
    for block in shared.blocks.buckets().map_err(|error| error.to_string())? {
        loop {
            let done = shared.index.checkpoint(block.bucket, block.block_id.into());
            let waiting = block.last_sequence.saturating_sub(done);
            let closed = block.bucket < current;
            if waiting == 0 || !(all || closed || waiting >= INDEX_STEP_SUMMARIES as u64) {
                break;
            }
            let worker = Arc::clone(shared);
            let step = move || index_step(&worker, block.bucket, block.block_id, done);
            if let Err(error) = shared.block(Stage::Index, step).await {
                first_error.get_or_insert(error);
                break;
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn index_step(shared: &Shared, bucket: Bucket, block_id: u64, done: u64) -> Result<(), String> {
    let remembered = shared.recent.oldest(bucket, INDEX_MAX_STEP);
    let in_memory = remembered
        .first()
        .is_some_and(|(sequence, _)| *sequence == done + 1);
    let summaries: Vec<(u64, TraceSummary)> = if in_memory {
        remembered
            .into_iter()
            .map(|(at, summary)| (at, (*summary).clone()))
            .collect()
    } else {
        let read = shared.blocks.summaries(bucket, done, INDEX_MAX_STEP);
        read.map_err(|error| error.to_string())?
    };
    let Some(last) = summaries.last().map(|(sequence, _)| *sequence) else {
        return Err(format!("bucket {} has no summary after {done}", bucket.0));
    };
    let epoch = shared.epoch();
    let interests = epoch.rules().interests();
    let keys = interests
        .keys()
        .iter()
        .take(usize::from(interests.indexed()));
    let keys: Vec<String> = keys.map(|key| key.to_string()).collect();
    let summaries: Vec<TraceSummary> = summaries.into_iter().map(|(_, summary)| summary).collect();
    let added = shared
        .index
        .add(bucket, block_id.into(), last, &summaries, &keys);
    added.map_err(|error| error.to_string())?;
    shared.recent.indexed(bucket, last);
    Ok(())
}
