//! Sends the stream: one task a connection, each with one request at a time, at a rate or as fast as they are
//! acknowledged.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use spandrel_api::client::{Client, ClientError, ClientOptions};
use spandrel_api::time;
use spandrel_model::ids::UnixNanos;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::generator::{Batch, Example, Generator};
use super::history::History;
use super::library::Library;
use super::options::DemoOptions;
use super::report::{DemoReport, ExampleReport, LatencyReport};
use super::statistics::Histogram;

/// Longest wait for an acknowledgement in milliseconds: OTLP's own default.
const EXPORT_TIMEOUT_MS: u64 = 10_000;
/// Attempts of a request before it is given up: with the waits below about a minute.
const MAX_ATTEMPTS: u32 = 16;
/// First wait before another attempt, when the server names none; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest such wait, and the longest wait that a server can ask for.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Ticks of `/proc/self/stat` in a second: `USER_HZ`, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The endpoint was not reached, or does not speak OTLP.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The history cannot be written.
    #[error("history file `{path}`: {source}")]
    History {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A connection's task ended in a defect.
    #[error("a connection's task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Counters that the progress line reads.
#[derive(Default)]
struct Progress {
    acknowledged: AtomicU64,
    refused: AtomicU64,
}

/// What all connections share.
struct Shared {
    options: DemoOptions,
    library: Arc<Library>,
    history: Option<History>,
    progress: Progress,
    start: Instant,
    start_unix: UnixNanos,
    stop: watch::Receiver<bool>,
}

/// What one connection came to.
struct Tally {
    traces: u64,
    made_spans: u64,
    sent_spans: u64,
    acknowledged: u64,
    acknowledged_bytes: u64,
    rejected: u64,
    abandoned: u64,
    requests: u64,
    refused: u64,
    retries: u64,
    latency: Histogram,
    last_refusal: String,
    examples: Vec<Example>,
}

/// Runs until the options' duration or number of spans is reached or `stop` turns true, then sends what is left.
///
/// # Errors
/// [`DemoError::Client`] when the endpoint is not there at the start; later failures are retried and counted.
pub async fn run(
    options: DemoOptions,
    stop: watch::Receiver<bool>,
) -> Result<DemoReport, DemoError> {
    let history = options
        .history
        .as_deref()
        .map(|path| History::create(path).map_err(|source| history_error(&options, source)));
    let shared = Arc::new(Shared {
        library: Arc::new(Library::new(options.seed)),
        history: history.transpose()?,
        progress: Progress::default(),
        start: Instant::now(),
        start_unix: time::now(),
        stop,
        options,
    });
    let ticks_before = processor_ticks();
    let mut connections = JoinSet::new();
    for stream in 0..shared.options.connections.max(1) {
        let client = Client::connect(ClientOptions {
            addr: shared.options.endpoint.clone(),
            tenant: shared.options.tenant.clone(),
            timeout_ms: EXPORT_TIMEOUT_MS,
        })
        .await?;
        connections.spawn(connection(Arc::clone(&shared), client, u64::from(stream)));
    }
    let mut tallies = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let shown = shared.options.progress && std::io::stderr().is_terminal();
    loop {
        tokio::select! {
            biased;
            ended = connections.join_next() => match ended {
                Some(tally) => tallies.push(tally??),
                None => break,
            },
            _ = tick.tick(), if shown => shared.show_progress(),
        }
    }
    if shown {
        eprintln!();
    }
    Ok(report(&shared, &tallies, processor_ticks() - ticks_before))
}

async fn connection(shared: Arc<Shared>, client: Client, stream: u64) -> Result<Tally, DemoError> {
    let options = &shared.options;
    let connections = u64::from(options.connections.max(1));
    let target = options.spans.map(|spans| spans.div_ceil(connections));
    let mut generator = Generator::with_library(
        Arc::clone(&shared.library),
        options.shape(),
        stream,
        shared.start_unix,
    );
    let mut tally = Tally::new();
    let mut stop = shared.stop.clone();
    let end = options.duration.map(|duration| shared.start + duration);
    loop {
        let over = end.is_some_and(|end| Instant::now() >= end);
        if over || *stop.borrow() || target.is_some_and(|target| generator.spans() >= target) {
            break;
        }
        let batch = generator.next_batch(time::now());
        let mut due = Instant::now();
        if options.rate > 0.0 {
            due = shared.start + Duration::from_nanos(batch.due.since(shared.start_unix));
            let until = end.map_or(due, |end| due.min(end));
            tokio::select! {
                biased;
                // A closed channel means that nobody will stop the run: only the pace counts then.
                () = stopped(&mut stop) => {}
                () = tokio::time::sleep_until(until) => {}
            }
            due = due.min(Instant::now());
        }
        send(&shared, &client, &batch, due, &mut tally).await?;
    }
    for batch in generator.drain() {
        send(&shared, &client, &batch, Instant::now(), &mut tally).await?;
    }
    tally.traces = generator.traces();
    tally.made_spans = generator.spans();
    tally.examples = generator.examples().to_vec();
    Ok(tally)
}

/// Returns when the run is to stop; never when nobody is left to say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn send(
    shared: &Shared,
    client: &Client,
    batch: &Batch,
    due: Instant,
    tally: &mut Tally,
) -> Result<(), DemoError> {
    let spans = u64::from(batch.spans);
    tally.sent_spans += spans;
    let mut backoff = FIRST_BACKOFF;
    for attempt in 1..=MAX_ATTEMPTS {
        let error = match client.export(batch.request.clone()).await {
            Ok(reply) => {
                let rejected = reply.rejected_spans.min(spans);
                tally
                    .latency
                    .record(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
                tally.requests += 1;
                tally.rejected += rejected;
                tally.acknowledged += spans - rejected;
                tally.acknowledged_bytes += batch.request.len() as u64;
                shared
                    .progress
                    .acknowledged
                    .fetch_add(spans - rejected, Ordering::Relaxed);
                if let Some(history) = &shared.history {
                    history
                        .note(batch, time::now(), rejected)
                        .map_err(|source| history_error(&shared.options, source))?;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        tally.refused += 1;
        tally.last_refusal = error.to_string();
        shared.progress.refused.fetch_add(1, Ordering::Relaxed);
        if attempt == MAX_ATTEMPTS || !is_retryable(&error) || *shared.stop.borrow() {
            break;
        }
        let wait = error
            .retry_after_ms()
            .map_or(backoff, Duration::from_millis);
        tokio::time::sleep(wait.min(MAX_BACKOFF)).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
        tally.retries += 1;
    }
    tally.abandoned += spans;
    Ok(())
}

/// As the OTLP specification says for gRPC ("failures"): some codes always, `RESOURCE_EXHAUSTED` and what else the
/// server says only with a time to try again.
fn is_retryable(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. } | ClientError::Timeout { .. } => true,
        ClientError::Refused(detail) => {
            let code = detail.code.as_str();
            detail.retry_after_ms.is_some()
                || matches!(
                    code,
                    "unavailable"
                        | "aborted"
                        | "cancelled"
                        | "deadlineexceeded"
                        | "outofrange"
                        | "dataloss"
                )
        }
        _ => false,
    }
}

fn history_error(options: &DemoOptions, source: std::io::Error) -> DemoError {
    let path = options
        .history
        .as_deref()
        .unwrap_or(std::path::Path::new(""));
    DemoError::History {
        path: path.display().to_string(),
        source,
    }
}

/// Processor time of this process so far, user and system, in ticks; 0 where `/proc` has none.
fn processor_ticks() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the command, may hold spaces: count after its closing parenthesis.
    let fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum()
}

impl Shared {
    fn show_progress(&self) {
        let acknowledged = self.progress.acknowledged.load(Ordering::Relaxed);
        let refused = self.progress.refused.load(Ordering::Relaxed);
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = ratio(acknowledged, 1) / seconds.max(0.001);
        eprint!(
            "\r{seconds:6.0} s  {acknowledged} spans acknowledged  {rate:.0} spans/s  {refused} refusals \x1b[K"
        );
        // Progress is a courtesy: a terminal that went away is no reason to stop.
        let _ = std::io::stderr().flush();
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            traces: 0,
            made_spans: 0,
            sent_spans: 0,
            acknowledged: 0,
            acknowledged_bytes: 0,
            rejected: 0,
            abandoned: 0,
            requests: 0,
            refused: 0,
            retries: 0,
            latency: Histogram::new(),
            last_refusal: String::new(),
            examples: Vec::new(),
        }
    }
}

fn report(shared: &Shared, tallies: &[Tally], ticks: f64) -> DemoReport {
    let sum = |field: fn(&Tally) -> u64| tallies.iter().map(field).sum::<u64>();
    let mut latency = Histogram::new();
    for tally in tallies {
        latency.add(&tally.latency);
    }
    let ms = |thousandths| time::nanos_to_ms(latency.quantile(thousandths));
    let seconds = shared.start.elapsed().as_secs_f64();
    let acknowledged = sum(|tally| tally.acknowledged);
    let taken = acknowledged + sum(|tally| tally.rejected);
    let bytes = sum(|tally| tally.acknowledged_bytes);
    let examples = tallies.iter().take(1).flat_map(|tally| &tally.examples);
    DemoReport {
        traces: sum(|tally| tally.traces),
        sent_spans: sum(|tally| tally.sent_spans),
        acknowledged_spans: acknowledged,
        rejected_spans: sum(|tally| tally.rejected),
        abandoned_spans: sum(|tally| tally.abandoned),
        requests: sum(|tally| tally.requests),
        refused_attempts: sum(|tally| tally.refused),
        retries: sum(|tally| tally.retries),
        seconds,
        spans_per_second: ratio(acknowledged, 1) / seconds.max(0.001),
        bytes_per_second: ratio(bytes, 1) / seconds.max(0.001),
        bytes_per_span: ratio(bytes, taken),
        spans_per_trace: ratio(sum(|tally| tally.made_spans), sum(|tally| tally.traces)),
        latency_ms: LatencyReport {
            p50: ms(500),
            p90: ms(900),
            p99: ms(990),
            max: time::nanos_to_ms(latency.max()),
        },
        cpu_micros_per_span: ticks / TICKS_PER_SECOND * 1e6
            / ratio(sum(|tally| tally.sent_spans), 1).max(1.0),
        last_refusal: tallies
            .iter()
            .map(|tally| tally.last_refusal.clone())
            .find(|text| !text.is_empty())
            .unwrap_or_default(),
        examples: examples
            .map(|example| ExampleReport {
                trace_id: example.trace_id.to_string(),
                kind: example.kind.to_owned(),
            })
            .collect(),
    }
}

/// A quotient of counters, for people: exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn ratio(number: u64, of: u64) -> f64 {
    number as f64 / of.max(1) as f64
}
