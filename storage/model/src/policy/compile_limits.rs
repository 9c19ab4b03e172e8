//! Compiling samplers, rate limits, and the composite that shares a limit out.

use super::compile::{Compiled, Compiler, Nest};
use super::error::PolicyError;
use super::expression::{Cost, Expression, Share};
use super::fields::{Fields, Item};
use super::limiters::{LimiterKind, LimiterSpec};
use super::probability::{Randomness, from_percentage};
use super::values;
use crate::limits::MAX_POLICY_RATE;

impl Compiler {
    pub(super) fn throughput(
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
        Ok(Compiled::amount(
            Expression::Throughput { limiter },
            format!("up to {rate} traces a second per node, above that sampled down to it"),
        ))
    }

    pub(super) fn rate_limiting(
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

    pub(super) fn bytes_limiting(
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
        Ok(Compiled::amount(Expression::Bucket { limiter, cost }, text))
    }

    pub(super) fn composite(
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
                compiled.text()
            ));
            shares.push(Share {
                expression: compiled.expression,
                limiter: self.limiter(kind, spec)?,
            });
        }
        Ok(Compiled::amount(
            Expression::Composite(shares),
            format!("the first that applies of: {}", texts.join("; ")),
        ))
    }
}

pub(super) fn probabilistic(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
    let percentage = fields.required("sampling_percentage")?.percentage()?;
    let salt = fields.optional("hash_salt");
    let salt = salt.as_ref().map(Item::text).transpose()?;
    let randomness = salt.map_or(Randomness::TraceId, Randomness::salted);
    let expression = Expression::Sample {
        probability: from_percentage(percentage),
        randomness,
    };
    Ok(Compiled::amount(
        expression,
        format!("{percentage} % of traces by id"),
    ))
}
