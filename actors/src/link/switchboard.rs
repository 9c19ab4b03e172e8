//! Brings calls that come in to the node's handler, and tells who can be reached.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ractor::RpcReplyPort;
use spandrel_model::ids::NodeId;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::directory::{Directory, Elected};
use super::envelope::{Answer, Asked, Header};
use super::reasons::NotTaken;
use super::session::{Received, Session};
use super::tasks::Tasks;
use super::{
    Caller, IncomingCall, LinkClass, MAX_LINK_MESSAGE_BYTES, PeerHandler, PeerService, Peers,
};
use crate::meters;

/// See the module.
pub(crate) struct Switchboard {
    directory: Mutex<Directory>,
    peers: watch::Sender<Peers>,
    /// Wakes the diallers.
    changed: watch::Sender<()>,
    pub(crate) tasks: Tasks,
    handler: Arc<dyn PeerHandler>,
}

impl Switchboard {
    pub(crate) fn new(directory: Directory, tasks: Tasks, handler: Arc<dyn PeerHandler>) -> Self {
        Self {
            directory: Mutex::new(directory),
            peers: watch::Sender::default(),
            changed: watch::Sender::default(),
            tasks,
            handler,
        }
    }

    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.subscribe()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Tells who can be reached, if that is another than before, and when they were last heard.
    pub(crate) fn publish(&self) {
        // Under the lock of the directory, so that an older view never follows a newer one.
        let directory = self.directory();
        let peers = directory.peers();
        self.peers.send_if_modified(|published| {
            let changed = *published != peers;
            if changed {
                *published = peers;
            }
            changed
        });
    }

    /// Tells of a change to all.
    pub(crate) fn announce(&self) {
        self.publish();
        self.changed.send_replace(());
    }

    /// Lets a session count for its node. False when it must end.
    pub(crate) fn elect(&self, session: &Arc<Session>) -> bool {
        let elected = self.directory().elect(session, Instant::now());
        if elected == Elected::Now {
            self.announce();
        }
        elected != Elected::Lost
    }

    /// Takes a call or a ping that came in, and returns at once.
    pub(crate) fn deliver(&self, header: &[u8], payload: Vec<u8>, reply: RpcReplyPort<Vec<u8>>) {
        if let Err((reason, reply)) = self.take(header, payload, reply) {
            meters::link_call_refused(reason.label());
            let _ = reply.send(Answer::Refused(reason.to_string()).encode());
        }
    }

    fn take(
        &self,
        header: &[u8],
        payload: Vec<u8>,
        reply: RpcReplyPort<Vec<u8>>,
    ) -> Result<(), (NotTaken, RpcReplyPort<Vec<u8>>)> {
        let Some(header) = Header::decode(header) else {
            return Err((NotTaken::NoMeaning, reply));
        };
        let session = self.directory().session(header.token).cloned();
        let Some(session) = session else {
            return Err((NotTaken::NoSession, reply));
        };
        let Asked::Service(service, deadline) = header.asked else {
            let _ = reply.send(Answer::Done(Bytes::new()).encode());
            return Ok(());
        };
        if !session.has(service) {
            return Err((NotTaken::NoMeaning, reply));
        }
        if payload.len() > MAX_LINK_MESSAGE_BYTES {
            return Err((NotTaken::TooLarge, reply));
        }
        // The other side may call before this one has heard that the session is ready. Counting it now keeps what an
        // older session still brings from coming after this call.
        if !self.elect(&session) {
            return Err((NotTaken::Ended, reply));
        }
        let from = session.caller();
        if from == Caller::Joining && service != PeerService::Membership {
            return Err((NotTaken::Joining, reply));
        }
        let Some(received) = session.receive(payload.len()) else {
            return Err((NotTaken::Credit, reply));
        };
        let (answer, answered) = oneshot::channel();
        self.handler.deliver(IncomingCall {
            from,
            service,
            class: session.class(),
            request: Bytes::from(payload),
            reply: answer,
        });
        self.tasks
            .spawn(send_answer(answered, deadline, received, reply));
        Ok(())
    }

    /// Ends every session.
    pub(crate) fn end_all(&self) {
        let directory = self.directory();
        directory.sessions().for_each(|session| session.end());
    }

    /// The session that carries a call.
    pub(crate) fn route(&self, to: NodeId, class: LinkClass) -> Result<Arc<Session>, String> {
        self.directory().route(to, class).cloned()
    }
}

/// Answers a call in any case, because the caller's credit comes back with the answer.
async fn send_answer(
    answered: oneshot::Receiver<Result<Bytes, String>>,
    deadline: Duration,
    received: Received,
    reply: RpcReplyPort<Vec<u8>>,
) {
    let answer = match tokio::time::timeout(deadline, answered).await {
        Ok(Ok(Ok(bytes))) if bytes.len() > MAX_LINK_MESSAGE_BYTES => {
            let bytes = bytes.len();
            tracing::error!(bytes, "an answer is over the limit for a message");
            Answer::TooLarge
        }
        Ok(Ok(Ok(bytes))) => Answer::Done(bytes),
        Ok(Ok(Err(reason))) => Answer::Refused(reason),
        Ok(Err(_)) => Answer::Stopping,
        Err(_) => Answer::Late,
    };
    let bytes = answer.encode();
    drop(received);
    // Fails when the session has ended.
    let _ = reply.send(bytes);
}
