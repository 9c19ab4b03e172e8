//! Searches and questions for names as clients put them, by HTTP or gRPC, made into what the port takes.

use spandrel_model::batch::StatusCode;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::limits::MAX_SEARCH_LIMIT;
use spandrel_model::search::{
    NamesKind, NamesRequest, SearchAnswer, SearchFilter, SearchRequest, TagCondition,
};

use crate::cursor::PageCursor;
use crate::error::ApiError;
use crate::limits::{
    DEFAULT_LOOKBACK_NANOS, DEFAULT_NAMES_LIMIT, DEFAULT_QUERY_TIMEOUT_MS, DEFAULT_SEARCH_LIMIT,
    MAX_CONDITION_BYTES, MAX_CONDITIONS, MAX_NAMES_LIMIT, MAX_QUERY_TIMEOUT_MS,
};
use crate::parameters::Parameters;
use crate::time::ms_to_nanos;

/// A search, unchecked.
#[derive(Debug, Default)]
pub(crate) struct SearchQuestion {
    pub(crate) services: Vec<String>,
    pub(crate) operation: Option<String>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) tags: Vec<String>,
    pub(crate) min_duration_ms: Option<f64>,
    pub(crate) max_duration_ms: Option<f64>,
    pub(crate) from: Option<UnixNanos>,
    pub(crate) to: Option<UnixNanos>,
    pub(crate) limit: Option<u64>,
    pub(crate) cursor: Option<String>,
    pub(crate) include_dropped: bool,
    pub(crate) timeout_ms: Option<u64>,
}

impl SearchQuestion {
    /// From the parameters of `GET /v1/traces/search`.
    pub(crate) fn of_parameters(parameters: &mut Parameters) -> Result<Self, ApiError> {
        let status = match parameters.one("status")?.as_deref() {
            None => None,
            Some("error") => Some(StatusCode::Error),
            Some("ok") => Some(StatusCode::Ok),
            Some("unset") => Some(StatusCode::Unset),
            Some(_) => {
                let message = "`status` must be one of error, ok and unset";
                return Err(ApiError::invalid("status", message));
            }
        };
        let include_dropped = match parameters.one("include")?.as_deref() {
            None => false,
            Some("dropped") => true,
            Some(_) => {
                return Err(ApiError::invalid(
                    "include",
                    "`include` can only be dropped",
                ));
            }
        };
        Ok(Self {
            services: parameters.many("service"),
            operation: parameters.one("operation")?,
            status,
            tags: parameters.many("tag"),
            min_duration_ms: parameters.number("minDurationMs")?,
            max_duration_ms: parameters.number("maxDurationMs")?,
            from: parameters.instant("from")?,
            to: parameters.instant("to")?,
            limit: parameters.number("limit")?,
            cursor: parameters.one("cursor")?,
            include_dropped,
            timeout_ms: parameters.number("timeoutMs")?,
        })
    }

    /// Checks it all.
    pub(crate) fn ask(self, tenant: TenantId, now: UnixNanos) -> Result<SearchRequest, ApiError> {
        for (field, texts) in [("service", &self.services), ("tag", &self.tags)] {
            if texts.len() > MAX_CONDITIONS {
                let message = format!("at most {MAX_CONDITIONS} of `{field}` are taken");
                return Err(ApiError::invalid(field, message));
            }
            texts.iter().try_for_each(|text| check_text(field, text))?;
        }
        self.operation
            .iter()
            .try_for_each(|text| check_text("operation", text))?;
        let cursor = self.cursor.as_deref().map(PageCursor::decode).transpose()?;
        let (from, to) = range(
            self.from.or(cursor.map(|cursor| cursor.from)),
            self.to.or(cursor.map(|cursor| cursor.to)),
            now,
        )?;
        let min_duration = duration("minDurationMs", self.min_duration_ms)?;
        let max_duration = duration("maxDurationMs", self.max_duration_ms)?;
        if let (Some(min), Some(max)) = (min_duration, max_duration)
            && min > max
        {
            let message = "`minDurationMs` is greater than `maxDurationMs`";
            return Err(ApiError::invalid("minDurationMs", message));
        }
        let tags: Result<_, ApiError> = self.tags.iter().map(|tag| condition(tag)).collect();
        Ok(SearchRequest {
            tenant,
            filter: SearchFilter {
                services: self.services,
                operation: self.operation,
                status: self.status,
                tags: tags?,
                min_duration,
                max_duration,
                from,
                to,
            },
            limit: limit(self.limit, DEFAULT_SEARCH_LIMIT, MAX_SEARCH_LIMIT)?,
            cursor: cursor.map(|cursor| cursor.after),
            include_dropped: self.include_dropped,
            timeout_ms: in_range(
                "timeoutMs",
                self.timeout_ms.unwrap_or(DEFAULT_QUERY_TIMEOUT_MS),
                MAX_QUERY_TIMEOUT_MS,
            )?,
        })
    }
}

/// The text that continues `answer`.
pub(crate) fn next_cursor(filter: &SearchFilter, answer: &SearchAnswer) -> Option<String> {
    answer.next.map(|after| {
        PageCursor {
            from: filter.from,
            to: filter.to,
            after,
        }
        .encode()
    })
}

/// A question for names, unchecked.
#[derive(Debug, Default)]
pub(crate) struct NamesQuestion {
    pub(crate) from: Option<UnixNanos>,
    pub(crate) to: Option<UnixNanos>,
    pub(crate) limit: Option<u64>,
    pub(crate) prefix: String,
}

impl NamesQuestion {
    /// From the parameters that all calls for names share.
    pub(crate) fn of_parameters(parameters: &mut Parameters) -> Result<Self, ApiError> {
        Ok(Self {
            from: parameters.instant("from")?,
            to: parameters.instant("to")?,
            limit: parameters.number("limit")?,
            prefix: parameters.one("prefix")?.unwrap_or_default(),
        })
    }

    /// Checks it all.
    pub(crate) fn ask(
        self,
        tenant: TenantId,
        kind: NamesKind,
        now: UnixNanos,
    ) -> Result<NamesRequest, ApiError> {
        match &kind {
            NamesKind::Operations { service } => check_text("service", service)?,
            NamesKind::TagValues { key } => check_text("key", key)?,
            NamesKind::Services | NamesKind::Tags => {}
        }
        if self.prefix.len() > MAX_CONDITION_BYTES {
            return Err(too_long("prefix"));
        }
        let (from, to) = range(self.from, self.to, now)?;
        Ok(NamesRequest {
            tenant,
            kind,
            from,
            to,
            limit: limit(self.limit, DEFAULT_NAMES_LIMIT, MAX_NAMES_LIMIT)?,
            prefix: self.prefix,
        })
    }
}

fn range(
    from: Option<UnixNanos>,
    to: Option<UnixNanos>,
    now: UnixNanos,
) -> Result<(UnixNanos, UnixNanos), ApiError> {
    // One more than now, because the end is exclusive.
    let to = to.unwrap_or(now.plus(1));
    let from = from.unwrap_or(to.minus(DEFAULT_LOOKBACK_NANOS));
    if from >= to {
        return Err(ApiError::invalid("from", "`from` must be before `to`"));
    }
    Ok((from, to))
}

fn limit(given: Option<u64>, default: usize, most: usize) -> Result<usize, ApiError> {
    let limit = in_range("limit", given.unwrap_or(default as u64), most as u64)?;
    Ok(usize::try_from(limit).unwrap_or(most))
}

fn in_range(field: &str, value: u64, most: u64) -> Result<u64, ApiError> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    let mut error = ApiError::invalid(field, format!("`{field}` must be 1 to {most}, got {value}"));
    error.detail.limit = Some(most.to_string());
    Err(error)
}

fn duration(field: &str, ms: Option<f64>) -> Result<Option<u64>, ApiError> {
    let wrong = || ApiError::invalid(field, format!("`{field}` must be milliseconds from 0 on"));
    ms.map(|ms| ms_to_nanos(ms).ok_or_else(wrong)).transpose()
}

fn condition(tag: &str) -> Result<TagCondition, ApiError> {
    match tag.split_once(':') {
        Some((key, value)) if !key.is_empty() => Ok(TagCondition {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        _ => Err(ApiError::invalid("tag", "`tag` must be key:value")),
    }
}

fn check_text(field: &str, text: &str) -> Result<(), ApiError> {
    match text.len() {
        0 => Err(ApiError::invalid(
            field,
            format!("`{field}` must not be empty"),
        )),
        length if length > MAX_CONDITION_BYTES => Err(too_long(field)),
        _ => Ok(()),
    }
}

fn too_long(field: &str) -> ApiError {
    let message = format!("`{field}` is longer than {MAX_CONDITION_BYTES} bytes");
    ApiError::invalid(field, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::question_oracle::check_query;

    /// Parameters that exist, with values that some of them take.
    fn query_string() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "service",
            "operation",
            "status",
            "include",
            "tag",
            "minDurationMs",
            "maxDurationMs",
            "from",
            "to",
            "limit",
            "cursor",
            "timeoutMs",
            "prefix",
            "other",
        ]);
        let value = prop_oneof![
            prop::sample::select(vec![
                "error",
                "ok",
                "dropped",
                "a=b",
                "a",
                "%3D",
                "0",
                "1",
                "50",
                "-1",
                "1e300",
                "NaN",
                "inf",
                "99999999999999999999",
                "2024-01-01T00:00:00Z",
                "1700000000000000000",
            ])
            .prop_map(str::to_owned),
            "[0-9A-Za-z:.+%_=-]{0,40}",
            "\\PC{0,20}",
        ];
        let pair = (name, value).prop_map(|(name, value)| format!("{name}={value}"));
        prop::collection::vec(pair, 0..6).prop_map(|pairs| pairs.join("&"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// What is asked of the port is within its bounds, or the client hears what is wrong.
        #[test]
        fn a_query_string_asks_within_bounds_or_is_refused(query in query_string()) {
            check_query(&query);
        }
    }
}
