//! Both directions against the serde of `opentelemetry-proto`, where that is right, and by example where it is not.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::prelude::*;
use prost::Message;

use super::*;

fn read(json: &str) -> Result<ExportTraceServiceRequest, TranscodeError> {
    let bytes = transcode_request(json.as_bytes(), &mut |_| true)?;
    Ok(ExportTraceServiceRequest::decode(bytes).unwrap())
}

fn render(request: &ExportTraceServiceRequest) -> String {
    let elements = RenderedTraces::default().piece(&request.encode_to_vec());
    format!(
        "{{\"resourceSpans\":[{}]}}",
        String::from_utf8(elements).unwrap()
    )
}

fn span_of(json: &str) -> Span {
    let request = read(&format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{json}]}}]}}]}}"#
    ));
    request.unwrap().resource_spans[0].scope_spans[0].spans[0].clone()
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        Just(None),
        any::<String>().prop_map(|text| Some(Value::StringValue(text))),
        any::<bool>().prop_map(|bit| Some(Value::BoolValue(bit))),
        any::<i64>().prop_map(|number| Some(Value::IntValue(number))),
        prop_oneof![any::<f64>(), Just(0.0), Just(f64::INFINITY)]
            .prop_filter("nan is not equal to itself", |number| !number.is_nan())
            .prop_map(|number| Some(Value::DoubleValue(number))),
        any::<Vec<u8>>().prop_map(|bytes| Some(Value::BytesValue(bytes))),
    ]
    .prop_map(|value| AnyValue { value });
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|values| AnyValue {
                value: Some(Value::ArrayValue(ArrayValue { values })),
            }),
            prop::collection::vec(key_value_of(inner), 0..4).prop_map(|values| AnyValue {
                value: Some(Value::KvlistValue(KeyValueList { values })),
            }),
        ]
    })
}

fn key_value_of(value: impl Strategy<Value = AnyValue>) -> impl Strategy<Value = KeyValue> {
    (any::<String>(), prop::option::of(value)).prop_map(|(key, value)| KeyValue {
        key,
        value,
        ..Default::default()
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    prop::collection::vec(key_value_of(any_value()), 0..4)
}

fn id(length: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=length)
}

fn span() -> impl Strategy<Value = Span> {
    let event = (any::<u64>(), any::<String>(), attributes(), any::<u32>()).prop_map(
        |(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count,
        },
    );
    let link = (id(16), id(8), any::<String>(), attributes(), any::<u32>()).prop_map(
        |(trace_id, span_id, trace_state, attributes, flags)| Link {
            trace_id,
            span_id,
            trace_state,
            attributes,
            dropped_attributes_count: 1,
            flags,
        },
    );
    let status = (any::<String>(), 0..3).prop_map(|(message, code)| Status { message, code });
    (
        (
            id(16),
            id(8),
            id(8),
            any::<String>(),
            any::<String>(),
            -1..7,
        ),
        (any::<u64>(), any::<u64>(), any::<u32>(), attributes()),
        prop::collection::vec(event, 0..3),
        prop::collection::vec(link, 0..3),
        prop::option::of(status),
    )
        .prop_map(|(ids, times, events, links, status)| Span {
            trace_id: ids.0,
            span_id: ids.1,
            parent_span_id: ids.2,
            trace_state: ids.3,
            name: ids.4,
            kind: ids.5,
            start_time_unix_nano: times.0,
            end_time_unix_nano: times.1,
            flags: times.2,
            attributes: times.3,
            dropped_attributes_count: 1,
            dropped_events_count: 2,
            dropped_links_count: 3,
            events,
            links,
            status,
        })
}

fn request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let scope = (
        prop::collection::vec(span(), 0..3),
        attributes(),
        any::<String>(),
    )
        .prop_map(|(spans, attributes, name)| ScopeSpans {
            scope: Some(InstrumentationScope {
                name,
                attributes,
                version: "1".to_owned(),
                dropped_attributes_count: 4,
            }),
            spans,
            schema_url: "https://schema".to_owned(),
        });
    let resource =
        (prop::collection::vec(scope, 0..3), attributes()).prop_map(|(scope_spans, attributes)| {
            ResourceSpans {
                resource: Some(Resource {
                    attributes,
                    dropped_attributes_count: 5,
                    entity_refs: Vec::new(),
                }),
                scope_spans,
                schema_url: String::new(),
            }
        });
    prop::collection::vec(resource, 0..3)
        .prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_rendered_is_read_again(request in request()) {
        prop_assert_eq!(read(&render(&request)).unwrap(), request);
    }

    #[test]
    fn garbage_neither_panics_nor_is_taken_for_spans(json in "\\PC{0,64}", bytes: Vec<u8>) {
        let _ = read(&json);
        let rendered = RenderedTraces::default().piece(&bytes);
        let document = format!("[{}]", String::from_utf8(rendered).unwrap());
        prop_assert!(serde_json::from_str::<serde_json::Value>(&document).is_ok());
    }
}

#[test]
fn the_reference_reads_what_is_rendered_and_is_read_itself() {
    let value = |value| AnyValue { value: Some(value) };
    let attribute = |key: &str, of| KeyValue {
        key: key.to_owned(),
        value: Some(value(of)),
        ..Default::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute(
                    "service.name",
                    Value::StringValue("a\"b\n".to_owned()),
                )],
                ..Default::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![Span {
                    trace_id: vec![0xab; 16],
                    span_id: vec![0xcd; 8],
                    kind: 2,
                    start_time_unix_nano: u64::MAX,
                    attributes: vec![
                        attribute("int", Value::IntValue(i64::MIN)),
                        attribute("double", Value::DoubleValue(0.5)),
                        attribute("bool", Value::BoolValue(false)),
                        attribute("bytes", Value::BytesValue(vec![0, 255])),
                        attribute(
                            "array",
                            Value::ArrayValue(ArrayValue {
                                values: vec![value(Value::StringValue(String::new()))],
                            }),
                        ),
                    ],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }],
    };
    let by_reference: ExportTraceServiceRequest = serde_json::from_str(&render(&request)).unwrap();
    assert_eq!(by_reference, request);
    assert_eq!(
        read(&serde_json::to_string(&request).unwrap()).unwrap(),
        request
    );
}

#[test]
fn unknown_fields_are_ignored_at_every_level_and_numbers_come_in_both_forms() {
    let request = read(
        r#"{"new":{"deep":[1,{"a":null}]},"resourceSpans":[{"x":1,"resource":{"attributes":[
            {"key":"k","value":{"intValue":5,"z":{}},"y":[]}]},"scopeSpans":[{"spans":[{
            "startTimeUnixNano":1700000000000000001,"endTimeUnixNano":"1700000000000000002","kind":"SPAN_KIND_CLIENT",
            "flags":"257","status":{"code":2,"q":0},"attributes":[{"key":"d","value":{"doubleValue":"NaN"}},
            {"key":"i","value":{"intValue":"-7"}},{"key":"n","value":null},{"key":"e","value":{"stringValue":""}}]}]}]}]}"#,
    )
    .unwrap();
    let span = &request.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(span.start_time_unix_nano, 1_700_000_000_000_000_001);
    assert_eq!(span.end_time_unix_nano, 1_700_000_000_000_000_002);
    assert_eq!(
        (span.kind, span.flags, span.status.as_ref().unwrap().code),
        (3, 257, 2)
    );
    let value = |at: usize| span.attributes[at].value.clone().and_then(|any| any.value);
    assert!(matches!(value(0), Some(Value::DoubleValue(nan)) if nan.is_nan()));
    assert_eq!(value(1), Some(Value::IntValue(-7)));
    assert_eq!(value(2), None);
    assert_eq!(value(3), Some(Value::StringValue(String::new())));
}

#[test]
fn ids_are_hexadecimal_and_bytes_are_base64_of_either_alphabet() {
    let span = span_of(
        r#"{"traceId":"5B8EFFF798038103D269B633813FC60C","attributes":[{"key":"b","value":{"bytesValue":"_-8"}}]}"#,
    );
    assert_eq!(span.trace_id[..2], [0x5b, 0x8e]);
    let value = span.attributes[0].value.clone().unwrap().value;
    assert_eq!(value, Some(Value::BytesValue(vec![0xff, 0xef])));
    for bad in [
        r#"{"traceId":"xyz1"}"#,
        r#"{"traceId":"123"}"#,
        r#"{"kind":[1]}"#,
        r#"{"name":7}"#,
    ] {
        let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{bad}]}}]}}]}}"#);
        assert!(read(&json).is_err(), "{bad}");
    }
}

#[test]
fn deep_nesting_is_refused_where_it_is_read_and_skipped_where_it_is_not() {
    let nest = |levels: usize| {
        let open = r#"{"arrayValue":{"values":["#.repeat(levels);
        let close = "]}}".repeat(levels);
        format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"attributes":[{{"key":"k","value":{open}{close}}}]}}]}}]}}]}}"#
        )
    };
    assert!(read(&nest(16)).is_ok());
    assert!(matches!(read(&nest(40)), Err(TranscodeError::Invalid(_))));
    assert!(matches!(
        read(&nest(200_000)),
        Err(TranscodeError::Invalid(_))
    ));
    let unknown = format!(r#"{{"x":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    assert!(read(&unknown).is_ok());
}

#[test]
fn the_output_grows_only_on_credit() {
    let spans = vec!["{\"name\":\"some span\"}"; 50_000].join(",");
    let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#);
    let (mut asked, mut calls) = (0, 0);
    let bytes = transcode_request(json.as_bytes(), &mut |more| {
        asked += more;
        calls += 1;
        true
    })
    .unwrap();
    assert!(asked >= bytes.len() as u64 && asked < 2 * bytes.len() as u64 + 200_000);
    assert!(calls > 1);
    let mut left = 100_000_u64;
    let refused = transcode_request(json.as_bytes(), &mut |more| {
        let enough = left >= more;
        left = left.saturating_sub(more);
        enough
    });
    assert!(matches!(refused, Err(TranscodeError::NoRoom)));
}

#[test]
fn text_that_is_no_utf8_is_still_shown() {
    // given a stored span whose name is broken: ResourceSpans > ScopeSpans > Span > name
    let span = [0x2a, 2, 0xff, b'x'];
    let mut bytes = span.to_vec();
    for tag in [0x12, 0x12, 0x0a] {
        bytes.insert(0, u8::try_from(bytes.len()).unwrap());
        bytes.insert(0, tag);
    }
    let rendered = String::from_utf8(RenderedTraces::default().piece(&bytes)).unwrap();
    assert_eq!(
        rendered,
        "{\"scopeSpans\":[{\"spans\":[{\"name\":\"\u{fffd}x\"}]}]}"
    );
}

/// Found by the fuzzer: what protobuf merges, skips and cuts was shown as its last part, not at all, or in full.
#[test]
fn spans_are_shown_as_protobuf_reads_them() {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap();
        [&[number << 3 | 2, length], content].concat()
    };
    let span = |fields: &[&[u8]]| field(1, &field(2, &field(2, &fields.concat())));
    let attribute = |parts: &[&[u8]]| {
        let values: Vec<Vec<u8>> = parts.iter().map(|part| field(2, part)).collect();
        field(9, &[field(1, b"k"), values.concat()].concat())
    };
    let text = |text: &[u8]| field(1, text);
    let array = |element: &[u8]| field(5, &field(1, element));
    let name = field(5, b"name");
    let requests = [
        // A status in two parts.
        span(&[&field(15, &[0x18, 2]), &field(15, &field(2, b"message"))]),
        // A group, with a group in it, before a field that we know.
        span(&[&[0x8b, 2, 0x93, 2, 0x94, 2, 0x8c, 2], &name]),
        // A choice of a value, and behind it a field that does not exist.
        span(&[&attribute(&[&[text(b"text"), vec![0x78, 1]].concat()])]),
        // Arrays in two parts, and one that another choice replaced.
        span(&[&attribute(&[&array(&text(b"a")), &array(&text(b"b"))])]),
        span(&[&attribute(&[
            &array(&text(b"a")),
            &text(b"b"),
            &array(&text(b"c")),
        ])]),
        // A kind of more than 32 bits.
        span(&[&[0x30, 0x82, 0x80, 0x80, 0x80, 0x10]]),
    ];
    for request in requests {
        let decoded = ExportTraceServiceRequest::decode(request.as_slice()).unwrap();
        let elements = RenderedTraces::default().piece(&request);
        let elements = String::from_utf8(elements).unwrap();
        let shown = format!("{{\"resourceSpans\":[{elements}]}}");
        assert_eq!(read(&shown).unwrap(), decoded, "{shown}");
    }
}
