//! Hands the calls of other nodes to whom they are for.

use std::sync::{Arc, PoisonError, RwLock};

use crate::link::{Caller, IncomingCall, PeerHandler, PeerService};

/// Who answers which service. The links are there before those who answer: until one is set, its calls are refused as
/// "not ready", and the caller tries again.
#[derive(Default)]
pub struct PeerRouter {
    raft: Slot,
    shards: Slot,
    query: Slot,
    membership: Slot,
    copies: Slot,
    pages: Slot,
    inventory: Slot,
}

type Slot = RwLock<Option<Arc<dyn PeerHandler>>>;

impl PeerRouter {
    /// Lets a handler answer the calls of a service from now on.
    pub fn set(&self, service: PeerService, handler: Arc<dyn PeerHandler>) {
        self.put(service, Some(handler));
    }

    /// Nobody answers any more. Also lets go of the handlers, which may hold the links that hold this.
    pub(crate) fn close(&self) {
        for service in PeerService::ALL {
            self.put(service, None);
        }
    }

    fn put(&self, service: PeerService, handler: Option<Arc<dyn PeerHandler>>) {
        let mut slot = self
            .slot(service)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = handler;
    }

    fn slot(&self, service: PeerService) -> &Slot {
        match service {
            PeerService::Raft => &self.raft,
            PeerService::Shards => &self.shards,
            PeerService::Query => &self.query,
            PeerService::Membership => &self.membership,
            PeerService::Copies => &self.copies,
            PeerService::Pages => &self.pages,
            PeerService::Inventory => &self.inventory,
        }
    }
}

impl PeerHandler for PeerRouter {
    fn deliver(&self, call: IncomingCall) {
        if call.from == Caller::Joining && call.service != PeerService::Membership {
            let refusal = "a node that is no member may ask to join and nothing else";
            let _ = call.reply.send(Err(refusal.to_owned()));
            return;
        }
        let slot = self.slot(call.service).read();
        let handler = slot.unwrap_or_else(PoisonError::into_inner).clone();
        match handler {
            Some(handler) => handler.deliver(call),
            None => {
                let refusal = format!("not ready: it does not answer {:?} now", call.service);
                let _ = call.reply.send(Err(refusal));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use spandrel_model::ids::NodeId;
    use tokio::sync::oneshot;

    use super::*;
    use crate::link::LinkClass;

    struct Echo;

    impl PeerHandler for Echo {
        fn deliver(&self, call: IncomingCall) {
            let _ = call.reply.send(Ok(call.request));
        }
    }

    async fn ask(router: &PeerRouter, from: Caller, service: PeerService) -> Result<Bytes, String> {
        let (reply, answer) = oneshot::channel();
        router.deliver(IncomingCall {
            from,
            service,
            class: LinkClass::Control,
            request: Bytes::from_static(b"x"),
            reply,
        });
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn calls_go_to_their_service_once_it_is_there() {
        let router = PeerRouter::default();
        let member = Caller::Node(NodeId(2));
        let refused = ask(&router, member, PeerService::Query).await.unwrap_err();
        assert!(refused.contains("not ready"), "{refused}");
        router.set(PeerService::Query, Arc::new(Echo));
        assert!(ask(&router, member, PeerService::Query).await.is_ok());
        assert!(ask(&router, member, PeerService::Raft).await.is_err());
        // and strangers are heard on one matter only
        let stranger = ask(&router, Caller::Joining, PeerService::Query).await;
        assert!(stranger.unwrap_err().contains("join"));
        router.set(PeerService::Membership, Arc::new(Echo));
        assert!(
            ask(&router, Caller::Joining, PeerService::Membership)
                .await
                .is_ok()
        );
        router.close();
        assert!(ask(&router, member, PeerService::Query).await.is_err());
    }
}
