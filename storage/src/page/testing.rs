//! Spans for tests: arbitrary ones, and edits of their bytes that stay legal.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use spandrel_model::ids::{Lsn, ShardId, TraceId, UnixNanos};

use super::builder::FragmentHead;

/// An owned resource and scope.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnedContext {
    pub(crate) resource: Vec<u8>,
    pub(crate) scope: Vec<u8>,
}

impl OwnedContext {
    pub(crate) fn raw(&self) -> spandrel_model::otlp::RawContext<'_> {
        spandrel_model::otlp::RawContext {
            resource: &self.resource,
            resource_schema_url: b"https://opentelemetry.io/schemas/1.21.0",
            scope: &self.scope,
            scope_schema_url: b"",
        }
    }
}

/// A fragment with its spans' messages.
#[derive(Debug, Clone)]
pub(crate) struct OwnedFragment {
    pub(crate) head: FragmentHead,
    pub(crate) spans: Vec<(usize, Vec<u8>)>,
}

pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-d]{1,2}",
        Just("true".to_owned()),
        Just("7".to_owned()),
        Just("0.5".to_owned()),
        "\\PC{0,40}",
    ]
}

fn scalar() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        4 => text().prop_map(|text| Some(Value::StringValue(text))),
        2 => prop_oneof![Just(7), any::<i64>()].prop_map(|int| Some(Value::IntValue(int))),
        1 => prop_oneof![Just(0.5), -1e9..1e9].prop_map(|double| Some(Value::DoubleValue(double))),
        1 => any::<bool>().prop_map(|boolean| Some(Value::BoolValue(boolean))),
        1 => vec(any::<u8>(), 0..8).prop_map(|bytes| Some(Value::BytesValue(bytes))),
        1 => Just(None),
    ]
}

fn value() -> impl Strategy<Value = AnyValue> {
    let leaf = scalar().prop_map(|value| AnyValue { value });
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|values| AnyValue {
                value: Some(Value::ArrayValue(ArrayValue { values })),
            }),
            vec((text(), inner), 0..3).prop_map(|pairs| AnyValue {
                value: Some(Value::KvlistValue(KeyValueList {
                    values: pairs
                        .into_iter()
                        .map(|(key, value)| pair(key, value))
                        .collect(),
                })),
            }),
        ]
    })
}

fn pair(key: String, value: AnyValue) -> KeyValue {
    KeyValue {
        key,
        value: Some(value),
        ..KeyValue::default()
    }
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let key = prop_oneof![5 => "[k-p]", 1 => text()];
    vec(
        (key, option::weighted(0.95, value())).prop_map(|(key, value)| KeyValue {
            key,
            value,
            ..KeyValue::default()
        }),
        0..8,
    )
}

fn event() -> impl Strategy<Value = span::Event> {
    (any::<u64>(), text(), attributes()).prop_map(|(time, name, attributes)| span::Event {
        time_unix_nano: time,
        name,
        attributes,
        dropped_attributes_count: 0,
    })
}

fn link() -> impl Strategy<Value = span::Link> {
    (text(), attributes(), any::<u32>()).prop_map(|(trace_state, attributes, flags)| span::Link {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        trace_state,
        attributes,
        dropped_attributes_count: 1,
        flags,
    })
}

fn status() -> impl Strategy<Value = Option<Status>> {
    let message = prop_oneof![2 => Just(String::new()), 1 => text()];
    let code = prop_oneof![9 => 0..3i32, 1 => any::<i32>()];
    option::of((message, code).prop_map(|(message, code)| Status { message, code }))
}

/// A span; its trace id is filled in by [`fragments`].
fn span() -> impl Strategy<Value = Span> {
    let ids = (1..12u64, option::of(0..12u64));
    let counts = prop_oneof![3 => Just((0, 0, 0)), 1 => any::<(u32, u32, u32)>()];
    let times = prop_oneof![5 => (1_000u64..1_100, 0u64..50), 1 => any::<(u64, u64)>()];
    let flags = prop_oneof![Just(0), Just(0x101), any::<u32>()];
    let lists = (attributes(), vec(event(), 0..3), vec(link(), 0..2));
    (
        ids,
        text(),
        text(),
        0..7i32,
        times,
        lists,
        status(),
        (counts, flags),
    )
        .prop_map(
            |((id, parent), name, state, kind, times, lists, status, (counts, flags))| Span {
                trace_id: Vec::new(),
                span_id: id.to_be_bytes().to_vec(),
                trace_state: state,
                parent_span_id: parent.map_or(Vec::new(), |id| id.to_be_bytes().to_vec()),
                flags,
                name,
                kind,
                start_time_unix_nano: times.0,
                end_time_unix_nano: times.0.wrapping_add(times.1),
                attributes: lists.0,
                dropped_attributes_count: counts.0,
                events: lists.1,
                dropped_events_count: counts.1,
                links: lists.2,
                dropped_links_count: counts.2,
                status,
            },
        )
}

/// What is done to a span's bytes before they are stored.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    None,
    /// As the Collector writes: an empty parent and an empty status.
    EmptyMessages,
    UnknownField,
    LongVarint,
    /// The name once more.
    RepeatedName,
    /// An attribute value that is not UTF-8.
    InvalidText,
    /// Another id than the fragment's.
    ForeignTraceId,
    /// The last field first.
    FieldsReversed,
    /// Bytes that are no message.
    Replaced(Vec<u8>),
    Overwritten(u16, u8),
}

pub(crate) fn legal_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        8 => Just(Edit::None),
        2 => Just(Edit::EmptyMessages),
        1 => Just(Edit::UnknownField),
        1 => Just(Edit::LongVarint),
        1 => Just(Edit::RepeatedName),
        1 => Just(Edit::FieldsReversed),
        1 => Just(Edit::ForeignTraceId),
    ]
}

pub(crate) fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        8 => legal_edit(),
        1 => Just(Edit::InvalidText),
        1 => vec(any::<u8>(), 0..40).prop_map(Edit::Replaced),
        3 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Edit::Overwritten(at, byte)),
    ]
}

fn edited(span: &Span, edit: Edit) -> Vec<u8> {
    let mut bytes = span.encode_to_vec();
    match edit {
        Edit::None => {}
        Edit::EmptyMessages => bytes.extend_from_slice(&[0x22, 0, 0x7a, 0]),
        Edit::UnknownField => bytes.extend_from_slice(&[0xf8, 0x06, 0x05, 0xfa, 0x06, 1, 9]),
        Edit::LongVarint => bytes.extend_from_slice(&[0x50, 0x81, 0x00]),
        Edit::RepeatedName => bytes.extend_from_slice(&[0x2a, 1, b'a']),
        Edit::InvalidText => {
            bytes.extend_from_slice(&[0x4a, 9, 0x0a, 1, b'k', 0x12, 4, 0x0a, 2, 0xff, 0xfe]);
        }
        Edit::ForeignTraceId => {
            let foreign = Span {
                trace_id: vec![9; 16],
                ..span.clone()
            };
            bytes = foreign.encode_to_vec();
        }
        Edit::FieldsReversed => {
            let mut last = Span::default();
            last.attributes.clone_from(&span.attributes);
            last.kind = span.kind;
            let mut first = span.clone();
            first.attributes.clear();
            first.kind = 0;
            bytes = last.encode_to_vec();
            bytes.extend(first.encode_to_vec());
        }
        Edit::Replaced(replacement) => bytes = replacement,
        Edit::Overwritten(at, byte) => {
            let at = usize::from(at) % bytes.len().max(1);
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
    }
    bytes
}

/// Three contexts: two services and none.
pub(crate) fn contexts() -> Vec<OwnedContext> {
    let resource = |attributes: &[(&str, &str)]| Resource {
        attributes: attributes
            .iter()
            .map(|(key, text)| {
                let value = Some(Value::StringValue((*text).to_owned()));
                pair((*key).to_owned(), AnyValue { value })
            })
            .collect(),
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "scope".to_owned(),
        ..InstrumentationScope::default()
    };
    [
        &[("service.name", "a"), ("k", "b")][..],
        &[("service.name", "b"), ("l", "7")],
        &[],
    ]
    .map(|attributes| OwnedContext {
        resource: resource(attributes).encode_to_vec(),
        scope: scope.encode_to_vec(),
    })
    .to_vec()
}

/// Fragments of distinct keys with spans to which `edit` was done.
pub(crate) fn fragments(
    edit: impl Strategy<Value = Edit>,
) -> impl Strategy<Value = Vec<OwnedFragment>> {
    let spans = vec((0..3usize, span(), edit), 1..8);
    let fragment = (0..3u16, 0..4u8, 1..4u64, any::<u32>(), spans);
    vec(fragment, 1..8).prop_map(|fragments| {
        let mut seen = std::collections::BTreeSet::new();
        fragments
            .into_iter()
            .map(|(shard, trace, lsn, received_at, spans)| {
                let trace_id = TraceId([trace + 1; 16]);
                let spans = spans.into_iter().map(|(context, mut span, edit)| {
                    span.trace_id = trace_id.0.to_vec();
                    (context, edited(&span, edit))
                });
                OwnedFragment {
                    head: FragmentHead {
                        shard: ShardId(shard),
                        trace_id,
                        fragment: Lsn(lsn),
                        received_at: UnixNanos(u64::from(received_at)),
                    },
                    spans: spans.collect(),
                }
            })
            .filter(|fragment| seen.insert(fragment.head.key()))
            .collect()
    })
}
