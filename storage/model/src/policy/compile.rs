//! From the policy file to expressions: one function per policy type, the file's fields in, an expression out.

use super::error::PolicyError;
use super::expression::{Class, Cost, Expression, Share};
use super::fields::{Fields, Item};
use super::leaf::{Leaf, LeafBits, LeafTest};
use super::limiters::{LimiterKind, LimiterSpec};
use super::probability::{Randomness, from_percentage};
use super::values;
use crate::ids::{TenantId, UnixNanos};
use crate::limits::{
    MAX_POLICY_DEPTH, MAX_POLICY_LEAVES, MAX_POLICY_LIMITERS, MAX_POLICY_NAME_BYTES,
    MAX_POLICY_RATE, MAX_TRACE_SPANS,
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
    pub(super) text: String,
}

impl Compiled {
    fn new(expression: Expression, text: impl Into<String>) -> Self {
        Self {
            expression,
            text: text.into(),
        }
    }

    fn inverted(self, invert: bool) -> Self {
        if !invert {
            return self;
        }
        let text = format!("not ({})", self.text);
        Self::new(Expression::Not(Box::new(self.expression)), text)
    }
}

/// What the whole file shares: leaf conditions and limiters by ordinal.
#[derive(Default)]
pub(super) struct Compiler {
    pub(super) leaves: Vec<Leaf>,
    pub(super) limiters: Vec<LimiterSpec>,
    regexes: usize,
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
            "always_sample" => Compiled::new(Expression::Always, "every trace"),
            "status_code" => self.status_code(&mut fields)?,
            "latency" => latency(&mut fields)?,
            "string_attribute" => self.string_attribute(&mut fields)?,
            "numeric_attribute" => self.numeric_attribute(&mut fields)?,
            "boolean_attribute" => self.boolean_attribute(&mut fields)?,
            "span_count" => span_count(&mut fields)?,
            "trace_state" => self.trace_state(&mut fields)?,
            "trace_flags" => {
                let text = "a span has the sampled flag".to_owned();
                self.leaf(kind, text, LeafTest::SampledFlag)?
            }
            "service" => self.service(&mut fields)?,
            "tenant" => tenant(&mut fields)?,
            "probabilistic" => probabilistic(&mut fields)?,
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
        let text = parts
            .iter()
            .map(|part| part.text.as_str())
            .collect::<Vec<_>>()
            .join(", and ");
        let mut parts: Vec<Expression> = parts.into_iter().map(|part| part.expression).collect();
        parts.sort_by_key(Expression::class);
        Ok(Compiled::new(Expression::All(parts), text))
    }

    fn not(&mut self, item: &Item<'_>, nest: Nest<'_>) -> Result<Compiled, PolicyError> {
        let (_, compiled) = self.sub_policy(item, nest)?;
        condition_only(&compiled, item, "not")?;
        Ok(compiled.inverted(true))
    }

    /// A policy inside another one: its name is optional there.
    fn sub_policy<'a>(
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

    fn composite(
        &mut self,
        kind: &Item<'_>,
        fields: &mut Fields<'_>,
        nest: Nest<'_>,
    ) -> Result<Compiled, PolicyError> {
        let total = fields
            .required("max_total_spans_per_second")?
            .whole(1, MAX_POLICY_RATE)?;
        let list = fields.required("composite_sub_policy")?;
        let mut subs: Vec<(String, Compiled)> = Vec::new();
        for item in list.list()? {
            let (name, compiled) = self.sub_policy(&item, nest)?;
            let name = name.ok_or_else(|| item.error("needs a `name` inside a composite"))?;
            if subs
                .iter()
                .any(|(known, _)| Some(known.as_str()) == name.node.scalar())
            {
                return Err(name.error("is the name of an earlier sub-policy too"));
            }
            subs.push((name.text()?.to_owned(), compiled));
        }
        let names: Vec<&str> = subs.iter().map(|(name, _)| name.as_str()).collect();
        let order = values::policy_order(fields.optional("policy_order"), &names)?;
        let percents = values::rate_allocation(fields.optional("rate_allocation"), &names)?;
        let mut shares = Vec::new();
        let mut texts = Vec::new();
        let mut subs: Vec<Option<(String, Compiled)>> = subs.into_iter().map(Some).collect();
        for index in order {
            // `policy_order` gives each index once.
            let Some((name, compiled)) = subs.get_mut(index).and_then(Option::take) else {
                continue;
            };
            let percent = percents.get(index).copied().unwrap_or_default();
            let rate = (total / 100 * percent + total % 100 * percent / 100).max(1);
            let spec = LimiterSpec {
                name: format!("{}/{name} (share)", nest.path),
                kind: LimiterKind::Bucket {
                    per_second: rate,
                    capacity: rate,
                },
            };
            texts.push(format!(
                "{name} up to {rate} spans a second ({})",
                compiled.text
            ));
            shares.push(Share {
                expression: compiled.expression,
                limiter: self.limiter(kind, spec)?,
            });
        }
        Ok(Compiled::new(
            Expression::Composite(shares),
            format!("the first that applies of: {}", texts.join("; ")),
        ))
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

    fn leaf(
        &mut self,
        at: &Item<'_>,
        text: String,
        test: LeafTest,
    ) -> Result<Compiled, PolicyError> {
        let bit = self.leaf_bit(at, &text, test)?;
        Ok(Compiled::new(Expression::Leaf(bit), text))
    }

    fn limiter(&mut self, at: &Item<'_>, spec: LimiterSpec) -> Result<u8, PolicyError> {
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

    fn status_code(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let list = fields.required("status_codes")?;
        let codes = values::status_codes(&list)?;
        let words: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
        let text = format!("a span's status is {}", words.join(" or "));
        self.leaf(&list, text, LeafTest::Status(codes))
    }

    fn string_attribute(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let key = fields.required("key")?;
        let list = fields.required("values")?;
        let regex = flag(fields.optional("enabled_regex_matching"))?;
        let invert = flag(fields.optional("invert_match"))?;
        let (test, words) = if regex {
            values::patterns(&list, &mut self.regexes)?
        } else {
            values::texts(&list)?
        };
        let name = key.text()?.to_owned();
        let text = format!("a span's {name:?} {words}");
        let test = LeafTest::Attribute { key: name, test };
        Ok(self.leaf(&key, text, test)?.inverted(invert))
    }

    fn numeric_attribute(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let key = fields.required("key")?;
        let min = fields.optional("min_value");
        let max = fields.optional("max_value");
        let invert = flag(fields.optional("invert_match"))?;
        if min.is_none() && max.is_none() {
            return Err(fields.error("min_value", "min_value or max_value is required"));
        }
        let low = min.as_ref().map_or(Ok(i64::MIN), Item::integer)?;
        let high = max.as_ref().map_or(Ok(i64::MAX), Item::integer)?;
        if let Some(max) = max.filter(|_| low > high) {
            return Err(max.error(format!("must be at least min_value, {low}, got {high}")));
        }
        let name = key.text()?.to_owned();
        let text = match (min.is_some(), high) {
            (true, i64::MAX) => format!("a span's {name:?} is at least {low}"),
            (true, _) => format!("a span's {name:?} is {low} to {high}"),
            (false, _) => format!("a span's {name:?} is at most {high}"),
        };
        let test = LeafTest::Attribute {
            key: name,
            test: super::leaf::ValueTest::Range {
                min: low,
                max: high,
            },
        };
        Ok(self.leaf(&key, text, test)?.inverted(invert))
    }

    fn boolean_attribute(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let key = fields.required("key")?;
        let value = fields.required("value")?.boolean()?;
        let invert = flag(fields.optional("invert_match"))?;
        let name = key.text()?.to_owned();
        let text = format!("a span's {name:?} is {value}");
        let test = LeafTest::Attribute {
            key: name,
            test: super::leaf::ValueTest::Bool(value),
        };
        Ok(self.leaf(&key, text, test)?.inverted(invert))
    }

    fn trace_state(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let key = fields.required("key")?;
        let values = values::text_set(&fields.required("values")?)?;
        let name = key.text()?.to_owned();
        let text = format!(
            "a span's trace state {name:?} is {}",
            values::quoted(&values)
        );
        self.leaf(&key, text, LeafTest::TraceState { key: name, values })
    }

    fn service(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let list = fields.required("values")?;
        let services = values::text_set(&list)?;
        let text = format!("a span is of service {}", values::quoted(&services));
        self.leaf(&list, text, LeafTest::Service(services))
    }

    fn throughput(
        &mut self,
        kind: &Item<'_>,
        fields: &mut Fields<'_>,
        nest: Nest<'_>,
    ) -> Result<Compiled, PolicyError> {
        let rate = fields
            .required("traces_per_second")?
            .whole(1, MAX_POLICY_RATE)?;
        let spec = LimiterSpec {
            name: nest.path.to_owned(),
            kind: LimiterKind::Throughput { per_second: rate },
        };
        let limiter = self.limiter(kind, spec)?;
        Ok(Compiled::new(
            Expression::Throughput { limiter },
            format!("up to {rate} traces a second per node, above that sampled down to it"),
        ))
    }

    fn rate_limiting(
        &mut self,
        kind: &Item<'_>,
        fields: &mut Fields<'_>,
        nest: Nest<'_>,
    ) -> Result<Compiled, PolicyError> {
        let rate = fields
            .required("spans_per_second")?
            .whole(1, MAX_POLICY_RATE)?;
        let text = format!("up to {rate} spans a second per node");
        self.bucket(kind, nest, (rate, rate), (Cost::Spans, text))
    }

    fn bytes_limiting(
        &mut self,
        kind: &Item<'_>,
        fields: &mut Fields<'_>,
        nest: Nest<'_>,
    ) -> Result<Compiled, PolicyError> {
        let rate = fields
            .required("bytes_per_second")?
            .whole(1, MAX_POLICY_RATE)?;
        // The Collector's default burst: twice the rate.
        let burst = match fields.optional("burst_capacity") {
            Some(burst) => burst.whole(1, 2 * MAX_POLICY_RATE)?,
            None => 2 * rate,
        };
        let text = format!("up to {rate} bytes a second per node, {burst} at once");
        self.bucket(kind, nest, (rate, burst), (Cost::Bytes, text))
    }

    fn bucket(
        &mut self,
        kind: &Item<'_>,
        nest: Nest<'_>,
        (per_second, capacity): (u64, u64),
        (cost, text): (Cost, String),
    ) -> Result<Compiled, PolicyError> {
        let spec = LimiterSpec {
            name: nest.path.to_owned(),
            kind: LimiterKind::Bucket {
                per_second,
                capacity,
            },
        };
        let limiter = self.limiter(kind, spec)?;
        Ok(Compiled::new(Expression::Bucket { limiter, cost }, text))
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

fn flag(item: Option<Item<'_>>) -> Result<bool, PolicyError> {
    item.map_or(Ok(false), |item| item.boolean())
}

fn latency(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
    const MAX_MS: u64 = i64::MAX.unsigned_abs() / UnixNanos::PER_MILLI;
    let over_ms = fields.required("threshold_ms")?.whole(0, MAX_MS)?;
    let upper = fields.optional("upper_threshold_ms");
    let up_to_ms = upper
        .as_ref()
        .map(|item| item.whole(0, MAX_MS))
        .transpose()?;
    // 0 means none, as in the Collector.
    let up_to_ms = up_to_ms.filter(|bound| *bound > 0);
    if let (Some(item), Some(bound)) = (&upper, up_to_ms)
        && bound <= over_ms
    {
        return Err(item.error(format!(
            "must be more than threshold_ms, {over_ms}, got {bound}"
        )));
    }
    let text = match up_to_ms {
        Some(bound) => format!("it took longer than {over_ms} ms and at most {bound} ms"),
        None => format!("it took longer than {over_ms} ms"),
    };
    let expression = Expression::Duration {
        over_nanos: over_ms * UnixNanos::PER_MILLI,
        up_to_nanos: up_to_ms.map(|bound| bound * UnixNanos::PER_MILLI),
    };
    Ok(Compiled::new(expression, text))
}

fn span_count(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
    let bound = |item: &Item<'_>| item.whole(0, u64::from(MAX_TRACE_SPANS));
    let min = fields.optional("min_spans");
    let max = fields.optional("max_spans");
    let low = min.as_ref().map(bound).transpose()?.unwrap_or(0);
    // 0 means none, as in the Collector.
    let high = max.as_ref().map(bound).transpose()?.filter(|max| *max > 0);
    if low == 0 && high.is_none() {
        return Err(fields.error("min_spans", "min_spans or max_spans is required"));
    }
    if let (Some(max), Some(high)) = (&max, high)
        && high < low
    {
        return Err(max.error(format!("must be at least min_spans, {low}, got {high}")));
    }
    let text = match high {
        Some(high) => format!("it has {low} to {high} spans"),
        None => format!("it has at least {low} spans"),
    };
    // At most MAX_TRACE_SPANS, a u32.
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let expression = Expression::SpanCount {
        min: number(low),
        max: high.map(number),
    };
    Ok(Compiled::new(expression, text))
}

fn tenant(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
    let mut tenants: Vec<TenantId> = Vec::new();
    for item in fields.required("values")?.list()? {
        let tenant = item.text()?.parse();
        tenants.push(
            tenant.map_err(|error: crate::ids::InvalidTenant| item.error(error.to_string()))?,
        );
    }
    let names: Vec<String> = tenants
        .iter()
        .map(|name| format!("{:?}", name.as_str()))
        .collect();
    let text = format!("it is of tenant {}", names.join(" or "));
    Ok(Compiled::new(Expression::Tenant(tenants), text))
}

fn probabilistic(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
    let percentage = fields.required("sampling_percentage")?.percentage()?;
    let salt = fields.optional("hash_salt");
    let salt = salt.as_ref().map(Item::text).transpose()?;
    let randomness = salt.map_or(Randomness::TraceId, Randomness::salted);
    let expression = Expression::Sample {
        probability: from_percentage(percentage),
        randomness,
    };
    Ok(Compiled::new(
        expression,
        format!("{percentage} % by its id"),
    ))
}
