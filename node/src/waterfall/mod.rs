//! Draws a trace in a terminal: a pure function from spans to text.

mod bar;
mod text;
mod tree;

#[cfg(test)]
mod waterfall_test;

use std::collections::BTreeSet;
use std::fmt::Write;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};
use spandrel_api::time::format_duration;

use text::service_style;
pub use text::{Colour, cut, escape};
pub(crate) use text::{Style, columns, padding};
use tree::{Joint, Row};

/// Fewest columns that a drawing takes.
pub const MIN_WIDTH: usize = 40;
/// Widest drawing in columns: wider ones are harder to read than narrower ones.
pub const MAX_WIDTH: usize = 400;
/// Events and links of a span that are shown.
const MAX_EVENTS_OF_A_SPAN: usize = 8;
/// Attributes of a span that are shown.
const MAX_ATTRIBUTES_OF_A_SPAN: usize = 128;
/// Columns of a duration.
const DURATION_WIDTH: usize = 8;

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawing {
    /// Columns; kept between [`MIN_WIDTH`] and [`MAX_WIDTH`].
    pub width: usize,
    /// Whether to colour.
    pub colour: Colour,
    /// Whether to show events and links.
    pub events: bool,
    /// Whether to show attributes.
    pub attributes: bool,
    /// Most spans to draw; the rest is counted.
    pub limit_spans: usize,
}

impl Default for Drawing {
    fn default() -> Self {
        Self {
            width: 100,
            colour: Colour::Never,
            events: true,
            attributes: false,
            limit_spans: 500,
        }
    }
}

/// What is known of the trace besides its spans.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heading {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// `open`, `kept` or `dropped`.
    pub state: String,
    /// The decision in a sentence; empty while there is none.
    pub decision: String,
    /// What was not reached, a sentence each; empty when the trace is complete.
    pub missing: Vec<String>,
}

/// Draws the trace. No line is wider than the drawing, and nothing that a client sent steers the terminal.
#[must_use]
pub fn draw(heading: &Heading, trace: &TracesData, drawing: &Drawing) -> String {
    let spans = tree::spans(trace);
    let mut canvas = Canvas::new(&spans, drawing);
    canvas.heading(heading, &spans);
    if spans.is_empty() {
        canvas.line("no spans");
        return canvas.out;
    }
    canvas.axis();
    let rows = tree::rows(&spans);
    for row in rows.iter().take(drawing.limit_spans) {
        canvas.row(row);
    }
    canvas.footer(&rows, drawing.limit_spans);
    canvas.out
}

struct Canvas<'d> {
    out: String,
    drawing: &'d Drawing,
    width: usize,
    label_width: usize,
    bar_width: usize,
    start: u64,
    total: u128,
}

impl<'d> Canvas<'d> {
    fn new(spans: &[(&str, &Span)], drawing: &'d Drawing) -> Self {
        let width = drawing.width.clamp(MIN_WIDTH, MAX_WIDTH);
        let start = spans
            .iter()
            .map(|(_, span)| span.start_time_unix_nano)
            .min()
            .unwrap_or(0);
        let end = spans
            .iter()
            .map(|(_, span)| span.end_time_unix_nano.max(span.start_time_unix_nano))
            .max()
            .unwrap_or(0);
        let label_width = (width * 9 / 20).clamp(20, 72);
        // Label, space, duration, space, mark, space, bar.
        let bar_width = width - label_width - DURATION_WIDTH - 4;
        Self {
            out: String::new(),
            drawing,
            width,
            label_width,
            bar_width,
            start,
            total: u128::from(end.saturating_sub(start)),
        }
    }

    fn heading(&mut self, heading: &Heading, spans: &[(&str, &Span)]) {
        let services: BTreeSet<&str> = spans.iter().map(|(service, _)| *service).collect();
        let errors = spans.iter().filter(|(_, span)| is_error(span)).count();
        let id = self.paint(Style::Strong, &escape(&heading.trace_id));
        let _ = writeln!(self.out, "trace {id}");
        let facts = format!(
            "{}  {}  {}  {}  {}",
            escape(&heading.state),
            format_duration(i128::try_from(self.total).unwrap_or(i128::MAX)),
            count(spans.len(), "span"),
            count(services.len(), "service"),
            count(errors, "error"),
        );
        self.line(&facts);
        if !heading.decision.is_empty() {
            self.line(&escape(&heading.decision));
        }
        for missing in &heading.missing {
            self.styled_line(Style::Error, &format!("incomplete: {}", escape(missing)));
        }
    }

    /// The scale: zero and the trace's whole duration at the ends of the bars.
    fn axis(&mut self) {
        let end = format_duration(i128::try_from(self.total).unwrap_or(i128::MAX));
        let lead = " ".repeat(self.width - self.bar_width);
        let gap = " ".repeat(self.bar_width.saturating_sub(1 + columns(&end)));
        let scale = format!("{lead}0{gap}{end}");
        self.styled_line(Style::Dim, &scale);
    }

    fn row(&mut self, row: &Row) {
        let span = row.span;
        let guide = guide(row, self.label_width / 2);
        let room = self.label_width.saturating_sub(columns(&guide));
        // A long name of a service leaves a quarter to the span's.
        let for_name = columns(&escape(&span.name)).min(room / 4);
        let service = cut(&escape(row.service), room.saturating_sub(for_name + 1));
        let left = room.saturating_sub(columns(&service) + 1);
        let name = if left > 2 {
            cut(&escape(&span.name), left)
        } else {
            String::new()
        };
        let label = if name.is_empty() {
            format!("{guide}{service}")
        } else {
            format!("{guide}{service} {name}")
        };
        let fill = padding(&label, self.label_width);
        let took = i128::from(span.end_time_unix_nano) - i128::from(span.start_time_unix_nano);
        let took = cut(&format_duration(took), DURATION_WIDTH);
        let lead = padding(&took, DURATION_WIDTH);
        let (mark, style) = if is_error(span) {
            ("✗", Style::Error)
        } else {
            (" ", service_style(row.service))
        };
        let from = u128::from(span.start_time_unix_nano - self.start);
        let to = u128::from(span.end_time_unix_nano.saturating_sub(self.start));
        let bar = bar::bar(from, to, self.total, self.bar_width);
        let blank = bar.len() - bar.trim_start().len();
        let bar = format!(
            "{}{}",
            bar.get(..blank).unwrap_or_default(),
            self.paint(style, bar.trim())
        );
        let name_gap = if name.is_empty() { "" } else { " " };
        let line = format!(
            "{}{}{name_gap}{name}{fill} {lead}{took} {} {bar}",
            self.paint(Style::Dim, &guide),
            self.paint(service_style(row.service), &service),
            self.paint(Style::Error, mark),
        );
        let _ = writeln!(self.out, "{}", line.trim_end());
        self.notes(row);
        self.details(row);
    }

    /// What is odd about the span.
    fn notes(&mut self, row: &Row) {
        let span = row.span;
        if let Some(message) = span
            .status
            .as_ref()
            .map(|status| &status.message)
            .filter(|text| !text.is_empty())
        {
            let style = if is_error(span) {
                Style::Error
            } else {
                Style::Dim
            };
            self.detail(row, style, &format!("status: {}", escape(message)));
        }
        match row.joint {
            Joint::Orphan => {
                let parent = hex(&span.parent_span_id);
                self.detail(row, Style::Dim, &format!("its parent {parent} is not here"));
            }
            Joint::Cycle => self.detail(row, Style::Dim, "its parents lead back to itself"),
            Joint::Root | Joint::Child => {}
        }
        if row.early_nanos > 0 {
            let early = format_duration(i128::from(row.early_nanos));
            self.detail(
                row,
                Style::Dim,
                &format!("starts {early} before its parent: their clocks differ"),
            );
        }
        if span.end_time_unix_nano < span.start_time_unix_nano {
            self.detail(row, Style::Dim, "ends before it starts");
        }
    }

    fn details(&mut self, row: &Row) {
        let span = row.span;
        if self.drawing.events {
            for event in span.events.iter().take(MAX_EVENTS_OF_A_SPAN) {
                let at = i128::from(event.time_unix_nano) - i128::from(span.start_time_unix_nano);
                let attributes = attributes_line(&event.attributes);
                let text = format!(
                    "• +{} {} {attributes}",
                    format_duration(at),
                    escape(&event.name)
                );
                self.detail(row, Style::Dim, text.trim_end());
            }
            for link in span.links.iter().take(MAX_EVENTS_OF_A_SPAN) {
                let text = format!(
                    "→ trace {} span {} {}",
                    hex(&link.trace_id),
                    hex(&link.span_id),
                    attributes_line(&link.attributes)
                );
                self.detail(row, Style::Dim, text.trim_end());
            }
            let left_out = span.events.len().saturating_sub(MAX_EVENTS_OF_A_SPAN)
                + span.links.len().saturating_sub(MAX_EVENTS_OF_A_SPAN);
            if left_out > 0 {
                self.detail(
                    row,
                    Style::Dim,
                    &format!("and {left_out} more events and links (--json has all)"),
                );
            }
        }
        if self.drawing.attributes {
            for attribute in span.attributes.iter().take(MAX_ATTRIBUTES_OF_A_SPAN) {
                let text = format!(
                    "{} = {}",
                    escape(&attribute.key),
                    value_text(attribute.value.as_ref())
                );
                self.detail(row, Style::Dim, &text);
            }
        }
    }

    fn footer(&mut self, rows: &[Row], limit: usize) {
        let hidden = rows.get(limit..).unwrap_or_default();
        if !hidden.is_empty() {
            let errors = hidden.iter().filter(|row| is_error(row.span)).count();
            let text = format!(
                "{} not drawn, {} among them: --limit-spans draws more",
                count(hidden.len(), "span"),
                count(errors, "error")
            );
            self.line(&text);
        }
        let early = rows.iter().filter(|row| row.early_nanos > 0).count();
        if early > 0 {
            let spans = count(early, "span");
            self.line(&format!(
                "earlier than the parent: {spans}, drawn where the clocks say"
            ));
        }
    }

    /// A line below a span, indented with it.
    fn detail(&mut self, row: &Row, style: Style, text: &str) {
        let indent = below(row, self.label_width / 2);
        let text = cut(text, self.width.saturating_sub(columns(&indent)));
        let line = format!(
            "{}{}",
            self.paint(Style::Dim, &indent),
            self.paint(style, &text)
        );
        let _ = writeln!(self.out, "{line}");
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}", cut(text, self.width));
    }

    fn styled_line(&mut self, style: Style, text: &str) {
        let text = self.paint(style, &cut(text, self.width));
        let _ = writeln!(self.out, "{text}");
    }

    fn paint(&self, style: Style, text: &str) -> String {
        self.drawing.colour.paint(style, text)
    }
}

/// The lines that join a span to its parent, at most `room` columns wide.
fn guide(row: &Row, room: usize) -> String {
    let Some((own, ancestors)) = row.last.split_last() else {
        return String::new();
    };
    let mut out: String = ancestors
        .iter()
        .map(|last| if *last { "  " } else { "│ " })
        .collect();
    out.push_str(if *own { "└ " } else { "├ " });
    if columns(&out) > room || row.depth > row.last.len() {
        let depth = format!("{}› ", row.depth);
        let kept: String = out
            .chars()
            .take(room.saturating_sub(columns(&depth)))
            .collect();
        return format!("{kept}{depth}");
    }
    out
}

/// The lines beside what is said below a span.
fn below(row: &Row, room: usize) -> String {
    let mut out: String = row
        .last
        .iter()
        .map(|last| if *last { "  " } else { "│ " })
        .collect();
    out.push_str("  ");
    out.chars().take(room).collect()
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

fn hex(bytes: &[u8]) -> String {
    // Ids are 8 or 16 bytes; more is not an id and is cut.
    bytes
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Attributes in one line; a stack trace only by its length, since it would push the rest out.
fn attributes_line(attributes: &[KeyValue]) -> String {
    let mut parts = Vec::new();
    for attribute in attributes.iter().take(MAX_ATTRIBUTES_OF_A_SPAN) {
        if attribute.key != "exception.stacktrace" {
            parts.push(format!(
                "{}={}",
                escape(&attribute.key),
                value_text(attribute.value.as_ref())
            ));
        }
    }
    parts.join(" ")
}

/// A value for people, on one line.
fn value_text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        None => String::new(),
        Some(Value::StringValue(text)) => escape(text),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BytesValue(bytes)) => format!("{} bytes", bytes.len()),
        Some(Value::ArrayValue(array)) => {
            let values: Vec<String> = array
                .values
                .iter()
                .take(16)
                .map(|value| value_text(Some(value)))
                .collect();
            format!("[{}]", values.join(", "))
        }
        Some(Value::KvlistValue(list)) => format!("{{{}}}", attributes_line(&list.values)),
        Some(other) => escape(&format!("{other:?}")),
    }
}
