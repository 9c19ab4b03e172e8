//! What one session sends: in the order in which it was handed in, and never more unanswered than its credit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ractor::ActorRef;
use ractor::concurrency::{OneshotReceiver, OneshotSender, oneshot};

use super::gateway::GatewayMessage;
use super::{LinkClass, MAX_LINK_MESSAGE_BYTES};
use crate::limits::{
    LINK_BULK_CALL_BYTES, LINK_BULK_CREDIT_BYTES, LINK_CONTROL_CALL_BYTES,
    LINK_CONTROL_CREDIT_BYTES, MAX_LINK_WAITING_CALLS,
};

/// The credit of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credit {
    /// Bytes that may be unanswered.
    pub(crate) bytes: usize,
    /// What a call takes at least.
    pub(crate) least: usize,
}

impl Credit {
    pub(crate) fn of(class: LinkClass) -> Self {
        let (bytes, least) = match class {
            LinkClass::Control => (LINK_CONTROL_CREDIT_BYTES, LINK_CONTROL_CALL_BYTES),
            LinkClass::Bulk => (LINK_BULK_CREDIT_BYTES, LINK_BULK_CALL_BYTES),
        };
        Self { bytes, least }
    }

    /// What a request of a size takes.
    pub(crate) fn cost(self, bytes: usize) -> usize {
        bytes.max(self.least)
    }

    /// Whether there is room; a request that is as large as the credit goes alone.
    pub(crate) fn fits(self, used: usize, cost: usize) -> bool {
        used == 0 || used.saturating_add(cost) <= self.bytes
    }
}

/// See the module.
///
/// Invariants: `used` is the sum of the costs of what was sent and neither answered nor given up by the session's end;
/// something waits only while its cost does not fit.
#[derive(Debug)]
pub(crate) struct Outbox {
    credit: Credit,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next_id: u64,
    waiting: VecDeque<Waiting>,
    /// The peer's gateway: `None` before the session is ready and after its end.
    gateway: Option<ActorRef<GatewayMessage>>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    cost: usize,
    message: Outgoing,
    reply: OneshotSender<Vec<u8>>,
    sent: Arc<AtomicBool>,
}

/// A request as it goes out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) header: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// A request that was handed in.
#[derive(Debug)]
pub(crate) struct Ticket {
    id: u64,
    pub(crate) cost: usize,
    /// Ends with an error when the session does.
    pub(crate) answer: OneshotReceiver<Vec<u8>>,
    sent: Arc<AtomicBool>,
}

impl Ticket {
    /// Whether the peer may have received the request.
    pub(crate) fn sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }
}

impl Outbox {
    pub(crate) fn new(class: LinkClass) -> Self {
        Self {
            credit: Credit::of(class),
            state: Mutex::new(State::default()),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session is ready: requests can be sent.
    pub(crate) fn open(&self, gateway: ActorRef<GatewayMessage>) {
        self.state().gateway = Some(gateway);
    }

    /// Sends a request, at once or as soon as there is credit. Never waits.
    pub(crate) fn submit(&self, message: Outgoing) -> Result<Ticket, &'static str> {
        let cost = self.credit.cost(message.payload.len());
        let mut state = self.state();
        if state.gateway.is_none() {
            return Err("the session has ended");
        }
        if state.waiting.len() >= MAX_LINK_WAITING_CALLS {
            return Err("too many calls wait for credit");
        }
        let (reply, answer) = oneshot();
        let sent = Arc::new(AtomicBool::new(false));
        let id = state.next_id;
        state.next_id += 1;
        state.waiting.push_back(Waiting {
            id,
            cost,
            message,
            reply,
            sent: Arc::clone(&sent),
        });
        self.pump(&mut state);
        Ok(Ticket {
            id,
            cost,
            answer,
            sent,
        })
    }

    /// Sends past the credit and the queue: for pings, of which one is unanswered at most.
    pub(crate) fn send_now(&self, message: Outgoing) -> Option<OneshotReceiver<Vec<u8>>> {
        let (reply, answer) = oneshot();
        let state = self.state();
        let message = GatewayMessage::new(message, reply);
        state.gateway.as_ref()?.cast(message).ok()?;
        Some(answer)
    }

    /// Takes a request back that still waits; false when it was sent.
    pub(crate) fn withdraw(&self, ticket: &Ticket) -> bool {
        if ticket.sent() {
            return false;
        }
        let mut state = self.state();
        let found = state
            .waiting
            .iter()
            .position(|waiting| waiting.id == ticket.id);
        let withdrawn = found.and_then(|at| state.waiting.remove(at)).is_some();
        // The next one may be smaller.
        self.pump(&mut state);
        withdrawn
    }

    /// A request was answered.
    pub(crate) fn release(&self, cost: usize) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(cost);
        self.pump(&mut state);
    }

    /// The session has ended: what waits is not sent any more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.gateway = None;
        state.waiting.clear();
    }

    /// Asserts the invariants, in debug builds.
    fn check(&self, state: &State) {
        let alone = self.credit.cost(MAX_LINK_MESSAGE_BYTES);
        debug_assert!(
            state.used <= self.credit.bytes.max(alone),
            "more is sent than there is credit"
        );
        let next = state.waiting.front().filter(|_| state.gateway.is_some());
        debug_assert!(
            next.is_none_or(|next| !self.credit.fits(state.used, next.cost)),
            "something waits though there is credit"
        );
    }

    fn pump(&self, state: &mut State) {
        self.send_what_fits(state);
        self.check(state);
    }

    fn send_what_fits(&self, state: &mut State) {
        while let Some(next) = state.waiting.front() {
            if !self.credit.fits(state.used, next.cost) {
                return;
            }
            let Some(gateway) = &state.gateway else {
                return;
            };
            let Some(next) = state.waiting.pop_front() else {
                return;
            };
            let message = GatewayMessage::new(next.message, next.reply);
            // A cast to a proxy that has ended fails: the reply's sender is dropped with the message and nothing was
            // sent.
            if gateway.cast(message).is_ok() {
                next.sent.store(true, Ordering::Release);
                state.used += next.cost;
            }
        }
    }
}
