//! P4: far more comes in than the node has memory for, in traces that stay open. Its credit and the anonymous memory
//! of its process stay under their bounds, it pushes back with a hint, no trace with an error is dropped, and every
//! trace is accounted for.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use spandrel_api::client::Client;
use spandrel_chaos::history::History;
use spandrel_chaos::http::Metrics;
use spandrel_chaos::node_process::NodeProcess;
use spandrel_chaos::observe::{fetch_all, wait_until};
use spandrel_chaos::oracle::{Stage, judge_traces};
use spandrel_chaos::workload::{Padding, Workload, WorkloadOptions};
use spandrel_model::ids::UnixNanos;

/// The smallest that a node takes.
const MEMORY: &str = "--memory=368MiB";
const MEMORY_BYTES: u64 = 368 << 20;
/// Milliseconds between two looks at the process's memory.
const LOOK_MS: u64 = 50;
/// Nothing is decided but for errors, at once, and under pressure.
const POLICY: &str = "
decision: {idle: 600s, max_age: 600s}
policies:
  - {name: errors, type: status_code, status_codes: [ERROR]}
  - {name: some, type: probabilistic, sampling_percentage: 10}
";
/// Volume to send, as a multiple of the node's credit.
const TIMES_THE_CREDIT: u64 = 12;
/// Exports at once. A request takes its bytes of credit while it is worked on: together a multiple of what is there.
const TASKS: u64 = 48;
/// Traces of a request, of one span each.
const TRACES_PER_REQUEST: usize = 256;
/// Of 2,000 bytes each, within the limit of an attribute's value: 2 MB a request.
const PADDING: Padding = Padding::Repeated {
    attributes: 4,
    bytes: 2_000,
};
/// For a debug build on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// What all tasks did together.
#[derive(Default)]
struct Totals {
    sent_bytes: AtomicU64,
    acknowledged_traces: AtomicU64,
    refused_attempts: AtomicU64,
}

/// Sends requests until `volume` bytes are acknowledged by all tasks together, each one again until it is taken.
async fn push(client: Client, seed: u64, volume: u64, totals: Arc<Totals>) -> History {
    let mut options = WorkloadOptions::mixed(UnixNanos(1_700_000_000 * UnixNanos::PER_SECOND));
    options.traces_per_request = TRACES_PER_REQUEST;
    options.max_spans = 1;
    options.roots = false;
    options.errors = 0.003;
    options.duplicates = 0.0;
    options.padding = PADDING;
    let mut workload = Workload::new(seed, options);
    let mut errors = History::default();
    while totals.sent_bytes.load(Ordering::Relaxed) < volume {
        let mut export = workload.next_export();
        while let Err(error) = client.export(export.bytes.clone()).await {
            let hint = error.retry_after_ms();
            let hint = hint.unwrap_or_else(|| panic!("a refusal without a retry hint: {error}"));
            totals.refused_attempts.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(hint)).await;
        }
        let (bytes, traces) = (export.bytes.len() as u64, export.spans.len() as u64);
        totals.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        totals
            .acknowledged_traces
            .fetch_add(traces, Ordering::Relaxed);
        // Only the traces with an error are fetched at the end: dropping healthy ones is what the node is for.
        export.spans.retain(|span| span.error);
        errors.sent(&export);
        errors.acknowledged(&export);
    }
    errors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_bounded_and_every_trace_is_accounted_for() {
    // given
    let node = NodeProcess::start(&[MEMORY], Some(POLICY)).await.unwrap();
    let client = node.client().await.unwrap();
    let capacity = client.status().await.unwrap().credit_capacity_bytes;
    let volume = capacity * TIMES_THE_CREDIT;

    // when
    let totals = Arc::new(Totals::default());
    let mut tasks = Vec::new();
    for seed in 0..TASKS {
        let exporter = node.exporter().await.unwrap();
        let totals = Arc::clone(&totals);
        tasks.push(tokio::spawn(push(exporter, seed, volume, totals)));
    }
    let mut errors = History::default();
    let mut most_bytes = 0;
    let mut look = tokio::time::interval(Duration::from_millis(LOOK_MS));
    for task in tasks {
        let mut task = std::pin::pin!(task);
        let history = loop {
            tokio::select! {
                history = &mut task => break history.unwrap(),
                _ = look.tick() => most_bytes = most_bytes.max(node.anonymous_bytes().unwrap()),
            }
        };
        errors.merge(history);
    }

    // then: every acknowledged trace is kept, dropped by policy, or open
    let acknowledged = totals.acknowledged_traces.load(Ordering::Relaxed) as f64;
    let http = node.ports().http;
    wait_until("every trace is accounted for", DEADLINE, async || {
        let metrics = Metrics::read(http).await?;
        let decided = metrics.sum("spandrel_traces_decided_total", "");
        let open = metrics.sum("spandrel_open_traces", "");
        eprintln!("{acknowledged} acknowledged, {decided} decided, {open} open");
        Ok(decided + open == acknowledged)
    })
    .await
    .unwrap();

    // and: what was refused is counted, attempt by attempt
    let metrics = Metrics::read(http).await.unwrap();
    let refused = totals.refused_attempts.load(Ordering::Relaxed);
    assert_eq!(
        metrics.sum("spandrel_spans_received_total", ""),
        acknowledged
    );
    assert_eq!(
        metrics.sum("spandrel_requests_refused_total", ""),
        refused as f64
    );

    // and: the bound held, though it was tried
    let peak = metrics.sum("spandrel_credit_peak_bytes", "");
    eprintln!(
        "capacity {} MiB, peak {} MiB, sent {} MiB, refused {refused} attempts, anonymous at most {} MiB",
        capacity >> 20,
        peak / f64::from(1 << 20),
        totals.sent_bytes.load(Ordering::Relaxed) >> 20,
        most_bytes >> 20
    );
    let uncovered = metrics.sum("spandrel_credit_uncovered_bytes_total", "");
    eprintln!("growth of entries that no credit covered: {uncovered} bytes");
    for verdict in ["keep", "drop"] {
        let label = format!("verdict=\"{verdict}\"");
        eprintln!(
            "{verdict}: {}",
            metrics.sum("spandrel_traces_decided_total", &label)
        );
    }
    assert_eq!(
        metrics.sum("spandrel_credit_capacity_bytes", ""),
        capacity as f64
    );
    assert!(
        peak <= capacity as f64,
        "peak {peak} over capacity {capacity}"
    );
    assert!(
        most_bytes <= MEMORY_BYTES,
        "{most_bytes} bytes of anonymous memory"
    );
    assert!(refused > 0, "nothing was refused: the test proves nothing");
    let early = metrics.sum("spandrel_traces_decided_total", "trigger=\"pressure\"");
    assert!(
        early > 0.0,
        "nothing was decided early: the test proves nothing"
    );

    // and: every trace with an error is kept
    eprintln!("{} traces with an error", errors.traces().count());
    let answers = fetch_all(&client, &errors).await.unwrap();
    let violations = judge_traces(&errors, &answers, Stage::Decided);
    assert_eq!(violations, [], "of {} traces", errors.traces().count());
}
