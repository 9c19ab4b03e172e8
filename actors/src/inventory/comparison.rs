//! One node's questions to another about a bucket that both should hold, and what it takes from the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use spandrel_model::ids::{Bucket, NodeId, ShardId, TenantId, TraceId};
use spandrel_storage::block::{Inventory, Slice, Tally};

use crate::limits::{COPY_CALL_MS, INVENTORY_TRACES, MAX_INVENTORY_SLICES};
use crate::link::{Link, LinkClass, PeerService};
use crate::meters::Stage;
use crate::repair::{Fetched, Fetching, store_part};
use crate::shared::Shared;
use crate::wire::inventory_answer::Answer;
use crate::wire::inventory_request::Ask;
use crate::wire::{
    AskSlice, AskTallies, CopyRequest, InventoryAnswer, InventoryRequest, Look, NamedTraces,
    SliceTally, TraceTally,
};

/// A node that should hold the same of a bucket.
pub(super) struct Peer<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) link: &'a dyn Link,
    pub(super) node: NodeId,
    pub(super) bucket: Bucket,
    /// Pages here that cannot be read.
    pub(super) unreadable: BTreeSet<u64>,
}

/// Why a peer says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// It will.
    Later(String),
    /// It will not.
    Never(String),
}

impl From<String> for NoAnswer {
    fn from(reason: String) -> Self {
        Self::Never(reason)
    }
}

/// What was taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pulled {
    /// Spans that were not there.
    pub(super) spans: u64,
    /// Bytes that came.
    pub(super) bytes: usize,
}

impl Peer<'_> {
    /// The slices of some shards in which the peer has something else.
    pub(super) async fn differing(
        &self,
        own: &Inventory,
        shards: &BTreeSet<ShardId>,
    ) -> Result<Vec<Slice>, NoAnswer> {
        let theirs = self.slices(shards).await?.into_iter();
        let differs = |slice: &(Slice, Tally)| own.tallies.get(&slice.0) != Some(&slice.1);
        Ok(theirs.filter(differs).map(|(slice, _)| slice).collect())
    }

    /// Takes over what is lacking here of a slice.
    pub(super) async fn mend(&self, slice: &Slice) -> Result<Pulled, NoAnswer> {
        let (mut pulled, mut after) = (Pulled::default(), None);
        loop {
            let theirs = self.traces(slice, after).await?;
            let Some((last, _)) = theirs.last() else {
                return Ok(pulled);
            };
            after = Some(*last);
            let is_last = theirs.len() < INVENTORY_TRACES;
            let lacking = self.lacking(slice, theirs).await?;
            if !lacking.is_empty() {
                let more = self.pull(slice, &lacking).await?;
                pulled.spans += more.spans;
                pulled.bytes += more.bytes;
            }
            if is_last {
                return Ok(pulled);
            }
        }
    }

    /// Those of which the peer has spans that this node lacks. Where this node has more, the peer pulls first, and this one
    /// when they are compared again.
    async fn lacking(
        &self,
        slice: &Slice,
        theirs: Vec<(TraceId, Tally)>,
    ) -> Result<Vec<TraceId>, NoAnswer> {
        let (shared, slice, bucket) = (Arc::clone(self.shared), slice.clone(), self.bucket);
        let read = move || {
            let ids: Vec<TraceId> = theirs.iter().map(|(trace, _)| *trace).collect();
            let of = (&slice.tenant, slice.shard);
            let own = shared.blocks.tallies_of(bucket, of, &ids)?;
            let both = theirs.into_iter().zip(own);
            let lacking =
                both.filter(|((_, theirs), own)| theirs != own && theirs.spans >= own.spans);
            Ok(lacking.map(|((trace, _), _)| trace).collect())
        };
        let lacking: Result<_, spandrel_storage::block::BlockError> =
            self.shared.block(Stage::Copy, read).await;
        lacking.map_err(|error| NoAnswer::Never(error.to_string()))
    }

    async fn pull(&self, slice: &Slice, traces: &[TraceId]) -> Result<Pulled, NoAnswer> {
        let request = CopyRequest {
            bucket: self.bucket.0.into(),
            traces: Some(named(&slice.tenant, slice.shard, traces)),
            ..CopyRequest::default()
        };
        let (mut fetching, mut pulled) = (Fetching::default(), Pulled::default());
        loop {
            match fetching.next(self.link, self.node, request.clone()).await? {
                Fetched::Piece(_) => {}
                Fetched::Part(part, is_last) => {
                    if !part.is_empty() {
                        let credit = self.shared.pool.try_take(part.len() as u64);
                        let _credit = credit
                            .ok_or_else(|| NoAnswer::Later("no memory for spans".to_owned()))?;
                        let (shards, bucket) = (BTreeSet::from([slice.shard]), self.bucket);
                        pulled.bytes += part.len();
                        let unreadable = self.unreadable.clone();
                        let stored = store_part(self.shared, bucket, shards, part, unreadable);
                        pulled.spans += stored.await?;
                    }
                    if is_last {
                        return Ok(pulled);
                    }
                }
            }
        }
    }

    async fn slices(&self, shards: &BTreeSet<ShardId>) -> Result<BTreeMap<Slice, Tally>, NoAnswer> {
        let mut slices = BTreeMap::new();
        loop {
            let ask = AskTallies {
                shards: shards.iter().map(|shard| shard.0.into()).collect(),
                first: u32::try_from(slices.len()).unwrap_or(u32::MAX),
            };
            let Answer::Slices(answer) = self.ask(Ask::Tallies(ask)).await? else {
                return Err(malformed());
            };
            let (before, came) = (slices.len(), answer.slices.len());
            for slice in answer.slices {
                let (slice, tally) = read_slice(&slice).ok_or_else(malformed)?;
                slices.insert(slice, tally);
            }
            if answer.is_last {
                return Ok(slices);
            }
            if came == 0 || slices.len() != before + came || slices.len() > MAX_INVENTORY_SLICES {
                return Err(malformed());
            }
        }
    }

    async fn traces(
        &self,
        slice: &Slice,
        after: Option<TraceId>,
    ) -> Result<Vec<(TraceId, Tally)>, NoAnswer> {
        let ask = AskSlice {
            tenant: slice.tenant.as_str().to_owned(),
            shard: slice.shard.0.into(),
            slice: slice.number.into(),
            after: after.map_or_else(Bytes::new, |trace| Bytes::copy_from_slice(&trace.0)),
        };
        let traces = self.ask_traces(Ask::Slice(ask)).await?;
        let ascends = traces.is_sorted_by(|one, next| one.0 < next.0);
        let follows = traces.first().is_none_or(|(first, _)| Some(*first) > after);
        match ascends && follows {
            true => Ok(traces),
            false => Err(malformed()),
        }
    }

    async fn ask_traces(&self, ask: Ask) -> Result<Vec<(TraceId, Tally)>, NoAnswer> {
        let Answer::Traces(answer) = self.ask(ask).await? else {
            return Err(malformed());
        };
        let traces = answer.traces.iter().map(read_trace);
        let traces: Option<Vec<_>> = traces.collect();
        traces
            .filter(|traces| traces.len() <= INVENTORY_TRACES)
            .ok_or_else(malformed)
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, NoAnswer> {
        let request = InventoryRequest {
            bucket: self.bucket.0.into(),
            ask: Some(ask),
        };
        call(self.link, self.node, &request).await
    }
}

async fn call(
    link: &dyn Link,
    node: NodeId,
    request: &InventoryRequest,
) -> Result<Answer, NoAnswer> {
    let request = request.encode_to_vec().into();
    let deadline = Duration::from_millis(COPY_CALL_MS);
    let (service, class) = (PeerService::Inventory, LinkClass::Bulk);
    let called = link.call(node, service, class, request, deadline);
    let answer = called
        .await
        .map_err(|error| NoAnswer::Never(error.to_string()))?;
    let answer = InventoryAnswer::decode(answer).map_err(|_| malformed())?;
    match answer.answer {
        Some(Answer::Refused(refusal)) if refusal.later => Err(NoAnswer::Later(refusal.reason)),
        Some(Answer::Refused(refusal)) => Err(NoAnswer::Never(refusal.reason)),
        Some(answer) => Ok(answer),
        None => Err(malformed()),
    }
}

/// Lets other nodes compare what they hold too, as far as they can be reached.
pub(crate) async fn ask_to_look(link: &dyn Link, nodes: impl Iterator<Item = NodeId>) {
    let request = InventoryRequest {
        bucket: 0,
        ask: Some(Ask::Look(Look {})),
    };
    let calls = nodes.map(|node| {
        let request = &request;
        async move {
            if let Err(reason) = call(link, node, request).await {
                tracing::debug!(node = node.0, ?reason, "it was not asked to compare");
            }
        }
    });
    futures_util::future::join_all(calls).await;
}

fn malformed() -> NoAnswer {
    NoAnswer::Never("its answer makes no sense".to_owned())
}

fn named(tenant: &TenantId, shard: ShardId, traces: &[TraceId]) -> NamedTraces {
    let ids = traces.iter().map(|trace| Bytes::copy_from_slice(&trace.0));
    NamedTraces {
        tenant: tenant.as_str().to_owned(),
        shard: shard.0.into(),
        trace_ids: ids.collect(),
    }
}

fn read_slice(wire: &SliceTally) -> Option<(Slice, Tally)> {
    let slice = Slice {
        tenant: wire.tenant.parse().ok()?,
        shard: ShardId(u16::try_from(wire.shard).ok()?),
        number: u8::try_from(wire.slice).ok()?,
    };
    Some((slice, read_tally(wire.tally.as_ref()?)))
}

fn read_trace(wire: &TraceTally) -> Option<(TraceId, Tally)> {
    let trace = TraceId(wire.trace_id.as_ref().try_into().ok()?);
    Some((trace, read_tally(wire.tally.as_ref()?)))
}

fn read_tally(wire: &crate::wire::Tally) -> Tally {
    Tally {
        spans: wire.spans,
        hashes: wire.hashes,
    }
}
