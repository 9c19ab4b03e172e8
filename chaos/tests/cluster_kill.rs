//! P1 and P2 of a cluster through SIGKILL: of three nodes with two copies, one is killed while clients export to all
//! of them. The others take its shards, nothing that was acknowledged is lost, there is one decision a trace, and
//! searches are complete. Started again, the node is the one that it was, and all of that still holds.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::time::Instant;

use cluster::{Trial, all_but, receipts_without};
use spandrel_chaos::cluster_process::Wiring;
use spandrel_chaos::examination::ensure_none;
use spandrel_chaos::observe::{Receipts, fetch_all_as};
use spandrel_chaos::oracle::{Stage, Violation, judge_traces};
use tokio::sync::Mutex;

/// Two clusters at once are too many for a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
const NODES: usize = 3;

/// Which node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The one that leads the settings.
    Leader,
    /// Another one.
    Other,
}

async fn survives_the_death_of(victim: Victim) {
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
    // Followers learn some moments later what counts: of what comes right before the kill they may know nothing yet,
    // and say so.
    let acknowledged_before = trial.load.history();
    trial.load.wait_for(40).await.unwrap();
    let clients = [
        trial.cluster.client(others[0]).await.unwrap(),
        trial.cluster.client(others[1]).await.unwrap(),
    ];

    // when: it is killed, and the load goes on
    let killed_at = Instant::now();
    trial.cluster.node_mut(victim).kill().unwrap();

    // then: at once, all that was acknowledged is found through the others
    for client in &clients {
        let answers = fetch_all_as(client, &acknowledged_before, Receipts::Honest)
            .await
            .unwrap();
        let mut violations = judge_traces(&acknowledged_before, &answers, Stage::Deciding);
        // Spans that were sent since are there too. And a node that has no contact to a leader says so of every answer.
        let before = violations.len();
        violations.retain(|violation| !matches!(violation, Violation::Phantom { .. }));
        violations.retain(|violation| !matches!(violation, Violation::Incomplete { .. }));
        eprintln!(
            "{} answers are not whole, or newer",
            before - violations.len()
        );
        ensure_none("at once after the kill", &violations).unwrap();
    }
    eprintln!("asked at once: done after {:?}", killed_at.elapsed());
    trial
        .cluster
        .wait_until_down(others[0], victim)
        .await
        .unwrap();
    eprintln!("known to be down after {:?}", killed_at.elapsed());
    trial
        .cluster
        .wait_until_settled(others[0], NODES - 1)
        .await
        .unwrap();
    eprintln!("settled without it after {:?}", killed_at.elapsed());
    trial.load.wait_for(50).await.unwrap();
    trial.load.stop().await.unwrap();
    trial.say("without the victim");
    let receipts = receipts_without(victim);
    let before = trial.examined(&others, receipts).await.unwrap();

    // when: it starts again under load
    trial.load.run();
    trial.load.wait_for(20).await.unwrap();
    trial.cluster.node_mut(victim).restart().await.unwrap();
    trial.cluster.ensure_same_identity(victim).await.unwrap();

    // then: everything holds through every node, also through the one that came back
    trial.ends_well(others[0], &before).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_spans_survive_the_death_of_the_node_that_leads_the_settings() {
    let _alone = ONE_AT_A_TIME.lock().await;
    survives_the_death_of(Victim::Leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_spans_survive_the_death_of_another_node() {
    let _alone = ONE_AT_A_TIME.lock().await;
    survives_the_death_of(Victim::Other).await;
}
