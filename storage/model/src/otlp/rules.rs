//! What a scan looks for and what it enforces, compiled once per change of the settings.

use std::sync::Arc;

use super::attribute_policy::{AttributePolicy, CompiledPolicy};
use super::walk::{KeyLengths, Walker};
use crate::interest::Interests;

/// The attribute keys that somebody needs, and the attribute policy. Immutable; share it through an `Arc`.
#[derive(Debug, Clone)]
pub struct ScanRules {
    interests: Arc<Interests>,
    lengths: KeyLengths,
    policy: CompiledPolicy,
}

impl ScanRules {
    /// Compiles the rules.
    #[must_use]
    pub fn new(interests: Arc<Interests>, attributes: &AttributePolicy) -> Self {
        Self {
            lengths: KeyLengths::of(&interests),
            interests,
            policy: CompiledPolicy::new(attributes),
        }
    }

    /// The attribute keys that a scan reports.
    #[must_use]
    pub fn interests(&self) -> &Arc<Interests> {
        &self.interests
    }

    pub(super) fn policy(&self) -> &CompiledPolicy {
        &self.policy
    }

    /// For bytes as the client sent them: limits and policy are looked for.
    pub(super) fn walker(&self) -> Walker<'_> {
        Walker {
            interests: &self.interests,
            lengths: self.lengths,
            policy: Some(&self.policy),
            strict: true,
        }
    }

    /// For bytes that were rewritten: limits and policy hold already.
    pub(super) fn walker_of_rewritten(&self) -> Walker<'_> {
        Walker {
            policy: None,
            ..self.walker()
        }
    }
}
