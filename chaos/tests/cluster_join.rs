//! P1 and P2 of a cluster that grows: a fourth node joins three while clients export. No client notices, shards move
//! to it, and everything is found through it too.
//!
//! It found that a fetch by id said that it was not whole, with every span there: a verdict names records that the new
//! replica does not have, beside those that repeat their spans to it, and the pager logged each of them as lost.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::time::Instant;

use cluster::Trial;
use spandrel_chaos::cluster_process::Wiring;
use spandrel_chaos::observe::Receipts;

const NODES: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_under_load_takes_its_share_and_no_client_notices() {
    // given: a cluster under load, with decisions on every node
    let mut trial = Trial::start(NODES, Wiring::Direct).await.unwrap();
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.wait_for_decisions().await.unwrap();

    // when: one more joins, and takes exports as soon as it is ready
    let joined_at = Instant::now();
    let new = trial.cluster.join().await.unwrap();
    eprintln!("ready after {:?}", joined_at.elapsed());
    let otlp = trial.cluster.node(new).ports().otlp_grpc;
    trial.load.add_target(otlp);

    // then: it has its share; the bound on shards led is part of being settled
    trial
        .cluster
        .wait_until_settled(0, NODES + 1)
        .await
        .unwrap();
    eprintln!("settled after {:?}", joined_at.elapsed());
    let share = trial.cluster.standing(0, new).await.unwrap();
    assert!(share.primary_shards > 0, "it leads nothing: {share:?}");
    trial.load.wait_for(50).await.unwrap();
    trial.load.stop().await.unwrap();
    trial.say("with the new node");

    // and: every attempt of every client was answered; a refusal without a hint would have ended the load
    let report = trial.load.report();
    assert!(report.unanswered.is_empty(), "{report:?}");

    // and: everything holds through every node, also through the new one
    let places: Vec<usize> = (0..=NODES).collect();
    trial.examined(&places, Receipts::Complete).await.unwrap();
}
