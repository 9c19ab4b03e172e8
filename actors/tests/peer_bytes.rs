//! Whatever another node says, a node goes on: what has no meaning is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use spandrel_actors::link::PeerService;
use spandrel_actors::membership::NodeStart;
use spandrel_actors::{Env, Node};
use spandrel_model::ids::{NodeId, TenantId, UnixNanos};
use spandrel_model::search::SearchFilter;
use support::members::{Cluster, address, at, stop_all};
use support::{TestNode, pass, span};

/// The node that is spoken to, and the one in whose name.
const TOLD: u64 = 2;
const BY: NodeId = NodeId(1);
const BUCKET_S: u64 = 600;

/// Starts a node whose end is noted rather than a panic.
async fn start(cluster: &Cluster, number: u64, start: NodeStart, ended: &Ended) -> Node {
    let ended = Arc::clone(ended);
    let env = Env {
        halt: Arc::new(move |reason| ended.lock().unwrap().push(reason.to_owned())),
        ..cluster.environment(number)
    };
    Node::start(cluster.options(number, start), env)
        .await
        .unwrap()
}

type Ended = Arc<Mutex<Vec<String>>>;

/// A request with some bytes changed, cut or added; now and then any bytes.
fn damaged(request: &[u8], random: &mut ChaCha20Rng) -> Bytes {
    let mut bytes = request.to_vec();
    match random.random_range(0..10) {
        0 => {
            let len = random.random_range(0..200);
            bytes = (0..len).map(|_| random.random()).collect();
        }
        1 => bytes.truncate(random.random_range(0..=request.len())),
        2 => {
            let from = random.random_range(0..=bytes.len());
            let piece = bytes[from..].to_vec();
            bytes.extend(piece);
        }
        _ => {
            for _ in 0..random.random_range(1..4) {
                // The head of a message says more than what it carries.
                let end = if random.random() {
                    bytes.len()
                } else {
                    bytes.len().min(64)
                };
                if end > 0 {
                    let at = random.random_range(0..end);
                    bytes[at] = random.random();
                }
            }
        }
    }
    bytes.into()
}

/// Four nodes, of which the last one has joined late: pages were shipped, a bucket compared, older data copied, and
/// questions asked.
async fn after_a_while(cluster: &Cluster, ended: &Ended) -> Vec<TestNode> {
    let testing = |node| TestNode {
        node,
        clock: Arc::clone(&cluster.clock),
    };
    let mut nodes = vec![testing(start(cluster, 1, NodeStart::Found, ended).await)];
    for number in 2..=3 {
        nodes.push(testing(start(cluster, number, at(&[1]), ended).await));
    }
    let tenant = TenantId::default();
    for trace in 1..40 {
        let spans = [span(trace, 1, 0), span(trace, 2, 1)];
        nodes[usize::from(trace) % 3].send(&tenant, &spans).await;
    }
    nodes[0].search(&tenant, SearchFilter::default()).await;
    pass(3 * BUCKET_S).await;
    nodes.push(testing(start(cluster, 4, at(&[1]), ended).await));
    pass(120).await;
    nodes[0].find(&tenant, 1).await;
    nodes
}

/// Each service, with what nodes had said to it before.
#[tokio::test(start_paused = true)]
async fn a_node_goes_on_whatever_it_is_told() {
    let mut cluster = Cluster::new();
    cluster.bucket_nanos = BUCKET_S * UnixNanos::PER_SECOND;
    let ended = Ended::default();
    let nodes = after_a_while(&cluster, &ended).await;
    let mut random = ChaCha20Rng::seed_from_u64(7);
    let network = &cluster.network;
    for service in PeerService::ALL {
        let said = network.heard(service);
        assert!(!said.is_empty(), "{service:?} was not used");
        let turns = if service == PeerService::Membership {
            200
        } else {
            2_000
        };
        let (mut done, mut refused) = (0, 0);
        for turn in 0..turns {
            let request = &said[random.random_range(0..said.len())];
            let request = damaged(request, &mut random);
            let answer = network.say(&address(TOLD), BY, service, request.clone());
            match tokio::time::timeout(Duration::from_secs(20), answer).await {
                Ok(Ok(Ok(_))) => done += 1,
                Ok(Ok(Err(_))) => refused += 1,
                // It was given up: what it was to wait for does not come.
                Ok(Err(_)) | Err(_) => {}
            }
            let ended = ended.lock().unwrap();
            assert!(
                ended.is_empty(),
                "{service:?}, turn {turn}, {request:?}: {ended:?}"
            );
        }
        assert!(done + refused > 0, "{service:?}");
        // and: it answers
        let question = nodes[1].request(&TenantId::default(), SearchFilter::default());
        let answer = nodes[1].node.query_alone().search(question).await;
        assert!(answer.is_ok(), "{service:?}: {answer:?}");
        nodes[1].node.admin().status().await;
    }
    let ended = ended.lock().unwrap().clone();
    assert!(ended.is_empty(), "{ended:?}");
    stop_all(nodes.into_iter().map(|node| node.node)).await;
}
