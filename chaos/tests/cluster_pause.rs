//! P1 and P2 of a cluster through SIGSTOP: a node of three stands still while clients export to all of them, its
//! connections open. The others go on without it; when it goes on, it learns that it leads nothing any more, and what
//! it acknowledges then is as safe as everything else.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::time::{Duration, Instant};

use cluster::{Trial, all_but, receipts_without};
use spandrel_chaos::cluster_process::Wiring;
use tokio::sync::Mutex;

/// Two clusters at once are too many for a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
const NODES: usize = 3;
/// Requests that a paused node finds in its sockets when it goes on.
const WAITING_REQUESTS: usize = 16;
/// Time for their answers: longer than the pause.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which node stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The one that leads the settings.
    Leader,
    /// Another one.
    Other,
}

async fn survives_a_pause_of(victim: Victim) {
    // given: a cluster under load, with decisions on every node
    let mut trial = Trial::start(NODES, Wiring::Direct).await.unwrap();
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.wait_for_decisions().await.unwrap();
    let leader = trial.cluster.leader(0).await.unwrap();
    let victim = match victim {
        Victim::Leader => leader,
        Victim::Other => (leader + 1) % NODES,
    };
    let others = all_but(NODES, victim);

    // when: it stands still, and the load goes on
    let paused_at = Instant::now();
    trial.cluster.node(victim).pause().unwrap();
    trial
        .cluster
        .wait_until_down(others[0], victim)
        .await
        .unwrap();
    eprintln!("known to be down after {:?}", paused_at.elapsed());

    // then: the others acknowledge, and what they acknowledged is there
    trial
        .cluster
        .wait_until_settled(others[0], NODES - 1)
        .await
        .unwrap();
    eprintln!("settled without it after {:?}", paused_at.elapsed());
    trial.load.wait_for(50).await.unwrap();
    trial.load.stop().await.unwrap();
    trial.say("without the victim");
    let receipts = receipts_without(victim);
    let before = trial.examined(&others, receipts).await.unwrap();

    // when: it goes on, with requests in its sockets that came meanwhile
    let otlp = trial.cluster.node(victim).ports().otlp_grpc;
    let waiting = trial.load.probe(otlp, WAITING_REQUESTS, PATIENCE).unwrap();
    trial.load.run();
    trial.load.wait_for(20).await.unwrap();
    trial.cluster.node(victim).resume().unwrap();
    let late = waiting.acknowledged().await.unwrap();
    eprintln!("{late} of {WAITING_REQUESTS} requests were acknowledged when it went on");

    // then: everything holds through every node, what it acknowledged late included
    trial.ends_well(others[0], &before).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_while_the_node_that_leads_the_settings_stands_still() {
    let _alone = ONE_AT_A_TIME.lock().await;
    survives_a_pause_of(Victim::Leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_while_another_node_stands_still() {
    let _alone = ONE_AT_A_TIME.lock().await;
    survives_a_pause_of(Victim::Other).await;
}
