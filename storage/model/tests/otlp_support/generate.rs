//! Export requests composed byte by byte: fields in any order, repeated, unknown ones between them.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Bytes of one field or message.
pub type Encoded = Vec<u8>;

fn varint_field(number: u32, value: u64) -> Encoded {
    let mut out = Vec::new();
    encode_key(number, WireType::Varint, &mut out);
    encode_varint(value, &mut out);
    out
}

pub fn fixed64_field(number: u32, value: u64) -> Encoded {
    let mut out = Vec::new();
    encode_key(number, WireType::SixtyFourBit, &mut out);
    out.extend(value.to_le_bytes());
    out
}

fn fixed32_field(number: u32, value: u32) -> Encoded {
    let mut out = Vec::new();
    encode_key(number, WireType::ThirtyTwoBit, &mut out);
    out.extend(value.to_le_bytes());
    out
}

pub fn bytes_field(number: u32, content: &[u8]) -> Encoded {
    let mut out = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut out);
    encode_varint(content.len() as u64, &mut out);
    out.extend(content);
    out
}

fn group_field(number: u32, content: &[u8]) -> Encoded {
    let mut out = Vec::new();
    encode_key(number, WireType::StartGroup, &mut out);
    out.extend(content);
    encode_key(number, WireType::EndGroup, &mut out);
    out
}

fn message(field: impl Strategy<Value = Encoded>, most: usize) -> impl Strategy<Value = Encoded> {
    vec(field, 0..most).prop_map(|fields| fields.concat())
}

/// A field that no message of OTLP has.
fn unknown() -> impl Strategy<Value = Encoded> + Clone {
    let number = prop_oneof![17_u32..40, Just((1 << 29) - 1)];
    let plain = prop_oneof![
        (number.clone(), any::<u64>()).prop_map(|(number, value)| varint_field(number, value)),
        (number.clone(), any::<u64>()).prop_map(|(number, value)| fixed64_field(number, value)),
        (number.clone(), any::<u32>()).prop_map(|(number, value)| fixed32_field(number, value)),
        (number.clone(), vec(any::<u8>(), 0..9))
            .prop_map(|(number, content)| bytes_field(number, &content)),
    ];
    plain.prop_recursive(3, 8, 3, move |inner| {
        (number.clone(), vec(inner, 0..3))
            .prop_map(|(number, fields)| group_field(number, &fields.concat()))
    })
}

fn short_text() -> impl Strategy<Value = Encoded> {
    prop_oneof![
        8 => "[a-zä€😀]{0,8}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 1..6),
    ]
}

fn text() -> impl Strategy<Value = Encoded> {
    prop_oneof![
        8 => short_text(),
        1 => (1_020_usize..1_030).prop_map(|len| "x".repeat(len).into_bytes()),
        2 => (2_040_usize..2_056, "[ä€😀]").prop_map(|(len, last)| ("y".repeat(len) + &last).into_bytes()),
    ]
}

fn key() -> impl Strategy<Value = Encoded> {
    prop_oneof![
        4 => Just(b"http.route".to_vec()),
        4 => Just(b"n".to_vec()),
        4 => Just(b"service.name".to_vec()),
        1 => Just(b"spandrel.changed".to_vec()),
        4 => text(),
    ]
}

/// Arrays and maps stay below the limit of values: cutting them has tests of its own.
fn any_value() -> impl Strategy<Value = Encoded> {
    prop_oneof![
        4 => text().prop_map(|text| bytes_field(1, &text)),
        6 => nested_value(),
    ]
}

fn nested_value() -> impl Strategy<Value = Encoded> {
    let scalar = prop_oneof![
        4 => short_text().prop_map(|text| bytes_field(1, &text)),
        1 => any::<u64>().prop_map(|value| varint_field(2, value)),
        1 => any::<u64>().prop_map(|value| varint_field(3, value)),
        1 => any::<u64>().prop_map(|value| fixed64_field(4, value)),
        1 => vec(any::<u8>(), 0..9).prop_map(|content| bytes_field(7, &content)),
        1 => any::<u64>().prop_map(|value| varint_field(8, value)),
        1 => unknown(),
        1 => Just(Vec::new()),
    ];
    scalar.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|entries| {
                let entries: Vec<Encoded> =
                    entries.iter().map(|entry| bytes_field(1, entry)).collect();
                bytes_field(5, &entries.concat())
            }),
            vec(inner.clone(), 0..3).prop_map(|entries| {
                let entries: Vec<Encoded> = entries
                    .iter()
                    .map(|entry| bytes_field(1, &bytes_field(2, entry)))
                    .collect();
                bytes_field(6, &entries.concat())
            }),
            vec(inner, 0..3).prop_map(|parts| parts.concat()),
        ]
    })
}

fn key_value() -> impl Strategy<Value = Encoded> {
    let regular = (key(), any_value())
        .prop_map(|(key, value)| [bytes_field(1, &key), bytes_field(2, &value)].concat());
    let field = prop_oneof![
        3 => key().prop_map(|key| bytes_field(1, &key)),
        3 => any_value().prop_map(|value| bytes_field(2, &value)),
        1 => any::<u64>().prop_map(|value| varint_field(3, value)),
        1 => unknown(),
    ];
    prop_oneof![6 => regular, 1 => message(field, 5)]
}

fn attributes(number: u32) -> impl Strategy<Value = Encoded> {
    key_value().prop_map(move |message| bytes_field(number, &message))
}

fn count(number: u32) -> impl Strategy<Value = Encoded> {
    any::<u64>().prop_map(move |value| varint_field(number, value))
}

fn string(number: u32) -> impl Strategy<Value = Encoded> {
    text().prop_map(move |text| bytes_field(number, &text))
}

fn resource() -> impl Strategy<Value = Encoded> {
    let entity = message(
        prop_oneof![string(1), string(2), string(3), string(4), unknown()],
        4,
    );
    let field = prop_oneof![
        6 => attributes(1),
        1 => count(2),
        1 => entity.prop_map(|message| bytes_field(3, &message)),
        1 => unknown(),
    ];
    message(field, 5)
}

fn scope() -> impl Strategy<Value = Encoded> {
    message(
        prop_oneof![string(1), string(2), attributes(3), count(4), unknown()],
        4,
    )
}

fn event() -> impl Strategy<Value = Encoded> {
    let time = any::<u64>().prop_map(|value| fixed64_field(1, value));
    message(
        prop_oneof![time, string(2), attributes(3), count(4), unknown()],
        4,
    )
}

fn link() -> impl Strategy<Value = Encoded> {
    let flags = any::<u32>().prop_map(|value| fixed32_field(6, value));
    message(
        prop_oneof![
            string(1),
            string(2),
            string(3),
            attributes(4),
            count(5),
            flags,
            unknown()
        ],
        4,
    )
}

fn status() -> impl Strategy<Value = Encoded> {
    let code = prop_oneof![0_u64..4, any::<u64>()].prop_map(|value| varint_field(3, value));
    message(prop_oneof![2 => code, 1 => string(2), 1 => unknown()], 3)
}

/// Mostly of the right length.
fn id(number: u32, len: usize) -> impl Strategy<Value = Encoded> {
    let content = prop_oneof![
        20 => vec(any::<u8>(), len),
        1 => vec(any::<u8>(), 8),
        1 => Just(vec![0; len]),
        1 => vec(any::<u8>(), 0..20),
    ];
    content.prop_map(move |content| bytes_field(number, &content))
}

/// Mostly near the time of receipt of the tests.
fn time(number: u32) -> impl Strategy<Value = Encoded> {
    let value = prop_oneof![
        4 => super::RECEIVED_AT - 1_000..super::RECEIVED_AT + 1_000,
        1 => any::<u64>(),
        1 => Just(0),
    ];
    value.prop_map(move |value| fixed64_field(number, value))
}

/// A `Span`.
pub fn span() -> impl Strategy<Value = Encoded> {
    let kind = prop_oneof![0_u64..7, any::<u64>()].prop_map(|value| varint_field(6, value));
    let field = prop_oneof![
        1 => id(1, 16),
        1 => id(2, 8),
        1 => string(3),
        2 => id(4, 8),
        2 => string(5),
        2 => kind,
        2 => time(7),
        2 => time(8),
        6 => attributes(9),
        1 => prop_oneof![count(10), count(12), count(14)],
        2 => event().prop_map(|message| bytes_field(11, &message)),
        2 => link().prop_map(|message| bytes_field(13, &message)),
        2 => status().prop_map(|message| bytes_field(15, &message)),
        1 => any::<u32>().prop_map(|value| fixed32_field(16, value)),
        2 => unknown(),
    ];
    let required = (id(1, 16), id(2, 8), time(7), time(8))
        .prop_map(|(trace, span, start, end)| vec![trace, span, start, end]);
    (required, vec(field, 0..10))
        .prop_map(|(mut fields, more)| {
            fields.extend(more);
            fields
        })
        .prop_shuffle()
        .prop_map(|fields| fields.concat())
}

fn spans_of(
    context: impl Strategy<Value = Encoded>,
    child: impl Strategy<Value = Encoded>,
) -> impl Strategy<Value = Encoded> {
    let field = prop_oneof![
        3 => context.prop_map(|message| bytes_field(1, &message)),
        5 => child.prop_map(|message| bytes_field(2, &message)),
        1 => string(3),
        1 => unknown(),
    ];
    message(field, 5)
}

/// An `ExportTraceServiceRequest`.
pub fn request() -> impl Strategy<Value = Encoded> {
    let resource_spans = spans_of(resource(), spans_of(scope(), span()))
        .prop_map(|message| bytes_field(1, &message));
    message(prop_oneof![6 => resource_spans, 1 => unknown()], 4)
}
