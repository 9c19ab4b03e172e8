//! YAML as a tree in which every key and value knows its place, so that an error can name it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::error::PolicyError;
use crate::limits::{MAX_POLICY_BYTES, MAX_POLICY_YAML_DEPTH};

/// Where something stands in the file; lines and columns count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value of the file.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a value is. Scalars other than text keep their spelling: `200` may be meant as text.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool { value: bool, spelling: String },
    Int { value: i64, spelling: String },
    Float { value: f64, spelling: String },
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// What people call such a value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool { .. } => "true or false",
            Self::Int { .. } | Self::Float { .. } => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

impl Node {
    /// The value of a key, when this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.node)
    }

    /// The entries of a map, nothing of anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The values of a list, nothing of anything else.
    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The spelling of a scalar.
    pub(super) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Bool { spelling, .. }
            | Value::Int { spelling, .. }
            | Value::Float { spelling, .. } => Some(spelling),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// Parses one YAML document.
///
/// # Errors
/// Text that is too large, too deep, or not YAML; duplicate keys.
pub(super) fn parse(yaml: &str) -> Result<Node, PolicyError> {
    if yaml.len() > MAX_POLICY_BYTES {
        let message = format!(
            "the file has {} bytes, the limit is {MAX_POLICY_BYTES}",
            yaml.len()
        );
        return Err(PolicyError::new(Place::default(), "", message));
    }
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    let mut budget = options.budget.take().unwrap_or_default();
    budget.max_depth = MAX_POLICY_YAML_DEPTH;
    options.budget = Some(budget);
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
            let place = error.location().map(place_of).unwrap_or_default();
            PolicyError::new(place, "", sentence(&error.to_string(), place))
        })?;
    Ok(node(raw, yaml))
}

/// The parser's message without the place, which we tell apart, and in one line.
fn sentence(message: &str, place: Place) -> String {
    let suffix = format!("at line {}, column {}", place.line, place.column);
    let line = message.lines().next().unwrap_or_default();
    let line = line.replace(&suffix, "");
    let line = line.trim().trim_end_matches(':');
    format!("the file is not the YAML expected: {line}")
}

fn place_of(location: Location) -> Place {
    Place {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    }
}

/// A value as serde sees it, its spelling not yet cut from the file.
enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, yaml: &str) -> Node {
    let place = place_of(raw.referenced);
    let spelling = || {
        let span = raw.defined.span();
        span.byte_offset()
            .zip(span.byte_len())
            .and_then(|(start, len)| {
                let start = usize::try_from(start).ok()?;
                let end = start.checked_add(usize::try_from(len).ok()?)?;
                yaml.get(start..end)
            })
            .map(|text| text.trim().to_owned())
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool {
            value,
            spelling: spelling().unwrap_or_else(|| value.to_string()),
        },
        Raw::Int(value) => Value::Int {
            value,
            spelling: spelling().unwrap_or_else(|| value.to_string()),
        },
        Raw::Float(value) => Value::Float {
            value,
            spelling: spelling().unwrap_or_else(|| value.to_string()),
        },
        Raw::Text(text) => Value::Text(text),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, yaml)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    place: place_of(key.referenced),
                    key: key.value,
                    node: node(value, yaml),
                })
                .collect(),
        ),
    };
    Node { place, value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        // Numbers past i64 become floats: no field of ours reaches that far, so that they fail its range.
        #[allow(clippy::cast_precision_loss)]
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
