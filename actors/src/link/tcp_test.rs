//! Hubs over real sockets on loopback, with and without TLS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use spandrel_model::ids::NodeId;
use spandrel_raft::{RaftCall, RaftTransport, TransportError};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::testing::{Echo, identity, options, until};
use super::{
    Hub, IncomingCall, Link, LinkClass, LinkError, LinkPem, LinkTls, PeerHandler, PeerService,
    TcpStreams,
};

use crate::membership::RaftLink;

const DEADLINE: Duration = Duration::from_secs(20);

struct TcpNode {
    id: u64,
    hub: Arc<Hub>,
    address: String,
}

impl TcpNode {
    async fn start(id: u64, boot: u64, tls: Option<LinkTls>) -> Self {
        Self::start_at("127.0.0.1:0", id, boot, tls, Arc::new(Echo)).await
    }

    async fn start_at(
        bind: &str,
        id: u64,
        boot: u64,
        tls: Option<LinkTls>,
        handler: Arc<dyn PeerHandler>,
    ) -> Self {
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let streams = Arc::new(TcpStreams::new(listener, tls));
        let options = options(Some(identity(id)), boot, &address, streams);
        let hub = Hub::start(options, handler).await.unwrap();
        Self {
            id,
            hub: Arc::new(hub),
            address,
        }
    }

    async fn echo(&self, to: &Self, class: LinkClass, bytes: Bytes) -> Result<Bytes, LinkError> {
        let service = PeerService::Query;
        let asked = self
            .hub
            .call(NodeId(to.id), service, class, bytes, DEADLINE);
        asked.await
    }
}

fn introduce(nodes: &[&TcpNode]) {
    for node in nodes {
        let peers = nodes
            .iter()
            .map(|peer| (NodeId(peer.id), peer.address.clone()));
        node.hub.set_peers(peers.collect());
    }
}

async fn connect(one: &TcpNode, two: &TcpNode) {
    introduce(&[one, two]);
    until(&one.hub, two.id, |peer| peer.connected).await;
    until(&two.hub, one.id, |peer| peer.connected).await;
}

/// A cluster's authority that issues certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, host: &str) -> LinkTls {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        LinkTls::new(&LinkPem {
            authority: self.pem.clone().into_bytes(),
            certificate: certificate.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        })
        .unwrap()
    }
}

async fn check_calls(one: &TcpNode, two: &TcpNode) {
    let large = Bytes::from(vec![7; 1 << 20]);
    for class in [LinkClass::Control, LinkClass::Bulk] {
        assert_eq!(one.echo(two, class, large.clone()).await.unwrap(), large);
        let small = Bytes::from_static(b"small");
        assert_eq!(two.echo(one, class, small.clone()).await.unwrap(), small);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_tcp() {
    let one = TcpNode::start(1, 1, None).await;
    let two = TcpNode::start(2, 1, None).await;
    connect(&one, &two).await;
    check_calls(&one, &two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_starts_again_at_its_port_is_found_again() {
    let one = TcpNode::start(1, 1, None).await;
    let two = TcpNode::start(2, 1, None).await;
    connect(&one, &two).await;

    two.hub.stop().await;
    until(&one.hub, 2, |peer| !peer.connected).await;
    let again = TcpNode::start_at(&two.address, 2, 2, None, Arc::new(Echo)).await;
    introduce(&[&one, &again]);
    until(&one.hub, 2, |peer| peer.connected && peer.boot == 2).await;
    until(&again.hub, 1, |peer| peer.connected).await;
    check_calls(&one, &again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_mutual_tls() {
    let authority = Authority::new();
    let one = TcpNode::start(1, 1, Some(authority.issue("127.0.0.1"))).await;
    let two = TcpNode::start(2, 1, Some(authority.issue("127.0.0.1"))).await;
    connect(&one, &two).await;
    check_calls(&one, &two).await;
}

/// Asks a node for anything as a new acquaintance, and returns why it was not answered.
async fn refused(from: &TcpNode, to: &TcpNode) -> String {
    let service = PeerService::Membership;
    let asked = from
        .hub
        .call_address(&to.address, service, Bytes::new(), DEADLINE);
    asked.await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_certificate_of_the_cluster_for_its_host_is_refused() {
    let authority = Authority::new();
    let node = TcpNode::start(1, 1, Some(authority.issue("127.0.0.1"))).await;

    let plain = TcpNode::start(2, 1, None).await;
    refused(&plain, &node).await;

    let foreign = TcpNode::start(3, 1, Some(Authority::new().issue("127.0.0.1"))).await;
    let reason = refused(&foreign, &node).await;
    assert!(reason.contains("certificate"), "{reason}");

    // The cluster's own certificate, but of another host than the one that the node says it has.
    let elsewhere = TcpNode::start(4, 1, Some(authority.issue("elsewhere.example"))).await;
    let reason = refused(&elsewhere, &node).await;
    assert!(
        reason.contains("does not name the host `127.0.0.1`"),
        "{reason}"
    );
    let reason = refused(&node, &elsewhere).await;
    assert!(reason.contains("certificate"), "{reason}");
}

/// Tells by which session and for which service a call came.
struct Tell(mpsc::UnboundedSender<(PeerService, LinkClass)>);

impl PeerHandler for Tell {
    fn deliver(&self, call: IncomingCall) {
        self.0.send((call.service, call.class)).unwrap();
        let answer = if call.request.ends_with(b"bad") {
            Err("no".to_owned())
        } else {
            Ok(call.request)
        };
        call.reply.send(answer).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settings_group_sends_snapshots_by_the_bulk_session() {
    let (told, mut tell) = mpsc::unbounded_channel();
    let one = TcpNode::start(1, 1, None).await;
    let two = TcpNode::start_at("127.0.0.1:0", 2, 1, None, Arc::new(Tell(told))).await;
    connect(&one, &two).await;
    let transport = RaftLink(one.hub);

    for (call, class) in [
        (RaftCall::Append, LinkClass::Control),
        (RaftCall::Snapshot, LinkClass::Bulk),
    ] {
        let answer = transport
            .call(NodeId(2), call, vec![1, 2], DEADLINE)
            .await
            .unwrap();
        // Before the request stands the node that it is for.
        assert!(answer.ends_with(&[1, 2]));
        assert_eq!(tell.recv().await.unwrap(), (PeerService::Raft, class));
    }
    let nobody = transport.call(NodeId(9), RaftCall::Vote, vec![], DEADLINE);
    let failed = nobody.await.unwrap_err();
    assert!(matches!(failed, TransportError::Unreachable { .. }));
    let refused = transport.call(NodeId(2), RaftCall::Vote, b"bad".to_vec(), DEADLINE);
    let failed = refused.await.unwrap_err();
    // A node that stops refuses calls that it may have acted on.
    assert!(matches!(failed, TransportError::NoAnswer { .. }));
}
