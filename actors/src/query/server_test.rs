//! What a node answers to other nodes: by its own map, and whatever bytes they send.

use bytes::Bytes;
use prost::Message;
use spandrel_model::ids::{NodeId, ShardId};
use spandrel_model::policy::KEEP_ALL_POLICY;

use super::part::NodePart;
use super::test_cluster::{ALONE, TestCluster, everything, filled, search};
use crate::link::{Caller, IncomingCall, LinkClass, PeerHandler, PeerService};

/// A copy that has left the in-sync set does not answer for live traces, whatever the asker's map says.
#[tokio::test(start_paused = true)]
async fn a_node_waits_for_the_askers_map_and_answers_by_its_own() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    filled(&cluster).await;
    let query = cluster.query(1);
    let before = search(&query, everything(100)).await;
    assert!(before.receipt.complete);
    // The asker still believes that node 2 has shard 1; node 2 knows better.
    let mut stale = cluster.state.borrow().as_ref().clone();
    stale.epoch = 4;
    let asker = tokio::sync::watch::Sender::new(std::sync::Arc::new(stale));
    cluster.change(|state| {
        state.shard_map[1].primary = NodeId(3);
        state.shard_map[1].isr = vec![NodeId(3)];
        state.epoch = 6;
    });
    let query = query.with_cluster(asker.subscribe());
    let answer = search(&query, everything(100)).await;
    assert!(!answer.receipt.complete);
    let missing = &answer.receipt.missing[0];
    assert_eq!(
        (missing.node, missing.shards.as_slice()),
        (NodeId(2), [ShardId(1)].as_slice())
    );
    assert!(missing.reason.contains("not in sync"), "{}", missing.reason);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_bytes_of_a_peer_hurt_a_node() {
    let cluster = TestCluster::start(KEEP_ALL_POLICY, ALONE).await;
    let server = cluster.server(1);
    let ask = async |from: Caller, request: Vec<u8>| {
        let (reply, answer) = tokio::sync::oneshot::channel();
        server.deliver(IncomingCall {
            from,
            service: PeerService::Query,
            class: LinkClass::Control,
            request: request.into(),
            reply,
        });
        answer.await.unwrap()
    };
    let node = Caller::Node(NodeId(2));
    assert!(ask(node, vec![0xff; 40]).await.is_err());
    assert!(ask(Caller::Joining, Vec::new()).await.is_err());
    let refusal = |answer: Result<Bytes, String>| {
        let answer = crate::wire::QueryAnswer::decode(answer.unwrap()).unwrap();
        match answer.answer {
            Some(crate::wire::query_answer::Answer::Refused(refusal)) => refusal.message,
            other => panic!("{other:?}"),
        }
    };
    let mut request = crate::wire::QueryRequest {
        timeout_ms: 1_000,
        tenant: "a/b".to_owned(),
        ..Default::default()
    };
    assert!(refusal(ask(node, request.encode_to_vec()).await).contains("tenant"));
    request.tenant = "default".to_owned();
    assert!(refusal(ask(node, request.encode_to_vec()).await).contains("question"));
    // A map that never comes.
    request.epoch = 99;
    request.question = Some(crate::wire::query_request::Question::Search(
        super::message::encode_request(&everything(5), &NodePart::all(1)),
    ));
    assert!(!refusal(ask(node, request.encode_to_vec()).await).is_empty());
    cluster.stop().await;
}
