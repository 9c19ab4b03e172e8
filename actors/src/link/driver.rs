//! Watches over one session while it lives: pings, and the credit of calls that nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ractor::concurrency::OneshotReceiver;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::hello::Purpose;
use super::outbox::Ticket;
use super::reasons::End;
use super::session::Session;
use super::switchboard::Switchboard;
use crate::limits::{LINK_MISSED_PINGS, LINK_PASSING_MS, LINK_PING_ANSWER_MS, LINK_PING_MS};
use crate::meters;

/// See the module.
pub(crate) struct Driver<'a> {
    pub(crate) switchboard: &'a Switchboard,
    pub(crate) session: &'a Arc<Session>,
    /// The other side's address, for people.
    pub(crate) from: &'a str,
    pub(crate) dialled: bool,
}

impl Driver<'_> {
    /// Runs until the session must end, and says why.
    pub(crate) async fn run(
        &self,
        ended: &mut JoinHandle<()>,
        mut left_over: mpsc::UnboundedReceiver<Ticket>,
        ready: Option<oneshot::Sender<Arc<Session>>>,
        mut permit: Option<OwnedSemaphorePermit>,
    ) -> End {
        self.log_begin();
        if let Some(ready) = ready
            && ready.send(Arc::clone(self.session)).is_err()
            && self.session.facts.purpose == Purpose::Passing
        {
            return End::NotWanted;
        }
        let period = Duration::from_millis(LINK_PING_MS);
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let passing_end = Instant::now() + Duration::from_millis(LINK_PASSING_MS);
        let mut pulse = Pulse::default();
        let mut late = FuturesUnordered::new();
        let reason = loop {
            tokio::select! {
                biased;
                _ = &mut *ended => break End::Closed,
                Some(ticket) = left_over.recv() => late.push(async move {
                    let answered = ticket.answer.await.is_ok();
                    answered.then_some(ticket.cost)
                }),
                Some(cost) = late.next(), if !late.is_empty() => {
                    // Without an answer the session is ending and nobody counts its credit any more.
                    self.session.outbox.release(cost.unwrap_or(0));
                }
                answered = pulse.answered() => pulse.ping = answered,
                _ = ticks.tick() => {
                    // A member is no stranger, perhaps since a moment ago; others keep their place to the end.
                    permit = permit.filter(|_| !self.is_member());
                    if let Err(reason) = pulse.beat(self.session) {
                        break reason;
                    }
                }
                () = sleep_until(passing_end), if self.session.facts.purpose == Purpose::Passing => {
                    break End::Expired;
                }
            }
        };
        self.log_end(reason);
        reason
    }

    fn is_member(&self) -> bool {
        let facts = &self.session.facts;
        let listed = |node| self.switchboard.directory().address(node).is_some();
        matches!(facts.purpose, Purpose::Member(_)) && facts.peer.is_some_and(listed)
    }

    fn log_begin(&self) {
        let facts = &self.session.facts;
        let node = facts.peer.map_or(0, |node| node.0);
        let (from, dialled, boot) = (self.from, self.dialled, facts.boot);
        match facts.purpose {
            Purpose::Member(class) => {
                tracing::info!(node, ?class, boot, from, dialled, "a link has begun");
            }
            Purpose::Passing => tracing::debug!(node, from, dialled, "a passing link has begun"),
        }
    }

    fn log_end(&self, reason: End) {
        let facts = &self.session.facts;
        if let Purpose::Member(class) = facts.purpose {
            let node = facts.peer.map_or(0, |node| node.0);
            meters::link_ended(reason.label());
            tracing::warn!(node, ?class, from = self.from, %reason, "a link has ended");
        }
    }
}

/// Whether the peer lives.
#[derive(Default)]
struct Pulse {
    /// The ping that is not answered yet, and when it was sent.
    ping: Option<(Instant, OneshotReceiver<Vec<u8>>)>,
    /// When the peer had last been heard at the beat before.
    heard: Option<Instant>,
    missed: u32,
}

impl Pulse {
    /// Waits until the ping is answered; for ever when there is none.
    async fn answered(&mut self) -> Option<(Instant, OneshotReceiver<Vec<u8>>)> {
        match &mut self.ping {
            // An error means that the session is ending: its keeper says so.
            Some((_, answer)) => drop(answer.await),
            None => std::future::pending().await,
        }
        None
    }

    /// Once a period. Any bytes are a sign of life: behind a full credit of bulk bytes a ping takes its time. Beats are
    /// counted rather than time, so that a process that was stopped itself hears its peers before it judges them.
    fn beat(&mut self, session: &Session) -> Result<(), End> {
        let heard = session.lifeline.heard();
        self.missed = match self.heard {
            Some(before) if before == heard => self.missed + 1,
            _ => 0,
        };
        self.heard = Some(heard);
        if self.missed >= LINK_MISSED_PINGS {
            return Err(End::Silent);
        }
        let longest = Duration::from_millis(LINK_PING_ANSWER_MS);
        match &self.ping {
            Some((sent, _)) if sent.elapsed() >= longest => {
                return Err(End::NoAnswer);
            }
            Some(_) => {}
            None => {
                let answer = session.outbox.send_now(session.ping());
                self.ping = answer.map(|answer| (Instant::now(), answer));
            }
        }
        Ok(())
    }
}
