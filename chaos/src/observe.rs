//! Asks a node for what the oracle judges.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use spandrel_api::client::{Client, SearchParameters};
use spandrel_model::ids::{SpanId, TraceId, UnixNanos};
use spandrel_model::search::TraceState;

use crate::history::History;
use crate::limits::POLL_INTERVAL;
use crate::oracle::{Fetched, Summary};

/// Traces of a page of a search: small, so that there are many pages.
const PAGE: u32 = 50;
/// Most pages that are asked for: far more than any test's traces fill.
const MAX_PAGES: usize = 10_000;
/// Fetches at once.
const FETCHERS: usize = 4;

/// What answers may say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipts {
    /// They are whole.
    Complete,
    /// They may say that something was not reached: a refusal with a hint counts as no trace then.
    Honest,
}

/// Fetches one trace by id.
///
/// # Errors
/// Any answer but the trace or that it is not there.
pub async fn fetch(client: &Client, id: TraceId) -> anyhow::Result<Fetched> {
    fetch_as(client, id, Receipts::Complete).await
}

async fn fetch_as(client: &Client, id: TraceId, receipts: Receipts) -> anyhow::Result<Fetched> {
    let reply = match client.trace(&id.to_string()).await {
        Ok(reply) => reply,
        Err(error) if receipts == Receipts::Honest && error.retry_after_ms().is_some() => {
            return Ok(Fetched::Absent);
        }
        Err(error) if error.refusal().is_some_and(|it| it.code == "not_found") => {
            // The decision is told though no span is left.
            let is_dropped = error.refusal().is_some_and(|it| it.decision.is_some());
            return Ok(match is_dropped {
                true => Fetched::Found {
                    state: TraceState::Dropped,
                    complete: true,
                    spans: Vec::new(),
                },
                false => Fetched::Absent,
            });
        }
        Err(error) => return Err(error).with_context(|| format!("trace {id}")),
    };
    let data = reply.spans()?;
    let spans = data
        .resource_spans
        .iter()
        .flat_map(|one| &one.scope_spans)
        .flat_map(|one| &one.spans);
    let span_id = |bytes: &[u8]| Ok::<_, anyhow::Error>(SpanId(bytes.try_into()?));
    Ok(Fetched::Found {
        state: state_of(&reply.head.state)?,
        complete: reply.head.complete,
        spans: spans
            .map(|span| span_id(&span.span_id))
            .collect::<Result<_, _>>()?,
    })
}

/// Fetches every trace of which something was sent.
///
/// # Errors
/// As [`fetch`].
pub async fn fetch_all(
    client: &Client,
    history: &History,
) -> anyhow::Result<BTreeMap<TraceId, Fetched>> {
    fetch_all_as(client, history, Receipts::Complete).await
}

/// As [`fetch_all`], with answers that may say that they are not whole.
///
/// # Errors
/// Any answer but a trace, that it is not there, or what `receipts` allows.
pub async fn fetch_all_as(
    client: &Client,
    history: &History,
    receipts: Receipts,
) -> anyhow::Result<BTreeMap<TraceId, Fetched>> {
    let ids: Vec<TraceId> = history.traces().map(|(id, _)| id).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for share in ids.chunks(ids.len().div_ceil(FETCHERS).max(1)) {
        let (client, share) = (client.clone(), share.to_vec());
        tasks.spawn(async move {
            let mut answers = Vec::with_capacity(share.len());
            for id in share {
                answers.push((id, fetch_as(&client, id, receipts).await?));
            }
            anyhow::Ok(answers)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(answers) = tasks.join_next().await {
        all.extend(answers??);
    }
    Ok(all)
}

/// Searches by service and follows the pages to the end. Returns the ids as they came.
///
/// # Errors
/// As [`search_summaries`].
pub async fn search_all(
    client: &Client,
    service: &str,
    range: (UnixNanos, UnixNanos),
) -> anyhow::Result<Vec<TraceId>> {
    let found = search_summaries(client, service, range, Receipts::Complete).await?;
    Ok(found.into_iter().map(|summary| summary.trace).collect())
}

/// Searches by service and follows the pages to the end. Returns what it found as it came.
///
/// # Errors
/// When a page is not as complete as `receipts` demands, and as every call.
pub async fn search_summaries(
    client: &Client,
    service: &str,
    (from, to): (UnixNanos, UnixNanos),
    receipts: Receipts,
) -> anyhow::Result<Vec<Summary>> {
    let mut search = SearchParameters {
        services: vec![service.to_owned()],
        from: Some(from),
        to: Some(to),
        limit: Some(PAGE),
        ..SearchParameters::default()
    };
    let mut found = Vec::new();
    for _ in 0..MAX_PAGES {
        let page = client.search(&search).await?;
        let missing = &page.receipt.missing;
        ensure!(
            page.receipt.complete || receipts == Receipts::Honest,
            "incomplete: {missing:?}"
        );
        for trace in page.traces {
            found.push(Summary {
                trace: trace.trace_id.parse()?,
                spans: usize::try_from(trace.span_count)?,
            });
        }
        match page.next_cursor {
            Some(cursor) => search.cursor = Some(cursor),
            None => return Ok(found),
        }
    }
    bail!("the search has no end: {MAX_PAGES} pages of {PAGE}")
}

/// Looks at a condition until it holds.
///
/// # Errors
/// When it does not hold before the deadline, or cannot be looked at.
pub async fn wait_until(
    what: &str,
    deadline: Duration,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let since = Instant::now();
    while !holds().await? {
        if since.elapsed() > deadline {
            bail!("{what}: not after {deadline:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Waits until none of the traces that were open in `answers` is open any more. The node's own count of open traces
/// is no substitute: it is taken twice a second.
///
/// # Errors
/// When one is still open after the deadline, and as [`fetch`].
pub async fn wait_until_decided(
    client: &Client,
    answers: &BTreeMap<TraceId, Fetched>,
    deadline: Duration,
) -> anyhow::Result<()> {
    let since = Instant::now();
    for (id, _) in answers.iter().filter(|(_, fetched)| is_open(fetched)) {
        let left = deadline.saturating_sub(since.elapsed());
        wait_until("the decision", left, async || {
            Ok(!is_open(&fetch(client, *id).await?))
        })
        .await?;
    }
    Ok(())
}

/// Whether the trace is not decided.
#[must_use]
pub fn is_open(fetched: &Fetched) -> bool {
    let open = TraceState::Open;
    matches!(fetched, Fetched::Found { state, .. } if *state == open)
}

fn state_of(text: &str) -> anyhow::Result<TraceState> {
    let states = [TraceState::Open, TraceState::Kept, TraceState::Dropped];
    let state = states.into_iter().find(|state| state.as_str() == text);
    state.with_context(|| format!("unknown state `{text}`"))
}
