//! The one function that changes the replicated state: pure, so that every node gets the same state from the same
//! log, and all or nothing.

use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::limits::MAX_TENANTS;
use spandrel_model::otlp::{AttributePolicy, AttributeRule};

use super::settings::{AttributeSettings, PolicyDocument, SpanLimits, TenantSettings};
use super::{Applied, ClusterSeed, ClusterState, Command, Conflict, JoinToken};
use crate::limits::{
    MAX_INDEXED_KEYS, MAX_JOIN_TOKENS, MAX_KEY_BYTES, MAX_POLICY_BYTES, MAX_REPLICATION,
    MAX_RETENTION_SECONDS, MAX_SHARDS, MIN_RETENTION_SECONDS,
};

mod nodes;
mod shards;

impl ClusterState {
    /// Applies a command. The outcome depends on the state and the command alone.
    ///
    /// # Errors
    /// The [`Conflict`]; the state is then as before.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Conflict> {
        if let Command::SeedCluster(seed) = command {
            return self.found(seed);
        }
        if !self.is_seeded() {
            return Err(Conflict::NotSeeded);
        }
        match command {
            Command::SeedCluster(seed) => self.found(seed),
            Command::ApplyPolicy {
                expected_version,
                yaml,
            } => self.apply_policy(*expected_version, yaml),
            Command::SetRetention {
                expected_seconds,
                seconds,
            } => self.set_retention(*expected_seconds, *seconds),
            Command::SetReplication {
                expected,
                replication,
            } => self.set_replication(*expected, *replication),
            Command::SetAttributes {
                expected_version,
                rules,
                indexed_keys,
            } => self.set_attributes(*expected_version, rules, indexed_keys),
            Command::SetLimits {
                expected_version,
                limits,
            } => self.set_limits(*expected_version, *limits),
            Command::CreateTenant { tenant } => self.create_tenant(tenant),
            Command::SetTenant {
                tenant,
                expected_version,
                settings,
            } => self.set_tenant(tenant, *expected_version, *settings),
            Command::AdmitNode {
                disk_id,
                addresses,
                zone,
            } => self.admit_node(*disk_id, addresses, zone),
            Command::RegisterNode(registration) => self.register_node(registration, None),
            Command::RegisterLife { registration, life } => {
                self.register_node(registration, Some(life))
            }
            Command::RenewLife { node, life } => self.renew_life(*node, life),
            Command::SetNodeState {
                node,
                expected_incarnation,
                expected,
                state,
            } => self.set_node_state(*node, *expected_incarnation, *expected, *state),
            Command::RemoveNode {
                node,
                expected_incarnation,
            } => self.remove_node(*node, *expected_incarnation),
            Command::StartShards { records } => self.start_shards(records),
            Command::SetShards { changes } => self.set_shards(changes),
            Command::SetHolders { changes } => self.set_holders(changes),
            Command::ForgetBuckets { before } => Ok(self.forget_buckets(*before)),
            Command::AddJoinToken { token, now } => self.add_join_token(*token, *now),
        }
    }

    fn found(&mut self, seed: &ClusterSeed) -> Result<Applied, Conflict> {
        if self.is_seeded() {
            return Err(Conflict::AlreadySeeded {
                cluster_id: self.cluster_id,
            });
        }
        if seed.cluster_id == 0 {
            return Err(Conflict::invalid("cluster_id", "must not be 0"));
        }
        let legal_shards = seed.shards.is_power_of_two() && seed.shards <= MAX_SHARDS;
        if !legal_shards {
            return Err(out_of_range(
                "shards",
                format!("a power of two, 1 to {MAX_SHARDS}"),
                seed.shards.into(),
            ));
        }
        check_replication(seed.replication)?;
        check_retention(seed.retention_seconds)?;
        check_policy(&seed.policy_yaml)?;
        *self = Self {
            cluster_id: seed.cluster_id,
            routing_key: seed.routing_key,
            shards: seed.shards,
            replication: seed.replication,
            retention_seconds: seed.retention_seconds,
            policy: PolicyDocument {
                version: 1,
                yaml: seed.policy_yaml.clone(),
            },
            attributes: AttributeSettings::default(),
            limits: SpanLimits::default(),
            tenants: [(TenantId::default(), TenantSettings::default())].into(),
            next_node: 1,
            applied_index: self.applied_index,
            ..Self::default()
        };
        Ok(Applied::Done)
    }

    fn apply_policy(&mut self, expected: u32, yaml: &str) -> Result<Applied, Conflict> {
        let version = next_version("policy version", expected, self.policy.version)?;
        check_policy(yaml)?;
        self.policy = PolicyDocument {
            version,
            yaml: yaml.to_owned(),
        };
        Ok(Applied::Version(version))
    }

    fn set_retention(&mut self, expected: u64, seconds: u64) -> Result<Applied, Conflict> {
        unchanged("retention_seconds", expected, self.retention_seconds)?;
        check_retention(seconds)?;
        self.retention_seconds = seconds;
        Ok(Applied::Done)
    }

    fn set_replication(&mut self, expected: u8, replication: u8) -> Result<Applied, Conflict> {
        unchanged("replication", expected.into(), self.replication.into())?;
        check_replication(replication)?;
        self.replication = replication;
        Ok(Applied::Done)
    }

    fn set_attributes(
        &mut self,
        expected: u32,
        rules: &[AttributeRule],
        indexed_keys: &[String],
    ) -> Result<Applied, Conflict> {
        let version = next_version("attributes version", expected, self.attributes.version)?;
        check_rules(rules)?;
        check_indexed_keys(indexed_keys)?;
        self.attributes = AttributeSettings {
            version,
            rules: rules.to_vec(),
            indexed_keys: indexed_keys.to_vec(),
        };
        Ok(Applied::Version(version))
    }

    fn set_limits(&mut self, expected: u32, limits: SpanLimits) -> Result<Applied, Conflict> {
        let version = next_version("limits version", expected, self.limits.version)?;
        check_limits(&limits)?;
        self.limits = SpanLimits { version, ..limits };
        Ok(Applied::Version(version))
    }

    fn create_tenant(&mut self, tenant: &TenantId) -> Result<Applied, Conflict> {
        if self.tenants.contains_key(tenant) {
            return Ok(Applied::Unchanged);
        }
        if self.tenants.len() >= MAX_TENANTS {
            return Err(too_many("tenants", MAX_TENANTS));
        }
        self.tenants
            .insert(tenant.clone(), TenantSettings::default());
        Ok(Applied::Done)
    }

    fn set_tenant(
        &mut self,
        tenant: &TenantId,
        expected: u32,
        settings: TenantSettings,
    ) -> Result<Applied, Conflict> {
        let Some(known) = self.tenants.get_mut(tenant) else {
            return Err(Conflict::UnknownTenant {
                tenant: tenant.clone(),
            });
        };
        let version = next_version("tenant version", expected, known.version)?;
        *known = TenantSettings {
            version,
            ..settings
        };
        Ok(Applied::Version(version))
    }

    fn add_join_token(&mut self, token: JoinToken, now: UnixNanos) -> Result<Applied, Conflict> {
        let live = |expires: &UnixNanos| *expires > now;
        if !live(&token.expires) {
            return Err(Conflict::invalid(
                "expires",
                "the token has expired already",
            ));
        }
        let others = self.join_tokens.iter();
        let others = others.filter(|(hash, expires)| **hash != token.hash && live(expires));
        if others.count() >= MAX_JOIN_TOKENS {
            return Err(too_many("join tokens", MAX_JOIN_TOKENS));
        }
        self.join_tokens.retain(|_, expires| live(expires));
        self.join_tokens.insert(token.hash, token.expires);
        Ok(Applied::Done)
    }
}

fn unchanged(field: &str, expected: u64, actual: u64) -> Result<(), Conflict> {
    if expected == actual {
        return Ok(());
    }
    Err(Conflict::Changed {
        field: field.to_owned(),
        expected,
        actual,
    })
}

fn next_version(field: &str, expected: u32, actual: u32) -> Result<u32, Conflict> {
    unchanged(field, expected.into(), actual.into())?;
    actual
        .checked_add(1)
        .ok_or_else(|| out_of_range(field, format!("below {}", u32::MAX), actual.into()))
}

fn out_of_range(field: &str, limit: String, actual: u64) -> Conflict {
    Conflict::OutOfRange {
        field: field.to_owned(),
        limit,
        actual,
    }
}

fn too_many(what: &str, limit: usize) -> Conflict {
    Conflict::TooMany {
        what: what.to_owned(),
        limit: limit as u64,
    }
}

fn in_range(field: &str, unit: &str, range: (u64, u64), value: u64) -> Result<(), Conflict> {
    let (low, high) = range;
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(out_of_range(field, format!("{low} to {high}{unit}"), value))
}

fn check_replication(replication: u8) -> Result<(), Conflict> {
    let range = (1, u64::from(MAX_REPLICATION));
    in_range("replication", " copies", range, replication.into())
}

fn check_retention(seconds: u64) -> Result<(), Conflict> {
    let range = (MIN_RETENTION_SECONDS, MAX_RETENTION_SECONDS);
    in_range("retention_seconds", " seconds", range, seconds)
}

fn check_policy(yaml: &str) -> Result<(), Conflict> {
    let range = (1, MAX_POLICY_BYTES as u64);
    in_range("policy", " bytes", range, yaml.len() as u64)
}

fn check_rules(rules: &[AttributeRule]) -> Result<(), Conflict> {
    let policy = AttributePolicy {
        rules: rules.to_vec(),
    };
    policy
        .check()
        .map_err(|error| Conflict::invalid("attributes", error.to_string()))
}

fn check_indexed_keys(keys: &[String]) -> Result<(), Conflict> {
    if keys.len() > MAX_INDEXED_KEYS {
        return Err(too_many("indexed keys", MAX_INDEXED_KEYS));
    }
    for (position, key) in keys.iter().enumerate() {
        in_range(
            "indexed key",
            " bytes",
            (1, MAX_KEY_BYTES as u64),
            key.len() as u64,
        )?;
        if keys.iter().take(position).any(|earlier| earlier == key) {
            return Err(Conflict::invalid(
                "indexed_keys",
                format!("`{key}` stands twice"),
            ));
        }
    }
    Ok(())
}

fn check_limits(limits: &SpanLimits) -> Result<(), Conflict> {
    let most = SpanLimits::default();
    let fields = [
        (
            "attribute_value_bytes",
            limits.attribute_value_bytes,
            most.attribute_value_bytes,
        ),
        (
            "span_attributes",
            limits.span_attributes,
            most.span_attributes,
        ),
        ("span_events", limits.span_events, most.span_events),
        ("span_links", limits.span_links, most.span_links),
        ("trace_spans", limits.trace_spans, most.trace_spans),
    ];
    for (field, value, most) in fields {
        in_range(field, "", (1, most.into()), value.into())?;
    }
    in_range(
        "trace_bytes",
        " bytes",
        (1, most.trace_bytes),
        limits.trace_bytes,
    )
}
