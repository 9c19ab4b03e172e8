//! The frame format: what goes in comes out, and no damage passes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "support/sealed_frame.rs"]
#[allow(missing_docs, unreachable_pub, clippy::indexing_slicing)]
mod sealed_frame;
mod support;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use smallvec::SmallVec;
use spandrel_model::batch::{Context, Run, Slice, SpanBatch, SpanHeader, SpanKind, StatusCode};
use spandrel_model::ids::{Bucket, Lsn, ShardId, SpanId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::verdict::{LimiterReading, Trigger, Verdict, VerdictRecord};
use spandrel_storage::journal::{
    EncodedFrame, Frame, FrameBuilder, LsnRange, RecordHead, RecordKind,
};
use support::{NOW, Numbers, all, batch, dropped, scan, tenant};

/// A span as plain data: trace id, resource, scope, span bytes.
type PlainSpan = (TraceId, Vec<u8>, Vec<u8>, Vec<u8>);

#[derive(Debug, Clone)]
enum PlainRecord {
    Spans(TenantId, UnixNanos, Vec<PlainSpan>),
    Verdicts(Vec<VerdictRecord>),
}

fn tenants() -> impl Strategy<Value = TenantId> {
    prop_oneof![Just("default"), Just("team-a"), Just("x")].prop_map(|name| name.parse().unwrap())
}

/// Any bytes at all: the journal does not look into a span. Some hold their trace id, some at the usual place.
fn plain_span() -> impl Strategy<Value = PlainSpan> {
    let context = prop_oneof![
        Just(vec![]),
        Just(vec![10, 2, 8, 1]),
        vec(any::<u8>(), 0..40)
    ];
    (
        any::<[u8; 16]>(),
        context.clone(),
        context,
        vec(any::<u8>(), 0..60),
        0..3,
    )
        .prop_map(|(id, resource, scope, mut span, place)| {
            match place {
                0 => drop(span.splice(0..0, [10, 16].into_iter().chain(id))),
                1 => span.extend(id),
                _ => {}
            }
            (TraceId(id), resource, scope, span)
        })
}

fn verdict() -> impl Strategy<Value = VerdictRecord> {
    let limiter =
        (any::<u8>(), any::<u64>()).prop_map(|(limiter, level)| LimiterReading { limiter, level });
    (
        (
            tenants(),
            any::<[u8; 16]>(),
            any::<bool>(),
            0..7_u8,
            any::<u8>(),
            any::<u32>(),
        ),
        (
            any::<u16>(),
            any::<u128>(),
            any::<u64>(),
            vec(limiter, 0..4),
        ),
        (
            any::<u64>(),
            any::<u32>(),
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            any::<u32>(),
        ),
        vec(any::<u64>(), 0..6),
    )
        .prop_map(|(a, b, c, references)| VerdictRecord {
            tenant: a.0,
            trace_id: TraceId(a.1),
            verdict: if a.2 { Verdict::Keep } else { Verdict::Drop },
            trigger: Trigger::from_number(a.3).unwrap(),
            pressure: a.4,
            policy_version: a.5,
            policy: b.0,
            votes: b.1,
            probability: b.2,
            limiters: SmallVec::from_vec(b.3),
            decided_at: UnixNanos(c.0),
            bucket: Bucket(c.1),
            input_lsn: Lsn(c.2),
            start: UnixNanos(c.3),
            end: UnixNanos(c.4),
            span_count: c.5,
            references: references.into_iter().map(Lsn).collect(),
        })
}

fn record() -> impl Strategy<Value = (u16, u64, u64, PlainRecord)> {
    let spans = (tenants(), any::<u64>(), vec(plain_span(), 0..8))
        .prop_map(|(tenant, at, spans)| PlainRecord::Spans(tenant, UnixNanos(at), spans));
    let verdicts = vec(verdict(), 0..12).prop_map(PlainRecord::Verdicts);
    (
        0..4_u16,
        any::<u64>(),
        any::<u64>(),
        prop_oneof![spans, verdicts],
    )
}

fn to_batch(tenant: &TenantId, received_at: UnixNanos, spans: &[PlainSpan]) -> SpanBatch {
    let mut buffer = Vec::new();
    let mut put = |bytes: &[u8]| {
        let offset = buffer.len() as u32;
        buffer.extend_from_slice(bytes);
        Slice {
            offset,
            len: bytes.len() as u32,
        }
    };
    let mut contexts = Vec::new();
    let mut headers = Vec::new();
    for (context, (trace_id, resource, scope, span)) in (0_u32..).zip(spans) {
        contexts.push(Context {
            resource: put(resource),
            scope: put(scope),
            scope_schema_url: put(b"https://schema"),
            ..Context::default()
        });
        headers.push(SpanHeader {
            trace_id: *trace_id,
            span_id: SpanId([1; 8]),
            parent_span_id: SpanId::default(),
            context,
            span: put(span),
            name: Slice::default(),
            trace_state: Slice::default(),
            start: UnixNanos(0),
            end: UnixNanos(0),
            kind: SpanKind::Server,
            status: StatusCode::Unset,
            flags: 0,
            hash: 0,
            attributes: Run::default(),
        });
    }
    SpanBatch {
        tenant: tenant.clone(),
        received_at,
        buffer: Bytes::from(buffer),
        contexts,
        spans: headers,
        attributes: Vec::new(),
    }
}

fn encode(builder: &mut FrameBuilder, records: &[(u16, u64, u64, PlainRecord)]) -> EncodedFrame {
    for (shard, term, lsn, record) in records {
        let (shard, term, lsn) = (ShardId(*shard), Term(*term), Lsn(*lsn));
        match record {
            PlainRecord::Spans(tenant, received_at, spans) => {
                let batch = to_batch(tenant, *received_at, spans);
                builder
                    .push_spans(shard, term, lsn, &batch, &all(&batch))
                    .unwrap();
            }
            PlainRecord::Verdicts(verdicts) => {
                builder.push_verdicts(shard, term, lsn, verdicts).unwrap();
            }
        }
    }
    builder.finish().unwrap()
}

fn check(frame: &Frame, records: &[(u16, u64, u64, PlainRecord)]) {
    assert_eq!(frame.records().len(), records.len());
    for (index, (shard, term, lsn, record)) in records.iter().enumerate() {
        let head = frame.records()[index];
        let kind = match record {
            PlainRecord::Spans(..) => RecordKind::Spans,
            PlainRecord::Verdicts(_) => RecordKind::Verdicts,
        };
        let expected = RecordHead {
            shard: ShardId(*shard),
            term: Term(*term),
            lsn: Lsn(*lsn),
            kind,
        };
        assert_eq!(head, expected);
        match record {
            PlainRecord::Spans(tenant, received_at, spans) => {
                assert_eq!(frame.tenant(index), Some(tenant));
                assert_eq!(frame.received_at(index), Some(*received_at));
                assert_eq!(frame.span_count(index), spans.len());
                let mut seen = Vec::new();
                frame.visit_spans(index, &mut |context, trace, span| {
                    assert_eq!(context.scope_schema_url, b"https://schema");
                    assert_eq!(context.resource_schema_url, b"");
                    seen.push((
                        trace,
                        context.resource.to_vec(),
                        context.scope.to_vec(),
                        span.to_vec(),
                    ));
                });
                assert_eq!(&seen, spans);
                assert!(frame.verdicts(index).is_err());
            }
            PlainRecord::Verdicts(verdicts) => {
                let mut sorted = verdicts.clone();
                sorted.sort_by(|a, b| (&a.tenant, a.trace_id).cmp(&(&b.tenant, b.trace_id)));
                assert_eq!(frame.verdicts(index).unwrap(), sorted);
                assert_eq!(frame.span_count(index), 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn records_come_back(frames in vec(vec(record(), 0..6), 1..4)) {
        let mut builder = FrameBuilder::new(1).unwrap();
        for records in &frames {
            let encoded = encode(&mut builder, records);
            check(&Frame::decode(encoded.bytes()).unwrap(), records);
            let received = EncodedFrame::parse(encoded.bytes().clone()).unwrap();
            prop_assert_eq!(received.ranges(), encoded.ranges());
            prop_assert_eq!(received.raw_bytes(), encoded.raw_bytes());
        }
    }

    #[test]
    fn no_changed_byte_passes(records in vec(record(), 1..4), at: prop::sample::Index, mask in 1..=255_u8) {
        let encoded = encode(&mut FrameBuilder::new(1).unwrap(), &records);
        let mut bytes = encoded.bytes().to_vec();
        *at.get_mut(&mut bytes) ^= mask;
        // The one byte that is reserved is checked too.
        prop_assert!(Frame::decode(&bytes).is_err());
        let cut = at.index(encoded.bytes().len());
        prop_assert!(Frame::decode(&encoded.bytes()[..cut]).is_err());
    }

    /// Behind a right checksum anything may stand: a replica of a later version, or one gone mad.
    #[test]
    fn any_raw_bytes_are_decoded_without_panic(raw in vec(any::<u8>(), 0..300), tail in 0..300_u32, kinds in 0..4_u8) {
        sealed_frame::read_all(&sealed_frame::seal(kinds, tail, &raw));
    }

    #[test]
    fn damaged_content_is_decoded_without_panic(records in vec(record(), 1..4), at: prop::sample::Index, mask in 1..=255_u8) {
        let encoded = encode(&mut FrameBuilder::new(1).unwrap(), &records);
        let (kinds, tail, mut raw) = sealed_frame::unseal(&encoded);
        *at.get_mut(&mut raw) ^= mask;
        sealed_frame::read_all(&sealed_frame::seal(kinds, tail, &raw));
    }
}

#[test]
fn resources_are_stored_once_for_all_shards_and_requests_of_a_frame() {
    // Given the same request twice, as two buffers, each cut into 8 shards
    let mut numbers = Numbers(3);
    let request = support::request(&mut numbers, 64);
    let mut builder = FrameBuilder::new(1).unwrap();
    let mut sizes = Vec::new();
    for copies in 1..=2 {
        for copy in 0..copies {
            let batch = scan(Bytes::from(request.to_vec()), "default", NOW + copy);
            for shard in 0..8 {
                let spans: Vec<u32> = (0..64).filter(|span| span % 8 == shard).collect();
                let lsn = Lsn(copy + 1);
                builder
                    .push_spans(ShardId(shard as u16), Term(1), lsn, &batch, &spans)
                    .unwrap();
            }
        }
        let frame = builder.finish().unwrap();
        let spans: usize = scan(request.clone(), "default", NOW)
            .spans
            .iter()
            .map(|span| span.span.len as usize)
            .sum();
        sizes.push(frame.raw_bytes() - copies as usize * spans);
    }
    // Then the second copy adds rows and heads, but no resource
    assert!(sizes[0] > 1_500, "{sizes:?}");
    assert!(sizes[1] < sizes[0] + 8 * 30 + 64 * 6, "{sizes:?}");
}

#[test]
fn records_that_arrived_together_are_read_as_one_batch() {
    // given: two requests of two tenants, each cut into 8 shards, and a verdict between them
    let mut numbers = Numbers(5);
    let mut builder = FrameBuilder::new(1).unwrap();
    for (at, name) in [(0, "default"), (1, "team-a")] {
        let request = support::request(&mut numbers, 64);
        let batch = scan(request, name, NOW + at);
        for shard in 0..8 {
            let spans: Vec<u32> = (0..64).filter(|span| span % 8 == shard).collect();
            let shard = ShardId(shard as u16);
            let pushed = builder.push_spans(shard, Term(1), Lsn(at + 1), &batch, &spans);
            pushed.unwrap();
        }
        let verdict = dropped(&mut numbers, name, 1);
        let pushed = builder.push_verdicts(ShardId(9), Term(1), Lsn(at + 1), &[verdict]);
        pushed.unwrap();
    }
    let frame = Frame::decode(builder.finish().unwrap().bytes()).unwrap();

    // when all of it is read at once, then each record has the spans that it has when it is read alone
    let together = frame.batches(&support::interests()).unwrap();
    assert_eq!(together.len(), 2);
    let mut seen = 0;
    for one in &together {
        for (number, rows) in &one.records {
            let alone = frame.batch(*number, &support::interests()).unwrap();
            assert_eq!(one.batch.tenant, alone.tenant);
            assert_eq!(one.batch.received_at, alone.received_at);
            assert_eq!(rows.len(), alone.spans.len());
            for (row, span) in rows.clone().zip(&alone.spans) {
                let same = &one.batch.spans[row];
                assert_eq!(one.batch.bytes(same.span), alone.bytes(span.span));
                assert_eq!((same.trace_id, same.span_id), (span.trace_id, span.span_id));
                let (here, there) = (one.batch.context(same), alone.context(span));
                assert_eq!(one.batch.bytes(here.service), alone.bytes(there.service));
            }
            seen += rows.len();
        }
    }
    assert_eq!(seen, 128);
}

#[test]
fn a_full_frame_refuses_and_stays_as_it_was() {
    let batch = to_batch(
        &tenant("default"),
        UnixNanos(NOW),
        &[(TraceId([7; 16]), vec![], vec![], vec![3; 1 << 20])],
    );
    let mut builder = FrameBuilder::new(1).unwrap();
    let push = |builder: &mut FrameBuilder, spans: &[u32]| {
        builder.push_spans(ShardId(1), Term(1), Lsn(1), &batch, spans)
    };
    push(&mut builder, &[0; 100]).unwrap();
    let before = builder.raw_bytes();
    assert!(push(&mut builder, &[0; 40]).is_err());
    assert_eq!(builder.raw_bytes(), before);
    let frame = builder.finish().unwrap();
    assert_eq!(Frame::decode(frame.bytes()).unwrap().span_count(0), 100);
}

/// The file was written by the first version of the format: every later version must read it.
#[test]
fn the_golden_frame_is_read_and_written_alike() {
    let mut numbers = Numbers(42);
    let spans = batch(&mut numbers, "team-a", 12);
    let verdicts: Vec<_> = (0..5)
        .map(|n| dropped(&mut numbers, "team-b", 1_000 + n))
        .collect();
    let mut builder = FrameBuilder::new(1).unwrap();
    builder
        .push_spans(ShardId(5), Term(3), Lsn(9_000), &spans, &all(&spans))
        .unwrap();
    builder
        .push_verdicts(ShardId(5), Term(3), Lsn(9_001), &verdicts)
        .unwrap();
    builder
        .push_spans(ShardId(63), Term(1), Lsn(1), &spans, &[0, 3])
        .unwrap();
    let written = builder.finish().unwrap();

    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/journal-frame-1.bin"
    );
    #[allow(clippy::disallowed_methods)] // asks for a new golden file
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, written.bytes()).unwrap();
    }
    let golden = Bytes::from(std::fs::read(path).unwrap());

    // The compressed bytes may change with zstd; the content and the header may not.
    let raw = |bytes: &[u8]| zstd::bulk::decompress(&bytes[20..], 1 << 20).unwrap();
    assert_eq!(golden[..12], written.bytes()[..12]);
    assert_eq!(raw(&golden), raw(written.bytes()));
    let frame = EncodedFrame::parse(golden.clone()).unwrap();
    let range = |shard, first, last| LsnRange {
        shard: ShardId(shard),
        first: Lsn(first),
        last: Lsn(last),
    };
    assert_eq!(frame.ranges(), [range(5, 9_000, 9_001), range(63, 1, 1)]);
    let frame = Frame::decode(&golden).unwrap();
    assert_eq!(frame.tenant(0), Some(&tenant("team-a")));
    assert_eq!(frame.span_count(2), 2);
    let mut sorted = verdicts;
    sorted.sort_by_key(|verdict| verdict.trace_id);
    assert_eq!(frame.verdicts(1).unwrap(), sorted);
}
