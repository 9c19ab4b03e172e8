//! P1 and P2 of a cluster with a cut wire: one node of three runs and takes requests, but reaches no other node. It
//! acknowledges nothing; the others go on without it; and once the wire is whole there is one decision a trace.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::time::{Duration, Instant};

use cluster::{Trial, all_but, receipts_without};
use spandrel_chaos::cluster_process::Wiring;

const NODES: usize = 3;
/// Requests to the node that is cut off, once each.
const REQUESTS: usize = 16;
/// Time for their answers: the others have long gone on by then.
const PATIENCE: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_acknowledges_nothing_and_decides_nothing() {
    // given: a cluster under load, with decisions on every node; the victim leads shards and the settings
    let mut trial = Trial::start(NODES, Wiring::Proxied).await.unwrap();
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.wait_for_decisions().await.unwrap();
    let victim = trial.cluster.leader(0).await.unwrap();
    let others = all_but(NODES, victim);
    let led = trial.cluster.standing(0, victim).await.unwrap();
    assert!(led.primary_shards > 0, "it leads nothing: {led:?}");

    // when: it is cut off, with traces open, and clients ask it alone
    trial.load.stop().await.unwrap();
    trial.cluster.wires().unwrap().cut_off(victim);
    let cut_at = Instant::now();
    let otlp = trial.cluster.node(victim).ports().otlp_grpc;
    let asked = trial.load.probe(otlp, REQUESTS, PATIENCE).unwrap();

    // then: it acknowledges nothing, and the others go on
    trial
        .cluster
        .wait_until_down(others[0], victim)
        .await
        .unwrap();
    eprintln!("known to be down after {:?}", cut_at.elapsed());
    trial
        .cluster
        .wait_until_settled(others[0], NODES - 1)
        .await
        .unwrap();
    eprintln!("settled without it after {:?}", cut_at.elapsed());
    trial.load.run();
    trial.load.wait_for(50).await.unwrap();
    assert_eq!(asked.acknowledged().await.unwrap(), 0);
    trial.load.stop().await.unwrap();
    trial.say("without the victim");
    let receipts = receipts_without(victim);
    let before = trial.examined(&others, receipts).await.unwrap();

    // when: the wire is whole again
    trial.load.run();
    trial.load.wait_for(20).await.unwrap();
    trial.cluster.wires().unwrap().heal();

    // then: everything holds through every node, also through the one that was cut off
    trial.ends_well(others[0], &before).await.unwrap();
}
