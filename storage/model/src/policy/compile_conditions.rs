//! Compiling conditions: what a trace is, by its spans' contents or by its facts.

use super::compile::{Compiled, Compiler};
use super::error::PolicyError;
use super::expression::Expression;
use super::fields::{Fields, Item};
use super::leaf::{LeafTest, ValueTest};
use super::values;
use crate::ids::{InvalidTenant, TenantId, UnixNanos};
use crate::limits::MAX_TRACE_SPANS;

impl Compiler {
    pub(super) fn status_code(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let list = fields.required("status_codes")?;
        let codes = values::status_codes(&list)?;
        let words: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
        let text = format!("a span's status is {}", words.join(" or "));
        self.leaf(&list, text, LeafTest::Status(codes))
    }

    pub(super) fn string_attribute(
        &mut self,
        fields: &mut Fields<'_>,
    ) -> Result<Compiled, PolicyError> {
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

    pub(super) fn numeric_attribute(
        &mut self,
        fields: &mut Fields<'_>,
    ) -> Result<Compiled, PolicyError> {
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
            test: ValueTest::Range {
                min: low,
                max: high,
            },
        };
        Ok(self.leaf(&key, text, test)?.inverted(invert))
    }

    pub(super) fn boolean_attribute(
        &mut self,
        fields: &mut Fields<'_>,
    ) -> Result<Compiled, PolicyError> {
        let key = fields.required("key")?;
        let value = fields.required("value")?.boolean()?;
        let invert = flag(fields.optional("invert_match"))?;
        let name = key.text()?.to_owned();
        let text = format!("a span's {name:?} is {value}");
        let test = LeafTest::Attribute {
            key: name,
            test: ValueTest::Bool(value),
        };
        Ok(self.leaf(&key, text, test)?.inverted(invert))
    }

    pub(super) fn trace_state(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let key = fields.required("key")?;
        let values = values::text_set(&fields.required("values")?)?;
        let name = key.text()?.to_owned();
        let text = format!(
            "a span's trace state {name:?} is {}",
            values::quoted(&values)
        );
        self.leaf(&key, text, LeafTest::TraceState { key: name, values })
    }

    pub(super) fn service(&mut self, fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
        let list = fields.required("values")?;
        let services = values::text_set(&list)?;
        let text = format!("a span is of service {}", values::quoted(&services));
        self.leaf(&list, text, LeafTest::Service(services))
    }
}

fn flag(item: Option<Item<'_>>) -> Result<bool, PolicyError> {
    item.map_or(Ok(false), |item| item.boolean())
}

pub(super) fn latency(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
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
    Ok(Compiled::condition(expression, text))
}

pub(super) fn span_count(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
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
    Ok(Compiled::condition(expression, text))
}

pub(super) fn tenant(fields: &mut Fields<'_>) -> Result<Compiled, PolicyError> {
    let mut tenants: Vec<TenantId> = Vec::new();
    for item in fields.required("values")?.list()? {
        let tenant = item.text()?.parse();
        tenants.push(tenant.map_err(|error: InvalidTenant| item.error(error.to_string()))?);
    }
    let names: Vec<String> = tenants
        .iter()
        .map(|name| format!("{:?}", name.as_str()))
        .collect();
    let text = format!("it is of tenant {}", names.join(" or "));
    Ok(Compiled::condition(Expression::Tenant(tenants), text))
}
