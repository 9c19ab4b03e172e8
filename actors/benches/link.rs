//! What a call between two Hubs costs over loopback: the round trip of a small one, the throughput of large ones, with
//! and without TLS. Both nodes share the process.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use spandrel_actors::link::{
    Hub, HubOptions, IncomingCall, Link, LinkClass, LinkIdentity, LinkPem, LinkTls, PeerHandler,
    PeerService, TcpStreams,
};
use spandrel_model::ids::NodeId;
use tokio::net::TcpListener;

const DEADLINE: Duration = Duration::from_secs(30);
const LARGE_BYTES: usize = 256 << 10;
const AT_ONCE: usize = 32;

struct Acknowledge;

impl PeerHandler for Acknowledge {
    fn deliver(&self, call: IncomingCall) {
        let _ = call.reply.send(Ok(Bytes::new()));
    }
}

async fn start(node: u64, tls: Option<LinkTls>) -> (Hub, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let advertised = listener.local_addr().unwrap().to_string();
    let options = HubOptions {
        identity: Some(LinkIdentity {
            cluster_id: 1,
            node: NodeId(node),
        }),
        boot: 1,
        advertised: advertised.clone(),
        streams: Arc::new(TcpStreams::new(listener, tls)),
        newest_version: spandrel_actors::link::NEWEST_VERSION,
        seed: [u8::try_from(node).unwrap(); 32],
        halt: Arc::new(|reason| panic!("{reason}")),
    };
    let hub = Hub::start(options, Arc::new(Acknowledge)).await.unwrap();
    (hub, advertised)
}

/// Two connected nodes; calls go from the first to the second.
async fn pair(tls: Option<LinkTls>) -> (Hub, Hub) {
    let (one, one_at) = start(1, tls.clone()).await;
    let (two, two_at) = start(2, tls).await;
    let peers = BTreeMap::from([(NodeId(1), one_at), (NodeId(2), two_at)]);
    one.set_peers(peers.clone());
    two.set_peers(peers);
    let mut seen = one.peers();
    let connected = seen.wait_for(|peers| peers.values().any(|peer| peer.connected));
    connected.await.unwrap();
    (one, two)
}

fn certificates() -> LinkTls {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    let authority_pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    LinkTls::new(&LinkPem {
        authority: authority_pem.into_bytes(),
        certificate: certificate.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    })
    .unwrap()
}

fn links(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (name, tls) in [("tcp", None), ("tls", Some(certificates()))] {
        let (one, _two) = runtime.block_on(pair(tls));
        let call =
            |class, bytes: Bytes| one.call(NodeId(2), PeerService::Shards, class, bytes, DEADLINE);
        let mut group = c.benchmark_group(format!("link_{name}"));
        group.bench_function("call_8_bytes", |b| {
            b.iter(|| {
                let small = Bytes::from_static(b"8 bytes.");
                black_box(runtime.block_on(call(LinkClass::Control, small)).unwrap())
            });
        });
        let large = Bytes::from(vec![7; LARGE_BYTES]);
        let total = u64::try_from(AT_ONCE * LARGE_BYTES).unwrap();
        group.throughput(Throughput::Bytes(total));
        group.bench_function("32_calls_256_KiB", |b| {
            b.iter(|| {
                let calls = (0..AT_ONCE).map(|_| call(LinkClass::Bulk, large.clone()));
                black_box(runtime.block_on(join_all(calls)))
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = links
}
criterion_main!(benches);
