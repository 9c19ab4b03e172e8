//! The order in which a node under pressure decides early: low before normal before high, errors last.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::Compiler;
use super::error::PolicyError;
use super::facts::TraceFacts;
use super::fields::Item;
use super::leaf::{LeafBits, LeafTest};
use super::values::quoted;
use crate::ids::TenantId;

/// Priority of traces with an error.
const ERROR: u8 = 3;
const HIGH: u8 = 2;
const NORMAL: u8 = 1;
const LOW: u8 = 0;

/// The `priorities` of a policy file.
#[derive(Debug, Default)]
pub(super) struct Priorities {
    tenants: BTreeMap<TenantId, u8>,
    /// From the highest level to the lowest: the bit "a span is of one of its services".
    services: Vec<(u8, LeafBits)>,
}

impl Priorities {
    pub(super) fn parse(
        item: Option<Item<'_>>,
        compiler: &mut Compiler,
    ) -> Result<Self, PolicyError> {
        let mut priorities = Self::default();
        let Some(item) = item else {
            return Ok(priorities);
        };
        let mut fields = item.fields()?;
        if let Some(tenants) = fields.optional("tenants") {
            for (entry, level) in tenants.fields()?.rest() {
                let tenant = entry
                    .key
                    .parse()
                    .map_err(|error: crate::ids::InvalidTenant| {
                        PolicyError::new(entry.place, level.path.clone(), error.to_string())
                    })?;
                priorities.tenants.insert(tenant, level_of(&level)?);
            }
        }
        if let Some(services) = fields.optional("services") {
            let mut by_level: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
            for (entry, level) in services.fields()?.rest() {
                let names = by_level.entry(level_of(&level)?).or_default();
                names.insert(entry.key.clone());
            }
            for (level, names) in by_level.into_iter().rev() {
                let text = format!("a span is of service {}", quoted(&names));
                let bit = compiler.leaf_bit(&services, &text, LeafTest::Service(names))?;
                priorities.services.push((level, bit));
            }
        }
        fields.finish("priorities")?;
        Ok(priorities)
    }

    /// The highest priority that a service of the trace has; without one its tenant's; normal otherwise.
    pub(super) fn of(&self, facts: &TraceFacts<'_>) -> u8 {
        if facts.error {
            return ERROR;
        }
        let mut services = self.services.iter();
        services
            .find(|(_, bit)| facts.bits & bit != 0)
            .map(|(level, _)| *level)
            .or_else(|| self.tenants.get(facts.tenant).copied())
            .unwrap_or(NORMAL)
    }
}

fn level_of(item: &Item<'_>) -> Result<u8, PolicyError> {
    match item.text()? {
        "low" => Ok(LOW),
        "normal" => Ok(NORMAL),
        "high" => Ok(HIGH),
        other => Err(item.error(format!("must be low, normal or high, got `{other}`"))),
    }
}
