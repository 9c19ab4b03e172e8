//! Pages on their way to followers, as bytes. Without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use spandrel_model::credit::{Credit, CreditPool};
use spandrel_model::ids::{Lsn, NodeId, ShardId, TraceId};
use spandrel_storage::block::BlockWrite;
use spandrel_storage::page::FragmentHead;

use crate::assembler::ShippedTrace;
use crate::limits::SHIPMENT_BYTES;
use crate::wire;

/// Pages for some followers.
#[derive(Debug, Clone)]
pub(crate) struct Shipment {
    pub(super) to: Arc<[NodeId]>,
    pub(super) bytes: Bytes,
    /// Pays for the bytes until the last follower has them.
    _credit: Arc<Credit>,
}

/// Pages that came, and what their sender says of their traces.
pub(super) struct Arrived {
    /// Without summaries.
    pub(super) write: BlockWrite,
    pub(super) traces: BTreeMap<(ShardId, TraceId), ShippedTrace>,
}

/// Packs the pages of a write for followers. What there is no memory for stays behind: they build such pages themselves.
pub(super) fn pack(
    write: &BlockWrite,
    traces: &BTreeMap<(ShardId, TraceId), ShippedTrace>,
    to: &Arc<[NodeId]>,
    pool: &Arc<CreditPool>,
) -> Result<Vec<Shipment>, String> {
    let mut shipments = Vec::new();
    let mut pages = write.pages.iter().peekable();
    while pages.peek().is_some() {
        let mut part = BlockWrite {
            bucket: write.bucket,
            tenant: write.tenant.clone(),
            pages: Vec::new(),
            summaries: Vec::new(),
        };
        let mut told = Vec::new();
        let mut size = 0;
        while let (Some(page), true) = (pages.peek(), size < SHIPMENT_BYTES) {
            size += page.bytes.len();
            let heads = page.fragments.iter().map(|fragment| fragment.head);
            told.extend(heads.filter_map(|head| traces.get(&(head.shard, head.trace_id))));
            part.pages.extend(pages.next().cloned());
        }
        let packed = part.pack().map_err(|error| error.to_string())?;
        let message = wire::PageShipment {
            pages: packed,
            traces: told.into_iter().map(to_wire).collect(),
        };
        let length = message.encoded_len() as u64;
        if let Some(credit) = pool.try_take(length) {
            shipments.push(Shipment {
                to: Arc::clone(to),
                bytes: message.encode_to_vec().into(),
                _credit: Arc::new(credit),
            });
        }
    }
    Ok(shipments)
}

/// Reads a shipment. Every page is as long as it says and whole; each of its traces is told of, under the same fragment
/// and with as many spans.
pub(super) fn unpack(bytes: Bytes) -> Result<Arrived, String> {
    let message = wire::PageShipment::decode(bytes).map_err(|error| error.to_string())?;
    let write = BlockWrite::unpack(&message.pages).map_err(|error| error.to_string())?;
    let mut traces = BTreeMap::new();
    for trace in message.traces {
        let trace = from_wire(trace).ok_or("a trace of a shipment is malformed")?;
        let twice = traces.insert((trace.shard, trace.trace_id), trace);
        if twice.is_some() {
            return Err("a trace is twice in a shipment".to_owned());
        }
    }
    let mut untold: BTreeSet<_> = traces.keys().copied().collect();
    for fragment in write.pages.iter().flat_map(|page| &page.fragments) {
        let FragmentHead {
            shard,
            trace_id,
            fragment: number,
            ..
        } = fragment.head;
        let told = traces.get(&(shard, trace_id));
        let is_told =
            told.is_some_and(|told| (told.fragment, told.spans) == (number, fragment.rows));
        if !is_told || !untold.remove(&(shard, trace_id)) {
            return Err(format!("trace {trace_id} is not as the shipment says"));
        }
    }
    if !untold.is_empty() || !write.summaries.is_empty() {
        return Err("a shipment has something else than its pages".to_owned());
    }
    Ok(Arrived { write, traces })
}

fn to_wire(trace: &ShippedTrace) -> wire::ShippedTrace {
    wire::ShippedTrace {
        shard: trace.shard.0.into(),
        trace_id: Bytes::copy_from_slice(&trace.trace_id.0),
        fragment: trace.fragment.0,
        references: trace.references.iter().map(|lsn| lsn.0).collect(),
        spans: trace.spans,
        hashes: trace.hashes,
    }
}

fn from_wire(trace: wire::ShippedTrace) -> Option<ShippedTrace> {
    Some(ShippedTrace {
        shard: ShardId(u16::try_from(trace.shard).ok()?),
        trace_id: TraceId(trace.trace_id.as_ref().try_into().ok()?),
        fragment: Lsn(trace.fragment),
        references: trace.references.into_iter().map(Lsn).collect(),
        spans: trace.spans,
        hashes: trace.hashes,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spandrel_model::ids::{Bucket, TenantId, UnixNanos};
    use spandrel_model::otlp::RawContext;
    use spandrel_storage::page::{PageBuilder, PageSpan};

    use super::super::shipment_oracle::check_any;
    use super::*;

    /// Pages of some traces with a span each, and what is told of them.
    fn pages(count: u8) -> (BlockWrite, BTreeMap<(ShardId, TraceId), ShippedTrace>) {
        let mut builder = PageBuilder::default();
        let (mut pages, mut told) = (Vec::new(), BTreeMap::new());
        for number in 0..count {
            let head = FragmentHead {
                shard: ShardId(0),
                trace_id: TraceId([number + 1; 16]),
                fragment: Lsn(u64::from(number) + 7),
                received_at: UnixNanos(5),
            };
            let span = opentelemetry_proto::tonic::trace::v1::Span {
                trace_id: head.trace_id.0.to_vec(),
                span_id: vec![number + 1; 8],
                name: "a".repeat(usize::from(number)),
                ..Default::default()
            };
            let span = span.encode_to_vec();
            let spans = [PageSpan {
                context: RawContext::default(),
                span: &span,
            }];
            builder.push(head, &spans).unwrap();
            if number % 3 == 2 {
                pages.extend(builder.finish().unwrap());
            }
            let trace = ShippedTrace {
                shard: head.shard,
                trace_id: head.trace_id,
                fragment: head.fragment,
                references: vec![Lsn(3), Lsn(u64::from(number) + 7)],
                spans: 1,
                hashes: u64::MAX - u64::from(number),
            };
            told.insert((head.shard, head.trace_id), trace);
        }
        pages.extend(builder.finish().unwrap());
        let write = BlockWrite {
            bucket: Bucket(9),
            tenant: TenantId::default(),
            pages,
            summaries: Vec::new(),
        };
        (write, told)
    }

    fn packed(count: u8) -> Bytes {
        let (write, told) = pages(count);
        let pool = CreditPool::new(1 << 30);
        let to: Arc<[NodeId]> = vec![NodeId(2)].into();
        let mut shipments = pack(&write, &told, &to, &pool).unwrap();
        assert_eq!(shipments.len(), 1);
        shipments.remove(0).bytes
    }

    #[test]
    fn what_is_packed_arrives() {
        let (write, told) = pages(8);
        let arrived = unpack(packed(8))
            .map_err(|error| panic!("{error}"))
            .unwrap();
        assert_eq!(arrived.traces, told);
        assert_eq!(arrived.write.pages, write.pages);
        assert_eq!(
            (arrived.write.bucket, arrived.write.tenant),
            (write.bucket, write.tenant)
        );
    }

    #[test]
    fn what_there_is_no_memory_for_stays_behind() {
        let (write, told) = pages(8);
        let to: Arc<[NodeId]> = vec![NodeId(2)].into();
        let shipments = pack(&write, &told, &to, &CreditPool::new(10)).unwrap();
        assert!(shipments.is_empty());
    }

    #[test]
    fn a_trace_that_is_not_told_of_is_refused() {
        let mut message = wire::PageShipment::decode(packed(3)).unwrap();
        let kept = message.traces.split_off(1);
        let without = wire::PageShipment {
            traces: kept,
            ..message
        };
        assert!(unpack(without.encode_to_vec().into()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check_any(bytes.into());
        }

        #[test]
        fn changed_bytes_are_refused_or_read(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = packed(5).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            bytes.truncate(cut.index(bytes.len()) + 1);
            check_any(bytes.into());
        }
    }
}
