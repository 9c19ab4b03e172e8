//! A client: sends its queue in order, tries again what was refused, and knows what was acknowledged.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use spandrel_model::error::ErrorClass;
use spandrel_model::ports::{Ingest, Query};

use crate::check::{Patience, violation, visible_once_acknowledged};
use crate::limits::MAX_TRIES;
use crate::model::Tally;
use crate::workload::Request;
use crate::world::{World, lock};

pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) number: usize,
    pub(crate) ingest: Arc<dyn Ingest>,
    pub(crate) query: Arc<dyn Query>,
    /// What it knows of its requests, together with others of the same process.
    pub(crate) tally: Arc<Mutex<Tally>>,
    /// How long its requests may wait.
    pub(crate) patience: Option<Patience>,
}

impl Client {
    /// Sends until the queue is empty.
    pub(crate) async fn run(self) {
        let (mut tries, mut first_ms) = (0, None);
        loop {
            let next = self
                .world
                .queues()
                .get(self.number)
                .and_then(|queue| queue.front().cloned());
            let Some(request) = next else { return };
            let wait_ms = request.at_ms.saturating_sub(self.world.elapsed_ms());
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            let since_ms = *first_ms.get_or_insert(self.world.elapsed_ms());
            let sent = self.send(&request).await;
            self.waited(since_ms);
            match sent {
                Ok(()) => {
                    self.done();
                    (tries, first_ms) = (0, None);
                    let visible = visible_once_acknowledged(
                        &self.world,
                        &self.query,
                        &request,
                        self.patience.as_ref(),
                    )
                    .await;
                    let faulted = self.world.faulted.load(Ordering::Relaxed);
                    if let (Err(found), false) = (visible, faulted) {
                        self.world.violate(found);
                    }
                }
                Err(after_ms) => {
                    tries += 1;
                    let gives_up =
                        tries >= MAX_TRIES || self.world.client_random().random_bool(0.02);
                    if gives_up {
                        self.world
                            .note(format!("client {} gives up a request", self.number));
                        self.done();
                        (tries, first_ms) = (0, None);
                    }
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                }
            }
        }
    }

    /// A request that was tried first then has been answered.
    fn waited(&self, since_ms: u64) {
        let now_ms = self.world.elapsed_ms();
        let kept = self.patience.as_ref();
        if let Some(Err(found)) = kept.map(|patience| patience.check(since_ms, now_ms)) {
            self.world.violate(found);
        }
    }

    fn done(&self) {
        if let Some(queue) = self.world.queues().get_mut(self.number) {
            queue.pop_front();
        }
    }

    /// Milliseconds after which to try again, when it was refused.
    async fn send(&self, request: &Request) -> Result<(), u64> {
        let world = &self.world;
        {
            let now = world.now();
            let mut traces = world.traces();
            for (trace, fingerprint) in &request.spans {
                traces[*trace].first_sent_at.get_or_insert(now);
                if let Some(span) = traces[*trace].spans.get_mut(fingerprint) {
                    span.sent = true;
                }
            }
        }
        let (span_count, bytes) = (request.spans.len() as u64, request.bytes.len() as u64);
        {
            let mut tally = lock(&self.tally);
            tally.under_way += 1;
            tally.spans += span_count;
            tally.bytes += bytes;
        }
        let result = match self
            .ingest
            .admit(&request.tenant, request.bytes.len() as u64)
        {
            Ok(credit) => {
                self.ingest
                    .export(&request.tenant, request.bytes.clone(), credit)
                    .await
            }
            Err(refused) => Err(refused),
        };
        {
            let mut tally = lock(&self.tally);
            tally.under_way -= 1;
            match &result {
                Ok(outcome) => {
                    tally.accepted_spans += outcome.accepted;
                    tally.rejected_spans += outcome.rejected;
                    tally.accepted_bytes += bytes;
                }
                Err(_) => {
                    tally.refused_requests += 1;
                    tally.refused_spans += span_count;
                    tally.refused_bytes += bytes;
                }
            }
        }
        let (client, spans) = (self.number, request.spans.len());
        match result {
            Err(error) if request.is_malformed && error.class == ErrorClass::Invalid => {
                world.note(format!("client {client}: a malformed request is refused"));
                Ok(())
            }
            Ok(_) if request.is_malformed => {
                world.violate(violation("answer", "a malformed request is accepted"));
                Ok(())
            }
            Ok(outcome) => {
                world.note(format!(
                    "client {client}: {} of {spans} spans acknowledged",
                    outcome.accepted
                ));
                if outcome.accepted != spans as u64 {
                    let problem = format!(
                        "{} of {spans} good spans accepted: {}",
                        outcome.accepted, outcome.message
                    );
                    world.violate(violation("answer", problem));
                }
                let now = world.now();
                let mut traces = world.traces();
                for (trace, fingerprint) in &request.spans {
                    if let Some(span) = traces[*trace].spans.get_mut(fingerprint) {
                        span.acked_at.get_or_insert(now);
                    }
                }
                Ok(())
            }
            Err(error) => {
                world.note(format!("client {client}: {spans} spans refused: {error}"));
                let may_retry =
                    matches!(error.class, ErrorClass::Unavailable | ErrorClass::OverLimit);
                match error.retry_after_ms {
                    Some(after_ms) if may_retry => Err(after_ms),
                    _ => {
                        world.violate(violation(
                            "answer",
                            format!("{:?} for good spans: {error}", error.class),
                        ));
                        Err(1_000)
                    }
                }
            }
        }
    }
}
