//! P1, P2, P5 and P6 through SIGKILL: a node is killed again and again while four connections export. What it
//! acknowledged is there afterwards, errors are kept, nothing appears that was not sent, and a search finds what is
//! kept, also after the index was deleted.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spandrel_api::client::Client;
use spandrel_chaos::history::History;
use spandrel_chaos::http::Metrics;
use spandrel_chaos::load::now;
use spandrel_chaos::node_process::NodeProcess;
use spandrel_chaos::observe::{fetch_all, search_all, wait_until, wait_until_decided};
use spandrel_chaos::oracle::{Stage, Violation, judge_searches, judge_traces};
use spandrel_chaos::workload::{Export, SERVICES, Workload, WorkloadOptions};
use spandrel_model::ids::UnixNanos;

/// Another one is taken from `SPANDREL_CHAOS_SEED`.
const SEED: u64 = 0x5eed_0001;
const LIVES: u32 = 5;
const CONNECTIONS: u64 = 4;
/// Requests that are acknowledged in a short life before the kill, by all connections together.
const REQUESTS_OF_A_LIFE: std::ops::Range<usize> = 5..120;
/// Traces that are decided in a long life before the kill: it dies among verdicts, late spans and pages.
const DECIDED_IN_A_LIFE: std::ops::Range<u32> = 1..400;
/// Pause of a connection between two requests: the traces of a long life stay few enough to fetch each of them.
const PAUSE: Duration = Duration::from_millis(40);
/// Decisions fall into the test; healthy traces are dropped or kept by their id, so that both kinds exist.
const POLICY: &str = "
decision: {idle: 1s, max_age: 5s}
policies:
  - {name: errors, type: status_code, status_codes: [ERROR]}
  - {name: slow, type: latency, threshold_ms: 1000}
  - {name: some, type: probabilistic, sampling_percentage: 30}
";
/// After 5 s everything is decided; the rest is for a debug build on a busy machine.
const DECIDED_DEADLINE: Duration = Duration::from_secs(30);

/// A client with its own requests, over all lives.
struct Connection {
    workload: Workload,
    /// Requests without an acknowledgement: sent again in the next life, as an SDK does.
    again: Vec<Export>,
    history: History,
    random: ChaCha8Rng,
}

impl Connection {
    fn new(number: u64, start: UnixNanos) -> Self {
        let seed = seed().wrapping_mul(31).wrapping_add(number);
        Self {
            workload: Workload::new(seed, WorkloadOptions::mixed(start)),
            again: Vec::new(),
            history: History::default(),
            random: ChaCha8Rng::seed_from_u64(!seed),
        }
    }

    /// Exports until the node no longer answers.
    async fn export(mut self, client: Client, acknowledged: Arc<AtomicUsize>) -> Self {
        loop {
            let export = match self.again.pop() {
                Some(export) => export,
                None => self.workload.next_export(),
            };
            self.history.sent(&export);
            match client.export(export.bytes.clone()).await {
                Ok(reply) => {
                    assert_eq!(reply.rejected_spans, 0, "{}", reply.message);
                    self.history.acknowledged(&export);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    assert_eq!(error.refusal(), None, "nothing is to be refused here");
                    // Half of what is in doubt is never sent again: it may be there or not, but not in parts that
                    // were never sent, nor twice.
                    if self.random.random_bool(0.5) {
                        self.again.push(export);
                    }
                    return self;
                }
            }
        }
    }
}

fn seed() -> u64 {
    match std::env::var("SPANDREL_CHAOS_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => SEED,
    }
}

fn assert_none(what: &str, violations: &[Violation]) {
    let shown: Vec<String> = violations
        .iter()
        .take(20)
        .map(ToString::to_string)
        .collect();
    assert!(
        violations.is_empty(),
        "{what}: {} violations, seed {}:\n{}",
        violations.len(),
        seed(),
        shown.join("\n")
    );
}

/// When a node is killed.
#[derive(Debug)]
enum Moment {
    /// After so many acknowledgements.
    Acknowledged(usize),
    /// After so many decisions.
    Decided(u32),
}

impl Moment {
    fn of_life(life: u32, random: &mut ChaCha8Rng) -> Self {
        if life.is_multiple_of(2) {
            Self::Decided(random.random_range(DECIDED_IN_A_LIFE))
        } else {
            Self::Acknowledged(random.random_range(REQUESTS_OF_A_LIFE))
        }
    }

    async fn has_come(&self, node: &NodeProcess, acknowledged: &AtomicUsize) -> bool {
        match self {
            Self::Acknowledged(enough) => acknowledged.load(Ordering::Relaxed) >= *enough,
            Self::Decided(enough) => {
                let metrics = Metrics::read(node.ports().http).await.unwrap();
                metrics.sum("spandrel_traces_decided_total", "trigger=\"idle\"")
                    >= f64::from(*enough)
            }
        }
    }
}

/// Exports by all connections and kills the node in the middle of it.
async fn live_and_die(
    node: &mut NodeProcess,
    connections: Vec<Connection>,
    moment: Moment,
) -> Vec<Connection> {
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for connection in connections {
        let client = node.exporter().await.unwrap();
        tasks.push(tokio::spawn(
            connection.export(client, Arc::clone(&acknowledged)),
        ));
    }
    let come = wait_until("the moment to kill", DECIDED_DEADLINE, async || {
        Ok(moment.has_come(node, &acknowledged).await)
    });
    come.await.unwrap();
    node.kill().unwrap();
    let mut back = Vec::new();
    for task in tasks {
        back.push(task.await.unwrap());
    }
    back
}

async fn check_search(client: &Client, history: &History, start: UnixNanos) {
    let answers = fetch_all(client, history).await.unwrap();
    assert_none("by id", &judge_traces(history, &answers, Stage::Decided));
    let mut searches = Vec::new();
    for service in SERVICES {
        let range = (start, start.plus(3_600 * UnixNanos::PER_SECOND));
        searches.push(search_all(client, service, range).await.unwrap());
    }
    assert_none("search", &judge_searches(&answers, &searches));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_spans_survive_kill_minus_nine() {
    // given: a node, and four clients that outlive it
    let start = now().unwrap();
    let mut node = NodeProcess::start(&["--memory=368MiB"], Some(POLICY))
        .await
        .unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let mut connections: Vec<Connection> = (0..CONNECTIONS)
        .map(|number| Connection::new(number, start))
        .collect();

    // when: it is killed five times under load, once with its index deleted before it starts again
    for life in 1..=LIVES {
        let moment = Moment::of_life(life, &mut random);
        eprintln!("life {life} ends: {moment:?}");
        connections = live_and_die(&mut node, connections, moment).await;
        if life == LIVES - 1 {
            fs::remove_dir_all(node.data_dir().join("index")).unwrap();
        }
        node.restart().await.unwrap();
    }
    let mut history = History::default();
    for connection in connections {
        history.merge(connection.history);
    }
    eprintln!(
        "{} traces sent, {} spans acknowledged",
        history.traces().count(),
        history.acknowledged_spans()
    );

    // then: at once, everything is found by id, decided or not
    let client = node.client().await.unwrap();
    let answers = fetch_all(&client, &history).await.unwrap();
    assert_none(
        "after the last restart",
        &judge_traces(&history, &answers, Stage::Deciding),
    );

    // and: when all is decided, errors are kept and a search agrees, before and after everything is on disk
    wait_until_decided(&client, &answers, DECIDED_DEADLINE)
        .await
        .unwrap();
    check_search(&client, &history, start).await;
    client.flush().await.unwrap();
    check_search(&client, &history, start).await;

    // and: the same from blocks alone, when the index has to be made again
    node.stop().await.unwrap();
    fs::remove_dir_all(node.data_dir().join("index")).unwrap();
    node.restart().await.unwrap();
    let client = node.client().await.unwrap();
    check_search(&client, &history, start).await;
}
