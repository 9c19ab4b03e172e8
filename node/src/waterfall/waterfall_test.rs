//! What a trace looks like.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};

use super::{Colour, Drawing, Heading, columns, draw};

const START: u64 = 1_790_000_000_000_000_000;

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

fn span(id: u8, parent: u8, name: &str, from_ms: u64, to_ms: u64) -> Span {
    Span {
        span_id: vec![0, 0, 0, 0, 0, 0, 0, id],
        parent_span_id: if parent == 0 {
            Vec::new()
        } else {
            vec![0, 0, 0, 0, 0, 0, 0, parent]
        },
        name: name.to_owned(),
        start_time_unix_nano: START + from_ms * 1_000_000,
        end_time_unix_nano: START + to_ms * 1_000_000,
        ..Span::default()
    }
}

fn trace(spans: Vec<(&str, Span)>) -> TracesData {
    let resource_spans = spans.into_iter().map(|(service, span)| ResourceSpans {
        resource: Some(Resource {
            attributes: vec![text("service.name", service)],
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            spans: vec![span],
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    });
    TracesData {
        resource_spans: resource_spans.collect(),
    }
}

fn checkout() -> Vec<(&'static str, Span)> {
    vec![
        ("payment-service", span(4, 2, "Payment Call", 130, 1_080)),
        ("inventory-service", span(3, 2, "Inventory Check", 40, 120)),
        ("api-gateway", span(1, 0, "POST /checkout", 0, 1_200)),
        ("payment-service", span(5, 4, "PSP HTTP Call", 140, 1_070)),
        ("order-service", span(2, 1, "POST /orders", 20, 1_180)),
    ]
}

fn heading() -> Heading {
    Heading {
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        state: "kept".to_owned(),
        decision: "keep by policy slow, trigger idle, probability 1".to_owned(),
        missing: Vec::new(),
    }
}

fn at_width(width: usize) -> Drawing {
    Drawing {
        width,
        ..Drawing::default()
    }
}

/// Compares with `testdata/NAME.txt`; with `SPANDREL_UPDATE_GOLDEN` set, writes it instead.
#[track_caller]
fn check(name: &str, spans: Vec<(&str, Span)>, drawing: &Drawing) {
    let drawn = draw(&heading(), &trace(spans), drawing);
    assert!(
        drawn.lines().all(|line| columns(line) <= drawing.width),
        "{drawn}"
    );
    let path = format!(
        "{}/src/waterfall/testdata/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    #[allow(clippy::disallowed_methods)] // asks for new golden files
    if std::env::var_os("SPANDREL_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(drawn, expected, "{name}:\n{drawn}");
}

#[test]
fn a_normal_trace_at_several_widths() {
    check("normal", checkout(), &Drawing::default());
    check("narrow", checkout(), &at_width(60));
    check("wide", checkout(), &at_width(160));
}

#[test]
fn an_error_with_its_event_and_attributes() {
    let mut spans = checkout();
    let failed = &mut spans[3].1;
    failed.status = Some(Status {
        message: "payment authorization failed".to_owned(),
        code: 2,
    });
    failed.attributes.push(text("http.route", "/v1/charges"));
    failed.events.push(Event {
        time_unix_nano: START + 1_000_000_000,
        name: "exception".to_owned(),
        attributes: vec![
            text("exception.type", "Timeout"),
            text("exception.stacktrace", "very long"),
        ],
        ..Event::default()
    });
    let drawing = Drawing {
        attributes: true,
        ..Drawing::default()
    };
    check("error", spans, &drawing);
}

#[test]
fn several_roots_orphans_cycles_and_skewed_clocks() {
    let spans = vec![
        ("b", span(2, 0, "second root", 50, 90)),
        ("a", span(1, 0, "first root", 10, 100)),
        ("c", span(3, 99, "orphan", 0, 30)),
        ("d", span(4, 1, "early child", 5, 40)),
        ("e", span(5, 6, "circle one", 60, 70)),
        ("e", span(6, 5, "circle two", 61, 69)),
        ("f", span(7, 7, "own parent", 80, 81)),
        ("g", span(8, 2, "backwards", 70, 60)),
    ];
    check("broken", spans, &Drawing::default());
}

#[test]
fn links_and_more_events_than_are_shown() {
    let mut consumer = span(1, 0, "process orders.placed", 0, 10);
    consumer.links = vec![Link {
        trace_id: vec![0xab; 16],
        span_id: vec![0xcd; 8],
        ..Link::default()
    }];
    consumer.events = (0..11)
        .map(|number| Event {
            time_unix_nano: START + number * 100_000,
            name: format!("retry {number}"),
            ..Event::default()
        })
        .collect();
    check("links", vec![("worker", consumer)], &Drawing::default());
}

#[test]
fn colours_are_only_in_coloured_drawings() {
    let plain = draw(&heading(), &trace(checkout()), &Drawing::default());
    assert!(!plain.contains('\x1b'));
    let coloured = draw(
        &heading(),
        &trace(checkout()),
        &Drawing {
            colour: Colour::Ansi,
            ..Drawing::default()
        },
    );
    assert!(coloured.contains("\x1b[38;5;"));
}

#[test]
fn a_hostile_name_cannot_steer_the_terminal() {
    let spans = vec![("evil\x1b[2J", span(1, 0, "a\u{202e}b\r\nc", 0, 1))];
    let drawn = draw(&heading(), &trace(spans), &at_width(160));
    assert!(
        drawn.contains("evil\\u{1b}[2J a\\u{202e}b\\r\\nc"),
        "{drawn}"
    );
    assert!(drawn.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn a_long_chain_and_many_spans_stay_bounded() {
    let mut spans: Vec<(&str, Span)> = Vec::new();
    for number in 1..=3_000_u64 {
        let mut one = span(1, 0, "step", 0, 5_000);
        one.span_id = number.to_be_bytes().to_vec();
        one.parent_span_id = if number == 1 {
            Vec::new()
        } else {
            (number - 1).to_be_bytes().to_vec()
        };
        spans.push(("chain", one));
    }
    let drawn = draw(&heading(), &trace(spans), &at_width(80));
    assert!(drawn.lines().count() < 510);
    assert!(drawn.lines().all(|line| columns(line) <= 80));
    assert!(
        drawn.contains("2500 spans not drawn, 0 errors among them"),
        "{drawn}"
    );
}
