//! Each change that a scan makes: limits, times, ids, and the actions of the attribute policy.
#![allow(clippy::unwrap_used)]

mod otlp_support;

use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use otlp_support::build::{attribute, of_resource, request, resource_spans, span, text};
use otlp_support::{RECEIVED_AT, oracle};
use prost::Message;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::interest::Interests;
use spandrel_model::limits::{
    MAX_ATTRIBUTE_KEY_BYTES, MAX_ATTRIBUTE_VALUE_BYTES, MAX_SPAN_ATTRIBUTES, MAX_SPAN_EVENTS,
    MAX_SPAN_LINKS, MAX_TIME_AHEAD_NANOS, MIN_TIME_NANOS,
};
use spandrel_model::otlp::{
    AttributeAction, AttributePolicy, AttributeRule, CHANGED_KEY, ChangeReason, ScanRules, Scanned,
    scan_request,
};

/// The first span as it is stored.
fn stored(scanned: &Scanned) -> Span {
    let batch = &scanned.batch;
    Span::decode(batch.bytes(batch.spans[0].span)).unwrap()
}

/// Scans the one span and compares what is stored and counted.
fn check(given: Span, reason: ChangeReason, count: u64, expected: Span) {
    let request = request(vec![given]);
    let scanned = oracle::scan(&request).unwrap();
    assert_eq!(
        scanned.changed.iter().collect::<Vec<_>>(),
        [(reason, count)]
    );
    let mut expected = expected;
    expected.attributes.push(text(CHANGED_KEY, reason.as_str()));
    assert_eq!(stored(&scanned), expected);
    assert!(scanned.batch.buffer.starts_with(&request));
    oracle::check(&request);
}

fn with_attributes(attributes: Vec<KeyValue>) -> Span {
    Span {
        attributes,
        ..span(1)
    }
}

fn array(values: Vec<Value>) -> Value {
    Value::ArrayValue(ArrayValue {
        values: values
            .into_iter()
            .map(|value| AnyValue { value: Some(value) })
            .collect(),
    })
}

#[test]
fn nothing_is_copied_when_nothing_is_changed() {
    let request = Bytes::from(request(vec![span(1)]));
    let pointer = request.as_ptr();
    let scanned = scan_request(
        request,
        TenantId::default(),
        UnixNanos(RECEIVED_AT),
        &otlp_support::rules(),
    )
    .unwrap();
    assert!(scanned.changed.is_empty());
    assert_eq!(scanned.batch.buffer.as_ptr(), pointer);
    assert_eq!(stored(&scanned), span(1));
}

#[test]
fn long_text_is_cut_at_a_character() {
    let longest = "x".repeat(MAX_ATTRIBUTE_VALUE_BYTES - 1);
    let given = with_attributes(vec![
        text("http.route", &format!("{longest}ä")),
        text("other", &"y".repeat(MAX_ATTRIBUTE_VALUE_BYTES)),
        text("n", &"z".repeat(MAX_ATTRIBUTE_VALUE_BYTES + 1)),
    ]);
    let expected = with_attributes(vec![
        text("http.route", &longest),
        text("other", &"y".repeat(MAX_ATTRIBUTE_VALUE_BYTES)),
        text("n", &"z".repeat(MAX_ATTRIBUTE_VALUE_BYTES)),
    ]);
    check(given, ChangeReason::ValueTruncated, 2, expected);
}

#[test]
fn long_bytes_and_arrays_are_cut() {
    let entry = || Value::StringValue("x".repeat(600));
    let given = with_attributes(vec![
        attribute("raw", Value::BytesValue(vec![1; 3_000])),
        attribute("list", array(vec![entry(), entry(), entry(), entry()])),
        attribute("one", array(vec![Value::StringValue("x".repeat(3_000))])),
        attribute("short", array(vec![entry()])),
    ]);
    let expected = with_attributes(vec![
        attribute("raw", Value::BytesValue(vec![1; MAX_ATTRIBUTE_VALUE_BYTES])),
        attribute("list", array(vec![entry(), entry(), entry()])),
        attribute("one", array(vec![])),
        attribute("short", array(vec![entry()])),
    ]);
    let request = request(vec![given]);
    let scanned = oracle::scan(&request).unwrap();
    assert_eq!(scanned.changed.count(ChangeReason::ValueTruncated), 3);
    assert_eq!(stored(&scanned).attributes[..4], expected.attributes);
}

#[test]
fn attributes_past_their_number_are_dropped_and_counted() {
    let attributes = |count: usize| {
        (0..count)
            .map(|number| text(&format!("key {number}"), "value"))
            .collect()
    };
    let given = Span {
        dropped_attributes_count: 7,
        ..with_attributes(attributes(MAX_SPAN_ATTRIBUTES + 2))
    };
    let expected = Span {
        dropped_attributes_count: 9,
        ..with_attributes(attributes(MAX_SPAN_ATTRIBUTES))
    };
    check(given, ChangeReason::AttributeDropped, 2, expected);
    let full = request(vec![with_attributes(attributes(MAX_SPAN_ATTRIBUTES))]);
    assert!(oracle::scan(&full).unwrap().changed.is_empty());
}

#[test]
fn attributes_with_too_long_a_key_are_dropped_and_counted() {
    let long = "k".repeat(MAX_ATTRIBUTE_KEY_BYTES + 1);
    check(
        with_attributes(vec![text(&long, "a"), text("b", "b")]),
        ChangeReason::AttributeDropped,
        1,
        Span {
            dropped_attributes_count: 1,
            ..with_attributes(vec![text("b", "b")])
        },
    );
}

#[test]
fn events_and_links_past_their_number_are_dropped_and_counted() {
    let events = |count| Span {
        events: vec![Event::default(); count],
        ..span(1)
    };
    let links = |count| Span {
        links: vec![Link::default(); count],
        ..span(1)
    };
    check(
        events(MAX_SPAN_EVENTS + 3),
        ChangeReason::EventDropped,
        3,
        Span {
            dropped_events_count: 3,
            ..events(MAX_SPAN_EVENTS)
        },
    );
    check(
        links(MAX_SPAN_LINKS + 1),
        ChangeReason::LinkDropped,
        1,
        Span {
            dropped_links_count: 1,
            ..links(MAX_SPAN_LINKS)
        },
    );
}

#[test]
fn attributes_of_events_and_links_keep_to_the_limits() {
    let event = |len| Event {
        name: "exception".to_owned(),
        attributes: vec![text("exception.stacktrace", &"x".repeat(len))],
        ..Event::default()
    };
    let link = |len| Link {
        span_id: vec![1; 8],
        attributes: vec![text("why", &"x".repeat(len))],
        ..Link::default()
    };
    let with = |len| Span {
        events: vec![event(1), event(len)],
        links: vec![link(1), link(len)],
        ..span(1)
    };
    check(
        with(3_000),
        ChangeReason::ValueTruncated,
        2,
        with(MAX_ATTRIBUTE_VALUE_BYTES),
    );
}

#[test]
fn short_trace_ids_are_padded_and_not_marked() {
    let given = Span {
        trace_id: vec![9; 8],
        ..span(1)
    };
    let scanned = oracle::scan(&request(vec![given])).unwrap();
    let padded = [vec![0; 8], vec![9; 8]].concat();
    assert_eq!(scanned.batch.spans[0].trace_id.0, padded.as_slice());
    assert_eq!(
        stored(&scanned),
        Span {
            trace_id: padded,
            ..span(1)
        }
    );
    assert_eq!(scanned.changed.count(ChangeReason::TraceIdPadded), 1);
    assert_eq!(scanned.changed.total(), 1);
}

#[test]
fn a_mark_that_a_span_came_with_is_merged() {
    let given = with_attributes(vec![
        text(CHANGED_KEY, "event_dropped,nonsense"),
        text("a", &"x".repeat(3_000)),
    ]);
    let scanned = oracle::scan(&request(vec![given])).unwrap();
    let attributes = stored(&scanned).attributes;
    assert_eq!(attributes.len(), 2);
    assert_eq!(
        attributes[1],
        text(CHANGED_KEY, "value_truncated,event_dropped")
    );
}

#[test]
fn times_are_brought_into_reason_in_the_header_alone() {
    let now = RECEIVED_AT;
    let ahead = now + MAX_TIME_AHEAD_NANOS;
    for (given, expected, reason) in [
        ((now - 5, now - 3), (now - 5, now - 3), None),
        ((ahead, ahead), (ahead, ahead), None),
        (
            (MIN_TIME_NANOS, MIN_TIME_NANOS),
            (MIN_TIME_NANOS, MIN_TIME_NANOS),
            None,
        ),
        (
            (now - 3, now - 5),
            (now - 3, now - 3),
            Some(ChangeReason::EndBeforeStart),
        ),
        (
            (now - 3, 0),
            (now - 3, now - 3),
            Some(ChangeReason::EndBeforeStart),
        ),
        ((0, 0), (now, now), Some(ChangeReason::TimeClamped)),
        (
            (0, now + 9),
            (now, now + 9),
            Some(ChangeReason::TimeClamped),
        ),
        ((0, now - 9), (now, now), Some(ChangeReason::TimeClamped)),
        (
            (MIN_TIME_NANOS - 1, ahead + 1),
            (now, now),
            Some(ChangeReason::TimeClamped),
        ),
        (
            (ahead + 1, ahead + 2),
            (now, now),
            Some(ChangeReason::TimeClamped),
        ),
        (
            (now - 3, ahead + 1),
            (now - 3, now),
            Some(ChangeReason::TimeClamped),
        ),
        (
            (now + 3, ahead + 1),
            (now + 3, now + 3),
            Some(ChangeReason::TimeClamped),
        ),
    ] {
        let span = Span {
            start_time_unix_nano: given.0,
            end_time_unix_nano: given.1,
            ..span(1)
        };
        let scanned = oracle::scan(&request(vec![span.clone()])).unwrap();
        let header = scanned.batch.spans[0];
        assert_eq!((header.start.0, header.end.0), expected, "{given:?}");
        assert_eq!(
            scanned.changed.iter().next(),
            reason.map(|reason| (reason, 1))
        );
        assert_eq!(stored(&scanned), span);
    }
}

fn scan_with(rules: &[(&str, AttributeAction)], request: Vec<u8>) -> Scanned {
    let policy = AttributePolicy {
        rules: rules
            .iter()
            .map(|&(key, action)| AttributeRule {
                key: key.to_owned(),
                action,
            })
            .collect(),
    };
    let interests = Interests::new(["http.route", "n"], []);
    scan_request(
        Bytes::from(request),
        TenantId::default(),
        UnixNanos(RECEIVED_AT),
        &ScanRules::new(Arc::new(interests), &policy),
    )
    .unwrap()
}

#[test]
fn the_policy_drops_hashes_and_truncates() {
    let given = with_attributes(vec![
        text("user.email", "a@example.org"),
        text("user.id", "17"),
        attribute("n", Value::IntValue(17)),
        text("http.route", "/cartä"),
        text("short", "abc"),
    ]);
    let rules = [
        ("user.email", AttributeAction::Drop),
        ("user.*", AttributeAction::Hash),
        ("n", AttributeAction::Hash),
        ("http.route", AttributeAction::Truncate { max_bytes: 6 }),
        ("short", AttributeAction::Truncate { max_bytes: 3 }),
    ];
    let scanned = scan_with(&rules, request(vec![given]));
    // XXH3-64 of `17`, whether it came as text or as an integer.
    let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(b"17"));
    assert_eq!(
        stored(&scanned),
        with_attributes(vec![
            text("user.id", &hash),
            text("n", &hash),
            text("http.route", "/cart"),
            text("short", "abc"),
            text(CHANGED_KEY, "policy_dropped,policy_hashed,policy_truncated"),
        ])
    );
    let header = scanned.batch.spans[0];
    let texts: Vec<_> = scanned
        .batch
        .attributes(header.attributes)
        .iter()
        .map(|found| spandrel_model::otlp::RawValue::of(found.value, &scanned.batch.buffer))
        .map(|value| value.text().unwrap().into_owned())
        .collect();
    assert_eq!(texts, [hash.as_str(), "/cart"]);
    let counts: Vec<_> = scanned.changed.iter().map(|(_, count)| count).collect();
    assert_eq!(counts, [1, 2, 1]);
}

#[test]
fn the_policy_holds_for_resources_scopes_events_and_links() {
    let secret = || vec![text("secret", "s")];
    let mut given = resource_spans(vec![Span {
        events: vec![Event {
            attributes: secret(),
            ..Event::default()
        }],
        links: vec![Link {
            attributes: secret(),
            ..Link::default()
        }],
        ..span(1)
    }]);
    given.resource.as_mut().unwrap().attributes.extend(secret());
    let scope = given.scope_spans[0].scope.as_mut().unwrap();
    scope.attributes = secret();
    let scanned = scan_with(&[("secret", AttributeAction::Drop)], of_resource(given));
    assert_eq!(scanned.changed.count(ChangeReason::PolicyDropped), 4);
    let batch = &scanned.batch;
    let span = stored(&scanned);
    assert!(span.events[0].attributes.is_empty());
    assert!(span.links[0].attributes.is_empty());
    let context = batch.contexts[0];
    assert_eq!(batch.text(context.service), "cart");
    let mark = text(CHANGED_KEY, "policy_dropped");
    let resource = Resource::decode(batch.bytes(context.resource)).unwrap();
    let expected = [
        text("service.name", "cart"),
        text("host.name", "a"),
        mark.clone(),
    ];
    assert_eq!(resource.attributes, expected);
    let scope = opentelemetry_proto::tonic::common::v1::InstrumentationScope::decode(
        batch.bytes(context.scope),
    )
    .unwrap();
    assert_eq!(scope.attributes, [mark]);
}

#[test]
fn a_policy_that_drops_the_service_name_leaves_the_service_empty() {
    let scanned = scan_with(
        &[("service.*", AttributeAction::Drop)],
        request(vec![span(1)]),
    );
    let context = scanned.batch.contexts[0];
    assert!(scanned.batch.bytes(context.service).is_empty());
}

#[test]
fn text_that_the_policy_removes_need_not_be_utf8() {
    let bad = otlp_support::generate::bytes_field;
    let value = bad(2, &bad(1, &[0xff]));
    let attribute = bad(9, &[bad(1, b"http.route"), value].concat());
    let span = [span(1).encode_to_vec(), attribute].concat();
    let request = bad(1, &bad(2, &bad(2, &span)));
    let scanned = scan_with(&[("http.route", AttributeAction::Hash)], request);
    assert!(scanned.rejected.is_empty());
    assert_eq!(scanned.batch.spans.len(), 1);
}
