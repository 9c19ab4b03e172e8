//! Importing one policy of the Collector, with those inside it.

use super::emit::Out;
use super::set::PolicySet;
use super::tree::{Node, Value};
use crate::limits::MAX_POLICY_DEPTH;

/// Collects what could not be taken over.
#[derive(Debug, Default)]
pub(super) struct Importer {
    pub(super) notes: Vec<String>,
    names: Vec<String>,
}

/// The fields of the Collector's policy types that are ours too.
const FIELDS: [(&str, &[&str]); 13] = [
    ("always_sample", &[]),
    ("latency", &["threshold_ms", "upper_threshold_ms"]),
    (
        "numeric_attribute",
        &["key", "min_value", "max_value", "invert_match"],
    ),
    ("probabilistic", &["sampling_percentage", "hash_salt"]),
    ("status_code", &["status_codes"]),
    (
        "string_attribute",
        &["key", "values", "enabled_regex_matching", "invert_match"],
    ),
    ("boolean_attribute", &["key", "value", "invert_match"]),
    ("rate_limiting", &["spans_per_second"]),
    ("bytes_limiting", &["bytes_per_second", "burst_capacity"]),
    ("span_count", &["min_spans", "max_spans"]),
    ("trace_state", &["key", "values"]),
    ("trace_flags", &[]),
    ("composite", &["max_total_spans_per_second", "policy_order"]),
];

impl Importer {
    pub(super) fn note(&mut self, sentence: String) {
        self.notes.push(sentence);
    }

    /// A policy at the top, or a note why not.
    pub(super) fn policy(&mut self, node: &Node) -> Option<Out> {
        let name = node.get("name").and_then(Node::scalar).unwrap_or_default();
        let notes = self.notes.len();
        let policy = self
            .convert(node, 1)
            .and_then(|entries| check(&entries).map(|()| entries));
        let mut entries = match policy {
            Ok(entries) => entries,
            Err(reason) => {
                // What was lost inside it is lost with it.
                self.notes.truncate(notes);
                let line = node.place.line;
                self.note(format!("policy `{name}` (line {line}): {reason}"));
                return None;
            }
        };
        let unique = self.unique(name);
        if unique != name {
            self.note(format!(
                "policy `{name}` (line {}): an earlier one has that name, it became `{unique}`",
                node.place.line
            ));
            if let Some((_, value)) = entries.first_mut() {
                *value = Out::text(&unique);
            }
        }
        self.names.push(unique);
        Some(Out::Map(entries))
    }

    fn unique(&self, name: &str) -> String {
        let taken = |name: &str| self.names.iter().any(|known| known == name);
        if !taken(name) {
            return name.to_owned();
        }
        // Bounded: one of as many numbers as there are names is free.
        (2..=self.names.len() + 2)
            .map(|number| format!("{name}-{number}"))
            .find(|candidate| !taken(candidate))
            .unwrap_or_default()
    }

    /// The fields of our policy, `name` first, or the reason why there is none.
    fn convert(&mut self, node: &Node, depth: usize) -> Result<Vec<(String, Out)>, String> {
        if depth > MAX_POLICY_DEPTH {
            return Err(format!("policies may be {MAX_POLICY_DEPTH} deep"));
        }
        let name = node.get("name").and_then(Node::scalar).unwrap_or_default();
        let Some(kind) = node.get("type").and_then(Node::scalar) else {
            return Err("it has no type".to_owned());
        };
        let block = node.get(kind);
        let mut entries = Vec::new();
        if !name.is_empty() {
            entries.push(("name".to_owned(), Out::text(name)));
        }
        entries.push(("type".to_owned(), Out::text(kind)));
        match kind {
            "and" => entries.push(self.list(block, "and_sub_policy", depth)?),
            "drop" => entries.push(self.list(block, "drop_sub_policy", depth)?),
            "not" => {
                let sub = block.and_then(|block| block.get("not_sub_policy"));
                let sub = sub.ok_or("it has no not_sub_policy")?;
                let converted = self.convert(sub, depth + 1)?;
                entries.push(("not_sub_policy".to_owned(), Out::Map(converted)));
            }
            "ottl_condition" => {
                let reason = "ottl_condition has no counterpart: string_attribute, numeric_attribute, \
                              boolean_attribute and status_code, joined by `and` and `not`, say most of what it can";
                return Err(reason.to_owned());
            }
            _ => self.fields(name, kind, block, &mut entries)?,
        }
        if kind == "composite" {
            self.composite(name, block, depth, &mut entries)?;
        }
        self.other_blocks(node, name, kind);
        Ok(entries)
    }

    fn list(
        &mut self,
        block: Option<&Node>,
        key: &str,
        depth: usize,
    ) -> Result<(String, Out), String> {
        let list = block.and_then(|block| block.get(key));
        let items = list.map(Node::items).unwrap_or_default();
        if items.is_empty() {
            return Err(format!("it has no {key}"));
        }
        let mut converted = Vec::new();
        for item in items {
            let label = item.get("name").and_then(Node::scalar).unwrap_or_default();
            let sub = self
                .convert(item, depth + 1)
                .map_err(|reason| format!("its sub-policy `{label}`: {reason}"))?;
            converted.push(Out::Map(sub));
        }
        Ok((key.to_owned(), Out::List(converted)))
    }

    fn fields(
        &mut self,
        name: &str,
        kind: &str,
        block: Option<&Node>,
        entries: &mut Vec<(String, Out)>,
    ) -> Result<(), String> {
        let Some((_, known)) = FIELDS.iter().find(|(known, _)| *known == kind) else {
            return Err(format!("there is no policy type `{kind}` here"));
        };
        for entry in block.map(Node::entries).unwrap_or_default() {
            let key = entry.key.as_str();
            if known.contains(&key) {
                let value = value(kind, key, &entry.node)?;
                entries.push((key.to_owned(), value));
                if key == "hash_salt" {
                    self.note(format!(
                        "policy `{name}`: the salted hash is another one than the Collector's, so the same share of \
                         the traces is kept but not the same traces"
                    ));
                }
            } else if !(kind == "composite"
                && matches!(key, "composite_sub_policy" | "rate_allocation"))
            {
                let reason = match key {
                    "cache_max_size" => "matches are not cached",
                    _ => "there is no such field here",
                };
                self.note(format!("policy `{name}`: `{kind}.{key}`: {reason}"));
            }
        }
        Ok(())
    }

    fn composite(
        &mut self,
        name: &str,
        block: Option<&Node>,
        depth: usize,
        entries: &mut Vec<(String, Out)>,
    ) -> Result<(), String> {
        let subs = self.list(block, "composite_sub_policy", depth)?;
        let count = match &subs.1 {
            Out::List(items) => items.len(),
            Out::Scalar(_) | Out::Map(_) => 0,
        };
        entries.push(subs);
        let allocation = block.and_then(|block| block.get("rate_allocation"));
        let mut shares = Vec::new();
        for item in allocation.map(Node::items).unwrap_or_default() {
            let share = ["policy", "percent"].map(|key| {
                let value = item.get(key).and_then(Out::copy);
                value.map(|value| (key.to_owned(), value))
            });
            let share: Option<Vec<_>> = share.into_iter().collect();
            shares.push(Out::Map(share.ok_or("a rate_allocation is incomplete")?));
        }
        if !shares.is_empty() && shares.len() < count {
            self.note(format!(
                "policy `{name}`: sub-policies without a rate_allocation share what remains of the total; the \
                 Collector gives each {} percent on top of it",
                100 / count
            ));
        }
        if !shares.is_empty() {
            entries.push(("rate_allocation".to_owned(), Out::List(shares)));
        }
        Ok(())
    }

    /// The Collector ignores the blocks of types other than `type`; say so.
    fn other_blocks(&mut self, node: &Node, name: &str, kind: &str) {
        for entry in node.entries() {
            let key = entry.key.as_str();
            if !matches!(key, "name" | "type") && key != kind {
                self.note(format!(
                    "policy `{name}` (line {}): `{key}` does not belong to its type, {kind}",
                    entry.place.line
                ));
            }
        }
    }
}

fn value(kind: &str, key: &str, node: &Node) -> Result<Out, String> {
    let placeholder = |node: &Node| node.scalar().is_some_and(|text| text.contains("${"));
    if placeholder(node) || node.items().iter().any(placeholder) {
        return Err(format!(
            "`{kind}.{key}` is filled in by the Collector (`${{...}}`): write the value and import again"
        ));
    }
    if key == "sampling_percentage" {
        // The Collector reads everything from 100 on as all.
        match node.value {
            Value::Int { value, .. } if value > 100 => return Ok(Out::Scalar("100".to_owned())),
            Value::Float { value, .. } if value > 100.0 => {
                return Ok(Out::Scalar("100".to_owned()));
            }
            _ => {}
        }
    }
    Out::copy(node).ok_or_else(|| format!("`{kind}.{key}` is not a value that can be read"))
}

/// Our own parser's opinion of the policy.
fn check(entries: &[(String, Out)]) -> Result<(), String> {
    let alone = Out::Map(vec![(
        "policies".to_owned(),
        Out::List(vec![Out::Map(entries.to_vec())]),
    )]);
    PolicySet::parse(&alone.render(), 0)
        .map(|_| ())
        .map_err(|error| {
            let field = error.field.trim_start_matches("policies[0]");
            let field = field.trim_start_matches('.');
            format!("`{field}` {}", error.message)
        })
}
