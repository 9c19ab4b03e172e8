//! The attribute policy: what happens to attributes by their key, before anything is stored.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_ATTRIBUTE_KEY_BYTES, MAX_ATTRIBUTE_RULES};

/// Rules for the attributes of spans, events, links, resources and scopes. Part of the replicated settings.
///
/// The first rule that matches a key decides; without one the attribute is allowed. Keys inside of map values are
/// not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributePolicy {
    /// The rules, in order; at most 256.
    #[serde(default)]
    pub rules: Vec<AttributeRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeRule {
    /// An attribute's key, or a prefix of keys that ends in `*`; `*` alone is every key. 1 to 1,024 bytes.
    pub key: String,
    /// What to do.
    pub action: AttributeAction,
}

/// What to do with an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AttributeAction {
    /// Store it as it is, within the limits.
    Allow,
    /// Leave it out.
    Drop,
    /// Store the XXH3-64 (seed 0, 16 hexadecimal digits) of the value's text in its place; of the encoded content
    /// for bytes, arrays and maps. Equal values stay equal. This is a pseudonym, not a secret: whoever can guess
    /// values can check the guesses, so drop what must not be known.
    Hash,
    /// Cut text and bytes to this many bytes (text at a character) and arrays and maps to their first entries.
    Truncate {
        /// Bytes that stay, at most.
        max_bytes: u32,
    },
}

/// An [`AttributePolicy`] that the settings must not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttributePolicy {
    /// Too many rules.
    #[error(
        "attribute policy has {count} rules, the limit is {}",
        MAX_ATTRIBUTE_RULES
    )]
    TooManyRules {
        /// How many.
        count: usize,
    },
    /// A key that is empty, too long, or has a `*` before its end.
    #[error(
        "key of attribute rule {index} must be 1 to {} bytes with `*` only at its end, got `{key}`",
        MAX_ATTRIBUTE_KEY_BYTES
    )]
    Key {
        /// The rule's place, from 0.
        index: usize,
        /// The key, cut to 64 characters.
        key: String,
    },
}

impl AttributePolicy {
    /// Checks the bounds of the policy; whoever takes one as a setting calls this.
    ///
    /// # Errors
    /// Names the rule at fault.
    pub fn check(&self) -> Result<(), InvalidAttributePolicy> {
        if self.rules.len() > MAX_ATTRIBUTE_RULES {
            return Err(InvalidAttributePolicy::TooManyRules {
                count: self.rules.len(),
            });
        }
        let legal = |key: &str| {
            (1..=MAX_ATTRIBUTE_KEY_BYTES).contains(&key.len())
                && !key.strip_suffix('*').unwrap_or(key).contains('*')
        };
        match self.rules.iter().position(|rule| !legal(&rule.key)) {
            None => Ok(()),
            Some(index) => Err(InvalidAttributePolicy::Key {
                index,
                key: self
                    .rules
                    .get(index)
                    .map(|rule| rule.key.chars().take(64).collect())
                    .unwrap_or_default(),
            }),
        }
    }
}

/// The policy in the form that a scan asks: one lookup for exact keys, one pass over the prefixes.
#[derive(Debug, Clone, Default)]
pub(super) struct CompiledPolicy {
    exact: HashMap<Box<[u8]>, (usize, AttributeAction), FixedState>,
    prefixes: Vec<(Box<[u8]>, usize, AttributeAction)>,
}

impl CompiledPolicy {
    pub(super) fn new(policy: &AttributePolicy) -> Self {
        let mut compiled = Self::default();
        for (index, rule) in policy.rules.iter().enumerate() {
            match rule.key.strip_suffix('*') {
                Some(prefix) => {
                    compiled
                        .prefixes
                        .push((prefix.as_bytes().into(), index, rule.action));
                }
                None => {
                    compiled
                        .exact
                        .entry(rule.key.as_bytes().into())
                        .or_insert((index, rule.action));
                }
            }
        }
        compiled
    }

    /// What to do with the attribute of this key.
    #[inline]
    pub(super) fn action(&self, key: &[u8]) -> AttributeAction {
        if self.exact.is_empty() && self.prefixes.is_empty() {
            return AttributeAction::Allow;
        }
        self.first_match(key)
    }

    fn first_match(&self, key: &[u8]) -> AttributeAction {
        let exact = self.exact.get(key).copied();
        let prefix = self
            .prefixes
            .iter()
            .find(|(prefix, ..)| key.starts_with(prefix))
            .map(|&(_, index, action)| (index, action));
        [exact, prefix]
            .into_iter()
            .flatten()
            .min_by_key(|&(index, _)| index)
            .map_or(AttributeAction::Allow, |(_, action)| action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(key: &str, action: AttributeAction) -> AttributeRule {
        AttributeRule {
            key: key.to_owned(),
            action,
        }
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let compiled = CompiledPolicy::new(&AttributePolicy {
            rules: vec![
                rule("user.name", AttributeAction::Allow),
                rule("user.*", AttributeAction::Hash),
                rule("user.id", AttributeAction::Drop),
                rule("user.name", AttributeAction::Drop),
                rule("http.url", AttributeAction::Truncate { max_bytes: 9 }),
            ],
        });
        for (key, action) in [
            ("user.name", AttributeAction::Allow),
            ("user.id", AttributeAction::Hash),
            ("user.", AttributeAction::Hash),
            ("user", AttributeAction::Allow),
            ("http.url", AttributeAction::Truncate { max_bytes: 9 }),
        ] {
            assert_eq!(compiled.action(key.as_bytes()), action, "{key}");
        }
    }

    #[test]
    fn policies_are_checked_and_read_from_settings() {
        let text = r#"{"rules":[{"key":"a","action":"drop"},{"key":"b*","action":{"truncate":{"max_bytes":3}}}]}"#;
        let policy: AttributePolicy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.check(), Ok(()));
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        assert!(serde_json::from_str::<AttributePolicy>(r#"{"rule":[]}"#).is_err());
        for bad in ["", "a*b", "**"] {
            let policy = AttributePolicy {
                rules: vec![rule(bad, AttributeAction::Drop)],
            };
            assert!(policy.check().is_err(), "{bad}");
        }
        let policy = AttributePolicy {
            rules: vec![rule("a", AttributeAction::Drop); MAX_ATTRIBUTE_RULES + 1],
        };
        assert!(policy.check().is_err());
    }
}
