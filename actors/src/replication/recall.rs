//! Brings spans back that this node lacks of a trace that it must hold whole: those of before it joined the shard, when
//! others come late. They become records of the shard like any others, so that every copy has them.

use bytes::Bytes;
use spandrel_model::otlp::scan_request;
use spandrel_model::ports::TraceLookup;

use super::refill::{Again, acknowledged, append_again, send_verdicts, spans_acknowledged};
use crate::assembler::Recall;
use crate::query::Coordinator;

/// Asks the cluster for a trace and appends its spans to the shard again. False when that is to be tried again later: a
/// holder is down, for example. The last try brings what can be read.
pub(crate) async fn recall(
    again: &Again,
    cluster: &Coordinator,
    recall: &Recall,
    is_last: bool,
) -> bool {
    if cluster.is_alone() {
        return true;
    }
    let tried = match try_recall(again, cluster, recall, is_last).await {
        Ok(()) => say_kept(again, recall).await,
        failed => failed,
    };
    if let Err(reason) = &tried {
        let (shard, trace) = (again.shard.0, &recall.trace_id);
        tracing::debug!(shard, %trace, reason, "earlier spans of a trace are not here yet");
    }
    tried.is_ok()
}

async fn try_recall(
    again: &Again,
    cluster: &Coordinator,
    recall: &Recall,
    is_last: bool,
) -> Result<(), String> {
    let found = cluster.fetch_stored(&recall.tenant, recall.trace_id).await;
    let TraceLookup::Found(mut answer) = found.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    // What a holder cannot read now it may read in a moment; damage keeps nobody from bringing the rest.
    if let Some(missing) = answer.missing.first().filter(|_| !is_last) {
        return Err(missing.reason.clone());
    }
    let (shard, trace) = (again.shard.0, &recall.trace_id);
    tracing::debug!(shard, %trace, spans = answer.span_count, "earlier spans of a trace are brought here");
    while let Some(piece) = answer
        .reader
        .next()
        .await
        .map_err(|error| error.to_string())?
    {
        append(again, recall, piece).await?;
    }
    Ok(())
}

/// Repeats the verdict for replicas that have joined since it was made.
async fn say_kept(again: &Again, recall: &Recall) -> Result<(), String> {
    let verdicts: Vec<_> = recall.keep.iter().cloned().collect();
    match verdicts.is_empty() {
        true => Ok(()),
        false => acknowledged(send_verdicts(again, verdicts)?).await,
    }
}

/// A piece is a `TracesData`, which is an export request by its bytes.
async fn append(again: &Again, recall: &Recall, piece: Bytes) -> Result<(), String> {
    let shared = &again.shared;
    let epoch = shared.epoch();
    let scanned = scan_request(
        piece,
        recall.tenant.clone(),
        shared.env.now(),
        epoch.rules(),
    );
    let batch = scanned.map_err(|error| error.to_string())?.batch;
    let rows = (0u32..).take(batch.spans.len()).collect();
    match append_again(again, batch, rows, epoch).await? {
        Some(sent) => spans_acknowledged(again, sent).await,
        None => Ok(()),
    }
}
