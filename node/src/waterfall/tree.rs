//! Puts the spans of a trace in order: parents before children, children by start, whatever the ids say.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};

/// How a span is joined to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joint {
    /// It has no parent.
    Root,
    /// Its parent is there.
    Child,
    /// Its parent is not there.
    Orphan,
    /// Its parents lead back to itself.
    Cycle,
}

/// A span in its place.
pub(super) struct Row<'a> {
    pub(super) span: &'a Span,
    pub(super) service: &'a str,
    pub(super) joint: Joint,
    /// For each ancestor and the span itself, whether it is the last child. Empty at the top.
    pub(super) last: Vec<bool>,
    /// Levels below the top.
    pub(super) depth: usize,
    /// Nanoseconds by which it starts before its parent; 0 when it does not.
    pub(super) early_nanos: u64,
}

/// Levels whose guides are kept; deeper ones are drawn at this depth.
pub(super) const MAX_GUIDES: usize = 24;

/// Spans with their services, as they come.
pub(super) fn spans(trace: &TracesData) -> Vec<(&str, &Span)> {
    let mut found = Vec::new();
    for resource_spans in &trace.resource_spans {
        let attributes = resource_spans
            .resource
            .as_ref()
            .map_or(&[][..], |resource| &resource.attributes);
        let service = service_name(attributes).unwrap_or(spandrel_model::limits::UNKNOWN_SERVICE);
        for scope_spans in &resource_spans.scope_spans {
            found.extend(scope_spans.spans.iter().map(|span| (service, span)));
        }
    }
    found
}

fn service_name(attributes: &[KeyValue]) -> Option<&str> {
    let attribute = attributes
        .iter()
        .find(|attribute| attribute.key == "service.name")?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(name) => Some(name),
        _ => None,
    }
}

/// The rows in the order of drawing.
pub(super) fn rows<'a>(spans: &[(&'a str, &'a Span)]) -> Vec<Row<'a>> {
    let mut by_start: Vec<usize> = (0..spans.len()).collect();
    by_start.sort_by_key(|at| {
        (
            spans[*at].1.start_time_unix_nano,
            &spans[*at].1.span_id,
            *at,
        )
    });
    let mut by_id: BTreeMap<&[u8], usize> = BTreeMap::new();
    for at in &by_start {
        by_id.entry(&spans[*at].1.span_id).or_insert(*at);
    }
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let (mut tops, mut parents) = (Vec::new(), vec![None; spans.len()]);
    for at in &by_start {
        let parent = &spans[*at].1.parent_span_id;
        if parent.iter().all(|byte| *byte == 0) {
            tops.push((*at, Joint::Root));
        } else if let Some(parent) = by_id.get(parent.as_slice()) {
            children[*parent].push(*at);
            parents[*at] = Some(*parent);
        } else {
            tops.push((*at, Joint::Orphan));
        }
    }
    tops.sort_by_key(|(_, joint)| *joint == Joint::Orphan);
    let mut walk = Walk {
        spans,
        children,
        parents,
        visited: vec![false; spans.len()],
        rows: Vec::with_capacity(spans.len()),
    };
    for (top, joint) in tops {
        walk.descend(top, joint);
    }
    // What no top reaches hangs together in circles.
    for at in by_start {
        if !walk.visited[at] {
            walk.descend(at, Joint::Cycle);
        }
    }
    walk.rows
}

struct Walk<'a, 's> {
    spans: &'s [(&'a str, &'a Span)],
    children: Vec<Vec<usize>>,
    parents: Vec<Option<usize>>,
    visited: Vec<bool>,
    rows: Vec<Row<'a>>,
}

impl Walk<'_, '_> {
    /// Adds a span and all below it. No recursion: a chain may be as long as the trace.
    fn descend(&mut self, top: usize, joint: Joint) {
        let mut open = vec![(top, joint, Vec::new(), 0)];
        while let Some((at, joint, last, depth)) = open.pop() {
            if std::mem::replace(&mut self.visited[at], true) {
                continue;
            }
            let (service, span) = self.spans[at];
            let parent = self.parents[at].filter(|_| joint == Joint::Child);
            let parent_start = parent.map_or(0, |parent| self.spans[parent].1.start_time_unix_nano);
            let children = std::mem::take(&mut self.children[at]);
            let newest = children
                .iter()
                .rev()
                .find(|child| !self.visited[**child])
                .copied();
            for child in children.iter().rev().filter(|child| !self.visited[**child]) {
                let mut guides: Vec<bool> = last.clone();
                guides.push(Some(*child) == newest);
                guides.truncate(MAX_GUIDES);
                open.push((*child, Joint::Child, guides, depth + 1));
            }
            self.rows.push(Row {
                span,
                service,
                joint,
                last,
                depth,
                early_nanos: parent_start.saturating_sub(span.start_time_unix_nano),
            });
        }
    }
}
