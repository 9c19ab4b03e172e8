//! Any bytes, both ways: what is read from JSON is a request that the scanner takes and that is written and read again
//! without a change; a request that prost reads is written as JSON that says the same.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../src"]
mod source {
    pub(crate) mod dto;
    #[path = "otlp/json/mod.rs"]
    pub(crate) mod json;
    pub(crate) mod limits;
    pub(crate) mod time;
}

use json::{RenderedTraces, TranscodeError, transcode_request};
use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message;
use source::{dto, json, limits, time};

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = transcode_request(input, &mut |_| true) {
        from_json(&request);
    }
    to_json(input);
});

fn render(request: &[u8]) -> String {
    let elements = RenderedTraces::default().piece(request);
    let elements = String::from_utf8(elements).expect("JSON is UTF-8");
    let document = format!("{{\"resourceSpans\":[{elements}]}}");
    let is_json: Result<serde::de::IgnoredAny, _> = serde_json::from_str(&document);
    assert!(is_json.as_ref().err().is_none_or(is_deep), "{document}");
    document
}

fn is_deep(error: &serde_json::Error) -> bool {
    let message = error.to_string();
    message.contains("recursion") || message.contains("nested deeper")
}

/// What was read from JSON.
fn from_json(request: &[u8]) {
    let decoded = match TracesData::decode(request) {
        Ok(decoded) => decoded,
        // prost stops earlier than the scanner does.
        Err(error) if error.to_string().contains("recursion") => return,
        Err(error) => panic!("{error}"),
    };
    assert_same(request, decoded);
}

/// A request as it may be stored.
fn to_json(request: &[u8]) {
    render(request);
    let Ok(decoded) = TracesData::decode(request) else {
        return;
    };
    if !has_indexes(&decoded) && !has_long_ids(&decoded) {
        assert_same(request, decoded);
    }
}

/// The request, written as JSON and read again, says what prost found in it.
fn assert_same(request: &[u8], decoded: TracesData) {
    let document = render(request);
    let again = match transcode_request(document.as_bytes(), &mut |_| true) {
        Ok(again) => again,
        Err(TranscodeError::Invalid(error)) if is_deep(&error) => return,
        Err(error) => panic!("{error}: {document}"),
    };
    let again = TracesData::decode(again).expect("what was read is protobuf");
    // As text: doubles that are no number are not equal to themselves.
    assert_eq!(format!("{again:?}"), format!("{decoded:?}"), "{document}");
}

/// Indexes into a table of strings are the profiles' business: JSON does not show them.
fn has_indexes(request: &TracesData) -> bool {
    fn any_value(value: &AnyValue) -> bool {
        match &value.value {
            Some(Value::StringValueStrindex(_)) => true,
            Some(Value::ArrayValue(array)) => array.values.iter().any(any_value),
            Some(Value::KvlistValue(map)) => key_values(&map.values),
            _ => false,
        }
    }
    fn key_values(attributes: &[KeyValue]) -> bool {
        attributes
            .iter()
            .any(|one| one.key_strindex != 0 || one.value.as_ref().is_some_and(any_value))
    }
    request.resource_spans.iter().any(|resource_spans| {
        let resource = resource_spans.resource.iter();
        resource
            .into_iter()
            .any(|resource| key_values(&resource.attributes))
            || resource_spans.scope_spans.iter().any(|scope_spans| {
                scope_spans
                    .scope
                    .iter()
                    .any(|scope| key_values(&scope.attributes))
                    || scope_spans.spans.iter().any(|span| {
                        key_values(&span.attributes)
                            || span
                                .events
                                .iter()
                                .any(|event| key_values(&event.attributes))
                            || span.links.iter().any(|link| key_values(&link.attributes))
                    })
            })
    })
}

/// No such span is taken, and no such id is read from JSON.
fn has_long_ids(request: &TracesData) -> bool {
    let scopes = request
        .resource_spans
        .iter()
        .flat_map(|one| &one.scope_spans);
    scopes.flat_map(|one| &one.spans).any(|span| {
        let of_links = span
            .links
            .iter()
            .flat_map(|link| [&link.trace_id, &link.span_id]);
        let own = [&span.trace_id, &span.span_id, &span.parent_span_id];
        own.into_iter().chain(of_links).any(|id| id.len() > 16)
    })
}
