//! A policy set: one policy file, compiled, and the decisions that it makes.

use std::sync::Arc;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::bound::BoundPolicy;
use super::compile::{Compiler, Nest, condition_only, name_of};
use super::error::PolicyError;
use super::expression::{Class, Expression, Levels, Vote};
use super::facts::{Decision, TraceFacts};
use super::fields::{Fields, Item};
use super::leaf::{Leaf, LeafTest, SERVICE_KEY};
use super::limiters::{LimiterSpec, Limiters};
use super::priority::Priorities;
use super::tree;
use crate::ids::UnixNanos;
use crate::interest::Interests;
use crate::limits::{MAX_DECISION_MS, MAX_POLICIES, MIN_DECISION_MS};
use crate::verdict::{CERTAIN, LimiterReading, NO_POLICY, PROMOTED_POLICY, Verdict};

/// `decision.idle` when the file says nothing: SDKs export every 5 s by default.
const DEFAULT_IDLE_MS: u64 = 10_000;
/// `decision.max_age` when the file says nothing.
const DEFAULT_MAX_AGE_MS: u64 = 60_000;

/// A compiled policy file.
///
/// How it decides: a drop policy that applies drops the trace. Otherwise a policy that says keep keeps it; if several
/// do, the one that keeps such traces with the greatest probability counts as the deciding one, of equals the first
/// in the file. Rate limits are asked only when no policy without one keeps the trace for certain, and only the
/// deciding policy takes from its bucket.
#[derive(Debug)]
pub struct PolicySet {
    version: u32,
    yaml: String,
    fingerprint: u64,
    idle_ms: u64,
    max_age_ms: u64,
    policies: Vec<Policy>,
    leaves: Vec<Leaf>,
    limiters: Vec<LimiterSpec>,
    priorities: Priorities,
}

#[derive(Debug)]
struct Policy {
    name: String,
    role: Role,
    expression: Expression,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Drop,
    /// Keeps by facts and trace id alone.
    Keep,
    /// Keeps as long as a limiter allows it.
    KeepWithinLimit,
}

/// A decision with what it costs.
struct Outcome {
    decision: Decision,
    takes: SmallVec<[(u8, u64); 2]>,
}

impl PolicySet {
    /// Compiles a policy file (`docs/policy.md`). `version` is the number under which verdicts name it.
    ///
    /// # Errors
    /// Anything that the file may not say, with line, column and field.
    pub fn parse(yaml: &str, version: u32) -> Result<Self, PolicyError> {
        let tree = tree::parse(yaml)?;
        let mut fields = Item::root(&tree).fields()?;
        let (idle_ms, max_age_ms) = decision_times(fields.optional("decision"))?;
        let mut compiler = Compiler::default();
        let policies = policies(&fields.required("policies")?, &mut compiler)?;
        let priorities = Priorities::parse(fields.optional("priorities"), &mut compiler)?;
        fields.finish("the policy file")?;
        Ok(Self {
            version,
            yaml: yaml.to_owned(),
            fingerprint: xxh3_64(yaml.as_bytes()),
            idle_ms,
            max_age_ms,
            policies,
            leaves: compiler.leaves,
            limiters: compiler.limiters,
            priorities,
        })
    }

    /// The version given to [`Self::parse`].
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The file as it was given, comments included.
    #[must_use]
    pub fn yaml(&self) -> &str {
        &self.yaml
    }

    /// The name of a policy by its ordinal in a verdict: empty for [`NO_POLICY`] and for ordinals that the set does
    /// not have, `promoted` for [`PROMOTED_POLICY`].
    #[must_use]
    pub fn policy_name(&self, ordinal: u16) -> &str {
        match ordinal {
            NO_POLICY => "",
            PROMOTED_POLICY => "promoted",
            _ => self
                .policies
                .get(usize::from(ordinal))
                .map_or("", |policy| &policy.name),
        }
    }

    /// One line per policy, for people.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let line = |policy: &Policy| match policy.role {
            Role::Drop => format!("{}: drop when {}", policy.name, policy.text),
            Role::Keep | Role::KeepWithinLimit => format!("{}: keep {}", policy.name, policy.text),
        };
        self.policies.iter().map(line).collect()
    }

    /// How long a trace whose root has ended waits without a new span before it is decided, in milliseconds.
    #[must_use]
    pub fn decision_idle_ms(&self) -> u64 {
        self.idle_ms
    }

    /// How long a trace is open at most before it is decided, in milliseconds.
    #[must_use]
    pub fn decision_max_age_ms(&self) -> u64 {
        self.max_age_ms
    }

    /// The attribute keys that conditions read, ascending, each once: they go into the [`Interests`]. `service.name`
    /// is not among them, for the scanner always reports it.
    #[must_use]
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self
            .leaves
            .iter()
            .filter_map(|leaf| match &leaf.test {
                LeafTest::Attribute { key, .. } => Some(key.as_str()),
                _ => None,
            })
            .filter(|key| *key != SERVICE_KEY)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Resolves the attribute keys to the numbers of a scan's interests, once.
    #[must_use]
    pub fn bind(self: &Arc<Self>, interests: &Interests) -> BoundPolicy {
        BoundPolicy::new(Arc::clone(self), interests)
    }

    /// Decides: reads the levels of the limiters at `now`, decides by them, and takes from them what the decision
    /// costs.
    pub fn decide(
        &self,
        facts: &TraceFacts<'_>,
        limiters: &mut Limiters,
        now: UnixNanos,
    ) -> Decision {
        limiters.advance(self, now);
        let outcome = self.evaluate(facts, &mut |limiter| limiters.level(limiter, facts));
        for reading in &outcome.decision.limiters {
            limiters.count(reading.limiter);
        }
        for (limiter, thousandths) in &outcome.takes {
            limiters.take(*limiter, *thousandths, facts);
        }
        outcome.decision
    }

    /// Decides again by the levels that a verdict recorded: equal facts and readings give an equal decision. A limiter
    /// without a reading counts as exhausted.
    #[must_use]
    pub fn recompute(&self, facts: &TraceFacts<'_>, readings: &[LimiterReading]) -> Decision {
        let level = |limiter: u8| {
            let reading = readings.iter().find(|reading| reading.limiter == limiter);
            reading.map_or(0, |reading| reading.level)
        };
        self.evaluate(facts, &mut { level }).decision
    }

    /// True when the trace would be kept now and no further span can change that, nor the probability recorded with
    /// it. A keep by a rate limit is never final, nor is any while a drop policy could still come to apply.
    #[must_use]
    pub fn keep_is_final(&self, facts: &TraceFacts<'_>) -> bool {
        let mut drops = self.with_role(Role::Drop);
        if !drops.all(|(_, policy)| policy.expression.fails_for_good(facts)) {
            return false;
        }
        let nothing = &mut |_| 0;
        let mut levels = Levels::new(nothing);
        let best = self
            .with_role(Role::Keep)
            .filter(|(_, policy)| policy.expression.holds_for_good(facts))
            .map(|(_, policy)| policy.expression.vote(facts, &mut levels).probability())
            .max();
        let Some(best) = best else {
            return false;
        };
        // A policy that could still record a greater probability would leave this one's wrong.
        let surpassable = |policy: &Policy| {
            policy.role != Role::Drop
                && policy.expression.ceiling() > best
                && !policy.expression.fails_for_good(facts)
        };
        best == CERTAIN || !self.policies.iter().any(surpassable)
    }

    /// How late a node under pressure decides the trace early: 0 first to 3 last. Traces with an error are 3; else
    /// the highest priority of a service in it, else its tenant's, else 1 (normal).
    #[must_use]
    pub fn priority(&self, facts: &TraceFacts<'_>) -> u8 {
        self.priorities.of(facts)
    }

    /// A hash of the file.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    pub(super) fn limiters(&self) -> &[LimiterSpec] {
        &self.limiters
    }

    fn with_role(&self, role: Role) -> impl Iterator<Item = (u16, &Policy)> {
        (0u16..)
            .zip(&self.policies)
            .filter(move |(_, policy)| policy.role == role)
    }

    fn evaluate(&self, facts: &TraceFacts<'_>, source: &mut dyn FnMut(u8) -> u64) -> Outcome {
        let mut levels = Levels::new(source);
        for (ordinal, policy) in self.with_role(Role::Drop) {
            if policy.expression.vote(facts, &mut levels).keep {
                return outcome(Verdict::Drop, ordinal, 0, levels);
            }
        }
        let mut best: Option<(u16, u64)> = None;
        let mut best_takes = SmallVec::new();
        let mut refused = 0;
        let keeps = self.with_role(Role::Keep);
        for (ordinal, policy) in keeps.chain(self.with_role(Role::KeepWithinLimit)) {
            let vote: Vote = policy.expression.vote(facts, &mut levels);
            let takes = std::mem::take(&mut levels.takes);
            let probability = vote.probability();
            if !vote.keep {
                refused = probability.max(refused);
            } else if best.is_none_or(|(_, known)| probability > known) {
                best = Some((ordinal, probability));
                best_takes = takes;
            }
            if best.is_some_and(|(_, known)| known == CERTAIN) {
                break;
            }
        }
        levels.takes = best_takes;
        match best {
            Some((ordinal, probability)) => outcome(Verdict::Keep, ordinal, probability, levels),
            None => outcome(Verdict::Drop, NO_POLICY, refused, levels),
        }
    }
}

fn outcome(verdict: Verdict, policy: u16, probability: u64, levels: Levels<'_>) -> Outcome {
    Outcome {
        decision: Decision {
            verdict,
            policy,
            probability,
            limiters: levels.readings,
        },
        takes: levels.takes,
    }
}

fn decision_times(item: Option<Item<'_>>) -> Result<(u64, u64), PolicyError> {
    let Some(item) = item else {
        return Ok((DEFAULT_IDLE_MS, DEFAULT_MAX_AGE_MS));
    };
    let mut fields: Fields<'_> = item.fields()?;
    let (idle, max_age) = (fields.optional("idle"), fields.optional("max_age"));
    fields.finish("decision")?;
    let time = |item: &Option<Item<'_>>, default: u64| match item {
        Some(item) => item.duration_ms(MIN_DECISION_MS, MAX_DECISION_MS),
        None => Ok(default),
    };
    let max_age_ms = time(&max_age, DEFAULT_MAX_AGE_MS)?;
    let idle_ms = time(&idle, DEFAULT_IDLE_MS.min(max_age_ms))?;
    if idle_ms > max_age_ms {
        let message = format!("must be at most max_age, {max_age_ms} ms, got {idle_ms} ms");
        return Err(idle.unwrap_or(item).error(message));
    }
    Ok((idle_ms, max_age_ms))
}

fn policies(list: &Item<'_>, compiler: &mut Compiler) -> Result<Vec<Policy>, PolicyError> {
    let items = list.list()?;
    if items.len() > MAX_POLICIES {
        return Err(list.error(format!(
            "has {} policies, the limit is {MAX_POLICIES}",
            items.len()
        )));
    }
    let mut policies: Vec<Policy> = Vec::new();
    for item in &items {
        let policy = policy(item, compiler, &policies)?;
        policies.push(policy);
    }
    Ok(policies)
}

fn policy(
    item: &Item<'_>,
    compiler: &mut Compiler,
    earlier: &[Policy],
) -> Result<Policy, PolicyError> {
    let mut fields = item.fields()?;
    let name_item = fields.required("name")?;
    let name = name_of(&name_item)?;
    if earlier.iter().any(|known| known.name == name) {
        return Err(name_item.error(format!("`{name}` is the name of an earlier policy too")));
    }
    let kind = fields.required("type")?;
    let nest = Nest {
        path: name,
        depth: 1,
    };
    let (role, compiled) = if kind.node.scalar() == Some("drop") {
        let list = fields.required("drop_sub_policy")?;
        let compiled = compiler.all(&list, nest)?;
        condition_only(&compiled, &list, "drop")?;
        fields.finish("drop")?;
        (Role::Drop, compiled)
    } else {
        let compiled = compiler.policy(&kind, fields, nest)?;
        match compiled.expression.class() {
            Class::Condition | Class::Sampled => (Role::Keep, compiled),
            Class::Limited => (Role::KeepWithinLimit, compiled),
        }
    };
    Ok(Policy {
        name: name.to_owned(),
        role,
        expression: compiled.expression,
        text: compiled.text,
    })
}
