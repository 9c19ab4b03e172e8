//! Who this node is connected with, and who it should be. Pure: the switchboard acts on what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spandrel_model::ids::NodeId;
use tokio::time::Instant;

use super::hello::{Purpose, Token};
use super::reasons::End;
use super::session::Session;
use super::{LinkClass, Peers, Reachability};
use crate::limits::MAX_LINK_REMOVED;

/// Which node of which cluster this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkIdentity {
    /// The cluster.
    pub cluster_id: u64,
    /// The node.
    pub node: NodeId,
}

/// See the module.
///
/// Invariants: a session in a slot is the peer's, of the slot's class, and in `sessions`; no removed node has a slot.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) identity: Option<LinkIdentity>,
    pub(crate) stopped: bool,
    /// Why this node keeps apart from the others at the moment.
    pub(crate) apart: Option<String>,
    peers: BTreeMap<NodeId, Peer>,
    /// Nodes that were peers and are not any more.
    removed: BTreeSet<NodeId>,
    /// Each session that has begun, by the token that others use.
    sessions: BTreeMap<Token, Arc<Session>>,
}

#[derive(Debug)]
struct Peer {
    /// Where it is dialled; `None` of a node that has come by itself and is not known yet.
    address: Option<String>,
    control: Slot,
    bulk: Slot,
    last_heard: Instant,
    boot: u64,
    /// Why it was last not reached.
    failure: String,
}

#[derive(Debug, Default)]
struct Slot {
    session: Option<Arc<Session>>,
    /// Whether a task dials for it.
    has_dialler: bool,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            address: None,
            control: Slot::default(),
            bulk: Slot::default(),
            last_heard: now,
            boot: 0,
            failure: "it was not dialled yet".to_owned(),
        }
    }

    fn slot(&mut self, class: LinkClass) -> &mut Slot {
        match class {
            LinkClass::Control => &mut self.control,
            LinkClass::Bulk => &mut self.bulk,
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        [&self.control.session, &self.bulk.session]
            .into_iter()
            .flatten()
    }

    fn reachability(&self) -> Reachability {
        let heard = self.sessions().map(|session| session.lifeline.heard());
        Reachability {
            connected: self.sessions().count() == 2,
            last_heard: heard.fold(self.last_heard, Instant::max),
            boot: self.boot,
        }
    }
}

/// What a dialler does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dial {
    /// It ends: the node is no peer any more.
    End,
    /// There is a session, or this node keeps apart or has no identity yet.
    Wait,
    /// It dials.
    Now {
        /// Where.
        address: String,
        /// After giving the other side a moment to dial first.
        yielding: bool,
    },
}

impl Directory {
    /// Of a node that knows nobody yet.
    pub(crate) fn new(identity: Option<LinkIdentity>) -> Self {
        Self {
            identity,
            ..Self::default()
        }
    }

    /// Says which node this is; returns what it was before. A node is no peer of itself.
    pub(crate) fn set_identity(&mut self, identity: LinkIdentity) -> Option<LinkIdentity> {
        if let Some(itself) = self.peers.get_mut(&identity.node) {
            itself.address = None;
        }
        self.forget_if_idle(identity.node);
        self.identity.replace(identity)
    }

    /// Begins a session: its token is known from here on.
    pub(crate) fn begin(&mut self, session: &Arc<Session>) -> bool {
        if self.stopped || self.apart.is_some() {
            return false;
        }
        let token = session.facts.own_token;
        self.sessions.insert(token, Arc::clone(session));
        true
    }

    pub(crate) fn session(&self, token: Token) -> Option<&Arc<Session>> {
        self.sessions.get(&token)
    }

    /// Lets a session count for its node; false when it has ended or another one is preferred. Ends the one that it
    /// replaces.
    pub(crate) fn elect(&mut self, session: &Arc<Session>, now: Instant) -> Elected {
        if self.stopped || self.apart.is_some() || session.has_ended() {
            return Elected::Lost;
        }
        let (Purpose::Member(class), Some(node)) = (session.facts.purpose, session.facts.peer)
        else {
            return Elected::Before;
        };
        if self.removed.contains(&node) {
            return Elected::Lost;
        }
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        let slot = peer.slot(class);
        if let Some(current) = &slot.session {
            if Arc::ptr_eq(current, session) {
                return Elected::Before;
            }
            if !current.has_ended() && !session.facts.beats(&current.facts) {
                return Elected::Lost;
            }
            current.end();
        }
        slot.session = Some(Arc::clone(session));
        peer.boot = session.facts.boot;
        peer.last_heard = now;
        self.check();
        Elected::Now
    }

    /// A session does not count any more.
    pub(crate) fn lose(&mut self, session: &Arc<Session>, reason: End) {
        let (Purpose::Member(class), Some(node)) = (session.facts.purpose, session.facts.peer)
        else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let slot = peer.slot(class);
        let is_current = slot
            .session
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, session));
        if is_current {
            slot.session = None;
            peer.last_heard = peer.last_heard.max(session.lifeline.heard());
            peer.failure = reason.to_string();
        }
        self.forget_if_idle(node);
    }

    /// A session's actors have ended.
    pub(crate) fn forget(&mut self, session: &Session) {
        self.sessions.remove(&session.facts.own_token);
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.values()
    }

    /// The session that carries calls to a node, or why there is none.
    pub(crate) fn route(&self, to: NodeId, class: LinkClass) -> Result<&Arc<Session>, String> {
        if self.stopped {
            return Err("the links are stopped".to_owned());
        }
        if let Some(reason) = &self.apart {
            return Err(format!("this node keeps apart: {reason}"));
        }
        let Some(peer) = self.peers.get(&to) else {
            return Err("it is no peer of this node".to_owned());
        };
        let session = match class {
            LinkClass::Control => &peer.control.session,
            LinkClass::Bulk => &peer.bulk.session,
        };
        session
            .as_ref()
            .filter(|session| !session.has_ended())
            .ok_or_else(|| format!("not connected: {}", peer.failure))
    }

    /// The nodes to be connected with. Returns the slots that need a dialler.
    pub(crate) fn set_peers(
        &mut self,
        wanted: BTreeMap<NodeId, String>,
        now: Instant,
    ) -> Vec<(NodeId, LinkClass)> {
        let own = self.identity.map(|identity| identity.node);
        let gone: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(node, peer)| peer.address.is_some() && !wanted.contains_key(node))
            .map(|(node, _)| *node)
            .collect();
        for node in gone {
            self.remove(node);
        }
        self.check();
        let mut diallers = Vec::new();
        for (node, address) in wanted {
            if Some(node) == own {
                continue;
            }
            self.removed.remove(&node);
            let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
            peer.address = Some(address);
            for class in [LinkClass::Control, LinkClass::Bulk] {
                let slot = peer.slot(class);
                if !slot.has_dialler {
                    slot.has_dialler = true;
                    diallers.push((node, class));
                }
            }
        }
        diallers
    }

    fn remove(&mut self, node: NodeId) {
        self.removed.insert(node);
        if self.removed.len() > MAX_LINK_REMOVED {
            self.removed.pop_first();
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.address = None;
            for session in peer.sessions() {
                session.end();
            }
            peer.control.session = None;
            peer.bulk.session = None;
        }
        self.forget_if_idle(node);
    }

    fn forget_if_idle(&mut self, node: NodeId) {
        let idle = |peer: &Peer| {
            peer.address.is_none()
                && peer.sessions().next().is_none()
                && !peer.control.has_dialler
                && !peer.bulk.has_dialler
        };
        if self.peers.get(&node).is_some_and(idle) {
            self.peers.remove(&node);
        }
    }

    /// Asserts the invariants, in debug builds.
    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        for (node, peer) in &self.peers {
            let slots = [
                (LinkClass::Control, &peer.control),
                (LinkClass::Bulk, &peer.bulk),
            ];
            for (class, session) in slots
                .iter()
                .filter_map(|(class, slot)| Some((class, slot.session.as_ref()?)))
            {
                assert_eq!(session.facts.peer, Some(*node), "a session of another node");
                assert_eq!(session.class(), *class, "a session of the other class");
                let known = self.sessions.contains_key(&session.facts.own_token);
                assert!(known, "a session that is not known");
                assert!(!self.removed.contains(node), "a session of a removed node");
            }
        }
    }

    /// What the dialler of a slot does next.
    pub(crate) fn next_dial(&mut self, node: NodeId, class: LinkClass) -> Dial {
        let (stopped, apart) = (self.stopped, self.apart.is_some());
        let own = self.identity.map(|identity| identity.node);
        let Some(peer) = self.peers.get_mut(&node) else {
            return Dial::End;
        };
        let address = peer.address.clone();
        let slot = peer.slot(class);
        let Some(address) = address.filter(|_| !stopped && own != Some(node)) else {
            slot.has_dialler = false;
            self.forget_if_idle(node);
            return Dial::End;
        };
        match own {
            Some(own) if slot.session.is_none() && !apart => Dial::Now {
                address,
                yielding: own > node,
            },
            _ => Dial::Wait,
        }
    }

    /// A node was not reached.
    pub(crate) fn failed(&mut self, node: NodeId, reason: String) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.failure = reason;
        }
    }

    /// Where a member should be, as far as this node knows.
    pub(crate) fn address(&self, node: NodeId) -> Option<&str> {
        self.peers.get(&node)?.address.as_deref()
    }

    pub(crate) fn is_removed(&self, node: NodeId) -> bool {
        self.removed.contains(&node)
    }

    /// Who can be reached, of those that are wanted.
    pub(crate) fn peers(&self) -> Peers {
        let wanted = self.peers.iter().filter(|(_, peer)| peer.address.is_some());
        Arc::new(
            wanted
                .map(|(node, peer)| (*node, peer.reachability()))
                .collect(),
        )
    }
}

/// Whether a session counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elected {
    /// It does from now on.
    Now,
    /// It did before, or needs no election.
    Before,
    /// It does not.
    Lost,
}
