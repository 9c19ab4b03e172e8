//! Each reason for which a span is not taken, and that its neighbours are.
#![allow(clippy::unwrap_used)]

mod otlp_support;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use otlp_support::build::{attribute, of_resource, request, resource_spans, span, text};
use otlp_support::generate::bytes_field;
use otlp_support::oracle;
use prost::Message;
use spandrel_model::limits::{MAX_NAME_BYTES, MAX_SPAN_BYTES, MAX_VALUE_DEPTH};
use spandrel_model::otlp::RejectReason;

/// Puts the span between two good ones.
fn check(reason: RejectReason, bad: &[u8]) {
    let good = |id| bytes_field(2, &span(id).encode_to_vec());
    let scope_spans = [good(1), bytes_field(2, bad), good(3)].concat();
    let request = bytes_field(1, &bytes_field(2, &scope_spans));
    let scanned = oracle::scan(&request).unwrap();
    let taken: Vec<u8> = scanned
        .batch
        .spans
        .iter()
        .map(|span| span.span_id.0[0])
        .collect();
    assert_eq!(taken, [1, 3], "{reason:?}");
    let rejected: Vec<_> = scanned.rejected.iter().collect();
    assert_eq!(rejected, [(reason, 1)]);
    // Nothing of the bad span is left behind: two spans with two attributes of interest each.
    assert_eq!(scanned.batch.attributes.len(), 4);
    oracle::check(&request);
}

fn check_span(reason: RejectReason, change: impl Fn(&mut Span)) {
    let mut bad = span(2);
    change(&mut bad);
    check(reason, &bad.encode_to_vec());
}

#[test]
fn trace_ids_that_are_absent_short_long_or_zero() {
    for id in [
        vec![],
        vec![1; 7],
        vec![1; 15],
        vec![1; 17],
        vec![0; 16],
        vec![0; 8],
    ] {
        check_span(RejectReason::InvalidTraceId, |span| {
            span.trace_id.clone_from(&id);
        });
    }
}

#[test]
fn span_ids_that_are_absent_short_long_or_zero() {
    for id in [vec![], vec![1; 7], vec![1; 16], vec![0; 8]] {
        check_span(RejectReason::InvalidSpanId, |span| {
            span.span_id.clone_from(&id);
        });
    }
}

#[test]
fn parents_of_another_length() {
    for id in [vec![1; 7], vec![1; 16]] {
        check_span(RejectReason::InvalidParentSpanId, |span| {
            span.parent_span_id.clone_from(&id);
        });
    }
}

#[test]
fn an_absent_or_zero_parent_is_a_root() {
    for parent in [vec![], vec![0; 8]] {
        let root = Span {
            parent_span_id: parent,
            ..span(1)
        };
        let scanned = oracle::scan(&request(vec![root])).unwrap();
        assert!(scanned.batch.spans[0].parent_span_id.is_zero());
    }
}

#[test]
fn names_past_their_limit() {
    check_span(RejectReason::NameTooLong, |span| {
        span.name = "x".repeat(MAX_NAME_BYTES + 1);
    });
    let longest = Span {
        name: "x".repeat(MAX_NAME_BYTES),
        ..span(1)
    };
    let scanned = oracle::scan(&request(vec![longest])).unwrap();
    assert!(scanned.rejected.is_empty());
}

/// One that did not compress could not be sent to another node: its shard stood still, and with it all others that wait
/// for that node.
#[test]
fn spans_too_large_for_a_message_between_nodes() {
    check_span(RejectReason::SpanTooLarge, |span| {
        span.trace_state = "x".repeat(MAX_SPAN_BYTES);
    });
    // its resource counts as well, to the byte
    let taken = |bytes: usize| {
        let mut large = span(1);
        large.trace_state = "x".repeat(400_000);
        let mut resource = resource_spans(vec![large.clone()]);
        resource.schema_url = "u".repeat(bytes - large.encoded_len());
        let scope = &mut resource.scope_spans[0];
        scope.scope = None;
        scope.schema_url.clear();
        resource.resource = None;
        let scanned = oracle::scan(&of_resource(resource)).unwrap();
        assert_eq!(
            scanned.batch.spans.len() as u64 + scanned.rejected.total(),
            1
        );
        scanned.rejected.is_empty()
    };
    assert!(taken(MAX_SPAN_BYTES));
    assert!(!taken(MAX_SPAN_BYTES + 1));
    // and what is cut fits
    let cut = Span {
        attributes: vec![text("long", &"x".repeat(2 * MAX_SPAN_BYTES))],
        ..span(1)
    };
    assert!(
        oracle::scan(&request(vec![cut]))
            .unwrap()
            .rejected
            .is_empty()
    );
    assert!(
        RejectReason::SpanTooLarge
            .description()
            .contains(&MAX_SPAN_BYTES.to_string())
    );
}

#[test]
fn text_that_somebody_compares_and_that_is_not_utf8() {
    let good = span(2).encode_to_vec();
    let bad_attribute = |key: &[u8]| {
        let value = bytes_field(2, &bytes_field(1, &[0xff]));
        bytes_field(9, &[bytes_field(1, key), value].concat())
    };
    for bad in [
        bytes_field(3, &[0xff]),
        bytes_field(5, &[0xff]),
        bad_attribute(b"http.route"),
    ] {
        check(
            RejectReason::InvalidUtf8,
            &[good.clone(), bad.clone()].concat(),
        );
    }
    // Nobody compares this one.
    let span = [good, bad_attribute(b"peer")].concat();
    let request = bytes_field(1, &bytes_field(2, &bytes_field(2, &span)));
    assert!(oracle::scan(&request).unwrap().rejected.is_empty());
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::IntValue(1), |inner, _| {
        Value::ArrayValue(ArrayValue {
            values: vec![AnyValue { value: Some(inner) }],
        })
    })
}

#[test]
fn values_nested_past_their_limit() {
    check_span(RejectReason::NestedTooDeep, |span| {
        span.attributes
            .push(attribute("deep", nested(MAX_VALUE_DEPTH + 1)));
    });
    let deepest = Span {
        attributes: vec![attribute("deep", nested(MAX_VALUE_DEPTH))],
        ..span(1)
    };
    let scanned = oracle::scan(&request(vec![deepest])).unwrap();
    assert!(scanned.rejected.is_empty());
}

#[test]
fn spans_whose_bytes_are_no_span() {
    let good = span(2).encode_to_vec();
    for (what, bad) in [
        ("cut off", vec![0x0a, 0x10, 1]),
        ("field 0", vec![0x02, 0x00]),
        ("wire type 7", vec![0x0f]),
        ("wrong wire type", vec![0x08, 0x01]),
        ("group without end", vec![0xa3, 0x01]),
        ("end without group", vec![0xa4, 0x01]),
        ("long varint", [vec![0x30], vec![0xff; 10]].concat()),
        ("attribute that is cut off", bytes_field(9, &[0x0a, 5])),
        (
            "event whose time is no fixed64",
            bytes_field(11, &[0x08, 1]),
        ),
        ("link with a number for an id", bytes_field(13, &[0x08, 1])),
        ("status with text for a code", bytes_field(15, &[0x1a, 0])),
    ] {
        let bad = [good.clone(), bad].concat();
        assert!(Span::decode(bad.as_slice()).is_err(), "{what}");
        check(RejectReason::Malformed, &bad);
    }
}

#[test]
fn all_spans_of_a_resource_that_is_bad_in_itself() {
    for (reason, service) in [
        (RejectReason::NameTooLong, vec![b'x'; MAX_NAME_BYTES + 1]),
        (RejectReason::InvalidUtf8, vec![0xff]),
    ] {
        let value = bytes_field(2, &bytes_field(1, &service));
        let service = bytes_field(1, &[bytes_field(1, b"service.name"), value].concat());
        let spans = bytes_field(2, &bytes_field(2, &span(1).encode_to_vec()).repeat(2));
        let bad = bytes_field(1, &[bytes_field(1, &service), spans].concat());
        let request = [bad, request(vec![span(3)])].concat();
        let scanned = oracle::scan(&request).unwrap();
        assert_eq!(scanned.rejected.iter().collect::<Vec<_>>(), [(reason, 2)]);
        assert_eq!(scanned.batch.spans.len(), 1);
        oracle::check(&request);
    }
    let mut deep = resource_spans(vec![span(1)]);
    deep.scope_spans[0]
        .scope
        .as_mut()
        .unwrap()
        .attributes
        .push(attribute("deep", nested(MAX_VALUE_DEPTH + 1)));
    let mut resource = resource_spans(vec![span(1)]);
    resource
        .resource
        .as_mut()
        .unwrap()
        .attributes
        .push(attribute("deep", nested(MAX_VALUE_DEPTH + 1)));
    for bad in [deep, resource] {
        let scanned = oracle::scan(&of_resource(bad)).unwrap();
        assert_eq!(scanned.rejected.count(RejectReason::NestedTooDeep), 1);
        assert!(scanned.batch.spans.is_empty());
    }
}

#[test]
fn requests_that_are_none() {
    for (part, request) in [
        ("ExportTraceServiceRequest", vec![0x0a, 9]),
        ("ResourceSpans", bytes_field(1, &[0x0a, 9])),
        ("Resource", bytes_field(1, &bytes_field(1, &[0x08, 1]))),
        ("ScopeSpans", bytes_field(1, &bytes_field(2, &[0x12, 9]))),
        (
            "InstrumentationScope",
            bytes_field(1, &bytes_field(2, &bytes_field(1, &[0x08, 1]))),
        ),
    ] {
        let error = oracle::scan(&request).unwrap_err();
        assert_eq!(error.part, part, "{error}");
        oracle::check(&request);
    }
}

/// The fuzzer sent a resource in two parts, the first of which ended inside a fixed field. The parts were joined before
/// they were read, so the second completed the field, and a request that prost refuses was taken.
#[test]
fn a_resource_or_scope_in_parts_of_which_one_is_cut_off() {
    let parts = |number, first: &[u8], second: &[u8]| {
        let first = bytes_field(number, first);
        [first, bytes_field(number, second)].concat()
    };
    // Unknown field 5, fixed64, with 3 of its 8 bytes; then the other 5; then a group that begins here and ends there.
    let cut_off: [(&[u8], &[u8]); 2] = [
        (&[0x29, 1, 2, 3], &[4, 5, 6, 7, 8]),
        (&[0xa3, 1], &[0xa4, 1]),
    ];
    for (first, second) in cut_off {
        let span = bytes_field(2, &span(1).encode_to_vec());
        let of_resource = [parts(1, first, second), bytes_field(2, &span)].concat();
        let of_scope = bytes_field(2, &[parts(1, first, second), span].concat());
        for resource_spans in [of_resource, of_scope] {
            let request = bytes_field(1, &resource_spans);
            assert!(oracle::scan(&request).is_err(), "{request:x?}");
            oracle::check(&request);
        }
    }
}

#[test]
fn a_request_without_spans_leaves_nothing_behind() {
    let mut empty = resource_spans(vec![]);
    empty.scope_spans = vec![empty.scope_spans[0].clone(); 9];
    empty
        .resource
        .as_mut()
        .unwrap()
        .attributes
        .push(text("n", "1"));
    let scanned = oracle::scan(&of_resource(empty)).unwrap();
    assert!(scanned.batch.contexts.is_empty());
    assert!(scanned.batch.attributes.is_empty());
    assert!(oracle::scan(&[]).unwrap().batch.spans.is_empty());
}
