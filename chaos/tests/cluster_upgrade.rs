//! A rolling upgrade: three nodes that speak to each other as the version before does are replaced, one after the other
//! and under load, by nodes of this version. Old and new ones are one cluster all the while.

// Helpers of a test are tests too; clippy.toml's exception covers only the functions marked as such.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use std::time::Duration;

use cluster::Trial;
use spandrel_chaos::cluster_process::Wiring;
use spandrel_chaos::observe::wait_until;

const NODES: usize = 3;
/// What makes a node speak as the version before: the first version of the links has no copies of older data.
const BEFORE: &str = "--link-version=1";
/// Time for copies: they are looked for every two seconds, and a refusal is waited out for five.
const COPIES_DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_node_by_node_under_load() {
    // given: nodes of the version before, and what the first of them held alone
    let arguments = ["--memory=368MiB", BEFORE];
    let trial = Trial::start_with(NODES, Wiring::Direct, &arguments).await;
    let mut trial = trial.unwrap();
    trial.load.run();
    trial.load.wait_for(30).await.unwrap();
    trial.wait_for_decisions().await.unwrap();
    let alone = trial.cluster.view(0).await.unwrap().lacking_copies;
    assert!(alone > 0, "the first node was alone for a while");

    // when: one after the other is stopped and started as this version, the load going on
    for place in (0..NODES).rev() {
        let node = trial.cluster.node_mut(place);
        node.stop().await.unwrap();
        node.drop_argument(BEFORE);
        node.restart().await.unwrap();
        trial.cluster.ensure_same_identity(place).await.unwrap();
        trial
            .cluster
            .wait_until_settled(place, NODES)
            .await
            .unwrap();
        trial.load.wait_for(20).await.unwrap();
        // then: as long as two do not speak the new version, nobody has got a copy from the first one
        if place > 0 {
            let lacking = trial.cluster.view(place).await.unwrap().lacking_copies;
            assert!(
                lacking >= alone,
                "{lacking} lacking with node {place} upgraded"
            );
        }
    }

    // then: nothing was lost meanwhile, and what the new version has works
    trial.load.stop().await.unwrap();
    trial.say("upgraded");
    let places: Vec<usize> = (0..NODES).collect();
    let receipts = spandrel_chaos::observe::Receipts::Complete;
    let before = trial.examined(&places, receipts).await.unwrap();
    for place in places {
        trial
            .cluster
            .client(place)
            .await
            .unwrap()
            .flush()
            .await
            .unwrap();
    }
    let has_copies = async || {
        let view = trial.cluster.view(0).await?;
        Ok(view.lacking_copies == 0)
    };
    wait_until("copies", COPIES_DEADLINE, has_copies)
        .await
        .unwrap();
    trial.load.run();
    trial.ends_well(0, &before).await.unwrap();
}
