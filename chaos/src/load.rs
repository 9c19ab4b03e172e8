//! Clients that export to all nodes of a cluster in turn, as SDKs behind a load balancer do: what is refused with a
//! hint, or not answered, is sent again, to the next node. Any other refusal is a failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spandrel_api::client::{Client, ClientError, ClientOptions};
use spandrel_model::ids::UnixNanos;
use tokio::task::JoinHandle;

use crate::attempts::{AttemptLog, Outcome};
use crate::history::History;
use crate::limits::{ACKNOWLEDGE_DEADLINE, EXPORT_TIMEOUT_MS, LEFT_OUT_REQUESTS, POLL_INTERVAL};
use crate::workload::{Export, Workload, WorkloadOptions};

/// Pause of a client between two requests: the traces of a test stay few enough to fetch each of them everywhere.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before a request is sent again, whatever the hint says: a retry is what is tested.
const LONGEST_RETRY: Duration = Duration::from_millis(500);

/// The wall clock: no span of a run starts before the run does.
///
/// # Errors
/// When it stands before 1970 or after 2554.
pub fn now() -> anyhow::Result<UnixNanos> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(UnixNanos(u64::try_from(since.as_nanos())?))
}

/// What the clients met.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Requests that were acknowledged.
    pub acknowledged: usize,
    /// Refusals with a hint, by code.
    pub refused: BTreeMap<String, usize>,
    /// Attempts without an answer, by the place of the node.
    pub unanswered: BTreeMap<usize, usize>,
    /// Requests in doubt that were not sent again.
    pub given_up: usize,
    /// The longest time from the first attempt of a request to its acknowledgement.
    pub longest_wait: Duration,
    /// The same for requests that every node answered: they were refused, or were waited for by their entry node.
    pub longest_answered_wait: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    /// OTLP addresses by place.
    targets: Mutex<Vec<SocketAddr>>,
    history: Mutex<History>,
    report: Mutex<LoadReport>,
    /// Where every attempt is noted, if anybody wants to know.
    log: Mutex<Option<AttemptLog>>,
    acknowledged: AtomicUsize,
    stops: AtomicBool,
}

/// One client.
struct Exporter {
    shared: Arc<Shared>,
    workload: Workload,
    random: ChaCha8Rng,
    requests: u64,
    next: usize,
    clients: BTreeMap<usize, Client>,
    /// Nodes that did not answer, and up to which request they are left out.
    left_out: BTreeMap<usize, u64>,
}

/// What became of an attempt.
enum Attempt {
    Acknowledged,
    /// Try again after that time.
    Refused(Duration),
    Unanswered,
}

/// All clients of a cluster.
pub struct Load {
    shared: Arc<Shared>,
    idle: Vec<Exporter>,
    running: Vec<JoinHandle<anyhow::Result<Exporter>>>,
}

impl Load {
    /// Clients that do nothing yet.
    #[must_use]
    pub fn new(clients: u64, seed: u64, start: UnixNanos) -> Self {
        let shared = Arc::<Shared>::default();
        let exporter = |number| {
            let seed = seed.wrapping_mul(31).wrapping_add(number);
            Exporter {
                shared: Arc::clone(&shared),
                workload: Workload::new(seed, WorkloadOptions::mixed(start)),
                random: ChaCha8Rng::seed_from_u64(!seed),
                requests: 0,
                // The remainder of a handful.
                next: usize::try_from(number).unwrap_or(0),
                clients: BTreeMap::new(),
                left_out: BTreeMap::new(),
            }
        };
        Self {
            idle: (0..clients).map(exporter).collect(),
            shared,
            running: Vec::new(),
        }
    }

    /// One more node to export to; its place is the number of those before.
    pub fn add_target(&self, otlp_grpc: SocketAddr) {
        locked(&self.shared.targets).push(otlp_grpc);
    }

    /// Every attempt from now on is noted there.
    pub fn note_attempts(&self, log: AttemptLog) {
        *locked(&self.shared.log) = Some(log);
    }

    /// No further attempt is noted; those until now are in the file.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn finish_attempts(&self) -> anyhow::Result<()> {
        let log = locked(&self.shared.log).take();
        log.map_or(Ok(()), AttemptLog::finish)
    }

    /// All clients begin, or go on.
    pub fn run(&mut self) {
        self.shared.stops.store(false, Ordering::Relaxed);
        let idle = std::mem::take(&mut self.idle);
        let started = idle.into_iter().map(|one| tokio::spawn(one.export()));
        self.running.extend(started);
    }

    /// Waits until so many further requests were acknowledged.
    ///
    /// # Errors
    /// When a client failed, or they were not in time.
    pub async fn wait_for(&mut self, requests: usize) -> anyhow::Result<()> {
        let enough = self.shared.acknowledged.load(Ordering::Relaxed) + requests;
        let since = Instant::now();
        while self.shared.acknowledged.load(Ordering::Relaxed) < enough {
            if self.running.iter().any(JoinHandle::is_finished) {
                return self
                    .stop()
                    .await
                    .and(Err(anyhow::anyhow!("a client ended")));
            }
            ensure!(
                since.elapsed() < ACKNOWLEDGE_DEADLINE,
                "{requests} further requests were not acknowledged within {ACKNOWLEDGE_DEADLINE:?}: {:?}",
                self.report()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until every client has its last request acknowledged, and stops.
    ///
    /// # Errors
    /// When a client failed.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.shared.stops.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.running) {
            self.idle.push(task.await??);
        }
        Ok(())
    }

    /// Sends requests of the first idle client to one node alone, all at once, once each, with so much time for an
    /// answer. Returns how many were acknowledged.
    ///
    /// # Errors
    /// When a client is not idle, or a refusal has no hint.
    pub fn probe(
        &mut self,
        node: SocketAddr,
        requests: usize,
        timeout: Duration,
    ) -> anyhow::Result<Probe> {
        let mut exports = Vec::new();
        let exporter = self.idle.first_mut().context("all clients run")?;
        exports.resize_with(requests, || exporter.workload.next_export());
        let shared = Arc::clone(&self.shared);
        for export in &exports {
            locked(&shared.history).sent(export);
        }
        Ok(Probe(tokio::spawn(send_once(
            shared, node, exports, timeout,
        ))))
    }

    /// What was sent and acknowledged until now.
    #[must_use]
    pub fn history(&self) -> History {
        locked(&self.shared.history).clone()
    }

    /// What the clients met until now.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        locked(&self.shared.report).clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.running {
            task.abort();
        }
    }
}

/// Requests on their way to one node.
pub struct Probe(JoinHandle<anyhow::Result<usize>>);

impl Probe {
    /// Waits for all answers. Returns how many were acknowledgements.
    ///
    /// # Errors
    /// When a refusal has no hint.
    pub async fn acknowledged(self) -> anyhow::Result<usize> {
        self.0.await?
    }
}

async fn send_once(
    shared: Arc<Shared>,
    node: SocketAddr,
    exports: Vec<Export>,
    timeout: Duration,
) -> anyhow::Result<usize> {
    let timeout_ms = u64::try_from(timeout.as_millis())?;
    let mut tasks = tokio::task::JoinSet::new();
    for export in exports {
        tasks.spawn(async move {
            let client = match connect(node, timeout_ms).await {
                Ok(client) => client,
                Err(error) => return (Err(error), export),
            };
            (client.export(export.bytes.clone()).await, export)
        });
    }
    let mut acknowledged = 0;
    while let Some(done) = tasks.join_next().await {
        let (reply, export) = done?;
        if matches!(outcome(reply)?, Attempt::Acknowledged) {
            acknowledged += 1;
            locked(&shared.history).acknowledged(&export);
        }
    }
    Ok(acknowledged)
}

impl Exporter {
    async fn export(mut self) -> anyhow::Result<Self> {
        while !self.shared.stops.load(Ordering::Relaxed) {
            let export = self.workload.next_export();
            self.send(&export).await?;
            tokio::time::sleep(PAUSE).await;
        }
        // Without these, they would come when their traces have long been decided.
        if let Some(rest) = self.workload.rest() {
            self.send(&rest).await?;
        }
        Ok(self)
    }

    async fn send(&mut self, export: &Export) -> anyhow::Result<()> {
        self.requests += 1;
        locked(&self.shared.history).sent(export);
        self.deliver(export).await
    }

    async fn deliver(&mut self, export: &Export) -> anyhow::Result<()> {
        let since = Instant::now();
        let mut all_answered = true;
        while since.elapsed() < ACKNOWLEDGE_DEADLINE {
            let (place, addr) = self.next_target();
            let began = Instant::now();
            let reply = match self.client(place, addr).await {
                Ok(client) => client.export(export.bytes.clone()).await,
                Err(error) => Err(error),
            };
            let attempt = self.note(place, reply);
            self.log_attempt(began, place, export, &attempt)?;
            match attempt? {
                Attempt::Acknowledged => {
                    locked(&self.shared.history).acknowledged(export);
                    let mut report = locked(&self.shared.report);
                    report.acknowledged += 1;
                    report.longest_wait = report.longest_wait.max(since.elapsed());
                    if all_answered {
                        let longest = &mut report.longest_answered_wait;
                        *longest = (*longest).max(since.elapsed());
                    }
                    self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Attempt::Refused(pause) => tokio::time::sleep(pause).await,
                Attempt::Unanswered => {
                    all_answered = false;
                    self.left_out
                        .insert(place, self.requests + LEFT_OUT_REQUESTS);
                    // Some of what is in doubt is never sent again: it may be there or not.
                    if self.random.random_bool(0.25) {
                        locked(&self.shared.report).given_up += 1;
                        return Ok(());
                    }
                }
            }
        }
        bail!(
            "a request was not acknowledged within {ACKNOWLEDGE_DEADLINE:?}: {:?}",
            locked(&self.shared.report)
        )
    }

    fn note(
        &self,
        place: usize,
        reply: Result<spandrel_api::client::ExportReply, ClientError>,
    ) -> anyhow::Result<Attempt> {
        let code = reply.as_ref().err().and_then(ClientError::refusal);
        let code = code.map(|refusal| refusal.code.clone());
        let attempt = outcome(reply).with_context(|| format!("the node at place {place}"))?;
        let mut report = locked(&self.shared.report);
        match &attempt {
            Attempt::Acknowledged => {}
            Attempt::Refused(_) => {
                *report.refused.entry(code.unwrap_or_default()).or_default() += 1
            }
            Attempt::Unanswered => *report.unanswered.entry(place).or_default() += 1,
        }
        Ok(attempt)
    }

    fn log_attempt(
        &self,
        began: Instant,
        place: usize,
        export: &Export,
        attempt: &anyhow::Result<Attempt>,
    ) -> anyhow::Result<()> {
        let outcome = match attempt {
            Ok(Attempt::Acknowledged) => Outcome::Acknowledged,
            Ok(Attempt::Refused(_)) => Outcome::Refused,
            Ok(Attempt::Unanswered) => Outcome::Unanswered,
            Err(_) => Outcome::Failed,
        };
        match &mut *locked(&self.shared.log) {
            Some(log) => log.note(began, place, export.spans.len(), outcome),
            None => Ok(()),
        }
    }

    /// The next node that is not left out; the next one if all are.
    fn next_target(&mut self) -> (usize, SocketAddr) {
        let targets = locked(&self.shared.targets).clone();
        let requests = self.requests;
        self.left_out.retain(|_, until| *until > requests);
        let places = (0..targets.len()).map(|step| (self.next + step) % targets.len());
        let mut answering = places.filter(|place| !self.left_out.contains_key(place));
        let place = answering.next().unwrap_or(self.next % targets.len());
        self.next = place + 1;
        (place, targets[place])
    }

    async fn client(&mut self, place: usize, addr: SocketAddr) -> Result<Client, ClientError> {
        if let Some(client) = self.clients.get(&place) {
            return Ok(client.clone());
        }
        let client = connect(addr, EXPORT_TIMEOUT_MS).await?;
        self.clients.insert(place, client.clone());
        Ok(client)
    }
}

async fn connect(addr: SocketAddr, timeout_ms: u64) -> Result<Client, ClientError> {
    let options = ClientOptions {
        addr: addr.to_string(),
        timeout_ms,
        ..ClientOptions::default()
    };
    Client::connect(options).await
}

/// What an SDK makes of an answer. A refusal that it would not send again is an error here: all requests are good.
fn outcome(
    reply: Result<spandrel_api::client::ExportReply, ClientError>,
) -> anyhow::Result<Attempt> {
    match reply {
        Ok(reply) => {
            ensure!(reply.rejected_spans == 0, "rejected: {}", reply.message);
            Ok(Attempt::Acknowledged)
        }
        Err(ClientError::Connect { .. } | ClientError::Timeout { .. }) => Ok(Attempt::Unanswered),
        Err(error) => match error.retry_after_ms() {
            Some(after) => Ok(Attempt::Refused(
                Duration::from_millis(after).min(LONGEST_RETRY),
            )),
            None => Err(error).context("a refusal that no client sends again"),
        },
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
