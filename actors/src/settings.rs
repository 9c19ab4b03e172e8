//! The settings in force, compiled: what a request is scanned with and what its traces are decided by.

use std::sync::Arc;

use spandrel_model::interest::Interests;
use spandrel_model::otlp::{AttributePolicy, ScanRules};
use spandrel_model::policy::{BoundPolicy, PolicySet};

use crate::limits::MAX_LIVE_POLICIES;

/// One version of the settings. A batch travels with the epoch that it was scanned under, because the numbers of
/// its attributes' keys are that epoch's.
pub struct Epoch {
    rules: ScanRules,
    /// Oldest first; the last one is in force, the others decide the entries that were opened under them.
    policies: Vec<BoundPolicy>,
    attributes_version: u32,
}

impl Epoch {
    /// Compiles the settings. `policies` are the sets that entries may still refer to, oldest first, the one in
    /// force last; of more than [`MAX_LIVE_POLICIES`] the oldest are left out.
    #[must_use]
    pub fn new(
        allowlist: &[String],
        attributes: &AttributePolicy,
        policies: &[Arc<PolicySet>],
    ) -> Self {
        let live = &policies[policies.len().saturating_sub(MAX_LIVE_POLICIES)..];
        let interests = Arc::new(Interests::new(
            allowlist.iter().map(String::as_str),
            live.iter().flat_map(|set| set.keys()),
        ));
        let policies = live.iter().map(|set| set.bind(&interests)).collect();
        Self {
            rules: ScanRules::new(interests, attributes),
            policies,
            attributes_version: 0,
        }
    }

    /// The same, of this version of the attribute settings.
    #[must_use]
    pub fn with_attributes_version(self, attributes_version: u32) -> Self {
        Self {
            attributes_version,
            ..self
        }
    }

    /// Versions of the policy and of the attribute settings that are in force: they only grow.
    #[must_use]
    pub fn versions(&self) -> (u32, u32) {
        (self.current().set().version(), self.attributes_version)
    }

    /// What requests are scanned with.
    #[must_use]
    pub fn rules(&self) -> &ScanRules {
        &self.rules
    }

    /// The policy set in force.
    ///
    /// # Panics
    /// Never: an epoch is made of at least one policy set.
    #[must_use]
    pub fn current(&self) -> &BoundPolicy {
        #[allow(clippy::expect_used)] // every caller of `new` passes the set in force
        self.policies.last().expect("an epoch has a policy set")
    }

    /// The set of a version, or the oldest one that is still held.
    #[must_use]
    pub fn policy(&self, version: u32) -> &BoundPolicy {
        let found = self
            .policies
            .iter()
            .rev()
            .find(|policy| policy.set().version() == version);
        found
            .or(self.policies.first())
            .unwrap_or_else(|| self.current())
    }

    /// The policy sets, oldest first.
    pub fn sets(&self) -> impl Iterator<Item = &Arc<PolicySet>> {
        self.policies.iter().map(BoundPolicy::set)
    }
}
