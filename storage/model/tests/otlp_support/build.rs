//! Requests by prost.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use prost::Message;

use super::RECEIVED_AT;

pub fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

pub fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

pub fn span(id: u8) -> Span {
    Span {
        trace_id: vec![id; 16],
        span_id: vec![id; 8],
        name: format!("operation {id}"),
        kind: 2,
        start_time_unix_nano: RECEIVED_AT - 2_000,
        end_time_unix_nano: RECEIVED_AT - 1_000,
        attributes: vec![
            text("http.route", "/cart/{id}"),
            attribute("n", Value::IntValue(200)),
            text("peer", "10.0.0.1"),
        ],
        ..Span::default()
    }
}

pub fn resource_spans(spans: Vec<Span>) -> ResourceSpans {
    ResourceSpans {
        resource: Some(Resource {
            attributes: vec![text("service.name", "cart"), text("host.name", "a")],
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: "http".to_owned(),
                ..InstrumentationScope::default()
            }),
            spans,
            schema_url: "scope schema".to_owned(),
        }],
        schema_url: "resource schema".to_owned(),
    }
}

/// One request with one resource.
pub fn request(spans: Vec<Span>) -> Vec<u8> {
    of_resource(resource_spans(spans))
}

/// One request.
pub fn of_resource(resource_spans: ResourceSpans) -> Vec<u8> {
    let request = TracesData {
        resource_spans: vec![resource_spans],
    };
    request.encode_to_vec()
}
