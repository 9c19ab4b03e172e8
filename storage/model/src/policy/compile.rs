//! From the policy file to expressions: one function per policy type, the file's fields in, an expression out.

use super::error::PolicyError;
use super::expression::{Class, Expression};
use super::fields::{Fields, Item};
use super::leaf::{Leaf, LeafBits, LeafTest};
use super::limiters::LimiterSpec;
use super::{compile_conditions, compile_limits};
use crate::limits::{
    MAX_POLICY_DEPTH, MAX_POLICY_LEAVES, MAX_POLICY_LIMITERS, MAX_POLICY_NAME_BYTES,
};

/// The policy types, in the order of the documentation.
pub(super) const TYPES: [&str; 18] = [
    "always_sample",
    "status_code",
    "latency",
    "string_attribute",
    "numeric_attribute",
    "boolean_attribute",
    "span_count",
    "trace_state",
    "trace_flags",
    "service",
    "tenant",
    "probabilistic",
    "throughput",
    "rate_limiting",
    "bytes_limiting",
    "and",
    "not",
    "composite",
];

/// An expression with the words for it.
pub(super) struct Compiled {
    pub(super) expression: Expression,
    /// What the trace must be, as clauses: "a span's status is error".
    conditions: Vec<String>,
    /// How many of such traces are kept: "up to 5 spans a second".
    amounts: Vec<String>,
}

impl Compiled {
    /// A condition with its clause.
    pub(super) fn condition(expression: Expression, clause: impl Into<String>) -> Self {
        Self {
            expression,
            conditions: vec![clause.into()],
            amounts: Vec::new(),
        }
    }

    /// A sampler or limit with what it keeps.
    pub(super) fn amount(expression: Expression, amount: impl Into<String>) -> Self {
        Self {
            expression,
            conditions: Vec::new(),
            amounts: vec![amount.into()],
        }
    }

    pub(super) fn inverted(self, invert: bool) -> Self {
        if !invert {
            return self;
        }
        let clauses = [self.amounts, self.conditions].concat();
        let clause = format!("not ({})", clauses.join(", and "));
        Self::condition(Expression::Not(Box::new(self.expression)), clause)
    }

    /// The words for it: how many, when.
    pub(super) fn text(&self) -> String {
        let amounts = self.amounts.join(", of these ");
        let conditions = self.conditions.join(", and ");
        match (amounts.as_str(), conditions.as_str()) {
            (_, "") => amounts,
            ("", _) => format!("when {conditions}"),
            _ => format!("{amounts}, when {conditions}"),
        }
    }
}

/// What the whole file shares: leaf conditions and limiters by ordinal.
#[derive(Default)]
pub(super) struct Compiler {
    pub(super) leaves: Vec<Leaf>,
    pub(super) limiters: Vec<LimiterSpec>,
    pub(super) regexes: usize,
}

/// Where in the nest of policies one stands.
#[derive(Clone, Copy)]
pub(super) struct Nest<'p> {
    /// Names of the policies around it.
    pub(super) path: &'p str,
    pub(super) depth: usize,
}

/// The name of a policy: printable, bounded.
pub(super) fn name_of<'a>(item: &Item<'a>) -> Result<&'a str, PolicyError> {
    let name = item.text()?;
    if name.len() > MAX_POLICY_NAME_BYTES {
        let message = format!(
            "has {} bytes, the limit is {MAX_POLICY_NAME_BYTES}",
            name.len()
        );
        return Err(item.error(message));
    }
    if name.chars().any(char::is_control) {
        return Err(item.error("must not have control characters"));
    }
    Ok(name)
}

impl Compiler {
    /// The expression of a policy whose `name` and `type` are already taken from its fields.
    pub(super) fn policy(
        &mut self,
        kind: &Item<'_>,
        mut fields: Fields<'_>,
        nest: Nest<'_>,
    ) -> Result<Compiled, PolicyError> {
        if nest.depth > MAX_POLICY_DEPTH {
            return Err(kind.error(format!(
                "policies may be {MAX_POLICY_DEPTH} deep inside each other"
            )));
        }
        let name = kind.text()?;
        let compiled = match name {
            "always_sample" => Compiled::amount(Expression::Always, "every trace"),
            "status_code" => self.status_code(&mut fields)?,
            "latency" => compile_conditions::latency(&mut fields)?,
            "string_attribute" => self.string_attribute(&mut fields)?,
            "numeric_attribute" => self.numeric_attribute(&mut fields)?,
            "boolean_attribute" => self.boolean_attribute(&mut fields)?,
            "span_count" => compile_conditions::span_count(&mut fields)?,
            "trace_state" => self.trace_state(&mut fields)?,
            "trace_flags" => {
                let text = "a span has the sampled flag".to_owned();
                self.leaf(kind, text, LeafTest::SampledFlag)?
            }
            "service" => self.service(&mut fields)?,
            "tenant" => compile_conditions::tenant(&mut fields)?,
            "probabilistic" => compile_limits::probabilistic(&mut fields)?,
            "throughput" => self.throughput(kind, &mut fields, nest)?,
            "rate_limiting" => self.rate_limiting(kind, &mut fields, nest)?,
            "bytes_limiting" => self.bytes_limiting(kind, &mut fields, nest)?,
            "and" => self.all(&fields.required("and_sub_policy")?, nest)?,
            "not" => self.not(&fields.required("not_sub_policy")?, nest)?,
            "composite" => self.composite(kind, &mut fields, nest)?,
            "drop" => return Err(kind.error("a drop policy stands at the top only")),
            "ottl_condition" => {
                return Err(kind.error(
                    "ottl_condition is not supported: use string_attribute, numeric_attribute or boolean_attribute",
                ));
            }
            unknown => {
                let types = TYPES.join(", ");
                return Err(kind.error(format!(
                    "unknown policy type `{unknown}`: it must be one of drop, {types}"
                )));
            }
        };
        fields.finish(name)?;
        Ok(compiled)
    }

    /// The conjunction of a list of policies (`and_sub_policy`, `drop_sub_policy`).
    pub(super) fn all(&mut self, list: &Item<'_>, nest: Nest<'_>) -> Result<Compiled, PolicyError> {
        let mut parts = Vec::new();
        for item in list.list()? {
            let (_, compiled) = self.sub_policy(&item, nest)?;
            parts.push(compiled);
        }
        let conditions = parts.iter().flat_map(|part| part.conditions.clone());
        let amounts = parts.iter().flat_map(|part| part.amounts.clone());
        let (conditions, amounts) = (conditions.collect(), amounts.collect());
        let mut parts: Vec<Expression> = parts.into_iter().map(|part| part.expression).collect();
        parts.sort_by_key(Expression::class);
        Ok(Compiled {
            expression: Expression::All(parts),
            conditions,
            amounts,
        })
    }

    fn not(&mut self, item: &Item<'_>, nest: Nest<'_>) -> Result<Compiled, PolicyError> {
        let (_, compiled) = self.sub_policy(item, nest)?;
        condition_only(&compiled, item, "not")?;
        Ok(compiled.inverted(true))
    }

    /// A policy inside another one: its name is optional there.
    pub(super) fn sub_policy<'a>(
        &mut self,
        item: &Item<'a>,
        nest: Nest<'_>,
    ) -> Result<(Option<Item<'a>>, Compiled), PolicyError> {
        let mut fields = item.fields()?;
        let name = fields.optional("name");
        let label = match &name {
            Some(name) => name_of(name)?,
            None => item.path.rsplit('.').next().unwrap_or_default(),
        };
        let path = format!("{}/{label}", nest.path);
        let kind = fields.required("type")?;
        let inner = Nest {
            path: &path,
            depth: nest.depth + 1,
        };
        Ok((name, self.policy(&kind, fields, inner)?))
    }

    /// The bit of a leaf condition, shared with an equal one.
    pub(super) fn leaf_bit(
        &mut self,
        at: &Item<'_>,
        text: &str,
        test: LeafTest,
    ) -> Result<LeafBits, PolicyError> {
        let known = self.leaves.iter().position(|leaf| leaf.text == text);
        if known.is_none() {
            if self.leaves.len() >= MAX_POLICY_LEAVES {
                return Err(at.error(format!(
                    "the file has more than {MAX_POLICY_LEAVES} distinct conditions on spans"
                )));
            }
            self.leaves.push(Leaf {
                text: text.to_owned(),
                test,
            });
        }
        // Below MAX_POLICY_LEAVES, which is the number of bits.
        Ok(1 << known.unwrap_or(self.leaves.len() - 1))
    }

    pub(super) fn leaf(
        &mut self,
        at: &Item<'_>,
        text: String,
        test: LeafTest,
    ) -> Result<Compiled, PolicyError> {
        let bit = self.leaf_bit(at, &text, test)?;
        Ok(Compiled::condition(Expression::Leaf(bit), text))
    }

    pub(super) fn limiter(&mut self, at: &Item<'_>, spec: LimiterSpec) -> Result<u8, PolicyError> {
        let ordinal = self.limiters.len();
        if ordinal >= MAX_POLICY_LIMITERS {
            return Err(at.error(format!(
                "the file has more than {MAX_POLICY_LIMITERS} rate limits"
            )));
        }
        self.limiters.push(spec);
        // Below MAX_POLICY_LIMITERS, which is 64.
        Ok(u8::try_from(ordinal).unwrap_or(u8::MAX))
    }
}

/// Refuses a sampler or a limit where only a condition has a meaning.
pub(super) fn condition_only(
    compiled: &Compiled,
    at: &Item<'_>,
    of: &str,
) -> Result<(), PolicyError> {
    if compiled.expression.class() == Class::Condition {
        return Ok(());
    }
    Err(at.error(format!(
        "`{of}` takes conditions alone: with a sampler or a rate limit in it, no probability could be told for the \
         traces that stay; sample them in a keep policy instead"
    )))
}
