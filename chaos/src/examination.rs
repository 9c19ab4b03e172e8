//! What is promised of a cluster once its clients are quiet, asked of several nodes and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::Context;
use spandrel_api::client::Client;
use spandrel_model::ids::{TraceId, UnixNanos};
use spandrel_model::search::TraceState;

use crate::cluster_process::ClusterProcess;
use crate::history::History;
use crate::limits::{DECIDED_DEADLINE, SHOWN_TRACES, SHOWN_VIOLATIONS};
use crate::observe::{Receipts, fetch_all_as, is_open, search_summaries, wait_until_decided};
use crate::oracle::{
    Fetched, Stage, Violation, judge_agreement, judge_searches, judge_splits, judge_traces,
};
use crate::workload::SERVICES;

/// The answers about all traces of a history.
pub type Answers = BTreeMap<TraceId, Fetched>;

/// What is asked for, and how.
#[derive(Debug, Clone, Copy)]
pub struct Examination {
    /// No span starts before.
    pub start: UnixNanos,
    /// What answers may say of themselves.
    pub receipts: Receipts,
    /// How long everything may take to be decided.
    pub decided_deadline: Duration,
}

impl Examination {
    /// One of nodes whose clocks were right.
    #[must_use]
    pub fn new(start: UnixNanos, receipts: Receipts) -> Self {
        Self {
            start,
            receipts,
            decided_deadline: DECIDED_DEADLINE,
        }
    }
}

/// Asks the nodes at these places one after the other: at once, everything acknowledged is found by id; and when all
/// is decided, errors are kept, no trace is split, searches are complete and find exactly what is kept, and all nodes
/// say the same. Returns what they say.
///
/// # Errors
/// When a node breaks a promise, or does not answer; with logs.
pub async fn examine(
    cluster: &ClusterProcess,
    places: &[usize],
    history: &History,
    examination: Examination,
) -> anyhow::Result<Answers> {
    let broken = match examine_each(cluster, places, history, examination).await {
        Ok(answers) => return Ok(answers),
        Err(error) => error,
    };
    let mut shown = cluster.logs();
    if let Some(Broken { violations, .. }) = broken.downcast_ref() {
        let traces: BTreeSet<TraceId> = violations.iter().map(Violation::trace).collect();
        for trace in traces.into_iter().take(SHOWN_TRACES) {
            shown += &what_nodes_say(cluster, places, trace).await;
        }
    }
    Err(broken).context(shown)
}

/// The heads of every node's answer about a trace, for a failure.
async fn what_nodes_say(cluster: &ClusterProcess, places: &[usize], trace: TraceId) -> String {
    let mut said = format!("--- trace {trace}\n");
    for &place in places {
        let node = cluster.id(place);
        let answer = match cluster.client(place).await {
            Err(error) => format!("{error:#}"),
            Ok(client) => match client.trace(&trace.to_string()).await {
                Err(error) => error.to_string(),
                Ok(reply) => {
                    let spans = reply.spans().map(|data| data.resource_spans);
                    let spans = spans.unwrap_or_default();
                    let spans = spans.iter().flat_map(|one| &one.scope_spans);
                    let spans = spans.map(|one| one.spans.len()).sum::<usize>();
                    format!("{spans} spans, {:?}", reply.head)
                }
            },
        };
        said += &format!("node {node}: {answer}\n");
    }
    said
}

async fn examine_each(
    cluster: &ClusterProcess,
    places: &[usize],
    history: &History,
    examination: Examination,
) -> anyhow::Result<Answers> {
    let mut clients = Vec::new();
    for &place in places {
        clients.push((
            format!("node {}", cluster.id(place)),
            cluster.client(place).await?,
        ));
    }
    let mut first: Option<Answers> = None;
    for (node, client) in &clients {
        let answers = judged(node, client, history, examination).await?;
        match &first {
            None => first = Some(answers),
            Some(first) => ensure_none(
                format_args!("{node} against the first one"),
                &judge_agreement(&comparable(first), &comparable(&answers)),
            )?,
        }
    }
    first.context("no node was to be asked")
}

/// The answers without spans of dropped traces: which of them a fetch returns after shards have moved is no promise
/// (docs/replication.md).
fn comparable(answers: &Answers) -> Answers {
    let mut answers = answers.clone();
    for answer in answers.values_mut() {
        if let Fetched::Found { state, spans, .. } = answer
            && *state == TraceState::Dropped
        {
            spans.clear();
        }
    }
    answers
}

async fn judged(
    node: &str,
    client: &Client,
    history: &History,
    examination: Examination,
) -> anyhow::Result<Answers> {
    let Examination {
        start,
        receipts,
        decided_deadline,
    } = examination;
    let answers = fetch_all_as(client, history, receipts).await;
    let mut answers = answers.with_context(|| format!("at once, through {node}"))?;
    ensure_none(
        format_args!("at once, through {node}"),
        &judged_traces(history, &answers, Stage::Deciding, receipts),
    )?;
    if answers.values().any(is_open) {
        wait_until_decided(client, &answers, decided_deadline).await?;
        let decided = fetch_all_as(client, history, receipts).await;
        answers = decided.with_context(|| format!("decided, through {node}"))?;
    }
    ensure_none(
        format_args!("decided, through {node}"),
        &judged_traces(history, &answers, Stage::Decided, receipts),
    )?;
    let mut searches = Vec::new();
    for service in SERVICES {
        let range = (start, start.plus(3_600 * UnixNanos::PER_SECOND));
        let found = search_summaries(client, service, range, receipts).await;
        searches.push(found.with_context(|| format!("search through {node}"))?);
    }
    ensure_none(
        format_args!("kept as a whole, through {node}"),
        &judge_splits(&answers, &searches),
    )?;
    let ids = searches.iter();
    let ids: Vec<Vec<TraceId>> = ids
        .map(|found| found.iter().map(|summary| summary.trace).collect())
        .collect();
    ensure_none(
        format_args!("search through {node}"),
        &judge_searches(&answers, &ids),
    )?;
    Ok(answers)
}

/// As [`judge_traces`], but for spans of dropped traces, and answers that say without need that they are not whole. When
/// shards move, spans of what was dropped are not brought along (docs/replication.md): which of them a fetch still
/// returns is no promise. All spans of other answers are there, or they are judged as lost. Where `receipts` demands whole answers, those are of dropped traces alone: a
/// span of one that comes again when a replica has joined makes that replica name the records before as missing.
fn judged_traces(
    history: &History,
    answers: &Answers,
    stage: Stage,
    receipts: Receipts,
) -> Vec<Violation> {
    let is_dropped = |trace: TraceId| {
        let dropped = TraceState::Dropped;
        matches!(answers.get(&trace), Some(Fetched::Found { state, .. }) if *state == dropped)
    };
    let mut violations = judge_traces(history, answers, stage);
    let before = violations.len();
    violations.retain(|violation| match violation {
        Violation::Incomplete { trace } => receipts == Receipts::Complete && !is_dropped(*trace),
        Violation::SpanLost { trace, .. } => !is_dropped(*trace),
        _ => true,
    });
    if before > violations.len() {
        let count = before - violations.len();
        eprintln!(
            "{count} times a dropped trace lacks a span, or an answer with all spans says that it is not whole"
        );
    }
    violations
}

/// Nothing is broken.
///
/// # Errors
/// When something is: `Broken`.
pub fn ensure_none(what: impl Display, violations: &[Violation]) -> anyhow::Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    let what = what.to_string();
    let violations = violations.to_vec();
    Err(Broken { what, violations }.into())
}

/// The violations that an error of [`examine`] or [`ensure_none`] is about; none when it is about something else.
#[must_use]
pub fn violations_of(error: &anyhow::Error) -> &[Violation] {
    let broken = error.downcast_ref::<Broken>();
    broken.map_or(&[], |broken| &broken.violations)
}

/// Promises that were broken.
#[derive(Debug)]
struct Broken {
    what: String,
    violations: Vec<Violation>,
}

impl std::error::Error for Broken {}

impl Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} violations:", self.what, self.violations.len())?;
        for violation in self.violations.iter().take(SHOWN_VIOLATIONS) {
            write!(f, "\n{violation}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use spandrel_model::ids::SpanId;

    use super::*;

    #[test]
    fn nodes_may_have_other_spans_of_a_dropped_trace_and_of_no_other() {
        let trace = TraceId([7; 16]);
        let said = |state, spans: &[u8]| {
            let spans = spans.iter().map(|number| SpanId([*number; 8]));
            let found = Fetched::Found {
                state,
                complete: true,
                spans: spans.collect(),
            };
            Answers::from([(trace, found)])
        };
        let differ = |first: &Answers, second: &Answers| {
            !judge_agreement(&comparable(first), &comparable(second)).is_empty()
        };
        let (dropped, kept) = (TraceState::Dropped, TraceState::Kept);
        assert!(!differ(&said(dropped, &[1]), &said(dropped, &[])));
        assert!(differ(&said(kept, &[1]), &said(kept, &[])));
        assert!(differ(&said(dropped, &[1]), &said(kept, &[1])));
    }
}
