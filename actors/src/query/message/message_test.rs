//! What nodes tell each other comes back as it was, and no bytes make a decoder panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::error::{ErrorClass, PortError};
use spandrel_model::ids::{NodeId, ShardId, SpanId, TenantId, TraceId, UnixNanos};
use spandrel_model::ports::{DecisionView, TraceAbsence};
use spandrel_model::search::{
    Cursor, FoundTrace, MissingPart, Name, NamesAnswer, NamesKind, NamesRequest, Receipt,
    SearchAnswer, SearchFilter, SearchRequest, TagCondition, TraceState,
};
use spandrel_model::verdict::{Trigger, Verdict};

use super::super::found::{NamesPart, Reached, SearchPart};
use super::super::part::NodePart;
use super::message_oracle::check_any;
use super::*;
use crate::limits::MAX_ANSWER_BYTES;
use crate::wire::{QueryAnswer, QueryRequest, TracePiece, query_answer, query_request};

const SHARDS: u16 = 64;

fn parts() -> impl Strategy<Value = NodePart> {
    let shards = || vec((0..SHARDS).prop_map(ShardId), 1..9);
    (shards(), shards()).prop_map(|(live, stored)| {
        let mut part = NodePart::default();
        live.into_iter().for_each(|shard| part.add_live(shard));
        part.stored.extend(&stored.into_iter().collect());
        part
    })
}

fn statuses() -> impl Strategy<Value = StatusCode> {
    (0..3).prop_map(StatusCode::from_wire)
}

fn trace_ids() -> impl Strategy<Value = TraceId> {
    any::<[u8; 16]>()
        .prop_filter("an id", |id| *id != [0; 16])
        .prop_map(TraceId)
}

fn cursors() -> impl Strategy<Value = Cursor> {
    (any::<u64>(), any::<[u8; 16]>()).prop_map(|(start, id)| Cursor {
        start: UnixNanos(start),
        trace_id: TraceId(id),
    })
}

fn filters() -> impl Strategy<Value = SearchFilter> {
    let tags = vec((".{0,9}", ".{0,9}"), 0..3);
    let conditions = (
        vec(".{0,9}", 0..3),
        option::of(".{0,9}"),
        option::of(statuses()),
        tags,
    );
    let numbers = (
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        any::<u64>(),
        any::<u64>(),
    );
    (conditions, numbers).prop_map(
        |((services, operation, status, tags), (min_duration, max_duration, from, to))| {
            SearchFilter {
                services,
                operation,
                status,
                tags: tags
                    .into_iter()
                    .map(|(key, value)| TagCondition { key, value })
                    .collect(),
                min_duration,
                max_duration,
                from: UnixNanos(from),
                to: UnixNanos(to),
            }
        },
    )
}

fn found() -> impl Strategy<Value = FoundTrace> {
    let states = prop_oneof![
        Just(TraceState::Open),
        Just(TraceState::Kept),
        Just(TraceState::Dropped)
    ];
    let texts = (".{0,9}", ".{0,9}", vec(".{0,9}", 0..4));
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>());
    let lead = any::<prop::sample::Index>();
    let spans = vec(any::<[u8; 8]>().prop_map(SpanId), 0..20);
    let flags = (statuses(), states);
    (trace_ids(), texts, numbers, lead, flags, spans).prop_map(
        |(trace_id, texts, numbers, lead, (status, state), matched_spans)| FoundTrace {
            trace_id,
            root_service: texts.0,
            root_operation: texts.1,
            services: texts.2,
            start: UnixNanos(numbers.0),
            earliest: UnixNanos(lead.index(usize::MAX) as u64).min(UnixNanos(numbers.0)),
            duration: numbers.1,
            span_count: numbers.2,
            error_count: numbers.3,
            status,
            state,
            matched_spans,
        },
    )
}

fn missing() -> impl Strategy<Value = Vec<MissingPart>> {
    let one = (
        any::<u64>(),
        vec(any::<u16>(), 0..4),
        any::<u64>(),
        any::<u64>(),
        ".{0,9}",
    );
    let one = one.prop_map(|(node, shards, from, to, reason)| MissingPart {
        node: NodeId(node),
        shards: shards.into_iter().map(ShardId).collect(),
        from: UnixNanos(from),
        to: UnixNanos(to),
        reason,
    });
    vec(one, 0..4)
}

fn receipts() -> impl Strategy<Value = Receipt> {
    (missing(), any::<[u64; 5]>()).prop_map(|(missing, numbers)| Receipt {
        complete: missing.is_empty(),
        from: UnixNanos(numbers[0]),
        to: UnixNanos(numbers[1]),
        index_watermark: UnixNanos(numbers[2]),
        missing,
        inspected_spans: numbers[3],
        inspected_bytes: numbers[4],
    })
}

fn decisions() -> impl Strategy<Value = DecisionView> {
    let numbers = (any::<u32>(), 0.0f64..=1.0, any::<u64>());
    (
        any::<bool>(),
        ".{0,9}",
        0u8..7,
        numbers,
        option::of(any::<u64>()),
    )
        .prop_map(
            |(keep, policy, trigger, (policy_version, probability, at), until)| DecisionView {
                verdict: if keep { Verdict::Keep } else { Verdict::Drop },
                policy,
                trigger: Trigger::from_number(trigger).unwrap(),
                policy_version,
                probability,
                decided_at: UnixNanos(at),
                recoverable_until: until.map(UnixNanos),
            },
        )
}

/// Through bytes and back.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #[test]
    fn searches_come_as_they_were_asked(
        filter in filters(),
        part in parts(),
        cursor in option::of(cursors()),
        limit in 1usize..=1_000,
        include_dropped in any::<bool>(),
    ) {
        let request = SearchRequest {
            tenant: TenantId::default(),
            filter,
            limit,
            cursor,
            include_dropped,
            timeout_ms: 7,
        };
        let question = sent(&encode_request(&request, &part));
        let decoded = decode_request(question, TenantId::default(), SHARDS, 7).unwrap();
        prop_assert_eq!(decoded, (request, part));
    }

    #[test]
    fn results_come_as_they_were_found(
        traces in vec(found(), 0..5),
        receipt in receipts(),
        end in any::<bool>(),
        reached in option::of(cursors()),
        damage in missing(),
    ) {
        let damage = damage.into_iter().next();
        let reached = if end { Reached::End } else { Reached::Until(reached) };
        let filter = SearchFilter {
            from: receipt.from,
            to: receipt.to,
            ..SearchFilter::default()
        };
        let answer = SearchAnswer { traces, next: None, receipt };
        let encoded = encode_search(SearchPart { answer: answer.clone(), reached, damage: damage.clone() });
        let decoded = decode_search(sent(&encoded), &filter).unwrap();
        prop_assert_eq!((decoded.answer, decoded.reached, decoded.damage), (answer, reached, damage));
    }

    #[test]
    fn names_come_as_they_were(
        names in vec((".{0,9}", option::of(0..6), option::of(0usize..6), option::of(any::<bool>())), 0..5),
        receipt in receipts(),
        part in parts(),
        of in ".{0,9}",
        kind in 0..4,
        damage in missing(),
    ) {
        let scopes = ["resource", "span", "string", "int", "double", "bool"];
        let names = names.into_iter().map(|(name, kind, scope, indexed)| Name {
            name,
            kind: kind.map(SpanKind::from_wire),
            scope: scope.map(|scope| scopes[scope]),
            indexed,
        });
        let request = NamesRequest {
            tenant: TenantId::default(),
            kind: match kind {
                0 => NamesKind::Services,
                1 => NamesKind::Operations { service: of.clone() },
                2 => NamesKind::Tags,
                _ => NamesKind::TagValues { key: of.clone() },
            },
            from: receipt.from,
            to: receipt.to,
            limit: 5,
            prefix: of,
        };
        let question = sent(&encode_names_request(&request, &part));
        let decoded = decode_names_request(question, TenantId::default(), SHARDS).unwrap();
        prop_assert_eq!(decoded, (request.clone(), part));
        let answer = NamesAnswer { names: names.collect(), receipt };
        let damage = damage.into_iter().next();
        let names = NamesPart { answer: answer.clone(), cut: false, damage: damage.clone() };
        let decoded = decode_names(sent(&encode_names(names)), &request).unwrap();
        prop_assert_eq!((decoded.answer, decoded.cut, decoded.damage), (answer, false, damage));
    }

    #[test]
    fn traces_come_as_they_are_held(
        decision in option::of(decisions()),
        missing in missing(),
        span_count in any::<u32>(),
        probability in 0..=1u64 << 32,
        reader in 0u64..3,
        bytes in vec(any::<u8>(), 0..9),
    ) {
        let found = OpenedTrace::Found(OpenedPart {
            state: TraceState::Kept,
            missing,
            decision: decision.clone(),
            span_count,
            probability,
            first: TracePiece { bytes: bytes.into(), goes_on: false, last: reader == 0 },
            reader,
        });
        let again = encode_trace(found);
        prop_assert_eq!(encode_trace(decode_trace(sent(&again)).unwrap()), again);
        let absence = decision.map_or(
            TraceAbsence::Unknown { retained_since: UnixNanos(probability) },
            TraceAbsence::Dropped,
        );
        let again = encode_trace(OpenedTrace::Absent(absence.clone()));
        prop_assert_eq!(decode_trace(sent(&again)).unwrap(), OpenedTrace::Absent(absence));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        check_any(&bytes);
    }

    /// Bytes that are nearly right go deeper than random ones.
    #[test]
    fn damaged_messages_are_read_or_refused(
        filter in filters(),
        part in parts(),
        traces in vec(found(), 0..3),
        receipt in receipts(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let request = SearchRequest {
            tenant: TenantId::default(),
            filter,
            limit: 3,
            cursor: None,
            include_dropped: false,
            timeout_ms: 7,
        };
        let question = QueryRequest {
            question: Some(query_request::Question::Search(encode_request(&request, &part))),
            ..QueryRequest::default()
        };
        let found = SearchPart {
            damage: receipt.missing.first().cloned(),
            answer: SearchAnswer { traces, next: None, receipt },
            reached: Reached::End,
        };
        let answer = QueryAnswer {
            answer: Some(query_answer::Answer::Search(encode_search(found))),
        };
        for mut bytes in [question.encode_to_vec(), answer.encode_to_vec()] {
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            check_any(&bytes);
        }
    }
}

#[test]
fn a_page_that_no_message_holds_is_cut_and_says_so() {
    let long = "x".repeat(1_024);
    let traces = (0..1_000u64).map(|number| FoundTrace {
        trace_id: TraceId((u128::from(number) + 1).to_be_bytes()),
        root_service: long.clone(),
        root_operation: long.clone(),
        start: UnixNanos(5_000 - number),
        earliest: UnixNanos(5_000 - number),
        duration: 0,
        status: StatusCode::Unset,
        span_count: 1,
        error_count: 0,
        services: vec![long.clone()],
        state: TraceState::Kept,
        matched_spans: Vec::new(),
    });
    let answer = SearchAnswer {
        traces: traces.collect(),
        ..SearchAnswer::default()
    };
    let encoded = encode_search(SearchPart {
        answer,
        reached: Reached::End,
        damage: None,
    });
    let bytes = encoded.encoded_len();
    assert!(bytes <= MAX_ANSWER_BYTES);
    let decoded = decode_search(encoded, &SearchFilter::default()).unwrap();
    let last = decoded.answer.traces.last().unwrap();
    assert!(decoded.answer.traces.len() < 1_000);
    assert_eq!(
        decoded.reached,
        Reached::Until(Some(Cursor {
            start: last.start,
            trace_id: last.trace_id
        }))
    );
}

#[test]
fn shards_that_do_not_exist_are_refused() {
    let refused = |live: Vec<u32>| {
        let part = crate::wire::ShardPart {
            live,
            stored: Vec::new(),
        };
        decode_part(Some(part), SHARDS).is_err()
    };
    assert!(refused(vec![64]) && refused(vec![u32::MAX]) && refused(vec![]));
    assert!(!refused(vec![63]));
    assert!(decode_part(None, SHARDS).is_err());
}

#[test]
fn refusals_keep_their_class_and_code() {
    let error = PortError::unavailable("memory", "no memory", 5);
    assert_eq!(decode_refusal(&encode_refusal(&error)), error);
    let unknown = PortError::new(ErrorClass::Timeout, "nobody_knows_it", "?");
    let decoded = decode_refusal(&encode_refusal(&unknown));
    assert_eq!(
        (decoded.class, decoded.code),
        (ErrorClass::Internal, "peer")
    );
}
