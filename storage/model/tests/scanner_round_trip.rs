//! From a scan back to OTLP, and the readers of single spans.
#![allow(clippy::unwrap_used)]

mod otlp_support;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, TracesData};
use otlp_support::build::{attribute, of_resource, resource_spans, span, text};
use otlp_support::{RECEIVED_AT, generate, oracle, rules};
use proptest::prelude::*;
use prost::Message;
use spandrel_model::batch::{Context, Slice, SpanBatch};
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::interest::Interests;
use spandrel_model::otlp::{
    RawContext, RawValue, TracesDataWriter, rescan, visit_attributes, visit_resource_attributes,
};

fn raw<'a>(batch: &'a SpanBatch, context: &Context) -> RawContext<'a> {
    RawContext {
        resource: batch.bytes(context.resource),
        resource_schema_url: batch.bytes(context.resource_schema_url),
        scope: batch.bytes(context.scope),
        scope_schema_url: batch.bytes(context.scope_schema_url),
    }
}

fn written(batch: &SpanBatch) -> Bytes {
    let mut writer = TracesDataWriter::new();
    for span in &batch.spans {
        writer.push(&raw(batch, &batch.context(span)), batch.bytes(span.span));
    }
    let expected_len = writer.len();
    let bytes = writer.finish();
    assert_eq!(bytes.len(), expected_len);
    bytes
}

/// Each span with its context, all of it by value.
fn flat(batch: &SpanBatch) -> Vec<[Vec<u8>; 5]> {
    batch
        .spans
        .iter()
        .map(|span| {
            let context = raw(batch, &batch.context(span));
            [
                context.resource,
                context.resource_schema_url,
                context.scope,
                context.scope_schema_url,
                batch.bytes(span.span),
            ]
            .map(<[u8]>::to_vec)
        })
        .collect()
}

proptest! {
    #![proptest_config(otlp_support::cases(300))]

    #[test]
    fn what_is_written_is_scanned_as_the_same(request in generate::request()) {
        if let Ok(scanned) = oracle::scan(&request) {
            let again = oracle::scan(&written(&scanned.batch)).unwrap();
            prop_assert!(again.rejected.is_empty());
            prop_assert!(flat(&again.batch) == flat(&scanned.batch));
        }
    }
}

#[test]
fn a_regular_request_is_written_as_it_came() {
    let request = TracesData {
        resource_spans: vec![
            resource_spans(vec![span(1), span(2)]),
            ResourceSpans {
                schema_url: String::new(),
                ..resource_spans(vec![span(3)])
            },
        ],
    };
    let scanned = oracle::scan(&request.encode_to_vec()).unwrap();
    assert_eq!(
        TracesData::decode(written(&scanned.batch)).unwrap(),
        request
    );
}

#[test]
fn attributes_of_one_span_or_resource_are_visited_in_order() {
    let given = Span {
        attributes: vec![
            text("a", "x"),
            attribute("b", Value::IntValue(-1)),
            attribute("c", Value::DoubleValue(0.5)),
            attribute("d", Value::BoolValue(true)),
            attribute("e", Value::BytesValue(vec![1])),
        ],
        ..span(1)
    }
    .encode_to_vec();
    let mut seen = Vec::new();
    visit_attributes(&given, &mut |key, value| seen.push((key, value))).unwrap();
    assert_eq!(
        seen,
        [
            ("a", RawValue::Text("x")),
            ("b", RawValue::Int(-1)),
            ("c", RawValue::Double(0.5)),
            ("d", RawValue::Bool(true)),
            ("e", RawValue::Other(&[1])),
        ]
    );
    let resource = Resource {
        attributes: vec![text("host.name", "a")],
        ..Resource::default()
    }
    .encode_to_vec();
    let mut seen = Vec::new();
    visit_resource_attributes(&resource, &mut |key, value| seen.push((key, value))).unwrap();
    assert_eq!(seen, [("host.name", RawValue::Text("a"))]);
    assert!(visit_attributes(&[0x4a, 9], &mut |_, _| {}).is_err());
}

fn replay(
    buffer: &[u8],
    context: Context,
    span: (u32, Slice),
    interests: &Interests,
) -> Option<SpanBatch> {
    rescan(
        Bytes::copy_from_slice(buffer),
        TenantId::default(),
        UnixNanos(RECEIVED_AT),
        vec![context],
        [span].into_iter(),
        interests,
    )
    .ok()
}

#[test]
fn replay_refuses_what_points_outside() {
    let scanned = oracle::scan(&of_resource(resource_spans(vec![span(1)]))).unwrap();
    let batch = &scanned.batch;
    let (context, slice) = (batch.contexts[0], batch.spans[0].span);
    let rules = rules();
    let interests = rules.interests();
    let replay = |context, span| replay(&batch.buffer, context, span, interests);
    assert!(replay(context, (0, slice)).is_some());
    assert!(replay(context, (1, slice)).is_none());
    let outside = Slice {
        offset: slice.offset,
        len: u32::MAX,
    };
    assert!(replay(context, (0, outside)).is_none());
    let bad_context = Context {
        resource: outside,
        ..context
    };
    assert!(replay(bad_context, (0, slice)).is_none());
}

#[test]
fn replay_with_new_interests_passes_over_text_that_was_not_checked() {
    let field = generate::bytes_field;
    let value = field(2, &field(1, &[0xff]));
    let attribute = field(9, &[field(1, b"peer"), value].concat());
    let buffer = [span(1).encode_to_vec(), attribute].concat();
    let slice = Slice {
        offset: 0,
        len: u32::try_from(buffer.len()).unwrap(),
    };
    let interests = Interests::new(["peer", "n"], []);
    let batch = replay(&buffer, Context::default(), (0, slice), &interests).unwrap();
    let peers = batch.attributes.len();
    // `peer` of the span itself and `n`; not the second `peer`.
    assert_eq!(peers, 2);
}
