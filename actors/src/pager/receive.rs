//! Takes the pages that primaries have built. A page is taken when every trace of it is kept here too and has exactly
//! these spans here; whatever else waits is built from this node's own journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ractor::ActorRef;
use spandrel_model::credit::Credit;
use spandrel_model::ids::{Bucket, NodeId, ShardId, TenantId, TraceId};
use spandrel_storage::block::BlockWrite;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::commit::{SpansFrom, commit_pages};
use super::shipment::{Arrived, unpack};
use crate::assembler::{Differs, KeptTrace, PagedTrace, ShippedTrace};
use crate::assembler_message::AssemblerMessage;
use crate::limits::{
    MAX_SHIPMENT_BYTES, SHIPMENT_CALL_MS, SHIPMENT_PATIENCE_MS, SHIPMENT_RETRY_MS,
};
use crate::link::{Caller, IncomingCall, PeerHandler};
use crate::meters::{self, Stage};
use crate::shared::Shared;
use crate::wire::{PagesAnswer, PagesRequest};

/// Answers [`PeerService::Pages`](crate::link::PeerService).
pub(crate) struct PageIntake(Arc<Parts>);

struct Parts {
    shared: Arc<Shared>,
    shards: Arc<[ActorRef<AssemblerMessage>]>,
    /// What is coming, by sender.
    coming: Mutex<BTreeMap<NodeId, Coming>>,
}

/// A shipment of which pieces are here.
struct Coming {
    number: u64,
    total: usize,
    bytes: Vec<u8>,
    credit: Credit,
}

/// Traces that their shards have given for pages, and why others were not.
type Collected = BTreeMap<(ShardId, TraceId), Result<KeptTrace, Differs>>;

impl PageIntake {
    pub(crate) fn new(shared: Arc<Shared>, shards: Arc<[ActorRef<AssemblerMessage>]>) -> Self {
        Self(Arc::new(Parts {
            shared,
            shards,
            coming: Mutex::default(),
        }))
    }
}

impl Parts {
    fn coming(&self) -> MutexGuard<'_, BTreeMap<NodeId, Coming>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of a shipment whose next piece has not come: its sender may be gone.
    async fn expire(&self, from: NodeId, number: u64, bytes: u64) {
        tokio::time::sleep(Duration::from_millis(SHIPMENT_CALL_MS)).await;
        let mut coming = self.coming();
        let known = coming.get(&from);
        if known.is_some_and(|one| one.number == number && one.bytes.len() as u64 == bytes) {
            coming.remove(&from);
        }
    }

    /// Adds a piece; the shipment when it is whole.
    fn add(&self, from: NodeId, request: &PagesRequest) -> Result<Option<(Bytes, Credit)>, String> {
        let mut coming = self.coming();
        // What cannot go on is given up.
        let known = coming.remove(&from);
        let mut one = match known {
            _ if request.offset == 0 => self.begin(request)?,
            Some(known) if known.number == request.shipment => known,
            _ => return Err("the pieces before it are not here".to_owned()),
        };
        let offset = usize::try_from(request.offset);
        let is_next = offset.is_ok_and(|offset| offset == one.bytes.len());
        let fits = request.piece.len() <= one.total - one.bytes.len();
        if !is_next || !fits || request.piece.is_empty() {
            return Err("a piece of pages is out of order".to_owned());
        }
        one.bytes.extend_from_slice(&request.piece);
        if one.bytes.len() == one.total {
            return Ok(Some((one.bytes.into(), one.credit)));
        }
        coming.insert(from, one);
        Ok(None)
    }

    fn begin(&self, request: &PagesRequest) -> Result<Coming, String> {
        if request.total > MAX_SHIPMENT_BYTES {
            return Err(format!("a shipment has {MAX_SHIPMENT_BYTES} bytes at most"));
        }
        let credit = self.shared.pool.try_take(request.total);
        Ok(Coming {
            number: request.shipment,
            total: usize::try_from(request.total).map_err(|error| error.to_string())?,
            bytes: Vec::new(),
            credit: credit.ok_or("there is no memory for pages now")?,
        })
    }
}

impl PeerHandler for PageIntake {
    fn deliver(&self, call: IncomingCall) {
        let Caller::Node(from) = call.from else {
            let _ = call.reply.send(Err("this node is no member".to_owned()));
            return;
        };
        let request = match PagesRequest::decode(call.request) {
            Ok(request) => request,
            Err(error) => {
                let _ = call.reply.send(Err(error.to_string()));
                return;
            }
        };
        let parts = Arc::clone(&self.0);
        match parts.add(from, &request) {
            Err(reason) => answer(call.reply, Err(reason)),
            Ok(None) => {
                let bytes = request.offset + request.piece.len() as u64;
                self.0.shared.spawn_job("pages", async move {
                    parts.expire(from, request.shipment, bytes).await;
                });
                answer(call.reply, Ok(0));
            }
            Ok(Some((bytes, credit))) => {
                self.0.shared.spawn_job("pages", async move {
                    answer(call.reply, parts.take(bytes).await);
                    drop(credit);
                });
            }
        }
    }
}

fn answer(reply: oneshot::Sender<Result<Bytes, String>>, taken: Result<u32, String>) {
    let answer = match taken {
        Ok(refused_pages) => PagesAnswer {
            refused: String::new(),
            refused_pages,
        },
        Err(refused) => PagesAnswer {
            refused,
            refused_pages: 0,
        },
    };
    let _ = reply.send(Ok(answer.encode_to_vec().into()));
}

impl Parts {
    /// Takes what it can of a shipment; the number of pages that are not taken.
    async fn take(&self, bytes: Bytes) -> Result<u32, String> {
        let arrived = self
            .shared
            .block(Stage::Page, move || unpack(bytes))
            .await?;
        let Arrived { write, traces } = arrived;
        let mut collected = self.collect(&write.tenant, traces).await?;
        let (write, taken, refused) = choose(write, &mut collected);
        // Those of pages that are not taken wait for others.
        self.tell(paged(&collected), AssemblerMessage::PagingFailed);
        meters::pages_taken(write.pages.len() as u64);
        if write.pages.is_empty() {
            return Ok(refused);
        }
        let shared = Arc::clone(&self.shared);
        let from = SpansFrom::Journal {
            late: BTreeSet::new(),
        };
        let commit = move || commit_pages(&shared, write, &from);
        let committed = self.shared.block(Stage::Page, commit).await;
        match committed {
            Ok(()) => self.tell(taken, AssemblerMessage::Paged),
            Err(_) => self.tell(taken, AssemblerMessage::PagingFailed),
        }
        committed.map(|()| refused)
    }

    /// Takes the traces out of their shards, as far as they are the same there.
    async fn collect(
        &self,
        tenant: &TenantId,
        traces: BTreeMap<(ShardId, TraceId), ShippedTrace>,
    ) -> Result<Collected, String> {
        let mut by_shard: BTreeMap<ShardId, Vec<ShippedTrace>> = BTreeMap::new();
        for ((shard, _), trace) in traces {
            by_shard.entry(shard).or_default().push(trace);
        }
        let deadline = Instant::now() + Duration::from_millis(SHIPMENT_PATIENCE_MS);
        let mut collected = Collected::new();
        for (shard, wanted) in by_shard {
            match self.collect_of(shard, tenant, &wanted, deadline).await {
                Ok(taken) => collected.extend(taken),
                Err(reason) => {
                    self.tell(paged(&collected), AssemblerMessage::PagingFailed);
                    return Err(reason);
                }
            }
        }
        Ok(collected)
    }

    async fn collect_of(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        wanted: &[ShippedTrace],
        deadline: Instant,
    ) -> Result<Collected, String> {
        let assembler = self.shards.get(usize::from(shard.0));
        let assembler = assembler.ok_or("no such shard")?;
        loop {
            let (reply, answer) = oneshot::channel();
            let collect = AssemblerMessage::CollectShipped(tenant.clone(), wanted.to_vec(), reply);
            assembler
                .cast(collect)
                .map_err(|_| "the node is stopping")?;
            match answer.await.map_err(|_| "the node is stopping")? {
                Ok(taken) => {
                    let keys = wanted.iter().map(|trace| (shard, trace.trace_id));
                    return Ok(keys.zip(taken).collect());
                }
                // Pages without its traces are taken all the same.
                Err(_) if Instant::now() >= deadline => return Ok(Collected::new()),
                Err(_) => tokio::time::sleep(Duration::from_millis(SHIPMENT_RETRY_MS)).await,
            }
        }
    }

    fn tell(
        &self,
        traces: BTreeMap<ShardId, Vec<PagedTrace>>,
        message: fn(Vec<PagedTrace>) -> AssemblerMessage,
    ) {
        for (shard, traces) in traces {
            if let Some(assembler) = self.shards.get(usize::from(shard.0)) {
                let _ = assembler.cast(message(traces));
            }
        }
    }
}

fn paged(collected: &Collected) -> BTreeMap<ShardId, Vec<PagedTrace>> {
    let mut by_shard: BTreeMap<ShardId, Vec<PagedTrace>> = BTreeMap::new();
    for ((shard, _), kept) in collected {
        let kept = kept.iter().map(KeptTrace::paged);
        by_shard.entry(*shard).or_default().extend(kept);
    }
    by_shard
}

/// The pages of which all traces were collected, with the summaries that this node has of them, their traces, and how many
/// pages are left out. What stays in `collected` is of those.
fn choose(
    write: BlockWrite,
    collected: &mut Collected,
) -> (BlockWrite, BTreeMap<ShardId, Vec<PagedTrace>>, u32) {
    let mut chosen = BlockWrite {
        pages: Vec::new(),
        summaries: Vec::new(),
        ..write
    };
    let mut taken: BTreeMap<ShardId, Vec<PagedTrace>> = BTreeMap::new();
    let mut refused = 0;
    for page in write.pages {
        let heads = page.fragments.iter().map(|fragment| fragment.head);
        let keys: Vec<_> = heads.map(|head| (head.shard, head.trace_id)).collect();
        if let Some(why) = keys
            .iter()
            .find_map(|key| differs(collected.get(key), chosen.bucket))
        {
            meters::page_refused(why.as_str());
            refused += 1;
            continue;
        }
        for key in keys {
            if let Some(Ok(kept)) = collected.remove(&key) {
                taken.entry(key.0).or_default().push(kept.paged());
                chosen.summaries.extend(kept.summary);
            }
        }
        chosen.pages.push(page);
    }
    (chosen, taken, refused)
}

/// Why a trace keeps its page from being taken.
fn differs(collected: Option<&Result<KeptTrace, Differs>>, bucket: Bucket) -> Option<Differs> {
    match collected {
        Some(Ok(kept)) if kept.summary.is_some() && kept.bucket == bucket => None,
        Some(Ok(_)) => Some(Differs::Paged),
        Some(Err(why)) => Some(*why),
        None => Some(Differs::Absent),
    }
}
