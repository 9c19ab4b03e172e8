#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use prost::Message;
use spandrel_model::batch::StatusCode;
use spandrel_model::search::{SpanCondition, TagCondition};

use super::testing::{
    OwnedContext, OwnedFragment, any_edit, contexts, fragments, legal_edit, text,
};
use super::*;

fn encode(builder: &mut PageBuilder, fragments: &[OwnedFragment]) -> EncodedPage {
    let contexts = contexts();
    for fragment in fragments {
        let spans: Vec<PageSpan<'_>> = fragment
            .spans
            .iter()
            .map(|(context, span)| PageSpan {
                context: contexts[*context].raw(),
                span,
            })
            .collect();
        builder.push(fragment.head, &spans).unwrap();
    }
    builder.finish().unwrap().unwrap()
}

fn sorted(mut fragments: Vec<OwnedFragment>) -> Vec<OwnedFragment> {
    fragments.sort_by_key(|fragment| fragment.head.key());
    fragments
}

/// Every span of a page, with its stored context.
fn decode(page: &EncodedPage) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut reader = PageReader::open(&page.bytes).unwrap();
    let fragments = reader.fragments().unwrap();
    assert_eq!(fragments, page.fragments);
    let spans_of = |fragment| {
        let mut spans = Vec::new();
        let mut visit = |span: RebuiltSpan<'_>| {
            let context = page
                .contexts
                .iter()
                .find(|known| known.hash == span.context);
            spans.push((context.unwrap().bytes.to_vec(), span.span.to_vec()));
        };
        // A new reader each time: the positions of a fragment's values do not depend on what was read before.
        let mut reader = PageReader::open(&page.bytes).unwrap();
        reader.visit(fragment, &mut visit).unwrap();
        spans
    };
    fragments.iter().map(spans_of).collect()
}

fn assert_rebuilt(page: &EncodedPage, fragments: Vec<OwnedFragment>) {
    let contexts = contexts();
    let decoded = decode(page);
    let fragments = sorted(fragments);
    assert_eq!(decoded.len(), fragments.len());
    for (decoded, fragment) in decoded.iter().zip(&fragments) {
        assert_eq!(decoded.len(), fragment.spans.len());
        for ((context, span), (number, original)) in decoded.iter().zip(&fragment.spans) {
            assert_eq!(span, original);
            assert_eq!(read_context(context), Some(contexts[*number].raw()));
            if let Ok(original) = Span::decode(original.as_slice()) {
                assert_eq!(Span::decode(span.as_slice()).unwrap(), original);
            }
        }
    }
}

fn naive_text(value: &Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(int) => Some(int.to_string()),
        Value::DoubleValue(double) => Some(double.to_string()),
        Value::BoolValue(boolean) => Some(boolean.to_string()),
        _ => None,
    }
}

fn naive_match(span: &Span, context: usize, condition: &SpanCondition) -> bool {
    let resources: [&[(&str, &str)]; 3] = [
        &[("service.name", "a"), ("k", "b")],
        &[("service.name", "b"), ("l", "7")],
        &[],
    ];
    let service = ["a", "b", "unknown_service"][context];
    let status = span.status.as_ref().map_or(0, |status| status.code);
    let has_tag = |tag: &TagCondition| {
        let of_resource = resources[context]
            .iter()
            .any(|(key, value)| *key == tag.key && *value == tag.value);
        let of_span = span.attributes.iter().any(|pair| {
            let value = pair.value.as_ref().and_then(|any| any.value.as_ref());
            pair.key == tag.key && value.and_then(naive_text).as_ref() == Some(&tag.value)
        });
        of_resource || of_span
    };
    condition
        .service
        .as_deref()
        .is_none_or(|wanted| wanted == service)
        && condition
            .operation
            .as_ref()
            .is_none_or(|name| *name == span.name)
        && condition
            .status
            .is_none_or(|wanted| wanted == StatusCode::from_wire(status))
        && condition.tags.iter().all(has_tag)
}

fn condition() -> impl Strategy<Value = SpanCondition> {
    let service = prop_oneof![Just("a"), Just("b"), Just("unknown_service"), Just("z")];
    let status = prop_oneof![
        Just(StatusCode::Unset),
        Just(StatusCode::Ok),
        Just(StatusCode::Error)
    ];
    let tag = ("[k-p]", text()).prop_map(|(key, value)| TagCondition { key, value });
    (
        proptest::option::weighted(0.3, service),
        proptest::option::weighted(0.3, text()),
        proptest::option::weighted(0.3, status),
        proptest::collection::vec(tag, 0..3),
    )
        .prop_map(|(service, operation, status, tags)| SpanCondition {
            service: service.map(str::to_owned),
            operation,
            status,
            tags,
        })
}

fn matching_rows(page: &EncodedPage, condition: &SpanCondition) -> Vec<u32> {
    let condition = PageCondition::new(condition);
    let mut resource = |hash: ContextHash| {
        let stored = page.contexts.iter().find(|known| known.hash == hash);
        let context = read_context(&stored.unwrap().bytes).unwrap();
        Ok(condition.match_resource(context.resource))
    };
    let mut reader = PageReader::open(&page.bytes).unwrap();
    reader.matching_rows(&condition, &mut resource).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spans_are_rebuilt_byte_for_byte(first in fragments(any_edit()), second in fragments(any_edit())) {
        let mut builder = PageBuilder::new();
        let page = encode(&mut builder, &first);
        assert_rebuilt(&page, first);
        // The builder's memory is used again, its contents are not.
        let page = encode(&mut builder, &second);
        assert_rebuilt(&page, second.clone());
        prop_assert_eq!(page, encode(&mut PageBuilder::new(), &second));
    }

    #[test]
    fn columns_answer_as_decoded_spans_do(
        fragments in fragments(legal_edit()),
        conditions in proptest::collection::vec(condition(), 8),
    ) {
        let page = encode(&mut PageBuilder::new(), &fragments);
        let fragments = sorted(fragments);
        let spans: Vec<(usize, Span)> = fragments
            .iter()
            .flat_map(|fragment| &fragment.spans)
            .map(|(context, span)| (*context, Span::decode(span.as_slice()).unwrap()))
            .collect();
        for condition in &conditions {
            let expected: Vec<u32> = (0u32..)
                .zip(&spans)
                .filter(|(_, (context, span))| naive_match(span, *context, condition))
                .map(|(row, _)| row)
                .collect();
            prop_assert_eq!(matching_rows(&page, condition), expected, "{:?}", condition);
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_page_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(PageReader::open(&Bytes::from(bytes)).is_err());
    }
}

/// A page with every kind of column, of fixed content.
fn sample() -> (EncodedPage, Vec<OwnedFragment>) {
    let mut fragments = Vec::new();
    for trace in 1..=3u8 {
        let mut spans = Vec::new();
        for number in 1..=4u64 {
            let span = sample_span(trace, number);
            let mut bytes = span.encode_to_vec();
            if number == 4 {
                bytes.extend_from_slice(&[0xf8, 0x06, 0x05]);
            }
            spans.push((usize::from(trace) % 3, bytes));
        }
        let head = FragmentHead {
            shard: spandrel_model::ids::ShardId(u16::from(trace)),
            trace_id: spandrel_model::ids::TraceId([trace; 16]),
            fragment: spandrel_model::ids::Lsn(100 + u64::from(trace)),
            received_at: spandrel_model::ids::UnixNanos(1_700_000_000_000_000_000),
        };
        fragments.push(OwnedFragment { head, spans });
    }
    (encode(&mut PageBuilder::new(), &fragments), fragments)
}

fn sample_span(trace: u8, number: u64) -> Span {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::trace::v1::{Status, span};
    let pair = |key: &str, value| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    };
    let start = 1_700_000_000_000_000_000 + number * 1_000;
    Span {
        trace_id: vec![trace; 16],
        span_id: number.to_be_bytes().to_vec(),
        parent_span_id: if number == 1 {
            vec![]
        } else {
            (number / 2).to_be_bytes().to_vec()
        },
        name: format!("operation {}", number % 2),
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + 500,
        attributes: vec![
            pair("http.route", Value::StringValue("/cart".to_owned())),
            pair("http.response.status_code", Value::IntValue(200)),
            pair("ratio", Value::DoubleValue(0.25)),
            pair("cached", Value::BoolValue(number == 2)),
            pair("bytes", Value::BytesValue(vec![1, 2])),
        ],
        events: vec![span::Event {
            name: "event".to_owned(),
            ..span::Event::default()
        }],
        status: (number == 3).then(|| Status {
            message: "failed".to_owned(),
            code: 2,
        }),
        flags: 1,
        ..Span::default()
    }
}

#[test]
fn each_changed_byte_is_noticed() {
    let (page, fragments) = sample();
    let everything = |bytes: &Bytes| -> Result<(), PageError> {
        let mut reader = PageReader::open(bytes)?;
        for fragment in &reader.fragments()? {
            reader.visit(fragment, &mut |_| {})?;
        }
        Ok(())
    };
    assert!(everything(&page.bytes).is_ok());
    assert_eq!(fragments.len(), 3);
    for at in 0..page.bytes.len() {
        let mut changed = page.bytes.to_vec();
        changed[at] ^= 0x10;
        assert!(
            matches!(
                everything(&Bytes::from(changed)),
                Err(PageError::Corrupt(_))
            ),
            "byte {at} of {}",
            page.bytes.len()
        );
    }
    for len in 0..page.bytes.len() {
        assert!(everything(&page.bytes.slice(..len)).is_err());
    }
}

/// The golden file is a page as version 1 writes it: later versions must still read it.
#[test]
fn the_golden_page_is_read_and_still_written() {
    let golden = include_bytes!("testdata/page_v1.bin");
    let (page, fragments) = sample();
    let stored = EncodedPage {
        bytes: Bytes::from_static(golden),
        ..page.clone()
    };
    assert_rebuilt(&stored, fragments);
    assert_eq!(
        page.bytes,
        golden.as_slice(),
        "the encoder writes another form: is it a new version?"
    );
}

#[test]
fn large_fragments_with_repeated_ids_find_their_parents() {
    let spans = (0..5_000u64).map(|number| {
        let mut span = sample_span(1, 1 + number % 1_000);
        span.parent_span_id = (1 + (number * 7) % 1_200).to_be_bytes().to_vec();
        span.attributes[0].value = Some(opentelemetry_proto::tonic::common::v1::AnyValue {
            value: Some(Value::StringValue(format!("value {number}"))),
        });
        (0, span.encode_to_vec())
    });
    let (_, fragments) = sample();
    let fragment = OwnedFragment {
        head: fragments[0].head,
        spans: spans.collect(),
    };
    let page = encode(&mut PageBuilder::new(), std::slice::from_ref(&fragment));
    assert_rebuilt(&page, vec![fragment]);
}

#[test]
fn a_span_of_more_keys_than_columns_is_kept() {
    let mut spans = Vec::new();
    for number in 0..100u64 {
        let mut span = sample_span(1, number + 1);
        for attribute in 0..60 {
            let mut pair = span.attributes[0].clone();
            pair.key = format!("key {number} {attribute}");
            span.attributes.push(pair);
        }
        spans.push((0, span.encode_to_vec()));
    }
    let (_, fragments) = sample();
    let fragment = OwnedFragment {
        head: fragments[0].head,
        spans,
    };
    let page = encode(&mut PageBuilder::new(), std::slice::from_ref(&fragment));
    assert_rebuilt(&page, vec![fragment]);
}

#[test]
fn fragments_of_one_key_are_joined_and_a_full_page_says_so() {
    let (_, fragments) = sample();
    let mut builder = PageBuilder::new();
    let context = OwnedContext::default();
    let spans: Vec<PageSpan<'_>> = fragments[0]
        .spans
        .iter()
        .map(|(_, span)| PageSpan {
            context: context.raw(),
            span,
        })
        .collect();
    builder.push(fragments[0].head, &spans[..1]).unwrap();
    builder.push(fragments[0].head, &spans[1..]).unwrap();
    let page = builder.finish().unwrap().unwrap();
    assert_eq!((page.fragments.len(), page.fragments[0].rows), (1, 4));
    assert!(builder.finish().unwrap().is_none());

    let many = vec![
        PageSpan {
            context: context.raw(),
            span: b""
        };
        limits::MAX_PAGE_SPANS as usize + 1
    ];
    assert_eq!(
        builder.push(fragments[0].head, &many),
        Err(PageFull {
            what: "spans",
            value: 200_001,
            limit: 200_000
        })
    );
}
