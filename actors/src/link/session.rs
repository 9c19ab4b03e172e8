//! One connection with another node, from the end of its handshake to its own end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use spandrel_model::ids::NodeId;
use tokio::sync::mpsc;

use super::envelope::{Answer, Asked, Header};
use super::hello::{Purpose, Token};
use super::lifeline::Lifeline;
use super::outbox::{Credit, Outbox, Outgoing, Ticket};
use super::{Caller, LinkClass, MAX_LINK_MESSAGE_BYTES, PeerService};

/// What both sides know of a session after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionFacts {
    pub(crate) purpose: Purpose,
    /// Who is at the other side; `None` of a node that joins.
    pub(crate) peer: Option<NodeId>,
    /// Which start of its data directory it is.
    pub(crate) boot: u64,
    /// Whether the node with the lower id has opened the connection.
    pub(crate) by_lower: bool,
    /// Counts the connections of the side that has opened it.
    pub(crate) sequence: u64,
    /// Names the session in what comes in.
    pub(crate) own_token: Token,
    /// Names it in what goes out.
    pub(crate) their_token: Token,
    /// The gateway actor of the other side.
    pub(crate) gateway: u64,
    /// The version of the links that both speak.
    pub(crate) version: u16,
}

impl SessionFacts {
    /// Of two sessions with one node and of one class both sides keep the same one: that with the newer process of
    /// the peer, of these the one that the lower id has opened, of these the later one.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        let rank = |facts: &Self| (facts.boot, facts.by_lower, facts.sequence);
        rank(self) > rank(other)
    }
}

/// Why a call got no answer; becomes a [`LinkError`](super::LinkError) with the node's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It was certainly not received.
    Unsent(String),
    /// It may have been received.
    NoAnswer(String),
    /// It was not taken.
    Refused(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) facts: SessionFacts,
    pub(crate) lifeline: Arc<Lifeline>,
    pub(crate) outbox: Outbox,
    ended: AtomicBool,
    /// Cost of the calls of the peer that are not answered yet.
    received: Mutex<usize>,
    /// Takes the calls that nobody waits for any more, whose credit is still out. Unbounded, but what is in it holds
    /// credit.
    abandoned: mpsc::UnboundedSender<Ticket>,
}

impl Session {
    /// A session, and what its driver takes over from callers that went away.
    pub(crate) fn new(facts: SessionFacts) -> (Arc<Self>, mpsc::UnboundedReceiver<Ticket>) {
        let (abandoned, left_over) = mpsc::unbounded_channel();
        let session = Self {
            outbox: Outbox::new(facts.purpose.class()),
            facts,
            lifeline: Lifeline::new(),
            ended: AtomicBool::new(false),
            received: Mutex::new(0),
            abandoned,
        };
        (Arc::new(session), left_over)
    }

    /// Ends it: the stream is cut, what waits for credit was not sent, what was sent gets no answer.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.outbox.close();
        self.lifeline.cut();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn class(&self) -> LinkClass {
        self.facts.purpose.class()
    }

    /// Who calls by it.
    pub(crate) fn caller(&self) -> Caller {
        self.facts.peer.map_or(Caller::Joining, Caller::Node)
    }

    /// Whether the version that both speak has a service.
    pub(crate) fn has(&self, service: PeerService) -> bool {
        service.since() <= self.facts.version
    }

    /// Calls the other side. The request has its place in the order once this future was polled.
    pub(crate) async fn call(
        self: &Arc<Self>,
        service: PeerService,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Failure> {
        if !self.has(service) {
            let version = self.facts.version;
            let reason = format!("it speaks version {version} of the links, without {service:?}");
            return Err(Failure::Refused(reason));
        }
        let message = Outgoing {
            header: self.header(Asked::Service(service, deadline)),
            payload: Vec::from(request),
        };
        let ticket = self.outbox.submit(message);
        let ticket = ticket.map_err(|reason| Failure::Unsent(reason.to_owned()))?;
        let mut pending = Pending {
            session: self,
            ticket: Some(ticket),
        };
        let Ok(answer) = tokio::time::timeout(deadline, pending.answer()).await else {
            let after = format!("within {} ms", deadline.as_millis());
            return Err(if pending.give_up() {
                Failure::NoAnswer(format!("none {after}"))
            } else {
                Failure::Unsent(format!("no credit {after}"))
            });
        };
        let reason = match answer?.and_then(Answer::decode) {
            Some(Answer::Done(bytes)) => return Ok(bytes),
            Some(Answer::Refused(reason)) => return Err(Failure::Refused(reason)),
            Some(Answer::Late) => {
                format!("its service gave none within {} ms", deadline.as_millis())
            }
            Some(Answer::Stopping) => "the node is stopping".to_owned(),
            Some(Answer::TooLarge) => {
                format!("its answer is over the limit of {MAX_LINK_MESSAGE_BYTES} bytes")
            }
            None => "its answer has no meaning".to_owned(),
        };
        Err(Failure::NoAnswer(reason))
    }

    /// What a ping looks like.
    pub(crate) fn ping(&self) -> Outgoing {
        Outgoing {
            header: self.header(Asked::Ping),
            payload: Vec::new(),
        }
    }

    fn header(&self, asked: Asked) -> Vec<u8> {
        let token = self.facts.their_token;
        Header { asked, token }.encode()
    }

    /// Takes the credit of an incoming call; `None` when the peer sends more than it may.
    pub(crate) fn receive(self: &Arc<Self>, bytes: usize) -> Option<Received> {
        let credit = Credit::of(self.class());
        let cost = credit.cost(bytes);
        let mut used = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        credit.fits(*used, cost).then(|| {
            *used += cost;
            Received {
                session: Arc::clone(self),
                cost,
            }
        })
    }
}

/// The credit of a call that came in; given back before its answer is sent, so that this side never counts more than
/// the one that sends.
#[derive(Debug)]
pub(crate) struct Received {
    session: Arc<Session>,
    cost: usize,
}

impl Drop for Received {
    fn drop(&mut self) {
        let received = &self.session.received;
        *received.lock().unwrap_or_else(PoisonError::into_inner) -= self.cost;
    }
}

/// A call that is waited for. Dropped early it hands what it holds to the session's driver.
struct Pending<'a> {
    session: &'a Session,
    ticket: Option<Ticket>,
}

impl Pending<'_> {
    /// The answer's bytes; gives the credit back.
    async fn answer(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(ticket) = &mut self.ticket else {
            return Ok(None);
        };
        let answer = (&mut ticket.answer).await;
        let (sent, cost) = (ticket.sent(), ticket.cost);
        self.ticket = None;
        match (answer, sent) {
            (Ok(bytes), _) => {
                self.session.outbox.release(cost);
                Ok(Some(bytes))
            }
            (Err(_), true) => Err(Failure::NoAnswer("the session has ended".to_owned())),
            (Err(_), false) => Err(Failure::Unsent("the session has ended".to_owned())),
        }
    }

    /// Stops waiting; true when the request may have been received.
    fn give_up(&mut self) -> bool {
        let Some(ticket) = self.ticket.take() else {
            return true;
        };
        if self.session.outbox.withdraw(&ticket) || !ticket.sent() {
            return false;
        }
        // Fails once the session has ended: then nobody counts its credit any more.
        let _ = self.session.abandoned.send(ticket);
        true
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{LINK_CONTROL_CALL_BYTES, LINK_CONTROL_CREDIT_BYTES};

    #[test]
    fn a_peer_that_sends_more_than_its_credit_is_refused() {
        let (session, _left_over) = Session::new(SessionFacts {
            purpose: Purpose::Member(LinkClass::Control),
            peer: Some(NodeId(2)),
            boot: 1,
            by_lower: true,
            sequence: 1,
            own_token: Token([1; 16]),
            their_token: Token([2; 16]),
            gateway: 1,
            version: 1,
        });
        let most = LINK_CONTROL_CREDIT_BYTES / LINK_CONTROL_CALL_BYTES;
        let mut held: Vec<_> = (0..most).map_while(|_| session.receive(1)).collect();
        assert_eq!(held.len(), most);
        assert!(session.receive(1).is_none());
        held.pop();
        assert!(session.receive(1).is_some());
    }
}
