//! What must hold of a question whatever a client writes: it asks within its bounds, or the client hears what is wrong.
//! Beside the tests, the fuzz target `query_parameters` uses this.

use http::StatusCode;
use spandrel_model::ids::{TenantId, TraceId, UnixNanos};
use spandrel_model::limits::MAX_SEARCH_LIMIT;
use spandrel_model::search::{
    Cursor, NamesKind, NamesRequest, SearchAnswer, SearchFilter, SearchRequest,
};

use crate::cursor::PageCursor;
use crate::error::ApiError;
use crate::limits::{
    MAX_CONDITION_BYTES, MAX_CONDITIONS, MAX_NAMES_LIMIT, MAX_QUERY_STRING_BYTES,
    MAX_QUERY_TIMEOUT_MS,
};
use crate::parameters::Parameters;
use crate::question::{NamesQuestion, SearchQuestion, next_cursor};
use crate::time::{format_instant, parse_instant};

const NOW: UnixNanos = UnixNanos(1_700_000_000 * UnixNanos::PER_SECOND);
/// More than the message of any refusal, whatever of the question it repeats.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// A query string, as a search and as each question for names.
pub(crate) fn check_query(query: &str) {
    if let Some(search) = accepted(search(query)) {
        check_search(&search);
        check_continued(&search);
    }
    let service = query.to_owned();
    let kinds = [
        NamesKind::Services,
        NamesKind::Operations { service },
        NamesKind::Tags,
        NamesKind::TagValues {
            key: query.to_owned(),
        },
    ];
    for kind in kinds {
        if let Some(names) = accepted(names(query, kind)) {
            check_names(&names);
        }
    }
    if let Some(parameters) = accepted(Parameters::parse(Some(query))) {
        accepted(parameters.finish());
    }
}

/// Any text as a value: it comes as it was meant; as a cursor and as an instant it says one thing only.
pub(crate) fn check_value(text: &str) {
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let query = format!("a={encoded}");
    if query.len() <= MAX_QUERY_STRING_BYTES {
        let mut parameters = Parameters::parse(Some(&query)).unwrap();
        assert_eq!(parameters.one("a").unwrap().as_deref(), Some(text));
        parameters.finish().unwrap();
    }
    if let Some(cursor) = accepted(PageCursor::decode(text)) {
        assert_eq!(cursor.encode(), text);
    }
    match parse_instant(text) {
        Ok(at) => assert_eq!(parse_instant(&format_instant(at)), Ok(at)),
        Err(error) => assert!(error.to_string().len() <= MAX_MESSAGE_BYTES),
    }
}

/// What is not refused; a refusal says where and why, briefly.
fn accepted<T>(result: Result<T, ApiError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{error:?}");
            assert!(error.detail.field.is_some(), "{error:?}");
            let message = &error.detail.message;
            assert!(
                (1..=MAX_MESSAGE_BYTES).contains(&message.len()),
                "{error:?}"
            );
            None
        }
    }
}

/// Without looking at parameters that are not known: what is behind them is checked all the same.
fn search(query: &str) -> Result<SearchRequest, ApiError> {
    let mut parameters = Parameters::parse(Some(query))?;
    let question = SearchQuestion::of_parameters(&mut parameters)?;
    question.ask(TenantId::default(), NOW)
}

fn names(query: &str, kind: NamesKind) -> Result<NamesRequest, ApiError> {
    let mut parameters = Parameters::parse(Some(query))?;
    let question = NamesQuestion::of_parameters(&mut parameters)?;
    question.ask(TenantId::default(), kind, NOW)
}

fn check_search(request: &SearchRequest) {
    assert!((1..=MAX_SEARCH_LIMIT).contains(&request.limit));
    assert!((1..=MAX_QUERY_TIMEOUT_MS).contains(&request.timeout_ms));
    let filter = &request.filter;
    assert!(filter.from < filter.to);
    if let (Some(min), Some(max)) = (filter.min_duration, filter.max_duration) {
        assert!(min <= max);
    }
    assert!(filter.services.len() <= MAX_CONDITIONS && filter.tags.len() <= MAX_CONDITIONS);
    for text in filter.services.iter().chain(&filter.operation) {
        check_text(text);
    }
    for tag in &filter.tags {
        check_text(&tag.key);
        assert!(tag.key.len() + tag.value.len() < MAX_CONDITION_BYTES);
    }
}

/// The next page is of the same range, and goes on behind this one.
fn check_continued(request: &SearchRequest) {
    let SearchFilter { from, to, .. } = request.filter;
    let after = request.cursor.unwrap_or(Cursor {
        start: from,
        trace_id: TraceId([7; 16]),
    });
    let answer = SearchAnswer {
        next: Some(after),
        ..SearchAnswer::default()
    };
    let cursor = next_cursor(&request.filter, &answer).unwrap();
    let next = search(&format!("cursor={cursor}")).unwrap();
    assert_eq!((next.filter.from, next.filter.to), (from, to));
    assert_eq!(next.cursor, Some(after));
}

fn check_names(request: &NamesRequest) {
    assert!((1..=MAX_NAMES_LIMIT).contains(&request.limit));
    assert!(request.from < request.to);
    assert!(request.prefix.len() <= MAX_CONDITION_BYTES);
    match &request.kind {
        NamesKind::Operations { service: text } | NamesKind::TagValues { key: text } => {
            check_text(text);
        }
        NamesKind::Services | NamesKind::Tags => {}
    }
}

fn check_text(text: &str) {
    assert!((1..=MAX_CONDITION_BYTES).contains(&text.len()));
}
