//! Hubs on a network in memory, by tokio's paused clock.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use spandrel_model::ids::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::hello::{Hello, HelloAnswer, Purpose, Token};
use super::testing::{
    CLUSTER, Flow, MemoryNetwork, TestNode, host, identity, introduce, until, until_connected,
};
use super::{Caller, Link, LinkClass, LinkError, MAX_LINK_MESSAGE_BYTES, PeerService};
use crate::limits::{LINK_BULK_CREDIT_BYTES, LINK_CONTROL_CALL_BYTES, LINK_CONTROL_CREDIT_BYTES};

const DEADLINE: Duration = Duration::from_secs(5);

async fn pair() -> (std::sync::Arc<MemoryNetwork>, TestNode, TestNode) {
    let network = std::sync::Arc::new(MemoryNetwork::default());
    let one = TestNode::start(&network, 1, 1).await;
    let two = TestNode::start(&network, 2, 1).await;
    introduce(&[(1, &one), (2, &two)]);
    until_connected(&[(1, &one), (2, &two)]).await;
    (network, one, two)
}

#[tokio::test(start_paused = true)]
async fn a_call_is_answered_in_both_classes_and_directions() {
    let (_network, mut one, mut two) = pair().await;
    for class in [LinkClass::Control, LinkClass::Bulk] {
        let asked = tokio::spawn(one.ask(2, class, "to two", DEADLINE));
        let call = two.next_call().await;
        assert_eq!(call.from, Caller::Node(NodeId(1)));
        assert_eq!((call.class, call.service), (class, PeerService::Shards));
        assert_eq!(call.request, "to two");
        call.reply.send(Ok("from two".into())).unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), "from two");

        let asked = tokio::spawn(two.ask(1, class, "to one", DEADLINE));
        let call = one.next_call().await;
        call.reply.send(Err("not today".to_owned())).unwrap();
        let refused = asked.await.unwrap().unwrap_err();
        assert!(matches!(refused, LinkError::Refused { reason, .. } if reason == "not today"));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_arrive_in_the_order_in_which_they_were_made() {
    let (_network, one, mut two) = pair().await;
    // Sizes that do and do not fit: small ones must not overtake those that wait for credit.
    let size = |number: usize| {
        if number.is_multiple_of(7) {
            900 << 10
        } else {
            100
        }
    };
    let calls = (0..100).map(|number| {
        let mut request = number.to_string().into_bytes();
        request.resize(size(number), b' ');
        one.ask(2, LinkClass::Bulk, request, DEADLINE)
    });
    let all = tokio::spawn(join_all(calls.collect::<Vec<_>>()));
    for number in 0..100 {
        let call = two.next_call().await;
        let text = std::str::from_utf8(&call.request).unwrap();
        assert_eq!(text.trim_end().parse::<usize>().unwrap(), number);
        call.reply.send(Ok(Bytes::new())).unwrap();
    }
    assert!(all.await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_on_both_ways() {
    let (_network, one, mut two) = pair().await;
    let large = vec![0; MAX_LINK_MESSAGE_BYTES + 1];
    let refused = one
        .ask(2, LinkClass::Bulk, large.clone(), DEADLINE)
        .await
        .unwrap_err();
    assert_eq!(refused, LinkError::TooLarge { bytes: large.len() });

    let largest = vec![0; MAX_LINK_MESSAGE_BYTES];
    let asked = tokio::spawn(one.ask(2, LinkClass::Control, largest.clone(), DEADLINE));
    let call = two.next_call().await;
    assert_eq!(call.request.len(), MAX_LINK_MESSAGE_BYTES);
    call.reply.send(Ok(largest.into())).unwrap();
    assert_eq!(asked.await.unwrap().unwrap().len(), MAX_LINK_MESSAGE_BYTES);

    let asked = tokio::spawn(one.ask(2, LinkClass::Bulk, "short", DEADLINE));
    let call = two.next_call().await;
    call.reply.send(Ok(large.into())).unwrap();
    let failed = asked.await.unwrap().unwrap_err();
    assert!(matches!(failed, LinkError::NoAnswer { .. }), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline() {
    let (_network, one, mut two) = pair().await;
    let began = Instant::now();
    let short = Duration::from_millis(120);
    let asked = tokio::spawn(one.ask(2, LinkClass::Control, "question", short));
    let call = two.next_call().await;
    let failed = asked.await.unwrap().unwrap_err();
    assert!(matches!(failed, LinkError::NoAnswer { .. }), "{failed}");
    assert!(began.elapsed() < short * 2);

    // A handler that drops a call says that the node is stopping.
    drop(call);
    let asked = tokio::spawn(one.ask(2, LinkClass::Control, "question", DEADLINE));
    drop(two.next_call().await);
    let failed = asked.await.unwrap().unwrap_err();
    assert!(
        failed.to_string().ends_with("the node is stopping"),
        "{failed}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_told_from_what_may_have_been_received() {
    let (network, one, mut two) = pair().await;
    let failed = one
        .ask(9, LinkClass::Control, "hello", DEADLINE)
        .await
        .unwrap_err();
    assert!(matches!(failed, LinkError::Unreachable { .. }), "{failed}");

    // Two take all credit of the control session, the third waits for it.
    let half = vec![0; LINK_CONTROL_CREDIT_BYTES / 2];
    let ask = |deadline| one.ask(2, LinkClass::Control, half.clone(), deadline);
    let sent = [tokio::spawn(ask(DEADLINE)), tokio::spawn(ask(DEADLINE))];
    let held = [two.next_call().await, two.next_call().await];
    let waited = ask(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(waited, LinkError::Unreachable { .. }), "{waited}");

    let waits = tokio::spawn(ask(DEADLINE));
    tokio::task::yield_now().await;
    network.set_flow(&host(1), &host(2), Flow::Stalled);
    let waited = waits.await.unwrap().unwrap_err();
    assert!(matches!(waited, LinkError::Unreachable { .. }), "{waited}");
    for call in sent {
        let failed = call.await.unwrap().unwrap_err();
        assert!(matches!(failed, LinkError::NoAnswer { .. }), "{failed}");
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn what_is_unanswered_stays_within_the_credit() {
    let (_network, one, mut two) = pair().await;
    let request = vec![0; 512 << 10];
    let at_once = LINK_BULK_CREDIT_BYTES / request.len();
    let calls = (0..3 * at_once).map(|_| one.ask(2, LinkClass::Bulk, request.clone(), DEADLINE));
    let all = tokio::spawn(join_all(calls.collect::<Vec<_>>()));
    let mut held = Vec::new();
    for _ in 0..at_once {
        held.push(two.next_call().await);
    }
    // Time passes, nothing more comes; with each answer one more does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(two.calls.try_recv().is_err());
    for _ in 0..2 * at_once {
        let call = held.remove(0);
        call.reply.send(Ok(Bytes::new())).unwrap();
        held.push(two.next_call().await);
        assert!(two.calls.try_recv().is_err());
    }
    drop(held);
    all.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_given_up_keeps_its_credit_until_it_is_answered() {
    let (_network, one, mut two) = pair().await;
    let whole = vec![0; LINK_CONTROL_CREDIT_BYTES];
    let deadline = Duration::from_secs(2);
    let given_up = tokio::spawn(one.ask(2, LinkClass::Control, whole, deadline));
    let held = two.next_call().await;
    given_up.abort();

    let least = vec![0; LINK_CONTROL_CALL_BYTES];
    let short = Duration::from_millis(100);
    let failed = one
        .ask(2, LinkClass::Control, least.clone(), short)
        .await
        .unwrap_err();
    assert!(matches!(failed, LinkError::Unreachable { .. }), "{failed}");

    held.reply.send(Ok(Bytes::new())).unwrap();
    let asked = tokio::spawn(one.ask(2, LinkClass::Control, least, short));
    let call = two.next_call().await;
    call.reply.send(Ok(Bytes::new())).unwrap();
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_keeps_apart_is_reached_by_nobody_and_reaches_nobody_until_it_ends() {
    let (_network, one, two) = pair().await;
    two.hub.set_apart(Some("its disk sleeps".to_owned()));
    until(&one.hub, 2, |peer| !peer.connected).await;
    // Both dial on, in vain, for a while.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(
        one.hub
            .peers()
            .borrow()
            .values()
            .all(|peer| !peer.connected)
    );
    for (node, other) in [(&one, 2), (&two, 1)] {
        let asked = node.ask(other, LinkClass::Control, "hello", DEADLINE).await;
        let failed = asked.unwrap_err();
        assert!(matches!(failed, LinkError::Unreachable { .. }), "{failed}");
        assert!(failed.to_string().contains("its disk sleeps"), "{failed}");
    }
    assert_eq!(two.hub.sessions_for_tests(), 0);

    two.hub.set_apart(None);
    until_connected(&[(1, &one), (2, &two)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_again_is_connected_again() {
    let (network, one, two) = pair().await;
    two.hub.stop().await;
    until(&one.hub, 2, |peer| !peer.connected).await;
    let failed = one
        .ask(2, LinkClass::Control, "hello", DEADLINE)
        .await
        .unwrap_err();
    assert!(matches!(failed, LinkError::Unreachable { .. }), "{failed}");
    let failed = two
        .ask(1, LinkClass::Control, "hello", DEADLINE)
        .await
        .unwrap_err();
    assert!(failed.to_string().contains("stopped"), "{failed}");

    let mut again = TestNode::start(&network, 2, 2).await;
    introduce(&[(1, &one), (2, &again)]);
    until(&one.hub, 2, |peer| peer.connected && peer.boot == 2).await;
    let asked = tokio::spawn(one.ask(2, LinkClass::Bulk, "hello", DEADLINE));
    let call = again.next_call().await;
    call.reply.send(Ok("again".into())).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), "again");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_stopped_reading_is_noticed_within_a_second() {
    let (network, one, two) = pair().await;
    // Enough to fill the buffers between them: the writers wait in the middle of a frame.
    network.set_flow(&host(1), &host(2), Flow::Stalled);
    let stalled = Instant::now();
    let call = tokio::spawn(one.ask(2, LinkClass::Bulk, vec![0; 1 << 20], DEADLINE));
    until(&one.hub, 2, |peer| !peer.connected).await;
    until(&two.hub, 1, |peer| !peer.connected).await;
    assert!(stalled.elapsed() <= Duration::from_secs(1));
    let failed = call.await.unwrap().unwrap_err();
    assert!(matches!(failed, LinkError::NoAnswer { .. }), "{failed}");

    network.set_flow(&host(1), &host(2), Flow::Open);
    until_connected(&[(1, &one), (2, &two)]).await;
    // The old sessions have gone with all that they had queued, also in the middle of a frame.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let sessions = [&one, &two].map(|node| node.hub.sessions_for_tests());
    assert_eq!(sessions, [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_partition_cuts_those_on_both_sides_of_it_only() {
    let network = std::sync::Arc::new(MemoryNetwork::default());
    let mut nodes = Vec::new();
    for node in 1..=3 {
        nodes.push(TestNode::start(&network, node, 1).await);
    }
    let named: Vec<_> = (1..).zip(&nodes).collect();
    introduce(&named);
    until_connected(&named).await;

    network.set_flow(&host(3), &host(1), Flow::Stalled);
    network.set_flow(&host(3), &host(2), Flow::Stalled);
    for (from, to) in [(0, 3), (1, 3), (2, 1), (2, 2)] {
        until(&nodes[from].hub, to, |peer| !peer.connected).await;
    }
    for (from, to) in [(0, 2), (1, 1)] {
        until(&nodes[from].hub, to, |peer| peer.connected).await;
    }

    network.set_flow(&host(3), &host(1), Flow::Open);
    network.set_flow(&host(3), &host(2), Flow::Open);
    until_connected(&named).await;
}

#[tokio::test(start_paused = true)]
async fn sessions_stay_once_both_sides_have_chosen() {
    let (_network, one, two) = pair().await;
    for hub in [&one.hub, &two.hub] {
        let mut peers = hub.peers();
        let fell = peers.wait_for(|peers| peers.values().next().is_none_or(|peer| !peer.connected));
        let fell = tokio::time::timeout(Duration::from_secs(10), fell).await;
        assert!(fell.is_err(), "a session ended without a reason");
    }
    let sessions = |node: &TestNode| node.hub.sessions_for_tests();
    assert_eq!((sessions(&one), sessions(&two)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_is_refused() {
    let (network, one, _two) = pair().await;
    let mut other = identity(3);
    other.cluster_id = 7;
    let stranger = TestNode::start_as(&network, Some(other), 3, 1).await;
    let question = Bytes::from_static(b"hello");
    let address = host(1);
    let asked = stranger
        .hub
        .call_address(&address, PeerService::Membership, question, DEADLINE);
    let refused = asked.await.unwrap_err();
    assert!(
        matches!(&refused, LinkError::Refused { reason, .. } if reason.contains("cluster")),
        "{refused}"
    );
    stranger
        .hub
        .set_peers([(NodeId(1), host(1))].into_iter().collect());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let failed = stranger
        .ask(1, LinkClass::Control, "hello", DEADLINE)
        .await
        .unwrap_err();
    assert!(failed.to_string().contains("of cluster"), "{failed}");
    assert!(one.hub.peers().borrow().get(&NodeId(3)).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_not_spoken_is_refused_with_a_reason() {
    let (network, _one, _two) = pair().await;
    let hello = Hello {
        versions: (40, 41),
        purpose: Purpose::Passing,
        cluster_id: CLUSTER,
        node: Some(NodeId(3)),
        to: None,
        boot: 1,
        sequence: 1,
        token: Token([1; 16]),
        gateway: 1,
        address: host(3),
    };
    let mut stream = network.host(&host(3)).raw(&host(1)).await;
    stream.write_all(&hello.encode()).await.unwrap();
    let answer = HelloAnswer::read(&mut stream).await.unwrap();
    let HelloAnswer::Refused { reason } = answer else {
        panic!("{answer:?}")
    };
    assert!(reason.contains("versions 1 to 2") && reason.contains("40 to 41"));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_the_version_before_is_asked_for_what_it_has_only() {
    let network = std::sync::Arc::new(MemoryNetwork::default());
    let mut one = TestNode::start(&network, 1, 1).await;
    let before = super::testing::options(Some(identity(2)), 1, &host(2), network.host(&host(2)));
    let mut two = TestNode::start_with(super::HubOptions {
        newest_version: 1,
        ..before
    })
    .await;
    introduce(&[(1, &one), (2, &two)]);
    until_connected(&[(1, &one), (2, &two)]).await;
    let call = |from: &TestNode, to, service| {
        let hub = std::sync::Arc::clone(&from.hub);
        let (class, request) = (LinkClass::Bulk, Bytes::from_static(b"give"));
        tokio::spawn(async move {
            hub.call(NodeId(to), service, class, request, DEADLINE)
                .await
        })
    };
    for (asks, to) in [(&one, 2), (&two, 1)] {
        let refused = call(asks, to, PeerService::Copies).await.unwrap();
        assert!(
            matches!(&refused, Err(LinkError::Refused { reason, .. }) if reason.contains("version 1")),
            "{refused:?}"
        );
    }
    let asked = call(&one, 2, PeerService::Shards);
    let reply = two.next_call().await.reply;
    reply.send(Ok("here".into())).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), "here");
    let asked = call(&two, 1, PeerService::Query);
    let reply = one.next_call().await.reply;
    reply.send(Ok("there".into())).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), "there");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_joins_may_ask_to_join_only() {
    let (network, mut one, two) = pair().await;
    let joining = TestNode::start_as(&network, None, 3, 1).await;
    let ask = |service| {
        let hub = std::sync::Arc::clone(&joining.hub);
        async move {
            let request = Bytes::from_static(b"me");
            hub.call_address(&host(1), service, request, DEADLINE).await
        }
    };
    for service in [PeerService::Raft, PeerService::Shards, PeerService::Query] {
        let refused = ask(service).await.unwrap_err();
        assert!(matches!(refused, LinkError::Refused { .. }), "{refused}");
    }
    let asked = tokio::spawn(ask(PeerService::Membership));
    let call = one.next_call().await;
    assert_eq!(call.from, Caller::Joining);
    call.reply.send(Ok("you are 3".into())).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), "you are 3");

    joining.hub.set_identity(CLUSTER, NodeId(3));
    let all = [(1, &one), (2, &two), (3, &joining)];
    introduce(&all);
    until_connected(&all).await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_node_is_let_go_and_does_not_come_back() {
    let (_network, one, two) = pair().await;
    one.hub.set_peers(std::collections::BTreeMap::new());
    until(&two.hub, 1, |peer| !peer.connected).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let failed = two
        .ask(1, LinkClass::Control, "hello", DEADLINE)
        .await
        .unwrap_err();
    assert!(failed.to_string().contains("removed"), "{failed}");
    assert!(one.hub.peers().borrow().is_empty());

    introduce(&[(1, &one), (2, &two)]);
    until_connected(&[(1, &one), (2, &two)]).await;
}
