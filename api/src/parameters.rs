//! Query strings, read strictly: what is not known, and what is given twice without being a list, is refused.

use std::fmt::Display;
use std::str::FromStr;

use spandrel_model::ids::UnixNanos;

use crate::error::ApiError;
use crate::limits::{MAX_PARAMETERS, MAX_QUERY_STRING_BYTES};
use crate::time::parse_instant;

/// The parameters that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Splits and decodes a query string.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let query = query.unwrap_or("");
        if query.len() > MAX_QUERY_STRING_BYTES {
            let message = format!("the query string is longer than {MAX_QUERY_STRING_BYTES} bytes");
            return Err(ApiError::invalid("query", message));
        }
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                let message = format!("more than {MAX_PARAMETERS} parameters");
                return Err(ApiError::invalid("query", message));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// Each value of a parameter that may be repeated.
    pub(crate) fn many(&mut self, name: &str) -> Vec<String> {
        let (taken, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(known, _)| known == name);
        self.0 = rest;
        Vec::into_iter(taken).map(|(_, value)| value).collect()
    }

    /// The value of a parameter that is given once at most.
    pub(crate) fn one(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let mut values = self.many(name);
        if values.len() > 1 {
            let message = format!("the parameter `{name}` is given more than once");
            return Err(ApiError::invalid(name, message));
        }
        Ok(values.pop())
    }

    /// A number.
    pub(crate) fn number<T: FromStr<Err: Display>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        let wrong = |error| ApiError::invalid(name, format!("`{name}` is no number: {error}"));
        self.one(name)?
            .map(|text| text.parse().map_err(wrong))
            .transpose()
    }

    /// An instant.
    pub(crate) fn instant(&mut self, name: &str) -> Result<Option<UnixNanos>, ApiError> {
        let wrong = |error| ApiError::invalid(name, format!("`{name}` {error}"));
        self.one(name)?
            .map(|text| parse_instant(&text).map_err(wrong))
            .transpose()
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(ApiError::invalid(
                    &name,
                    format!("the parameter `{name}` is not known"),
                ))
            }
        }
    }
}

/// Undoes percent encoding and `+` for a blank.
fn decode(text: &str) -> Result<String, ApiError> {
    let wrong = || ApiError::invalid("query", "the query string is not percent-encoded utf-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = digit().zip(digit()).ok_or_else(wrong)?;
                u8::try_from(high << 4 | low).map_err(|_| wrong())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question_oracle::{check_query, check_value};
    use proptest::prelude::*;

    #[test]
    fn parameters_are_decoded_taken_and_accounted_for() {
        let mut query = Parameters::parse(Some("a=1&tag=k%3Av+w&tag=&&b")).unwrap();
        assert_eq!(query.many("tag"), ["k:v w", ""]);
        assert_eq!(query.number::<u64>("a").unwrap(), Some(1));
        assert_eq!(query.one("b").unwrap(), Some(String::new()));
        query.finish().unwrap();
        for bad in [
            "a=%",
            "a=%g0",
            "a=%ff",
            &"x".repeat(20_000),
            &"a&".repeat(200),
        ] {
            assert!(Parameters::parse(Some(bad)).is_err(), "{bad}");
        }
        let mut twice = Parameters::parse(Some("a=1&a=1&z=2")).unwrap();
        assert!(twice.one("a").is_err());
        assert!(twice.finish().is_err());
    }

    proptest! {
        #[test]
        fn no_query_string_panics(query in "\\PC{0,100}") {
            check_query(&query);
        }

        #[test]
        fn every_value_comes_as_it_was_meant(text in "\\PC{0,100}") {
            check_value(&text);
        }
    }
}
