//! Answers what this node holds of a bucket.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use ractor::ActorRef;
use spandrel_model::ids::{Bucket, ShardId, TraceId};
use spandrel_storage::block::{BlockError, Slice, Tally};
use tokio::sync::{Semaphore, oneshot};

use super::comparer::ComparerMessage;
use super::ledger::Ledger;
use crate::assembler_message::AssemblerMessage;
use crate::limits::{INVENTORY_SLICES_SENT, INVENTORY_TRACES, MAX_INVENTORY_ANSWERS};
use crate::link::{Caller, IncomingCall, PeerHandler};
use crate::meters::Stage;
use crate::shared::Shared;
use crate::wire::inventory_answer::Answer;
use crate::wire::inventory_request::Ask;
use crate::wire::{
    AskSlice, AskTallies, InventoryAnswer, InventoryRefusal, InventoryRequest, Look, SliceTallies,
    SliceTally, TraceTallies, TraceTally,
};

/// Answers [`PeerService::Inventory`](crate::link::PeerService::Inventory). Cheap to clone.
#[derive(Clone)]
pub(crate) struct InventoryServer {
    shared: Arc<Shared>,
    shards: Arc<[ActorRef<AssemblerMessage>]>,
    ledger: Arc<Ledger>,
    comparer: ActorRef<ComparerMessage>,
    running: Arc<Semaphore>,
}

/// Why there is no answer, and whether there will be.
struct Refusal {
    reason: String,
    later: bool,
}

impl Refusal {
    fn later(reason: &str) -> Self {
        let reason = reason.to_owned();
        Self {
            reason,
            later: true,
        }
    }

    fn never(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            later: false,
        }
    }
}

impl PeerHandler for InventoryServer {
    fn deliver(&self, call: IncomingCall) {
        let IncomingCall {
            from,
            request,
            reply,
            ..
        } = call;
        let Caller::Node(_) = from else {
            let _ = reply.send(Err(
                "only members of the cluster ask what it holds".to_owned()
            ));
            return;
        };
        let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() else {
            let refusal = Refusal::later("it answers others now");
            let _ = reply.send(Ok(message(Err(refusal))));
            return;
        };
        let server = self.clone();
        self.shared.spawn_job("inventory", async move {
            let answer = server.answer(request).await;
            // Whoever asks may have given up: what was read was read all the same, and nobody else was answered meanwhile.
            let _ = reply.send(Ok(message(answer)));
            drop(permit);
        });
    }
}

fn message(answer: Result<Answer, Refusal>) -> Bytes {
    let answer = answer.unwrap_or_else(|Refusal { reason, later }| {
        Answer::Refused(InventoryRefusal { reason, later })
    });
    let answer = InventoryAnswer {
        answer: Some(answer),
    };
    answer.encode_to_vec().into()
}

impl InventoryServer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        shards: Arc<[ActorRef<AssemblerMessage>]>,
        ledger: Arc<Ledger>,
        comparer: ActorRef<ComparerMessage>,
    ) -> Self {
        Self {
            shared,
            shards,
            ledger,
            comparer,
            running: Arc::new(Semaphore::new(MAX_INVENTORY_ANSWERS)),
        }
    }

    async fn answer(&self, request: Bytes) -> Result<Answer, Refusal> {
        let request = InventoryRequest::decode(request).map_err(Refusal::never)?;
        let bucket = u32::try_from(request.bucket).map_err(Refusal::never)?;
        let bucket = Bucket(bucket);
        match request.ask {
            Some(Ask::Tallies(ask)) => self.slices(bucket, &ask).await.map(Answer::Slices),
            Some(Ask::Slice(ask)) => self.slice(bucket, ask).await.map(Answer::Traces),
            Some(Ask::Look(Look {})) => {
                look(&self.comparer).await.map_err(Refusal::never)?;
                Ok(Answer::Looks(Look {}))
            }
            None => Err(Refusal::never("nothing was asked")),
        }
    }

    async fn slices(&self, bucket: Bucket, ask: &AskTallies) -> Result<SliceTallies, Refusal> {
        let shards = ask.shards.iter().map(|shard| u16::try_from(*shard));
        let shards: Result<BTreeSet<u16>, _> = shards.collect();
        let shards = shards.map_err(Refusal::never)?;
        for shard in &shards {
            let assembler = self.shards.get(usize::from(*shard));
            let assembler = assembler.ok_or_else(|| Refusal::never("no such shard"))?;
            if waits_for_page(assembler, bucket).await.unwrap_or(true) {
                return Err(Refusal::later("traces wait for their page"));
            }
        }
        let block = self.shared.blocks.block(bucket).map_err(Refusal::never)?;
        let Some(block) = block else {
            return Ok(SliceTallies {
                slices: Vec::new(),
                is_last: true,
            });
        };
        let counted = match self.ledger.inventory(bucket, block.block_id) {
            Some(Ok(counted)) => counted,
            Some(Err(reason)) => return Err(Refusal::never(reason)),
            None => {
                self.ledger.want(bucket);
                return Err(Refusal::later("it counts the bucket first"));
            }
        };
        let wanted = counted.tallies.iter();
        let wanted = wanted.filter(|(slice, _)| shards.contains(&slice.shard.0));
        let first = usize::try_from(ask.first).map_err(Refusal::never)?;
        let mut left = wanted.skip(first);
        let sent = left.by_ref().take(INVENTORY_SLICES_SENT);
        let slices = sent.map(|(slice, tally)| SliceTally {
            tenant: slice.tenant.as_str().to_owned(),
            shard: slice.shard.0.into(),
            slice: slice.number.into(),
            tally: Some(to_wire(*tally)),
        });
        Ok(SliceTallies {
            slices: slices.collect(),
            is_last: left.next().is_none(),
        })
    }

    async fn slice(&self, bucket: Bucket, ask: AskSlice) -> Result<TraceTallies, Refusal> {
        let slice = Slice {
            tenant: ask
                .tenant
                .parse()
                .map_err(|_| Refusal::never("no such tenant"))?,
            shard: ShardId(u16::try_from(ask.shard).map_err(Refusal::never)?),
            number: u8::try_from(ask.slice).map_err(Refusal::never)?,
        };
        let after = match ask.after.is_empty() {
            true => None,
            false => Some(trace_id(&ask.after)?),
        };
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let blocks = &shared.blocks;
            blocks.traces_of(bucket, &slice, after, INVENTORY_TRACES)
        };
        let traces = self.shared.block(Stage::Copy, read).await;
        Ok(trace_tallies(traces.map_err(unreadable)?))
    }
}

/// Lets this node compare everything; returns when it has begun.
pub(crate) async fn look(comparer: &ActorRef<ComparerMessage>) -> Result<(), &'static str> {
    let stopping = "the node is stopping";
    let (reply, begun) = oneshot::channel();
    comparer
        .cast(ComparerMessage::Look(reply))
        .map_err(|_| stopping)?;
    begun.await.map_err(|_| stopping)
}

/// Damage of a block is not mended by asking again.
fn unreadable(error: BlockError) -> Refusal {
    Refusal {
        later: !error.is_damage(),
        reason: error.to_string(),
    }
}

/// Whether a kept trace of the bucket waits for its page at a shard; `None` when the node is stopping.
pub(super) async fn waits_for_page(
    assembler: &ActorRef<AssemblerMessage>,
    bucket: Bucket,
) -> Option<bool> {
    let (reply, waits) = oneshot::channel();
    assembler
        .cast(AssemblerMessage::WaitsForPage(bucket, reply))
        .ok()?;
    waits.await.ok()
}

fn trace_id(bytes: &[u8]) -> Result<TraceId, Refusal> {
    let id = bytes.try_into().map_err(Refusal::never)?;
    Ok(TraceId(id))
}

fn trace_tallies(traces: Vec<(TraceId, Tally)>) -> TraceTallies {
    let traces = traces.into_iter().map(|(trace, tally)| TraceTally {
        trace_id: Bytes::copy_from_slice(&trace.0),
        tally: Some(to_wire(tally)),
    });
    TraceTallies {
        traces: traces.collect(),
    }
}

fn to_wire(tally: Tally) -> crate::wire::Tally {
    crate::wire::Tally {
        spans: tally.spans,
        hashes: tally.hashes,
    }
}
