//! `spandrel query`.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use spandrel_api::client::{Client, ClientError, NamesParameters, SearchParameters};
use spandrel_api::dto::{Decision, FoundTrace, Receipt, SearchResponse};
use spandrel_api::time::{format_duration, format_instant, now, parse_instant};
use spandrel_model::batch::StatusCode;
use spandrel_model::ids::UnixNanos;

use super::{connect, print_json};
use crate::cli::{NamesArgs, QueryCommand, RangeArgs, SearchArgs, StatusChoice, TraceArgs};
use crate::output::{colour, print, receipt_line, second, table, width};
use crate::waterfall::{Drawing, Heading, draw};

/// Traces that `tail` remembers to have shown.
const REMEMBERED_TRACES: usize = 20_000;
/// How far `tail` looks back, since traces become visible after they start.
const TAIL_WINDOW: Duration = Duration::from_secs(120);

/// Runs one of the queries.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn run(command: QueryCommand) -> anyhow::Result<()> {
    match command {
        QueryCommand::Search(args) => search(&args).await,
        QueryCommand::Trace(args) => trace(&args).await,
        QueryCommand::Services(args) => services(&args).await,
        QueryCommand::Operations { service, names } => operations(&service, &names).await,
        QueryCommand::Tags { key, names } => tags(key.as_deref(), &names).await,
        QueryCommand::Tail { search, interval } => tail(&search, interval).await,
    }
}

async fn search(args: &SearchArgs) -> anyhow::Result<()> {
    let found = connect(&args.client)
        .await?
        .search(&parameters(args)?)
        .await?;
    if args.client.json {
        return print_json(&found);
    }
    Ok(print(&render_search(&found))?)
}

async fn trace(args: &TraceArgs) -> anyhow::Result<()> {
    let client = connect(&args.client).await?;
    let reply = client
        .trace(&args.trace_id)
        .await
        .map_err(|error| explain_absence(&args.trace_id, error))?;
    if args.client.json {
        return Ok(print(&format!("{}\n", reply.json()))?);
    }
    let head = &reply.head;
    let mut missing: Vec<String> = head
        .missing
        .iter()
        .map(|part| format!("node {}: {}", part.node, part.reason))
        .collect();
    if !head.complete && missing.is_empty() {
        missing.push("a part was not reached".to_owned());
    }
    let heading = Heading {
        trace_id: head.trace_id.clone(),
        state: head.state.clone(),
        decision: head
            .decision
            .as_ref()
            .map(decision_line)
            .unwrap_or_default(),
        missing,
    };
    let drawing = Drawing {
        width: args.width.unwrap_or_else(width),
        colour: colour(args.client.color),
        events: args.events,
        attributes: args.attributes,
        limit_spans: args.limit_spans,
    };
    Ok(print(&draw(&heading, &reply.spans()?, &drawing))?)
}

/// Adds to "not found" what may have become of the trace.
fn explain_absence(trace_id: &str, error: ClientError) -> anyhow::Error {
    let Some(detail) = error
        .refusal()
        .filter(|detail| detail.code == "not_found" || detail.reason.is_some())
    else {
        return error.into();
    };
    if let Some(decision) = &detail.decision {
        return anyhow::anyhow!(
            "{error}\n{}; its spans are gone from the journal. A longer recovery window would have held them: --journal-recovery-window",
            decision_line(decision)
        );
    }
    let since = detail
        .retained_since
        .map_or(String::new(), |since| format!(" since {}", second(since.0)));
    anyhow::anyhow!(
        "{error}\nno span of {trace_id} was acknowledged{since}: check the id, the tenant (--tenant) and that its service sends here"
    )
}

/// The line may be cut on its right: what one needs first comes first.
fn decision_line(decision: &Decision) -> String {
    let mut line = match (decision.verdict.as_str(), decision.policy.as_str()) {
        ("drop", "") => "drop: no policy keeps it".to_owned(),
        (verdict, policy) => format!("{verdict} by {policy}"),
    };
    line.push_str(&format!(", trigger {}", decision.trigger));
    if let Some(until) = &decision.recoverable_until {
        line.push_str(&format!(", recoverable until {}", second(until.0)));
    } else {
        line.push_str(&format!(", probability {}", decision.probability));
    }
    line.push_str(&format!(
        ", policy version {}, at {}",
        decision.policy_version,
        second(decision.decided_at.0)
    ));
    line
}

async fn services(args: &NamesArgs) -> anyhow::Result<()> {
    let answer = connect(&args.client).await?.services(&names(args)?).await?;
    if args.client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = answer.services.into_iter().map(|name| vec![name]).collect();
    show(&["SERVICE"], &rows, &answer.receipt)
}

async fn operations(service: &str, args: &NamesArgs) -> anyhow::Result<()> {
    let answer = connect(&args.client)
        .await?
        .operations(service, &names(args)?)
        .await?;
    if args.client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = answer
        .operations
        .into_iter()
        .map(|operation| vec![operation.name, operation.kind])
        .collect();
    show(&["OPERATION", "KIND"], &rows, &answer.receipt)
}

async fn tags(key: Option<&str>, args: &NamesArgs) -> anyhow::Result<()> {
    let client = connect(&args.client).await?;
    let Some(key) = key else {
        let answer = client.tags(&names(args)?).await?;
        if args.client.json {
            return print_json(&answer);
        }
        let indexed = |indexed| if indexed { "yes" } else { "no" }.to_owned();
        let rows: Vec<Vec<String>> = answer
            .tags
            .into_iter()
            .map(|tag| vec![tag.key, tag.scope, indexed(tag.indexed)])
            .collect();
        return show(&["TAG", "SCOPE", "INDEXED"], &rows, &answer.receipt);
    };
    let answer = client.tag_values(key, &names(args)?).await?;
    if args.client.json {
        return print_json(&answer);
    }
    let rows: Vec<Vec<String>> = answer
        .values
        .into_iter()
        .map(|value| vec![value.value, value.r#type])
        .collect();
    show(&["VALUE", "TYPE"], &rows, &answer.receipt)
}

fn show(head: &[&str], rows: &[Vec<String>], receipt: &Receipt) -> anyhow::Result<()> {
    Ok(print(&format!(
        "{}{}",
        table(head, rows),
        receipt_line(receipt)
    ))?)
}

/// Searches again and again and shows what was not there before.
async fn tail(args: &SearchArgs, interval: Duration) -> anyhow::Result<()> {
    let client = connect(&args.client).await?;
    let (mut shown, mut order) = (BTreeSet::new(), VecDeque::new());
    let interval = interval.max(Duration::from_millis(200));
    loop {
        for trace in fresh(&client, args).await? {
            if !shown.insert(trace.trace_id.clone()) {
                continue;
            }
            order.push_back(trace.trace_id.clone());
            if order.len() > REMEMBERED_TRACES
                && let Some(oldest) = order.pop_front()
            {
                shown.remove(&oldest);
            }
            if args.client.json {
                print(&format!("{}\n", serde_json::to_string(&trace)?))?;
            } else {
                print(&format!("{}\n", row(&trace).join("  ")))?;
            }
        }
        tokio::time::sleep(interval).await;
    }
}

/// The newest traces, oldest first.
async fn fresh(client: &Client, args: &SearchArgs) -> anyhow::Result<Vec<FoundTrace>> {
    let mut search = parameters(args)?;
    let window = u64::try_from(TAIL_WINDOW.as_nanos()).unwrap_or(u64::MAX);
    search.from = Some(search.from.unwrap_or_else(|| now().minus(window)));
    let mut found = client.search(&search).await?.traces;
    found.reverse();
    Ok(found)
}

fn render_search(found: &SearchResponse) -> String {
    let head = [
        "START", "DURATION", "ROOT", "SERVICES", "SPANS", "ERRORS", "STATE", "TRACE",
    ];
    let rows: Vec<Vec<String>> = found.traces.iter().map(row).collect();
    let mut out = if rows.is_empty() {
        "no traces\n".to_owned()
    } else {
        table(&head, &rows)
    };
    out.push_str(&receipt_line(&found.receipt));
    if let Some(cursor) = &found.next_cursor {
        out.push_str(&format!("more with --cursor {cursor}\n"));
    }
    out
}

fn row(trace: &FoundTrace) -> Vec<String> {
    // A duration in milliseconds is below 2^63 ns for every pair of times that OTLP can say.
    #[allow(clippy::cast_possible_truncation)]
    let nanos = (trace.duration_ms * 1e6) as i128;
    [
        format_instant(trace.start_time.0)
            .get(..23)
            .unwrap_or_default()
            .to_owned(),
        format_duration(nanos),
        format!("{} {}", trace.root_service, trace.root_operation),
        trace.services.len().to_string(),
        trace.span_count.to_string(),
        trace.error_count.to_string(),
        trace.state.clone(),
        trace.trace_id.clone(),
    ]
    .map(|cell| crate::waterfall::escape(&cell))
    .to_vec()
}

fn parameters(args: &SearchArgs) -> anyhow::Result<SearchParameters> {
    let (from, to) = range(&args.range)?;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok(SearchParameters {
        services: args.service.clone(),
        operation: args.operation.clone(),
        status: args.status.map(|status| match status {
            StatusChoice::Error => StatusCode::Error,
            StatusChoice::Ok => StatusCode::Ok,
            StatusChoice::Unset => StatusCode::Unset,
        }),
        tags: args.tag.clone(),
        min_duration_ms: args.min_duration.map(ms),
        max_duration_ms: args.max_duration.map(ms),
        from,
        to,
        limit: Some(args.limit),
        cursor: args.cursor.clone(),
        include_dropped: args.include_dropped,
    })
}

fn names(args: &NamesArgs) -> anyhow::Result<NamesParameters> {
    let (from, to) = range(&args.range)?;
    Ok(NamesParameters {
        from,
        to,
        limit: args.limit,
        prefix: args.prefix.clone(),
    })
}

fn range(args: &RangeArgs) -> anyhow::Result<(Option<UnixNanos>, Option<UnixNanos>)> {
    let instant = |flag: &str, given: &Option<String>| {
        let instant = given.as_deref().map(parse_instant).transpose();
        instant
            .map_err(|error| anyhow::anyhow!("{flag} {error}; for a time before now: --since 15m"))
    };
    let to = instant("--to", &args.to)?;
    let mut from = instant("--from", &args.from)?;
    if let Some(since) = args.since {
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        from = Some(to.unwrap_or_else(now).minus(nanos));
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use spandrel_api::time::Instant;

    use super::*;

    #[test]
    fn a_decision_is_a_sentence() {
        let at = |seconds: u64| Instant(UnixNanos(seconds * UnixNanos::PER_SECOND + 1));
        let kept = Decision {
            verdict: "keep".to_owned(),
            policy: "slow".to_owned(),
            trigger: "idle".to_owned(),
            policy_version: 3,
            probability: 0.5,
            decided_at: at(0),
            recoverable_until: None,
        };
        assert_eq!(
            decision_line(&kept),
            "keep by slow, trigger idle, probability 0.5, policy version 3, at 1970-01-01T00:00:00Z"
        );
        let dropped = Decision {
            verdict: "drop".to_owned(),
            policy: String::new(),
            recoverable_until: Some(at(60)),
            ..kept
        };
        assert_eq!(
            decision_line(&dropped),
            "drop: no policy keeps it, trigger idle, recoverable until 1970-01-01T00:01:00Z, policy version 3, \
             at 1970-01-01T00:00:00Z"
        );
    }
}
