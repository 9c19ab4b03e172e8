//! Brings spans back that this node lacks of a trace that it must hold whole: those of before it joined the shard, when
//! others come late. They become records of the shard like any others, so that every copy has them.

use std::sync::Arc;

use bytes::Bytes;
use spandrel_model::otlp::scan_request;
use spandrel_model::ports::TraceLookup;

use super::refill::{Again, acknowledged, append_again};
use crate::assembler::Recall;
use crate::meters::Stage;
use crate::query::Coordinator;

/// Asks the cluster for a trace and appends its spans to the shard again, unless all of them are here. False when that is
/// to be tried again later: a holder is down, for example.
pub(crate) async fn recall(again: &Again, cluster: &Coordinator, recall: &Recall) -> bool {
    if cluster.is_alone() {
        return true;
    }
    let tried = try_recall(again, cluster, recall).await;
    if let Err(reason) = &tried {
        let (shard, trace) = (again.shard.0, &recall.trace_id);
        tracing::debug!(shard, %trace, reason, "earlier spans of a trace are not here yet");
    }
    tried.is_ok()
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
    let (shard, trace) = (again.shard.0, &recall.trace_id);
    tracing::debug!(shard, %trace, spans = answer.span_count, "earlier spans of a trace are brought here");
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
