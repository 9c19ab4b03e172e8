//! Brings spans back that this node lacks of a trace that it must hold whole: those of before it joined the shard, when
//! others come late. They become records of the shard like any others, so that every copy has them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use spandrel_model::otlp::scan_request;
use spandrel_model::ports::TraceLookup;

use super::refill::{Again, acknowledged, append_again};
use crate::assembler::Recall;
use crate::limits::{RECALL_PAUSE_MS, RECALL_TRIES};
use crate::meters::Stage;
use crate::query::Coordinator;

/// Asks the cluster for a trace and appends its spans to the shard again, unless all of them are here.
pub(crate) async fn recall(again: &Again, cluster: &Coordinator, recall: &Recall) {
    if cluster.is_alone() {
        return;
    }
    for _ in 0..RECALL_TRIES {
        match try_recall(again, cluster, recall).await {
            Ok(()) => return,
            Err(reason) => {
                let (shard, trace) = (again.shard.0, &recall.trace_id);
                tracing::debug!(shard, %trace, reason, "earlier spans of a trace are not here yet");
            }
        }
        tokio::time::sleep(Duration::from_millis(RECALL_PAUSE_MS)).await;
    }
    tracing::warn!(
        shard = again.shard.0,
        trace = %recall.trace_id,
        tenant = %recall.tenant,
        "earlier spans of a trace could not be brought here: they stay on the nodes that hold them"
    );
}

async fn try_recall(again: &Again, cluster: &Coordinator, recall: &Recall) -> Result<(), String> {
    if !recall.references.is_empty() && all_here(again, recall).await? {
        return Ok(());
    }
    let found = cluster.fetch_stored(&recall.tenant, recall.trace_id).await;
    let TraceLookup::Found(mut answer) = found.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    if let Some(missing) = answer.missing.first() {
        return Err(missing.reason.clone());
    }
    while let Some(piece) = answer.reader.next().await.map_err(|error| error.to_string())? {
        append(again, recall, piece).await?;
    }
    Ok(())
}

async fn all_here(again: &Again, recall: &Recall) -> Result<bool, String> {
    let (shared, shard) = (Arc::clone(&again.shared), again.shard);
    let references = recall.references.clone();
    let look = move || {
        let journal = &shared.journal;
        for lsn in references {
            let located = journal.locate(shard, lsn).map_err(|error| error.to_string())?;
            let Some(id) = located else { return Ok(false) };
            let frame = journal.frame(id).map_err(|error| error.to_string())?;
            if frame.find(shard, lsn).is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    };
    again.shared.block(Stage::Frame, look).await
}

/// A piece is a `TracesData`, which is an export request by its bytes.
async fn append(again: &Again, recall: &Recall, piece: Bytes) -> Result<(), String> {
    let shared = &again.shared;
    let epoch = shared.epoch();
    let scanned = scan_request(piece, recall.tenant.clone(), shared.env.now(), epoch.rules());
    let batch = scanned.map_err(|error| error.to_string())?.batch;
    match append_again(again, batch, epoch).await? {
        Some(answer) => acknowledged(answer).await,
        None => Ok(()),
    }
}
