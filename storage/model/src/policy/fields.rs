//! Reading typed fields out of the tree; whatever is wrong names its place and its path.

use super::error::PolicyError;
use super::tree::{Entry, Node, Place, Value};
use crate::limits::MAX_POLICY_VALUES;

/// A value with its path in the file.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

impl<'a> Item<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    /// An error at this value.
    pub(super) fn error(&self, message: impl Into<String>) -> PolicyError {
        PolicyError::new(self.node.place, self.path.clone(), message)
    }

    fn expected(&self, what: &str) -> PolicyError {
        self.error(format!("must be {what}, got {}", self.node.value.kind()))
    }

    /// Text, not empty. Numbers and booleans count as the text that they are spelled with.
    pub(super) fn text(&self) -> Result<&'a str, PolicyError> {
        match self.node.scalar() {
            Some("") => Err(self.error("must not be empty")),
            Some(text) => Ok(text),
            None => Err(self.expected("text")),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, PolicyError> {
        match self.node.value {
            Value::Bool { value, .. } => Ok(value),
            _ => Err(self.expected("true or false")),
        }
    }

    pub(super) fn integer(&self) -> Result<i64, PolicyError> {
        match self.node.value {
            Value::Int { value, .. } => Ok(value),
            _ => Err(self.expected("a whole number")),
        }
    }

    /// A whole number of `min` to `max`.
    pub(super) fn whole(&self, min: u64, max: u64) -> Result<u64, PolicyError> {
        let number = self.integer()?;
        match u64::try_from(number) {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(self.error(format!("must be {min} to {max}, got {number}"))),
        }
    }

    /// A percentage, 0 to 100, fractions allowed.
    pub(super) fn percentage(&self) -> Result<f64, PolicyError> {
        // A whole number outside f64's exact range is no percentage anyway.
        #[allow(clippy::cast_precision_loss)]
        let number = match self.node.value {
            Value::Int { value, .. } => value as f64,
            Value::Float { value, .. } => value,
            _ => return Err(self.expected("a number")),
        };
        if (0.0..=100.0).contains(&number) {
            Ok(number)
        } else {
            Err(self.error(format!("must be 0 to 100 percent, got {number}")))
        }
    }

    /// A duration in milliseconds: whole numbers with `ms`, `s`, `m` or `h`, such as `10s` or `1m30s`.
    pub(super) fn duration_ms(&self, min: u64, max: u64) -> Result<u64, PolicyError> {
        let text = self.text()?;
        match parse_duration_ms(text) {
            Some(ms) if (min..=max).contains(&ms) => Ok(ms),
            Some(ms) => Err(self.error(format!("must be {min} ms to {max} ms, got {ms} ms"))),
            None => Err(self.error(format!(
                "must be a duration such as 500ms, 10s or 1m30s, got `{text}`"
            ))),
        }
    }

    /// A list of 1 to `MAX_POLICY_VALUES` entries.
    pub(super) fn list(&self) -> Result<Vec<Item<'a>>, PolicyError> {
        let Value::List(items) = &self.node.value else {
            return Err(self.expected("a list"));
        };
        if items.is_empty() {
            return Err(self.error("must not be empty"));
        }
        if items.len() > MAX_POLICY_VALUES {
            return Err(self.error(format!(
                "has {} entries, the limit is {MAX_POLICY_VALUES}",
                items.len()
            )));
        }
        let item = |(index, node)| Item {
            node,
            path: format!("{}[{index}]", self.path),
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// The fields of a map.
    pub(super) fn fields(&self) -> Result<Fields<'a>, PolicyError> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.expected("a map"));
        };
        Ok(Fields {
            entries: entries
                .iter()
                .map(|entry| (entry, Taken::No))
                .collect::<Vec<_>>(),
            path: self.path.clone(),
            place: self.node.place,
            known: Vec::new(),
        })
    }
}

/// Milliseconds of a Go-like duration without signs and fractions of a millisecond.
pub(super) fn parse_duration_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let unit_end = tail.find(|c: char| c.is_ascii_digit());
        let (unit, tail) = tail.split_at_checked(unit_end.unwrap_or(tail.len()))?;
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    No,
    Yes,
}

/// The fields of one map; each is taken once, and [`Fields::finish`] refuses those that nobody took.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    entries: Vec<(&'a Entry, Taken)>,
    path: String,
    place: Place,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// An error about the map as a whole, naming one of its fields.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) -> PolicyError {
        PolicyError::new(self.place, self.path_of(key), message)
    }

    /// A field that may be absent.
    pub(super) fn optional(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        let path = self.path_of(key);
        let (entry, taken) = self
            .entries
            .iter_mut()
            .find(|(entry, _)| entry.key == key)?;
        *taken = Taken::Yes;
        Some(Item {
            node: &entry.node,
            path,
        })
    }

    /// Names the field of the file that may be a misspelling of the one that is missing.
    fn required_message(&self, key: &str) -> String {
        let similar = |other: &str| {
            let same = |(a, b): &(u8, u8)| a == b;
            let start = key.bytes().zip(other.bytes()).take_while(same).count();
            let backwards = key.bytes().rev().zip(other.bytes().rev());
            start + backwards.take_while(same).count() >= key.len().div_ceil(2)
        };
        let mut strangers = self.entries.iter().filter(|(_, taken)| *taken == Taken::No);
        match strangers.find(|(entry, _)| similar(&entry.key)) {
            Some((entry, _)) => format!(
                "is required; is it what `{}` in line {} is meant to be?",
                entry.key, entry.place.line
            ),
            None => "is required".to_owned(),
        }
    }

    /// A field that must be there.
    pub(super) fn required(&mut self, key: &'static str) -> Result<Item<'a>, PolicyError> {
        self.optional(key)
            .ok_or_else(|| self.error(key, self.required_message(key)))
    }

    /// Every remaining key with its value.
    pub(super) fn rest(&mut self) -> Vec<(&'a Entry, Item<'a>)> {
        let path = self.path.clone();
        self.entries
            .iter_mut()
            .filter(|(_, taken)| *taken == Taken::No)
            .map(|(entry, taken)| {
                *taken = Taken::Yes;
                let path = format!("{path}.{}", entry.key);
                let node = &entry.node;
                (*entry, Item { node, path })
            })
            .collect()
    }

    /// Refuses fields that nobody asked for.
    pub(super) fn finish(self, of: &str) -> Result<(), PolicyError> {
        let Some((entry, _)) = self.entries.iter().find(|(_, taken)| *taken == Taken::No) else {
            return Ok(());
        };
        let message = if entry.key == of {
            format!(
                "unknown field: write the fields of `{of}` beside `type`, without the block (`spandrel policy import` \
                 converts a Collector file)"
            )
        } else {
            format!("unknown field: {of} has {}", self.known.join(", "))
        };
        Err(PolicyError::new(
            entry.place,
            self.path_of(&entry.key),
            message,
        ))
    }
}
