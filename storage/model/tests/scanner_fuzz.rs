//! Valid requests with damaged bytes: the scanner never panics and judges each as prost does.
//!
//! The corpus is committed, so that a change of the generator cannot quietly change what is tested. After an
//! intended change: `UPDATE_CORPUS=1 cargo test -p spandrel-model --test scanner_fuzz`.
#![allow(clippy::unwrap_used)]

mod otlp_support;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValueList};
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, TracesData};
use otlp_support::build::{attribute, resource_spans, span, text};
use otlp_support::{RECEIVED_AT, generate, oracle};
use proptest::prelude::*;
use prost::Message;

const CORPUS: [(&str, &[u8]); 4] = [
    ("usual.bin", include_bytes!("corpus/usual.bin")),
    ("changed.bin", include_bytes!("corpus/changed.bin")),
    ("nested.bin", include_bytes!("corpus/nested.bin")),
    ("repeated.bin", include_bytes!("corpus/repeated.bin")),
];

/// One damage to the bytes; positions are taken modulo their length.
#[derive(Debug, Clone)]
enum Edit {
    Set(usize, u8),
    Insert(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Splice(usize, usize, usize, usize),
    CutOff(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let len = 1_usize..24;
    prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        2 => (at.clone(), len.clone()).prop_map(|(at, len)| Edit::Remove(at, len)),
        1 => (at.clone(), len.clone()).prop_map(|(at, len)| Edit::Repeat(at, len)),
        1 => (at.clone(), 0..CORPUS.len(), at.clone(), len)
            .prop_map(|(at, file, from, len)| Edit::Splice(at, file, from, len)),
        1 => at.prop_map(Edit::CutOff),
    ]
}

fn piece(bytes: &[u8], at: usize, len: usize) -> Vec<u8> {
    let at = at % (bytes.len() + 1);
    bytes[at..(at + len).min(bytes.len())].to_vec()
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let wrap = |at: usize| at % (bytes.len() + 1);
    match *edit {
        Edit::Set(at, byte) => {
            let at = wrap(at);
            if let Some(target) = bytes.get_mut(at) {
                *target = byte;
            }
        }
        Edit::Insert(at, byte) => bytes.insert(wrap(at), byte),
        Edit::Remove(at, len) => {
            let at = wrap(at);
            let end = (at + len).min(bytes.len());
            bytes.drain(at..end);
        }
        Edit::Repeat(at, len) => {
            let again = piece(bytes, at, len);
            let at = wrap(at);
            bytes.splice(at..at, again);
        }
        Edit::Splice(at, file, from, len) => {
            let foreign = piece(CORPUS[file].1, from, len);
            let at = wrap(at);
            bytes.splice(at..at, foreign);
        }
        Edit::CutOff(at) => bytes.truncate(wrap(at)),
    }
}

proptest! {
    #![proptest_config(otlp_support::cases(4_000))]

    #[test]
    fn damaged_requests_are_judged_as_prost_judges_them(
        file in 0..CORPUS.len(),
        edits in prop::collection::vec(edit(), 1..5),
    ) {
        let mut request = CORPUS[file].1.to_vec();
        edits.iter().for_each(|edit| apply(&mut request, edit));
        oracle::check(&request);
    }
}

#[test]
fn the_corpus_is_taken_whole_and_is_what_its_generator_makes() {
    let made = [usual(), changed(), nested(), repeated()];
    for ((name, committed), made) in CORPUS.iter().zip(made) {
        #[allow(clippy::disallowed_methods)] // asks for a new corpus
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
            std::fs::write(format!("{folder}/{name}"), &made).unwrap();
            continue;
        }
        assert!(
            made == *committed,
            "{name} differs: see the head of this file"
        );
        let scanned = oracle::scan(committed).unwrap();
        assert!(!scanned.batch.spans.is_empty(), "{name}");
        assert!(scanned.rejected.is_empty(), "{name}: {}", scanned.rejected);
        oracle::check(committed);
    }
}

fn usual() -> Vec<u8> {
    let child = Span {
        parent_span_id: vec![1; 8],
        trace_state: "ot=th:8".to_owned(),
        flags: 257,
        status: Some(Status {
            message: "no".to_owned(),
            code: 2,
        }),
        events: vec![Event {
            time_unix_nano: RECEIVED_AT,
            name: "exception".to_owned(),
            attributes: vec![text("exception.message", "no")],
            ..Event::default()
        }],
        links: vec![Link {
            trace_id: vec![7; 16],
            span_id: vec![7; 8],
            attributes: vec![attribute("n", Value::BoolValue(true))],
            ..Link::default()
        }],
        ..span(2)
    };
    let request = TracesData {
        resource_spans: vec![
            resource_spans(vec![span(1), child]),
            resource_spans(vec![span(3)]),
        ],
    };
    request.encode_to_vec()
}

fn changed() -> Vec<u8> {
    let request = TracesData {
        resource_spans: vec![resource_spans(vec![
            Span {
                trace_id: vec![9; 8],
                ..span(1)
            },
            Span {
                attributes: vec![text("http.route", &"ä".repeat(1_100))],
                dropped_attributes_count: 3,
                ..span(2)
            },
        ])],
    };
    request.encode_to_vec()
}

fn nested() -> Vec<u8> {
    let array = |value| {
        Value::ArrayValue(ArrayValue {
            values: vec![AnyValue { value: Some(value) }; 2],
        })
    };
    let map = Value::KvlistValue(KeyValueList {
        values: vec![attribute("k", array(Value::DoubleValue(0.5)))],
    });
    let request = TracesData {
        resource_spans: vec![resource_spans(vec![Span {
            attributes: vec![
                attribute("deep", array(array(map))),
                attribute("raw", Value::BytesValue(vec![0xff; 3])),
            ],
            ..span(1)
        }])],
    };
    request.encode_to_vec()
}

/// Resource and scope twice, unknown fields and a group.
fn repeated() -> Vec<u8> {
    let one = resource_spans(vec![span(1)]).encode_to_vec();
    let two = resource_spans(vec![span(2)]).encode_to_vec();
    let group = [0xa3, 0x01, 0x08, 0x05, 0xa4, 0x01];
    [
        generate::bytes_field(1, &[one, two, group.to_vec()].concat()),
        group.to_vec(),
    ]
    .concat()
}
