//! The stream is what it is said to be.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use spandrel_model::ids::UnixNanos;

use super::{Batch, Generator, Grouping, Shape};

const START: UnixNanos = UnixNanos(1_790_000_000_000_000_000);

fn shape(grouping: Grouping) -> Shape {
    Shape {
        seed: 7,
        batch_spans: 512,
        grouping,
        errors: 0.02,
        slow: 0.02,
        nanos_per_span: Some(100_000.0),
        record: true,
    }
}

fn stream(grouping: Grouping, batches: usize) -> (Vec<Batch>, Generator) {
    let mut generator = Generator::new(shape(grouping), 0, START);
    let mut made: Vec<Batch> = (0..batches).map(|_| generator.next_batch(START)).collect();
    made.extend(generator.drain());
    (made, generator)
}

fn decode(batch: &Batch) -> Vec<(String, Span)> {
    let request = ExportTraceServiceRequest::decode(batch.request.clone()).unwrap();
    let mut spans = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = resource_spans.resource.unwrap();
        let service = format!("{:?}", resource.attributes[0].value);
        for scope_spans in resource_spans.scope_spans {
            assert!(!scope_spans.scope.unwrap().name.is_empty());
            spans.extend(
                scope_spans
                    .spans
                    .into_iter()
                    .map(|span| (service.clone(), span)),
            );
        }
    }
    spans
}

fn by_trace(batches: &[Batch]) -> BTreeMap<Vec<u8>, Vec<Span>> {
    let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    for (_, span) in batches.iter().flat_map(decode) {
        traces.entry(span.trace_id.clone()).or_default().push(span);
    }
    traces
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_one_others() {
    for grouping in [Grouping::Trace, Grouping::Service] {
        let (first, _) = stream(grouping, 20);
        let (second, _) = stream(grouping, 20);
        let bytes = |batches: &[Batch]| {
            batches
                .iter()
                .map(|batch| batch.request.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(bytes(&first), bytes(&second));
        let other = Shape {
            seed: 8,
            ..shape(grouping)
        };
        let other = Generator::new(other, 0, START).next_batch(START);
        assert_ne!(other.request, first[0].request);
        let stream = Generator::new(shape(grouping), 1, START).next_batch(START);
        assert_ne!(stream.request, first[0].request);
    }
}

#[test]
fn traces_and_spans_have_the_stated_size() {
    for grouping in [Grouping::Trace, Grouping::Service] {
        let (batches, generator) = stream(grouping, 200);
        let bytes: usize = batches.iter().map(|batch| batch.request.len()).sum();
        let spans: usize = batches.iter().map(|batch| decode(batch).len()).sum();
        assert_eq!(spans as u64, generator.spans());
        assert_eq!(
            spans as u64,
            batches
                .iter()
                .map(|batch| u64::from(batch.spans))
                .sum::<u64>()
        );
        let per_trace = spans as f64 / generator.traces() as f64;
        assert!(
            (11.0..=12.5).contains(&per_trace),
            "{per_trace} spans a trace"
        );
        let per_span = bytes as f64 / spans as f64;
        eprintln!("{grouping:?}: {per_trace} spans a trace, {per_span} bytes a span");
        // A process that sends by itself says its resource once for many spans.
        let least = if grouping == Grouping::Trace {
            850.0
        } else {
            750.0
        };
        assert!(
            (least..=950.0).contains(&per_span),
            "{per_span} bytes a span, {grouping:?}"
        );
    }
}

#[test]
fn every_trace_is_a_tree_in_time() {
    let (batches, _) = stream(Grouping::Service, 100);
    for (trace_id, spans) in by_trace(&batches) {
        assert_eq!(trace_id.len(), 16);
        let by_id: BTreeMap<&[u8], &Span> = spans
            .iter()
            .map(|span| (span.span_id.as_slice(), span))
            .collect();
        assert_eq!(by_id.len(), spans.len(), "span ids are distinct");
        assert_eq!(
            spans
                .iter()
                .filter(|span| span.parent_span_id.is_empty())
                .count(),
            1
        );
        for span in &spans {
            assert!(span.start_time_unix_nano < span.end_time_unix_nano);
            for event in &span.events {
                assert!(event.time_unix_nano >= span.start_time_unix_nano);
                assert!(event.time_unix_nano <= span.end_time_unix_nano + 1_024);
            }
            if span.parent_span_id.is_empty() {
                continue;
            }
            let parent = by_id[span.parent_span_id.as_slice()];
            assert!(span.start_time_unix_nano > parent.start_time_unix_nano);
            if span.kind != 5 {
                assert!(
                    span.end_time_unix_nano < parent.end_time_unix_nano,
                    "{}",
                    span.name
                );
            }
        }
    }
}

#[test]
fn errors_slow_traces_links_and_varying_texts_are_there() {
    let (batches, _) = stream(Grouping::Trace, 200);
    let traces = by_trace(&batches);
    let failed = traces
        .values()
        .filter(|spans| spans.iter().any(is_error))
        .count();
    let slow = traces
        .values()
        .filter(|spans| duration(spans) > 1_000_000_000)
        .count();
    let share = |count: usize| count as f64 / traces.len() as f64;
    assert!(
        (0.01..0.03).contains(&share(failed)),
        "{failed} of {}",
        traces.len()
    );
    assert!(
        (0.01..0.03).contains(&share(slow)),
        "{slow} of {}",
        traces.len()
    );
    let spans = || traces.values().flatten();
    assert!(
        spans().filter(|span| is_error(span)).all(|span| !span
            .status
            .as_ref()
            .unwrap()
            .message
            .is_empty())
    );
    assert!(spans().any(|span| span.events.iter().any(|event| event.name == "exception")));
    let linked: BTreeSet<&[u8]> = spans()
        .flat_map(|span| &span.links)
        .map(|link| link.trace_id.as_slice())
        .collect();
    assert!(linked.iter().filter(|id| traces.contains_key(**id)).count() > 20);
    let attributes = spans().map(|span| span.attributes.len()).sum::<usize>();
    let mean = attributes as f64 / spans().count() as f64;
    assert!((14.0..19.0).contains(&mean), "{mean} attributes a span");
    let text = format!("{:?}", traces.values().next().unwrap());
    for marker in ["\\u{1}", "\\u{2}", "\\u{3}", "\\u{4}"] {
        assert!(!text.contains(marker), "an unfilled place: {text}");
    }
}

#[test]
fn by_trace_a_request_holds_whole_traces_but_for_late_spans() {
    let (batches, _) = stream(Grouping::Trace, 50);
    let parts: Vec<_> = batches.iter().flat_map(|batch| &batch.traces).collect();
    let whole = parts
        .iter()
        .filter(|part| part.spans.len() == part.trace_spans as usize)
        .count();
    assert!(whole * 100 > parts.len() * 97, "{whole} of {}", parts.len());
    assert!(whole < parts.len(), "some spans are late");
}

#[test]
fn by_service_a_request_holds_one_process_and_a_trace_is_spread() {
    let (batches, _) = stream(Grouping::Service, 100);
    for batch in &batches {
        let request = ExportTraceServiceRequest::decode(batch.request.clone()).unwrap();
        assert_eq!(request.resource_spans.len(), 1);
    }
    let mut requests: BTreeMap<_, (usize, UnixNanos, UnixNanos)> = BTreeMap::new();
    for batch in &batches {
        for part in &batch.traces {
            let seen = requests
                .entry(part.trace_id)
                .or_insert((0, batch.due, batch.due));
            *seen = (seen.0 + 1, seen.1.min(batch.due), seen.2.max(batch.due));
        }
    }
    let mean = requests.values().map(|seen| seen.0).sum::<usize>() as f64 / requests.len() as f64;
    assert!(mean > 2.0, "{mean} requests a trace");
    assert!(
        requests
            .values()
            .any(|seen| seen.2.since(seen.1) > 2_000_000_000)
    );
}

#[test]
fn the_record_says_what_the_bytes_say() {
    let (batches, _) = stream(Grouping::Service, 60);
    for batch in &batches {
        let spans = decode(batch);
        let listed: BTreeSet<_> = batch
            .traces
            .iter()
            .flat_map(|part| {
                part.spans
                    .iter()
                    .map(|span| (part.trace_id.0.to_vec(), span.0.to_vec()))
            })
            .collect();
        let sent: BTreeSet<_> = spans
            .iter()
            .map(|(_, span)| (span.trace_id.clone(), span.span_id.clone()))
            .collect();
        assert_eq!(listed, sent);
        for part in &batch.traces {
            let error = spans
                .iter()
                .any(|(_, span)| span.trace_id == part.trace_id.0 && is_error(span));
            assert_eq!(part.error, error);
        }
    }
}

#[test]
fn a_paced_stream_is_due_at_its_pace() {
    let mut generator = Generator::new(shape(Grouping::Trace), 0, START);
    let mut sent = 0;
    for _ in 0..50 {
        let batch = generator.next_batch(START);
        sent += u64::from(batch.spans);
        let expected = sent as f64 * 100_000.0;
        let actual = batch.due.since(START) as f64;
        assert!(
            (0.9..1.1).contains(&(actual / expected)),
            "{actual} {expected}"
        );
    }
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

fn duration(spans: &[Span]) -> u64 {
    let start = spans
        .iter()
        .map(|span| span.start_time_unix_nano)
        .min()
        .unwrap();
    let end = spans
        .iter()
        .map(|span| span.end_time_unix_nano)
        .max()
        .unwrap();
    end - start
}

/// Texts that vary were filled in attributes of spans alone: an event's order id reached the terminal as control
/// characters.
#[test]
fn every_text_is_printable_and_an_order_has_one_id() {
    let (batches, _) = stream(Grouping::Service, 40);
    let mut orders = 0;
    for spans in by_trace(&batches).values() {
        let mut ids = BTreeSet::new();
        for span in spans {
            let events = span.events.iter();
            let attributes = events.clone().flat_map(|event| &event.attributes);
            for attribute in span.attributes.iter().chain(attributes) {
                // Debug writes control characters as escapes, which no text of the shop has otherwise.
                let shown = format!("{attribute:?}");
                assert!(!shown.contains("\\u{"), "{shown}");
                if attribute.key == "app.order.id" {
                    ids.insert(format!("{:?}", attribute.value));
                }
            }
            let status = span.status.iter().map(|status| &status.message);
            let names = events.map(|event| &event.name).chain([&span.name]);
            for text in names.chain(status) {
                assert!(!text.chars().any(char::is_control), "{text:?}");
            }
        }
        assert!(ids.len() <= 1, "{ids:?}");
        orders += ids.len();
    }
    assert!(orders > 0);
}
