//! Lists of a policy file: texts, patterns, status codes, orders and shares.

use std::collections::BTreeSet;

use regex::RegexBuilder;

use super::error::PolicyError;
use super::fields::Item;
use super::leaf::ValueTest;
use crate::batch::StatusCode;
use crate::limits::{MAX_POLICY_REGEXES, MAX_REGEX_BYTES, MAX_REGEX_DEPTH};

/// A list of texts as a set.
pub(super) fn text_set(list: &Item<'_>) -> Result<BTreeSet<String>, PolicyError> {
    list.list()?
        .iter()
        .map(|item| item.text().map(str::to_owned))
        .collect()
}

/// The texts in quotes, for people.
pub(super) fn quoted<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| format!("{text:?}")).collect();
    texts.join(" or ")
}

/// Texts to equal, with the words for it.
pub(super) fn texts(list: &Item<'_>) -> Result<(ValueTest, String), PolicyError> {
    let texts = text_set(list)?;
    let words = format!("is {}", quoted(&texts));
    Ok((ValueTest::Equal(texts), words))
}

/// Patterns to match, with the words for it. `compiled` counts those of the whole file.
pub(super) fn patterns(
    list: &Item<'_>,
    compiled: &mut usize,
) -> Result<(ValueTest, String), PolicyError> {
    let mut patterns = Vec::new();
    let mut sources = Vec::new();
    for item in list.list()? {
        *compiled += 1;
        if *compiled > MAX_POLICY_REGEXES {
            return Err(item.error(format!(
                "the file has more than {MAX_POLICY_REGEXES} regular expressions"
            )));
        }
        let source = item.text()?;
        let pattern = RegexBuilder::new(source)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_BYTES)
            .nest_limit(MAX_REGEX_DEPTH)
            .build()
            .map_err(|error| item.error(regex_message(&error)))?;
        patterns.push(pattern);
        sources.push(source.to_owned());
    }
    let words = format!("matches {}", quoted(&sources));
    Ok((ValueTest::Match(patterns), words))
}

fn regex_message(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("the regular expression is too large: compiled it passes {limit} bytes")
        }
        // The last line says what is wrong; those before it draw the place.
        other => {
            let message = other.to_string();
            let last = message.lines().last().unwrap_or_default();
            let reason = last.trim_start_matches("error: ");
            format!("is not a regular expression: {reason}")
        }
    }
}

/// Status codes by their OTLP names, in any case; each once.
pub(super) fn status_codes(list: &Item<'_>) -> Result<Vec<StatusCode>, PolicyError> {
    let mut codes = BTreeSet::new();
    for item in list.list()? {
        let name = item.text()?;
        codes.insert(match name.to_ascii_uppercase().as_str() {
            "UNSET" => StatusCode::Unset,
            "OK" => StatusCode::Ok,
            "ERROR" => StatusCode::Error,
            _ => return Err(item.error(format!("must be OK, ERROR or UNSET, got `{name}`"))),
        });
    }
    Ok(codes.into_iter().collect())
}

/// The order in which a composite asks its sub-policies, as indexes into `names`; theirs when none is given.
pub(super) fn policy_order(
    order: Option<Item<'_>>,
    names: &[&str],
) -> Result<Vec<usize>, PolicyError> {
    let Some(order) = order else {
        return Ok((0..names.len()).collect());
    };
    let mut indexes = Vec::new();
    for item in order.list()? {
        let index = index_of(&item, names)?;
        if indexes.contains(&index) {
            return Err(item.error("is listed twice"));
        }
        indexes.push(index);
    }
    let missing = (0..names.len()).find(|index| !indexes.contains(index));
    match missing.and_then(|index| names.get(index)) {
        Some(name) => Err(order.error(format!("does not list the sub-policy `{name}`"))),
        None => Ok(indexes),
    }
}

/// The percent of the total that each of `names` gets; those not listed share what remains equally.
pub(super) fn rate_allocation(
    allocation: Option<Item<'_>>,
    names: &[&str],
) -> Result<Vec<u64>, PolicyError> {
    let mut percents: Vec<Option<u64>> = vec![None; names.len()];
    let mut at = None;
    if let Some(allocation) = allocation {
        for item in allocation.list()? {
            let mut fields = item.fields()?;
            let policy = fields.required("policy")?;
            let percent = fields.required("percent")?.whole(1, 100)?;
            fields.finish("rate_allocation")?;
            let index = index_of(&policy, names)?;
            match percents.get_mut(index) {
                Some(slot) if slot.is_none() => *slot = Some(percent),
                _ => return Err(policy.error("has a share already")),
            }
        }
        at = Some(allocation);
    }
    let given: u64 = percents.iter().flatten().sum();
    let open = percents.iter().filter(|percent| percent.is_none()).count();
    let rest = 100u64.saturating_sub(given) / u64::try_from(open.max(1)).unwrap_or(u64::MAX);
    if let Some(at) = at
        && (given > 100 || (open > 0 && rest == 0))
    {
        return Err(at.error(format!(
            "gives away {given} percent, and {open} sub-policies are to share the rest of 100"
        )));
    }
    // A hundred sub-policies without shares leave less than a percent each: the smallest share is one.
    Ok(percents
        .into_iter()
        .map(|percent| percent.unwrap_or(rest.max(1)))
        .collect())
}

fn index_of(item: &Item<'_>, names: &[&str]) -> Result<usize, PolicyError> {
    let name = item.text()?;
    names
        .iter()
        .position(|known| *known == name)
        .ok_or_else(|| item.error(format!("there is no sub-policy `{name}`")))
}
